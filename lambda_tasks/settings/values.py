"""The values of settings: what each must be, and its limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from importlib.util import find_spec
from typing import Any, Final

from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.recording.described import described, names

#: The queue that must be in LAMBDA_TASKS_QUEUES, and that tasks use unless they name another.
DEFAULT_QUEUE: Final = "default"

#: The longest timeout of a task, in seconds, unless LAMBDA_TASKS_MAX_TIMEOUT raises it.
MAX_TIMEOUT: Final = 900
#: The longest timeouts of functions, in seconds: of most, and of those on Lambda Managed Instances.
MAX_FUNCTION_TIMEOUT: Final = 1_800
MAX_INSTANCES_TIMEOUT: Final = 5_400
#: The longest timeout of a task, in seconds, that a worker can give which extends the visibility of its messages: SQS
#: hides a message for twelve hours in all.
MAX_WORKER_TIMEOUT: Final = 43_000
#: The longest delay, in seconds, that SQS accepts as `DelaySeconds`.
MAX_DELAY: Final = 900
#: The longest delay, in seconds, for which the outbox keeps a message: one year.
MAX_KEPT_DELAY: Final = 31_536_000
#: The longest visibility timeout, in seconds, that SQS accepts: twelve hours.
MAX_VISIBILITY_TIMEOUT: Final = 43_200
#: The shortest and the longest time, in seconds, for which a success is remembered that leaves no lasting record. One
#: hour is longer than the visibility timeout of a queue for functions of ten minutes. SQS keeps no message for more
#: than 14 days.
FORGET_AFTER_LIMITS: Final = (3_600, 1_209_600)
#: The characters that a secret key must have at least: 24 random bytes in base64.
SHORTEST_KEY: Final = 32
#: The bytes of a key of Fernet, in base64.
FERNET_KEY_BYTES: Final = 32


def whole_number(low: int, high: int | None = None, *, unit: str = "") -> Callable[[Any, str], int]:
    """Return a function that checks that a value is an int from `low` to `high`, or raises TypeError or ValueError.

    `unit`, such as "seconds", is named in the error.
    """
    kind = f"a whole number of {unit}" if unit else "an integer"
    constraint = f"{kind} from {low} to {high}" if high is not None else f"{kind} of at least {low}"

    def checked(value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be {constraint}, not {described(value)}.")
        if value < low or (high is not None and value > high):
            raise ValueError(f"{name} must be {constraint}, not {value}.")
        return value

    return checked


def delay_seconds(value: Any, name: str) -> int:
    """Check that a delay is within the limits that hold with the outbox, or raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(delay_constraint(name, value))
    if not 0 <= value <= MAX_KEPT_DELAY:
        raise ValueError(delay_constraint(name, value))
    return value


def delay_constraint(name: str, value: object, *, longest: int = MAX_DELAY) -> str:
    """Return the error message for a delay that is not a number, too short or too long."""
    constraint = f"a whole number of seconds from 0 to {longest}, or to {MAX_KEPT_DELAY} with LAMBDA_TASKS_OUTBOX"
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


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {described(value)}.")
    return value


def string(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} must be a non-empty string, not {described(value)}.")
    return value


def strings(value: Any, name: str) -> list[str]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in sequence(value, name)):
        raise TypeError(f"{name} must be a list of strings, not {described(value)}.")
    return list(value)


def sequence(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list, not {described(value)}.")
    return list(value)


def either(first: str, second: str) -> Callable[[Any, str], str]:
    """Return a function that checks that a value is one of two strings, or raises TypeError or ValueError."""

    def checked(value: Any, name: str) -> str:
        constraint = f'{name} must be "{first}" or "{second}", not {described(value)}.'
        if not isinstance(value, str):
            raise TypeError(constraint)
        if value not in (first, second):
            raise ValueError(constraint)
        return value

    return checked


@frozen
class JobQueue:
    """A queue of AWS Batch, each of whose tasks is a job: its job queue, and the definition of its jobs."""

    job_queue_arn: str
    job_definition_arn: str

    @property
    def region(self) -> str:
        """The AWS region in the ARN of the job queue."""
        return self.job_queue_arn.split(":")[3]


#: Matches the ARN of a job queue or a job definition of AWS Batch. Without a revision, Batch uses the latest one.
_BATCH_ARN: Final = (
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
        if not isinstance(arn, str) or not re.fullmatch(_BATCH_ARN, arn) or f":{kind}/" not in arn:
            raise ValueError(
                f"{name}[{key!r}] must be an ARN such as arn:aws:batch:REGION:ACCOUNT:{resource}, not {described(arn)}."
            )
    queue = JobQueue(value["job_queue_arn"], value["job_definition_arn"])
    if (other := queue.job_definition_arn.split(":")[3]) != queue.region:
        raise ValueError(
            f"{name} must have a job queue and a job definition in the same region, not in {queue.region} and {other}."
        )
    return queue


def queues(value: Any, name: str) -> dict[str, str | JobQueue]:
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


def links(value: Any, name: str) -> dict[str, str]:
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


def context(value: Any, name: str) -> dict[str, str]:
    """Check that a setting maps names to dotted paths of variables."""
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(path, str) and key and path for key, path in value.items()
    ):
        raise TypeError(
            f"{name} must be a dict that maps names to dotted paths of ContextVars, not {described(value)}."
        )
    return dict(value)


def secret_keys(value: Any, name: str) -> list[str]:
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


def fernet_keys(value: Any, name: str) -> list[str]:
    """Check that a setting is a list of keys of Fernet, and that its library is installed."""
    from base64 import urlsafe_b64decode

    keys = secret_keys(value, name)
    for place, key in enumerate(keys):
        try:
            is_key = len(urlsafe_b64decode(key)) == FERNET_KEY_BYTES
        except ValueError:
            is_key = False
        if not is_key:
            raise ValueError(
                f"{name} must contain keys of Fernet. Item {place} is not one. `python -c 'from cryptography.fernet "
                "import Fernet; print(Fernet.generate_key().decode())'` prints a key."
            )
    if keys and find_spec("cryptography") is None:
        raise ValueError(f"{name} needs the package cryptography. Install django-lambda-tasks[encryption].")
    return keys


def _type_of(value: Any) -> str:
    return f"{type(value).__name__} (not shown, because it may be a key)"


def flag_or_moment(value: Any, name: str) -> bool | datetime:
    """Check that a setting is a flag, or the time at which it ends, or raise TypeError or ValueError."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be True, False or a datetime, not {described(value)}.")
    if value.tzinfo is None:
        raise ValueError(f"{name} must be a datetime with a time zone, not {value!r}. Add tzinfo=timezone.utc.")
    return value
