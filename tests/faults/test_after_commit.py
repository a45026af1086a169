"""Test the steps after a task's commit: the tasks that it enqueued are sent, however long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, transaction

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution import pipeline
from lambda_tasks.handler import handler
from lambda_tasks.limits import watchdog
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

pytestmark = pytest.mark.databases("sqlite", transaction=True)

#: Seconds until the watchdog would end the process, as seen by each callback, or None if it is off.
left: list[float | None] = []
#: An additional action of a task, by its name, executed once.
meanwhile: dict[str, Callable[[], object]] = {}

HARD = 20


class Context:
    """Lambda's context of an invocation with ten minutes left."""

    def get_remaining_time_in_millis(self) -> int:
        return 600_000


def look() -> None:
    left.append(None if watchdog._due is None else watchdog._due - time.monotonic())


def nothing() -> None: ...


@lambda_task(soft_timeout=10, hard_timeout=HARD)
def announce(*, name: str) -> None:
    """Record the state of the watchdog before and after the commit."""
    look()
    meanwhile.pop(name, nothing)()
    transaction.on_commit(look, using=get_store().database)


def execute(name: str, **options: Any) -> None:
    message = Invocation(task_name=announce.name, kwargs={"name": name})
    pipeline.execute(message, message_id=ids.new_message_id(), **options)


@pytest.fixture(autouse=True)
def _tasks_work_here(database: str, settings: Any) -> Iterator[None]:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.memory.MemoryBackend"
    left.clear()
    meanwhile.clear()
    yield
    connections[database].close()


def message_of(task: Any) -> dict[str, Any]:
    task.execute_on_commit(name="a")
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    [job] = backend.take()
    return event_record(job)


def deliver(message: dict[str, Any], context: object) -> None:
    assert handler({"Records": [message]}, context) == {"batchItemFailures": []}


class TestWatchdog:
    def test_callbacks_have_the_time_of_the_invocation(self, database: str) -> None:
        deliver(message_of(announce), Context())
        before, after = left
        assert before is not None
        assert after is not None
        assert before < HARD * 2
        assert HARD * 2 < after <= 600 + watchdog.SLACK
        assert watchdog._due is None

    def test_invocation_without_a_deadline_has_no_watchdog(self, database: str) -> None:
        deliver(message_of(announce), None)
        before, after = left
        assert before is not None
        assert after is None

    def test_next_task_has_its_own_limits(self, database: str) -> None:
        messages = [message_of(announce) for _ in "ab"]
        assert handler({"Records": messages}, Context()) == {"batchItemFailures": []}
        assert all(seconds is not None for seconds in left)
        assert [bool(seconds and seconds < HARD * 2) for seconds in left] == [True, False, True, False]

    def test_commit_without_callbacks_does_not_rearm_it(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rearming it costs more than the rest of a small task."""
        set_to: list[float] = []
        monkeypatch.setattr(watchdog, "end_process_in", set_to.append)
        execute("a", deadline=time.monotonic() + 600)
        with_callback = len(set_to)
        monkeypatch.setattr(transaction, "on_commit", lambda *_, **__: None)
        execute("a", deadline=time.monotonic() + 600)
        assert (with_callback, len(set_to) - with_callback) == (2, 1)

    def test_run_in_a_callback_keeps_the_longer_deadline(self, database: str) -> None:
        """After its commit, a task has the time of the invocation, and a run in a callback has its own limits."""

        def run_another() -> None:
            transaction.on_commit(lambda: (execute("inner"), look()), using=database)

        meanwhile["a"] = run_another
        deliver(message_of(announce), Context())
        _, inner_before, inner_after, after_inner, last = left
        assert inner_before is not None
        assert inner_before < HARD * 2
        for seconds in (inner_after, after_inner, last):
            assert seconds is not None
            assert seconds > HARD * 2
        assert TaskRecord.objects.using(database).filter(status="SUCCESS").count() == 2
