"""Migration operations for large tables in use: each can be repeated, and none blocks writers for long.

Migrations that use them set `atomic = False`, since PostgreSQL builds an index concurrently only outside of a
transaction. An interrupted migration continues where it stopped when it is run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.migrations.operations import AddField, AddIndex, CreateModel, RemoveIndex
from django.db.models import Field, Index, Model

from lambda_tasks.database.partitions import build_on_partitions, is_partitioned

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState


def column_names(connection: BaseDatabaseWrapper, table: str) -> set[str]:
    """Return the names of the columns of `table`, or an empty set if it does not exist."""
    with connection.cursor() as cursor:
        if table not in connection.introspection.table_names(cursor):
            return set()
        # The description of an empty result, because MariaDB 10.11 may crash when many sessions ask its
        # information_schema for the columns of a table that is being changed.
        cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)} WHERE 1 = 0")
        return {column[0] for column in cursor.description}


def constraints(connection: BaseDatabaseWrapper, table: str) -> dict[str, Any]:
    """Return the constraints and indexes of `table` by name, as Django's introspection describes them."""
    with connection.cursor() as cursor:
        found: dict[str, Any] = connection.introspection.get_constraints(cursor, table)
        return found


def is_invalid(connection: BaseDatabaseWrapper, table: str, index: str) -> bool:
    """Return whether `index` is invalid after an interrupted concurrent build: maintained, but not used by queries."""
    if connection.vendor != "postgresql":
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE indrelid = to_regclass(%s) AND relname = %s AND NOT indisvalid",
            [connection.ops.quote_name(table), index],
        )
        return cursor.fetchone() is not None


def _options(schema_editor: BaseDatabaseSchemaEditor) -> dict[str, Any]:
    """Return the arguments that make PostgreSQL build or drop an index without blocking reads and writes."""
    connection = schema_editor.connection
    return {"concurrently": True} if connection.vendor == "postgresql" and not connection.in_atomic_block else {}


def build_index(schema_editor: BaseDatabaseSchemaEditor, model: type[Model], index: Index) -> None:
    """Build `index` unless it exists; replace it if an interrupted build has left it invalid."""
    connection, table = schema_editor.connection, model._meta.db_table
    if not schema_editor.collect_sql and index.name in constraints(connection, table):
        if not is_invalid(connection, table, index.name):
            return
        _remove(schema_editor, model, index)
    if _is_partitioned(schema_editor, table):
        quoted = connection.ops.quote_name(table)
        statement = str(index.create_sql(model, schema_editor))
        schema_editor.execute(statement.replace(f" ON {quoted}", f" ON ONLY {quoted}", 1))
        build_on_partitions(connection, table, index.name)
        return
    schema_editor.add_index(model, index, **_options(schema_editor))


def drop_index(schema_editor: BaseDatabaseSchemaEditor, model: type[Model], index: Index) -> None:
    """Drop `index` if it exists."""
    if schema_editor.collect_sql or index.name in constraints(schema_editor.connection, model._meta.db_table):
        _remove(schema_editor, model, index)


def _remove(schema_editor: BaseDatabaseSchemaEditor, model: type[Model], index: Index) -> None:
    # PostgreSQL cannot drop the index of a partitioned table concurrently.
    options = {} if _is_partitioned(schema_editor, model._meta.db_table) else _options(schema_editor)
    schema_editor.remove_index(model, index, **options)


def _is_partitioned(schema_editor: BaseDatabaseSchemaEditor, table: str) -> bool:
    """Return whether the indexes of a table are those of partitions, which are built one after the other."""
    connection = schema_editor.connection
    if schema_editor.collect_sql or connection.in_atomic_block:
        return False
    return is_partitioned(connection, table)


def add_column(schema_editor: BaseDatabaseSchemaEditor, model: type[Model], field: Field[Any, Any]) -> None:
    """Add the column of `field` unless it exists."""
    if schema_editor.collect_sql or field.column not in column_names(schema_editor.connection, model._meta.db_table):
        schema_editor.add_field(model, field)


class CreateTable(CreateModel):
    """Create the table of a model unless it exists. The operations that follow upgrade an existing table."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = to_state.apps.get_model(app_label, self.name)
        if schema_editor.collect_sql or not column_names(schema_editor.connection, model._meta.db_table):
            super().database_forwards(app_label, schema_editor, from_state, to_state)


class AddColumn(AddField):
    """Add a column unless it exists."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        table = to_state.apps.get_model(app_label, self.model_name)._meta.db_table
        if schema_editor.collect_sql or self.name not in column_names(schema_editor.connection, table):
            super().database_forwards(app_label, schema_editor, from_state, to_state)


class BuildIndex(AddIndex):
    """Add an index: concurrently on PostgreSQL outside of a transaction, otherwise as `AddIndex` does."""

    atomic = False

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = to_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            build_index(schema_editor, model, self.index)


class DropIndex(RemoveIndex):
    """Remove an index if it exists, concurrently on PostgreSQL."""

    atomic = False

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        model = from_state.apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            state = from_state.models[app_label, self.model_name_lower]
            drop_index(schema_editor, model, state.get_index_by_name(self.name))
