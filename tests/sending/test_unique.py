"""Calls of a task with `unique`: while one waits or runs, another one returns its handle, raises, or replaces it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.db import connections, transaction
from django.db.models import F

from lambda_tasks import failpoints
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.keys import LOCK_KEY
from lambda_tasks.exceptions import DuplicateTask, UnknownDatabase
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTask
from lambda_tasks.models import OutboxMessage, TaskRecord, UniqueKey
from lambda_tasks.operations.reaping import reap
from lambda_tasks.sending.unique import delete_old_keys
from lambda_tasks.strategies import get_backend, get_lock, get_store
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.testing import collect_tasks
from lambda_tasks.testing.contracts import InThread
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.courier import COURIER, OUTBOX, outbox

pytestmark = pytest.mark.databases(transaction=True)

#: An additional action of a task, by the name that it is called with, executed once.
meanwhile: dict[str, Callable[[], object]] = {}


class Again(Exception):
    """Request a retry."""


def take_effect(number: int, name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)
    meanwhile.pop(name, lambda: None)()


@lambda_task(unique="number")
def returning(*, number: int, name: str = "a") -> None:
    take_effect(number, name)


@lambda_task(unique="number", on_duplicate="raise")
def raising(*, number: int, name: str = "a") -> None:
    take_effect(number, name)


@lambda_task(unique="number", on_duplicate="replace")
def replacing(*, number: int, name: str = "a") -> None:
    take_effect(number, name)


@lambda_task(unique=True, on_duplicate="replace")
def replacing_defaults(*, number: int = 0, name: str = "a") -> None:
    take_effect(number, name)


@lambda_task(unique=True, retry_on=(Again,))
def retried(*, name: str = "a") -> None:
    take_effect(0, name)
    if name == "again":
        raise Again


@lambda_task(unique=lambda *, number: number % 2, unique_for=60)
def by_parity(*, number: int, name: str = "a") -> None:
    take_effect(number, name)


@lambda_task(unique=True, singleton=True, on_contention="wait")
def alone(*, name: str = "a") -> None:
    take_effect(0, name)


@pytest.fixture(autouse=True)
def _settings(database: str, settings: Any) -> Iterator[None]:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    settings.LAMBDA_TASKS_LOCK = "lambda_tasks.locks.memory.MemoryLock"
    settings.LAMBDA_TASKS_BACKEND = COURIER
    meanwhile.clear()
    yield
    meanwhile.clear()


def use_outbox(settings: Any, database: str) -> Any:
    settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": {"transport": COURIER, "databases": [database]}}
    return outbox().transport


@pytest.fixture(params=["without the outbox", "with the outbox"])
def transport(request: pytest.FixtureRequest, settings: Any, database: str) -> Any:
    """Return the transport, maybe behind an outbox, which relays a message when its transaction commits."""
    return use_outbox(settings, database) if request.param == "with the outbox" else get_backend()


def call(task: Any, /, *, delay: int = 0, **arguments: Any) -> TaskHandle:
    handle: TaskHandle = task.using(database=get_store().database, delay=delay).execute_on_commit(**arguments)
    return handle


def records() -> Any:
    return TaskRecord.objects.using(get_store().database)


def unique_keys() -> Any:
    return UniqueKey.objects.using(get_store().database)


def rows() -> Any:
    return OutboxMessage.objects.using(get_store().database)


def effects() -> list[str]:
    return sorted(Effect.objects.using(get_store().database).values_list("name", flat=True))


def deliver(*jobs: Job) -> list[str]:
    response = handler({"Records": [event_record(job) for job in jobs]}, None)
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def die_after_claim(point: str) -> None:
    if point == "claim:after":
        raise SystemExit


def waits_for_its_lock(job: Job) -> None:
    other = ids.new_message_id()
    key = LOCK_KEY.format(task_name=job.task_name)
    assert get_lock().acquire(key, token=other, timeout=60)
    deliver(job)
    get_lock().release(key, token=other)


def time_passes(**passed: float) -> None:
    """Move the times of keys and records into the past, because tests cannot set the database's clock."""
    unique_keys().update(expires_at=F("expires_at") - timedelta(**passed))
    records().update(end_time=F("end_time") - timedelta(**passed), start_time=F("start_time") - timedelta(**passed))


