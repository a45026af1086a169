"""What a lock is: two methods."""

from __future__ import annotations

from abc import ABC, abstractmethod

from django.core.checks import CheckMessage


class BaseLock(ABC):
    """Base class of locks for singleton tasks; chosen by LAMBDA_TASKS_LOCK and made once per process.

    The OPTIONS of the setting are the keyword arguments of `__init__`. Methods may be called from any
    thread. `lambda_tasks.testing.contracts.LockContract` checks an implementation.
    """

    #: Whether a task runs without its lock, and with a warning, where `acquire()` raises; else it is retried.
    fail_open: bool = False

    @abstractmethod
    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        """Take the lock for `token` without waiting; return False if another token holds it.

        It ends by itself after `timeout` seconds. Asked again by the token that holds it (the run of a
        worker that died is taken over), it succeeds, and `timeout` begins anew.

        Any exception means that the lock can be neither taken nor refused now; see `fail_open`.
        """

    @abstractmethod
    def release(self, key: str, *, token: str) -> None:
        """Give the lock back if `token` still holds it; otherwise do nothing.

        An exception is logged and has no further effect: the lock ends by itself.
        """

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        """Take the lock in the open transaction on `database` too, until that ends; do not wait.

        Called by the holder inside of the task's transaction, also with keys that `acquire()` never
        saw. Returns False if another transaction holds it; in the same transaction it succeeds again.
        The default has no such lock, and returns True.
        """
        return True

    def ensure_configured(self) -> None:
        """Raise `ImproperlyConfigured` if the settings make the lock impossible; ask no server.

        Called before anything is recorded. Later, any exception means that the lock's server is away.
        """
        return

    def check(self) -> list[CheckMessage]:
        """Return what `manage.py check` has to say about the options."""
        return []
