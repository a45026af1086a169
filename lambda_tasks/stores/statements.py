"""Statements that Django's compiler writes once for each connection, to be run again with other values.

Most of what a small query of the ORM costs is the writing of its SQL, the same each time. Here it is
written with slots in the places of the values. The values go through their fields as in any query, and
the statement through Django's cursor: to the database, to `connection.queries` and to the wrappers of
`connection.execute_wrapper()` it looks like the ORM's own. Signals of models are not sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Field, Model, QuerySet, Value
from django.db.models.sql import InsertQuery, UpdateQuery


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
        params = [param.filled(values, connection) if isinstance(param, Slot) else param for param in self.params]
        with transaction.mark_for_rollback_on_error(using=connection.alias), connection.cursor() as cursor:
            cursor.execute(self.sql, params)
            return int(cursor.rowcount)


#: Writes a statement for a connection.
Writer: TypeAlias = Callable[[BaseDatabaseWrapper], Statement]


class Statements:
    """Every statement that was written so far, for each connection; each thread has connections of its own."""

    def __init__(self) -> None:
        self._written: WeakKeyDictionary[BaseDatabaseWrapper, dict[Writer, Statement]] = WeakKeyDictionary()

    def run(self, writer: Writer, values: Mapping[str, Any], *, using: str) -> int:
        """Run what `writer` has written, or writes now; return how many rows it concerned."""
        connection = connections[using]
        written = self._written.get(connection)
        if written is None:
            written = self._written[connection] = {}
        if writer not in written:
            written[writer] = writer(connection)
        return written[writer].run(connection, values)


def insertion(record: Model, connection: BaseDatabaseWrapper) -> Statement:
    """Write the INSERT of `record`, which has slots or values in its fields; the rest is NULL."""
    fields = [field for field in record._meta.local_concrete_fields if getattr(record, field.attname) is not None]
    query = InsertQuery(type(record))
    query.insert_values(fields, [record])
    ((sql, params),) = query.get_compiler(connection=connection).as_sql()
    return Statement(sql, tuple(params))


def update(records: QuerySet[Any], connection: BaseDatabaseWrapper, **columns: Any) -> Statement:
    """Write the UPDATE of `records`; there may be slots in their filters and in `columns`."""
    query: Any = records.query.chain(UpdateQuery)
    query.add_update_values(columns)
    sql, params = query.get_compiler(connection=connection).as_sql()
    return Statement(sql, tuple(params))
