"""All that tasks do, through a real PgBouncer in transaction mode. Each transaction has another session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.db import OperationalError, transaction

from lambda_tasks import current_task, group
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.backends.relay import Relayed
from lambda_tasks.contrib import postgres as plugin
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import LockError, TaskCancelled
from lambda_tasks.handler import handler
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations.reaping import Reaped, reap
from lambda_tasks.strategies import get_backend
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from tests.app.models import Effect
from tests.courier import OUTBOX, outbox
from tests.database.pooled import SESSIONS, Sent, ask, traced, value_of
from tests.faults.workers import deliver, in_another_worker, leave_effect, lost_record

pytestmark = [pytest.mark.databases("postgres", transaction=True), pytest.mark.once]

MEMORY = "lambda_tasks.backends.memory.MemoryBackend"
ADVISORY_LOCKS = """
    SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
     WHERE locktype = 'advisory' AND datname = current_database()
"""
STILL_RUNNING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE query LIKE '%pg_sleep(600)%' AND pid <> pg_backend_pid() AND state = 'active'
       AND datname = current_database()
"""
END_RUNNING = STILL_RUNNING.replace("count(*)", "count(pg_terminate_backend(pid))")
#: A body that takes more bytes in SQL than in the queue.
AWKWARD = 'it\'s a \\ and "注" ' * 8


