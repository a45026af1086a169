"""Test helpers for projects that use the library: collect enqueued tasks, and run them.

    with collect_tasks() as queue:
        with queue.commit():              # only in tests that run inside a transaction
            client.post("/register/")
        assert queue.task_names == ["shop.tasks.send_welcome_email"]
        queue.run_until_idle()            # through the real handler

With pytest, the fixture `lambda_tasks_queue` returns the same kind of queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, cast

from django.db import DEFAULT_DB_ALIAS, connections
from django.test import TestCase, override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.strategies import get_backend, longest_delay

MEMORY_BACKEND: Final = "lambda_tasks.backends.memory.MemoryBackend"

#: A value for LAMBDA_TASKS_LOCK: the lock of singleton tasks on a fake Redis in the test's process.
FAKEREDIS_LOCK: Final[dict[str, Any]] = {
    "BACKEND": "lambda_tasks.locks.redis.RedisLock",
    "OPTIONS": {"client": "fakeredis.FakeRedis"},
}

#: The number of batches after which `run_until_idle()` gives up.
_MAX_BATCHES: Final = 1_000


class TaskQueue:
    """The queue of a test, which stores the jobs that were sent, and runs them like SQS and Lambda on request."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._receives: dict[str, int] = {}

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

    def run(self, count: int = 10, *, context: Any = None) -> list[Job]:
        """Run a batch of up to `count` jobs with `lambda_tasks.handler.handler`, without waiting for delays.

        Return the jobs that were not acknowledged, which are put back at the end of the queue. Exceptions of tasks are
        in their records.
        """
        batch = {job.message_id: job for job in self._backend.take(count)}
        for message_id in batch:
            self._receives[message_id] = self._receives.get(message_id, 0) + 1
        records = [event_record(job, receive_count=self._receives[job.message_id]) for job in batch.values()]
        with self._committing():
            response = handler({"Records": records}, context)
        kept = [batch[failure["itemIdentifier"]] for failure in response["batchItemFailures"]]
        self._backend.jobs.extend(kept)
        return kept

    def run_until_idle(self) -> int:
        """Run batches until the queue is empty, including the jobs that tasks send, and return how many jobs ran.

        Raise AssertionError if no job of a batch is acknowledged, or if the queue is not empty after 1,000 batches.
        """
        ran = 0
        for _ in range(_MAX_BATCHES):
            waiting = self._backend.jobs[:10]
            if not waiting:
                return ran
            kept = self.run(len(waiting))
            if len(kept) == len(waiting):
                names = ", ".join(job.task_name for job in kept)
                raise AssertionError(f"No job of this batch was acknowledged: {names}. The log contains the reasons.")
            ran += len(waiting) - len(kept)
        raise AssertionError(f"The queue must be empty after {_MAX_BATCHES} batches, not hold {self.task_names[:10]}.")

    def clear(self) -> None:
        """Discard the waiting jobs, as if they had not been sent, so that they do not hold the keys of unique tasks."""
        for job in self._backend.take():
            if job.unsent is not None:
                job.unsent()

    def _committing(self) -> AbstractContextManager[Any]:
        # Jobs that a task enqueues would wait for a commit, but a test's transaction never commits.
        if connections[DEFAULT_DB_ALIAS].in_atomic_block:
            return self.commit()
        return nullcontext()


@contextmanager
def collect_tasks() -> Iterator[TaskQueue]:
    """Collect the tasks that are enqueued inside the block in a `TaskQueue`, regardless of the settings.

    The outbox is not used, but if the settings have one, delays can be as long as with the outbox.
    """
    backend = {"BACKEND": MEMORY_BACKEND, "OPTIONS": {"max_delay": longest_delay()}}
    with override_settings(LAMBDA_TASKS_BACKEND=backend, LAMBDA_TASKS_EAGER=False, LAMBDA_TASKS_OUTBOX=False):
        yield TaskQueue(cast(MemoryBackend, get_backend()))
