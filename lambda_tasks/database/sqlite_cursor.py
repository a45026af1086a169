"""A cursor for SQLite that converts the placeholders of each statement only once.

In each statement that it runs, Django replaces `%s` by SQLite's `?`. That took a task 200,000 of 1,290,000 instructions
(`python -m benchmarks.instructions`).
"""

from __future__ import annotations

from typing import Any, Final

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

#: How many statements a cursor remembers. A task has two; an INSERT of many rows has different SQL for each number.
_KEPT: Final = 32


class ConvertingCursor(SQLiteCursorWrapper):
    """Django's cursor for SQLite, which remembers what it has converted."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._converted: dict[str, str] = {}

    def convert_query(self, query: str, *, param_names: Any = None) -> str:
        if param_names is not None:
            return super().convert_query(query, param_names=param_names)
        converted = self._converted.get(query)
        if converted is None:
            if len(self._converted) >= _KEPT:
                self._converted.clear()
            converted = self._converted[query] = super().convert_query(query)
        return converted
