"""SQL expressions for durations, and for percentiles of them on PostgreSQL."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import Aggregate, FloatField, Func


class Seconds(Func):
    """The number of seconds from the second time to the first, as in `later - earlier`."""

    output_field: ClassVar[FloatField[float, float]] = FloatField()
    arity = 2

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "EXTRACT(EPOCH FROM (%(expressions)s))::double precision"
        return self.as_sql(compiler, connection, template=template, arg_joiner=" - ", **extra)

    def as_mysql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        turned = self.copy()
        turned.set_source_expressions(list(reversed(self.get_source_expressions())))
        template = "(TIMESTAMPDIFF(MICROSECOND, %(expressions)s) / 1e6)"
        return turned.as_sql(compiler, connection, template=template, **extra)

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        template = "((JULIANDAY(%(expressions)s)) * 86400.0)"
        return self.as_sql(compiler, connection, template=template, arg_joiner=") - JULIANDAY(", **extra)


class Epoch(Func):
    """A time in seconds since 1970, on PostgreSQL."""

    output_field: ClassVar[FloatField[float, float]] = FloatField()
    template = "EXTRACT(EPOCH FROM %(expressions)s)::double precision"


class MadeAt(Func):
    """The time that a column with a UUIDv7 contains, in seconds since 1970, or NULL; on PostgreSQL."""

    output_field: ClassVar[FloatField[float, float]] = FloatField()
    template = (
        "(CASE WHEN SUBSTR(%(expressions)s::text, 15, 1) = '7' THEN "
        "('x' || SUBSTR(REPLACE(%(expressions)s::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0::double precision "
        "END)"
    )


class Percentile(Aggregate):
    """The value that `percent` of the values do not exceed, interpolated between two of them; on PostgreSQL."""

    output_field: ClassVar[FloatField[float, float]] = FloatField()
    function = "PERCENTILE_CONT"
    template = "%(function)s(%(fraction)s) WITHIN GROUP (ORDER BY %(expressions)s)"

    def __init__(self, expression: Any, percent: int, **extra: Any) -> None:
        super().__init__(expression, fraction=percent / 100, **extra)
