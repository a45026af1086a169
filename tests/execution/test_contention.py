"""A task whose lock is held: it is retried, waits or is skipped; and tasks with a limit of concurrent runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models import F
from django.test import override_settings

from lambda_tasks import failpoints
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import DatabaseNow, LeaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.keys import LOCK_KEY
from lambda_tasks.exceptions import LockError
from lambda_tasks.execution import waiting
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.foundation.forks import random
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.locks.advisory import try_advisory_lock
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations.reaping import Reaped, reap
from lambda_tasks.outcomes import Skipped
from lambda_tasks.strategies import get_backend, get_lock, get_store
from lambda_tasks.testing import collect_tasks
from lambda_tasks.testing.contracts import InThread
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.courier import COURIER, OUTBOX, outbox

pytestmark = pytest.mark.databases(transaction=True)

MEMORY = "lambda_tasks.backends.memory.MemoryBackend"

#: An additional action of a task, by the name that it is called with, executed once.
meanwhile: dict[str, Callable[[], object]] = {}


def take_effect(name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)
    meanwhile.pop(name, lambda: None)()


@lambda_task(singleton=True, on_contention="wait", max_wait=600)
def waits(*, name: str) -> None:
    take_effect(name)


@lambda_task(singleton=True, on_contention="wait", on_crash="fail")
def waits_once(*, name: str) -> None:
    take_effect(name)


@lambda_task(singleton=True, on_contention="wait", expires_in=60)
def waits_briefly(*, name: str) -> None:
    take_effect(name)


@lambda_task(singleton=True, on_contention="skip")
def skips(*, name: str) -> None:
    take_effect(name)


@lambda_task(singleton="name")
def per_name(*, name: str) -> None:
    take_effect(name)


@lambda_task(max_concurrency=2, on_contention="skip")
def limited(*, name: str) -> None:
    take_effect(name)


@lambda_task(singleton=True, on_contention="skip")
def raises_lock_error(*, name: str) -> None:
    raise LockError(name)


class Listener:
    """A plugin that notes which deliveries were skipped and which jobs were sent."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def lambda_task_skipped(self, message_id: str, reason: str) -> None:
        self.heard.append(reason)

    @hookimpl
    def lambda_task_finished(self, run: Any, outcome: Any) -> None:
        self.heard.append(type(outcome).__name__)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(autouse=True)
def _settings(database: str, settings: Any, listener: Listener) -> Iterator[None]:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    settings.LAMBDA_TASKS_LOCK = "lambda_tasks.locks.memory.MemoryLock"
    settings.LAMBDA_TASKS_PLUGINS = [listener]
    settings.LAMBDA_TASKS_BACKEND = MEMORY
    meanwhile.clear()
    yield
    meanwhile.clear()


@pytest.fixture(params=["without the outbox", "with the outbox"])
def transport(request: pytest.FixtureRequest, settings: Any, database: str) -> MemoryBackend:
    """Return the transport, maybe behind an outbox, which relays a message when its transaction commits."""
    if request.param == "with the outbox":
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": OUTBOX,
            "OPTIONS": {"transport": COURIER, "databases": [database]},
        }
        return outbox().transport  # type: ignore[return-value]
    return get_backend()  # type: ignore[return-value]


def records() -> Any:
    return TaskRecord.objects.using(get_store().database)


def effects() -> list[str]:
    return sorted(Effect.objects.using(get_store().database).values_list("name", flat=True))


def sent(transport: MemoryBackend, task: Any, name: str = "a") -> Job:
    """Send the task, and return its job as a worker receives it."""
    task.using(database=get_store().database).execute_on_commit(name=name)
    [job] = transport.take()
    return job


def deliver(*jobs: Job, receives: int = 1) -> list[str]:
    """Deliver the jobs in one batch, and return the ids of those that stay on the queue."""
    response = handler({"Records": [event_record(job, receive_count=receives) for job in jobs]}, None)
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


