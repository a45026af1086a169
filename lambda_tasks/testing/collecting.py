"""Collect the tasks that a test enqueues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.strategies import get_backend, longest_delay
from lambda_tasks.testing.queue import TaskQueue

MEMORY_BACKEND: Final = "lambda_tasks.backends.memory.MemoryBackend"

#: A value for LAMBDA_TASKS_LOCK: the lock of singleton tasks on a fake Redis in the test's process.
FAKEREDIS_LOCK: Final[dict[str, Any]] = {
    "BACKEND": "lambda_tasks.locks.redis.RedisLock",
    "OPTIONS": {"client": "fakeredis.FakeRedis"},
}


@contextmanager
def collect_tasks() -> Iterator[TaskQueue]:
    """Collect the tasks that are enqueued inside the block in a `TaskQueue`, regardless of the settings.

    The outbox is not used, but if the settings have one, delays can be as long as with the outbox.
    """
    backend = {"BACKEND": MEMORY_BACKEND, "OPTIONS": {"max_delay": longest_delay()}}
    with override_settings(
        LAMBDA_TASKS_BACKEND=backend,
        LAMBDA_TASKS_EAGER=False,
        LAMBDA_TASKS_NOOP_EXECUTION=False,
        LAMBDA_TASKS_OUTBOX=False,
    ):
        yield TaskQueue(cast(MemoryBackend, get_backend()))
