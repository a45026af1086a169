"""How many instructions does a task cost its worker?

Instructions repeat within half a percent, also on a busy machine, where times do not. A task that does nothing runs
in the handler, in batches of ten and with its record. It is compared with loops that only write to the database.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.floors import DRIVER, MINIMAL, ORM, create_minimal_table, driver_loop, minimal_loop, orm_loop
from benchmarks.report import Report, Table, main

OURS: Final = "handler()"
#: Creating the events, which the measurement of the handler includes and the table does not.
_EVENTS: Final = "events"
BATCH: Final = 10
#: Two numbers of tasks: their difference leaves out what does not depend on the number.
FEW, MANY = 20, 70
VALGRIND: Final = ("valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null")


def measure(options: argparse.Namespace) -> Report:
    databases = options.databases.split()
    counts = {database: _counted(database) for database in databases}
    rows = []
    for name in (DRIVER, MINIMAL, ORM, OURS):
        thousands = [counts[database][name] / 1000 for database in databases]
        floors = [counts[database][name] / counts[database][MINIMAL] for database in databases]
        rows.append((name, *(f"{n:,.0f}" for n in thousands), *(f"{ratio:.2f}" for ratio in floors)))
    return Report(
        title="Instructions of a task",
        question=__doc__ or "",
        method=[
            f"The difference of {MANY} and {FEW} tasks, each in a fork of a process that has run ten of each kind.",
            "valgrind counts the instructions of the process, including those of SQLite, and not those of PostgreSQL.",
            "The connection is kept, and its settings are those of the page on deploying.",
            f"Python {sys.version.split()[0]}",
        ],
        tables=[
            Table(
                "Thousands of instructions per task, and ratios to the ORM with the documented columns only.",
                ("", *databases, *(f"ratio, {database}" for database in databases)),
                rows,
            )
        ],
    )


def _counted(database: str) -> dict[str, float]:
    """Return the instructions per task of each contender."""
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [*VALGRIND, f"--log-file={folder}/%p", sys.executable, "-m", "benchmarks.instructions", "--inside"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "BENCH_DATABASE": database, "PYTHONHASHSEED": "0"},
        )
        lines = [line.split(" ", 2) for line in ran.stdout.splitlines()]
        totals = {(name, n): instructions_in(Path(folder, pid)) for pid, n, name in lines}
    counts = {
        name: (totals[name, str(MANY)] - totals[name, str(FEW)]) / (MANY - FEW)
        for name in dict.fromkeys(name for name, _ in totals)
    }
    counts[OURS] -= counts.pop(_EVENTS)
    return counts


def instructions_in(log: Path) -> int:
    """Return the number of instructions in a log of cachegrind."""
    found = re.search(r"I\s+refs:\s+([\d,]+)", log.read_text())
    assert found, log.read_text()
    return int(found[1].replace(",", ""))


def _contenders() -> dict[str, Callable[[int], object]]:
    from benchmarks import tasks
    from benchmarks.events import events_of
    from lambda_tasks.handler import handler

    def ours(n: int) -> None:
        for event in events_of(tasks.nothing, messages=n, size=BATCH):
            assert handler(event, None) == {"batchItemFailures": []}

    def events(n: int) -> None:
        events_of(tasks.nothing, messages=n, size=BATCH)

    return {DRIVER: driver_loop, MINIMAL: minimal_loop, ORM: orm_loop, OURS: ours, _EVENTS: events}


def inside() -> None:
    """Run each contender in forks, under valgrind, and print the id of each fork with what it ran."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    from benchmarks.databases import migrated

    with migrated():
        from django.db import connection

        create_minimal_table()
        contenders = _contenders()
        for loop in contenders.values():
            loop(BATCH)
        connection.close()
        for name, loop in contenders.items():
            for n in (FEW, MANY):
                pid = os.fork()
                if not pid:
                    loop(BATCH)
                    loop(n)
                    os._exit(0)
                _, status = os.waitpid(pid, 0)
                assert not status, f"{name} failed"
                print(f"{pid} {n} {name}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        inside()
    else:
        main(measure, rounds=1, databases="postgres sqlite")
