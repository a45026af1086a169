"""Limits for strings and JSON, so that every supported database can store them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

#: The number of characters of a string, such as a traceback, that are kept: half from the head and half from the tail.
MAX_TEXT: Final = 100_000
#: The maximum size, in bytes, of a result as JSON. MariaDB closes the connection on a statement of more than 16 MiB
#: (max_allowed_packet), and a column should not contain more.
MAX_JSON: Final = 4 * 1024 * 1024
#: The maximum number of levels of lists and dicts in JSON. MariaDB stores 31, and the parser of message bodies reads
#: at most 200.
MAX_DEPTH: Final = 30


def storable(text: str, *, max_length: int = MAX_TEXT) -> str:
    """Return `text` in a form that databases accept: NUL and lone surrogates are escaped, and the length is limited."""
    if len(text) > max_length:
        head, tail = max_length // 2, max_length - max_length // 2
        text = f"{text[:head]}\n… {len(text) - max_length} characters left out …\n{text[-tail:]}"
    return text.replace("\x00", r"\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str, *, max_length: int) -> str:
    """Return `text` in one line with control characters escaped, so that it cannot forge a line of a log."""
    if len(text) > max_length:
        head, tail = max_length // 2, max_length - max_length // 2
        text = f"{text[:head]} … {len(text) - max_length} characters left out … {text[-tail:]}"
    return one_line(text)


class _Escapes(dict[int, str]):
    """A table for `str.translate()`, which asks for a character that it has not met before."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        escaped = character if character.isprintable() else ascii(character)[1:-1]
        if len(self) < _MET:
            self[code] = escaped
        return escaped


#: The number of characters that the table keeps.
_MET: Final = 10_000
_ESCAPED: Final = _Escapes()


def one_line(text: str) -> str:
    """Return `text` with line breaks and other characters escaped that are not printable."""
    if text.isprintable():
        return text
    return text.translate(_ESCAPED)


def depth(value: object) -> int:
    """Return how many levels of lists and dicts `value` has, itself included."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def shown(part: object) -> str:
    """Return `part`, which may come from a message, escaped and shortened for one line of a log."""
    return printable(str(part), max_length=50)


_SURROGATE: Final = "[\ud800-\udfff]"


def unstorable(value: Any, *, uncounted: int = 0) -> str | None:
    """Return why JSON or a database cannot represent `value`, which consists of JSON's types; None if both can.

    The result completes a sentence ("contains …", "is nested …") and does not quote the value. `uncounted` is the
    number of outermost levels that the sentence does not count, such as the dict that contains a task's arguments.
    """
    try:
        too_deep = depth(value) > MAX_DEPTH
    except RecursionError:
        too_deep = True
    return f"is nested more than {MAX_DEPTH - uncounted} levels deep" if too_deep else _unstorable_part(value)


def _unstorable_part(value: Any) -> str | None:
    return next((problem for part in _scalars(value) if (problem := _problem_of_scalar(part))), None)


def _scalars(value: Any) -> Iterator[Any]:
    """Yield the keys and values in `value` that are not lists or dicts."""
    if isinstance(value, dict):
        yield from value
        value = value.values()
    elif not isinstance(value, list):
        yield value
        return
    for item in value:
        yield from _scalars(item)


def _problem_of_scalar(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "contains NaN or infinity, which JSON cannot represent"
    if isinstance(value, str) and "\x00" in value:
        return "contains a NUL character, which databases reject"
    if isinstance(value, str) and not value.isascii() and re.search(_SURROGATE, value):
        return "contains a lone surrogate (half of a character), which databases reject"
    return None
