"""What a task is compared with: loops that only write to the database.

- `driver_loop`: the statements of a task as SQL strings, with the driver alone.
- `minimal_loop`: what a user would write, with the ORM and a table that has the documented columns only.
- `orm_loop`: the statements of a task, with all their columns, written with the ORM.
"""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Final

DRIVER: Final = "driver, written out"
MINIMAL: Final = "ORM, documented columns only"
ORM: Final = "ORM, written out"


def orm_loop(n: int) -> None:
    """Execute INSERT, BEGIN, UPDATE and COMMIT for each task with Django's ORM."""
    from django.db import transaction
    from django.db.models.functions import Now

    from lambda_tasks.models import TaskRecord

    for _ in range(n):
        message_id, claim = uuid.uuid4(), uuid.uuid4()
        TaskRecord.objects.create(
            id=message_id,
            task_name="benchmarks.tasks.nothing",
            kwargs={},
            status="RUNNING",
            start_time=Now(),
            n_retries=0,
            root_id=message_id,
            queue="default",
            claim=claim,
            lease_until=Now() + timedelta(seconds=309),
        )
        with transaction.atomic():
            TaskRecord.objects.filter(pk=message_id, claim=claim, status="RUNNING").update(
                status="SUCCESS", end_time=Now(), result=None, traceback=None
            )


def minimal_loop(n: int) -> None:
    """Execute the same four statements for a table without claims, leases and roots, and with Python's time."""
    from django.db import transaction
    from django.utils.timezone import now

    from benchmarks.models import MinimalRecord

    for _ in range(n):
        message_id = uuid.uuid4()
        MinimalRecord(
            id=message_id,
            task_name="benchmarks.tasks.nothing",
            kwargs={},
            status="RUNNING",
            start_time=now(),
            n_retries=0,
        ).save(force_insert=True)
        with transaction.atomic():
            MinimalRecord.objects.filter(pk=message_id).update(
                status="SUCCESS", end_time=now(), result=None, traceback=None
            )


def driver_loop(n: int) -> None:
    """Execute the same statements as SQL strings with psycopg or sqlite3."""
    from django.db import connection

    connection.ensure_connection()
    with connection.connection.cursor() if connection.vendor == "postgresql" else connection.cursor() as cursor:
        insert, update = _statements(connection.vendor)
        for _ in range(n):
            message_id, claim = uuid.uuid4(), uuid.uuid4()
            keys = (message_id, claim) if connection.vendor == "postgresql" else (message_id.hex, claim.hex)
            cursor.execute(insert, (keys[0], keys[0], keys[1]))
            cursor.execute("BEGIN")
            cursor.execute(update, keys)
            cursor.execute("COMMIT")


def _statements(vendor: str) -> tuple[str, str]:
    now = "STATEMENT_TIMESTAMP()" if vendor == "postgresql" else "strftime('%Y-%m-%d %H:%M:%f', 'now')"
    lease = f"{now} + interval '309 s'" if vendor == "postgresql" else now
    insert = f"""
        INSERT INTO lambda_tasks_taskrecord (id, task_name, kwargs, status, start_time, n_retries, root_id,
            queue, claim, lease_until, takeovers)
        VALUES (%s, 'benchmarks.tasks.nothing', '{{}}', 'RUNNING', {now}, 0, %s, 'default', %s, {lease}, 0)"""
    update = f"""
        UPDATE lambda_tasks_taskrecord SET status = 'SUCCESS', end_time = {now}, result = NULL, traceback = NULL
        WHERE id = %s AND claim = %s AND status = 'RUNNING'"""
    return insert, update


def create_minimal_table() -> None:
    """Create the table of `minimal_loop`."""
    from django.db import connection

    from benchmarks.models import MinimalRecord

    with connection.schema_editor() as editor:
        editor.create_model(MinimalRecord)
