"""What does it cost to execute a task?

A task that does nothing runs in the handler, in batches of ten and with its record. It is compared with loops
that only write the same rows with the same statements.
"""

from __future__ import annotations

import argparse
import os
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Sample, in_turn, microseconds, timed
from benchmarks.report import Bars, Report, Table, main

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "handler()"
OURS_AT_ONCE = "handler(), durable_claims=False"
ORM_STORE = "lambda_tasks.stores.orm.ORMStore"
FLOOR = "ORM, written out"
DRIVER = "driver, written out"
BATCH = 10


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


def measure(options: argparse.Namespace) -> Report:
    os.environ["BENCH_DATABASE"] = options.database
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from django.test import override_settings

    from benchmarks import servers, tasks
    from benchmarks.events import events_of
    from lambda_tasks.handler import handler
    from lambda_tasks.models import TaskRecord

    n = options.tasks

    def ours(**store: Any) -> Callable[[], Sample]:
        # Each message is new, because the handler recognises messages that it has run before.
        rounds = iter([events_of(tasks.nothing, messages=n, size=BATCH) for _ in range(options.rounds + 1)])

        def run() -> None:
            for event in next(rounds):
                assert handler(event, None) == {"batchItemFailures": []}

        def contender() -> Sample:
            with override_settings(LAMBDA_TASKS_STORE={"BACKEND": ORM_STORE, "OPTIONS": store}):
                return timed(run, units=n)()

        return contender

    contenders = {
        FLOOR: timed(lambda: orm_loop(n), units=n),
        OURS: ours(),
        DRIVER: timed(lambda: driver_loop(n), units=n),
    }
    if options.database == "postgres":
        contenders[OURS_AT_ONCE] = ours(durable_claims=False)
    measured = in_turn(contenders, rounds=options.rounds, reset=TaskRecord.objects.all().delete)
    names = list(contenders)
    return Report(
        title=f"Executing a task ({options.database})",
        question=__doc__ or "",
        method=[
            f"{n:,} tasks in each of {options.rounds} rounds, after one warm-up round; the contenders take turns.",
            "CPU time is the time of the worker's process, without the database.",
            *servers.machine(),
        ],
        tables=[
            Table(
                "Per task, medians; ratios to the ORM's loop as median (quartiles).",
                ("", "CPU, µs", "wall, µs", "CPU ratio", "wall ratio"),
                [
                    (
                        name,
                        microseconds(measured.cpu(name).median),
                        microseconds(measured.wall(name).median),
                        str(measured.cpu_ratio(name, FLOOR)),
                        str(measured.wall_ratio(name, FLOOR)),
                    )
                    for name in names
                ],
            )
        ],
        plots=[
            Bars(
                f"execute-{options.database}",
                f"CPU time of a task ({options.database})",
                "times the ORM's loop",
                [(name, *_figures(measured.cpu_ratio(name, FLOOR))) for name in names],
                mark=1.0,
            )
        ],
    )


def _figures(spread: Any) -> tuple[float, float, float]:
    return spread.median, spread.low, spread.high


if __name__ == "__main__":
    main(measure, rounds=9, tasks=1000, database="postgres")
