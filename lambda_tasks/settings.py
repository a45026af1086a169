"""The settings, with their types, defaults and limits.

Each access reads the value from the Django settings. A batch of messages reads each value once: `settled()`.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import Any, Final, Generic, TypeVar, overload

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from lambda_tasks.exceptions import InvalidSetting, UnknownQueue
from lambda_tasks.recording.described import described, names

T = TypeVar("T")

PREFIX: Final = "LAMBDA_TASKS_"
#: The queue that must be in LAMBDA_TASKS_QUEUES, and that tasks use unless they name another.
DEFAULT_QUEUE: Final = "default"

#: The longest timeout of a task, in seconds, unless LAMBDA_TASKS_MAX_TIMEOUT raises it.
MAX_TIMEOUT: Final = 900
#: The longest timeouts of functions, in seconds: of most, and of those on Lambda Managed Instances.
MAX_FUNCTION_TIMEOUT: Final = 1_800
MAX_INSTANCES_TIMEOUT: Final = 5_400
#: The longest delay, in seconds, that SQS accepts as `DelaySeconds`.
MAX_DELAY: Final = 900
#: The longest delay, in seconds, for which the outbox keeps a message: one year.
MAX_KEPT_DELAY: Final = 31_536_000
#: The longest visibility timeout, in seconds, that SQS accepts: twelve hours.
MAX_VISIBILITY_TIMEOUT: Final = 43_200
#: The characters that a secret key must have at least: 24 random bytes in base64.
SHORTEST_KEY: Final = 32
#: The bytes of a key of Fernet, in base64.
FERNET_KEY_BYTES: Final = 32

_UNSET: Final = object()


def whole_number(low: int, high: int | None = None) -> Callable[[Any, str], int]:
    """Return a function that checks that a value is an int from `low` to `high`, or raises TypeError or ValueError."""
    constraint = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"

    def checked(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be {constraint}, not {described(value)}.")
        if value < low or (high is not None and value > high):
            raise ValueError(f"{name} must be {constraint}, not {value}.")
        return value

    return checked


def timeout_seconds(value: Any, name: str) -> int:
    """Check that a limit is an int from 1 to LAMBDA_TASKS_MAX_TIMEOUT, or raise TypeError or ValueError."""
    if type(value) is int and 1 <= value <= MAX_TIMEOUT:
        return value  # most limits cost no look at the settings
    longest = _longest_timeout()
    try:
        return whole_number(1, longest)(value, name)
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
    if seconds > MAX_INSTANCES_TIMEOUT:
        return f" Lambda runs no function for more than {MAX_INSTANCES_TIMEOUT} s: divide the work among several tasks."
    if seconds > 0:
        return " If the timeout of the function is longer, set LAMBDA_TASKS_MAX_TIMEOUT to it."
    return ""


def delay_seconds(value: Any, name: str) -> int:
    """Check that a delay is within the limits that hold with the outbox, or raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(delay_constraint(name, value))
    if not 0 <= value <= MAX_KEPT_DELAY:
        raise ValueError(delay_constraint(name, value))
    return value


def delay_constraint(name: str, value: object, *, longest: int = MAX_DELAY) -> str:
    """Return the error message for a delay that is not a number, too short or too long."""
    constraint = f"an integer from 0 to {longest}, or to {MAX_KEPT_DELAY} with LAMBDA_TASKS_OUTBOX"
    problem = f"{name} must be {constraint}, not {described(value)}."
    if isinstance(value, int) and longest < value <= MAX_KEPT_DELAY:
        return f"{problem} For this delay, set LAMBDA_TASKS_OUTBOX = True: the outbox keeps a message until it is due."
    return problem


def duration(value: Any, name: str) -> float:
    """Return a number of seconds or a timedelta as seconds, from 0 to one year, or raise TypeError or ValueError."""
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds or a timedelta, not {described(value)}.")
    else:
        seconds = value
    if not 0 <= seconds <= MAX_KEPT_DELAY:  # also refuses NaN
        raise ValueError(f"{name} must be from 0 to {MAX_KEPT_DELAY} seconds, which is one year, not {value!r}.")
    return float(seconds)


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {described(value)}.")
    return value


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} must be a non-empty string, not {described(value)}.")
    return value


def _strings(value: Any, name: str) -> list[str]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in _sequence(value, name)):
        raise TypeError(f"{name} must be a list of strings, not {described(value)}.")
    return list(value)


