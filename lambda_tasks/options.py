"""The options of `@lambda_task`: their names, types, defaults and limits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypedDict

from lambda_tasks.exceptions import is_lock_error_type
from lambda_tasks.settings import delay_seconds, timeout_seconds, whole_number

ExceptionTypes = Iterable[type[BaseException]]


class TaskOptions(TypedDict, total=False):
    """The keyword arguments of `@lambda_task` and `LambdaTaskWrapper`, for type checkers."""

    soft_timeout: int | None
    hard_timeout: int | None
    queue: str
    ignore_errors: ExceptionTypes
    retry_on: ExceptionTypes
    retry_delay: int
    retry_backoff: bool
    max_retries: int | None
    singleton: bool
    delay: int
    on_crash: Literal["retry", "fail"]
    expires_in: int | None
    aliases: Iterable[str]
    sensitive: tuple[str, ...] | list[str]


_ON_CRASH: Final = ("retry", "fail")
#: Names as messages have them: two parts at least.
_TASK_NAME: Final = re.compile(r"[^\s.\x00]+(\.[^\s.\x00]+)+")
_MAX_NAME_LENGTH: Final = 255


# Not frozen, and without a `repr()`: each method that a dataclass writes is compiled anew in every process.
@dataclass(repr=False)
class Options:
    """The checked options of a task. All numbers but `max_retries` are seconds.

    Raises TypeError for a value of the wrong type, ValueError for one that cannot work.
    """

    soft_timeout: int | None = None
    hard_timeout: int | None = None
    queue: str = "default"
    ignore_errors: tuple[type[BaseException], ...] = ()
    retry_on: tuple[type[BaseException], ...] = ()
    retry_delay: int = 0
    retry_backoff: bool = False
    max_retries: int | None = None
    singleton: bool = False
    delay: int = 0
    on_crash: Literal["retry", "fail"] = "retry"
    expires_in: int | None = None
    aliases: tuple[str, ...] = ()
    sensitive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_timeouts()
        self._check_routing()
        self._check_errors()
        self._check_retries()
        self._check_expiry()
        self._check_aliases()
        if not isinstance(self.singleton, bool):
            raise TypeError(f"singleton is {self.singleton!r}; give True or False.")
        if self.on_crash not in _ON_CRASH:
            raise ValueError(f"on_crash is {self.on_crash!r}; give one of {', '.join(map(repr, _ON_CRASH))}.")

    @classmethod
    def of(cls, **given: Any) -> Options:
        """Return the options with iterables made tuples."""
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise TypeError(
                f"@lambda_task has no option {', '.join(sorted(unknown))}; "
                f"there are {', '.join(field.name for field in fields(cls))}."
            )
        for name in ("ignore_errors", "retry_on"):
            if name in given:
                given[name] = _exception_types(given[name], name)
        if "aliases" in given:
            given["aliases"] = _names(given["aliases"])
        if "sensitive" in given:
            given["sensitive"] = _parameter_names(given["sensitive"])
        return cls(**given)

    def _check_timeouts(self) -> None:
        for name in ("soft_timeout", "hard_timeout"):
            if (value := getattr(self, name)) is not None:
                timeout_seconds(value, name)
        if self.soft_timeout is not None and self.hard_timeout is not None and self.soft_timeout >= self.hard_timeout:
            raise ValueError(
                f"soft_timeout is {self.soft_timeout} and hard_timeout {self.hard_timeout}; "
                "the soft one must be the shorter."
            )

    def _check_routing(self) -> None:
        if not isinstance(self.queue, str):
            raise TypeError(f"queue is {self.queue!r}; give the name of a queue in LAMBDA_TASKS_QUEUES.")
        if not self.queue:
            raise ValueError("queue is empty; give the name of a queue in LAMBDA_TASKS_QUEUES.")
        delay_seconds(self.delay, "delay")

    def _check_errors(self) -> None:
        delay_seconds(self.retry_delay, "retry_delay")
        if self.retry_delay and not self.retry_on:
            raise ValueError(f"retry_delay is {self.retry_delay}, but retry_on is empty; name what is retried.")
        for error_type in self.retry_on:
            if is_lock_error_type(error_type):
                raise TypeError(
                    "retry_on has LockError; leave it out: singleton tasks are retried on it by themselves "
                    "(in ignore_errors it means that a run is dropped while another one holds the lock)."
                )
        if both := [error_type.__name__ for error_type in self.retry_on if error_type in self.ignore_errors]:
            raise TypeError(f"{', '.join(both)} stands in retry_on and in ignore_errors; it can be only one of them.")

    def _check_retries(self) -> None:
        if not isinstance(self.retry_backoff, bool):
            raise TypeError(f"retry_backoff is {self.retry_backoff!r}; give True or False.")
        if self.retry_backoff and not self.retry_delay:
            raise ValueError(
                "retry_backoff doubles retry_delay with each retry, and that is 0; give retry_on, and a "
                "retry_delay of 1 or more."
            )
        if self.max_retries is not None:
            whole_number(0)(self.max_retries, "max_retries")

    def _check_expiry(self) -> None:
        if self.expires_in is None:
            return
        whole_number(1)(self.expires_in, "expires_in")
        for name in ("delay", "retry_delay"):
            if (waiting := getattr(self, name)) >= self.expires_in:
                raise ValueError(
                    f"{name} is {waiting} and expires_in {self.expires_in}; what waits that long on the queue is "
                    "expired before a worker has it."
                )

    def _check_aliases(self) -> None:
        for alias in self.aliases:
            if not _TASK_NAME.fullmatch(alias) or len(alias) > _MAX_NAME_LENGTH:
                raise ValueError(
                    f"aliases has {alias!r}, which is no name of a task; give dotted paths, as in "
                    'aliases=("shop.mail.send",).'
                )


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f'aliases is {value!r}; give a tuple of dotted paths, as in aliases=("shop.mail.send",).')
    names = tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"aliases has {name!r}; give dotted paths as texts.")
    return tuple(dict.fromkeys(names))


def _parameter_names(value: object) -> tuple[str, ...]:
    remedy = 'give a tuple of names of parameters, as in sensitive=("token",).'
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"sensitive is {value!r}; {remedy}")
    names = tuple(value)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"sensitive has {name!r}; {remedy}")
    return tuple(dict.fromkeys(names))


def _exception_types(value: object, name: str) -> tuple[type[BaseException], ...]:
    remedy = f"give a tuple of exception types, as in {name}=(ConnectionError,)."
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} is {value!r}; {remedy}")
    types = tuple(value)
    for item in types:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise TypeError(f"{name} has {item!r}, which is no exception type; {remedy}")
    return types
