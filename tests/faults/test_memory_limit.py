"""Check that `lambda_tasks.contrib.memory` fails a task that uses all memory, and that its neighbours run."""

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

from lambda_tasks.backends.memory import event_record
from lambda_tasks.contrib import memory
from lambda_tasks.decorators import lambda_task
from lambda_tasks.environments import retiring
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Succeeded
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

pytestmark = [
    pytest.mark.thorough,
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
        message_id = ids.new_message_id()
        kwargs = {"name": "a"} if name == "note" else {}
        message = Invocation(task_name=f"tests.faults.limited_tasks.{name}", kwargs=kwargs)
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


def test_task_that_exhausts_memory_fails_alone() -> None:
    done, records = in_a_worker("note", "fill_the_memory", "note", megabytes="512")
    assert done.returncode == 0, done.stderr
    assert [record.status for record in records] == ["SUCCESS", "FAILED", "SUCCESS"]
    assert "MemoryError" in (records[1].traceback or "")
    answer, limit_afterwards = json.loads(done.stdout)
    assert answer == {"batchItemFailures": []}
    assert limit_afterwards == resource.RLIM_INFINITY


def test_too_small_function_is_unlimited_with_a_warning() -> None:
    done, records = in_a_worker("note", megabytes="8")
    assert done.returncode == 0, done.stderr
    assert "no memory limit is set" in done.stderr
    assert [record.status for record in records] == ["SUCCESS"]


@lambda_task
def look_at_the_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def limit_in_a_task(*, limited: bool = True) -> Any:
    message = Invocation(task_name=look_at_the_limit.name)
    with override_settings(LAMBDA_TASKS_PLUGINS=["lambda_tasks.contrib.memory"]):
        outcome = execute(message, message_id=ids.new_message_id(), limited=limited)
    assert isinstance(outcome, Succeeded)
    return outcome.result


class TestLimit:
    def test_limit_is_nine_tenths_during_the_task(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "10240")
        before = resource.getrlimit(resource.RLIMIT_DATA)
        assert limit_in_a_task() == 9216 * 1024 * 1024
        assert resource.getrlimit(resource.RLIMIT_DATA) == before

    @pytest.mark.parametrize(("processes", "parts"), [("4", 4), ("1", 1), ("0", 1), ("many", 1)])
    def test_processes_of_an_environment_share_the_memory(
        self, processes: str, parts: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "40960")
        monkeypatch.setenv(memory.MAX_CONCURRENCY, processes)
        assert limit_in_a_task() == 36_864 * 1024 * 1024 // parts

    @pytest.mark.parametrize("size", ["", "much", "0"])
    def test_unknown_memory_size_sets_no_limit(self, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, size)
        assert limit_in_a_task() == resource.RLIM_INFINITY

    def test_eager_mode_sets_no_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "10240")
        assert limit_in_a_task(limited=False) == resource.RLIM_INFINITY

    def test_lower_existing_limit_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "10240")
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        own = 8 * 1024**3
        resource.setrlimit(resource.RLIMIT_DATA, (own, hard))
        try:
            assert limit_in_a_task() == own
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class TestReplacement:
    """With a limit of 900 MiB, and what the process uses before its first task, and after a batch."""

    @pytest.mark.parametrize(
        ("at_first", "afterwards", "is_replaced"),
        [(100, 674, False), (100, 675, True), (100, 950, True), (675, 675, False), (900, 950, False)],
    )
    def test_process_that_grows_asks_for_another(
        self, at_first: int, afterwards: int, is_replaced: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(memory.MEMORY_SIZE, "1000")
        monkeypatch.setattr(memory, "_starts_above", False)
        monkeypatch.setattr(retiring, "_reason", "")
        used = [at_first, afterwards]
        monkeypatch.setattr(memory, "_data_in_use", lambda: used.pop(0) * 1024 * 1024)
        memory.lambda_task_boot()
        memory.lambda_task_batch_finished()
        assert retiring.reason() == (f"it uses {afterwards} MiB, and its limit is 900 MiB" if is_replaced else "")
