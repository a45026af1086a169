"""A transport that survives SIGKILL, and a separate lock for each run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lambda_tasks.backends.base import BaseBackend, Taken
from lambda_tasks.jobs import Job
from lambda_tasks.locks.redis import RedisLock
from lambda_tasks.strategies import get_lock


class SendFailed(Exception):
    """SQS did not answer, so it is unknown whether it has accepted the message."""


class FileBackend(BaseBackend):
    """Append each job to a file in one write, so that a sent message survives the death of any process."""

    file: ClassVar[Path]
    #: Whether the next send fails "before" or "after" its effect.
    next_failure: ClassVar[str | None] = None
    #: Whether every send fails without effect, in this process and in processes that are forked meanwhile.
    unavailable: ClassVar[bool] = False

    def send(self, jobs: Sequence[Job]) -> list[Taken]:
        failure, FileBackend.next_failure = FileBackend.next_failure, None
        if failure == "before" or FileBackend.unavailable:
            raise SendFailed("the connection was refused")
        lines = [json.dumps(_as_sent(job)) + "\n" for job in jobs]
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, "".join(lines).encode())
        finally:
            os.close(handle)
        if failure == "after":
            raise SendFailed("the answer was lost")
        return [Taken(job) for job in jobs]


def _as_sent(job: Job) -> dict[str, Any]:
    return {"body": job.message.to_body(), "attributes": job.message_attributes(), "delay": job.delay}


class PrefixedRedisLock(RedisLock):
    """A `RedisLock` with keys that differ from those of other runs on the same server."""

    def __init__(self, *, prefix: str, **options: Any) -> None:
        super().__init__(**options)
        self._prefix = prefix

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        return super().acquire(self._prefix + key, token=token, timeout=timeout)

    def release(self, key: str, *, token: str) -> None:
        super().release(self._prefix + key, token=token)

    def lose_all(self) -> None:
        """Delete all locks, as after a failover to a replica without them."""
        if keys := self.client.keys(f"{self._prefix}*"):
            self.client.delete(*keys)

    def pass_time(self, seconds: float) -> None:
        """Let all locks expire that much earlier."""
        for key in self.client.keys(f"{self._prefix}*"):
            self.client.pexpire(key, max(int(self.client.pttl(key) - 1000 * seconds), 1))


def locks() -> PrefixedRedisLock:
    """Return the locks of this run."""
    lock = get_lock()
    assert isinstance(lock, PrefixedRedisLock)
    return lock
