"""Loggers whose lines contain the id of the invocation."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.recording.storable import storable
from lambda_tasks.recording.tracebacks import traceback_text

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # cannot be subscripted in Python 3.10

# A single value for all fields, so that a thread or a nested eager task never sees a mixture.
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_fields: ContextVar[Mapping[str, str]] = ContextVar("lambda_tasks_log_fields", default=_NONE)


def current_message_id() -> str | None:
    """Return the message id of the current invocation, or None outside of one."""
    return _fields.get().get("message_id")


class TaskLoggerAdapter(_Adapter):
    """Prefixes each line with `[message_id]`, and adds the fields to the log record as `extra` for JSON logs.

    The fields are `message_id` and `task_name`. They are stored in a context variable, so each thread and each
    asyncio task has its own.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = _fields.get()
        if fields:
            msg = f"[{fields['message_id']}] {msg}"
            kwargs["extra"] = {**fields, **(kwargs.get("extra") or {})}
        return msg, kwargs

    @contextmanager
    def bound(self, message_id: str, **fields: str) -> Iterator[None]:
        """Add `message_id` and `fields` to every line that is logged in the context."""
        token = _fields.set({"message_id": message_id, **fields})
        try:
            yield
        finally:
            _fields.reset(token)


class SteadyLogger(TaskLoggerAdapter):
    """A logger that never raises an exception. If a line cannot be written, its characters are escaped.

    Lambda's own handler raises an exception for a lone surrogate. Without this class, the exception would leave the
    message on its queue, and might affect the other messages of the batch.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        given = kwargs.get("exc_info")
        error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
        if error is not None and (cause := _cause_of(error)) is not None:
            kwargs["extra"] = {"cause": traceback_text(cause), **(kwargs.get("extra") or {})}
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:
            with suppress(Exception):
                text = str(msg) % args if args else str(msg)
                lines = storable(text), *([traceback_text(error)] if error else [])
                super().log(level, "%s", "\n".join(lines), extra=kwargs.get("extra"))


def _cause_of(error: BaseException) -> BaseException | None:
    """Return the error that caused `error`. Formatters for JSON, such as Lambda's, print only `error` itself."""
    return error.__cause__ if error.__suppress_context__ else error.__context__


def show_outcomes_locally() -> None:
    """Log one line for each ended task under the local worker, unless the log level or LOGGING decides otherwise."""
    levels = (logging.getLogger(name).level for name in ("lambda_tasks", "lambda_tasks.executor"))
    if os.environ.get("LAMBDA_TASKS_LOCAL_WORKER") and not os.environ.get("AWS_LAMBDA_LOG_LEVEL") and not any(levels):
        logging.getLogger("lambda_tasks.executor").setLevel(logging.INFO)


#: The logger for tasks: `task_logger.info("sending to %s", user_id)` → "[01931…] sending to 42".
task_logger = TaskLoggerAdapter(logging.getLogger("lambda_tasks.task"), {})
#: The logger of the library itself for invocations, with the same prefix.
run_logger = SteadyLogger(logging.getLogger("lambda_tasks.executor"), {})
