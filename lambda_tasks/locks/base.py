"""The base class of locks."""

from __future__ import annotations

from abc import ABC, abstractmethod

from django.core.checks import CheckMessage


class BaseLock(ABC):
    """Base class of locks for singleton tasks.

    LAMBDA_TASKS_LOCK names the class, which is instantiated once per process. The OPTIONS of the setting are the
    keyword arguments of `__init__`. Methods may be called from any thread.
    `lambda_tasks.testing.contracts.LockContract` tests an implementation.
    """

    #: If `acquire()` raises, whether the task runs without its lock, and with a warning. Otherwise it is retried.
    fail_open: bool = False

    @abstractmethod
    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        """Acquire the lock for `token` without waiting, and return False if another token holds it.

        The lock expires after `timeout` seconds. If `token` already holds it (because the run of a worker that died is
        taken over), acquiring succeeds again, and restarts `timeout`.

        Any exception means that the lock is unavailable: see `fail_open`.
        """

    @abstractmethod
    def release(self, key: str, *, token: str) -> None:
        """Release the lock if `token` still holds it, and otherwise do nothing.

        An exception is logged and has no further effect, because the lock expires.
        """

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        """Acquire a second lock until the open transaction on `database` ends, without waiting.

        The library calls this inside the task's transaction, also with keys that were never passed to `acquire()`.
        Return False if another transaction holds the lock. In the same transaction, acquiring succeeds again. The
        default has no such lock, and returns True.
        """
        return True

    def ensure_configured(self) -> None:
        """Raise `ImproperlyConfigured` if the settings of the lock are invalid, without contacting a server.

        The library calls this before it records anything. Later, any exception means that the lock's server is
        unavailable.
        """
        return

    def check(self) -> list[CheckMessage]:
        """Return messages about the options for `manage.py check`."""
        return []
