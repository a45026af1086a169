"""Read a task's arguments without pydantic, whose import takes a third of a cold start.

Most tasks take strings, numbers and lists of them. This module accepts only values that pydantic would accept too, and
returns the same values as pydantic. All other annotations and values are left to pydantic.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeAlias


class _NotPlain(ValueError):
    """An annotation or a value that only pydantic can handle."""


def _refuse(text: str) -> Any:
    raise _NotPlain(text)


def evaluated(parameters: Mapping[str, inspect.Parameter], namespace: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluated annotations of the parameters, without that of the return value.

    The return annotation may name a type that cannot be imported.
    """

    def bare() -> None: ...

    bare.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return typing.get_type_hints(bare, globalns=namespace, include_extras=True)


#: Returns the value that the task receives, copied if it is mutable; raises `_NotPlain`.
_Reader: TypeAlias = Callable[[Any], Any]


class PlainArguments:
    """Reads the arguments of a task whose annotations are all plain: JSON scalars, lists and dicts of them, and Any."""

    def __init__(self, readers: Mapping[str, _Reader], required: frozenset[str]) -> None:
        self._readers = readers
        self._required = required

    @classmethod
    def of(cls, annotations: Mapping[str, Any], *, required: frozenset[str]) -> PlainArguments | None:
        """Return a reader for arguments with these evaluated annotations; None if one of them is not plain."""
        try:
            return cls({name: _reader_of(annotation) for name, annotation in annotations.items()}, required)
        except _NotPlain:
            return None

    def read(self, encoded: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments for the function; None if pydantic has to validate them."""
        if not self._required <= encoded.keys() <= self._readers.keys():
            return None
        try:
            return {name: self._readers[name](value) for name, value in encoded.items()}
        except _NotPlain:
            return None


def _reader_of(annotation: Any) -> _Reader:
    if annotation is None or annotation is type(None):
        return _exactly(type(None))
    if annotation is Any:
        return deepcopy
    for kind in (str, int, bool, float):
        if annotation is kind:
            return _exactly(kind)
    parts = typing.get_args(annotation)
    match typing.get_origin(annotation):
        case typing.Union | types.UnionType:
            return _one_of([_reader_of(part) for part in parts])
        case builtin if builtin is list:
            return _list_of(_reader_of(parts[0]))
        case builtin if builtin is dict and parts[0] is str:
            return _dict_of(_reader_of(parts[1]))
    raise _NotPlain(str(annotation))


def _exactly(kind: type) -> _Reader:
    def read(value: Any) -> Any:
        # pydantic converts an int to a float if a float is annotated. True is not accepted as an int.
        return value if type(value) is kind else _refuse(kind.__name__)

    return read


def _one_of(readers: list[_Reader]) -> _Reader:
    def read(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except _NotPlain:
                continue
        return _refuse("union")

    return read


def _list_of(reader: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        return [reader(item) for item in value] if type(value) is list else _refuse("list")

    return read


def _dict_of(reader: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        return {key: reader(item) for key, item in value.items()} if type(value) is dict else _refuse("dict")

    return read
