"""The private names of Django that the library reads, each in one function.

Django may change them in any version. `docs/architecture.md` lists them, with the test that notices it. Those that the
library replaces on a connection are in `commits` and `guards`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.cache.backends.db import DatabaseCache
    from django.core.cache.backends.redis import RedisCache

# Transactions


def entries_on_commit(connection: BaseDatabaseWrapper) -> list[Any]:
    """Return Django's own list of what the next COMMIT calls. COMMIT replaces it, and removes what it has called."""
    entries: list[Any] = connection.run_on_commit
    return entries


def callbacks_in(entries: Sequence[Any]) -> list[Any]:
    """Return the callbacks in entries of that list."""
    return [callback for _, callback, *_ in entries]


def error_caught_in(connection: BaseDatabaseWrapper) -> BaseException | None:
    """Return the error that last broke a transaction of this connection, if Django has kept it."""
    caught: BaseException | None = getattr(connection, "rollback_exc", None)
    return caught


def closed_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the connection was closed inside of a transaction, and not opened again since."""
    return bool(connection.closed_in_transaction)


def in_inner_block(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the innermost `atomic()` block is a part of an outer one."""
    return bool(connection.savepoint_ids)


def blocks_around(connection: BaseDatabaseWrapper) -> int:
    """Return the number of open `atomic()` blocks."""
    return len(connection.atomic_blocks)


def blocks_of_test_case(connection: BaseDatabaseWrapper) -> int:
    """Return how many of the open `atomic()` blocks are those of Django's TestCase."""
    return sum(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def had_errors(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a statement has failed since Django last checked the connection."""
    return bool(connection.errors_occurred)


def commits_once(connection: BaseDatabaseWrapper) -> bool:
    """Return whether Django's `commit()` does nothing if the session has already committed.

    That is so with psycopg 3. psycopg2 would send another COMMIT.
    """
    return hasattr(connection.connection, "pgconn")


def initialized_connections() -> list[BaseDatabaseWrapper]:
    """Return what `connections.all(initialized_only=True)` returns, in a third of its time, since each message asks."""
    initialized = connections._connections  # type: ignore[attr-defined]
    return [each for alias in connections.settings if (each := getattr(initialized, alias, None)) is not None]


# MySQL and MariaDB


def is_mariadb(connection: BaseDatabaseWrapper) -> bool:
    return bool(getattr(connection, "mysql_is_mariadb", False))


def isolation_level(connection: BaseDatabaseWrapper) -> str | None:
    """Return the isolation level that Django has set on a connection to MySQL or MariaDB, in lower case."""
    level: str | None = getattr(connection, "isolation_level", None)
    return level


# Caches


def table_of(cache: DatabaseCache) -> str:
    table: str = cache._table  # type: ignore[attr-defined]
    return table


def redis_client_of(cache: RedisCache, key: str) -> Any:
    """Return the client of redis-py with which Django's cache writes `key`."""
    return cache._cache.get_client(key, write=True)