@pytest.fixture
def sent(pooled: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    backend().jobs.clear()
    with traced(pooled, monkeypatch) as found:
        yield found
    backend().jobs.clear()


def backend() -> MemoryBackend:
    chosen = get_backend()
    chosen = getattr(chosen, "transport", chosen)
    assert isinstance(chosen, MemoryBackend)
    return chosen


def run_all() -> None:
    """Deliver every message, and those that follow, each batch with the real handler."""
    while jobs := backend().take():
        assert handler({"Records": [event_record(job) for job in jobs]}, None) == {"batchItemFailures": []}


def records(pooled: str) -> list[tuple[str, str]]:
    found = TaskRecord.objects.using(pooled).order_by("start_time", "pk")
    return [(record.task_name.rpartition(".")[2], record.status) for record in found]


def effects(pooled: str) -> list[str]:
    return sorted(Effect.objects.using(pooled).values_list("name", flat=True))


#: What another worker does during the next task.
meanwhile: list[Any] = []


@lambda_task
def note(*, name: str) -> str:
    leave_effect(name=name)
    return name


@lambda_task(retry_on=[KeyError], max_retries=2)
def fail_twice(*, name: str) -> None:
    if not current_task().is_last_attempt:
        raise KeyError(name)
    leave_effect(name=name)


@lambda_task(singleton=True, ignore_errors=[LockError])
def alone(*, name: str) -> int:
    meanwhile.pop()() if meanwhile else None
    leave_effect(name=name)
    return int(ask("postgres", ADVISORY_LOCKS))


@lambda_task(soft_timeout=1, hard_timeout=20)
def wait_long(*, name: str) -> str:
    try:
        with transaction.atomic(using="postgres"):
            ask("postgres", "SELECT pg_sleep(600)")
    except SoftTimeLimitExceeded:
        leave_effect(name=name)
    return "cleaned up"


@lambda_task
def ask_whether_cancelled(*, name: str) -> None:
    in_another_worker(meanwhile.pop())
    if current_task().cancelled:
        raise TaskCancelled
    leave_effect(name=name)


class TestSessions:
    def test_transactions_of_a_client_run_in_several_sessions(self, pooled: str) -> None:
        assert len({ask(pooled, "SELECT pg_backend_pid()") for _ in range(2 * SESSIONS)}) > 1


class TestTasks:
    """None of them sends a statement that pins a session of RDS Proxy."""

    def test_calls_and_retries(self, pooled: str, sent: Sent) -> None:
        with transaction.atomic(using=pooled):
            note.using(database=pooled).execute_on_commit(name="a")
            fail_twice.using(database=pooled).execute_on_commit(name="b")
        with pytest.raises(ZeroDivisionError), transaction.atomic(using=pooled):
            note.using(database=pooled).execute_on_commit(name="rolled back")
            raise ZeroDivisionError
        run_all()
        assert effects(pooled) == ["a", "b"]
        assert sorted(records(pooled)) == [
            ("fail_twice", "RETRYING"),
            ("fail_twice", "RETRYING"),
            ("fail_twice", "SUCCESS"),
            ("note", "SUCCESS"),
        ]
        assert sent.pinning == []

    def test_singleton_holds_its_lock_in_the_transaction(
        self, pooled: str, sent: Sent, settings: Any, redis_url: str
    ) -> None:
        options = {"url": redis_url, "prefix": "pooled:"}
        settings.LAMBDA_TASKS_LOCK = {"BACKEND": "lambda_tasks.locks.redis.RedisLock", "OPTIONS": options}
        first = alone.using(database=pooled).execute_on_commit(name="first")
        second = alone.using(database=pooled).execute_on_commit(name="second")
        jobs = {job.message_id: job for job in backend().take()}

        def forget_the_lock_and_run_the_second() -> None:
            redis.Redis.from_url(redis_url).delete(*redis.Redis.from_url(redis_url).keys("pooled:*"))
            deliver(jobs[second.message_id])

        meanwhile[:] = [lambda: in_another_worker(forget_the_lock_and_run_the_second)]
        deliver(jobs[first.message_id])
        assert (first.result(0), effects(pooled)) == (2, ["first"])  # that of its chain, and its own
        assert TaskRecord.objects.using(pooled).get(pk=second.message_id).reason == "ignored"
        assert ask(pooled, ADVISORY_LOCKS) == 0
        assert sent.pinning == []

    def test_outbox_and_its_relay(self, pooled: str, sent: Sent, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": {"transport": MEMORY, "databases": [pooled]}}
        with transaction.atomic(using=pooled):
            for name in "abc":
                note.using(database=pooled).execute_on_commit(name=name)
            delayed = fail_twice.using(database=pooled, delay=1_000).execute_on_commit(name="d")
        assert [job.message.kwargs["name"] for job in backend().jobs] == ["a", "b", "c"]
        run_all()
        assert outbox().send_now([delayed.message_id], using=pooled).sent == 1
        for _ in range(3):
            run_all()
            due = OutboxMessage.objects.using(pooled)
            outbox().send_now(due.values_list("pk", flat=True), using=pooled)
        assert effects(pooled) == ["a", "b", "c", "d"]
        assert not OutboxMessage.objects.using(pooled).exists()
        assert outbox().relay() == Relayed()
        assert sent.pinning == []

    def test_group_and_what_follows(self, pooled: str, sent: Sent) -> None:
        members = [note.invocation(name=name) for name in "abc"]
        handle = group(members, then=note.invocation(name="then")).execute_on_commit()
        run_all()
        assert handle.status == "SUCCESS"
        assert effects(pooled) == ["a", "b", "c", "then"]
        assert sent.pinning == []

    def test_lost_task_and_cleanup(self, pooled: str, sent: Sent) -> None:
        lost_record(note)
        assert reap() == Reaped(sent_again=1)
        run_all()
        assert (records(pooled), effects(pooled)) == ([("note", "SUCCESS")], ["a"])
        assert cleanup_task_records(retention_days=1) == 0
        assert sent.pinning == []

    def test_cancelled_before_and_during_the_run(self, pooled: str, sent: Sent) -> None:
        waiting = note.using(database=pooled).execute_on_commit(name="a")
        running = ask_whether_cancelled.using(database=pooled).execute_on_commit(name="b")
        assert waiting.cancel() is True
        meanwhile[:] = [running.cancel]
        run_all()
        assert effects(pooled) == []
        assert [(each.status, each.reason) for each in TaskRecord.objects.using(pooled)] == [
            ("FAILED", "cancelled")
        ] * 2
        assert sent.pinning == []


class TestPinning:
    """The statements of which the page says that they pin a session of RDS Proxy."""

    def test_claims_that_do_not_wait_for_the_disk(self, pooled: str, sent: Sent, settings: Any) -> None:
        options = {"database": pooled, "durable_claims": False}
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": options}
        note.using(database=pooled).execute_on_commit(name="a")
        run_all()
        assert [text.partition(";")[0] for text in sent.pinning] == ["SET LOCAL synchronous_commit TO OFF"]
        assert effects(pooled) == ["a"]

    def test_settings_of_the_plugin(self, pooled: str, sent: Sent, settings: Any) -> None:
        settings.LAMBDA_TASKS_PLUGINS = [plugin]
        note.using(database=pooled).execute_on_commit(name="a")
        run_all()
        assert len(sent.pinning) == 1
        assert {value_of(pooled, "statement_timeout") for _ in range(2 * SESSIONS)} == {"2min"}

    @pytest.mark.parametrize(("option", "pins"), [({}, True), ({"max_statement_bytes": 16_000}, False)])
    def test_many_messages_of_one_transaction(
        self, pooled: str, sent: Sent, settings: Any, option: dict[str, int], pins: bool
    ) -> None:
        options = {"transport": MEMORY, "databases": [pooled], **option}
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": options}
        with transaction.atomic(using=pooled):
            for _ in range(100):
                note.using(database=pooled).execute_on_commit(name=AWKWARD)
        assert bool(sent.pinning) == pins
        sizes = [size for size, text in sent.statements if text.startswith("INSERT")]
        assert len(backend().jobs) == 100
        # A statement is full, apart from the place for one more message.
        assert pins or 13_000 < max(sizes) <= 16_000

    def test_message_that_is_too_large_for_any_statement(self, pooled: str, sent: Sent, settings: Any) -> None:
        options = {"transport": MEMORY, "databases": [pooled], "max_statement_bytes": 16_000}
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": options}
        with transaction.atomic(using=pooled):
            for name in ("a", "x" * 20_000, "b"):
                note.using(database=pooled).execute_on_commit(name=name)
        assert len(sent.pinning) == 1
        assert len(backend().jobs) == 3


class TestInterruptedQueries:
    def test_plugin_cancels_them_through_the_pooler(self, pooled: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_PLUGINS = [plugin]
        handle = wait_long.using(database=pooled).execute_on_commit(name="a")
        run_all()
        assert (handle.status, handle.result(0), effects(pooled)) == ("SUCCESS", "cleaned up", ["a"])
        assert ask(pooled, STILL_RUNNING) == 0

    @pytest.mark.thorough
    def test_limit_holds_without_a_cancellation(
        self, pooled: str, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As through RDS Proxy: the session is closed, and the record is written in another one."""
        monkeypatch.setattr(plugin, "_cancel", lambda session: None)
        settings.LAMBDA_TASKS_PLUGINS = [plugin]
        handle = wait_long.using(database=pooled).execute_on_commit(name="a")
        run_all()
        assert (handle.status, effects(pooled)) == ("FAILED", [])
        assert ask(pooled, "SELECT 1") == 1
        with contextlib.suppress(OperationalError):
            ask(pooled, END_RUNNING)
