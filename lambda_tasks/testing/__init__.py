"""Help for tests of projects that use the library: collect what was enqueued, and run it.

    with collect_tasks() as queue:
        with queue.commit():              # only in tests that run inside a transaction
            client.post("/register/")
        assert queue.task_names == ["shop.tasks.send_welcome_email"]
        queue.run_until_idle()            # through the real handler

With pytest the fixture `lambda_tasks_queue` gives the same queue.
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

#: For LAMBDA_TASKS_LOCK: the lock of singleton tasks on a Redis that exists only in the test's process.
FAKEREDIS_LOCK: Final[dict[str, Any]] = {
    "BACKEND": "lambda_tasks.locks.redis.RedisLock",
    "OPTIONS": {"client": "fakeredis.FakeRedis"},
}

#: Batches after which `run_until_idle` believes that it would never end.
_MAX_BATCHES: Final = 1_000


class TaskQueue:
    """The queue of a test: it keeps what was sent, and plays SQS and Lambda when asked to."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._receives: dict[str, int] = {}

    @property
    def jobs(self) -> list[Job]:
        """What waits on the queue, oldest first."""
        return list(self._backend.jobs)

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks that wait, oldest first."""
        return [job.task_name for job in self._backend.jobs]

    @contextmanager
    def commit(self, using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
        """Do at the end of the block what a commit would do: send the tasks that were enqueued in it.

        For tests inside a transaction that is rolled back, as Django's `TestCase` and pytest-django's
        `db` are. Without it nothing is ever committed there, and so nothing sent.
        """
        with TestCase.captureOnCommitCallbacks(using=using, execute=True):
            yield

    def run(self, count: int = 10, *, context: Any = None) -> list[Job]:
        """Run a batch of up to `count` jobs through `lambda_tasks.handler.handler`.

        Delays are not waited for. Returns the jobs that were not acknowledged; they are back at the
        end of the queue. What tasks raise is in their records.
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
        """Run batches, and what they send in turn, until the queue is empty; return how many jobs ran.

        Raises AssertionError if a batch gets nothing done, or there is no end of it.
        """
        ran = 0
        for _ in range(_MAX_BATCHES):
            waiting = self._backend.jobs[:10]
            if not waiting:
                return ran
            kept = self.run(len(waiting))
            if len(kept) == len(waiting):
                names = ", ".join(job.task_name for job in kept)
                raise AssertionError(f"None of these was acknowledged; the log says why: {names}.")
            ran += len(waiting) - len(kept)
        raise AssertionError(f"The queue is not empty after {_MAX_BATCHES} batches; it holds {self.task_names[:10]}.")

    def clear(self) -> None:
        """Forget what waits."""
        self._backend.jobs.clear()

    def _committing(self) -> AbstractContextManager[Any]:
        # What a task enqueues waits for a commit that a test's transaction never makes.
        if connections[DEFAULT_DB_ALIAS].in_atomic_block:
            return self.commit()
        return nullcontext()


@contextmanager
def collect_tasks() -> Iterator[TaskQueue]:
    """Keep what is enqueued inside the block in a `TaskQueue`, whatever the settings say.

    There is no outbox in between; delays may be as long as it allows, if the settings have one.
    """
    backend = {"BACKEND": MEMORY_BACKEND, "OPTIONS": {"max_delay": longest_delay()}}
    with override_settings(LAMBDA_TASKS_BACKEND=backend, LAMBDA_TASKS_EAGER=False, LAMBDA_TASKS_OUTBOX=False):
        yield TaskQueue(cast(MemoryBackend, get_backend()))
