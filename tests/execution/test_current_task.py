"""`current_task()`: what a running task can know about itself, in each kind of thread."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.exceptions import RetryLater
from lambda_tasks.execution import cancelled, current
from lambda_tasks.execution.current import CurrentTask, current_task
from lambda_tasks.execution.pipeline import prepare
from lambda_tasks.execution.strangers import Watch
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.limits.alarms import NoLimits, TimeLimits
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend
from lambda_tasks.testing import collect_tasks
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation


class Busy(Exception):
    pass


#: What the tasks have seen, in order.
seen: list[CurrentTask | None] = []


def look() -> None:
    seen.append(current_task())


@lambda_task
def looking() -> None:
    look()


@lambda_task(retry_on=(Busy,), max_retries=2)
def busy() -> None:
    look()
    raise Busy


@lambda_task
def calling_another() -> None:
    looking()
    looking.function()


@lambda_task
def raising() -> None:
    raise Busy


@lambda_task
def looking_after_commit() -> None:
    transaction.on_commit(look)


@lambda_task
async def looking_in_coroutines() -> None:
    look()
    await asyncio.create_task(asyncio.to_thread(look))
    await sync_to_async(look)()
    await sync_to_async(look, thread_sensitive=False)()


def in_thread() -> None:
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()


def in_pool() -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(look).result()


def under_asyncio_run() -> None:
    async def looking_asynchronously() -> None:
        await sync_to_async(look)()

    asyncio.run(looking_asynchronously())


WAYS: dict[str, Callable[[], None]] = {"thread": in_thread, "pool": in_pool, "asyncio.run": under_asyncio_run}


@lambda_task
def looking_elsewhere(*, way: str) -> None:
    WAYS[way]()


class Context:
    """What Lambda passes to the handler."""

    aws_request_id = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"

    def get_remaining_time_in_millis(self) -> int:
        return 60_000


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    backend().jobs.clear()
    seen.clear()
    yield
    assert current_task() is None


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def run(task: LambdaTaskWrapper[..., Any], /, context: Any = None, **arguments: Any) -> str:
    """Run the task and its retries through the handler, and return the id of the first invocation."""
    handle = task.execute_on_commit(**arguments)
    while records := backend().take_records():
        assert handler({"Records": records}, context) == {"batchItemFailures": []}
    return handle.message_id


def only() -> CurrentTask:
    [found] = seen
    assert found is not None
    return found


def current_in(run: Run, limits: Any = None) -> CurrentTask:
    return CurrentTask(Watch(run, limits or NoLimits()))


def run_of(task: LambdaTaskWrapper[..., Any], *, n_retries: int = 0, **details: Any) -> Run:
    made = prepare(Invocation(task.name, {}, n_retries), message_id=ids.new_message_id(), task=task)
    return replace(made, **details)


@pytest.mark.django_db(transaction=True)
class TestIdentity:
    def test_task_sees_its_own_invocation(self) -> None:
        message_id = run(looking.using(queue="other"))
        task = only()
        assert (task.message_id, task.root_id, task.task_name) == (message_id, message_id, looking.name)
        assert (task.queue, task.attempt, task.cancelled, task.scheduled_for) == ("other", 1, False, None)
        assert repr(task) == f"<CurrentTask {looking.name} [{message_id}], attempt 1>"

    def test_retries_are_further_attempts(self) -> None:
        root = run(busy)
        chain = [str(record.pk) for record in TaskRecord.objects.chain(root)]
        assert [task and (task.message_id, task.root_id, task.attempt) for task in seen] == [
            (message_id, root, number) for number, message_id in enumerate(chain, start=1)
        ]
        assert len(chain) == 3

    def test_attributes_cannot_be_changed(self) -> None:
        run(looking)
        for name in ("attempt", "cancelled", "_watch", "note"):
            with pytest.raises(AttributeError, match=f"{name} of the current task cannot be changed"):
                setattr(only(), name, 5)

    def test_objects_of_one_run_are_equal(self) -> None:
        @lambda_task
        def looking_twice() -> None:
            look()
            look()

        run(looking)
        run(looking_twice)
        other, first, second = seen
        assert first == second
        assert first != other
        assert len({first, second, other}) == 2


@pytest.mark.django_db(transaction=True)
class TestWhere:
    @pytest.mark.parametrize("way", WAYS)
    def test_threads_of_a_task_belong_to_it(self, way: str) -> None:
        message_id = run(looking_elsewhere, way=way)
        assert only().message_id == message_id

    def test_coroutines_and_their_threads_belong_to_it(self) -> None:
        message_id = run(looking_in_coroutines)
        assert [task and task.message_id for task in seen] == [message_id] * 4

    def test_directly_called_task_belongs_to_its_caller(self) -> None:
        run(calling_another)
        assert {task and task.task_name for task in seen} == {calling_another.name}

    def test_direct_call_has_none(self) -> None:
        looking()
        assert seen == [None]

    @pytest.mark.parametrize("task", [looking, raising], ids=lambda task: task.__name__)
    def test_there_is_none_between_tasks(self, task: Any) -> None:
        run(task)
        for way in WAYS.values():
            seen.clear()
            way()
            assert seen == [None]

    def test_callback_after_commit_has_none(self) -> None:
        run(looking_after_commit)
        assert seen == [None]

    def test_wrapper_of_the_call_sees_it(self) -> None:
        class Wrapper:
            @hookimpl(wrapper=True)
            def lambda_task_call(self) -> Any:
                look()
                return (yield)

        with override_settings(LAMBDA_TASKS_PLUGINS=[Wrapper()]):
            message_id = run(raising)
        assert only().message_id == message_id

    def test_task_run_inside_a_task_is_its_own(self) -> None:
        @lambda_task
        def nesting() -> None:
            look()
            SQSLambdaTaskMessage(task_name=looking.name).execute_immediately()
            look()

        run(nesting)
        assert [task and task.task_name for task in seen] == [nesting.name, looking.name, nesting.name]


@pytest.mark.django_db(transaction=True)
class TestEagerMode:
    def test_eager_task_has_values_without_limits(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = looking.execute_on_commit()
        task = only()
        assert (task.message_id, task.attempt, task.request_id) == (handle.message_id, 1, None)
        assert (task.seconds_left(), task.seconds_left_in_invocation()) == (math.inf, math.inf)
        assert task.sent_at is not None

    @pytest.mark.parametrize("way", ["thread", "pool"])
    def test_plain_threads_may_belong_to_others(self, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The process may serve requests in other threads meanwhile."""
        with override_settings(LAMBDA_TASKS_EAGER=True):
            looking_elsewhere.execute_on_commit(way=way)
        assert seen == [None]

    def test_eager_retries_are_attempts(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            busy.execute_on_commit()
        assert [task and task.attempt for task in seen] == [1, 2, 3]

    def test_testing_queue_runs_tasks_as_a_worker(self) -> None:
        with collect_tasks() as queue:
            handle = looking.execute_on_commit()
            queue.run_until_idle()
        assert only().message_id == handle.message_id
        assert only().seconds_left() < math.inf


@lambda_task(retry=RetryPolicy(on=(Busy,), max_age=600, delay=60, jitter=False))
def aging() -> None: ...


@lambda_task(retry={Busy: RetryPolicy(max_retries=1), OSError: RetryPolicy(max_retries=3)})
def by_class() -> None: ...


@lambda_task(retry=RetryPolicy(on=(RetryLater,), max_retries=1))
def patient() -> None: ...


class TestLastAttempt:
    @pytest.mark.parametrize(
        ("task", "last"), [(looking, 0), (busy, 2), (by_class, 3), (patient, 1)], ids=lambda value: str(value)[:40]
    )
    def test_last_attempt_is_the_one_without_retry(self, task: Any, last: int) -> None:
        found = [current_in(run_of(task, n_retries=number)).is_last_attempt for number in range(last + 2)]
        assert found == [False] * last + [True, True]

    def test_setting_is_the_default(self) -> None:
        with override_settings(LAMBDA_TASKS_MAX_RETRIES=4):
            assert not current_in(run_of(aging, n_retries=3)).is_last_attempt
            assert current_in(run_of(aging, n_retries=4)).is_last_attempt

    def test_age_ends_the_chain_too(self) -> None:
        now = time.time()
        assert not current_in(run_of(aging, first_sent=now - 530)).is_last_attempt
        assert current_in(run_of(aging, first_sent=now - 550)).is_last_attempt


class TestTimes:
    def test_retries_have_the_time_of_their_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ids, "_last_moment", 0)  # ids never go back, even after a clock that was ahead
        run = run_of(looking)
        sent_at = current_in(run).sent_at
        assert sent_at is not None
        assert sent_at.tzinfo is timezone.utc
        assert abs(sent_at.timestamp() - time.time()) < 60
        retry = replace(run, message_id=ids.retry_id(run.root_id, 1), first_sent=time.time() + 900)
        assert current_in(retry).sent_at == sent_at

    def test_age_of_a_retry_starts_with_its_first(self) -> None:
        """SQS tells a plain retry only when it has accepted the retry itself."""
        retry = run_of(looking, n_retries=1, first_sent=time.time() + 900)
        assert retry.age is not None
        assert retry.age > -60

    @pytest.mark.parametrize(
        ("first_sent", "sent_at"),
        [(1_800_000_000.25, datetime(2027, 1, 15, 8, 0, 0, 250_000, timezone.utc)), (None, None)],
    )
    def test_foreign_id_leaves_the_time_of_sqs(self, first_sent: float | None, sent_at: datetime | None) -> None:
        run = run_of(looking, root_id=ids.canonical_id("a message of another program"), first_sent=first_sent)
        assert current_in(run).sent_at == sent_at

    def test_received_and_scheduled_times_are_aware(self) -> None:
        task = current_in(run_of(looking, received=1_800_000_000.0, scheduled_for=1_799_999_940.0))
        assert task.received_at == datetime(2027, 1, 15, 8, tzinfo=timezone.utc)
        assert task.scheduled_for == task.received_at - timedelta(minutes=1)

    def test_seconds_left_are_those_of_the_soft_limit(self) -> None:
        now = [100.0]
        limits = TimeLimits(30, 60, clock=lambda: now[0])
        task = current_in(run_of(looking), limits)
        with limits:
            now[0] += 10
            assert task.seconds_left() == 20
            now[0] += 25
            assert task.seconds_left() == 0

    def test_invocation_ends_at_its_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(current.time, "monotonic", lambda: 50.0)
        assert current_in(run_of(looking, deadline=70.0)).seconds_left_in_invocation() == 20
        assert current_in(run_of(looking, deadline=40.0)).seconds_left_in_invocation() == 0
        assert current_in(run_of(looking, deadline=None)).seconds_left_in_invocation() == math.inf


@pytest.mark.django_db(transaction=True)
class TestInvocation:
    def test_handler_passes_the_context(self) -> None:
        run(looking, context=Context())
        assert only().request_id == Context.aws_request_id
        assert 0 < only().seconds_left_in_invocation() <= 60

    @pytest.mark.parametrize("request_id", [None, 5])
    def test_substitute_context_has_no_request_id(self, request_id: Any) -> None:
        context = type("Substitute", (), {"aws_request_id": request_id})()
        run(looking, context=context)
        assert only().request_id is None

    def test_first_sent_is_the_time_of_sqs(self) -> None:
        message_id = str(ids.canonical_id("a message of another program"))
        record = event_record(Job(Invocation(looking.name), message_id, root_id=message_id))
        record["attributes"]["SentTimestamp"] = "1800000000000"
        assert handler({"Records": [record]}, None) == {"batchItemFailures": []}
        assert only().sent_at == datetime(2027, 1, 15, 8, tzinfo=timezone.utc)

    def test_cancelled_asks_one_function(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Run] = []
        monkeypatch.setattr(cancelled, "is_cancelled", lambda run: not asked.append(run))
        message_id = run(looking)
        assert only().cancelled
        assert [each.message_id for each in asked] == [message_id]
