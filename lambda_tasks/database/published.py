"""Recognize the tables that django-lambda-tasks 0.1 to 0.8 created, and upgrade them in place.

A project that used these versions has an `0001_initial` in `django_migrations`, which is also the name of this
version's first migration, and maybe migrations that this version lacks. So the steps here do not depend on the names
of applied migrations: each one inspects the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast

from django.core.management.base import CommandError
from django.db import transaction
from django.db.migrations.operations.base import Operation
from django.db.models import Field, Index, Model

from lambda_tasks.database.online import add_column, build_index, column_names, constraints, drop_index

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState

#: Columns of every table of records, whichever version created it.
COMMON: Final = frozenset(
    {"id", "task_name", "kwargs", "n_retries", "status", "start_time", "end_time", "result", "traceback"}
)
#: Columns that this version adds to it.
ADDED: Final = ("root_id", "claim", "lease_until", "takeovers")
#: Columns that later migrations add.
LATER: Final = frozenset({"queue"})
#: The statuses of 0.8 that this version renames.
STATUSES: Final = {"SUCCEEDED": "SUCCESS", "RETRIED": "RETRYING"}
#: Indexes that the published versions created, and that this version's queries do not use.
INDEXES: Final = (
    "lambda_task_task_na_f00cb7_idx",
    "lambda_task_status_6901ee_idx",
    "lambda_task_start_t_9caffc_idx",
    "taskrecord_kwargs_trgm",
    "taskrecord_id_trgm",
)
#: Lambda's longest function timeout, in seconds: a worker of the old version may still be running a task for so long.
LONGEST_RUN: Final = 900
#: The number of records in one UPDATE, and so in one transaction, while statuses are renamed.
BATCH: Final = 5_000


def misfit(connection: BaseDatabaseWrapper, table: str) -> str | None:
    """Return why `table` cannot be a table of records, or None if it can be one or does not exist."""
    with connection.cursor() as cursor:
        if table not in connection.introspection.table_names(cursor):
            return None
        columns = connection.introspection.get_table_description(cursor, table)
    names = {column.name for column in columns}
    if missing := COMMON - names:
        return f"it lacks the column {', '.join(sorted(missing))}"
    known = COMMON | LATER | set(ADDED)
    if needed := sorted(each.name for each in columns if each.name not in known and _requires_value(each)):
        return f"its column {', '.join(needed)} requires a value, which lambda_tasks does not write"
    if connection.vendor == "sqlite" and not names.issuperset(ADDED) and (others := names - known):
        return f"its column {', '.join(sorted(others))} would be lost, since SQLite has to copy the table"
    if connection.features.has_native_uuid_field:
        [key] = (each for each in columns if each.name == "id")
        kind = connection.introspection.get_field_type(key.type_code, key)
        if kind != "UUIDField":
            return f"its column id is a {kind}, not a UUIDField (on MariaDB, MODIFY id uuid NOT NULL converts it)"
    return None


def _requires_value(column: Any) -> bool:
    return not column.null_ok and column.default is None


def is_unfinished(connection: BaseDatabaseWrapper, table: str) -> bool:
    """Return whether a published version created `table` and `migrate` has not upgraded it yet."""
    names = column_names(connection, table)
    return bool(names) and not names.issuperset(ADDED)


def old_statuses(connection: BaseDatabaseWrapper, table: str) -> list[str]:
    """Return the statuses of the published versions that records still have."""
    quote = connection.ops.quote_name
    found = []
    with connection.cursor() as cursor:
        for status in STATUSES:
            # The name of the table is quoted. The query reads at most one row, through the index on status.
            sql = f"SELECT 1 FROM {quote(table)} WHERE {quote('status')} = %s LIMIT 1"
            cursor.execute(sql, [status])
            if cursor.fetchone():
                found.append(status)
    return found


def renaming(statuses: list[str], table: str) -> str:
    """Return the SQL that renames these statuses."""
    return " ".join(f"UPDATE {table} SET status = '{STATUSES[old]}' WHERE status = '{old}';" for old in statuses)


def refuse_unless_known(connection: BaseDatabaseWrapper, table: str) -> None:
    """Raise `CommandError`, before any change, if `table` is not a table of records."""
    if problem := misfit(connection, table):
        raise CommandError(
            f"Table {table} of database {connection.alias!r} is not a table of django-lambda-tasks: {problem}. "
            f"The table was not changed. {REMEDY}"
        )


REMEDY: Final = "Rename or drop that table, or correct it, and run migrate again."


class UpgradePublishedTable(Operation):
    """Upgrade the columns, indexes and statuses of a published version's table; leave other tables unchanged.

    Each step is skipped if its result exists, so the next `migrate` continues an interrupted upgrade.
    """

    reversible = True
    atomic = False

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Do nothing: in Django's state, 0001 already created this version's table."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = to_state.apps.get_model(app_label, "taskrecord")
        if schema_editor.collect_sql or not self.allow_migrate_model(schema_editor.connection.alias, model):
            return
        upgrade(schema_editor, model)

    def database_backwards(self, *_: Any) -> None:
        """Do nothing: a backup is the only way back."""

    def describe(self) -> str:
        return "Upgrade the table if an earlier published version created it"


def upgrade(schema_editor: BaseDatabaseSchemaEditor, model: type[Model]) -> None:
    """Upgrade the table of `model` in place, in steps that can be repeated, and keep every record."""
    connection, table = schema_editor.connection, model._meta.db_table
    refuse_unless_known(connection, table)
    if connection.vendor == "sqlite":
        if is_unfinished(connection, table):
            _rebuild(schema_editor, model)
    else:
        _drop_checks_of_status(schema_editor, table)
        _widen_status(schema_editor, table)
        _add_columns(schema_editor, model)
    for index in model._meta.indexes:
        if index.fields != ["root_id"]:  # a later migration replaces this index
            build_index(schema_editor, model, index)
    for name in INDEXES:
        drop_index(schema_editor, model, Index(fields=["status"], name=name))
    _settle_records(connection, table)


def _rebuild(schema_editor: BaseDatabaseSchemaEditor, model: type[Model]) -> None:
    """Copy the records into a table with this version's schema: SQLite cannot drop a constraint."""
    connection, table = schema_editor.connection, model._meta.db_table
    quote = connection.ops.quote_name
    indexes, model._meta.indexes = model._meta.indexes, []
    columns = ", ".join(map(quote, sorted(COMMON)))
    try:
        with transaction.atomic(using=connection.alias):
            model._meta.db_table = f"new__{table}"
            schema_editor.create_model(model)
            schema_editor.execute(
                f"INSERT INTO {quote(model._meta.db_table)} ({columns}, {quote('takeovers')}) "
                f"SELECT {columns}, 0 FROM {quote(table)}"
            )
            schema_editor.execute(schema_editor.sql_delete_table % {"table": quote(table)})
            schema_editor.alter_db_table(model, f"new__{table}", table)
    finally:
        model._meta.db_table, model._meta.indexes = table, indexes


