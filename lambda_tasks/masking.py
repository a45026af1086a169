"""What stands in the place of sensitive arguments, in records and in logs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

#: What Django shows in the place of passwords in its error reports.
MASK: Final = "********************"
#: Characters of a text or a number below which it is not looked for: every other word would be masked.
MIN_LENGTH: Final = 4
#: Characters of a piece that is recognised where somebody has shortened a text, as pydantic does in its errors.
PIECE: Final = 12
#: How much of each end of a text its pieces are taken from: who shortens it keeps its ends.
_ENDS: Final = 10_000
#: Values above which no text is searched for them: it would take longer than the text is worth.
_MAX_VALUES: Final = 1_000

_WITHHELD: Final = f"{MASK} (withheld: the sensitive arguments have too many values to look for)"


def masked(arguments: Mapping[str, Any], sensitive: Iterable[str]) -> dict[str, Any]:
    """Return `arguments` with a mask in the place of each that is `sensitive`."""
    return {**arguments, **{name: MASK for name in sensitive if name in arguments}}


def scrubbed(text: str, values: Iterable[object]) -> str:
    """Return `text` without what stands in `values`: their texts and numbers, wherever they are nested.

    Found are those of at least `MIN_LENGTH` characters, as they are and as Python, JSON and URLs quote them.
    """
    forms = _forms(values)
    if len(forms) > _MAX_VALUES:
        return _WITHHELD
    for form in forms:
        text = text.replace(form, MASK)
    return text


def without_pieces(text: str, values: Iterable[object]) -> str:
    """Return `text` without longer pieces of `values`, such as are left where a text was shortened.

    `text` should be of a limited length; a piece has at least `PIECE` characters.
    """
    windows = {text[i : i + PIECE] for i in range(len(text) - PIECE + 1)}
    found = {piece for form in _forms(values) for piece in _pieces(form) if piece in windows}
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


def _forms(values: Iterable[object]) -> list[str]:
    """Return every form in which a part of `values` may stand in a text, the longest first."""
    forms: set[str] = set()
    for value in values:
        for leaf in _leaves(value):
            forms.update(_forms_of(leaf))
            if len(forms) > _MAX_VALUES:
                return list(forms)
    # What consists of asterisks alone is hidden already, and would be found in every mask.
    long_enough = (form for form in forms if len(form) >= MIN_LENGTH and form.strip("*"))
    return sorted(long_enough, key=lambda form: (-len(form), form))


def _forms_of(leaf: object) -> Iterator[str]:
    for text in _texts(leaf):
        yield text
        yield repr(text)[1:-1]
        yield ascii(text)[1:-1]
        yield json.dumps(text)[1:-1]
        encodable = text.encode("utf-8", "replace")
        yield quote(encodable)
        yield quote(encodable, safe="")
        yield quote_plus(encodable)


def _texts(leaf: object) -> Iterator[str]:
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
        except Exception:  # whatever the type of an argument does there
            continue


def _leaves(value: object) -> Iterator[object]:
    """Go through what `value` consists of, down to texts, numbers and other values without parts."""
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
