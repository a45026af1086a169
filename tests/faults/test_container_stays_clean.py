"""Check that a run leaves no armed timer behind, and, unless it succeeded, no database session.

A container stays warm: the next message uses the same process, and often the same connection.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.pipeline import RECORDING_RESERVE
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import KILL_GRACE, SoftTimeLimitExceeded
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

pytestmark = pytest.mark.django_db(transaction=True)

seen: list[Any] = []
rung = threading.Event()


class LambdaContext:
    """awslambdaric's context, with so little time left that limits of minutes become `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds + KILL_GRACE + RECORDING_RESERVE

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self._end - time.monotonic()) * 1000))


def job_of(task: Any, **kwargs: Any) -> Job:
    message = Invocation(task_name=task.name, kwargs=kwargs)
    message_id = ids.new_message_id()
    return Job(message=message, message_id=message_id, root_id=message_id)


def handle(*jobs: Job, context: LambdaContext | None = None) -> list[str]:
    answer = handler({"Records": [event_record(job) for job in jobs]}, context)
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def record_of(job: Job) -> TaskRecord:
    record: TaskRecord = TaskRecord.objects.using(get_store().database).get(pk=job.message_id)
    return record


@lambda_task
def succeed() -> None: ...


@lambda_task
def fail() -> None:
    raise ValueError("as it happens")


@lambda_task(retry_on=(Exception,))
def linger() -> None:
    threading.Event().wait(600)


@lambda_task(retry_on=(Exception,))
def linger_through_the_soft_limit() -> None:
    try:
        threading.Event().wait(600)
    except SoftTimeLimitExceeded:
        threading.Event().wait(600)


@lambda_task
def wait_for_the_alarm() -> None:
    assert rung.wait(60)


class Watchdog:
    """A record of whether the real watchdog is armed, which faulthandler does not report."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.history: list[bool] = []
        arm, call_off = faulthandler.dump_traceback_later, faulthandler.cancel_dump_traceback_later

        def note_and_arm(*args: Any, **options: Any) -> None:
            self.history.append(True)
            arm(*args, **options)

        def note_and_call_off() -> None:
            self.history.append(False)
            call_off()

        monkeypatch.setattr(faulthandler, "dump_traceback_later", note_and_arm)
        monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", note_and_call_off)


class TestTimers:
    @pytest.mark.parametrize(
        ("task", "status"),
        [(succeed, "SUCCESS"), (fail, "FAILED"), (linger, "FAILED"), (linger_through_the_soft_limit, "FAILED")],
        ids=["success", "failure", "soft timeout", "hard timeout"],
    )
    def test_timers_are_off_after_a_run(self, task: Any, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
        watchdog, before, job = Watchdog(monkeypatch), signal.getsignal(signal.SIGALRM), job_of(task)
        assert handle(job, context=LambdaContext(0.5)) == []
        assert record_of(job).status == status
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) is before
        assert watchdog.history == [True, False]

    def test_timers_are_off_after_a_returned_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The record is deleted while its task runs."""

        @lambda_task
        def lose_the_record() -> None:
            TaskRecord.objects.using(get_store().database).all().delete()

        watchdog, before, job = Watchdog(monkeypatch), signal.getsignal(signal.SIGALRM), job_of(lose_the_record)
        assert handle(job) == [job.message_id]
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        assert signal.getsignal(signal.SIGALRM) is before
        assert watchdog.history == [True, False]


class TestOuterAlarm:
    @pytest.fixture(autouse=True)
    def _put_back(self) -> Iterator[None]:
        rung.clear()
        before = signal.getsignal(signal.SIGALRM)
        yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    def test_outer_alarm_goes_off_during_a_task(self) -> None:
        signal.signal(signal.SIGALRM, lambda *_: rung.set())
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        job = job_of(wait_for_the_alarm)
        assert handle(job) == []
        assert record_of(job).status == "SUCCESS"
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    def test_later_outer_alarm_is_restored(self) -> None:
        outer = signal.signal(signal.SIGALRM, own := lambda *_: rung.set())
        assert outer is not own
        signal.setitimer(signal.ITIMER_REAL, 600)
        began = time.monotonic()
        assert handle(job_of(succeed), job_of(fail), job_of(succeed)) == []
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert signal.getsignal(signal.SIGALRM) is own
        assert 0 < 600 - left <= time.monotonic() - began + 0.1
        assert not rung.is_set()


