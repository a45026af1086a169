"""SQL expressions for the database's time, so that workers do not depend on each other's clocks."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import BigIntegerField, DateTimeField, DurationField, Expression, Func, Value
from django.db.models.functions import Now
from django.db.models.sql import Query
from django.utils.timezone import get_default_timezone


def minutes_east(connection: BaseDatabaseWrapper, *, summer: bool = True) -> int:
    """Return the current UTC offset, in minutes, of the datetimes that Django stores in this database.

    PostgreSQL stores points in time, so its offset is 0. MySQL, MariaDB and SQLite store local time: in TIME_ZONE if
    USE_TZ is False, otherwise in the database's TIME_ZONE, which is UTC by default. `summer=False` ignores daylight
    saving time.
    """
    if connection.vendor == "postgresql" or (settings.USE_TZ and connection.timezone_name == "UTC"):
        return 0
    local = datetime.now(connection.timezone if settings.USE_TZ else get_default_timezone())
    offset, saving = local.utcoffset() or timedelta(), local.dst() or timedelta()
    return round((offset if summer else offset - saving).total_seconds() / 60)


class DatabaseNow(Now):
    """The database's time in the form in which Django stores datetimes, so that the two can be compared."""

    #: Whether daylight saving time applies where Django stores local time.
    summer: ClassVar[bool] = True

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        # CURRENT_TIMESTAMP is in the session's time zone, which Django leaves at the server's default.
        minutes = minutes_east(connection, summer=self.summer)
        ahead = f" + INTERVAL {minutes} MINUTE" if minutes else ""
        return self.as_sql(compiler, connection, template=f"(UTC_TIMESTAMP(6){ahead})", **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        ahead = _ahead_on_sqlite(connection, summer=self.summer)
        template = f"STRFTIME('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f', 'NOW'{ahead})"
        return self.as_sql(compiler, connection, template=template, **extra)


class LeaseNow(DatabaseNow):
    """The database's time for leases, without daylight saving time.

    The change to daylight saving time in spring would otherwise end every lease an hour early.
    """

    summer = False


class FromNow(Func):
    """The database's time a while after the statement runs. `duration` is an expression for a timedelta.

    SQLite has no type for durations: Django adds them by a Python function that SQLite calls, which takes longer than
    the rest of the statement. SQLite's own function of time can do the same. It also returns milliseconds, as
    `DatabaseNow` does. SQLite compares times as strings, and Django's function returns microseconds: the same moment in
    that form would be later.
    """

    output_field: ClassVar[DateTimeField[Any, Any]] = DateTimeField()

    def __init__(self, duration: Expression, clock: type[DatabaseNow] = DatabaseNow) -> None:
        self._clock = clock
        super().__init__(duration)

    def as_sql(
        self,
        compiler: Any,
        connection: Any,
        function: str | None = None,
        template: str | None = None,
        arg_joiner: str | None = None,
        **extra: Any,
    ) -> Any:
        (duration,) = self.get_source_expressions()
        return compiler.compile((self._clock() + duration).resolve_expression(compiler.query))

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        ahead = _ahead_on_sqlite(connection, summer=self._clock.summer)
        (duration,) = self.get_source_expressions()
        sql, params = compiler.compile(duration)
        return f"STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW'{ahead}, ({sql} / 1000000.0) || ' seconds')", params


def _ahead_on_sqlite(connection: BaseDatabaseWrapper, *, summer: bool) -> str:
    """Return the argument of STRFTIME for the UTC offset in which Django stores datetimes."""
    minutes = minutes_east(connection, summer=summer)
    return f", '{minutes:+d} minutes'" if minutes else ""


def from_now(seconds: float, *, clock: type[DatabaseNow] = DatabaseNow) -> Expression:
    """Return an expression for the database's time `seconds` after the statement runs."""
    return FromNow(Value(timedelta(seconds=seconds), output_field=DurationField()), clock)


class EpochNow(Func):
    """The database's time in whole seconds since 1970, which no time zone makes ambiguous."""

    output_field: ClassVar[BigIntegerField[int, int]] = BigIntegerField()

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(
            compiler, connection, template="FLOOR(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()))::bigint", **extra
        )

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="UNIX_TIMESTAMP()", **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="CAST(STRFTIME('%%%%s', 'NOW') AS INTEGER)", **extra)


def epoch_now(using: str) -> int:
    """Return the time of the database `using` in whole seconds since 1970."""
    sql, parameters = Query(None).get_compiler(using).compile(EpochNow())
    with connections[using].cursor() as cursor:
        cursor.execute(f"SELECT {sql}", parameters)
        return int(cursor.fetchone()[0])
