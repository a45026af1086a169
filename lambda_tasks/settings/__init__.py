"""The settings, with their defaults. `values` checks what they contain.

Each access reads the value from the Django settings. A batch of messages reads each value once: `settled()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Generic, TypeVar, overload

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from lambda_tasks.exceptions import InvalidSetting, UnknownQueue
from lambda_tasks.settings import values
from lambda_tasks.settings.values import (
    DEFAULT_QUEUE,
    MAX_DELAY,
    MAX_FUNCTION_TIMEOUT,
    MAX_INSTANCES_TIMEOUT,
    MAX_KEPT_DELAY,
    MAX_TIMEOUT,
    MAX_VISIBILITY_TIMEOUT,
    MAX_WORKER_TIMEOUT,
    JobQueue,
    delay_constraint,
    delay_seconds,
    duration,
    strategy,
    whole_number,
)

__all__ = [
    "DEFAULT_QUEUE",
    "MAX_DELAY",
    "MAX_FUNCTION_TIMEOUT",
    "MAX_INSTANCES_TIMEOUT",
    "MAX_KEPT_DELAY",
    "MAX_TIMEOUT",
    "MAX_VISIBILITY_TIMEOUT",
    "MAX_WORKER_TIMEOUT",
    "PREFIX",
    "JobQueue",
    "LambdaTasksSettings",
    "Setting",
    "app_settings",
    "delay_constraint",
    "delay_seconds",
    "duration",
    "settled",
    "strategy",
    "timeout_seconds",
    "whole_number",
]

T = TypeVar("T")

PREFIX: Final = "LAMBDA_TASKS_"

_UNSET: Final = object()


def timeout_seconds(value: Any, name: str) -> int:
    """Check that a limit is an int from 1 to LAMBDA_TASKS_MAX_TIMEOUT, or raise TypeError or ValueError."""
    if type(value) is int and 1 <= value <= MAX_TIMEOUT:
        return value  # most limits cost no look at the settings
    longest = _longest_timeout()
    try:
        return whole_number(1, longest, unit="seconds")(value, name)
    except ValueError as error:
        raise ValueError(f"{error}{_remedy_for_long_timeout(value)}") from None


def _longest_timeout() -> int:
    try:
        return app_settings.max_timeout
    except InvalidSetting:
        raise
    except ImproperlyConfigured:  # Django has no settings yet
        return MAX_TIMEOUT


def _remedy_for_long_timeout(seconds: int) -> str:
    if seconds > MAX_WORKER_TIMEOUT:
        return " SQS hides a message for twelve hours at most: divide the work among several tasks."
    if seconds > MAX_INSTANCES_TIMEOUT:
        return (
            f" Lambda runs no function for more than {MAX_INSTANCES_TIMEOUT} s: divide the work among several tasks. "
            "If a worker or AWS Batch runs the task, set LAMBDA_TASKS_MAX_TIMEOUT to these seconds."
        )
    if seconds > 0:
        return " If the timeout of the function is longer, set LAMBDA_TASKS_MAX_TIMEOUT to it."
    return ""


#: Increases with each change of a Django setting, as by `override_settings`.
_changes = 0
#: Inside `settled()`: the number of changes before it, and the values that were read since.
_settled: ContextVar[tuple[int, dict[str, Any]] | None] = ContextVar("lambda_tasks_settings", default=None)


def _count_change(**kwargs: object) -> None:
    global _changes
    _changes += 1


setting_changed.connect(_count_change, dispatch_uid="lambda_tasks.settings")


@contextmanager
def settled() -> Iterator[None]:
    """Read and check each setting only once in the body of the `with` statement, unless Django reports a change."""
    before = _settled.set((_changes, {}))
    try:
        yield
    finally:
        _settled.reset(before)


class Setting(Generic[T]):
    """One setting: an attribute that reads and checks the value at each access, so that `override_settings` works."""

    def __init__(self, check: Callable[[Any, str], T], default: Any = _UNSET) -> None:
        self.check = check
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = PREFIX + name.upper()

    @overload
    def __get__(self, instance: None, owner: type) -> Setting[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Setting[T] | T:
        if instance is None:
            return self
        settled = _settled.get()
        known = settled[1] if settled is not None and settled[0] == _changes else None
        if known is not None and self.name in known:
            checked: T = known[self.name]
            return checked
        value = getattr(django_settings, self.name, self.default)
        if value is _UNSET:
            raise ImproperlyConfigured(f"{self.name} is not set. Add it to the Django settings.")
        try:
            checked = self.check(value, self.name)
        except (TypeError, ValueError) as error:
            raise InvalidSetting(str(error)) from None
        if known is not None:
            known[self.name] = checked
        return checked

    @property
    def is_set(self) -> bool:
        """Whether the Django settings contain the setting."""
        return hasattr(django_settings, self.name)


def _timeout_remedy(soft: int | None, hard: int | None, default_hard: int) -> str:
    """Return what to write instead of a soft timeout that is not shorter than the hard timeout."""
    if soft is None and hard is None:
        soft, hard = _valid_pair(None, default_hard)
        return (
            f"Set LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT = {soft} and LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT = {hard}, for "
            "example."
        )
    setting = f"LAMBDA_TASKS_DEFAULT_{'SOFT' if soft is None else 'HARD'}_TIMEOUT"
    soft, hard = _valid_pair(soft, hard)
    return f"Write soft_timeout={soft}, hard_timeout={hard} on the task, for example, or change {setting}."


def _valid_pair(soft: int | None, hard: int | None) -> tuple[int, int]:
    """Return valid limits that keep the one that is given, if a valid one fits it."""
    if hard is not None:
        hard = max(hard, 2)
        return hard * 9 // 10, hard
    longest = app_settings.max_timeout
    soft = min(soft or 1, longest - 1)
    return soft, min(soft + max(soft // 9, 1), longest)


class LambdaTasksSettings:
    """The library's settings. Each attribute is named like its setting, without `LAMBDA_TASKS_` and in lower case.

    Reading an invalid value raises `InvalidSetting`, which is an `ImproperlyConfigured` and a `ValueError`.
    `manage.py check` reports all invalid settings earlier.
    """

    queues = Setting(values.queues)
    max_timeout = Setting(whole_number(MAX_TIMEOUT, MAX_WORKER_TIMEOUT, unit="seconds"), MAX_TIMEOUT)
    default_soft_timeout = Setting(timeout_seconds, 270)
    default_hard_timeout = Setting(timeout_seconds, 300)
    max_retries = Setting(whole_number(0), 2880)
    max_takeovers = Setting(whole_number(0), 3)
    record = Setting(values.either("all", "failures"), "all")
    forget_after = Setting(whole_number(*values.FORGET_AFTER_LIMITS, unit="seconds"), 86_400)
    eager = Setting(values.flag, False)
    eager_propagates = Setting(values.flag, False)
    noop_execution = Setting(values.flag, False)
    singleton_cache = Setting(values.string, "default")
    outbox = Setting(values.flag, False)
    backend = Setting(strategy, "lambda_tasks.backends.sqs.SQSBackend")
    lock = Setting(strategy, "lambda_tasks.locks.cache.CacheLock")
    store = Setting(strategy, "lambda_tasks.stores.orm.ORMStore")
    plugins = Setting(values.sequence, ())
    context = Setting(values.context, {})
    modules = Setting(values.strings, ())
    imports = Setting(values.either("open", "tasks"), "open")
    signing_keys = Setting(values.secret_keys, ())
    accept_unsigned = Setting(values.flag_or_moment, False)
    encryption_keys = Setting(values.fernet_keys, ())
    unknown_arguments = Setting(values.either("refuse", "drop"), "refuse")
    admin_links = Setting(values.links, {})

    def timeouts(self, soft: int | None, hard: int | None, *, of: str) -> tuple[int, int]:
        """Return the soft and the hard timeout of the task named `of`, in seconds; the defaults replace None."""
        resolved_soft = self.default_soft_timeout if soft is None else soft
        resolved_hard = self.default_hard_timeout if hard is None else hard
        if resolved_soft >= resolved_hard:
            raise InvalidSetting(
                f"{of} would have a soft timeout of {resolved_soft} s, which must be shorter than its hard timeout "
                f"of {resolved_hard} s. {_timeout_remedy(soft, hard, resolved_hard)}"
            )
        return resolved_soft, resolved_hard

    def refuse_unknown_queue(self, queue: str, *, task_name: str) -> None:
        """Raise `UnknownQueue` for a queue that is not in the settings; without LAMBDA_TASKS_QUEUES, only "default" is.

        For transports that need no URL, such as that of eager mode.
        """
        if type(self).queues.is_set:
            self.address_of(queue, task_name=task_name)
        elif queue != DEFAULT_QUEUE:
            raise UnknownQueue(
                f"Queue {queue!r} does not exist: without LAMBDA_TASKS_QUEUES, the only queue is {DEFAULT_QUEUE!r}. "
                f"Set LAMBDA_TASKS_QUEUES with both queues, or correct queue= on {task_name}. Eager mode accepts any "
                "URL."
            )

    @property
    def queue_urls(self) -> dict[str, str]:
        """The URLs of the queues of SQS, without those of AWS Batch."""
        return {name: address for name, address in self.queues.items() if isinstance(address, str)}

    @property
    def job_queues(self) -> dict[str, JobQueue]:
        """The queues of AWS Batch."""
        return {name: address for name, address in self.queues.items() if isinstance(address, JobQueue)}

    def address_of(self, queue: str, *, task_name: str) -> str | JobQueue:
        """Return the address of `queue`, or raise `UnknownQueue` with the name of the task that uses it."""
        try:
            return self.queues[queue]
        except KeyError:
            raise UnknownQueue(
                f"Queue {queue!r} is not in LAMBDA_TASKS_QUEUES ({', '.join(sorted(self.queues))}). "
                f"Add its URL there, or correct queue= on {task_name}."
            ) from None

    def queue_url(self, queue: str, *, task_name: str) -> str:
        """Return the URL of `queue`, or raise `InvalidSetting` if it is not one of SQS, or `UnknownQueue`."""
        address = self.address_of(queue, task_name=task_name)
        if isinstance(address, JobQueue):
            raise InvalidSetting(
                f"Queue {queue!r} must have a URL, not ARNs of AWS Batch, for the transport in LAMBDA_TASKS_BACKEND. "
                f"SQSBackend submits jobs. Correct queue= on {task_name}, or the setting."
            )
        return address


app_settings = LambdaTasksSettings()