class TestReturning:
    def test_second_call_returns_the_first_handle(self, transport: MemoryBackend) -> None:
        first, second = call(returning, number=1), call(returning, number=1, name="b")
        assert (first.created, second.created) == (True, False)
        assert first == second
        [job] = transport.take()
        assert deliver(job) == []
        assert effects() == ["a"]

    def test_calls_in_one_transaction_share_a_message(self, transport: MemoryBackend, database: str) -> None:
        with transaction.atomic(using=database):
            first, second = call(returning, number=1), call(returning, number=1)
        assert first == second
        assert len(transport.take()) == 1

    def test_other_values_are_sent(self, transport: MemoryBackend) -> None:
        assert len({call(returning, number=number).message_id for number in (1, 2, 3)}) == 3
        assert len(transport.take()) == 3

    def test_ended_task_is_sent_again(self, transport: MemoryBackend) -> None:
        for _ in range(3):
            assert call(returning, number=1).created
            assert deliver(*transport.take()) == []
        assert effects() == ["a", "a", "a"]
        assert unique_keys().count() == 1

    def test_running_task_is_not_sent(self, transport: MemoryBackend) -> None:
        calls: list[TaskHandle] = []
        first = call(returning, number=1)
        meanwhile["a"] = lambda: calls.append(InThread(lambda: call(returning, number=1)).start().answer())
        if get_store().database == "sqlite":
            meanwhile["a"] = lambda: calls.append(call(returning, number=1))
        deliver(*transport.take())
        assert calls == [first]
        assert not calls[0].created

    def test_serialized_call_is_unique_too(self, transport: MemoryBackend, database: str) -> None:
        first = call(returning, number=1)
        with transaction.atomic(using=database):
            second = SQSLambdaTask.model_validate(returning.serialize(number=1)).execute_on_commit()
        if database == "sqlite" and second.database != database:
            pytest.skip("the transaction of another database was chosen")
        assert second == first

    def test_function_chooses_the_value(self, transport: MemoryBackend) -> None:
        handles = [call(by_parity, number=number) for number in (1, 2, 3, 4)]
        assert [handle.created for handle in handles] == [True, True, False, False]

    def test_call_that_waits_for_its_lock_counts(self, transport: MemoryBackend) -> None:
        first = call(alone)
        get_lock().acquire(f"lambda_tasks.singleton_lock.{alone.name}", token="another", timeout=60)
        deliver(*transport.take())
        assert call(alone) == first
        get_lock().release(f"lambda_tasks.singleton_lock.{alone.name}", token="another")
        deliver(*transport.take())
        assert call(alone).created

    def test_cancelled_call_frees_the_key(self, transport: MemoryBackend) -> None:
        for cancel_after in (lambda job: None, waits_for_its_lock, deliver):
            first = call(alone, name="again")
            [job] = transport.take()
            cancel_after(job)
            first.cancel()
            transport.take()
            second = call(alone)
            assert second.created
            assert deliver(*transport.take()) == []
            assert second.status == "SUCCESS"

    def test_pending_retry_is_not_sent(self, transport: MemoryBackend) -> None:
        first = call(retried, name="again")
        deliver(*transport.take())
        assert records().get().status == "RETRYING"
        time_passes(hours=23)
        assert call(retried) == first
        [retry] = transport.take()
        assert retry.message.n_retries == 1
        deliver(retry)
        transport.take()
        assert call(retried) == first

    def test_chain_that_failed_at_last_is_sent(self, transport: MemoryBackend, settings: Any) -> None:
        settings.LAMBDA_TASKS_MAX_RETRIES = 1
        call(retried, name="again")
        deliver(*transport.take())
        deliver(*transport.take())
        assert [record.status for record in records().order_by("n_retries")] == ["RETRYING", "FAILED"]
        assert call(retried).created

    def test_retry_that_never_arrived_frees_the_key(self, transport: MemoryBackend) -> None:
        call(retried, name="again")
        deliver(*transport.take())
        transport.take()
        time_passes(days=1, minutes=16)
        assert call(retried).created

    def test_lost_task_keeps_its_key_when_sent_again(self, transport: MemoryBackend, database: str) -> None:
        first = call(returning, number=1)
        transport.take()
        now = DatabaseNow() - timedelta(hours=2)
        arguments = {"number": 1}
        records().create(
            id=first.message_id, task_name=returning.name, kwargs=arguments, start_time=now, lease_until=now
        )
        assert reap().sent_again == 1
        [again] = transport.take()
        assert again.message_id == first.message_id
        assert str(unique_keys().get().message_id) == first.message_id

    def test_lost_retry_is_sent_again(self, transport: MemoryBackend) -> None:
        """Its key belongs to the first invocation of its chain."""
        first = call(retried, name="again")
        deliver(*transport.take())
        [retry] = transport.take()
        with pytest.raises(SystemExit), patch.object(failpoints, "reached", die_after_claim):
            deliver(retry)
        records().filter(pk=retry.message_id).update(lease_until=DatabaseNow() - timedelta(hours=2))
        assert reap().sent_again == 1
        assert [job.message_id for job in transport.take()] == [retry.message_id]
        assert str(unique_keys().get().message_id) == first.message_id

    def test_call_without_a_trace_expires(self, transport: MemoryBackend) -> None:
        """Its message is on the queue, or is lost: the library cannot tell."""
        first = call(by_parity, number=1)
        transport.take()
        time_passes(seconds=50)
        assert call(by_parity, number=1) == first
        time_passes(seconds=11)
        assert call(by_parity, number=1).created

    def test_delay_counts_from_its_end(self, transport: MemoryBackend) -> None:
        first = call(by_parity, number=1, delay=600)
        time_passes(seconds=600)
        assert call(by_parity, number=1) == first


