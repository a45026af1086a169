"""What a search in the list of records means: an id, arguments, or words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from uuid import UUID

from django.db import connections

from lambda_tasks.admin.filters import latest
from lambda_tasks.recording.storable import unstorable
from lambda_tasks.registry import discover_tasks

if TYPE_CHECKING:
    from django.db.models import QuerySet

    from lambda_tasks.models import TaskRecord

    _Records = QuerySet[TaskRecord]

#: The maximum number of characters and words in a search. Each word is a condition, and SQLite limits both the
#: length of a pattern and the number of conditions.
MOST_CHARACTERS: Final = 500
MOST_WORDS: Final = 50


@dataclass(frozen=True, slots=True)
class ById:
    """Find an invocation, or the chain of retries that it began."""

    key: UUID


@dataclass(frozen=True, slots=True)
class ByArguments:
    """Find invocations whose arguments contain these values, at any depth of the dicts and lists."""

    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ByWords:
    """Find invocations that have each word in the name of the task or in the traceback."""

    text: str


@dataclass(frozen=True, slots=True)
class TooLong:
    """Find nothing: the search has too many characters or words."""


Search: TypeAlias = ById | ByArguments | ByWords | TooLong


def read(text: str) -> Search:
    """Return the meaning of a search.

    `{"order_id": 42}` and `order_id=42` search for arguments. The value after the `=` is JSON, or else a string.
    """
    text = text.strip()
    try:
        return ById(UUID(text))
    except ValueError:
        pass
    if len(text) > MOST_CHARACTERS:
        return TooLong()
    arguments = _arguments(text)
    if arguments is not None and unstorable(arguments) is None:
        return ByArguments(arguments)
    return TooLong() if len(text.split()) > MOST_WORDS else ByWords(text)


def _arguments(text: str) -> dict[str, Any] | None:
    if text.startswith("{"):
        value = _json(text)
        return value if isinstance(value, dict) and value else None
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        return None
    value = value.strip()
    parsed = _json(value)
    return {name.strip(): value if parsed is None and value != "null" else parsed}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def can_search_arguments(database: str) -> bool:
    return bool(connections[database].features.supports_json_field_contains)


def with_arguments(records: _Records, arguments: dict[str, Any]) -> _Records:
    """Return those of the latest records whose arguments contain `arguments`.

    Records of tasks for which one of these parameters is sensitive are left out, because a record from the time
    before the parameter was sensitive contains its value.
    """
    found: _Records = latest(records).filter(kwargs__contains=arguments)
    hiding = (task for task in discover_tasks() if not arguments.keys().isdisjoint(task.sensitive))
    hidden = [name for task in hiding for name in (task.name, *task.aliases)]
    return found.exclude(task_name__in=hidden) if hidden else found
