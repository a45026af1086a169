"""Prepared statements: SQL that Django's compiler writes once per connection, and that runs with different values.

Most of the cost of a small ORM query is compiling its SQL, which is the same each time. Here it is compiled with
slots instead of values. The values are converted as their model fields would do it, constants become a part of the
SQL, and the statement passes through Django's cursor. So the database stores the same as from the ORM, and
`connection.queries` and the wrappers of `connection.execute_wrapper()` see the statement. Model signals are not sent.

This is an optimisation, and it must not be able to fail. If Django's compiler returns SQL of an unexpected form, a
WARNING is logged once per process, and the ORM runs the query instead, each time with a new compilation (`OrmCall`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from django.core.exceptions import ValidationError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet
from django.db.models.constants import OnConflict
from django.db.models.sql import DeleteQuery, InsertQuery, UpdateQuery

from lambda_tasks.database.clock import minutes_east
from lambda_tasks.database.cursors import execute
from lambda_tasks.database.slots import MARK, Slot, filled, places, slots_filled
from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.database")


@frozen
class Statement:
    """SQL, and its parameters: values and slots."""

    sql: str
    params: tuple[Any, ...]

    def run(self, connection: BaseDatabaseWrapper, values: Mapping[str, Any]) -> int:
        """Run the statement with `values` in its slots, and return the number of affected rows."""
        return execute(connection, self.sql, filled(self.params, values, connection))

    def rows(self, connection: BaseDatabaseWrapper, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run the query with `values` in its slots, and return its rows as the driver returns them."""
        with connection.cursor() as cursor:
            cursor.execute(self.sql, filled(self.params, values, connection))
            return list(cursor.fetchall())


