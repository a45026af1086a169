"""Cancelling: what waits never runs, and what runs is told."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import IntegrityError, OperationalError, connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks.backends.memory import event_record
from lambda_tasks.database import aside
from lambda_tasks.database.aside import run_aside
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import TaskCancelled
from lambda_tasks.execution import cancelled
from lambda_tasks.execution.cancelled import is_cancelled
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.models import CancelRequest, OutboxMessage, TaskReason, TaskRecord
from lambda_tasks.outcomes import Failed, Outcome, Retry, Skipped, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.testing import TaskQueue, collect_tasks
from lambda_tasks.wire import ids
from lambda_tasks.wire.ids import new_message_id, retry_id
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.courier import Courier, later, note, numbers, outbox, rows, use_outbox
from tests.faults.workers import backend, deliver, expire_lease, in_another_worker, job_of, secretive, stored_in

EVERYWHERE: Final = pytest.mark.databases(transaction=True)
ON_SERVERS: Final = pytest.mark.databases("postgres", "mariadb", transaction=True)
COMMITTING: Final = pytest.mark.django_db(transaction=True)

ran: list[str] = []
#: What the next tasks do, by the name that they are called with.
actions: dict[str, Callable[[], object]] = {}
#: The run of the task that runs in this context.
_running: ContextVar[Run] = ContextVar("running")


class Again(Exception):
    """An error after which the tasks of this module are retried."""


class Rollback(Exception):
    pass


class TellsTheRun:
    """A plugin that lets tasks find their run."""

    @hookimpl(wrapper=True)
    def lambda_task_call(self, run: Run) -> Iterator[None]:
        token = _running.set(run)
        try:
            return (yield)
        finally:
            _running.reset(token)


def asks() -> bool:
    return is_cancelled(_running.get())


@lambda_task(retry_on=(Again,))
def act(*, name: str) -> Any:
    ran.append(name)
    effects = Effect.objects.using(get_store().database)
    if connections[effects.db].vendor != "sqlite":  # another session cannot write there after the task has
        effects.create(name=name)
    return actions.pop(name, lambda: None)()


@lambda_task(retry_on=(Exception,), max_retries=5)
def retries_everything() -> None:
    raise TaskCancelled


@lambda_task(ignore_errors=(Exception,))
def ignores_everything() -> None:
    raise TaskCancelled("as it was asked to")


@lambda_task
async def coroutine() -> list[bool]:
    return [asks(), await sync_to_async(asks)(), await asyncio.to_thread(asks)]


@pytest.fixture(autouse=True)
def _fresh(settings: Any) -> None:
    ran.clear()
    actions.clear()
    cancelled._answers.clear()
    settings.LAMBDA_TASKS_PLUGINS = [TellsTheRun()]


@pytest.fixture
def store(database: str) -> Iterator[str]:
    with stored_in(database):
        yield database
    getattr(get_backend(), "jobs", []).clear()


def send(name: str, database: str = "default") -> TaskHandle:
    return act.using(database=database).execute_on_commit(name=name)


def record_of(message_id: str) -> TaskRecord:
    return TaskRecord.objects.using(get_store().database).get(pk=message_id)


def run_now(task: Any, message_id: str | None = None, **kwargs: Any) -> Outcome | Skipped:
    message_id = message_id or new_message_id()
    return execute(Invocation(task.name, kwargs), message_id=message_id, task=task, limited=False)


def acknowledged(*jobs: Job) -> bool:
    return not handler({"Records": [event_record(job) for job in jobs]}, None)["batchItemFailures"]


def deliver_all() -> None:
    while jobs := backend().take():
        deliver(*jobs)


def cancel_elsewhere(message_id: str) -> bool:
    """Cancel an invocation in another session, which commits."""
    return bool(in_another_worker(TaskHandle(message_id).cancel))


@EVERYWHERE
class TestWaiting:
    def test_cancelled_message_on_the_queue_never_runs(self, store: str) -> None:
        handle = send("a")
        assert handle.cancel() is True
        assert handle.status == "FAILED"
        deliver_all()
        assert ran == []
        record = record_of(handle.message_id)
        assert (record.status, record.reason) == ("FAILED", "cancelled")
        assert "TaskCancelled" in (record.traceback or "")
        assert record.start_time is not None
        assert record.end_time is not None

    def test_delivery_completes_the_record(self, store: str) -> None:
        handle = act.using(queue="other").execute_on_commit(name="a")
        handle.cancel()
        record = record_of(handle.message_id)
        assert (record.task_name, record.kwargs, record.queue) == ("", {}, "")
        deliver_all()
        record = record_of(handle.message_id)
        assert (record.task_name, record.kwargs, record.queue) == (act.name, {"name": "a"}, "other")
        assert (record.status, record.claim) == ("FAILED", None)

    def test_cancel_after_the_end_returns_false(self, store: str) -> None:
        cancelled_one, ended = send("a"), send("b")
        assert cancelled_one.cancel()
        assert not cancelled_one.cancel()
        deliver_all()
        assert not ended.cancel()
        assert record_of(ended.message_id).status == "SUCCESS"

    def test_redelivered_and_duplicate_messages_are_acknowledged(self, store: str) -> None:
        handle = send("a")
        [job] = backend().take()
        handle.cancel()
        deliver(job)
        deliver(job)
        assert ran == []

    def test_call_and_cancel_in_one_transaction(self, store: str) -> None:
        with transaction.atomic(using=store):
            handle = send("a", store)
            assert handle.cancel()
        deliver_all()
        assert ran == []
        assert record_of(handle.message_id).reason == TaskReason.CANCELLED

    def test_cancel_is_rolled_back_with_its_savepoint(self, store: str) -> None:
        with transaction.atomic(using=store):
            handle = send("a", store)
            with suppress(Rollback), transaction.atomic(using=store):
                assert handle.cancel()
                raise Rollback
        deliver_all()
        assert ran == ["a"]

    def test_call_and_cancel_are_rolled_back_together(self, store: str) -> None:
        with suppress(Rollback), transaction.atomic(using=store):
            send("a", store).cancel()
            raise Rollback
        assert backend().jobs == []
        assert not TaskRecord.objects.using(store).exists()

    def test_cancelling_a_waiting_retry_ends_the_chain(self, store: str) -> None:
        actions["a"] = fail
        handle = send("a")
        deliver(*backend().take())
        assert handle.status == "RETRYING"
        assert handle.cancel()
        deliver_all()
        assert ran == ["a"]
        retry = record_of(retry_id(handle.message_id, 1))
        assert (retry.status, retry.reason, retry.n_retries) == ("FAILED", "cancelled", 1)
        assert (retry.task_name, retry.kwargs) == (act.name, {"name": "a"})

    def test_forged_message_with_its_id_does_not_run(self, store: str) -> None:
        """Only the id is known of a cancelled call that waits on a queue, so its first message is taken for its own."""
        handle = send("a")
        handle.cancel()
        deliver(job_of(note, handle.message_id, number=7))
        assert not acknowledged(*backend().take())
        assert ran == []
        assert record_of(handle.message_id).status == "FAILED"

    def test_other_work_with_its_id_is_kept(self, store: str) -> None:
        handle = send("a")
        handle.cancel()
        message = backend().take()
        deliver(*message)
        assert not acknowledged(job_of(note, handle.message_id, number=7))
        deliver(*message)
        assert ran == []

    def test_other_database_than_the_records(self, store: str) -> None:
        with suppress(Rollback), transaction.atomic():  # on `default`; the records are in `store`
            handle = send("a", "default")
            assert handle.cancel()
            raise Rollback
        assert backend().jobs == []
        assert TaskRecord.objects.using(store).count() == (0 if store == "default" else 1)


def fail() -> None:
    raise Again


@EVERYWHERE
class TestOutbox:
    @pytest.fixture
    def courier(self, store: str, settings: Any) -> Courier:
        return use_outbox(settings, store)

    def send(self, number: int, database: str, delay: int = 86_400) -> TaskHandle:
        return note.using(database=database, delay=delay).execute_on_commit(number=number)

    def test_row_is_deleted_and_its_record_is_complete(self, store: str, courier: Courier) -> None:
        handle, other = self.send(1, store), self.send(2, store)
        assert handle.cancel()
        assert numbers(store) == [2]
        record = record_of(handle.message_id)
        assert (record.task_name, record.kwargs, record.queue) == (note.name, {"number": 1}, "default")
        assert (handle.status, other.status) == ("FAILED", "WAITING")

    def test_forged_message_does_not_change_a_complete_record(self, store: str, courier: Courier) -> None:
        handle = self.send(1, store)
        handle.cancel()
        assert not acknowledged(job_of(act, handle.message_id, name="forged"))
        assert (ran, record_of(handle.message_id).kwargs) == ([], {"number": 1})

    def test_record_has_no_sensitive_argument(self, store: str, courier: Courier) -> None:
        for task in (secretive, act):
            handle = task.using(database=store, delay=86_400).execute_on_commit(name="Ada")
            handle.cancel()
            masked = task is secretive
            assert (record_of(handle.message_id).kwargs == {"name": "Ada"}) is not masked

    def test_row_without_a_valid_message_is_deleted(self, store: str, courier: Courier) -> None:
        handle = self.send(1, store)
        OutboxMessage.objects.using(store).update(body="not a message")
        assert handle.cancel()
        assert rows(store) == []
        assert record_of(handle.message_id).task_name == ""

    def test_row_is_found_without_its_database(self, store: str, courier: Courier) -> None:
        handle = self.send(1, store)
        assert TaskHandle(handle.message_id).cancel()
        assert numbers(store) == []

    def test_call_cancelled_in_its_transaction_leaves_no_row(self, store: str, courier: Courier) -> None:
        with transaction.atomic(using=store):
            self.send(1, store, delay=0).cancel()
            self.send(2, store)
            with suppress(Rollback), transaction.atomic(using=store):
                self.send(3, store)
            third = self.send(4, store)
            with suppress(Rollback), transaction.atomic(using=store):
                third.cancel()
                raise Rollback
        assert numbers(store) == [2, 3, 4]
        assert courier.calls == []

    def test_rolled_back_cancel_keeps_the_row(self, store: str, courier: Courier) -> None:
        handle = self.send(1, store)
        with suppress(Rollback), transaction.atomic(using=store):
            assert handle.cancel()
            raise Rollback
        assert numbers(store) == [1]
        assert handle.status == "WAITING"

    def test_row_held_by_a_relay_is_not_run(self, store: str, courier: Courier) -> None:
        handle = self.send(1, store)
        later(90_000, store)
        results: list[bool] = []
        courier.on_the_way = lambda: results.append(cancel_elsewhere(handle.message_id))
        outbox().relay()
        assert results == [True]
        deliver(*courier.jobs)
        assert record_of(handle.message_id).reason == TaskReason.CANCELLED
        assert rows(store) == []

    def test_delayed_retry_leaves_the_outbox(self, store: str, courier: Courier) -> None:
        actions["a"] = fail
        with override_settings(LAMBDA_TASKS_PLUGINS=[TellsTheRun(), SlowRetries()]):
            handle = send("a", store)
            deliver(*courier.take())
        assert len(rows(store)) == 1
        assert handle.cancel()
        assert rows(store) == []


class SlowRetries:
    @hookimpl
    def lambda_task_retry_delay(self) -> int:
        return 90_000


@EVERYWHERE
class TestRunning:
    def test_running_task_sees_the_request_of_another_session(self, store: str) -> None:
        message_id = new_message_id()

        def look() -> list[bool]:
            before = asks()
            cancelled._answers.clear()  # as if a second had passed
            assert cancel_elsewhere(message_id) is True
            return [before, asks(), connections[store].in_atomic_block]

        actions["a"] = look
        assert run_now(act, message_id, name="a") == Succeeded([False, True, True])
        assert record_of(message_id).status == "SUCCESS"

    def test_task_that_raises_is_failed_as_cancelled(self, store: str, caplog: pytest.LogCaptureFixture) -> None:
        message_id = new_message_id()

        def stop() -> None:
            cancel_elsewhere(message_id)
            if asks():
                raise TaskCancelled

        actions["a"] = stop
        with caplog.at_level(logging.INFO):
            assert isinstance(run_now(act, message_id, name="a"), Failed)
        record = record_of(message_id)
        assert (record.status, record.reason) == ("FAILED", "cancelled")
        assert not Effect.objects.using(store).exists()
        [line] = [line for line in caplog.records if "was cancelled" in line.getMessage()]
        assert (line.levelname, line.exc_info) == ("INFO", None)

    def test_run_that_would_be_retried_is_failed_instead(self, store: str) -> None:
        handle = send("a")

        def cancel_and_fail() -> None:
            assert cancel_elsewhere(handle.message_id)
            raise Again

        actions["a"] = cancel_and_fail
        deliver_all()
        record = record_of(handle.message_id)
        assert (ran, record.status, record.reason) == (["a"], "FAILED", "cancelled")
        assert "Again" in (record.traceback or "")

    def test_takeover_does_not_run(self, store: str) -> None:
        handle = send("a")
        [job] = backend().take()
        run = die_after_claim(job.message_id)
        assert handle.cancel()
        expire_lease(run.message_id)
        deliver(job)
        record = record_of(handle.message_id)
        assert (ran, record.status, record.reason) == ([], "FAILED", "cancelled")

    @pytest.mark.parametrize("released_first", [True, False], ids=["released, cancelled", "cancelled, released"])
    def test_released_invocation_does_not_run_again(self, store: str, released_first: bool) -> None:
        handle = send("a")
        [job] = backend().take()
        steps: list[Callable[[], object]] = [
            partial(get_store().release, die_after_claim(job.message_id)),
            handle.cancel,
        ]
        for step in steps if released_first else reversed(steps):
            step()
        deliver(job)
        assert (ran, record_of(handle.message_id).reason) == ([], "cancelled")

    def test_retry_claimed_after_the_request_does_not_run(self, store: str) -> None:
        """The request came between the last look before the retry and its claim."""
        actions["a"] = fail
        handle = send("a")
        deliver(*backend().take())
        CancelRequest.objects.using(store).create(root_id=handle.message_id, requested_at=DatabaseNow())
        deliver_all()
        retry = record_of(retry_id(handle.message_id, 1))
        assert (ran, retry.status, retry.reason) == (["a"], "FAILED", "cancelled")

    @pytest.mark.parametrize("task", [retries_everything, ignores_everything], ids=lambda task: task.__name__)
    def test_cancelled_task_is_neither_retried_nor_ignored(self, store: str, task: Any) -> None:
        message_id = new_message_id()
        assert isinstance(run_now(task, message_id), Failed)
        assert record_of(message_id).reason == TaskReason.CANCELLED


def die_after_claim(message_id: str) -> Run:
    """Claim an invocation like a worker that dies then."""
    return claimed_run(message_id, name="a")


def claimed_run(message_id: str, **kwargs: Any) -> Run:
    from lambda_tasks.execution.pipeline import prepare

    run = prepare(Invocation(act.name, kwargs), message_id=message_id, task=act)
    get_store().claim(run)
    return run


@ON_SERVERS
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_request_is_seen_in_a_strict_isolation_level(store: str, level: str) -> None:
    message_id = new_message_id()

    def look() -> list[bool]:
        before = asks()
        cancelled._answers.clear()
        assert cancel_elsewhere(message_id)
        return [before, asks()]

    actions["a"] = look
    with connections[store].cursor() as cursor:
        scope = "SESSION CHARACTERISTICS AS" if store == "postgres" else "SESSION"
        cursor.execute(f"SET {scope} TRANSACTION ISOLATION LEVEL {level}")
    try:
        assert run_now(act, message_id, name="a") == Succeeded([False, True])
    finally:
        connections[store].close()


@ON_SERVERS
@pytest.mark.parametrize("released", [False, True], ids=["new", "released before"])
def test_cancelling_under_an_old_snapshot_requests(store: str, released: bool) -> None:
    """The claim is newer than the snapshot of the transaction that cancels, which cannot see it."""
    message_id = new_message_id()
    if released:
        get_store().release(claimed_run(message_id, name="a"))
    with transaction.atomic(using=store):
        with connections[store].cursor() as cursor:
            if store == "postgres":
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT COUNT(*) FROM lambda_tasks_taskrecord")
        run = in_another_worker(lambda: claimed_run(message_id, name="a"))
        assert TaskHandle(message_id).cancel() is True
    assert get_store().cancel_requested(run)
    assert record_of(message_id).status == "RUNNING"


@COMMITTING
class TestAsking:
    """How a running task asks."""

    def run_asking(self, ask: Callable[[], Any]) -> Any:
        actions["a"] = ask
        outcome = run_now(act, name="a")
        assert isinstance(outcome, Succeeded)
        return outcome.result

    def test_one_query_in_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(cancelled, "monotonic", lambda: now[0])
        queries: list[float] = []
        monkeypatch.setattr(ORMStore, "cancel_requested", lambda *_: bool(queries.append(now[0])))

        def ask() -> None:
            for now[0] in (100.0, 100.5, 100.99, 101.0, 101.5, 102.1):
                assert not asks()

        self.run_asking(ask)
        assert queries == [100.0, 101.0, 102.1]

    def test_soft_limit_reaches_the_task(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> bool:
            raise SoftTimeLimitExceeded

        monkeypatch.setattr(ORMStore, "cancel_requested", interrupt)
        actions["a"] = asks
        outcome = run_now(act, name="a")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, SoftTimeLimitExceeded)

    def test_request_is_never_withdrawn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [100.0]
        monkeypatch.setattr(cancelled, "monotonic", lambda: now[0])
        answers = [True]
        monkeypatch.setattr(ORMStore, "cancel_requested", lambda *_: answers.pop())

        def ask() -> list[bool]:
            first = asks()
            now[0] += 500
            return [first, asks()]

        assert self.run_asking(ask) == [True, True]

    def test_no_connection_stays_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[Any] = []
        threads: list[threading.Thread] = []
        real = ORMStore.cancel_requested

        def look(store: Any, run: Run) -> bool:
            answer = real(store, run)
            opened.append(connections[run.database])
            threads.append(threading.current_thread())
            return answer

        monkeypatch.setattr(ORMStore, "cancel_requested", look)
        self.run_asking(asks)
        assert [connection.connection for connection in opened] == [None]
        assert opened[0] is not connections["default"]
        assert not threads[0].is_alive()

    def test_unavailable_database_does_not_fail_the_task(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail_to_answer(*_: object) -> bool:
            raise OperationalError("too many connections")

        monkeypatch.setattr(ORMStore, "cancel_requested", fail_to_answer)
        assert self.run_asking(asks) is False
        assert "too many connections" in caplog.text
        assert [record.levelname for record in caplog.records if "unknown whether" in record.getMessage()] == [
            "WARNING"
        ]

    def test_answers_of_old_runs_are_forgotten(self) -> None:
        for _ in range(cancelled._MAX_ANSWERS + 5):
            self.run_asking(asks)
        assert len(cancelled._answers) == cancelled._MAX_ANSWERS

    def test_coroutine_and_its_threads_may_ask(self) -> None:
        message_id = new_message_id()
        assert run_now(coroutine, message_id) == Succeeded([False, False, False])
        cancelled._answers.clear()

    def test_coroutine_sees_a_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cancelled, "FRESH", 0.0)
        message_id = new_message_id()
        claims: list[Run] = []

        class Cancels:
            @hookimpl(tryfirst=True)
            def lambda_task_started(self, run: Run) -> None:
                claims.append(run)
                cancel_elsewhere(message_id)

        with override_settings(LAMBDA_TASKS_PLUGINS=[TellsTheRun(), Cancels()]):
            assert run_now(coroutine, message_id) == Succeeded([True, True, True])

    def test_asking_is_not_reported_by_the_watch(self, caplog: pytest.LogCaptureFixture) -> None:
        from lambda_tasks.execution.strangers import start_watching

        start_watching()
        self.run_asking(asks)
        assert "opens a connection" not in caplog.text

    def test_first_run_asks_nothing_by_itself(self) -> None:
        with CaptureQueriesContext(connections["default"]) as queries:
            run_now(act, name="a")
        assert not [query for query in queries if "cancelrequest" in query["sql"]]


@pytest.mark.django_db
class TestInsideATransaction:
    """A caller's transaction, as Django's TestCase opens one: only its own connection sees its writes."""

    def test_task_sees_the_request_of_the_same_transaction(self) -> None:
        message_id = new_message_id()

        def look() -> bool:
            assert TaskHandle(message_id).cancel()
            return asks()

        actions["a"] = look
        assert run_now(act, message_id, name="a") == Succeeded(True)

    def test_coroutine_asks_by_the_thread_of_its_transaction(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cancelled, "FRESH", 0.0)
        message_id = new_message_id()

        class Cancels:
            @hookimpl(tryfirst=True)
            def lambda_task_started(self) -> None:
                TaskHandle(message_id).cancel()

        with override_settings(LAMBDA_TASKS_PLUGINS=[TellsTheRun(), Cancels()]):
            outcome = run_now(coroutine, message_id)
        assert isinstance(outcome, Succeeded)
        assert outcome.result == [False, True, True]

    def test_queue_of_a_test_runs_no_cancelled_task(self, lambda_tasks_queue: TaskQueue) -> None:
        with lambda_tasks_queue.commit():
            handle, _ = send("a"), send("b")
        assert handle.cancel()
        assert lambda_tasks_queue.run_until_idle() == 2
        assert ran == ["b"]
        assert handle.status == "FAILED"

    def test_eager_task_is_not_run_after_cancelling(
        self, settings: Any, django_capture_on_commit_callbacks: Any
    ) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        with django_capture_on_commit_callbacks(execute=True):
            handle = send("a")
            assert handle.cancel()
        assert ran == []
        assert handle.status == "FAILED"


@COMMITTING
class TestRecords:
    def test_queryset_cancels_what_has_not_ended(self) -> None:
        with collect_tasks() as queue:
            actions["retried"] = fail
            for name in ("ended", "retried"):
                send(name)
            queue.run(1)
            queue.run(1)
            running = claimed_run(new_message_id(), name="running")
            other = claimed_run(new_message_id(), name="other")
            chosen = TaskRecord.objects.exclude(pk=other.message_id)
            assert chosen.cancel() == 2
            assert chosen.cancel() == 1  # the running one
            queue.run_until_idle()
        assert ran == ["ended", "retried"]
        assert get_store().cancel_requested(running)
        assert not get_store().cancel_requested(other)

    def test_chain_counts_once(self) -> None:
        root = new_message_id()
        claimed_run(root, name="a")
        TaskRecord.objects.filter(pk=root).update(status="RETRYING")
        TaskRecord.objects.create(id=retry_id(root, 1), root_id=root, n_retries=1, task_name=act.name, status="RUNNING")
        assert TaskRecord.objects.chain(root).cancel() == 1

    @pytest.mark.databases("sqlite", transaction=True)
    def test_queryset_cancels_in_its_own_database(self, database: str) -> None:
        with stored_in(database):
            run = claimed_run(new_message_id(), name="a")
        assert TaskRecord.objects.using(database).cancel() == 1
        assert CancelRequest.objects.using(database).filter(pk=run.message_id).exists()

    def test_cleanup_deletes_old_requests(self) -> None:
        for days in (6, 8):
            moment = DatabaseNow() - timedelta(days=days)
            CancelRequest.objects.create(root_id=new_message_id(), requested_at=moment)
        assert cleanup_task_records() == 0
        assert CancelRequest.objects.count() == 1


@COMMITTING
class TestCommand:
    def test_command_cancels_by_id(self, capsys: pytest.CaptureFixture[str]) -> None:
        waiting, ended = send("a"), send("b")
        waiting_job, ended_job = backend().take()
        deliver(ended_job)
        call_command("lambda_tasks", "cancel", waiting.message_id, ended.message_id)
        assert capsys.readouterr().out.splitlines() == [
            f"{waiting.message_id}: cancelled",
            f"{ended.message_id}: has already ended",
        ]
        deliver(waiting_job)
        assert ran == ["b"]

    def test_malformed_id_is_an_error(self) -> None:
        with pytest.raises(CommandError, match=r"must be a UUID, as in handle\.message_id .*, not 'order 7'"):
            call_command("lambda_tasks", "cancel", "order 7")


def test_malformed_id_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must be a UUID, as in handle\.message_id .*, not 'order 7'"):
        TaskHandle("order 7").cancel()


@COMMITTING
def test_id_is_accepted_in_any_form() -> None:
    handle = send("a")
    assert TaskHandle(handle.message_id.upper()).cancel()
    assert handle.status == "FAILED"
    backend().jobs.clear()


@COMMITTING
def test_store_without_records_refuses_to_cancel(settings: Any) -> None:
    settings.LAMBDA_TASKS_STORE = "lambda_tasks.stores.null.NullStore"
    with pytest.raises(NotImplementedError, match=r"NullStore cannot cancel tasks\. Use ORMStore"):
        TaskHandle(ids.new_message_id()).cancel()


@COMMITTING
def test_retry_whose_look_fails_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim of the retry looks again."""

    def fail_to_answer(*_: object) -> bool:
        raise OperationalError("too many connections")

    monkeypatch.setattr(ORMStore, "cancel_requested", fail_to_answer)
    actions["a"] = fail
    assert isinstance(run_now(act, name="a"), Retry)
    backend().jobs.clear()


@COMMITTING
def test_refused_record_is_not_mistaken_for_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses the row itself, as with a constraint that a project has added."""
    monkeypatch.setattr(
        "lambda_tasks.stores.cancelling._first", lambda message_id, _: {"id": message_id, "queue": None}
    )
    with pytest.raises(IntegrityError):
        TaskHandle(new_message_id()).cancel()


class TestAside:
    def test_error_is_raised_in_the_calling_thread(self) -> None:
        def fail_there() -> None:
            raise LookupError("there")

        with pytest.raises(LookupError, match="there"):
            run_aside(fail_there)

    def test_result_and_context_pass_through(self) -> None:
        variable: ContextVar[int] = ContextVar("variable", default=0)
        variable.set(7)
        assert run_aside(variable.get) == 7
        assert aside.AsideThread(variable.get).daemon
