"""Write blocks of Terraform's configuration language, in the layout of `terraform fmt`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from lambda_tasks.operations.infrastructure.yaml_text import comment_lines

_INDENT: Final = "  "
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression, such as a reference, that is written as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Template:
    """A string that contains references: `${…}` in it is not escaped."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function with one argument, such as `jsonencode`."""

    function: str
    argument: Value


@dataclass(frozen=True, slots=True)
class Noted:
    """A value with a comment above it."""

    value: Value
    comment: str


@dataclass(frozen=True, slots=True)
class Block:
    """A block with its labels. Its body consists of attributes, each a name with a value, and of blocks."""

    kind: str
    labels: tuple[str, ...]
    body: Sequence[tuple[str, Value] | Block]


Value: TypeAlias = str | int | bool | Expression | Template | Call | Noted | Sequence["Value"] | Mapping[str, "Value"]


def write(blocks: Iterable[Block]) -> str:
    """Return the text of the blocks, with an empty line between them."""
    return "\n".join("\n".join(_block(block, "")) + "\n" for block in blocks)


def _block(block: Block, indent: str) -> Iterator[str]:
    head = " ".join([block.kind, *(f'"{label}"' for label in block.labels)])
    if not block.body:
        yield f"{indent}{head} {{}}"
        return
    yield f"{indent}{head} {{"
    attributes: list[tuple[str, Value]] = []
    is_first = True
    for entry in block.body:
        if not isinstance(entry, Block):
            attributes.append(entry)
            continue
        yield from _attributes(attributes, indent + _INDENT)
        if attributes or not is_first:
            yield ""
        attributes, is_first = [], False
        yield from _block(entry, indent + _INDENT)
    if attributes and not is_first:
        yield ""
    yield from _attributes(attributes, indent + _INDENT)
    yield f"{indent}}}"


def _attributes(attributes: Sequence[tuple[str, Value]], indent: str) -> Iterator[str]:
    """Yield the lines of attributes. The equals signs of neighbouring lines are in one column."""
    group: list[tuple[str, str]] = []
    for name, value in attributes:
        comment = value.comment if isinstance(value, Noted) else ""
        first, *rest = _lines(value, indent)
        if comment or rest:
            yield from _aligned(group, indent)
            group = []
        if comment:
            yield from comment_lines(comment, indent)
        group.append((name, first))
        if rest:
            yield from _aligned(group, indent)
            group = []
            yield from rest
    yield from _aligned(group, indent)


def _aligned(group: Sequence[tuple[str, str]], indent: str) -> Iterator[str]:
    width = max((len(name) for name, _ in group), default=0)
    for name, text in group:
        yield f"{indent}{name.ljust(width)} = {text}"


def _lines(value: Value, indent: str) -> list[str]:
    """Return the lines of a value. The first one follows the equals sign, and the others have their indentation."""
    if isinstance(value, Noted):
        return _lines(value.value, indent)
    if isinstance(value, Call):
        first, *rest = _lines(value.argument, indent)
        lines = [f"{value.function}({first}", *rest]
        return [*lines[:-1], f"{lines[-1]})"]
    if isinstance(value, Mapping) and value:
        inner = [(_key(key), item) for key, item in value.items()]
        return ["{", *_attributes(inner, indent + _INDENT), f"{indent}}}"]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return _list(value, indent)
    return [_scalar(value)]


def _list(values: Sequence[Value], indent: str) -> list[str]:
    if len(values) == 1 and not isinstance(values[0], Mapping):
        return [f"[{_scalar(values[0])}]"]
    lines = ["["]
    for value in values:
        first, *rest = _lines(value, indent + _INDENT)
        item = [f"{indent}{_INDENT}{first}", *rest]
        lines += [*item[:-1], f"{item[-1]},"]
    return [*lines, f"{indent}]"]


def _key(key: str) -> str:
    return key if _IDENTIFIER.fullmatch(key) else _scalar(key)


def _scalar(value: Value) -> str:
    match value:
        case Expression(text):
            return text
        case Template(text):
            return json.dumps(text, ensure_ascii=False)
        case bool():
            return "true" if value else "false"
        case str():
            # Doubled signs are not the beginning of a template.
            return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")
        case int():
            return str(value)
    return "{}" if isinstance(value, Mapping) else "[]"
