"""The moment before COMMIT, for which Django has no hook, and the transactions that are open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, DatabaseError, Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

#: The attribute of a connection that holds our `commit()`: it is gone from its place when somebody else's patch ends.
_WRAPPED: Final = "_lambda_tasks_before_commit"


def open_transaction() -> str:
    """Return the alias whose transaction the caller is in: `default` if it has one, or if none or several have."""
    if _is_open(connections[DEFAULT_DB_ALIAS]):
        return DEFAULT_DB_ALIAS
    others = [connection.alias for connection in connections.all(initialized_only=True) if _is_open(connection)]
    return others[0] if len(others) == 1 else DEFAULT_DB_ALIAS


def _is_open(connection: BaseDatabaseWrapper) -> bool:
    if not connection.in_atomic_block:
        return False
    # Django's TestCase opens one on every alias that a test may use: that is not the caller's.
    return not all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def before_commit(connection: BaseDatabaseWrapper, action: Callable[[BaseDatabaseWrapper], object]) -> None:
    """Have `action(connection)` called before each COMMIT of this connection from now on.

    What it writes commits or rolls back with the rest. What it raises is raised by the commit, and rolls
    everything back. It is not called where nothing is committed: in Django's TestCase, in autocommit mode.
    """
    own = vars(connection).get("commit")  # somebody else may have wrapped it, of this connection or of all
    if own is not None and own is getattr(connection, _WRAPPED, None):
        return

    def commit_after_action() -> None:
        if not connection.in_atomic_block:  # else Django refuses to commit
            try:
                action(connection)
            except DatabaseError:
                raise  # Django rolls back
            except BaseException:
                # Django expects no other error here, and would leave the transaction open.
                try:
                    connection.rollback()
                except Error:
                    connection.close()
                raise
        if own is None:
            type(connection).commit(connection)
        else:
            own()

    wrapped: Any = connection
    wrapped.commit = commit_after_action
    setattr(connection, _WRAPPED, commit_after_action)