def _drop_checks_of_status(schema_editor: BaseDatabaseSchemaEditor, table: str) -> None:
    """Drop the constraint that lists the old statuses: during a deployment, workers of both versions write."""
    quote = schema_editor.quote_name
    for name, about in constraints(schema_editor.connection, table).items():
        if about["check"] and list(about["columns"]) == ["status"]:
            schema_editor.execute(
                schema_editor.sql_delete_check % {"table": quote(table), "name": quote(name)}, params=None
            )


def _widen_status(schema_editor: BaseDatabaseSchemaEditor, table: str) -> None:
    """Widen the column to 16 characters, for which neither PostgreSQL nor MariaDB rewrites the table."""
    connection, quote = schema_editor.connection, schema_editor.quote_name
    with connection.cursor() as cursor:
        columns = connection.introspection.get_table_description(cursor, table)
    [status] = (each for each in columns if each.name == "status")
    if (status.display_size or status.internal_size or 0) < 16:
        change = (
            "ALTER COLUMN {} TYPE varchar(16)"
            if connection.vendor == "postgresql"
            else "MODIFY {} varchar(16) NOT NULL"
        )
        schema_editor.execute(f"ALTER TABLE {quote(table)} {change.format(quote('status'))}", params=None)


def _add_columns(schema_editor: BaseDatabaseSchemaEditor, model: type[Model]) -> None:
    """Add this version's columns: nullable, or with a default in the database, so that the table is not rewritten."""
    for name in ADDED:
        if name != "takeovers":
            add_column(schema_editor, model, cast("Field[Any, Any]", model._meta.get_field(name)))
    connection, table = schema_editor.connection, model._meta.db_table
    quote = schema_editor.quote_name
    takeovers, zero = quote("takeovers"), f"CHECK ({quote('takeovers')} >= 0)"
    name = f"{table}_takeovers_check"
    if connection.vendor != "postgresql":
        if "takeovers" not in column_names(connection, table):
            schema_editor.execute(
                f"ALTER TABLE {quote(table)} ADD COLUMN {takeovers} integer UNSIGNED DEFAULT 0 NOT NULL {zero}"
            )
        return
    if "takeovers" not in column_names(connection, table):
        schema_editor.execute(f"ALTER TABLE {quote(table)} ADD COLUMN {takeovers} integer DEFAULT 0 NOT NULL")
    # Added with the column, the constraint would scan the table under an exclusive lock. VALIDATE allows writes.
    if name not in constraints(connection, table):
        schema_editor.execute(f"ALTER TABLE {quote(table)} ADD CONSTRAINT {quote(name)} {zero} NOT VALID")
    schema_editor.execute(f"ALTER TABLE {quote(table)} VALIDATE CONSTRAINT {quote(name)}")


