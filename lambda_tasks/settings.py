"""The settings: one list of names, types, defaults and limits, read from Django at every access."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar, overload

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks.exceptions import InvalidSetting, UnknownQueue

T = TypeVar("T")

PREFIX: Final = "LAMBDA_TASKS_"

#: Seconds: Lambda ends a function after 15 minutes, so no limit can be longer.
MAX_TIMEOUT: Final = 900
#: Seconds: the most that SQS takes as `DelaySeconds`.
MAX_DELAY: Final = 900
#: Seconds: the most that the outbox keeps a message, a year.
MAX_KEPT_DELAY: Final = 31_536_000
#: Seconds after the end of its lease at which an invocation counts as lost: the visibility timeout that
#: suits a function of ten minutes. Until then its own message may come back, which is the usual way.
LOST_AFTER: Final = 3_600

_UNSET: Final = object()


def whole_number(low: int, high: int | None = None) -> Callable[[Any, str], int]:
    """Return a check for an int of `low` to `high`; what fails it raises TypeError or ValueError."""

    def checked(value: Any, what: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{what} is {value!r}; give a whole number.")
        if value < low or (high is not None and value > high):
            limits = f"{low} to {high}" if high is not None else f"{low} or more"
            raise ValueError(f"{what} is {value}; give a whole number of {limits}.")
        return value

    return checked


#: Checks of numbers that stand in settings and in the decorator's options alike.
timeout_seconds = whole_number(1, MAX_TIMEOUT)
delay_seconds = whole_number(0, MAX_KEPT_DELAY)


def too_long_delay(name: str, seconds: int) -> str:
    """Say what is wrong with a delay that SQS does not take, where no outbox keeps it."""
    return (
        f"{name} is {seconds}; give a whole number of 0 to {MAX_DELAY}, which is what SQS waits, "
        "or set LAMBDA_TASKS_OUTBOX = True, which keeps a message until it is due."
    )


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}; give True or False.")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{what} is {value!r}; give a text.")
    return value


def _texts(value: Any, what: str) -> list[str]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in _sequence(value, what)):
        raise TypeError(f"{what} is {value!r}; give a list of texts.")
    return list(value)


def _sequence(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{what} is {value!r}; give a list.")
    return list(value)


def _queues(value: Any, what: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(url, str) and name and url for name, url in value.items()
    ):
        raise TypeError(f"{what} is {value!r}; give a dict of queue names to SQS queue URLs.")
    if "default" not in value:
        raise ValueError(f"{what} has the queues {sorted(value)}; add the one named 'default'.")
    return dict(value)


def strategy(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Return the dotted path and the options of a strategy, as settings name one; raises TypeError or ValueError."""
    path, options = (value.get("BACKEND"), value.get("OPTIONS", {})) if isinstance(value, dict) else (value, {})
    if isinstance(value, dict) and not value.keys() <= {"BACKEND", "OPTIONS"}:
        raise ValueError(f"{what} has the keys {sorted(value)}; only BACKEND and OPTIONS mean something.")
    if not isinstance(path, str) or not isinstance(options, dict):
        raise TypeError(f'{what} is {value!r}; give a dotted path, or {{"BACKEND": path, "OPTIONS": {{…}}}}.')
    return path, options


class Setting(Generic[T]):
    """One setting: an attribute that reads and checks it each time, so `override_settings` just works."""

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
        value = getattr(django_settings, self.name, self.default)
        if value is _UNSET:
            raise ImproperlyConfigured(f"{self.name} is not set; add it to the Django settings.")
        try:
            return self.check(value, self.name)
        except (TypeError, ValueError) as error:
            raise InvalidSetting(str(error)) from None

    @property
    def is_set(self) -> bool:
        """Whether the Django settings name it at all."""
        return hasattr(django_settings, self.name)


class LambdaTasksSettings:
    """The library's settings, each under its name without `LAMBDA_TASKS_` and in lower case.

    A value that cannot work raises `InvalidSetting`, which is an `ImproperlyConfigured` and a
    `ValueError`, when it is read; `manage.py check` reports them all before that.
    """

    queues = Setting(_queues)
    default_soft_timeout = Setting(timeout_seconds, 270)
    default_hard_timeout = Setting(timeout_seconds, 300)
    max_retries = Setting(whole_number(0), 2880)
    max_takeovers = Setting(whole_number(0), 3)
    eager = Setting(_flag, False)
    singleton_cache = Setting(_text, "default")
    outbox = Setting(_flag, False)
    backend = Setting(strategy, "lambda_tasks.backends.sqs.SQSBackend")
    lock = Setting(strategy, "lambda_tasks.locks.cache.CacheLock")
    store = Setting(strategy, "lambda_tasks.stores.orm.ORMStore")
    plugins = Setting(_sequence, ())
    modules = Setting(_texts, ())

    def timeouts(self, soft: int | None, hard: int | None, *, of: str) -> tuple[int, int]:
        """Return the limits of the task named `of` in seconds: its own, or the defaults for None."""
        resolved_soft = self.default_soft_timeout if soft is None else soft
        resolved_hard = self.default_hard_timeout if hard is None else hard
        if resolved_soft >= resolved_hard:
            raise InvalidSetting(
                f"{of} would have a soft timeout of {resolved_soft} s and a hard timeout of {resolved_hard} s; "
                f"the soft one must be the shorter. "
                f"Set {'soft_timeout' if soft is None else 'hard_timeout'}= on the task too, "
                f"or change LAMBDA_TASKS_DEFAULT_{'SOFT' if soft is None else 'HARD'}_TIMEOUT."
            )
        return resolved_soft, resolved_hard

    def queue_url(self, queue: str, *, task_name: str) -> str:
        """Return the URL of `queue`, or raise `UnknownQueue` naming the task that wants it."""
        try:
            return self.queues[queue]
        except KeyError:
            raise UnknownQueue(
                f"Queue {queue!r} is not in LAMBDA_TASKS_QUEUES ({', '.join(sorted(self.queues))}); "
                f"add its URL there or fix queue= on {task_name}."
            ) from None


app_settings = LambdaTasksSettings()