class TestRaising:
    def test_error_carries_the_handle(self, transport: MemoryBackend) -> None:
        first = call(raising, number=1)
        with pytest.raises(DuplicateTask, match=f"raising has the unique key .* not ended: {first.message_id}") as info:
            call(raising, number=1)
        assert info.value.handle == first
        assert not info.value.handle.created

    def test_callers_transaction_stays_usable(self, transport: MemoryBackend, database: str) -> None:
        call(raising, number=1)
        with transaction.atomic(using=database):
            with pytest.raises(DuplicateTask):
                call(raising, number=1)
            Effect.objects.using(database).create(name="caller")
        assert effects() == ["caller"]


class TestReplacing:
    def test_waiting_call_is_replaced(self, transport: MemoryBackend) -> None:
        first, second = call(replacing, number=1), call(replacing, number=1, name="b")
        assert second.created
        assert second != first
        assert deliver(*transport.take()) == []
        assert effects() == ["b"]
        replaced = records().get(pk=first.message_id)
        assert (replaced.status, replaced.reason, replaced.task_name) == ("SUCCESS", "replaced", replacing.name)
        assert first.status == "SUCCESS"

    @pytest.mark.parametrize("task", [replacing, replacing_defaults], ids=lambda task: task.function.__name__)
    def test_replaced_message_is_acknowledged(self, transport: MemoryBackend, task: Any) -> None:
        """Its arguments differ from those in its record, which are not known to the call that replaces it.

        No arguments at all could be those of another call if every parameter has a default.
        """
        first = call(task, number=1)
        [old] = transport.take()
        call(task, number=1, name="b")
        assert deliver(old) == []
        assert effects() == []
        assert records().get(pk=first.message_id).reason == "replaced"

    def test_other_work_with_its_id_is_kept(self, transport: MemoryBackend) -> None:
        first = call(replacing, number=1)
        call(replacing, number=1, name="b")
        [old, _] = transport.take()
        other = Invocation(replacing_defaults.name, old.message.kwargs)
        assert deliver(replace(old, message=other)) == [first.message_id]
        assert deliver(old) == []

    def test_third_call_replaces_the_second(self, transport: MemoryBackend) -> None:
        for name in "abc":
            call(replacing, number=1, name=name)
        assert deliver(*transport.take()) == []
        assert effects() == ["c"]

    def test_running_call_is_followed_by_the_new_one(self, transport: MemoryBackend) -> None:
        first = call(replacing, number=1)
        [job] = transport.take()
        records().create(
            id=first.message_id, task_name=replacing.name, kwargs={"number": 1}, claim=ids.new_message_id()
        )
        second = call(replacing, number=1, name="b")
        assert second.created
        assert str(unique_keys().get().message_id) == second.message_id
        assert records().get(pk=job.message_id).status == "RUNNING"
        deliver(*transport.take())
        assert effects() == ["b"]

    def test_call_claimed_before_the_commit_runs_too(self, transport: MemoryBackend, database: str) -> None:
        """The primary key of the records decides: nothing is lost, and nothing ends as replaced that runs."""
        call(replacing, number=1)
        [old] = transport.take()
        with transaction.atomic(using=database):
            call(replacing, number=1, name="b")
            if database == "sqlite":
                records().create(id=old.message_id, task_name=replacing.name, kwargs={"number": 1}, status="SUCCESS")
            else:
                InThread(lambda: deliver(old)).start().answer()
        assert deliver(*transport.take()) == []
        assert "b" in effects()
        assert records().get(pk=old.message_id).reason == ""

    def test_replacing_in_one_transaction_runs_the_last_call(self, settings: Any, database: str) -> None:
        courier = use_outbox(settings, database)
        with transaction.atomic(using=database):
            for name in "abc":
                call(replacing, number=1, name=name)
        assert deliver(*courier.take()) == []
        assert effects() == ["c"]

    def test_cancelled_replacement_does_not_revive_the_first(self, transport: MemoryBackend, database: str) -> None:
        first = call(replacing, number=1)
        with transaction.atomic(using=database):
            second = call(replacing, number=1, name="b")
            assert second.cancel()
        assert deliver(*transport.take()) == []
        assert effects() == []
        assert (records().get(pk=first.message_id).reason, second.status) == ("replaced", "FAILED")
        assert call(replacing, number=1, name="c").created

    def test_rolled_back_savepoint_replaces_nothing(self, transport: MemoryBackend, database: str) -> None:
        with transaction.atomic(using=database):
            call(replacing, number=1)
            with transaction.atomic(using=database):
                call(replacing, number=1, name="b")
                transaction.set_rollback(True, using=database)
        assert deliver(*transport.take()) == []
        assert effects() == ["a"]

    def test_delayed_message_is_rewritten(self, settings: Any, database: str) -> None:
        courier = use_outbox(settings, database)
        first = call(replacing, number=1, delay=5000)
        second = call(replacing, number=1, name="b", delay=5000)
        assert (second, second.created) == (first, False)
        [row] = rows().all()
        assert json.loads(row.body)["kwargs"] == {"number": 1, "name": "b"}
        outbox().send_now([row.pk], using=database)
        assert deliver(*courier.take()) == []
        assert effects() == ["b"]

    @pytest.mark.parametrize("attempts", [0, 1])
    def test_possibly_sent_message_is_not_rewritten(self, settings: Any, database: str, attempts: int) -> None:
        """The same id with other arguments would be a mismatch. A relay may die between sending and deleting."""
        courier = use_outbox(settings, database)
        courier.away = {"default"}
        first = call(replacing, number=1)
        if not attempts:
            rows().update(attempts=0, due_at=DatabaseNow() - timedelta(seconds=1))
        second = call(replacing, number=1, name="b")
        assert second.message_id != first.message_id
        bodies = {str(row.pk): json.loads(row.body)["kwargs"] for row in rows()}
        assert bodies[first.message_id] == {"number": 1}
        assert records().get().reason == "replaced"

    def test_refused_replacement_leaves_the_old_call(self) -> None:
        """Without the outbox, SQS may refuse the message after the COMMIT."""
        courier: Any = get_backend()
        first = call(replacing, number=1)
        [old] = courier.take()
        courier.away = {"default"}
        with pytest.raises(ConnectionError):
            call(replacing, number=1, name="b")
        assert str(unique_keys().get().message_id) == first.message_id
        assert deliver(old) == []
        assert effects() == ["a"]


