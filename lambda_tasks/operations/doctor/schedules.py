"""Check that a process starts the periodic tasks."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from django.db import connections

from lambda_tasks.database.clock import epoch_now
from lambda_tasks.database.errors import DATABASE_ERRORS
from lambda_tasks.models import TaskSchedule
from lambda_tasks.operations.doctor.findings import OVERDUE, Doctor
from lambda_tasks.operations.schedules import entries, list_schedules
from lambda_tasks.recording.lines import sentence
from lambda_tasks.strategies import get_store

#: How many schedules a finding names.
_NAMED: Final = 3


def look_at_schedules(doctor: Doctor) -> None:
    """Check for schedules whose next run is long overdue. Without periodic tasks, nothing is queried."""
    if not entries():
        return
    alias = get_store().database
    subject = f"schedules in database {alias!r}"
    try:
        if TaskSchedule._meta.db_table not in connections[alias].introspection.table_names():
            text, remedy = "the table of schedules does not exist.", f"Run `manage.py migrate --database {alias}`."
            doctor.find("D404", subject, f"{text} No periodic task is started.", remedy)
            return
        before = epoch_now(alias) - OVERDUE
        overdue = {each.key: each.next for each in list_schedules() if each.next is not None and each.next < before}
    except DATABASE_ERRORS as error:
        doctor.find(
            "D001",
            subject,
            f"this check was skipped: {sentence(error)}",
            "Make sure that the database can be reached from this machine, or run `manage.py lambda_tasks schedules`.",
        )
        return
    if overdue:
        first = datetime.fromtimestamp(min(overdue.values()), timezone.utc)
        names = ", ".join(list(overdue)[:_NAMED]) + (", …" if len(overdue) > _NAMED else "")
        doctor.find(
            "D405",
            subject,
            f"periodic tasks have been due for more than {OVERDUE // 60} minutes, the first since "
            f"{first:%Y-%m-%d %H:%M} UTC ({names}). No process starts them, or they cannot be sent.",
            'Create an EventBridge schedule that sends {"lambda_tasks": "maintenance"} to the function every minute, '
            "or run `manage.py lambda_tasks tick`. If one of them is running, check its log for errors.",
        )