def _settle_records(connection: BaseDatabaseWrapper, table: str) -> None:
    """Rename the statuses of 0.8, and give RUNNING records a lease for as long as their workers may run.

    Each change walks the table once along its primary key, in short transactions: no statement locks or sorts many
    rows, and the dead rows that an old snapshot keeps are read only once.
    """
    quote = connection.ops.quote_name
    status, lease = quote("status"), quote("lease_until")
    cases = " ".join(f"WHEN '{old}' THEN '{new}'" for old, new in STATUSES.items())
    olds = ", ".join(f"'{old}'" for old in STATUSES)
    changes = (
        (f"{status} IN ({olds})", f"{status} = CASE {status} {cases} END"),
        (
            f"{status} = 'RUNNING' AND {quote('claim')} IS NULL AND {lease} IS NULL",
            f"{lease} = {_LEASE[connection.vendor].format(LONGEST_RUN)}",
        ),
    )
    with connection.cursor() as cursor:
        for where, change in changes:
            cursor.execute(f"SELECT 1 FROM {quote(table)} WHERE {where} LIMIT 1")
            if cursor.fetchone():
                for keys in _ranges(connection, table):
                    cursor.execute(f"UPDATE {quote(table)} SET {change} WHERE {where} AND {keys}")


#: SQL for the end of a lease of this many seconds, in the form in which Django stores datetimes.
_LEASE: Final = {
    "postgresql": "statement_timestamp() + interval '{} seconds'",
    "mysql": "TIMESTAMPADD(SECOND, {}, UTC_TIMESTAMP(6))",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '+{} seconds')",
}


def _ranges(connection: BaseDatabaseWrapper, table: str) -> Iterator[str]:
    """Yield conditions on the primary key that together match every record, and each at most BATCH records."""
    key, after = connection.ops.quote_name("id"), "1 = 1"
    while True:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {key} FROM {connection.ops.quote_name(table)} WHERE {after} "
                f"ORDER BY {key} LIMIT 1 OFFSET {BATCH - 1}"
            )
            last = cursor.fetchone()
        if last is None:
            yield after
            return
        yield f"{after} AND {key} <= '{last[0]}'"
        after = f"{key} > '{last[0]}'"
