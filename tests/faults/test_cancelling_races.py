"""Cancelling races with the claim and the run at every failpoint; the database decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
from django.db import transaction

from lambda_tasks import failpoints
from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.pipeline import prepare
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Claimed
from lambda_tasks.strategies import get_store
from lambda_tasks.testing.contracts import InThread
from lambda_tasks.wire.ids import new_message_id
from tests.app.models import Effect
from tests.courier import Courier, later, outbox, use_outbox
from tests.faults.workers import backend, effects, expire_lease, in_another_worker

pytestmark = [pytest.mark.thorough]
ON_SERVERS: Final = pytest.mark.databases("postgres", "mariadb", transaction=True)

#: The points that a worker reaches with each of the tasks, in order.
POINTS_OF_SUCCESS: Final = (
    "batch:start",
    "batch:next",
    "claim:before",
    "claim:after",
    "task:before_begin",
    "task:enter",
    "task:leave",
    "finish:before_commit",
    "finish:after_commit",
    "batch:before_return",
)
POINTS_OF_RETRY: Final = (
    "claim:before",
    "claim:after",
    "task:leave_with_error",
    "retry:before_send",
    "send:before",
    "retry:between",
    "settle:before_write",
    "settle:after_write",
    "batch:before_return",
)
POINTS_OF_CANCEL: Final = ("cancel:before_write", "cancel:after_write")


class Again(Exception):
    pass


def take_effect(name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)


@lambda_task
def succeed(*, name: str) -> None:
    take_effect(name)


@lambda_task(atomic=False)
def succeed_step_by_step(*, name: str) -> None:
    take_effect(name)


@lambda_task(retry_on=(Again,))
def fail_once(*, name: str) -> None:
    take_effect(name)
    if not TaskRecord.objects.using(get_store().database).filter(status="RETRYING").exists():
        failpoints.reached("task:leave_with_error")
        raise Again


@contextmanager
def meanwhile(point: str, action: Callable[[], Any]) -> Iterator[list[Any]]:
    """Do `action` in another thread, and to its end, when this thread first reaches `point`; collect its result."""
    results: list[Any] = []
    before = failpoints.reached

    def reached(name: str) -> None:
        if name == point and not started:
            started.append(name)
            results.append(in_another_worker(action))

    started: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "reached", reached)
        yield results
    assert failpoints.reached is before
    assert started, f"{point} was not reached"


def deliver_all() -> None:
    """Deliver every message until the queue is empty; those that are busy come back after their lease."""
    for _ in range(10):
        jobs = backend().take()
        if not jobs:
            return
        for job in jobs:
            deliver(job)
    raise AssertionError("the messages are delivered without end")


def deliver(job: Job) -> None:
    if handler({"Records": [event_record(job)]}, None)["batchItemFailures"]:
        backend().jobs.append(job)
        expire_lease()


def chain(handle: TaskHandle) -> list[tuple[str, str]]:
    records = TaskRecord.objects.using(get_store().database).chain(handle.message_id)
    return [(record.status, record.reason) for record in records]


CANCELLED: Final = ("FAILED", "cancelled")


@pytest.mark.usefixtures("store", "empty_queue")
@ON_SERVERS
class TestWithoutTheOutbox:
    @pytest.mark.parametrize("point", POINTS_OF_SUCCESS)
    def test_cancel_at_any_point_of_a_run(self, database: str, point: str) -> None:
        handle = succeed.execute_on_commit(name="a")
        with meanwhile(point, handle.cancel) as results:
            deliver_all()
        early = POINTS_OF_SUCCESS.index(point) < POINTS_OF_SUCCESS.index("claim:after")
        late = POINTS_OF_SUCCESS.index(point) >= POINTS_OF_SUCCESS.index("finish:after_commit")
        assert results == [not late]
        assert chain(handle) == [CANCELLED if early else ("SUCCESS", "")]
        assert effects() == ([] if early else ["a"])

    @pytest.mark.parametrize(
        "point", ["claim:before", "claim:after", "task:enter", "task:leave", "finish:after_commit"]
    )
    def test_cancel_at_any_point_without_transaction(self, database: str, point: str) -> None:
        handle = succeed_step_by_step.execute_on_commit(name="a")
        with meanwhile(point, handle.cancel) as results:
            deliver_all()
        assert results == [point != "finish:after_commit"]
        assert chain(handle) == [CANCELLED if point == "claim:before" else ("SUCCESS", "")]
        assert effects() == ([] if point == "claim:before" else ["a"])

    @pytest.mark.parametrize("point", POINTS_OF_RETRY)
    def test_cancel_at_any_point_of_a_retry(self, database: str, point: str) -> None:
        handle = fail_once.execute_on_commit(name="a")
        with meanwhile(point, handle.cancel) as results:
            deliver_all()
        assert results == [True]
        assert chain(handle)[-1] == CANCELLED
        assert all(status == "RETRYING" for status, _ in chain(handle)[:-1])
        assert effects() == []

    @pytest.mark.parametrize("point", POINTS_OF_CANCEL)
    def test_worker_at_any_point_of_cancelling(self, database: str, point: str) -> None:
        handle = succeed.execute_on_commit(name="a")
        with meanwhile(point, deliver_all):
            result = handle.cancel()
        prevented = point == "cancel:after_write"
        assert result is prevented  # too late, if the worker was faster
        assert chain(handle) == [CANCELLED if prevented else ("SUCCESS", "")]
        assert effects() == ([] if prevented else ["a"])

    @pytest.mark.parametrize("point", POINTS_OF_CANCEL)
    def test_retry_at_any_point_of_cancelling(self, database: str, point: str) -> None:
        handle = fail_once.execute_on_commit(name="a")
        deliver(*backend().take())
        with meanwhile(point, deliver_all):
            result = handle.cancel()
        prevented = point == "cancel:after_write"
        assert result is prevented
        assert chain(handle) == [("RETRYING", "error"), CANCELLED if prevented else ("SUCCESS", "")]
        assert effects() == ([] if prevented else ["a"])

    @pytest.mark.parametrize("point", POINTS_OF_CANCEL)
    def test_worker_while_a_released_claim_is_cancelled(self, database: str, point: str) -> None:
        handle = succeed.execute_on_commit(name="a")
        [job] = backend().jobs
        run = prepare(job.message, message_id=job.message_id)
        assert get_store().claim(run) == Claimed()
        get_store().release(run)
        with meanwhile(point, deliver_all):
            result = handle.cancel()
        prevented = point == "cancel:after_write"
        assert result is prevented
        assert chain(handle) == [CANCELLED if prevented else ("SUCCESS", "")]
        assert effects() == ([] if prevented else ["a"])

    def test_claim_at_the_cancelling_of_a_released_invocation(self, database: str) -> None:
        handle = succeed.execute_on_commit(name="a")
        [job] = backend().take()
        run = prepare(job.message, message_id=job.message_id)
        assert get_store().claim(run) == Claimed()
        get_store().release(run)
        with meanwhile("cancel:before_write", lambda: get_store().claim(replace(run, claim=new_message_id()))):
            assert handle.cancel()
        assert chain(handle) == [("RUNNING", "")]
        assert get_store().cancel_requested(run)

    def test_claim_waits_for_a_transaction_that_cancels(self, database: str) -> None:
        """Whether the task runs depends on the COMMIT of the transaction."""
        for commits in (True, False):
            handle = succeed.execute_on_commit(name=str(commits))
            with transaction.atomic(using=database):
                assert handle.cancel()
                worker = InThread(deliver_all).start()
                if not commits:
                    transaction.set_rollback(True, using=database)
            worker.answer()
            deliver_all()
            assert chain(handle) == [CANCELLED if commits else ("SUCCESS", "")]
        assert effects() == ["False"]

    def test_takeover_at_the_request(self, database: str) -> None:
        handle = succeed.execute_on_commit(name="a")
        [job] = backend().jobs
        with meanwhile("claim:after", lambda: take_over(job)) as ends:
            backend().take()
            deliver(job)
        assert ends == [CANCELLED]
        deliver_all()
        assert chain(handle) == [CANCELLED]
        assert effects() == []


def take_over(job: Job) -> tuple[str, str]:
    """Cancel a claimed invocation, let its lease end, and deliver its message again. Return how it ended."""
    assert TaskHandle(job.message_id).cancel()
    expire_lease(job.message_id)
    assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
    [end] = chain(TaskHandle(job.message_id))
    return end


@pytest.mark.usefixtures("store")
@ON_SERVERS
class TestWithTheOutbox:
    @pytest.fixture(autouse=True)
    def courier(self, database: str, store: str, settings: Any) -> Courier:
        return use_outbox(settings, database)

    @pytest.mark.parametrize("point", ["relay:held", "relay:sent", "relay:settled"])
    def test_cancel_at_any_point_of_a_relay(self, database: str, courier: Courier, point: str) -> None:
        def cancel() -> bool:
            [message_id] = in_flight
            return TaskHandle(message_id, database).cancel()

        in_flight: list[str] = []
        with meanwhile(point, cancel) as results, transaction.atomic(using=database):
            handle = succeed.using(database=database).execute_on_commit(name="a")
            in_flight.append(handle.message_id)
        assert results == [True]
        for job in courier.take():
            assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
        assert chain(handle) == [CANCELLED]
        assert effects() == []

    @pytest.mark.parametrize("point", POINTS_OF_CANCEL)
    def test_relay_at_any_point_of_cancelling(self, database: str, courier: Courier, point: str) -> None:
        courier.away = {"default"}
        handle = succeed.using(database=database).execute_on_commit(name="a")
        courier.away = set()

        def relay_and_deliver() -> None:
            later(1_000, database)
            outbox().relay()
            for job in courier.take():
                assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}

        with meanwhile(point, relay_and_deliver):
            result = handle.cancel()
        prevented = point == "cancel:after_write"
        assert result is prevented
        assert chain(handle) == [CANCELLED if prevented else ("SUCCESS", "")]
        assert effects() == ([] if prevented else ["a"])
