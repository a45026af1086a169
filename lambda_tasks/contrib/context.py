"""Values that travel with a task: a request id, the tenant, the user, the language, the time zone.

    LAMBDA_TASKS_CONTEXT = {
        "request_id": "shop.context.request_id",  # a ContextVar
        "language": "lambda_tasks.contrib.context.language",
    }

At the call, the values of these variables are written into one attribute of the message. In the worker, they are set
before the task's function is called. Retries, the invocations that follow a task, and the calls of a task have them,
too. The setting alone loads this plugin, as the first one, so that the other plugins' wrappers have the context.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Generator, Mapping
from typing import Any, Final, Protocol

from django.utils import timezone as django_timezone
from django.utils import translation
from django.utils.module_loading import import_string

from lambda_tasks.exceptions import InvalidContext, InvalidSetting
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.recording.described import described
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.wire.attributes import CONTEXT_ATTRIBUTE

logger: Final[logging.Logger] = get_logger("lambda_tasks.contrib.context")

#: The maximum size, in bytes, of all values of an invocation together, with their names, as JSON.
MAX_BYTES: Final = 4096

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode  # only ASCII, which every queue and database accepts


class Variable(Protocol):
    """What LAMBDA_TASKS_CONTEXT may name: a `ContextVar`, or an object with the same two methods."""

    def get(self, default: Any, /) -> Any:
        """Return the value to send: a string, a number or a boolean. None, and an unset variable, is not sent."""

    def set(self, value: Any, /) -> object:
        """Set the value that has arrived, in the worker. An exception fails the task."""


class _Language:
    """The active language of Django's translations."""

    def get(self, default: str | None, /) -> str | None:
        return translation.get_language() or default

    def set(self, value: object, /) -> None:
        if not isinstance(value, str) or not translation.check_for_language(value):
            logger.warning("This worker does not know the language %r of the context, and keeps its own.", value)
            return
        translation.activate(value)


class _TimeZone:
    """Django's current time zone, by its name. A time zone without a name, such as a fixed offset, is not sent."""

    def get(self, default: str | None, /) -> str | None:
        key = getattr(django_timezone.get_current_timezone(), "key", None)
        return key if isinstance(key, str) else default

    def set(self, value: object, /) -> None:
        from zoneinfo import ZoneInfo

        try:
            zone = ZoneInfo(str(value))
        except (LookupError, ValueError, OSError) as error:
            raise InvalidContext(
                f"The time zone of the context must be one that the worker knows, not {described(value)}. Install "
                "the package tzdata in the worker."
            ) from error
        django_timezone.activate(zone)


language: Final = _Language()
timezone: Final = _TimeZone()


class ContextPlugin:
    """The plugin for the variables in LAMBDA_TASKS_CONTEXT: dotted paths by the names that travel.

    Raises `InvalidSetting` for a path that does not name a variable.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._variables = {name: _variable(name, path) for name, path in paths.items()}

    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        # A retry, and what follows a task, has inherited the context. For a retry without one, it is unknown.
        if CONTEXT_ATTRIBUTE not in job.attributes and not job.message.n_retries:
            # Without values, too: the invocations that follow must not get those that the task leaves behind.
            job.attributes[CONTEXT_ATTRIBUTE] = self._current(job.task_name)

    @hookimpl(wrapper=True)
    def lambda_task_call(self, run: Run) -> Generator[None, object, object]:
        # Nothing is reset, since each run has its own copy of the context, and its on_commit callbacks belong to it.
        if text := run.attributes.get(CONTEXT_ATTRIBUTE):
            for name, value in _decoded(text).items():
                if name in self._variables:  # the producer may be newer, and send more
                    self._variables[name].set(value)
        return (yield)

    def _current(self, task_name: str) -> str:
        """Return the current values as JSON, or raise `InvalidContext`."""
        values = {name: variable.get(None) for name, variable in self._variables.items()}
        values = {name: value for name, value in values.items() if value is not None}
        for name, value in values.items():
            if not _is_plain(value):
                raise InvalidContext(
                    f"{name!r} in the context of {task_name} must be a string, a finite number or a boolean, not of "
                    f"type {type(value).__qualname__}. Convert the value before you set the variable."
                )
        text = _encode(values)
        if len(text) > MAX_BYTES:
            sizes = {name: len(_encode(value)) for name, value in values.items()}
            largest = max(sizes, key=sizes.__getitem__)
            raise InvalidContext(
                f"The context of {task_name} must have at most {MAX_BYTES:,} bytes as JSON, not {len(text):,}, of "
                f"which {largest!r} has {sizes[largest]:,}. Store the data elsewhere, and put its key into the context."
            )
        return text


def _variable(name: str, path: str) -> Variable:
    try:
        found: Any = import_string(path)
    except Exception as error:  # its module may raise anything
        raise InvalidSetting(
            f"LAMBDA_TASKS_CONTEXT[{name!r}] must be the dotted path of a ContextVar, not {described(path)}, which "
            f"cannot be imported: {type(error).__name__}."
        ) from error
    if isinstance(found, type) or not (callable(getattr(found, "get", None)) and callable(getattr(found, "set", None))):
        raise InvalidSetting(
            f"LAMBDA_TASKS_CONTEXT[{name!r}] must be the dotted path of a ContextVar, or of an object with get() and "
            f"set(), not {described(path)}."
        )
    variable: Variable = found
    return variable


def _is_plain(value: object) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def _decoded(text: str) -> dict[str, Any]:
    """Return the values in a message, which another program may have written, or raise `InvalidContext`."""
    values: Any = None
    if len(text) <= MAX_BYTES:
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
    if not isinstance(values, dict) or not all(map(_is_plain, values.values())):
        raise InvalidContext(
            f"The attribute {CONTEXT_ATTRIBUTE} of the message must be a JSON object of strings, numbers and booleans "
            f"with at most {MAX_BYTES:,} bytes. Correct the program that has sent it."
        )
    return values
