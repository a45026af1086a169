"""Answer events that ask whether the function works, and those that keep its containers warm."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import django
from django.db import connections

import lambda_tasks
from lambda_tasks.database.errors import on_sound_connection
from lambda_tasks.maintenance import EVENT_FIELD, PING
from lambda_tasks.strategies import get_store

#: The source of events that the plugin for the Serverless Framework sends to keep a function warm. A schedule of
#: EventBridge without an input is refused instead: it may be meant for the maintenance.
WARM_UP_SOURCE: Final = "serverless-plugin-warmup"


def wanted(event: object) -> bool:
    """Return whether an event is a ping or a warm-up."""
    if not isinstance(event, Mapping) or "Records" in event:
        return False
    return event.get(EVENT_FIELD) == PING or event.get("source") == WARM_UP_SOURCE


def answer() -> dict[str, Any]:
    """Query the database of the records, and return the versions in this process.

    Raise the database's error if it does not answer.
    """
    database = get_store().database
    on_sound_connection(database, partial(_query, database))  # the old one may have died while the container was frozen
    return {
        "status": "ok",
        "database": database,
        "versions": {
            "django-lambda-tasks": lambda_tasks.__version__,
            "django": django.get_version(),
            "python": ".".join(map(str, sys.version_info[:3])),
        },
    }


def _query(database: str) -> None:
    with connections[database].cursor() as cursor:
        cursor.execute("SELECT 1")
