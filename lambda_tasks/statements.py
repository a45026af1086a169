"""Statements that Django's compiler writes once for each connection, to be run again with other values.

Most of what a small query of the ORM costs is the writing of its SQL, the same each time. Here it is
written with slots in the places of the values. The values go through their fields as in any query, and
the statement through Django's cursor: to the database, to `connection.queries` and to the wrappers of
`connection.execute_wrapper()` it looks like the ORM's own. Signals of models are not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, Model, QuerySet, Value
from django.db.models.constants import OnConflict
from django.db.models.sql import DeleteQuery, InsertQuery, UpdateQuery


class Slot(Value):
    """The place of a value that is known when the statement is run; it may stand wherever a `Value` may."""

    def __init__(self, name: str, field: Field[Any, Any]) -> None:
        super().__init__(name, output_field=field)

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        return "%s", [self]

    def filled(self, values: Mapping[str, Any], connection: BaseDatabaseWrapper) -> Any:
        """Return what the driver is given for the slot."""
        return self.output_field.get_db_prep_save(values[self.value], connection=connection)


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL, and its parameters: values, and slots."""

    sql: str
    params: tuple[Any, ...]

    def run(self, connection: BaseDatabaseWrapper, values: Mapping[str, Any]) -> int:
        """Run it with `values` in its slots, and return how many rows it concerned."""
        return _execute(connection, self.sql, self._filled(values, connection))

    def rows(self, connection: BaseDatabaseWrapper, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run it with `values` in its slots, and return what it selects, as the driver gives it."""
        with connection.cursor() as cursor:
            cursor.execute(self.sql, self._filled(values, connection))
            return list(cursor.fetchall())

    def _filled(self, values: Mapping[str, Any], connection: BaseDatabaseWrapper) -> list[Any]:
        return [param.filled(values, connection) if isinstance(param, Slot) else param for param in self.params]


@dataclass(frozen=True, slots=True)
class Insertion:
    """An INSERT of any number of rows that are alike."""

    #: Up to the first row, one row, and what comes after the last one.
    head: str
    row: str
    tail: str
    #: The parameters of a row.
    params: tuple[Any, ...]

    def run(self, connection: BaseDatabaseWrapper, rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert `rows`, each of which gives values to the slots, and return how many rows that concerned."""
        sql = f"{self.head}{', '.join([self.row] * len(rows))}{self.tail}"
        params = [
            param.filled(values, connection) if isinstance(param, Slot) else param
            for values in rows
            for param in self.params
        ]
        return _execute(connection, sql, params)


def _execute(connection: BaseDatabaseWrapper, sql: str, params: Sequence[Any]) -> int:
    with transaction.mark_for_rollback_on_error(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(sql, params)
        return int(cursor.rowcount)


S = TypeVar("S")


class Statements:
    """Every statement that was written so far, for each connection; each thread has connections of its own."""

    def __init__(self) -> None:
        self._written: WeakKeyDictionary[BaseDatabaseWrapper, dict[object, Any]] = WeakKeyDictionary()

    def run(self, writer: Callable[[BaseDatabaseWrapper], Statement], values: Mapping[str, Any], *, using: str) -> int:
        """Run what `writer` has written, or writes now; return how many rows it concerned."""
        connection = connections[using]
        return self.of(writer, connection).run(connection, values)

    def of(self, writer: Callable[[BaseDatabaseWrapper], S], connection: BaseDatabaseWrapper) -> S:
        """Return what `writer` has written for `connection`, or writes now."""
        written = self._written.get(connection)
        if written is None:
            written = self._written[connection] = {}
        # On MySQL and MariaDB the database's time is written in the zone of the connection.
        key = (writer, connection.timezone_name)
        if key not in written:
            written[key] = writer(connection)
        statement: S = written[key]
        return statement


def insertion(record: Model, connection: BaseDatabaseWrapper) -> Statement:
    """Write the INSERT of `record`, which has slots or values in its fields; the rest is NULL."""
    fields = [field for field in record._meta.local_concrete_fields if getattr(record, field.attname) is not None]
    query = InsertQuery(type(record))
    query.insert_values(fields, [record])
    ((sql, params),) = query.get_compiler(connection=connection).as_sql()
    return Statement(sql, tuple(params))


def insertion_of_many(
    record: Model, connection: BaseDatabaseWrapper, *, anew: Sequence[str] = (), unique: str = "id"
) -> Insertion:
    """Write the INSERT of many records as `record`; of one whose `unique` is there the columns `anew` are replaced.

    All fields are inserted, the empty ones too.
    """
    fields = record._meta.local_concrete_fields
    with_target = connection.features.supports_update_conflicts_with_target
    conflict: dict[str, Any] = {
        "on_conflict": OnConflict.UPDATE,
        "update_fields": [record._meta.get_field(name) for name in anew],
        "unique_fields": [record._meta.get_field(unique)] if with_target else [],
    }

    def compiled(n: int) -> Any:
        query = InsertQuery(type(record), **(conflict if anew else {}))
        query.insert_values(fields, [record] * n)
        ((sql, params),) = query.get_compiler(connection=connection).as_sql()
        return sql, tuple(params)

    (one, params), (two, _) = compiled(1), compiled(2)
    begin = one.index("VALUES (") + len("VALUES ")
    row = two[begin : begin + len(two) - len(one) - len(", ")]
    insertion = Insertion(one[:begin], row, one[begin + len(row) :], params)
    if two != f"{insertion.head}{row}, {row}{insertion.tail}":
        raise NotImplementedError(f"Django writes the INSERT of two rows in an unexpected way: {two}")
    return insertion


def selection(records: QuerySet[Any], connection: BaseDatabaseWrapper) -> Statement:
    """Write the SELECT of `records`; there may be slots in their filters."""
    sql, params = records.query.get_compiler(connection=connection).as_sql()
    return Statement(sql, tuple(params))


def deletion(records: QuerySet[Any], connection: BaseDatabaseWrapper) -> Statement:
    """Write the DELETE of `records`; there may be slots in their filters."""
    sql, params = records.query.chain(DeleteQuery).get_compiler(connection=connection).as_sql()
    return Statement(sql, tuple(params))


def update(records: QuerySet[Any], connection: BaseDatabaseWrapper, **columns: Any) -> Statement:
    """Write the UPDATE of `records`; there may be slots in their filters and in `columns`."""
    query: Any = records.query.chain(UpdateQuery)
    query.add_update_values(columns)
    sql, params = query.get_compiler(connection=connection).as_sql()
    return Statement(sql, tuple(params))
