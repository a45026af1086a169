"""A task that cannot be interrupted is ended with its process, and its record says so."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from lambda_tasks import identity
from lambda_tasks.models import TaskRecord

pytestmark = pytest.mark.django_db(transaction=True)

PREPARE = """
    import sys, time
    import django
    django.setup()
    from lambda_tasks import executor, timeouts
    from lambda_tasks.decorators import lambda_task
    from lambda_tasks.messages import SQSLambdaTaskMessage

    executor.KILL_GRACE = timeouts.KILL_GRACE = 0.1
"""

RUN = """
    message = SQSLambdaTaskMessage(task_name=task.name)
    executor.execute(message, message_id=sys.argv[1])
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


def test_what_swallows_every_interrupt_is_recorded_as_failed_and_ended() -> None:
    message_id = identity.new_message_id()
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


def test_what_holds_the_interpreter_is_ended_and_taken_over_later() -> None:
    message_id = identity.new_message_id()
    done = in_a_worker(
        """
        import ctypes, signal

        @lambda_task(soft_timeout=1, hard_timeout=2)
        def task() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # C code that no signal wakes
            ctypes.PyDLL(None).sleep(50)  # PyDLL keeps the interpreter's lock
        """,
        message_id,
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "Timeout (0:00:0" in done.stderr
    assert "in task\n" in done.stderr
    # Nobody could write its end; the lease runs out, and the next delivery takes it over.
    assert TaskRecord.objects.get(pk=message_id).status == "RUNNING"
