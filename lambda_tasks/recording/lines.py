"""The library's loggers. Text from messages, records and errors cannot forge a line in them.

A task name, an id or an error may contain a line break and then what looks like another line of the log. In the
arguments of a line, such characters are escaped. The message of an error may have several lines, so those after the
first are indented in its traceback. Formatters for JSON escape both by themselves.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from lambda_tasks.recording.storable import one_line

#: No project names this logger, which exists before `dictConfig()` is called. If it is disabled, a configuration has
#: disabled all loggers that existed, and not those of the library on purpose.
SENTINEL: Final = logging.getLogger("lambda_tasks._sentinel")

_INDENT: Final = "\n    "


class Lines(str):
    """An argument of a line that may have several lines, because the library itself has formatted it."""

    __slots__ = ()


#: Arguments that need no escaping: those of numeric placeholders, and containers, which show the `repr()` of strings.
_HARMLESS: Final = (int, float, type(None), dict, list, tuple, set, frozenset, bytes, Lines)


def get_logger(name: str) -> logging.Logger:
    """Return the logger with this name, which escapes what is logged to it."""
    logger = logging.getLogger(name)
    logger.addFilter(_escape)  # adding it again does nothing
    return logger


def _harmless(argument: object) -> object:
    return argument if isinstance(argument, _HARMLESS) else one_line(str(argument))


def sentence(error: BaseException) -> str:
    """Return the message of `error` in one line, with a full stop where it has no end of its own."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "?", "!")) else f"{text}."


def indented(text: str) -> str:
    """Return `text` with control characters escaped, and with its later lines indented."""
    return _INDENT.join(one_line(line) for line in text.split("\n"))


def printed(error: BaseException) -> str | None:
    """Return the traceback of `error` with indented messages; None if no message has line breaks or the like."""
    texts = {text for each in _related(error, set()) for text in _texts(each) if not text.isprintable()}
    if not texts:
        return None
    result = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip("\n")
    for text in sorted(texts, key=len, reverse=True):  # a message may contain another one
        result = result.replace(text, indented(text))
    return result


def _related(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """Yield the error, its causes and contexts, and the members of groups."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    members = getattr(error, "exceptions", ())
    for other in (error.__cause__, error.__context__, *(members if isinstance(members, tuple) else ())):
        if isinstance(other, BaseException):
            yield from _related(other, seen)


def _texts(error: BaseException) -> Iterator[str]:
    """Yield the message and the notes of an error, and each of their lines, since groups indent the lines."""
    notes = getattr(error, "__notes__", ())
    for part in (error, *(notes if isinstance(notes, list | tuple) else ())):
        try:
            text = str(part)
        except BaseException:  # as in Python's own tracebacks: an error whose str() exits is logged, and does not exit
            continue
        yield text
        yield from text.split("\n")


def _escape(record: logging.LogRecord) -> bool:
    """Escape the arguments and the error of a record. As a filter, let every record pass."""
    with suppress(Exception):  # from str() of an argument: logging reports it when it formats the line
        if isinstance(record.args, tuple):
            record.args = tuple(map(_harmless, record.args))
        error: Any = record.exc_info[1] if record.exc_info else None
        if error is not None and not record.exc_text:
            record.exc_text = printed(error)
    return True
