"""A transport that survives SIGKILL, and a separate lock for each run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import redis

from lambda_tasks.backends.base import BaseBackend, Taken
from lambda_tasks.jobs import Job
from lambda_tasks.locks.redis import RedisLock
from lambda_tasks.strategies import get_lock
from lambda_tasks.wire.stored import Stored

if TYPE_CHECKING:
    from lambda_tasks.backends.large_arguments import LargeArguments

#: Part of the keys that tell which locks are held, and how many milliseconds earlier than the locks they expire.
_PROMISE: Final = "promise "
_MARGIN: Final = 1_000
#: The end of the name of the task whose arguments are stored outside of its messages.
LARGE: Final = ".large"


class SendFailed(Exception):
    """SQS did not answer, so it is unknown whether it has accepted the message."""


class FileBackend(BaseBackend):
    """Append each job to a file in one write, so that a sent message survives the death of any process."""

    file: ClassVar[Path]
    #: Whether the next send fails "before" or "after" its effect.
    next_failure: ClassVar[str | None] = None
    #: Whether every send fails without effect, in this process and in processes that are forked meanwhile.
    unavailable: ClassVar[bool] = False
    stows = True

    def stow(self, job: Job) -> Job:
        """Store the arguments of one task outside of its messages, as if they were too large."""
        if job.message.stored is not None:
            _large_arguments().renew(job.message.stored, delay=job.delay)
            return job
        if not job.task_name.endswith(LARGE):
            return job
        stowed = _large_arguments().stow(job)
        assert stowed.message.stored is not None
        # For the simulation itself, which must know the order even if the protocol loses its arguments.
        self.file.with_name(stowed.message.stored.key).write_text(str(job.message.kwargs["order"]))
        return stowed

    def fetch(self, stored: Stored) -> str:
        return _large_arguments().fetch(stored)

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


def _large_arguments() -> LargeArguments:
    from lambda_tasks.backends.large_arguments import LargeArguments  # after Django is set up

    return LargeArguments()


def _as_sent(job: Job) -> dict[str, Any]:
    return {"body": job.message.to_body(), "attributes": job.message_attributes(), "delay": job.delay}


class PrefixedRedisLock(RedisLock):
    """A `RedisLock` with keys that differ from those of other runs on the same server, and that can be lost."""

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        acquired = super().acquire(key, token=token, timeout=timeout)
        if acquired:
            # It tells for how long the lock must not be lost, and expires a little earlier.
            self.client.set(f"{self._prefix}{_PROMISE}{token} {key}", 1, px=int(timeout * 1000) - _MARGIN)
        return acquired

    def release(self, key: str, *, token: str) -> None:
        super().release(key, token=token)
        self.client.delete(f"{self._prefix}{_PROMISE}{token} {key}")

    def is_robbed(self, token: str) -> bool:
        """Return whether `token` has lost a lock that it has not released and whose time is not over."""
        promise = f"{self._prefix}{_PROMISE}{token} "
        with suppress(redis.ConnectionError):
            keys = [key.decode().removeprefix(promise) for key in self.client.keys(f"{promise}*")]
            return any(self.client.get(self._prefix + key) != token.encode() for key in keys)
        return False

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