class TestTransactions:
    def test_rolled_back_call_holds_nothing(self, transport: MemoryBackend, database: str) -> None:
        with transaction.atomic(using=database):
            call(returning, number=1)
            transaction.set_rollback(True, using=database)
        assert not unique_keys().exists()
        assert call(returning, number=1).created

    def test_rolled_back_savepoint_frees_the_key(self, transport: MemoryBackend, database: str) -> None:
        with transaction.atomic(using=database):
            with transaction.atomic(using=database):
                call(returning, number=1)
                transaction.set_rollback(True, using=database)
            second = call(returning, number=1, name="b")
        assert second.created
        assert deliver(*transport.take()) == []
        assert effects() == ["b"]

    def test_refused_message_frees_the_key(self) -> None:
        courier: Any = get_backend()
        courier.away = {"default"}
        with pytest.raises(ConnectionError):
            call(returning, number=1)
        courier.away = set()
        assert not unique_keys().exists()
        assert call(returning, number=1).created

    def test_message_in_the_outbox_holds_the_key(self, settings: Any, database: str) -> None:
        courier = use_outbox(settings, database)
        courier.away = {"default"}
        first = call(returning, number=1)
        time_passes(days=30)
        assert call(returning, number=1) == first

    def test_dead_message_frees_the_key_after_its_time(self, settings: Any, database: str) -> None:
        use_outbox(settings, database)
        call(returning, number=1, delay=5000)
        rows().update(due_at=None)
        time_passes(days=2)
        assert call(returning, number=1).created

    @pytest.mark.databases("postgres", "mariadb", transaction=True)
    def test_concurrent_calls_create_one_invocation(self, transport: MemoryBackend) -> None:
        start = threading.Barrier(6, timeout=60)

        def one_of_many() -> TaskHandle:
            start.wait()
            return call(returning, number=1)

        handles = [thread.answer() for thread in [InThread(one_of_many).start() for _ in range(6)]]
        assert [handle.created for handle in handles].count(True) == 1
        assert len({handle.message_id for handle in handles}) == 1
        assert len(transport.take()) == 1

    @pytest.mark.databases("postgres", "mariadb", transaction=True)
    @pytest.mark.parametrize("commits", [True, False])
    def test_second_caller_waits_for_the_first(self, transport: MemoryBackend, database: str, commits: bool) -> None:
        with transaction.atomic(using=database):
            first = call(returning, number=1)
            other = InThread(lambda: call(returning, number=1)).start()
            other.wait(0.2)
            assert not other._answers  # it cannot know yet whether the first call is sent
            transaction.set_rollback(not commits, using=database)
        second = other.answer()
        assert (second == first, second.created) == (commits, not commits)

    def test_database_without_the_table_is_refused(self, settings: Any, database: str) -> None:
        settings.DATABASE_ROUTERS = [f"{__name__}.NoKeys"]
        with pytest.raises(UnknownDatabase, match=f"'{database}' has no table of unique keys for .*returning"):
            call(returning, number=1)

    def test_call_costs_two_statements(self, transport: MemoryBackend, database: str) -> None:
        call(returning, number=2)  # compiles the statements
        with transaction.atomic(using=database):
            statements: list[str] = []

            def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
                statements.append(sql.split(maxsplit=1)[0])
                return execute(sql, params, many, context)

            with connections[database].execute_wrapper(note):
                call(returning, number=1)
            assert statements == ["INSERT", "SELECT"]