def _sequence(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list, not {described(value)}.")
    return list(value)


def _either(first: str, second: str) -> Callable[[Any, str], str]:
    """Return a function that checks that a value is one of two strings, or raises TypeError or ValueError."""

    def checked(value: Any, name: str) -> str:
        constraint = f'{name} must be "{first}" or "{second}", not {described(value)}.'
        if not isinstance(value, str):
            raise TypeError(constraint)
        if value not in (first, second):
            raise ValueError(constraint)
        return value

    return checked


@dataclass(frozen=True, slots=True)
class JobQueue:
    """A queue of AWS Batch, each of whose tasks is a job: its job queue, and the definition of its jobs."""

    job_queue_arn: str
    job_definition_arn: str

    @property
    def region(self) -> str:
        """The AWS region in the ARN of the job queue."""
        return self.job_queue_arn.split(":")[3]


#: Matches the ARN of a job queue or a job definition of AWS Batch. Without a revision, Batch uses the latest one.
_BATCH_ARN: Final = re.compile(
    r"arn:[a-z-]+:batch:[a-z0-9-]+:[0-9]{12}:(job-queue/[\w-]{1,128}|job-definition/[\w-]{1,128}(:[0-9]+)?)"
)
_JOB_QUEUE_KEYS: Final = {"job_queue_arn": "job-queue/NAME", "job_definition_arn": "job-definition/NAME:REVISION"}


def _job_queue(value: Mapping[str, Any], name: str) -> JobQueue:
    """Check the ARNs of a job queue and a job definition of AWS Batch."""
    if "queue_url" in value:
        raise TypeError(
            f'{name} must be a URL or a dict of ARNs, not {described(value)}. In place of {{"queue_url": url}}, as in '
            "version 0.8, write the URL itself. See docs/howto/from-0.x.md."
        )
    if value.keys() != _JOB_QUEUE_KEYS.keys():
        raise ValueError(f"{name} must have the keys job_queue_arn and job_definition_arn, not {names(value)}.")
    for key, resource in _JOB_QUEUE_KEYS.items():
        arn = value[key]
        kind = resource.partition("/")[0]
        if not isinstance(arn, str) or not _BATCH_ARN.fullmatch(arn) or f":{kind}/" not in arn:
            raise ValueError(
                f"{name}[{key!r}] must be an ARN such as arn:aws:batch:REGION:ACCOUNT:{resource}, not {described(arn)}."
            )
    queue = JobQueue(value["job_queue_arn"], value["job_definition_arn"])
    if (other := queue.job_definition_arn.split(":")[3]) != queue.region:
        raise ValueError(
            f"{name} must have a job queue and a job definition in the same region, not in {queue.region} and {other}."
        )
    return queue


def _queues(value: Any, name: str) -> dict[str, str | JobQueue]:
    if not isinstance(value, Mapping) or not all(
        isinstance(queue, str) and queue and isinstance(address, (str, Mapping)) and address
        for queue, address in value.items()
    ):
        raise TypeError(f"{name} must be a dict that maps queue names to SQS queue URLs, not {described(value)}.")
    if DEFAULT_QUEUE not in value:
        raise ValueError(f"{name} must contain a queue named {DEFAULT_QUEUE!r}. It contains {names(value)}.")
    return {
        queue: address if isinstance(address, str) else _job_queue(address, f"{name}[{queue!r}]")
        for queue, address in value.items()
    }


_STRATEGY: Final = 'a dotted path or {"BACKEND": path, "OPTIONS": {…}}'


def strategy(value: Any, name: str) -> tuple[str, dict[str, Any]]:
    """Return the dotted path and the options of a strategy setting, or raise TypeError or ValueError."""
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict) or not value:
        raise TypeError(f"{name} must be {_STRATEGY}, not {described(value)}.")
    if not value.keys() <= {"BACKEND", "OPTIONS"}:
        raise ValueError(f"{name} must have only the keys BACKEND and OPTIONS, not {names(value)}.")
    path, options = value.get("BACKEND"), value.get("OPTIONS", {})
    if not isinstance(path, str) or not isinstance(options, dict):
        raise TypeError(
            f"{name} must be {_STRATEGY}, but its BACKEND is {described(path)} and its OPTIONS are "
            f"{described(options)}."
        )
    return path, options


#: The placeholders of links in the admin.
LINK_VALUES: Final = ("message_id", "root_id", "task_name", "queue", "start", "end")


