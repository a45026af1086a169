"""A process with a task that cannot be interrupted is ended, and the record states the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from lambda_tasks.models import TaskRecord
from lambda_tasks.wire import ids

pytestmark = [pytest.mark.thorough, pytest.mark.django_db(transaction=True)]

PREPARE = """
    import sys, time
    import django
    django.setup()
    from lambda_tasks.execution import pipeline
    from lambda_tasks.limits import alarms
    from lambda_tasks.decorators import lambda_task
    from lambda_tasks.messages import SQSLambdaTaskMessage
    from lambda_tasks.wire.invocation import Invocation

    pipeline.KILL_GRACE = alarms.KILL_GRACE = 0.1
"""

RUN = """
    message = Invocation(task_name=task.name)
    pipeline.execute(message, message_id=sys.argv[1])
    print("survived")
"""


def in_a_worker(task: str, message_id: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(PREPARE) + textwrap.dedent(task) + textwrap.dedent(RUN)
    return subprocess.run(
        [sys.executable, "-c", code, message_id],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_task_that_swallows_interrupts_fails_and_ends() -> None:
    message_id = ids.new_message_id()
    done = in_a_worker(
        """
        @lambda_task(soft_timeout=1, hard_timeout=2)
        def task() -> None:
            while True:
                try:
                    time.sleep(50)
                except:
                    pass
        """,
        message_id,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    record = TaskRecord.objects.get(pk=message_id)
    assert record.status == "FAILED"
    assert "its process was ended" in record.traceback


def test_task_that_holds_the_gil_is_taken_over() -> None:
    """The process is ended before the takeover."""
    message_id = ids.new_message_id()
    done = in_a_worker(
        """
        import ctypes, signal

        @lambda_task(soft_timeout=1, hard_timeout=2)
        def task() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # like C code that no signal interrupts
            ctypes.PyDLL(None).sleep(50)  # PyDLL does not release the GIL
        """,
        message_id,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "Timeout (0:00:0" in done.stderr
    assert "in task\n" in done.stderr
    # The process cannot record the end. The lease expires, and the next delivery takes over the task.
    assert TaskRecord.objects.get(pk=message_id).status == "RUNNING"
