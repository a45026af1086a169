"""Compare the arguments that arrive with those that were sent.

The comparison includes the types, since 1 == True and a string enum equals its string.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, time
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

from lambda_tasks.recording.storable import shown

#: Tells whether a value without parts has arrived.
Comparison: TypeAlias = Callable[[object, object], bool]


class Difference(NamedTuple):
    """The place of a value that would arrive differently from how it was sent, and both values."""

    path: tuple[object, ...]
    sent: object
    arrived: object

    @property
    def where(self) -> str:
        return ".".join(map(shown, self.path))

    @property
    def how(self) -> str:
        """Describe the difference by the types, without the values."""
        if type(self.sent) is type(self.arrived):
            return "with a different value"
        return f"as {type(self.arrived).__qualname__} instead of {type(self.sent).__qualname__}"


def first_difference(
    sent: object, arrived: object, path: tuple[object, ...], *, same: Comparison | None = None
) -> Difference | None:
    """Return the first difference between `sent` and `arrived`; None if they are the same.

    `same` compares values that have no parts; without it, they must be equal, and may differ in type only if the type
    that arrives is a base class.
    """
    if type(sent) in _PLAIN and type(sent) is type(arrived) and sent == arrived:
        return None  # the usual case
    if isinstance(sent, list) and isinstance(arrived, list) and _plainly_equal(sent, arrived):
        return None
    parts = _parts(sent)
    if parts is None:
        return None if (same or _arrived_whole)(sent, arrived) else Difference(path, sent, arrived)
    others = _parts(arrived) or []
    if type(sent) is not type(arrived) or len(parts) != len(others):
        return Difference(path, sent, arrived)
    for (label, part), (_, other) in zip(parts, others, strict=True):
        if change := first_difference(part, other, (*path, label), same=same):
            return change
    return None


def conversion(given: object, accepted: object, path: tuple[object, ...]) -> Difference | None:
    """Return the first value that validation has converted to a type that is not a base class of its own type."""
    if given is accepted or (type(given) in _PLAIN and type(given) is type(accepted) and given == accepted):
        return None
    if not isinstance(given, type(accepted)):
        return Difference(path, given, accepted)
    if isinstance(given, set | frozenset):
        return None if _only_subclasses(given, accepted) else Difference(path, given, accepted)
    parts = _parts(given)
    if parts is None:
        return None if equal(given, accepted) else Difference(path, given, accepted)
    others = _parts(accepted) or []
    if len(parts) != len(others):
        return Difference(path, given, accepted)
    # A parent class's labels may differ: those of a NamedTuple's fields are those of a tuple's items.
    for (label, part), (_, other) in zip(parts, others, strict=True):
        if change := conversion(part, other, (*path, label)):
            return change
    return None


def _only_subclasses(given: Collection[object], accepted: Any) -> bool:
    types = {type(item) for item in accepted}
    return equal(given, accepted) and all(any(issubclass(type(item), each) for each in types) for item in given)


def same_by(read_as_another_member: Comparison) -> Comparison:
    """Return a comparison that also accepts another member of a union with the same JSON."""

    def alike(sent: object, arrived: object) -> bool:
        # A value that arrives as its own type, but not equal, has lost something: a time its zone.
        own_type = type(sent) not in _PLAIN and isinstance(sent, type(arrived))
        return not own_type and read_as_another_member(sent, arrived)

    def same(sent: object, arrived: object) -> bool:
        if _arrived_whole(sent, arrived):
            return True
        if isinstance(sent, set | frozenset) and isinstance(arrived, set | frozenset) and len(sent) == len(arrived):
            missing, new = _typed(sent) - _typed(arrived), _typed(arrived) - _typed(sent)
            return all(any(alike(item, other) for _, other in new) for _, item in missing)
        return alike(sent, arrived)

    return same


def _plainly_equal(sent: list[object], arrived: list[object]) -> bool:
    """Tell whether two lists of one plain type are equal, without a loop, since they may be long.

    False also means that the items have to be compared one by one.
    """
    types = set(map(type, sent))
    return len(types) == 1 and types <= _PLAIN and types == set(map(type, arrived)) and sent == arrived


def _parts(value: object) -> list[tuple[object, object]] | None:
    """Return the parts of `value`, each with its label; None if `value` is compared as a whole."""
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
        # Compare the wall clock and the offset: in the hour that the end of daylight saving time repeats, == is False
        # for the same moment in another time zone (PEP 495). A subclass, such as freezegun's, may arrive as its base.
        return isinstance(sent, type(arrived)) and _clock(sent) == _clock(arrived)
    if isinstance(sent, set | frozenset) and isinstance(arrived, set | frozenset):
        return equal(sent, arrived) and Counter(map(type, sent)) == Counter(map(type, arrived))
    if isinstance(sent, Enum) and type(sent) is not type(arrived):
        return False
    return isinstance(sent, type(arrived)) and equal(sent, arrived)


def _clock(moment: datetime | time) -> tuple[object, ...]:
    return moment.replace(tzinfo=None), moment.utcoffset(), moment.tzinfo is None


def _typed(values: Iterable[object]) -> set[tuple[type, object]]:
    return {(type(value), value) for value in values}


def equal(left: object, right: object) -> bool:
    try:
        return bool(left == right)
    except Exception:
        return False
