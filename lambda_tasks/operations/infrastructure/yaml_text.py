"""Write plain data as YAML with comments and the short tags of CloudFormation. YAML libraries are not needed."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

_WIDTH: Final = 100
_INDENT: Final = "  "
#: Matches strings that need no quotes: no other type of YAML 1.1 or 1.2 has this form.
_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*(?:::?[A-Za-z0-9_./*-]+)*")
_WORDS_OF_YAML: Final = re.compile(r"(?:y|n|yes|no|on|off|true|false|null)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Tag:
    """A short form of an intrinsic function, such as `!GetAtt Queue.Arn`."""

    name: str
    argument: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A value with a comment above it."""

    value: Value
    comment: str


Value: TypeAlias = str | int | bool | Tag | Noted | Sequence["Value"] | Mapping[str, "Value"]


def write(document: Mapping[str, Value]) -> str:
    """Return the text of a document, with an empty line between its resources."""
    parts = []
    for key, value in document.items():
        lines = list(_entry(key, value, ""))
        if key == "Resources":
            lines = _spaced(lines)
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def comment_lines(text: str, indent: str) -> Iterator[str]:
    """Yield the lines of a comment, wrapped."""
    yield from textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _spaced(lines: Sequence[str]) -> list[str]:
    """Put an empty line before each entry of the outermost mapping but the first."""
    spaced: list[str] = []
    for line in lines:
        starts = re.match(r"  \S", line) is not None
        follows_comment = bool(spaced) and spaced[-1].startswith("  #")
        if starts and len(spaced) > 1 and not follows_comment:
            spaced.append("")
        spaced.append(line)
    return spaced


def _entry(key: str, value: Value, indent: str) -> Iterator[str]:
    if isinstance(value, Noted):
        yield from comment_lines(value.comment, indent)
        value = value.value
    name = _scalar(key)
    if isinstance(value, Mapping) and value:
        yield f"{indent}{name}:"
        for inner, item in value.items():
            yield from _entry(inner, item, indent + _INDENT)
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        yield f"{indent}{name}:"
        for item in value:
            yield from _item(item, indent + _INDENT)
    else:
        yield f"{indent}{name}: {_scalar(value)}"


def _item(value: Value, indent: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{indent}- {_scalar(value)}"
        return
    first, *rest = [line for key, item in value.items() for line in _entry(key, item, indent + _INDENT)]
    yield f"{indent}- {first.strip()}"
    yield from rest


def _scalar(value: Value) -> str:
    if isinstance(value, Tag):
        return f"!{value.name} {_scalar(value.argument)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and not _WORDS_OF_YAML.fullmatch(value):
        return value
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, str) and '"' in value and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    # A string of JSON is a string of YAML in double quotes. Unprintable characters, such as U+2028, are escaped.
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())