class NoKeys:
    """A router that keeps unique keys out of every database."""

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **hints: Any) -> bool | None:
        return False if model_name == "uniquekey" else None


class TestOtherModes:
    def test_eager_calls_run_one_after_the_other(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        assert [call(returning, number=1).created for _ in range(2)] == [True, True]
        assert effects() == ["a", "a"]

    def test_eager_call_inside_the_task_is_a_duplicate(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        calls: list[TaskHandle] = []
        meanwhile["a"] = lambda: calls.append(call(returning, number=1))
        call(returning, number=1)
        assert [inner.created for inner in calls] == [False]

    def test_testing_queue_has_one_job(self) -> None:
        with collect_tasks() as queue:
            call(returning, number=1)
            call(returning, number=1)
            assert queue.task_names == [returning.name]
            queue.run_until_idle()
            call(returning, number=1)
            assert queue.task_names == [returning.name]

    def test_plain_task_writes_no_key(self, transport: MemoryBackend) -> None:
        call(cleanup_task_records)
        assert not unique_keys().exists()


class TestCleanup:
    def test_old_keys_of_ended_calls_are_deleted(self, transport: MemoryBackend, database: str) -> None:
        for number in (1, 2, 3):
            call(returning, number=number)
        ended, running, _ = transport.take()
        deliver(ended)
        records().create(id=running.message_id, task_name=returning.name, kwargs={"number": 2})
        unique_keys().filter(message_id__in=[ended.message_id, running.message_id]).update(
            expires_at=DatabaseNow() - timedelta(days=8)
        )
        cleanup_task_records(retention_days=7)
        left = {str(key.message_id) for key in unique_keys().all()}
        assert ended.message_id not in left
        assert running.message_id in left
        assert len(left) == 2

    def test_key_of_a_pending_retry_stays(self, database: str) -> None:
        root = ids.new_message_id()
        old = DatabaseNow() - timedelta(days=8)
        unique_keys().create(key="k", task_name=returning.name, message_id=root, expires_at=old)
        records().create(
            id=root, root_id=root, task_name=returning.name, status="RETRYING", end_time=DatabaseNow(), kwargs={}
        )
        assert delete_old_keys(database, days=7, limit=10) == 0
        records().update(end_time=old)
        assert delete_old_keys(database, days=7, limit=10) == 1


def test_newest_record_of_the_chain_decides(database: str) -> None:
    store, root = get_store(), ids.new_message_id()
    assert store.progress(root) is None
    for number, status in enumerate(("RETRYING", "RETRYING", "RUNNING")):
        key = ids.retry_id(root, number) if number else root
        records().create(id=key, root_id=root, n_retries=number, task_name="a.b", status=status, kwargs={})
    progress = store.progress(root)
    assert progress is not None
    assert (progress.status, progress.n_retries, progress.idle) == ("RUNNING", 2, 0)