@contextmanager
def held(task: Any, digest: str = "") -> Iterator[None]:
    """Hold the lock of `task` as another invocation does."""
    key = LOCK_KEY.format(task_name=task.name) + digest
    other = ids.new_message_id()
    assert get_lock().acquire(key, token=other, timeout=60)
    try:
        yield
    finally:
        get_lock().release(key, token=other)


def seconds_pass(seconds: float) -> None:
    """Move the times of the records into the past, because tests cannot set the database's clock."""
    passed = timedelta(seconds=seconds)
    records().update(lease_until=F("lease_until") - passed, waiting_since=F("waiting_since") - passed)


class TestWaiting:
    def test_same_message_is_sent_again(self, transport: MemoryBackend) -> None:
        job = sent(transport, waits)
        job.attributes["trace"] = "1-2-3"
        with held(waits):
            assert deliver(job) == []
        [again] = transport.take()
        assert (again.message_id, again.root_id, again.queue) == (job.message_id, job.message_id, job.queue)
        assert (again.body, again.attributes["trace"], again.message.n_retries) == (job.body, "1-2-3", 0)
        assert 1 <= again.delay <= 2
        assert effects() == []
        assert deliver(again) == []
        assert effects() == ["a"]
        assert records().get().status == "SUCCESS"

    def test_record_stays_running_without_a_claim(self, transport: MemoryBackend) -> None:
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
        record = records().annotate(now=DatabaseNow()).get()
        assert (record.status, record.claim, record.takeovers, record.reason) == ("RUNNING", None, 0, "")
        assert timedelta() <= record.now - record.waiting_since < timedelta(minutes=5)

    def test_first_wait_is_remembered(self, transport: MemoryBackend) -> None:
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
            since = records().get().waiting_since
            deliver(*transport.take())
        assert records().get().waiting_since == since

    def test_waiting_uses_up_no_retries(self, transport: MemoryBackend) -> None:
        with override_settings(LAMBDA_TASKS_MAX_RETRIES=0), held(waits):
            job = sent(transport, waits)
            for _ in range(5):
                deliver(job)
                [job] = transport.take()
        deliver(job)
        [record] = records().all()
        assert (record.status, record.n_retries, record.takeovers) == ("SUCCESS", 0, 0)

    def test_delay_grows_with_the_time_waited(self, transport: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(random, "uniform", lambda low, high: 1)
        job = sent(transport, waits)
        delays = []
        with held(waits):
            for passed in (0, 40, 60, 300):
                seconds_pass(passed)
                deliver(job)
                [job] = transport.take()
                delays.append(job.delay)
        assert delays == sorted(delays)
        # Half of the time, in whole seconds, of which the database may have rounded one away.
        assert all(delay >= least for delay, least in zip(delays, (1, 19, 49, 199), strict=True))

    def test_wait_longer_than_the_maximum_fails(self, transport: MemoryBackend, listener: Listener) -> None:
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
            seconds_pass(601)
            deliver(*transport.take())
        record = records().get()
        assert (record.status, record.reason) == ("FAILED", "lock")
        assert "LockError" in record.traceback
        assert "waited 60" in record.traceback
        assert "its max_wait is 600 s" in record.traceback
        assert transport.take() == []
        assert listener.heard == ["waiting", "Failed"]

    def test_plugins_hear_that_it_waits(self, transport: MemoryBackend, listener: Listener) -> None:
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
        deliver(*transport.take())
        assert listener.heard == ["waiting", "Succeeded"]

    def test_cancelled_task_ends_immediately(self, transport: MemoryBackend) -> None:
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
        handle = TaskHandle(job.message_id, get_store().database)
        assert handle.cancel()
        record = records().get()
        assert (record.status, record.reason) == ("FAILED", "cancelled")
        assert "while it waited" in record.traceback
        assert deliver(*transport.take()) == []
        assert (effects(), handle.cancel()) == ([], False)

    def test_expired_message_does_not_wait(self, transport: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        job = sent(transport, waits_briefly)
        with held(waits_briefly):
            deliver(job)
            [again] = transport.take()
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + 61)
            assert deliver(again) == []
        assert (records().get().reason, transport.take()) == ("expired", [])

    def test_transport_without_delays_gets_none(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": MEMORY, "OPTIONS": {"max_delay": 0}}
        transport: Any = get_backend()
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
        assert [again.delay for again in transport.take()] == [0]

    def test_copy_may_run_before_its_time(self, transport: MemoryBackend) -> None:
        """SQS may deliver the first message twice, and the record says that a later message is expected."""
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
        assert deliver(job, receives=2) == []
        assert effects() == ["a"]
        assert deliver(*transport.take()) == []
        assert effects() == ["a"]

    def test_two_messages_of_one_invocation_run_once(self, transport: MemoryBackend) -> None:
        """The worker may die after it has sent the message and before it has released its claim."""
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
        [again] = transport.take()
        assert deliver(again, again, job) == []
        assert effects() == ["a"]
        assert records().get().takeovers == 0

    def test_lost_claim_leaves_the_message_on_the_queue(
        self, transport: MemoryBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another worker takes the invocation over while this one waits for the answer of the queue."""
        job = sent(transport, waits)
        successor = ids.new_message_id()

        def take_over(point: str) -> None:
            if point == "wait:between":
                records().update(claim=successor)

        monkeypatch.setattr(failpoints, "reached", take_over)
        with held(waits):
            assert deliver(job) == [job.message_id]
        record = records().get()
        assert (str(record.claim), record.waiting_since) == (successor, None)
        if get_backend().keeps:
            assert transport.take() == []  # it is kept in the transaction that releases the claim

    def test_handle_of_a_waiting_task_is_running(self, transport: MemoryBackend) -> None:
        handle = waits.using(database=get_store().database).execute_on_commit(name="a")
        with held(waits):
            deliver(*transport.take())
        assert handle.status == "RUNNING"

    def test_unavailable_queue_keeps_the_message(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = COURIER
        courier: Any = get_backend()
        job = sent(courier, waits)
        courier.away = {"default"}
        with held(waits):
            assert deliver(job) == [job.message_id]
        record = records().get()
        assert (record.status, record.claim, record.waiting_since) == ("RUNNING", None, None)
        assert deliver(job, receives=2) == []
        assert effects() == ["a"]


@pytest.mark.parametrize(
    ("waited", "left", "shortest", "longest"),
    [(0, 1000, 1, 1), (1, 1000, 1, 1), (40, 1000, 15, 25), (10_000, 80_000, 225, 375), (500, 7, 7, 7), (9, 0.2, 1, 1)],
)
def test_next_wait_is_between_its_limits(waited: float, left: float, shortest: int, longest: int) -> None:
    waits = [waiting.next_wait(waited, left) for _ in range(200)]
    assert shortest <= min(waits) <= max(waits) <= longest


class TestWithTheOutbox:
    @pytest.fixture(autouse=True)
    def _outbox(self, settings: Any, database: str) -> None:
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": OUTBOX,
            "OPTIONS": {"transport": COURIER, "databases": [database]},
        }

    @pytest.mark.parametrize("in_house", [False, True])
    def test_relay_keeps_a_row_that_was_replaced(self, database: str, settings: Any, in_house: bool) -> None:
        """A worker may receive a message, and wait, before its relay has deleted the row."""
        path = f"{COURIER}InHouse" if in_house else COURIER
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": {"transport": path, "databases": [database]}}
        courier: Any = outbox().transport
        if not (in_house or database == "sqlite"):
            pytest.skip("the relay locks the row until it is deleted")

        def is_received_early() -> None:
            courier.on_the_way = lambda: None
            message = OutboxMessage.objects.using(database).get()
            key = str(message.pk)
            job = Job(Invocation.of_body(message.body), key, root_id=key, task=waits, database=database)
            with held(waits):
                courier.away = {"default"}
                deliver(job)
                courier.away = set()

        courier.on_the_way = is_received_early
        waits.using(database=database).execute_on_commit(name="a")
        first = courier.take()
        assert len(first) == 1
        [row] = OutboxMessage.objects.using(database).all()
        assert str(row.pk) == first[0].message_id
        OutboxMessage.objects.using(database).update(due_at=DatabaseNow() - timedelta(seconds=1))
        outbox().relay()
        assert deliver(*first, *courier.take()) == []
        assert effects() == ["a"]

    def test_message_is_kept_with_the_release(self, database: str) -> None:
        courier: Any = outbox().transport
        job = sent(courier, waits)
        courier.away = {"default"}
        with held(waits):
            assert deliver(job) == []
        [row] = OutboxMessage.objects.using(database).all()
        assert str(row.pk) == job.message_id
        assert records().get().claim is None
        courier.away = set()
        outbox().send_now([job.message_id], using=database)
        deliver(*courier.take())
        assert effects() == ["a"]


class TestReaping:
    def waiting(self, task: Any = waits) -> Job:
        transport: Any = get_backend()
        job = sent(transport, task)
        with held(task):
            deliver(job)
        again: Job
        [again] = transport.take()
        return again

    def test_waiting_task_is_not_lost(self) -> None:
        self.waiting()
        records().update(lease_until=LeaseNow() + timedelta(seconds=250), waiting_since=DatabaseNow())
        assert reap(older_than=0).total == 0

    @pytest.mark.parametrize("task", [waits, waits_once], ids=lambda task: task.name.rpartition(".")[2])
    def test_task_whose_message_is_gone_is_sent_again(self, task: Any) -> None:
        """No worker has died, so no takeover is counted, and on_crash does not matter."""
        self.waiting(task)
        for _ in range(5):
            seconds_pass(70)
            assert reap(older_than=60) == Reaped(sent_again=1)
            [again] = get_backend().take()  # type: ignore[attr-defined]
        assert records().get().takeovers == 0
        assert deliver(again) == []
        assert (effects(), records().get().status) == (["a"], "SUCCESS")

    def test_task_that_waited_too_long_is_lost(self) -> None:
        self.waiting()
        seconds_pass(700)
        assert reap(older_than=60) == Reaped(failed=1)
        record = records().get()
        assert (record.status, record.reason) == ("FAILED", "lost")
        assert "waited 70" in record.traceback
        assert "max_wait is 600 s" in record.traceback

    def test_worker_that_died_after_waiting_counts(self) -> None:
        again = self.waiting()
        run_died = {"claim": ids.new_message_id(), "lease_until": LeaseNow() - timedelta(seconds=70)}
        records().filter(pk=again.message_id).update(**run_died)
        assert reap(older_than=60) == Reaped(sent_again=1)
        assert records().get().takeovers == 1


class TestWithoutWaiting:
    def test_eager_task_is_retried(self, settings: Any) -> None:
        """Eager mode does not wait for delays, so it would try without a pause."""
        settings.LAMBDA_TASKS_EAGER = True
        settings.LAMBDA_TASKS_MAX_RETRIES = 2
        with held(waits):
            waits.using(database=get_store().database).execute_on_commit(name="a")
        assert [record.status for record in records().order_by("n_retries")] == ["RETRYING", "RETRYING", "FAILED"]

    def test_store_that_cannot_wait_retries(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = {
            "BACKEND": "lambda_tasks.stores.null.NullStore",
            "OPTIONS": {"database": get_store().database},
        }
        transport: Any = get_backend()
        job = sent(transport, waits)
        with held(waits):
            deliver(job)
        [retry] = transport.take()
        assert retry.message.n_retries == 1

    def test_run_in_the_testing_queue_waits(self) -> None:
        with collect_tasks() as queue:
            waits.using(database=get_store().database).execute_on_commit(name="a")
            with held(waits):
                queue.run()
            assert queue.task_names == [waits.name]
            queue.run_until_idle()
        assert effects() == ["a"]


class TestSkipping:
    def test_run_ends_as_skipped(self, transport: MemoryBackend, listener: Listener) -> None:
        with held(skips):
            deliver(sent(transport, skips))
        record = records().get()
        assert (record.status, record.reason, record.result) == ("SUCCESS", "skipped", None)
        assert "LockError" in record.traceback
        assert (effects(), transport.take(), listener.heard) == ([], [], ["Ignored"])

    def test_free_lock_runs(self, transport: MemoryBackend) -> None:
        deliver(sent(transport, skips))
        assert (effects(), records().get().reason) == (["a"], "")

    def test_lock_error_of_the_function_is_not_contention(self, transport: MemoryBackend) -> None:
        deliver(sent(transport, raises_lock_error))
        assert records().get().status == "RETRYING"


class TestPerValue:
    def test_same_value_is_excluded(self, transport: MemoryBackend) -> None:
        inner, other = (sent(transport, per_name, name) for name in ("a", "b"))
        again = sent(transport, per_name, "a")
        meanwhile["a"] = lambda: [deliver(other), deliver(again)]
        deliver(inner)
        assert effects() == ["a", "b"]
        statuses = {str(record.pk): record.status for record in records().all()}
        assert statuses[again.message_id] == "RETRYING"


class TestLimit:
    def test_no_more_runs_than_the_limit(self, transport: MemoryBackend) -> None:
        """Each run starts the next one while it holds its lock."""
        a, b, c, d = (sent(transport, limited, name) for name in "abcd")
        meanwhile["a"] = lambda: deliver(b)
        meanwhile["b"] = lambda: deliver(c)
        deliver(a)
        assert effects() == ["a", "b"]
        assert records().get(pk=c.message_id).reason == "skipped"
        assert deliver(d) == []
        assert effects() == ["a", "b", "d"]

    def test_contention_names_the_number_of_locks(self, transport: MemoryBackend) -> None:
        with held(limited), held(limited, "/1"):
            deliver(sent(transport, limited))
        assert "All 2 locks of" in records().get().traceback

    def test_locks_of_all_slots_are_released(self, transport: MemoryBackend) -> None:
        for name in "abcdef":
            deliver(sent(transport, limited, name))
        assert effects() == sorted("abcdef")
        with held(limited), held(limited, "/1"):
            pass


class ForgetfulLock(MemoryLock):
    """A lock whose server forgets every lock immediately. PostgreSQL's transactions hold it, too."""

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        return True

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        return try_advisory_lock(key, database=database)


@pytest.mark.databases("postgres", transaction=True)
class TestForgetfulLock:
    @pytest.fixture(autouse=True)
    def _lock(self, settings: Any, database: str) -> None:
        settings.LAMBDA_TASKS_LOCK = f"{__name__}.ForgetfulLock"

    def run_of(self, task: Any, number: int, name: str) -> Any:
        """Run the invocation with an id from which its first slot follows, in another worker."""
        message = Invocation(task.name, {"name": name})
        return InThread(lambda: execute(message, message_id=str(UUID(int=number)), task=task)).start().answer()

    def test_runs_in_one_slot_do_not_overlap(self) -> None:
        meanwhile["a"] = lambda: (self.run_of(limited, 2, "same slot"), self.run_of(limited, 3, "other slot"))
        self.run_of(limited, 0, "a")
        assert effects() == ["a", "other slot"]
        assert records().get(pk=UUID(int=2)).reason == "skipped"

    def test_run_waits_for_the_other_transaction(self) -> None:
        meanwhile["a"] = lambda: self.run_of(waits, 2, "b")
        self.run_of(waits, 1, "a")
        assert effects() == ["a"]
        assert deliver(*get_backend().take()) == []  # type: ignore[attr-defined]
        assert effects() == ["a", "b"]

    def test_values_do_not_exclude_each_other(self) -> None:
        meanwhile["a"] = lambda: self.run_of(per_name, 2, "b")
        self.run_of(per_name, 1, "a")
        assert effects() == ["a", "b"]


def test_direct_execution_waits_in_the_queue(database: str) -> None:
    message = Invocation(waits.name, {"name": "a"})
    with held(waits):
        assert execute(message, message_id=ids.new_message_id(), task=waits) == Skipped("waiting")
    assert deliver(*get_backend().take()) == []  # type: ignore[attr-defined]
    with transaction.atomic(using=database):
        assert effects() == ["a"]
