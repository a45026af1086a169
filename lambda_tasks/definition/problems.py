"""Describe the problems of arguments for errors: with the value and its type, unless the argument is sensitive."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Collection, Iterator, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from lambda_tasks.recording.storable import printable, shown

#: The length of the longest value that an error shows in full.
_MOST_SHOWN: Final = 100
#: The number of problems that an error describes. More would not help the reader.
_SAID_PROBLEMS: Final = 5
#: Problems whose value says nothing, by their type in pydantic.
_SAID: Final = {
    "missing": "is missing",
    "missing_keyword_only_argument": "is missing",
    "extra_forbidden": "is unknown",
    "unexpected_keyword_argument": "is unknown",
}
#: The `repr()` of these types is short and has no side effects; that of a queryset would query the database.
_SAFE: Final = (int, float, complex, bytes, type(None), date, time, timedelta, tzinfo, Decimal, UUID, PurePath)


class _Repr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _MOST_SHOWN

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, Enum):
            return f"{type(x).__qualname__}.{x.name}"
        if isinstance(x, str):
            return self.repr_str(str.__str__(x), level)
        if isinstance(x, _SAFE) and type(x).__module__ in ("builtins", "datetime", "decimal", "uuid", "pathlib"):
            return super().repr_instance(x, level)
        return f"<{type(x).__qualname__} object>"


_repr: Final = _Repr()


def quoted(value: object) -> str:
    """Return `value` and its type in one short line, such as "'7' (str)"; objects of other classes by their type."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if is_lazy(value):
        return "a lazily translated string"
    try:
        text = _repr.repr(value)
    except Exception:  # a subclass of a list may fail
        text = f"<{name} object>"
    if text == f"<{kind.__qualname__} object>":
        return printable(f"an object of the type {name}", max_length=_MOST_SHOWN)
    if value is None:
        return text
    return f"{printable(text, max_length=_MOST_SHOWN)} ({printable(name, max_length=_MOST_SHOWN)})"


def is_lazy(value: object) -> bool:
    """Return whether `value` is lazily evaluated text, as `gettext_lazy()` returns."""
    from django.utils.functional import Promise

    return isinstance(value, Promise)


def find_lazy(value: object) -> object | None:
    """Return a lazily translated string in `value`, or None if it contains none."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if is_lazy(part):
            return part
        if isinstance(part, dict | list | tuple | set) and id(part) not in seen:  # a value may contain itself
            seen.add(id(part))
            waiting.extend(part.values() if isinstance(part, dict) else part)
    return None


def remedy_for(value: object) -> str | None:
    """Return what to pass instead of `value`, if its type has an obvious substitute that JSON can represent."""
    if is_lazy(value):
        return "Translate it first: pass str(…) of the lazily translated string."
    if isinstance(value, Enum):
        return "Pass its .value, or annotate the enum."
    if isinstance(value, dict) and type(value) is not dict:
        return f"Pass dict(…) of the {type(value).__qualname__}."
    if isinstance(value, tuple | set | frozenset):
        return f"Pass a list, or annotate the {type(value).__qualname__}."
    return None


def problems_of(
    error: Any,
    *,
    whole: str,
    hidden: Collection[str] = (),
    quoting: bool = False,
    sent: Mapping[str, Any] | None = None,
) -> str:
    """Describe the problems in pydantic's `ValidationError`; with `quoting`, show the values.

    `whole` names the input if the problem is not in a part of it. `sent` has the values if the input was their JSON.
    For `hidden` arguments, the description has only the name and the type of the problem: the message of a custom
    validator may quote its input.
    """
    problems = error.errors(include_url=False)
    if sent is not None:
        problems = [{**each, "input": _at(each["loc"] or (whole,), sent)} for each in problems]
    said = [_said(problem, whole, hidden, quoting=quoting) for problem in problems[:_SAID_PROBLEMS]]
    if len(problems) > _SAID_PROBLEMS:
        said.append(f"and {len(problems) - _SAID_PROBLEMS} more")
    return "; ".join([*said, *dict.fromkeys(_remedies(problems, hidden))])


def _at(path: tuple[object, ...], value: Any) -> object:
    """Return the part of `value` at `path`, or the smallest part that contains it."""
    for step in path:
        if _has_item(value, step):
            value = value[step]
        elif isinstance(step, str) and _has_fields(value) and hasattr(value, step):
            value = getattr(value, step)
        else:
            break
    return value


def _has_item(value: object, step: object) -> bool:
    if isinstance(value, list | tuple):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value


def _has_fields(value: object) -> bool:
    return dataclasses.is_dataclass(value) or hasattr(type(value), "__pydantic_fields__")


def _said(problem: Any, whole: str, hidden: Collection[str], *, quoting: bool) -> str:
    path, kind = problem["loc"], problem["type"]
    if path and path[0] in hidden:
        return f"{shown(path[0])}: {kind}"
    where = ".".join(map(shown, path)) or whole
    if kind in _SAID:
        return f"{where} {_SAID[kind]}"
    text = printable(problem["msg"], max_length=500)
    should = text.removeprefix("Input should ")
    said = f"{where}: {text}" if should == text else f"{where} must {should}"
    given = problem["input"]
    return f"{said}, not {quoted(given)}" if quoting else f"{said}, not {type(given).__qualname__}"


def _remedies(problems: list[Any], hidden: Collection[str]) -> Iterator[str]:
    for problem in problems[:_SAID_PROBLEMS]:
        if is_lazy(problem["input"]) and problem["loc"][:1] and problem["loc"][0] not in hidden:
            yield remedy_for(problem["input"]) or ""
