"""`max_retries` and `retry_backoff`: the number of retries, and the end of a storm of retries."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import LockError, MaxRetriesExceededError
from lambda_tasks.execution import default_plugin
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Retry
from lambda_tasks.strategies import get_backend, get_lock
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect


class Busy(Exception):
    pass


class Dependency:
    """An external service that is unavailable for the first `outage` seconds of the test's clock."""

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


@lambda_task(singleton=True, max_retries=1)
def alone_with_own_lock() -> None:
    raise LockError("the task's own lock is taken")


@pytest.fixture(autouse=True)
def _reset() -> None:
    backend().jobs.clear()
    dependency.now = dependency.outage = 0.0
    dependency.calls = 0


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def chain_of(task: Any, /, **arguments: Any) -> list[str]:
    """Run the task and all of its retries, and return the statuses of their records."""
    handle = task.execute_on_commit(**arguments)
    while records := backend().take_records():
        assert handler({"Records": records}, None) == {"batchItemFailures": []}
    chain = TaskRecord.objects.filter(root_id=handle.message_id).order_by("n_retries")
    return list(chain.values_list("status", flat=True))


@pytest.mark.django_db(transaction=True)
class TestMaxRetries:
    def test_max_retries_of_the_task_overrides_the_setting(self) -> None:
        """The option applies even if it is higher than the setting."""
        for setting in (0, 1, 2880):
            with override_settings(LAMBDA_TASKS_MAX_RETRIES=setting):
                assert chain_of(twice_more) == ["RETRYING", "RETRYING", "FAILED"]
                assert chain_of(never_more) == ["FAILED"]

    def test_error_names_the_reached_limit(self) -> None:
        chain_of(twice_more)
        assert (
            f"{twice_more.name} failed after 2 retries, and its max_retries is 2. "
            "The last error was Busy." in TaskRecord.objects.get(status="FAILED").traceback
        )
        TaskRecord.objects.all().delete()
        dependency.outage = 1.0
        with override_settings(LAMBDA_TASKS_MAX_RETRIES=1):
            assert chain_of(without_backoff, name="a") == ["RETRYING", "FAILED"]
        assert "after 1 retry, and LAMBDA_TASKS_MAX_RETRIES is 1." in (
            TaskRecord.objects.get(status="FAILED").traceback
        )

    def test_immediate_execution_raises_the_error(self) -> None:
        message = SQSLambdaTaskMessage(task_name=twice_more.name, n_retries=2)
        with pytest.raises(MaxRetriesExceededError, match="its max_retries is 2"):
            message.execute_immediately()

    def test_contention_is_limited_only_by_the_setting(self) -> None:
        """A task that was never called is not FAILED because of its own `max_retries`."""
        with override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock", LAMBDA_TASKS_MAX_RETRIES=4):
            get_lock().acquire(f"lambda_tasks.singleton_lock.{alone.name}", token="another", timeout=60)
            assert chain_of(alone) == [*["RETRYING"] * 4, "FAILED"]
            assert "LAMBDA_TASKS_MAX_RETRIES is 4" in (TaskRecord.objects.get(status="FAILED").traceback or "")

    def test_lock_error_of_the_task_itself_counts(self) -> None:
        """The task uses a lock of its own, so it was called."""
        with override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock"):
            assert chain_of(alone_with_own_lock) == ["RETRYING", "FAILED"]

    def test_limit_applies_in_eager_mode(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            twice_more.execute_on_commit()
        assert TaskRecord.objects.count() == 3


def delays(task: LambdaTaskWrapper[..., Any], n_retries: int, error: BaseException | None = None) -> Iterator[int]:
    """Yield random delays of the retry after `n_retries` retries, as the executor gets them."""
    message = Invocation(task_name=task.name, n_retries=n_retries)
    message_id = ids.new_message_id()
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
    def test_range_of_delays_doubles_up_to_sqs_limit(self, n_retries: int, longest: int) -> None:
        @lambda_task(retry_on=[Busy], retry_delay=3, retry_backoff=True)
        def task() -> None: ...

        drawn = [delay for delay, _ in zip(delays(task, n_retries), range(3_000), strict=False)]
        assert min(drawn) >= 1
        assert max(drawn) <= longest
        # Full jitter uses the whole range evenly. Each line fails by chance less than once in a billion runs.
        assert min(drawn) <= 1 + longest // 20
        assert max(drawn) >= longest - longest // 20
        assert abs(sum(drawn) / len(drawn) - (1 + longest) / 2) <= longest / 20

    def test_first_delay_over_sqs_limit_requires_the_outbox(self) -> None:
        """A delay above the limit of SQS does not grow."""

        def task() -> None: ...

        with pytest.raises(
            ValueError, match=r"retry_delay must be .* 0 to 900, .* not 5000\. .* LAMBDA_TASKS_OUTBOX = True"
        ):
            lambda_task(retry_on=[Busy], retry_delay=5_000, retry_backoff=True)(task)
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            patient = lambda_task(retry_on=[Busy], retry_delay=5_000, retry_backoff=True)(task)
            for n_retries in (0, 7):
                drawn = [delay for delay, _ in zip(delays(patient, n_retries), range(1_000), strict=False)]
                assert 4_000 < max(drawn) <= 5_000

    def test_outbox_alone_does_not_raise_the_limit(self) -> None:
        """A delay exceeds the limit of SQS only if the task's own `retry_delay` does."""
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            for options in ({"retry_delay": 900}, {"retry_delay": 600, "retry_backoff": True}):

                @lambda_task(retry_on=[Busy], **options)  # type: ignore[call-overload, misc]  # one at a time
                def task() -> None: ...

                assert max(delay for delay, _ in zip(delays(task, 9), range(1_000), strict=False)) <= 900

    def test_backoff_applies_to_lock_contention(self) -> None:
        @lambda_task(retry_on=[Busy], retry_delay=100, retry_backoff=True, singleton=True)
        def task() -> None: ...

        drawn = {delay for delay, _ in zip(delays(task, 2, LockError()), range(1_000), strict=False)}
        assert max(drawn) > 300

    @pytest.mark.django_db(transaction=True)
    def test_delay_of_a_plugin_takes_precedence(self) -> None:
        class Punctual:
            @hookimpl
            def lambda_task_retry_delay(self) -> int:
                return 77

        dependency.outage = 1.0
        with override_settings(LAMBDA_TASKS_PLUGINS=[Punctual()]):
            with_backoff.execute_on_commit(name="a")
            handler({"Records": backend().take_records()}, None)
        assert [job.delay for job in backend().take()] == [77]

    def test_chains_last_as_long_as_documented(self) -> None:
        """The table in docs/howto/retries.md contains the sum of the longest delays; the average is half of it."""

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


@pytest.mark.thorough
class TestStorm:
    """A dependency of a hundred tasks is unavailable for an hour of simulated time."""

    @staticmethod
    def attempts(task: LambdaTaskWrapper[..., Any]) -> list[float]:
        """Return the times of all attempts of all tasks until the last task succeeds."""
        moments: list[float] = []
        waiting: list[tuple[float, int, int]] = [(0.0, number, 0) for number in range(TASKS)]
        while waiting:
            now, number, n_retries = heapq.heappop(waiting)
            moments.append(now)
            if now < OUTAGE:
                heapq.heappush(waiting, (now + next(delays(task, n_retries)), number, n_retries + 1))
        return moments

    def test_backoff_spreads_the_attempts(self) -> None:
        storm, calm = self.attempts(without_backoff), self.attempts(with_backoff)
        # Each task is attempted every four seconds; with backoff, after ten doublings, every 450 s on average.
        assert len(storm) > 80_000
        assert len(calm) < 3_000
        # In return, the last attempt comes up to 15 minutes late.
        assert max(calm) < OUTAGE + 900

    def test_failures_of_one_moment_are_retried_separately(self) -> None:
        calm = self.attempts(with_backoff)
        seconds = [int(moment) for moment in calm if moment > OUTAGE / 2]
        assert max(seconds.count(second) for second in set(seconds)) <= TASKS // 10

    @pytest.mark.django_db(transaction=True)
    def test_handler_runs_every_task_once_after_recovery(self) -> None:
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
