"""`max_retries` and `retry_backoff`: how often a task is retried, and how a storm of retries dies down."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks import default_plugin, identity
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import LockError, MaxRetriesExceededError
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.models import SQSLambdaTaskMessage, TaskRecord
from lambda_tasks.outcomes import Retry
from lambda_tasks.strategies import get_backend, get_lock
from tests.app.models import Effect


class Busy(Exception):
    pass


class Dependency:
    """Another service, by the clock of the test: it is away for its first `outage` seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.outage = 0.0
        self.calls = 0

    def call(self) -> None:
        self.calls += 1
        if self.now < self.outage:
            raise Busy


dependency = Dependency()


@lambda_task(retry_on=[Busy], retry_delay=1, retry_backoff=True)
def with_backoff(*, name: str) -> None:
    dependency.call()
    Effect.objects.create(name=name)


@lambda_task(retry_on=[Busy], retry_delay=1)
def without_backoff(*, name: str) -> None:
    dependency.call()
    Effect.objects.create(name=name)


@lambda_task(retry_on=[Busy], max_retries=2)
def twice_more() -> None:
    raise Busy


@lambda_task(retry_on=[Busy], max_retries=0)
def never_more() -> None:
    raise Busy


@lambda_task(singleton=True, max_retries=1)
def alone() -> None: ...


@pytest.fixture(autouse=True)
def _start_anew() -> None:
    backend().jobs.clear()
    dependency.now = dependency.outage = 0.0
    dependency.calls = 0


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def chain_of(task: Any, /, **arguments: Any) -> list[str]:
    """Run the task and its retries until there is no more; return the statuses of their records."""
    handle = task.execute_on_commit(**arguments)
    while records := backend().take_records():
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
    chain = TaskRecord.objects.filter(root_id=handle.message_id).order_by("n_retries")
    return list(chain.values_list("status", flat=True))