def _links(value: Any, name: str) -> dict[str, str]:
    """Check that a setting maps names of links to templates of their addresses."""
    if not isinstance(value, Mapping) or not all(
        isinstance(label, str) and isinstance(template, str) for label, template in value.items()
    ):
        raise TypeError(f"{name} must be a dict that maps names of links to addresses, not {described(value)}.")
    for label, template in value.items():
        if not template.startswith(("https://", "http://")):
            told = described(template)
            raise ValueError(f"{name} must have addresses that begin with https:// or http://, not {told}.")
        try:
            template.format_map(dict.fromkeys(LINK_VALUES, ""))
        except (LookupError, ValueError, AttributeError):
            fields = ", ".join(f"{{{each}}}" for each in LINK_VALUES)
            raise ValueError(
                f"{name} must have no placeholders but {fields} in the address of {label!r}. Write other braces twice."
            ) from None
    return dict(value)


def _context(value: Any, name: str) -> dict[str, str]:
    """Check that a setting maps names to dotted paths of variables."""
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(path, str) and key and path for key, path in value.items()
    ):
        raise TypeError(
            f"{name} must be a dict that maps names to dotted paths of ContextVars, not {described(value)}."
        )
    return dict(value)


def _keys(value: Any, name: str) -> list[str]:
    """Check that a setting is a list of keys, or raise TypeError or ValueError, without quoting a key."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list of keys, the newest first, not {_type_of(value)}.")
    for place, key in enumerate(value):
        if not isinstance(key, str):
            raise TypeError(f"{name} must contain only strings. Item {place} is of the type {_type_of(key)}.")
        if len(key) < SHORTEST_KEY:
            raise ValueError(
                f"{name} must contain keys of at least {SHORTEST_KEY} characters. Item {place} has {len(key)}. "
                "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` prints a key."
            )
    return list(value)


def _fernet_keys(value: Any, name: str) -> list[str]:
    """Check that a setting is a list of keys of Fernet, and that its library is installed."""
    keys = _keys(value, name)
    for place, key in enumerate(keys):
        try:
            is_key = len(urlsafe_b64decode(key)) == FERNET_KEY_BYTES
        except ValueError:
            is_key = False
        if not is_key:
            raise ValueError(
                f"{name} must contain keys of Fernet, which item {place} is not. `python -c 'from cryptography.fernet "
                "import Fernet; print(Fernet.generate_key().decode())'` prints a key."
            )
    if keys and find_spec("cryptography") is None:
        raise ValueError(f"{name} needs the package cryptography. Install django-lambda-tasks[encryption].")
    return keys


def _type_of(value: Any) -> str:
    return f"{type(value).__name__} (not shown, because it may be a key)"


def _flag_or_moment(value: Any, name: str) -> bool | datetime:
    """Check that a setting is a flag, or the time at which it ends, or raise TypeError or ValueError."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be True, False or a datetime, not {described(value)}.")
    if value.tzinfo is None:
        raise ValueError(f"{name} must be a datetime with a time zone, not {value!r}. Add tzinfo=timezone.utc.")
    return value


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

    queues = Setting(_queues)
    max_timeout = Setting(whole_number(MAX_TIMEOUT, MAX_INSTANCES_TIMEOUT), MAX_TIMEOUT)
    default_soft_timeout = Setting(timeout_seconds, 270)
    default_hard_timeout = Setting(timeout_seconds, 300)
    max_retries = Setting(whole_number(0), 2880)
    max_takeovers = Setting(whole_number(0), 3)
    eager = Setting(_flag, False)
    eager_propagates = Setting(_flag, False)
    noop_execution = Setting(_flag, False)
    singleton_cache = Setting(_string, "default")
    outbox = Setting(_flag, False)
    backend = Setting(strategy, "lambda_tasks.backends.sqs.SQSBackend")
    lock = Setting(strategy, "lambda_tasks.locks.cache.CacheLock")
    store = Setting(strategy, "lambda_tasks.stores.orm.ORMStore")
    plugins = Setting(_sequence, ())
    context = Setting(_context, {})
    modules = Setting(_strings, ())
    imports = Setting(_either("open", "tasks"), "open")
    signing_keys = Setting(_keys, ())
    accept_unsigned = Setting(_flag_or_moment, False)
    encryption_keys = Setting(_fernet_keys, ())
    unknown_arguments = Setting(_either("refuse", "drop"), "refuse")
    admin_links = Setting(_links, {})

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
