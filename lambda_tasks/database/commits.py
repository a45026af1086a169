"""Hooks that Django lacks: before COMMIT, and after a failed `on_commit` callback. Find the open transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, DatabaseError, Error, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks.database.private_names import blocks_around, blocks_of_test_case, entries_on_commit
from lambda_tasks.exceptions import AmbiguousTransaction

#: The attribute of a connection that holds our `commit()`. Another patch of `commit` that ends removes ours with it,
#: which a comparison with this attribute detects.
_WRAPPED: Final = "_lambda_tasks_before_commit"
#: The same for our `run_and_clear_commit_hooks()`.
_WRAPPED_HOOKS: Final = "_lambda_tasks_rescue_callbacks"


def open_transaction() -> str:
    """Return the alias of the database whose open transaction a new message belongs to.

    An open transaction on `default` takes precedence. Without an open transaction, return the alias whose messages
    are sent immediately. Raise `AmbiguousTransaction` if transactions are open on several other databases: a message
    that is sent with the wrong transaction could run although its own transaction rolls back.
    """
    if is_open(connections[DEFAULT_DB_ALIAS]):
        return DEFAULT_DB_ALIAS
    opened = [connection.alias for connection in connections.all(initialized_only=True) if is_open(connection)]
    if len(opened) > 1:
        raise AmbiguousTransaction(
            f"Transactions are open on {', '.join(sorted(opened))}, but not on {DEFAULT_DB_ALIAS}. Specify which one "
            f'the message belongs to: using(database="{min(opened)}").'
        )
    return opened[0] if opened else _database_without_transaction()


def _database_without_transaction() -> str:
    """Return `default`, or if that has no settings, the database that the routers choose for messages."""
    if not _is_empty(DEFAULT_DB_ALIAS):
        return DEFAULT_DB_ALIAS
    chosen = router.db_for_write(apps.get_model("lambda_tasks", "OutboxMessage"))
    return next((alias for alias in (chosen, *connections.settings) if not _is_empty(alias)), DEFAULT_DB_ALIAS)


def _is_empty(alias: str) -> bool:
    """Return whether the alias has no settings in DATABASES, as Django allows for `default`."""
    return str(connections.settings[alias]["ENGINE"]).endswith(".dummy")


def is_open(connection: BaseDatabaseWrapper) -> bool:
    if not connection.in_atomic_block:
        return False
    # Django's TestCase opens a transaction on every alias that a test may use. The caller did not open it.
    return blocks_of_test_case(connection) < blocks_around(connection)


def before_commit(connection: BaseDatabaseWrapper, action: Callable[[BaseDatabaseWrapper], object]) -> None:
    """Call `action(connection)` before each future COMMIT of this connection.

    The writes of `action` commit or roll back with the transaction. If it raises, the transaction is rolled back and
    the commit raises the same error. It is not called where Django does not commit: in Django's TestCase and in
    autocommit mode.
    """
    own = vars(connection).get("commit")  # other code may have wrapped it, on this connection or on the class
    if own is not None and own is getattr(connection, _WRAPPED, None):
        return
    wrapped: Any = connection
    wrapped.commit = _CommitAfterAction(connection, action, own)
    setattr(connection, _WRAPPED, wrapped.commit)


def act_before_commit(connection: BaseDatabaseWrapper) -> bool:
    """Do now what must precede COMMIT, so that the caller may commit in a statement of its own.

    Return False, and do nothing, if other code has replaced `commit()`: it may run statements of its own there. The
    later `commit()` of this transaction calls the action again.
    """
    own, ours = vars(connection).get("commit"), getattr(connection, _WRAPPED, None)
    if own is None:
        return type(connection).commit is BaseDatabaseWrapper.commit
    if own is not ours or not ours.is_alone:
        return False
    ours.action(connection)
    return True


class _CommitAfterAction:
    """What `before_commit()` sets as `commit()` of a connection; `inner` is what other code had set."""

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        action: Callable[[BaseDatabaseWrapper], object],
        inner: Callable[[], object] | None,
    ) -> None:
        self.action = action
        self.is_alone = inner is None and type(connection).commit is BaseDatabaseWrapper.commit
        self._connection = connection
        self._inner = inner

    def __call__(self) -> None:
        connection = self._connection
        if not connection.in_atomic_block:  # otherwise Django refuses to commit
            try:
                self.action(connection)
            except DatabaseError:
                raise  # Django rolls back
            except BaseException:
                # Django expects only database errors here, and would leave the transaction open.
                try:
                    connection.rollback()
                except Error:
                    connection.close()
                raise
        if self._inner is None:
            type(connection).commit(connection)
        else:
            self._inner()


def rescue_callbacks(connection: BaseDatabaseWrapper, action: Callable[[list[Any], BaseException], object]) -> None:
    """Call `action(dropped, error)` whenever an `on_commit` callback of this connection raises.

    Django then drops the callbacks after the failed one, although the transaction is committed. `dropped` lists their
    entries from `run_on_commit`. The error is raised afterwards, as without this function. `action` must not raise.
    """
    own = vars(connection).get("run_and_clear_commit_hooks")
    if own is not None and own is getattr(connection, _WRAPPED_HOOKS, None):
        return

    def run_callbacks() -> None:
        pending = entries_on_commit(connection)  # Django removes each callback that it calls
        try:
            if own is None:
                type(connection).run_and_clear_commit_hooks(connection)
            else:
                own()
        except BaseException as error:
            if pending and entries_on_commit(connection) is not pending:  # otherwise no callback was called
                action(pending, error)
            raise

    wrapped: Any = connection
    wrapped.run_and_clear_commit_hooks = run_callbacks
    setattr(connection, _WRAPPED_HOOKS, run_callbacks)
