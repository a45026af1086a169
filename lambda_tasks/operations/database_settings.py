"""System checks for settings in DATABASES with which the library's databases would lose work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks.database.errors import commits_by_itself, manual_commits

#: For each vendor, the server settings that decide whether COMMIT waits for the disk: the name, the query that reads
#: the value, and the values with which COMMIT does not wait.
_SETTINGS: Final = {
    "postgresql": (
        ("synchronous_commit", "SHOW synchronous_commit", ("off",)),
        ("fsync", "SHOW fsync", ("off",)),
    ),
    "mysql": (("innodb_flush_log_at_trx_commit", "SELECT @@innodb_flush_log_at_trx_commit", ("0", "2")),),
}

#: For each vendor, the query for the milliseconds after which the server ends an idle transaction.
_IDLE_TIMEOUTS: Final = {
    "postgresql": "SELECT setting FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'",
}


def own_databases() -> list[str]:
    """Return the aliases in DATABASES of the databases that hold records or an outbox."""
    from lambda_tasks.maintenance import outbox
    from lambda_tasks.strategies import get_store

    try:
        kept = outbox()
        aliases = [get_store().database, *(() if kept is None else kept.databases)]
    except ImproperlyConfigured:
        return []  # reported as E004
    return [alias for alias in dict.fromkeys(aliases) if alias in connections.settings]


def check_entries() -> Iterator[CheckMessage]:
    """Check the entries in DATABASES, without a connection."""
    for alias in own_databases():
        if not commits_by_itself(connections[alias]):
            yield Error(
                manual_commits(alias),
                hint=f"Remove AUTOCOMMIT from DATABASES[{alias!r}]. ATOMIC_REQUESTS is allowed.",
                id="lambda_tasks.E020",
            )
        settings = connections[alias].settings_dict
        if settings["OPTIONS"].get("pool") and not settings["CONN_HEALTH_CHECKS"]:
            yield Warning(
                f"DATABASES[{alias!r}] has a connection pool without CONN_HEALTH_CHECKS: after a failover, each dead "
                "connection in the pool causes an error for the code that takes it.",
                hint="Set CONN_HEALTH_CHECKS to True, and use no pool in the settings of Lambda functions.",
                id="lambda_tasks.W020",
            )


def check_sessions(databases: Collection[str]) -> Iterator[CheckMessage]:
    """Check, on a connection to each of the `databases`, that COMMIT waits for the disk."""
    for alias in own_databases():
        if alias not in databases:
            continue
        try:
            setting = forgetful_setting(connections[alias])
        except DatabaseError:
            continue  # Django or the next query reports the error
        if setting is not None:
            yield Warning(
                f"Database {alias!r} has {setting}: a crash of its server may undo tasks that were acknowledged, "
                "because their COMMIT did not wait for the disk.",
                hint="Leave the setting at its default for this server, database and role. To make only claims faster, "
                "use durable_claims=False of ORMStore.",
                id="lambda_tasks.W021",
            )


def forgetful_setting(connection: BaseDatabaseWrapper) -> str | None:
    """Return the setting with which the server may lose commits in a crash, or None if there is none."""
    asked = _SETTINGS.get(connection.vendor, ())
    if not asked:
        return None
    with connection.cursor() as cursor:
        for name, sql, forgetful in asked:
            cursor.execute(sql)
            value = str(cursor.fetchone()[0])
            if value in forgetful:
                return f"{name}={value}"
    return None


def idle_timeout(connection: BaseDatabaseWrapper) -> float:
    """Return the seconds after which the server ends an idle transaction, or 0 if it does not."""
    if (sql := _IDLE_TIMEOUTS.get(connection.vendor)) is None:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return float(cursor.fetchone()[0]) / 1000
