"""What does a task cost the database, and what follows for ten to ten thousand tasks a second?

Tasks run in batches of ten on a PostgreSQL of their own: on the plain table, with `record="failures"`, and on the
partitioned table. The write-ahead log (WAL) and the sizes of tables are read from the server. Then a million old
records are deleted, and dropped with their partitions. The last two tables are calculated.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.harness import Measured, Sample, in_turn, microseconds, timed
from benchmarks.report import Report, Table, main

TABLE: Final = "lambda_tasks_taskrecord"
BATCH: Final = 10
#: Tasks in one measurement of time.
TIMED: Final = 200
PLAIN: Final = "the plain table"
FORGETTING: Final = '`record="failures"`'
PARTITIONED: Final = "the partitioned table"
RATES: Final = (10, 100, 1_000, 10_000)

#: What the calculation assumes of a task and its workers.
SECONDS: Final = 0.1
MEMORY_GB: Final = 0.5
FAILING: Final = 0.01
RETENTION_DAYS: Final = 7
#: An always-on fleet has room for peaks, and one worker process for each half of a processor.
HEADROOM: Final = 2
PROCESSES_PER_VCPU: Final = 2
GB_PER_VCPU: Final = 2
MONTH: Final = 30 * 86_400
DAY: Final = 86_400

#: USD in us-east-1, without free tiers and discounts. The remarks name their sources.
PRICES: Final = {
    "a million requests to SQS": 0.40,
    "a million invocations": 0.20,
    "a GB-second of Lambda": 0.0000166667,
    "a vCPU-hour of Fargate": 0.04048,
    "a GB-hour of Fargate": 0.004445,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a task costs, in bytes and seconds."""

    wal: float
    size: float
    statements: float


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What it costs to delete all records of a table, and what is left of its files."""

    wall: float
    wal: float
    before: float
    after: float


def measure(options: argparse.Namespace) -> Report:
    from tests import services

    server = services.own_postgres({"fsync": "on", "synchronous_commit": "on", "autovacuum": "off"})
    if isinstance(server, services.Missing):
        raise SystemExit(str(server))
    server.start()
    os.environ["DATABASE_URL"] = server.url
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from django.db import connection

    from benchmarks import servers
    from lambda_tasks.operations.partitioning.converting import OLD, convert

    _run(100, "all")  # warm up
    costs = {PLAIN: _cost(options.tasks, "all"), FORGETTING: _cost(options.tasks, "failures")}
    forgotten = _forgotten(options.tasks)
    _empty()
    _fill(options.rows)
    deleted = _cleaned()
    _empty()
    _fill(options.rows)
    began = time.perf_counter()
    convert(connection)
    converted = time.perf_counter() - began
    _execute(f"DROP TABLE {OLD}")
    dropped = _cleaned()
    costs[PARTITIONED] = _cost(options.tasks, "all")
    _execute(f"CREATE SCHEMA plain; CREATE TABLE plain.{TABLE} (LIKE {TABLE} INCLUDING ALL)")
    times = _times(options.rounds)
    return Report(
        title="The database at scale",
        question=__doc__ or "",
        method=[
            f"{options.tasks:,} tasks without arguments for each row of the first table, after a checkpoint.",
            "The WAL includes the copies of pages that follow a checkpoint.",
            "Sizes include indexes. Vacuum has not run.",
            f"Times are medians of {options.rounds} rounds of {TIMED} tasks, in which the three take turns.",
            f"The cleanup deletes {options.rows:,} records of 30 tasks that are 10 to 20 days old.",
            "PostgreSQL is private to the measurement, with its default settings, without autovacuum.",
            *servers.machine(),
        ],
        tables=[
            _costs_table(costs, times, forgotten),
            _cleanup_table(options.rows, deleted, dropped),
            _load_table(costs),
            _bill_table(costs),
        ],
        remarks=[
            f"Partitioning the table with {options.rows:,} records took {converted:.0f} s.",
            (
                f"The calculation assumes tasks of {SECONDS * 1e3:.0f} ms in batches of {BATCH} on functions with "
                f"{MEMORY_GB:g} GB, {FAILING:.0%} failures, and {RETENTION_DAYS} days of records."
            ),
            (
                f"The fleet has {HEADROOM} times the average capacity, {PROCESSES_PER_VCPU} processes for each vCPU, "
                f"and {GB_PER_VCPU} GB for each vCPU, on Fargate. It polls SQS as often as Lambda does."
            ),
            "The database is not in the bill: both need the same one.",
            "Prices: " + "; ".join(f"{name} {price:g} USD" for name, price in PRICES.items()) + ".",
        ],
    )


# Measurements


def _run(number: int, record: str) -> float:
    """Run tasks in batches, and return how many statements a task took."""
    from django.db import connection
    from django.test import override_settings

    from benchmarks import tasks
    from benchmarks.events import events_of
    from lambda_tasks.handler import handler

    statements = 0

    def count(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(sql, params, many, context)

    events = events_of(tasks.nothing, messages=number, size=BATCH)
    with override_settings(LAMBDA_TASKS_RECORD=record), connection.execute_wrapper(count):
        for event in events:
            assert handler(event, None) == {"batchItemFailures": []}
    return statements / number


def _cost(number: int, record: str) -> Cost:
    _empty()
    _execute("CHECKPOINT")
    before = _size()
    with _counted() as used:
        statements = _run(number, record)
    return Cost(used["wal"] / number, (_size() - before) / number, statements)


def _times(rounds: int) -> Measured:
    """Measure tasks on the partitioned table, and on an empty plain one in a schema of its own, in turn."""
    from benchmarks.records import use_table

    def contender(schema: str, record: str) -> Callable[[], Sample]:
        def measured() -> Sample:
            use_table(schema)
            sample = timed(lambda: _run(TIMED, record), units=TIMED)()
            use_table("public")
            return sample

        return measured

    return in_turn(
        {
            PLAIN: contender("plain", "all"),
            FORGETTING: contender("plain", "failures"),
            PARTITIONED: contender("public", "all"),
        },
        rounds=rounds,
    )


def _forgotten(number: int) -> tuple[float, float]:
    """Forget the successes of the last measurement, and return the seconds and the bytes of WAL of each."""
    from lambda_tasks.operations.forgetting import forget

    _execute(f"UPDATE {TABLE} SET start_time = start_time - interval '2 days', end_time = end_time - interval '2 days'")
    _execute(f"VACUUM ANALYZE {TABLE}")
    _execute("CHECKPOINT")
    with _counted() as used:
        wall = time.perf_counter()
        assert forget() == number
        wall = time.perf_counter() - wall
    return wall / number, used["wal"] / number


def _fill(rows: int) -> None:
    from benchmarks import records

    records.fill(rows, oldest=20, youngest=10)
    _execute(f"UPDATE {TABLE} SET status = 'FAILED' WHERE status = 'RUNNING'")
    _execute(f"VACUUM FULL {TABLE}")
    _execute(f"ANALYZE {TABLE}")
    _execute("CHECKPOINT")


def _cleaned() -> Cleaned:
    from lambda_tasks.tasks import cleanup_task_records

    before = _size()
    with _counted() as used:
        wall = time.perf_counter()
        cleanup_task_records(retention_days=7)
        wall = time.perf_counter() - wall
    return Cleaned(wall, used["wal"], before, _size())


@contextmanager
def _counted() -> Iterator[dict[str, float]]:
    """Yield a dict that has the bytes of WAL which were written in the `with` block, after it."""
    used: dict[str, float] = {}
    before = _one("SELECT pg_current_wal_insert_lsn()")
    yield used
    used["wal"] = float(_one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", before))


def _size() -> float:
    """Return the bytes of the table, of its partitions, and of their indexes."""
    return float(_one(f"SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{TABLE}')") or 0) or float(
        _one(f"SELECT pg_total_relation_size('{TABLE}')")
    )


def _empty() -> None:
    _execute(f"TRUNCATE {TABLE}")


def _execute(sql: str) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql)


def _one(sql: str, *params: object) -> Any:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql, params or None)
        row = cursor.fetchone()
    return None if row is None else row[0]


# Tables


def _costs_table(costs: Mapping[str, Cost], times: Measured, forgotten: tuple[float, float]) -> Table:
    rows = [
        (
            name,
            f"{cost.statements:.1f}",
            f"{cost.wal:,.0f}",
            f"{cost.size:,.0f}",
            microseconds(times.cpu(name).median),
            str(times.cpu_ratio(name, PLAIN)),
            microseconds(times.wall(name).median),
            str(times.wall_ratio(name, PLAIN)),
        )
        for name, cost in costs.items()
    ]
    seconds, wal = forgotten
    return Table(
        f"A task. To forget a success later takes {seconds * 1e6:,.0f} µs and {wal:,.0f} bytes of WAL.",
        (
            "",
            "statements, without BEGIN and COMMIT",
            "WAL, bytes",
            "table and indexes, bytes",
            "CPU of the worker, µs",
            "CPU ratio",
            "wall, µs",
            "wall ratio",
        ),
        rows,
    )


def _cleanup_table(rows: int, deleted: Cleaned, dropped: Cleaned) -> Table:
    def row(name: str, cleaned: Cleaned) -> Sequence[str]:
        return (
            name,
            f"{cleaned.wall:,.1f}",
            f"{cleaned.wal / 2**20:,.1f}",
            f"{cleaned.before / 2**20:,.0f}",
            f"{cleaned.after / 2**20:,.0f}",
        )

    return Table(
        f"The cleanup of {rows:,} records.",
        ("", "seconds", "WAL, MiB", "files before, MiB", "files after, MiB"),
        [row("DELETE, in batches", deleted), row("dropping partitions", dropped)],
    )


def _load_table(costs: Mapping[str, Cost]) -> Table:
    plain, forgetting = costs[PLAIN], costs[FORGETTING]
    rows = []
    for rate in RATES:
        kept = FAILING * RETENTION_DAYS + 1 - FAILING
        rows.append(
            (
                f"{rate:,}",
                f"{3 * rate / BATCH:,.0f}",
                f"{rate * SECONDS:,.0f}",
                f"{2 * rate:,}",
                f"{rate * plain.wal / 1e6:,.2f}",
                f"{rate * DAY * plain.size / 1e9:,.1f}",
                f"{rate * DAY * RETENTION_DAYS * plain.size / 1e9:,.0f}",
                f"{rate * DAY * kept * forgetting.size / 1e9:,.0f}",
            )
        )
    return Table(
        "The load, by calculation from the figures above.",
        (
            "tasks a second",
            "requests to SQS a second",
            "concurrent tasks, and connections",
            "commits a second",
            "WAL, MB a second",
            "table growth, GB a day",
            f"table of {RETENTION_DAYS} days, GB",
            'table with `record="failures"`, GB',
        ),
        rows,
    )


def _bill_table(costs: Mapping[str, Cost]) -> Table:
    rows = []
    for rate in RATES:
        sqs = 3 * rate / BATCH * MONTH / 1e6 * PRICES["a million requests to SQS"]
        invocations = rate / BATCH * MONTH / 1e6 * PRICES["a million invocations"]
        seconds = rate * SECONDS * MEMORY_GB * MONTH * PRICES["a GB-second of Lambda"]
        vcpus = max(1.0, rate * SECONDS * HEADROOM / PROCESSES_PER_VCPU)
        hourly = PRICES["a vCPU-hour of Fargate"] + GB_PER_VCPU * PRICES["a GB-hour of Fargate"]
        fleet = vcpus * MONTH / 3600 * hourly
        rows.append(
            (
                f"{rate:,}",
                f"{sqs:,.0f}",
                f"{invocations:,.0f}",
                f"{seconds:,.0f}",
                f"{sqs + invocations + seconds:,.0f}",
                f"{vcpus:,.0f}",
                f"{sqs + fleet:,.0f}",
            )
        )
    return Table(
        "The bill of a month in USD, by calculation, if the rate is the same all day.",
        (
            "tasks a second",
            "SQS",
            "invocations",
            "GB-seconds",
            "SQS and Lambda",
            "vCPUs of a fleet",
            "SQS and a fleet",
        ),
        rows,
    )


if __name__ == "__main__":
    main(measure, rounds=7, tasks=4_000, rows=1_000_000)