class TestLimitsOfAnInvocation:
    def test_limits_are_shortened_to_the_time_left(self) -> None:
        job = job_of(linger)  # the task's own limits are 270 and 300 seconds
        assert handle(job, context=LambdaContext(0.5)) == []
        assert "The soft timeout of 0.4" in (record_of(job).traceback or "")

    @pytest.mark.parametrize(
        ("task", "limit"),
        [(linger, "SoftTimeLimitExceeded"), (linger_through_the_soft_limit, "HardTimeLimitExceeded")],
    )
    def test_exceeded_limit_is_not_retried(self, task: Any, limit: str) -> None:
        """The task is retried on every exception."""
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        backend.jobs.clear()
        job = job_of(task)
        assert handle(job, context=LambdaContext(0.5)) == []
        record = record_of(job)
        assert record.status == "FAILED"
        assert limit in (record.traceback or "")
        assert backend.jobs == []


# State that does not belong to a transaction: statements that create it and that check for it.
LEFTOVERS = {
    "postgresql": {
        "advisory lock": (
            "SELECT pg_advisory_lock(4711)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND pid = pg_backend_pid()",
        ),
        "prepared statement": (
            "PREPARE leftover AS SELECT 1",
            "SELECT count(*) FROM pg_prepared_statements WHERE name = 'leftover'",
        ),
    },
    "mysql": {
        "named lock": ("SELECT GET_LOCK('leftover', 0)", "SELECT IS_USED_LOCK('leftover') IS NOT NULL"),
        "setting": ("SET SESSION sql_safe_updates = 1", "SELECT @@SESSION.sql_safe_updates"),
        "variable": ("SET @leftover = 1", "SELECT @leftover IS NOT NULL"),
    },
    "sqlite": {"setting": ("PRAGMA cache_size = 4711", "SELECT cache_size = 4711 FROM pragma_cache_size")},
}


def ask(statement: str) -> Any:
    with connections[get_store().database].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone() if cursor.description else None


@lambda_task
def leave_something_behind(*, what: str, and_fail: bool) -> None:
    take, is_there = LEFTOVERS[connections[get_store().database].vendor][what]
    ask(take)
    assert ask(is_there)[0], "it was not there to begin with"
    if and_fail:
        raise ValueError("as it happens")


@lambda_task
def look_around(*, what: str) -> bool:
    _, is_there = LEFTOVERS[connections[get_store().database].vendor][what]
    return bool(ask(is_there)[0])


@lambda_task
def note_session() -> None:
    seen.append(connections[get_store().database].connection)


@pytest.fixture
def warm(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Store records in `database`, whose connections are kept for ten minutes."""
    monkeypatch.setitem(connections[database].settings_dict, "CONN_MAX_AGE", 600)
    connections[database].close()
    seen.clear()
    store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    with override_settings(LAMBDA_TASKS_STORE=store):
        yield database
    connections[database].close()


@pytest.mark.databases(transaction=True)
class TestSessions:
    def test_failed_run_leaves_no_session_state(self, warm: str) -> None:
        for what in LEFTOVERS[connections[warm].vendor]:
            bad, good = job_of(leave_something_behind, what=what, and_fail=True), job_of(look_around, what=what)
            assert handle(bad, good) == []
            assert "ValueError: as it happens" in (record_of(bad).traceback or "")
            assert record_of(good).result is False, what

    def test_successful_runs_share_session_state(self, warm: str) -> None:
        """The page on time limits makes a task responsible for the settings that it leaves in its session."""
        handle(job_of(note_session), job_of(note_session))
        assert seen[0] is seen[1]
        what = next(iter(LEFTOVERS[connections[warm].vendor]))
        good = job_of(look_around, what=what)
        handle(job_of(leave_something_behind, what=what, and_fail=False), good)
        assert record_of(good).result is True

    def test_batches_use_separate_sessions_without_persistent_connections(
        self, warm: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connections[warm].settings_dict, "CONN_MAX_AGE", 0)
        what = next(iter(LEFTOVERS[connections[warm].vendor]))
        connections[warm].close()
        neighbour, later = job_of(look_around, what=what), job_of(look_around, what=what)
        handle(job_of(leave_something_behind, what=what, and_fail=False), neighbour)
        assert connections[warm].connection is None
        handle(later)
        assert record_of(neighbour).result is True
        assert record_of(later).result is False
