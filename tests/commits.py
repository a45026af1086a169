"""Do something else at the next COMMIT of a connection, whether or not it is sent together with a statement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections


def replace_next_commit(instead: Callable[[Callable[[], Any]], object], *, using: str = DEFAULT_DB_ALIAS) -> None:
    """Call `instead(commit)` once, where the next COMMIT on this database would be sent."""
    connection: Any = connections[using]  # whose private attributes Django's types lack
    commit = connection._commit

    def undo() -> None:
        del connection._commit
        connection.execute_wrappers.remove(execute_instead)

    def commit_instead() -> None:
        undo()
        instead(commit)

    def execute_instead(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if not sql.endswith("; COMMIT"):
            return execute(sql, params, many, context)
        undo()
        answers: list[Any] = []
        instead(lambda: answers.append(execute(sql, params, many, context)))
        return answers[0]

    connection._commit = commit_instead
    connection.execute_wrappers.append(execute_instead)
