"""A logger whose lines say which invocation wrote them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.storable import storable
from lambda_tasks.tracebacks import traceback_text

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # cannot be subscripted in Python 3.10

# One value holds all fields, so that a thread or a nested eager task sees either all of its own or none.
_NONE: Final[Mapping[str, str]] = MappingProxyType({})
_fields: ContextVar[Mapping[str, str]] = ContextVar("lambda_tasks_log_fields", default=_NONE)


def current_message_id() -> str | None:
    """Return the message id of the invocation that runs here, or None outside of one."""
    return _fields.get().get("message_id")


class TaskLoggerAdapter(_Adapter):
    """Prefixes `[message_id]`, and puts the same fields on the record as `extra` for JSON logs.

    The fields are `message_id` and `task_name`; they follow the contextvars of the thread or the
    asyncio task that logs.
    """

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        fields = _fields.get()
        if fields:
            msg = f"[{fields['message_id']}] {msg}"
            kwargs["extra"] = {**fields, **(kwargs.get("extra") or {})}
        return msg, kwargs

    @contextmanager
    def bound(self, message_id: str, **fields: str) -> Iterator[None]:
        """Mark every line that is logged inside as written by `message_id`."""
        token = _fields.set({"message_id": message_id, **fields})
        try:
            yield
        finally:
            _fields.reset(token)


class SteadyLogger(TaskLoggerAdapter):
    """A logger whose handlers' errors are nobody's: a line that cannot be written is written in other characters.

    Lambda's own handler raises, out of the call that logs, for half of a character. No message may
    stay on its queue, or take its neighbours along, because of a line about it.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        given = kwargs.get("exc_info")
        error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
        try:
            super().log(level, msg, *args, **kwargs)
        except Exception:
            with suppress(Exception):
                text = str(msg) % args if args else str(msg)
                lines = storable(text), *([traceback_text(error)] if error else [])
                super().log(level, "%s", "\n".join(lines), extra=kwargs.get("extra"))


#: For use in tasks: `task_logger.info("sending to %s", user_id)` → "[01931…] sending to 42".
task_logger = TaskLoggerAdapter(logging.getLogger("lambda_tasks.task"), {})
#: The library's own lines about invocations, with the same prefix.
run_logger = SteadyLogger(logging.getLogger("lambda_tasks.executor"), {})
