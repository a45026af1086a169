"""What connects the simulated workers: a transport that survives SIGKILL, and a lock of the run's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.jobs import Job
from lambda_tasks.locks.redis import RedisLock
from lambda_tasks.strategies import get_lock


class SendFailed(Exception):
    """SQS did not answer; whether it has taken the message is not known."""


class FileBackend(BaseBackend):
    """Appends each job to a file in one write, so that what was sent stays sent whoever is killed."""

    file: ClassVar[Path]
    #: "before" or "after": how the next send fails.
    next_failure: ClassVar[str | None] = None
    #: Whether every send fails without effect: for a process, or for all that are forked meanwhile.
    away: ClassVar[bool] = False

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        failure, FileBackend.next_failure = FileBackend.next_failure, None
        if failure == "before" or FileBackend.away:
            raise SendFailed("the connection was refused")
        lines = [json.dumps(_as_sent(job)) + "\n" for job in jobs]
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(handle, "".join(lines).encode())
        finally:
            os.close(handle)
        if failure == "after":
            raise SendFailed("the answer was lost")
        for job in jobs:
            taken(job)


def _as_sent(job: Job) -> dict[str, Any]:
    return {"body": job.message.to_body(), "attributes": job.message_attributes(), "delay": job.delay}


class PrefixedRedisLock(RedisLock):
    """A `RedisLock` whose keys no other run on the same server has."""

    def __init__(self, *, prefix: str, **options: Any) -> None:
        super().__init__(**options)
        self._prefix = prefix

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        return super().acquire(self._prefix + key, token=token, timeout=timeout)

    def release(self, key: str, *, token: str) -> None:
        super().release(self._prefix + key, token=token)

    def forget_everything(self) -> None:
        """Lose all locks, as a server that failed over to a replica that had not heard of them."""
        if keys := self.client.keys(f"{self._prefix}*"):
            self.client.delete(*keys)

    def pass_time(self, seconds: float) -> None:
        """Let all locks end so much earlier."""
        for key in self.client.keys(f"{self._prefix}*"):
            self.client.pexpire(key, max(int(self.client.pttl(key) - 1000 * seconds), 1))


def locks() -> PrefixedRedisLock:
    """Return the locks of this run."""
    lock = get_lock()
    assert isinstance(lock, PrefixedRedisLock)
    return lock
