"""Locks and random numbers for processes that are copied: by a fork, or from a snapshot of Lambda SnapStart.

A fork copies the locks that other threads hold, but not the threads that would release them. A child process that
acquires such a lock waits indefinitely. A snapshot copies the state of Python's random number generator.
"""

from __future__ import annotations

import os
import threading
from random import SystemRandom
from types import TracebackType
from typing import Final
from weakref import WeakSet

#: Random numbers from the operating system. The module `random` would give each environment that is restored from one
#: snapshot the same jitter, so that their retries would collide.
random: Final = SystemRandom()


class ForkSafeLock:
    """A reentrant lock for `with`, which is free in a forked process.

    The fork may interrupt the code inside the lock: the child does not have the thread that ran it. That code must
    therefore be able to start again. If the thread that forks holds the lock itself, it also holds it in the child.
    """

    __slots__ = ("__weakref__", "_depth", "_lock", "_owner")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._depth = 0
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
        self._lock.release()

    def free_from_others(self) -> None:
        """Free the lock unless the calling thread holds it. In a child process, there are no other threads."""
        if self._owner != threading.get_ident():
            self._lock, self._owner, self._depth = threading.RLock(), None, 0


_locks: Final[WeakSet[ForkSafeLock]] = WeakSet()


def _free_all() -> None:
    for lock in list(_locks):
        lock.free_from_others()


os.register_at_fork(after_in_child=_free_all)
