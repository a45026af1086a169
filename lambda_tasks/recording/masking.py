"""Mask sensitive arguments in records and in logs."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

#: The mask, which is the same as in Django's error reports.
MASK: Final = "********************"
#: The minimum length, in characters, of a string or number that is masked. A shorter limit would mask ordinary words.
MIN_LENGTH: Final = 4
#: The length, in characters, of a piece by which a shortened string is recognised. Pydantic shortens strings in errors.
PIECE: Final = 12
#: The characters at each end of a string from which pieces are taken: a shortened string usually keeps its ends.
_ENDS: Final = 10_000
#: The maximum number of forms of all values. Searching for more would take too long.
_MAX_VALUES: Final = 3_000
#: The maximum number of characters of all values together. Searching for more would take too long.
MAX_SIZE: Final = 100_000
#: The number of characters that are searched, half from the head and half from the tail. Records keep fewer.
MAX_SEARCHED: Final = 400_000
#: The CPU seconds after which a search ends. It takes place outside of the time limits of a task.
SECONDS: Final = 0.25

WITHHELD: Final = f"{MASK} (withheld: the sensitive arguments are too large or have too many values to search for)"
#: Matches line breaks, and their escaped forms in JSON and environment variables.
_LINE_BREAK: Final = r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+|(?:\\[rn])+"
_clock = time.thread_time


def masked(arguments: Mapping[str, Any], sensitive: Iterable[str]) -> dict[str, Any]:
    """Return `arguments` with those that are `sensitive` replaced by a mask."""
    return {**arguments, **{name: MASK for name in sensitive if name in arguments}}


def scrubbed(text: str, values: Iterable[object]) -> str:
    """Return `text` with the strings and numbers in `values` masked, however deeply they are nested.

    A string or number is masked if it has at least `MIN_LENGTH` characters, and so is each line of a string. Both are
    recognised as they are and as quoted by Python, JSON and URLs. If the search takes too long, the whole text is
    withheld.
    """
    try:
        return Needles(values).scrubbed(text)
    except TooMuch:
        return WITHHELD


def without_pieces(text: str, values: Iterable[object]) -> str:
    """Return `text` with longer pieces of `values` masked, which remain if a string was shortened.

    `text` should be of a limited length. A piece has at least `PIECE` characters. If the search takes too long, the
    whole text is withheld.
    """
    try:
        return Needles(values).without_pieces(text)
    except TooMuch:
        return WITHHELD


class TooMuch(Exception):
    """Searching for the values would take more than `SECONDS`."""


class Needles:
    """The strings to search for: every form of every part of the values, the longest first.

    The constructor and each method raise `TooMuch` if they have taken more than `SECONDS` in total.
    """

    def __init__(self, values: Iterable[object]) -> None:
        self._deadline = _clock() + SECONDS
        forms: set[str] = set()
        size = 0
        for text in (text for value in values for leaf in _leaves(value) for text in _strings(leaf)):
            size += len(text)
            if size > MAX_SIZE:
                raise TooMuch
            for part in _parts(text):
                forms.update(_forms_of(part))
                self._hurry(len(forms))
        # A form that consists only of asterisks is hidden already, and would match every mask.
        long_enough = (form for form in forms if len(form) >= MIN_LENGTH and form.strip("*"))
        self._forms = sorted(long_enough, key=lambda form: (-len(form), form))

    def _hurry(self, count: int = 0) -> None:
        if count > _MAX_VALUES or _clock() > self._deadline:
            raise TooMuch

    def scrubbed(self, text: str) -> str:
        """Return `text` with each form replaced by a mask."""
        if len(text) > MAX_SEARCHED:
            text = f"{text[: MAX_SEARCHED // 2]}\n…\n{text[-MAX_SEARCHED // 2 :]}"
        for form in self._forms:
            self._hurry()
            text = text.replace(form, MASK)
        return text

    def without_pieces(self, text: str) -> str:
        """Return `text` with each longer piece of a form replaced by a mask."""
        windows = {text[i : i + PIECE] for i in range(len(text) - PIECE + 1)}
        found = set()
        for form in self._forms:
            self._hurry()
            found.update(windows.intersection(_pieces(form)))
        if not found:
            return text
        covered = bytearray(len(text))
        for i in range(len(text) - PIECE + 1):
            if text[i : i + PIECE] in found:
                covered[i : i + PIECE] = b"\x01" * PIECE
        return _masked_where(covered, text)


def _masked_where(covered: bytearray, text: str) -> str:
    parts = []
    start = 0
    while (begin := covered.find(1, start)) >= 0:
        end = covered.find(0, begin)
        end = len(text) if end < 0 else end
        parts += [text[start:begin], MASK]
        start = end
    return "".join([*parts, text[start:]])


def _pieces(form: str) -> Iterator[str]:
    for part in (form,) if len(form) <= 2 * _ENDS else (form[:_ENDS], form[-_ENDS:]):
        for i in range(len(part) - PIECE + 1):
            yield part[i : i + PIECE]


def _parts(text: str) -> Iterator[str]:
    """Yield `text` and its stripped lines: an error may print them with a different indentation, or only some."""
    yield text
    if (stripped := text.strip()) != text:
        yield stripped
    lines = re.split(_LINE_BREAK, text)
    if len(lines) > 1:
        yield from filter(None, map(str.strip, lines))


def _forms_of(text: str) -> Iterator[str]:
    yield text
    yield repr(text)[1:-1]
    yield ascii(text)[1:-1]
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    encodable = text.encode("utf-8", "replace")
    yield quote(encodable)
    yield quote(encodable, safe="")
    yield quote_plus(encodable)


def _strings(leaf: object) -> Iterator[str]:
    if isinstance(leaf, str):
        yield str.__str__(leaf)
        return
    if isinstance(leaf, bytes):
        yield repr(leaf)[2:-1]
        yield leaf.decode("utf-8", "replace")
        return
    for show in (str, repr):
        try:
            yield show(leaf)
        except Exception:  # the argument's own `__str__()` or `__repr__()` failed
            continue


def _leaves(value: object) -> Iterator[object]:
    """Yield the parts of `value` that have no parts themselves, such as strings and numbers."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, dict):
        parts: Iterable[object] = value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        parts = value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif hasattr(type(value), "__pydantic_fields__"):
        parts = list(vars(value).values())
    else:
        yield value
        return
    for part in parts:
        yield from _leaves(part)
