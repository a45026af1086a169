"""Read how long a service wants to be left alone from the exception that its client raised."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from lambda_tasks.settings import MAX_KEPT_DELAY

_HEADER: Final = "retry-after"


def requested_delay(error: BaseException) -> float:
    """Return the seconds for which `error` asks to wait before a retry, at most a year; 0 if it does not ask.

    An exception asks with its attribute `retry_after`, or with the header `Retry-After` of its `response` or of itself,
    as the exceptions of requests, httpx, urllib and botocore do. The value is a number of seconds, a timedelta, a
    datetime, or a string with a number or an HTTP date. Other values are disregarded.
    """
    # Attributes of a foreign exception can raise anything, which must not change the outcome of the task.
    with suppress(Exception):
        for value in _values(error):
            seconds = _seconds(value)
            if seconds is not None and seconds > 0:
                return min(seconds, MAX_KEPT_DELAY)
    return 0.0


def _values(error: BaseException) -> Iterator[object]:
    yield getattr(error, "retry_after", None)
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        yield _header(response.get("ResponseMetadata", {}).get("HTTPHeaders"))
    yield _header(getattr(response, "headers", None))
    yield _header(getattr(error, "headers", None))


def _header(headers: Any) -> object:
    """Return the value of the header, whose name has any case, from a mapping or an email message."""
    if headers is None:
        return None
    return next((value for name, value in headers.items() if str(name).lower() == _HEADER), None)


def _seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, datetime):
        return value.timestamp() - time.time()
    if isinstance(value, str):
        return _seconds_of_text(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return None if math.isnan(value) else float(value)


def _seconds_of_text(text: str) -> float | None:
    with suppress(ValueError):
        return _seconds(float(text))
    from email.utils import parsedate_to_datetime  # imported for the few errors that have a date

    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    # Dates of HTTP are in UTC, also in the forms that do not say so.
    return _seconds(moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc))