@pytest.mark.django_db(transaction=True)
class TestMaxRetries:
    def test_a_tasks_own_limit_comes_before_that_of_the_settings_whichever_is_higher(self) -> None:
        for setting in (0, 1, 2880):
            with override_settings(LAMBDA_TASKS_MAX_RETRIES=setting):
                assert chain_of(twice_more) == ["RETRYING", "RETRYING", "FAILED"]
                assert chain_of(never_more) == ["FAILED"]

    def test_the_error_names_the_limit_that_was_reached(self) -> None:
        chain_of(twice_more)
        assert (
            f"{twice_more.name} wants to be retried after 2 retries, and its max_retries is 2. "
            "The last error was Busy." in TaskRecord.objects.get(status="FAILED").traceback
        )
        TaskRecord.objects.all().delete()
        dependency.outage = 1.0
        with override_settings(LAMBDA_TASKS_MAX_RETRIES=1):
            assert chain_of(without_backoff, name="a") == ["RETRYING", "FAILED"]
        assert "after 1 retries, and LAMBDA_TASKS_MAX_RETRIES is 1." in (
            TaskRecord.objects.get(status="FAILED").traceback
        )

    def test_it_is_raised_out_of_an_immediate_execution(self) -> None:
        message = SQSLambdaTaskMessage(task_name=twice_more.name, n_retries=2)
        with pytest.raises(MaxRetriesExceededError, match="its max_retries is 2"):
            message.execute_immediately()

    def test_it_counts_for_retries_that_nobody_listed_too(self) -> None:
        """A singleton that finds its lock taken is retried without a `retry_on`."""
        with override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock"):
            get_lock().acquire(f"lambda_tasks.singleton_lock.{alone.name}", token="another", timeout=60)
            assert chain_of(alone) == ["RETRYING", "FAILED"]

    def test_it_holds_in_eager_mode(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            twice_more.execute_on_commit()
        assert TaskRecord.objects.count() == 3


def delays(task: LambdaTaskWrapper[..., Any], n_retries: int, error: BaseException | None = None) -> Iterator[int]:
    """Draw delays of the retry that comes after so many, as the executor asks for them."""
    message = SQSLambdaTaskMessage(task_name=task.name, n_retries=n_retries)
    message_id = identity.new_message_id()
    run = Run(
        message=message,
        message_id=message_id,
        root_id=message_id,
        task=task,
        queue="default",
        arguments={},
        soft_timeout=1,
        hard_timeout=2,
        lease=9,
        database="default",
    )
    while True:
        outcome = default_plugin.lambda_task_classify(run=run, error=error or Busy())
        assert isinstance(outcome, Retry)
        yield outcome.delay


class TestBackoff:
    @pytest.mark.parametrize(
        ("n_retries", "longest"), [(0, 3), (1, 6), (2, 12), (8, 768), (9, 900), (10, 900), (2**31 - 2, 900)]
    )
    def test_the_delay_is_drawn_from_a_range_that_doubles_up_to_what_sqs_takes(
        self, n_retries: int, longest: int
    ) -> None:
        @lambda_task(retry_on=[Busy], retry_delay=3, retry_backoff=True)
        def task() -> None: ...

        drawn = [delay for delay, _ in zip(delays(task, n_retries), range(3_000), strict=False)]
        assert min(drawn) >= 1
        assert max(drawn) <= longest
        # Full jitter: all of the range is used, and evenly. The odds against each line are beyond a billion to one.
        assert min(drawn) <= 1 + longest // 20
        assert max(drawn) >= longest - longest // 20
        assert abs(sum(drawn) / len(drawn) - (1 + longest) / 2) <= longest / 20

    def test_one_that_begins_with_more_than_sqs_waits_needs_the_outbox_and_does_not_grow(self) -> None:
        def task() -> None: ...

        with pytest.raises(ValueError, match=r"retry_delay is 5000; .* 0 to 900, .* LAMBDA_TASKS_OUTBOX = True"):
            lambda_task(retry_on=[Busy], retry_delay=5_000, retry_backoff=True)(task)
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            patient = lambda_task(retry_on=[Busy], retry_delay=5_000, retry_backoff=True)(task)
            for n_retries in (0, 7):
                drawn = [delay for delay, _ in zip(delays(patient, n_retries), range(1_000), strict=False)]
                assert 4_000 < max(drawn) <= 5_000

    def test_without_a_longer_one_of_its_own_the_outbox_makes_no_delay_longer_than_sqs_waits(self) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            for options in ({"retry_delay": 900}, {"retry_delay": 600, "retry_backoff": True}):

                @lambda_task(retry_on=[Busy], **options)  # type: ignore[call-overload, misc]  # one at a time
                def task() -> None: ...

                assert max(delay for delay, _ in zip(delays(task, 9), range(1_000), strict=False)) <= 900

    def test_a_lock_that_is_taken_is_waited_for_in_the_same_way(self) -> None:
        @lambda_task(retry_on=[Busy], retry_delay=100, retry_backoff=True, singleton=True)
        def task() -> None: ...

        drawn = {delay for delay, _ in zip(delays(task, 2, LockError()), range(1_000), strict=False)}
        assert max(drawn) > 300

    @pytest.mark.django_db(transaction=True)
    def test_a_plugins_delay_comes_first(self) -> None:
        class Punctual:
            @hookimpl
            def lambda_task_retry_delay(self) -> int:
                return 77

        dependency.outage = 1.0
        with override_settings(LAMBDA_TASKS_PLUGINS=[Punctual()]):
            with_backoff.execute_on_commit(name="a")
            handler({"Records": backend().take_records()}, None)
        assert [job.delay for job in backend().take()] == [77]

    def test_chains_last_as_long_as_the_page_says(self) -> None:
        """The table of docs/howto/retries.md: the sum of the longest delays, and half of it on the average."""

        def longest(retry_delay: int, max_retries: int) -> int:
            return sum(min(retry_delay * 2**n, 900) for n in range(max_retries))

        assert longest(1, 5) == 31
        assert longest(1, 10) == 1_023
        assert longest(30, 5) == 30 + 60 + 120 + 240 + 480 == 930
        assert longest(30, 10) == 930 + 5 * 900 == 5_430
        assert longest(30, 100) == 86_430
        assert longest(30, 2880) == 930 + 2875 * 900


OUTAGE = 3600.0
TASKS = 100


class TestStorm:
    """A dependency is down for an hour, and a hundred tasks want it. Nobody sleeps: the clock is the test's."""

    @staticmethod
    def attempts(task: LambdaTaskWrapper[..., Any]) -> list[float]:
        """Return the moments of all attempts, of all tasks, until the last one has got through."""
        moments: list[float] = []
        waiting: list[tuple[float, int, int]] = [(0.0, number, 0) for number in range(TASKS)]
        while waiting:
            now, number, n_retries = heapq.heappop(waiting)
            moments.append(now)
            if now < OUTAGE:
                heapq.heappush(waiting, (now + next(delays(task, n_retries)), number, n_retries + 1))
        return moments

    def test_backoff_makes_a_trickle_of_it(self) -> None:
        storm, calm = self.attempts(without_backoff), self.attempts(with_backoff)
        # Every four seconds each, against the ten doublings and then one every 450 s on the average.
        assert len(storm) > 80_000
        assert len(calm) < 3_000
        # The price: the last one comes up to 15 minutes late.
        assert max(calm) < OUTAGE + 900

    def test_what_failed_together_does_not_come_back_together(self) -> None:
        calm = self.attempts(with_backoff)
        seconds = [int(moment) for moment in calm if moment > OUTAGE / 2]
        assert max(seconds.count(second) for second in set(seconds)) <= TASKS // 10

    @pytest.mark.django_db(transaction=True)
    def test_through_the_handler_every_task_is_done_once_when_the_dependency_is_back(self) -> None:
        dependency.outage = OUTAGE
        waiting: list[tuple[float, str, Any]] = []

        def queue_up() -> None:
            for job in backend().take():
                heapq.heappush(waiting, (dependency.now + job.delay, job.message_id, job))

        for number in range(5):
            with_backoff.execute_on_commit(name=str(number))
        queue_up()
        while waiting:
            dependency.now, _, job = heapq.heappop(waiting)
            assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
            queue_up()
        assert sorted(Effect.objects.values_list("name", flat=True)) == list("01234")
        assert 5 * 10 < dependency.calls < 5 * 40
        assert OUTAGE <= dependency.now < OUTAGE + 900
