"""A lock in the memory of one process, for tests and for a single worker."""

from __future__ import annotations

import time
from collections.abc import Callable

from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.locks.base import BaseLock


class MemoryLock(BaseLock):
    """A lock that the threads of one process share."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._holders: dict[str, tuple[str, float]] = {}
        self._changing = ForkSafeLock()

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        with self._changing:
            holder, until = self._holders.get(key, (token, 0.0))
            if holder != token and self._clock() < until:
                return False
            self._holders[key] = (token, self._clock() + timeout)
            return True

    def release(self, key: str, *, token: str) -> None:
        with self._changing:
            if self._holders.get(key, ("", 0.0))[0] == token:
                del self._holders[key]