@frozen
class Insertion:
    """An INSERT of any number of rows that have the same columns."""

    #: The SQL before the first row, the SQL of one row, and the SQL after the last row.
    head: str
    row: str
    tail: str
    #: The parameters of a row.
    params: tuple[Any, ...]

    def run(self, connection: BaseDatabaseWrapper, rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert `rows`, each of which maps slots to values, and return the number of affected rows."""
        sql = f"{self.head}{', '.join([self.row] * len(rows))}{self.tail}"
        return execute(connection, sql, [param for row in rows for param in filled(self.params, row, connection)])


@frozen
class OrmCall:
    """A query that the ORM compiles each time: the fallback for a `Statement`."""

    #: Runs the query, whose slots have values during the call.
    call: Callable[[], Any]

    def run(self, connection: BaseDatabaseWrapper, values: Mapping[str, Any]) -> int:
        """Run the query with `values` in its slots, and return how many rows it concerned."""
        with slots_filled(values):
            return int(self.call())

    def rows(self, connection: BaseDatabaseWrapper, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Run the query with `values` in its slots, and return the rows that it selects, as the ORM converts them."""
        with slots_filled(values):
            return list(self.call())


@frozen
class OrmInsertion:
    """An INSERT that the ORM compiles for each row: the fallback for an `Insertion`."""

    row: OrmCall

    def run(self, connection: BaseDatabaseWrapper, rows: Sequence[Mapping[str, Any]]) -> int:
        """Insert `rows`, each of which gives values to the slots, and return how many rows that concerned."""
        return sum(self.row.run(connection, row) for row in rows)


S = TypeVar("S")


class Statements:
    """A cache of compiled statements for each connection. Each thread has its own connections."""

    def __init__(self) -> None:
        self._written: WeakKeyDictionary[BaseDatabaseWrapper, dict[object, Any]] = WeakKeyDictionary()

    def run(
        self,
        writer: Callable[[BaseDatabaseWrapper], Statement | OrmCall],
        values: Mapping[str, Any],
        connection: BaseDatabaseWrapper,
    ) -> int:
        """Run the statement that `writer` compiles, from the cache if possible; return the number of affected rows."""
        return self.of(writer, connection).run(connection, values)

    def of(self, writer: Callable[[BaseDatabaseWrapper], S], connection: BaseDatabaseWrapper) -> S:
        """Return the statement that `writer` compiles for `connection`, from the cache if possible."""
        written = self._written.get(connection)
        if written is None:
            written = self._written[connection] = {}
        # The SQL of the database's time contains the UTC offset in which Django stores datetimes. Daylight saving
        # time changes it.
        key = (writer, minutes_east(connection))
        if key not in written:
            written[key] = writer(connection)
        statement: S = written[key]
        return statement


class _UnexpectedSQL(ValueError):
    """Django's compiler has returned something of another form than the library can use."""


#: What reading the compiler's result, or compiling with slots, may raise if Django has changed. Errors of the database,
#: and queries that it does not support, are not among them: the ORM would raise them too.
_UNEXPECTED: Final = (AttributeError, LookupError, TypeError, ValueError, ValidationError)

#: The statements that a warning was logged about.
_warned: set[str] = set()


def _warn_once(statement: str, found: object) -> None:
    """Log once per process that Django writes `statement` in another way than the library expects."""
    if statement in _warned:
        return
    _warned.add(statement)
    logger.warning(
        "Django compiles %s in an unexpected way, so the library runs it as Django does, which is slower. "
        "Report this to the library's maintainers. Found: %s",
        statement,
        found,
    )


def _compiled(compiled: Any) -> tuple[str, Sequence[Any]]:
    """Return SQL and parameters as a compiler gives them for one statement, if all slots are parameters of it."""
    match compiled:
        case (str(sql), tuple() | list() as params):
            pass
        case _:
            raise _UnexpectedSQL(_sql_in(compiled))
    if MARK in sql or any(MARK in str(param) for param in params if not isinstance(param, Slot)):
        raise _UnexpectedSQL(f"a slot is not a parameter of its own: {sql}")
    return sql, params


def _only(compiled: Any) -> tuple[str, Sequence[Any]]:
    """Do the same for the compiler of INSERT, which returns a list of statements."""
    if not isinstance(compiled, list) or len(compiled) != 1:
        raise _UnexpectedSQL(_sql_in(compiled))
    return _compiled(compiled[0])


def _sql_in(compiled: Any) -> str:
    """Return all SQL in what a compiler has returned, without the parameters."""
    if isinstance(compiled, str):
        return compiled
    if isinstance(compiled, list | tuple):
        return "; ".join(filter(None, map(_sql_in, compiled)))
    return ""


def _statement(
    name: str,
    compile_query: Callable[[], tuple[str, Sequence[Any]]],
    call: Callable[[], Any],
    connection: BaseDatabaseWrapper,
) -> Statement | OrmCall:
    """Return the statement that `compile_query` gives, or `call` as the fallback."""
    try:
        written = places(*compile_query(), connection)
    except _UNEXPECTED as error:
        _warn_once(name, error)
        return OrmCall(call)
    return Statement(*written)


def with_text(statement: Statement | OrmCall, name: str, text: str, instead: str) -> Statement | OrmCall:
    """Return `statement` with `text` replaced by `instead`, or unchanged unless `text` occurs exactly once."""
    if isinstance(statement, OrmCall):
        return statement
    if statement.sql.count(text) != 1:
        _warn_once(name, statement.sql)
        return statement
    return replace(statement, sql=statement.sql.replace(text, instead))


def insertion(record: Model, connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the INSERT of `record`, whose fields contain slots or values; other columns are NULL."""
    fields = [field for field in record._meta.local_concrete_fields if getattr(record, field.attname) is not None]

    def compile_query() -> tuple[str, Sequence[Any]]:
        query = InsertQuery(type(record))
        query.insert_values(fields, [record])
        return _only(query.get_compiler(connection=connection).as_sql())

    return _statement(f"the INSERT of {record._meta.label}", compile_query, _creation(record, connection), connection)


def _creation(record: Model, connection: BaseDatabaseWrapper, **options: Any) -> Callable[[], int]:
    """Return a function that has the ORM insert `record`, with the options of `bulk_create()`."""
    records, alias = type(record)._base_manager, connection.alias
    return lambda: len(records.using(alias).bulk_create([copy(record)], **options))


def insertion_of_many(
    record: Model, connection: BaseDatabaseWrapper, *, anew: Sequence[str] = (), unique: str = "id"
) -> Insertion | OrmInsertion:
    """Compile the INSERT of many records like `record`, which includes the fields that are None.

    If a row with the same value of `unique` exists, its columns `anew` are overwritten.
    """
    fields = record._meta.local_concrete_fields
    with_target = connection.features.supports_update_conflicts_with_target
    unique_fields = [unique] if with_target else []

    def compiled(n: int) -> tuple[str, tuple[Any, ...]]:
        conflict: dict[str, Any] = {
            "on_conflict": OnConflict.UPDATE,
            "update_fields": [record._meta.get_field(name) for name in anew],
            "unique_fields": [record._meta.get_field(name) for name in unique_fields],
        }
        query = InsertQuery(type(record), **(conflict if anew else {}))
        query.insert_values(fields, [record] * n)
        return places(*_only(query.get_compiler(connection=connection).as_sql()), connection)

    try:
        return _cut(compiled(1), compiled(2))
    except _UNEXPECTED as error:
        _warn_once(f"the INSERT of many rows of {record._meta.label}", error)
    options = {"update_conflicts": True, "update_fields": anew, "unique_fields": unique_fields or None} if anew else {}
    return OrmInsertion(OrmCall(_creation(record, connection, **options)))


def _cut(of_one: tuple[str, tuple[Any, ...]], of_two: tuple[str, tuple[Any, ...]]) -> Insertion:
    """Return the parts of an INSERT, of which one of one row and one of two rows are given."""
    (one, params), (two, params_of_two) = of_one, of_two
    begin = one.find("VALUES (") + len("VALUES ")
    row = two[begin : begin + len(two) - len(one) - len(", ")]
    insertion = Insertion(one[:begin], row, one[begin + len(row) :], params)
    as_expected = (
        one == f"{insertion.head}{row}{insertion.tail}"
        and two == f"{insertion.head}{row}, {row}{insertion.tail}"
        and insertion.head.endswith("VALUES ")
        and params_of_two == params + params
    )
    if not as_expected:
        raise _UnexpectedSQL(two)
    return insertion


def selection(records: QuerySet[Any, Any], connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the SELECT of `records`, a queryset of `values()`, whose filters may contain slots."""
    return _statement(
        f"the SELECT of {records.model._meta.label}",
        lambda: _compiled(records.query.get_compiler(connection=connection).as_sql()),
        lambda: [tuple(row.values()) for row in records.using(connection.alias)],
        connection,
    )


def deletion(records: QuerySet[Any], connection: BaseDatabaseWrapper) -> Statement | OrmCall:
    """Compile the DELETE of `records`, whose filters may contain slots."""
    return _statement(
        f"the DELETE of {records.model._meta.label}",
        lambda: _compiled(records.query.chain(DeleteQuery).get_compiler(connection=connection).as_sql()),
        lambda: records.using(connection.alias).delete()[0],
        connection,
    )


def update(records: QuerySet[Any], connection: BaseDatabaseWrapper, **columns: Any) -> Statement | OrmCall:
    """Compile the UPDATE of `records`, whose filters may contain slots, as may `columns`."""

    def compile_query() -> tuple[str, Sequence[Any]]:
        query: Any = records.query.chain(UpdateQuery)
        query.add_update_values(columns)
        return _compiled(query.get_compiler(connection=connection).as_sql())

    return _statement(
        f"the UPDATE of {records.model._meta.label}",
        compile_query,
        lambda: records.using(connection.alias).update(**columns),
        connection,
    )
