"""Read points in time from the command line."""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

_AGO: Final = re.compile(r"(\d+)\s*([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
#: The most digits of a number of units, so that the time is one that databases have.
_MAX_DIGITS: Final = 5


def moment(text: str) -> datetime:
    """Return the time that an option names: `2h` (ago), `2026-05-02`, or `2026-05-02T09:30`, with an offset or local.

    Raise `ArgumentTypeError` for anything else.
    """
    if (match := _AGO.fullmatch(text.strip())) and len(match[1]) <= _MAX_DIGITS:
        now = timezone.now() if settings.USE_TZ else datetime.now()  # noqa: DTZ005, naive as the stored times
        return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        found = parse_datetime(text) or parse_date(text)
    except ValueError:
        found = None
    if found is None:
        raise argparse.ArgumentTypeError(
            f"must be a time such as 2h (two hours ago), 7d, 2026-05-02 or 2026-05-02T09:30+02:00, not {text!r}"
        )
    if not isinstance(found, datetime):
        found = datetime(found.year, found.month, found.day)  # noqa: DTZ001, made aware below
    if settings.USE_TZ:
        return timezone.make_aware(found) if timezone.is_naive(found) else found
    return found if timezone.is_naive(found) else timezone.make_naive(found)
