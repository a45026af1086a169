"""Placeholders in compiled statements, and the parameters that they become."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import CharField, DurationField, Field, IntegerField, JSONField, TextField, UUIDField, Value
from django.utils.duration import duration_microseconds

from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.recording.uuids import hexadecimal

#: How the value of a slot begins that has none yet. It must not appear in SQL or in its parameters.
MARK: Final = "lambda_tasks slot "
#: The values of all slots while the ORM runs a query with them.
_values: ContextVar[Mapping[str, Any] | None] = ContextVar("lambda_tasks_slots", default=None)
#: A placeholder in SQL, and a doubled percent sign.
_PERCENT: Final = r"(%%|%s)"
#: The databases for which Django itself writes JSON: the backend of another one may write it otherwise.
_OWN_VENDORS: Final = ("postgresql", "mysql", "sqlite")


class Slot(Value):
    """A placeholder for a value that is only known when the statement runs; allowed wherever a `Value` is."""

    def __init__(self, name: str, field: Field[Any, Any]) -> None:
        self.name = name
        super().__init__(MARK + name, output_field=field)

    @property
    def value(self) -> Any:
        values = _values.get()
        return self._mark if values is None else values[self.name]

    @value.setter
    def value(self, mark: str) -> None:
        self._mark = mark

    def as_sql(self, compiler: Any, connection: Any) -> Any:
        return ("%s", [self]) if _values.get() is None else super().as_sql(compiler, connection)

    def filled(self, values: Mapping[str, Any], connection: BaseDatabaseWrapper) -> Any:
        """Return the slot's value in the form that the driver expects."""
        return self.output_field.get_db_prep_save(values[self.name], connection=connection)

    def place(self, connection: BaseDatabaseWrapper) -> Slot | _Text | _Converted:
        """Return a cheaper placeholder if the value needs no conversion by the model field, or else the slot."""
        field, convert = self.output_field, _conversion(self.output_field, connection)
        if convert is not None:
            return _Converted(self.name, convert)
        native = isinstance(field, UUIDField) and connection.features.has_native_uuid_field
        return _Text(self.name) if native or isinstance(field, CharField | TextField) else self


@frozen
class _Text:
    """A placeholder for a string that becomes a parameter without conversion."""

    name: str


@frozen
class _Converted:
    """A placeholder for a value that `convert` makes a parameter, unless it is None."""

    name: str
    convert: Callable[[Any], Any]


def _conversion(field: Field[Any, Any], connection: BaseDatabaseWrapper) -> Callable[[Any], Any] | None:
    """Return a function that is cheaper than the field's own conversion, or None.

    PostgreSQL infers the type of a string in a statement from its place, and a string costs the driver less than its
    types for JSON, numbers and durations.
    """
    if isinstance(field, UUIDField):
        return None if connection.features.has_native_uuid_field else hexadecimal
    if isinstance(field, JSONField) and field.encoder is None and connection.vendor in _OWN_VENDORS:
        return json.dumps
    if isinstance(field, IntegerField):
        return str if connection.vendor == "postgresql" else int
    if isinstance(field, DurationField):
        return _interval if connection.vendor == "postgresql" else duration_microseconds
    return None


def _interval(value: timedelta) -> str:
    """Return a duration as PostgreSQL reads it."""
    return f"{value.days} days {value.seconds}.{value.microseconds:06} seconds"


def places(sql: str, params: Sequence[Any], connection: BaseDatabaseWrapper) -> tuple[str, tuple[Any, ...]]:
    """Return SQL that contains its constants, and the cheapest placeholders for the parameters that are left.

    Raise ValueError if the SQL has another number of placeholders than parameters.
    """
    parts = re.split(_PERCENT, sql)
    kept = []
    for index, param in zip([n for n, part in enumerate(parts) if part == "%s"], params, strict=True):
        if isinstance(param, str) and _is_plain(param):
            parts[index] = f"'{param!s}'"
        elif isinstance(param, int) and not isinstance(param, bool):
            parts[index] = str(int(param))
        else:
            kept.append(param.place(connection) if isinstance(param, Slot) else param)
    return "".join(parts), tuple(kept)


def _is_plain(text: str) -> bool:
    """Return whether to write a string into SQL, such as the name of a status: upper case letters mean themselves."""
    return not text or (text.isascii() and text.isalpha() and text.isupper())


def filled(params: Sequence[Any], values: Mapping[str, Any], connection: BaseDatabaseWrapper) -> list[Any]:
    """Return the parameters for the driver: `params`, with `values` in the slots."""
    # Without a call for each of them: this runs twice for each task.
    return [
        values[place.name]
        if type(place) is _Text
        else (None if (value := values[place.name]) is None else place.convert(value))
        if type(place) is _Converted
        else place.filled(values, connection)
        if type(place) is Slot
        else place
        for place in params
    ]


@contextmanager
def slots_filled(values: Mapping[str, Any]) -> Iterator[None]:
    """Give each slot its value of `values`, so that the ORM treats it as any other `Value`."""
    before = _values.set(values)
    try:
        yield
    finally:
        _values.reset(before)
