"""What does it cost to execute a task?

A task that does nothing runs in the handler, in batches of ten and with its record. It is compared with loops
that only write to the database: the same rows with the ORM and with the driver, and what a user would write, a table
with the documented columns only.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from benchmarks.floors import DRIVER, MINIMAL, ORM, create_minimal_table, driver_loop, minimal_loop, orm_loop
from benchmarks.harness import Sample, in_turn, microseconds, timed
from benchmarks.report import Bars, Report, Table, main

if TYPE_CHECKING:
    from collections.abc import Callable

OURS = "handler()"
OURS_AT_ONCE = "handler(), durable_claims=False"
ORM_STORE = "lambda_tasks.stores.orm.ORMStore"
BATCH = 10
#: What the title says about connections: one for all tasks, as the page on deploying advises, or Django's default, a
#: new one for each batch.
_ABOUT_CONNECTIONS = {"kept": "", "new": ", a new connection for each batch"}


def measure(options: argparse.Namespace) -> Report:
    os.environ["BENCH_DATABASE"] = options.database
    os.environ["BENCH_CONNECTIONS"] = options.connections
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    from benchmarks.databases import migrated

    with migrated():
        create_minimal_table()
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from django.db import connection
    from django.test import override_settings

    from benchmarks import servers, tasks
    from benchmarks.events import events_of
    from lambda_tasks.handler import handler
    from lambda_tasks.models import TaskRecord

    n = options.tasks

    def floor(loop: Callable[[int], object]) -> Callable[[], Sample]:
        def in_batches() -> None:
            for _ in range(n // BATCH):
                loop(BATCH)
                connection.close()

        return timed(in_batches if options.connections == "new" else lambda: loop(n), units=n)

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
        ORM: floor(orm_loop),
        MINIMAL: floor(minimal_loop),
        OURS: ours(),
        DRIVER: floor(driver_loop),
    }
    if options.database == "postgres":
        contenders[OURS_AT_ONCE] = ours(durable_claims=False)
    measured = in_turn(contenders, rounds=options.rounds, reset=TaskRecord.objects.all().delete)
    names = list(contenders)
    return Report(
        title=f"Executing a task ({options.database}{_ABOUT_CONNECTIONS[options.connections]})",
        question=__doc__ or "",
        method=[
            f"{n:,} tasks in each of {options.rounds} rounds, after one warm-up round; the contenders take turns.",
            "CPU time is the time of the worker's process, without the database.",
            *servers.machine(),
        ],
        tables=[
            Table(
                "Per task, medians; ratios to the two loops of the ORM as median (quartiles).",
                ("", "CPU, µs", "wall, µs", "CPU ratio", "wall ratio", "CPU : minimal", "wall : minimal"),
                [
                    (
                        name,
                        microseconds(measured.cpu(name).median),
                        microseconds(measured.wall(name).median),
                        str(measured.cpu_ratio(name, ORM)),
                        str(measured.wall_ratio(name, ORM)),
                        str(measured.cpu_ratio(name, MINIMAL)),
                        str(measured.wall_ratio(name, MINIMAL)),
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
                [(name, *_figures(measured.cpu_ratio(name, ORM))) for name in names],
                mark=1.0,
            )
        ],
    )


def _figures(spread: Any) -> tuple[float, float, float]:
    return spread.median, spread.low, spread.high


if __name__ == "__main__":
    main(measure, rounds=25, tasks=400, database="postgres", connections="kept")
