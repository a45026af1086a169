"""A task that takes all memory fails with MemoryError, and its neighbours run, with `lambda_tasks.contrib.memory`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks import identity
from lambda_tasks.backends.memory import event_record
from lambda_tasks.contrib import memory
from lambda_tasks.decorators import lambda_task
from lambda_tasks.executor import execute
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Succeeded

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts what it should on Linux only"),
]

WORKER = textwrap.dedent(
    """
    import json, sys
    import django
    from django.conf import settings

    settings.LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.memory"]
    django.setup()
    import resource
    from lambda_tasks.handler import handler

    print(json.dumps([handler(json.load(sys.stdin), None), resource.getrlimit(resource.RLIMIT_DATA)[0]]))
    """
)


def in_a_worker(*task_names: str, megabytes: str) -> tuple[subprocess.CompletedProcess[str], list[TaskRecord]]:
    jobs = []
    for name in task_names:
        message_id = identity.new_message_id()
        kwargs = {"name": "a"} if name == "note" else {}
        message = SQSLambdaTaskMessage(task_name=f"tests.faults.limited_tasks.{name}", kwargs=kwargs)
        jobs.append(Job(message=message, message_id=message_id, root_id=message_id))
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", memory.MEMORY_SIZE: megabytes},
        input=json.dumps({"Records": [event_record(job) for job in jobs]}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, [TaskRecord.objects.get(pk=job.message_id) for job in jobs]


def test_a_task_that_takes_all_memory_has_failed_and_the_worker_goes_on() -> None:
    done, records = in_a_worker("note", "fill_the_memory", "note", megabytes="512")
    assert done.returncode == 0, done.stderr
    assert [record.status for record in records] == ["SUCCESS", "FAILED", "SUCCESS"]
    assert "MemoryError" in (records[1].traceback or "")
    answer, limit_afterwards = json.loads(done.stdout)
    assert answer == {"batchItemFailures": []}
    assert limit_afterwards == resource.RLIM_INFINITY


def test_a_function_that_is_too_small_to_begin_with_is_warned_about_and_not_limited() -> None:
    done, records = in_a_worker("note", megabytes="8")
    assert done.returncode == 0, done.stderr
    assert "no memory limit is kept" in done.stderr
    assert [record.status for record in records] == ["SUCCESS"]


@lambda_task
def look_at_the_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def limit_in_a_task(*, limited: bool = True) -> Any:
    message = SQSLambdaTaskMessage(task_name=look_at_the_limit.name)
    with override_settings(LAMBDA_TASKS_PLUGINS=["lambda_tasks.contrib.memory"]):
        outcome = execute(message, message_id=identity.new_message_id(), limited=limited)
    assert isinstance(outcome, Succeeded)
    return outcome.result


class TestWhatIsSet:
    def test_nine_tenths_of_the_functions_memory_while_the_function_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "10240")
        before = resource.getrlimit(resource.RLIMIT_DATA)
        assert limit_in_a_task() == 9216 * 1024 * 1024
        assert resource.getrlimit(resource.RLIMIT_DATA) == before

    @pytest.mark.parametrize("size", ["", "much", "0"])
    def test_nothing_where_nobody_says_how_much_there_is(self, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, size)
        assert limit_in_a_task() == resource.RLIM_INFINITY

    def test_nothing_in_eager_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "10240")
        assert limit_in_a_task(limited=False) == resource.RLIM_INFINITY

    def test_a_lower_limit_of_your_own_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "10240")
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        own = 8 * 1024**3
        resource.setrlimit(resource.RLIMIT_DATA, (own, hard))
        try:
            assert limit_in_a_task() == own
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
