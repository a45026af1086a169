"""Whether what arrives is what was sent: compared type by type, since 1 == True and an enum equals its text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import datetime, time
from enum import Enum
from typing import Any, Final, NamedTuple

from lambda_tasks.storable import storable


class Difference(NamedTuple):
    """Where an argument would arrive other than it was sent."""

    path: tuple[object, ...]
    sent: object
    arrived: object

    @property
    def where(self) -> str:
        return ".".join(map(shown, self.path))

    @property
    def how(self) -> str:
        """Say it in types, without values."""
        if type(self.sent) is type(self.arrived):
            return "with another value"
        return f"as {type(self.arrived).__qualname__} and not as {type(self.sent).__qualname__}"


def first_difference(sent: object, arrived: object, path: tuple[object, ...]) -> Difference | None:
    """Return the first place in which `arrived` is not what was `sent`; None if all of it is."""
    if type(sent) in _PLAIN and type(sent) is type(arrived) and sent == arrived:
        return None  # as most arguments are
    if isinstance(sent, list) and isinstance(arrived, list) and _plainly_equal(sent, arrived):
        return None
    parts = _parts(sent)
    if parts is None:
        return None if _arrived_whole(sent, arrived) else Difference(path, sent, arrived)
    others = _parts(arrived) or []
    if type(sent) is not type(arrived) or len(parts) != len(others):
        return Difference(path, sent, arrived)
    for (label, part), (_, other) in zip(parts, others, strict=True):
        if change := first_difference(part, other, (*path, label)):
            return change
    return None


def _plainly_equal(sent: list[object], arrived: list[object]) -> bool:
    """Compare lists of one plain type, which may be long, at once; False means that it is not so easy."""
    types = set(map(type, sent))
    return len(types) == 1 and types <= _PLAIN and types == set(map(type, arrived)) and sent == arrived


def _parts(value: object) -> list[tuple[object, object]] | None:
    """Return what `value` consists of, each part with its label; None for what is compared as a whole."""
    if type(value) in _PLAIN:
        return None
    if isinstance(value, dict):
        return [part for key, item in value.items() for part in ((f"{shown(key)}[key]", key), (key, item))]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return _attributes(value, (field.name for field in dataclasses.fields(value)))
    if hasattr(type(value), "__pydantic_fields__"):
        model: Any = value
        return [
            *_attributes(model, type(model).__pydantic_fields__),
            *(model.__pydantic_extra__ or {}).items(),
            *(model.__pydantic_private__ or {}).items(),
        ]
    return None


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


def _attributes(value: object, names: Iterable[str]) -> list[tuple[object, object]]:
    return [(name, getattr(value, name, None)) for name in names]


def _arrived_whole(sent: object, arrived: object) -> bool:
    if type(sent) in _PLAIN:
        return type(sent) is type(arrived) and sent == arrived
    if isinstance(sent, datetime | time) and isinstance(arrived, datetime | time):
        # By wall clock and offset: in the hour that a change of the clocks repeats, == is false for the
        # same moment in another time zone (PEP 495). A frozen clock's subclass may arrive as its base.
        return isinstance(sent, type(arrived)) and _clock(sent) == _clock(arrived)
    if isinstance(sent, set | frozenset) and isinstance(arrived, set | frozenset):
        return equal(sent, arrived) and Counter(map(type, sent)) == Counter(map(type, arrived))
    if isinstance(sent, Enum) and type(sent) is not type(arrived):
        return False
    return isinstance(sent, type(arrived)) and equal(sent, arrived)


def _clock(moment: datetime | time) -> tuple[object, ...]:
    return moment.replace(tzinfo=None), moment.utcoffset(), moment.tzinfo is None


def equal(left: object, right: object) -> bool:
    try:
        return bool(left == right)
    except Exception:
        return False


def problems_of(error: Any, *, whole: str, hidden: Collection[str] = ()) -> str:
    """Say what a `ValidationError` of pydantic's found, without the input itself: it may be a secret, or long.

    `whole` names the input where no part of it is at fault. Of arguments that are `hidden` only the
    name and the kind of the problem are said: whoever wrote a validator may quote what it was given.
    """
    problems = error.errors(include_input=False, include_url=False)
    said = [_said(problem["loc"], problem, whole, hidden) for problem in problems[:_SAID_PROBLEMS]]
    if len(problems) > _SAID_PROBLEMS:
        said.append(f"and {len(problems) - _SAID_PROBLEMS} more")
    return "; ".join(said)


#: What a message has wrong after so many problems is no news.
_SAID_PROBLEMS: Final = 5


def _said(path: tuple[object, ...], problem: Any, whole: str, hidden: Collection[str]) -> str:
    if path and path[0] in hidden:
        return f"{shown(path[0])}: {problem['type']}"
    return f"{'.'.join(map(shown, path)) or whole}: {storable(problem['msg'], max_length=500)}"


def shown(part: object) -> str:
    """Return a part of a path, which may be the key of a dict, so that it can be printed."""
    return storable(str(part), max_length=50)
