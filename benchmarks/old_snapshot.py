"""Does an old snapshot slow down the end of a task?

One transaction has been open since before the tasks: a report, `pg_dump`, a task of ten minutes. Until it ends, vacuum
cannot remove the entries of ended tasks under RUNNING in the index on the status. The table was analysed while no task
was running. The library's UPDATE excludes the ended statuses; the floor's UPDATE requires `status = 'RUNNING'`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import Measured, Sample, in_turn, microseconds, timed
from benchmarks.report import Lines, Report, Table, main

if TYPE_CHECKING:
    from lambda_tasks.jobs import Run

OURS: Final = "ORMStore.record()"
RUNNING: Final = "status = 'RUNNING'"
#: Records that had ended when the table was analysed.
OLD: Final = 20_000
#: Ended tasks in one measurement.
ENDS: Final = 100

_MAKE: Final = """
    INSERT INTO lambda_tasks_taskrecord (id, task_name, kwargs, status, start_time, n_retries, root_id, queue, claim,
        lease_until, takeovers)
    SELECT gen_random_uuid(), 'benchmarks.tasks.nothing', '{}', 'RUNNING', now(), 0, NULL, %s, gen_random_uuid(),
        now(), 0
    FROM generate_series(1, %s)"""
_END_ALL: Final = "UPDATE lambda_tasks_taskrecord SET status = 'SUCCESS', end_time = now() WHERE queue = %s"
_END_ONE: Final = """
    UPDATE lambda_tasks_taskrecord
    SET status = 'SUCCESS', end_time = STATEMENT_TIMESTAMP(), result = NULL, traceback = NULL
    WHERE id = %s AND claim = %s AND status = 'RUNNING'"""


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.admin_settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from benchmarks import servers

    _run_tasks("old", OLD)
    with _cursor() as cursor:
        cursor.execute("VACUUM ANALYZE lambda_tasks_taskrecord")
        cursor.execute("ALTER TABLE lambda_tasks_taskrecord SET (autovacuum_enabled = off)")
    steps = [round(options.tasks * share) for share in (0, 0.1, 0.25, 0.5, 1)]
    found: dict[int, Measured] = {}
    with _old_snapshot():
        done = 0
        for step in steps:
            _run_tasks(f"step {step}", step - done)
            done = step
            found[step] = in_turn({OURS: _ends_by_store, RUNNING: _ends_by_status}, rounds=options.rounds)
    return Report(
        title="Behind an old snapshot",
        question=__doc__ or "",
        method=[
            f"{OLD:,} ended records, analysed; then up to {options.tasks:,} tasks behind a snapshot, no autovacuum.",
            f"{options.rounds} rounds of {ENDS} ended tasks each, after one warm-up round; the contenders take turns.",
            "The measurement covers BEGIN, the UPDATE and COMMIT.",
            *servers.machine(),
        ],
        tables=[
            Table(
                "Wall time to end one task, µs, medians.",
                ("tasks since the snapshot", OURS, RUNNING),
                [(f"{step:,}", *_walls(of)) for step, of in found.items()],
            )
        ],
        plots=[
            Lines(
                "old-snapshot",
                "The end of a task behind an old snapshot",
                "tasks since the snapshot",
                "microseconds",
                [
                    (name, [(step, of.wall(name).median * 1e6) for step, of in found.items()])
                    for name in (OURS, RUNNING)
                ],
                logarithmic_y=True,
            )
        ],
    )


def _walls(measured: Measured) -> Sequence[str]:
    return [microseconds(measured.wall(name).median) for name in (OURS, RUNNING)]


def _ends_by_store() -> Sample:
    from django.db import transaction

    from lambda_tasks.outcomes import Succeeded
    from lambda_tasks.strategies import get_store

    runs, store = _claimed(), get_store()

    def end() -> None:
        for run in runs:
            with transaction.atomic():
                store.record(run, Succeeded())

    return timed(end, units=ENDS)()


def _ends_by_status() -> Sample:
    from django.db import transaction

    runs = _claimed()

    def end() -> None:
        for run in runs:
            with transaction.atomic(), _cursor() as cursor:
                cursor.execute(_END_ONE, [run.message_id, run.claim])

    return timed(end, units=ENDS)()


def _claimed() -> list[Run]:
    from benchmarks.table_cases import new_run
    from lambda_tasks.strategies import get_store

    runs = [new_run() for _ in range(ENDS)]
    for run in runs:
        get_store().claim(run)
    return runs


def _run_tasks(queue: str, n: int) -> None:
    """Leave the same rows and index entries in the table as `n` tasks."""
    with _cursor() as cursor:
        cursor.execute(_MAKE, [queue, n])
        cursor.execute(_END_ALL, [queue])


@contextmanager
def _cursor() -> Iterator[Any]:
    from django.db import connection

    with connection.cursor() as cursor:
        yield cursor


@contextmanager
def _old_snapshot() -> Iterator[None]:
    from django.db import connection

    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM lambda_tasks_taskrecord")
            yield
            cursor.execute("ROLLBACK")
    finally:
        other.close()


if __name__ == "__main__":
    main(measure, rounds=5, tasks=100_000)
