"""What a worker reads without pydantic, whose import is a third of a cold start.

Most messages carry texts, numbers and lists of them. What is accepted here is what pydantic would accept,
and comes out as it would come out there; of all else nothing is said here, and pydantic decides.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from lambda_tasks.storable import MAX_DEPTH, depth

#: Names as nearly all tasks have them; messages may have others.
_TASK_NAME: Final = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+")
#: The most that the columns of a record hold.
MAX_NAME_LENGTH: Final = 255
MAX_RETRY_NUMBER: Final = 2**31 - 1
_FIELDS: Final = frozenset({"task_name", "kwargs", "n_retries"})
#: What may be NUL or half of a character. A backslash before it may make it harmless; then pydantic says so.
_DOUBTFUL: Final = re.compile(r"\\u(?:0000|[dD][89a-fA-F])|[\ud800-\udfff]")

_encoder: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class _Doubtful(ValueError):
    """Something that is not plain."""


def _refuse(text: str) -> Any:
    raise _Doubtful(text)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


_decoder: Final = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)


@dataclass(frozen=True, slots=True)
class Invocation:
    """One invocation as a worker has it: what `SQSLambdaTaskMessage` is, without pydantic."""

    task_name: str
    kwargs: dict[str, Any] = field(repr=False)
    n_retries: int = 0

    @classmethod
    def plain(cls, body: str) -> Invocation | None:
        """Read the body of a message; None if it is no plain one, or none at all."""
        if _DOUBTFUL.search(body):
            return None
        try:
            content = _decoder.decode(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(content, dict) or not content.keys() <= _FIELDS:
            return None
        name, kwargs, n_retries = content.get("task_name"), content.get("kwargs", {}), content.get("n_retries", 0)
        if not (isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _TASK_NAME.fullmatch(name)):
            return None
        if type(n_retries) is not int or not 0 <= n_retries <= MAX_RETRY_NUMBER:
            return None
        if not isinstance(kwargs, dict) or _too_deep(kwargs, body):
            return None
        return cls(name, kwargs, n_retries)

    def to_body(self) -> str:
        """Return the body of a message: JSON in ASCII, of which SQS takes every character."""
        shape: dict[str, Any] = {"task_name": self.task_name, "kwargs": self.kwargs}
        return _encoder.encode(shape | {"n_retries": self.n_retries} if self.n_retries else shape)

    def next_retry(self) -> Invocation:
        """Return the invocation that repeats this one."""
        return replace(self, n_retries=self.n_retries + 1)


def _too_deep(kwargs: dict[str, Any], body: str) -> bool:
    # Fewer brackets than that cannot be nested any deeper.
    if body.count("[") + body.count("{") <= MAX_DEPTH:
        return False
    try:
        return depth(kwargs) > MAX_DEPTH
    except RecursionError:
        return True


#: Returns a value as the task gets it, new where it can be changed; raises `_Doubtful`.
_Reader: TypeAlias = Callable[[Any], Any]


class PlainArguments:
    """Reads the arguments of a task whose annotations are all plain: of JSON's own types, lists and dicts of them."""

    def __init__(self, readers: Mapping[str, _Reader], required: frozenset[str]) -> None:
        self._readers = readers
        self._required = required

    @classmethod
    def of(cls, annotations: Mapping[str, Any], *, required: frozenset[str]) -> PlainArguments | None:
        """Return what reads arguments with these evaluated annotations; None if one is not plain."""
        try:
            return cls({name: _reader_of(annotation) for name, annotation in annotations.items()}, required)
        except _Doubtful:
            return None

    def read(self, encoded: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the arguments as the function takes them; None if pydantic has to look at them."""
        if not self._required <= encoded.keys() <= self._readers.keys():
            return None
        try:
            return {name: self._readers[name](value) for name, value in encoded.items()}
        except _Doubtful:
            return None


def _reader_of(annotation: Any) -> _Reader:
    if annotation is None or annotation is type(None):
        return _exactly(type(None))
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
    raise _Doubtful(str(annotation))


def _exactly(kind: type) -> _Reader:
    def read(value: Any) -> Any:
        # An int where a float is annotated is pydantic's to convert, and True is no int.
        return value if type(value) is kind else _refuse(kind.__name__)

    return read


def _one_of(readers: list[_Reader]) -> _Reader:
    def read(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except _Doubtful:
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
