"""Loggers whose lines contain the id of the invocation, and a filter that adds its fields to all other lines."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lambda_tasks.recording.lines import Lines, get_logger
from lambda_tasks.recording.storable import storable
from lambda_tasks.recording.tracebacks import traceback_text

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # cannot be subscripted in Python 3.10

#: The fields of an invocation that `InvocationFilter` adds to log records.
FIELDS: Final = ("message_id", "task_name", "queue", "attempt", "root_id", "aws_request_id", "trace_id")

#: The additional fields of the line about a task that has failed, and of which the hook `lambda_task_finished` tells.
FAILED_FIELDS: Final[Mapping[str, str]] = MappingProxyType({"outcome": "FAILED"})

#: Match the id of a trace in the W3C's header `traceparent` and in the header of X-Ray.
_W3C: Final = r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}"
_X_RAY: Final = r"\bRoot=(1-[0-9a-fA-F]{8}-[0-9a-fA-F]{24})\b"
#: The frames that a method of `SteadyLogger` adds between its caller and `logging`. Before 3.11, those of `logging`
#: itself count, too.
_OWN_FRAMES: Final = 1 if sys.version_info >= (3, 11) else 2

#: Fields by their names; None for one that is unknown.
Fields: TypeAlias = Mapping[str, "str | int | None"]

_NONE: Final[Mapping[str, str | int]] = MappingProxyType({})
#: The message id of the current invocation, and a function that returns its other fields. A single value, so that a
#: thread or a nested eager task never sees a mixture; and a function, so that a run that logs nothing pays for none.
log_context: Final[ContextVar[tuple[str, Callable[[], Fields]] | None]] = ContextVar(
    "lambda_tasks_log_fields", default=None
)


def current_message_id() -> str | None:
    """Return the message id of the current invocation, or None outside of one."""
    current = log_context.get()
    return None if current is None else current[0]


def _current_fields() -> Mapping[str, str | int]:
    current = log_context.get()
    if current is None:
        return _NONE
    message_id, others = current
    return {"message_id": message_id, **{name: value for name, value in others().items() if value is not None}}


def trace_id(attributes: Mapping[str, str]) -> str | None:
    """Return the id of the trace of an invocation, or None if it has none.

    It is that of the message attribute `traceparent`, if a plugin of the producer has added one, and otherwise that of
    X-Ray, which Lambda sets for each invocation of the function.
    """
    if found := re.match(_W3C, attributes.get("traceparent", "")):
        return found[1]
    found = re.search(_X_RAY, os.environ.get("_X_AMZN_TRACE_ID", ""))
    return None if found is None else found[1]


class InvocationFilter(logging.Filter):
    """Adds the fields of the current invocation to every log record that passes, and lets all records pass.

    The fields are `FIELDS`. Add the filter to a handler, which then has them in the lines of every logger. Outside of
    an invocation, and for fields that it lacks, the value is `missing`. A field that a record already has, for example
    from `extra`, is kept.
    """

    def __init__(self, *, missing: object = None) -> None:
        super().__init__()
        self.missing = missing

    def filter(self, record: logging.LogRecord) -> bool:
        fields, known = _current_fields(), record.__dict__
        for field in FIELDS:
            if field not in known:
                known[field] = fields.get(field, self.missing)
        return True


class TaskLoggerAdapter(_Adapter):
    """Prefixes each line with `[message_id]`, and adds the fields to the log record as `extra` for JSON logs.

    The fields are those of `FIELDS` that are known. They are stored in a context variable, so each thread and each
    asyncio task has its own.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = _current_fields()
        if fields:
            msg = f"[{fields['message_id']}] {msg}"
            kwargs["extra"] = {**fields, **(kwargs.get("extra") or {})}
        return msg, kwargs

    def bound(self, message_id: str, fields: Callable[[], Fields] = lambda: _NONE) -> AbstractContextManager[None]:
        """Add `message_id` and the result of `fields` to every line that is logged inside of the `with` block.

        `fields` is called for each line.
        """
        return _Bound(message_id, fields)


class _Bound(AbstractContextManager[None]):
    """What `bound()` returns. A class, since each task uses it, and a generator takes twice the time."""

    __slots__ = ("_context", "_token")

    def __init__(self, *context: Any) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = log_context.set(self._context)

    def __exit__(self, *exc_info: object) -> None:
        log_context.reset(self._token)


class SteadyLogger(TaskLoggerAdapter):
    """A logger that never raises an exception. If a line cannot be written, its characters are escaped.

    Lambda's own handler raises an exception for a lone surrogate. Without this class, the exception would leave the
    message on its queue, and might affect the other messages of the batch.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if not self.isEnabledFor(level):
            return
        given = kwargs.get("exc_info")
        error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
        if error is not None and (cause := _cause_of(error)) is not None:
            kwargs["extra"] = {"cause": traceback_text(cause), **(kwargs.get("extra") or {})}
        level_of_caller = kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + _OWN_FRAMES
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:
            with suppress(Exception):
                text = str(msg) % args if args else str(msg)
                lines = storable(text), *([traceback_text(error)] if error else [])
                extra = kwargs.get("extra")
                super().log(level, "%s", Lines("\n".join(lines)), extra=extra, stacklevel=level_of_caller)


def _cause_of(error: BaseException) -> BaseException | None:
    """Return the error that caused `error`. Formatters for JSON, such as Lambda's, print only `error` itself."""
    return error.__cause__ if error.__suppress_context__ else error.__context__


def add_fields_on_lambda() -> None:
    """Add the fields of the invocation to the lines of every logger in Lambda's own handler, which JSON mode shows.

    The name of its class identifies the handler, because the runtime's package is not imported here.
    """
    for handler in logging.getLogger().handlers:
        is_known = any(isinstance(each, InvocationFilter) for each in handler.filters)
        if type(handler).__name__.startswith("LambdaLoggerHandler") and not is_known:
            handler.addFilter(InvocationFilter())


def show_outcomes_locally() -> None:
    """Log one line for each ended task under the local worker, unless the log level or LOGGING decides otherwise."""
    levels = (logging.getLogger(name).level for name in ("lambda_tasks", "lambda_tasks.executor"))
    if os.environ.get("LAMBDA_TASKS_LOCAL_WORKER") and not os.environ.get("AWS_LAMBDA_LOG_LEVEL") and not any(levels):
        logging.getLogger("lambda_tasks.executor").setLevel(logging.INFO)


#: The logger for tasks: `task_logger.info("sending to %s", user_id)` → "[01931…] sending to 42".
task_logger = TaskLoggerAdapter(logging.getLogger("lambda_tasks.task"), {})
#: The logger of the library itself for invocations, with the same prefix.
run_logger = SteadyLogger(get_logger("lambda_tasks.executor"), {})
