"""The queue of a test, which plays SQS and Lambda."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections
from django.test import TestCase

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.definition.task import Task
from lambda_tasks.execution.pipeline import lease_for
from lambda_tasks.failpoints import WorkerKilled
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.settings import app_settings
from lambda_tasks.testing.clock import QueueClock
from lambda_tasks.testing.crashing import PlannedCrashes
from lambda_tasks.testing.errors import TaskErrors
from lambda_tasks.testing.expected import described, matching, missing_text

#: The number of batches after which `run_until_idle()` gives up.
_MAX_BATCHES: Final = 1_000
#: The number of messages in a batch.
_BATCH_SIZE: Final = 10
#: Seconds that are added to a lease, so that it has expired.
_AFTER_LEASE: Final = 1


class TaskQueue:
    """The queue of a test, which stores the jobs that were sent, and runs them like SQS and Lambda on request."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._clock = QueueClock(backend)
        self._crashes = PlannedCrashes()
        self._errors = TaskErrors()
        self._receives: dict[str, int] = {}
        self._acknowledged: list[Job] = []

    @property
    def jobs(self) -> list[Job]:
        """The jobs that wait on the queue, oldest first."""
        return list(self._backend.jobs)

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks of the waiting jobs, oldest first."""
        return [job.task_name for job in self._backend.jobs]

    @contextmanager
    def commit(self, using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
        """Send the tasks that were enqueued in the block, as if a transaction committed at its end.

        Use this in tests that run inside a transaction that is rolled back, such as those with Django's `TestCase` or
        pytest-django's `db`. Otherwise such a test never commits, so no tasks are sent.
        """
        with TestCase.captureOnCommitCallbacks(using=using, execute=True):
            yield

    def assert_enqueued(self, task: Task, /, **arguments: Any) -> Job:
        """Return the first waiting job of `task` with these arguments; other arguments may have any value.

        Raise AssertionError with the waiting jobs if there is none, and TypeError for an argument that the task lacks.
        """
        found = matching(self._backend.jobs, task, arguments)
        if not found:
            raise AssertionError(missing_text(task, arguments, self._backend.jobs, ran=self._acknowledged))
        return found[0]

    def assert_not_enqueued(self, task: Task, /, **arguments: Any) -> None:
        """Raise AssertionError if such a job of `task` waits, or TypeError like `assert_enqueued()`."""
        if found := matching(self._backend.jobs, task, arguments):
            raise AssertionError(f"{task.name} must not be enqueued, but is: {'; '.join(map(described, found))}.")

    def run(self, count: int = _BATCH_SIZE, *, context: Any = None) -> list[Job]:
        """Run a batch of up to `count` jobs with `lambda_tasks.handler.handler`, without waiting for delays.

        Return the jobs that were not acknowledged, which are put back at the end of the queue. Exceptions of tasks are
        in their records. A message that was delivered twice is not twice in a batch.
        """
        return self._run_batch(self._backend.jobs, count, context)

    def run_until_idle(self, *, raise_errors: bool = True) -> int:
        """Run batches until the queue is empty, including the jobs that tasks send, and return how many jobs ran.

        If tasks have failed, raise the exception of the first one afterwards, with a note that names the task and
        its id. With `raise_errors=False`, exceptions are only in the records. Errors that a task ignores or retries,
        and the end of a cancelled task, are not raised.

        After a crash by `crash_at()`, time passes until the lease of the worker has expired.

        Raise AssertionError if no job of a batch is acknowledged, if the queue is not empty after 1,000 batches, or if
        no worker reached a point of `crash_at()`.
        """
        return self._run_all(lambda: self._backend.jobs, raise_errors=raise_errors)

    def run_due(self, *, raise_errors: bool = True) -> int:
        """Do the same as `run_until_idle()` with the jobs whose delay has passed; `advance()` lets time pass."""
        return self._run_all(self._clock.due, raise_errors=raise_errors)

    def redeliver(self, *jobs: Job) -> list[Job]:
        """Put acknowledged jobs back on the queue, all by default, as SQS may deliver a deleted message again.

        Return these jobs. Raise ValueError for a job that was not acknowledged, or if none was.
        """
        acknowledged = {job.message_id: job for job in self._acknowledged}
        for job in jobs:
            if job.message_id not in acknowledged:
                raise ValueError(f"Only an acknowledged job can be redelivered, not {described(job)}. Run it first.")
        if not acknowledged:
            raise ValueError("No job was acknowledged yet, so none can be redelivered. Call run_until_idle() first.")
        chosen = [acknowledged[job.message_id] for job in jobs] or list(acknowledged.values())
        ids = {job.message_id for job in chosen}
        self._acknowledged = [job for job in self._acknowledged if job.message_id not in ids]
        self._put_back(chosen)
        return chosen

    def crash_at(self, point: str) -> None:
        """Let the next worker that reaches `point` die there, as if its process was killed.

        `point` is one of `lambda_tasks.failpoints.POINTS`, such as "task:leave". The worker's transaction is rolled
        back and its connections are closed, nothing else of its batch runs, its lock and its lease stay, and no message
        of the batch is acknowledged. Call this again for further workers.

        Inside a transaction of the test, such as in Django's `TestCase`, only the worker's savepoint is rolled back.
        """
        self._crashes.plan(point)

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass for delays, leases, schedules, ages, and the rows of the library's tables.

        `run_due()` then runs the jobs whose delay has passed, another worker takes over a run whose lease has expired,
        and `tick()` starts periodic tasks. The system's clock, and the locks of singleton tasks, do not change.

        `seconds` is a number from 0 to one year, or a timedelta.
        """
        self._clock.advance(seconds)

    def tick(self) -> int:
        """Start the periodic tasks that are due, and return how many jobs this sent.

        Schedules begin with the queue, and `advance()` lets time pass for them.
        """
        return self._clock.tick()

    def clear(self) -> None:
        """Discard the waiting jobs, as if they had not been sent, so that they do not hold the keys of unique tasks."""
        for job in self._backend.take():
            if job.unsent is not None:
                job.unsent()

    def _run_all(self, waiting: Callable[[], list[Job]], *, raise_errors: bool) -> int:
        self._errors.clear()
        ran = 0
        for _ in range(_MAX_BATCHES):
            if not (chosen := waiting()[:_BATCH_SIZE]):
                break
            deaths = self._crashes.deaths
            kept = self._run_batch(chosen)
            if self._crashes.deaths > deaths:
                self.advance(max(map(_lease_of, kept)) + _AFTER_LEASE)
            elif len(kept) == len({job.message_id for job in chosen}):
                names = ", ".join(job.task_name for job in kept)
                raise AssertionError(
                    f"No job of this batch was acknowledged: {names}. The log contains the reasons. If a worker that "
                    "died holds a lease, call advance() first."
                ) from self._errors.first
            ran += len({job.message_id for job in chosen}) - len(kept)
        else:
            left = self.task_names[:10]
            raise AssertionError(
                f"The queue must be empty after {_MAX_BATCHES} batches, not hold {left}."
            ) from self._errors.first
        self._crashes.refuse_unreached(self._errors.first)
        if raise_errors and (error := self._errors.first) is not None:
            raise error
        return ran

    def _run_batch(self, waiting: Sequence[Job], count: int = _BATCH_SIZE, context: Any = None) -> list[Job]:
        batch: dict[str, Job] = {}
        for job in waiting:
            if len(batch) < count:
                batch.setdefault(job.message_id, job)
        self._take(list(batch.values()))
        records = [event_record(job, receive_count=self._receives[job.message_id]) for job in batch.values()]
        response = self._invoke({"Records": records}, context)
        failed = list(batch) if response is None else [each["itemIdentifier"] for each in response["batchItemFailures"]]
        kept = [batch[message_id] for message_id in failed]
        self._acknowledged += [job for message_id, job in batch.items() if message_id not in failed]
        self._put_back(kept)
        return kept

    def _take(self, batch: Sequence[Job]) -> None:
        for job in batch:
            # Only the first of equal jobs, since a message may be on the queue twice.
            del self._backend.jobs[next(i for i, each in enumerate(self._backend.jobs) if each is job)]
            self._receives[job.message_id] = self._receives.get(job.message_id, 0) + 1
            self._clock.forget(job)

    def _put_back(self, jobs: Sequence[Job]) -> None:
        self._backend.jobs.extend(jobs)
        for job in jobs:
            self._clock.make_due(job)

    def _invoke(self, event: dict[str, Any], context: Any) -> dict[str, Any] | None:
        """Return the handler's response, or None if the worker died."""
        with self._errors.noted(), self._crashes.armed():
            try:
                with self._committing():
                    try:
                        return handler(event, context)
                    except WorkerKilled:
                        # Inside the test's transaction, the callbacks of what was committed before still have to run.
                        self._crashes.revive()
                        return None
            except WorkerKilled:
                return None

    def _committing(self) -> AbstractContextManager[Any]:
        # Jobs that a task enqueues would wait for a commit, but a test's transaction never commits.
        if connections[DEFAULT_DB_ALIAS].in_atomic_block:
            return self.commit()
        return nullcontext()


def _lease_of(job: Job) -> float:
    """Return the longest lease that a worker may hold for a job, in seconds."""
    return lease_for(app_settings.max_timeout if job.task is None else job.task.timeouts()[1])
