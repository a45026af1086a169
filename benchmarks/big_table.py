"""Does a task cost more when the table of records is large?

The statements of the store, the built-in tasks and the pages of the admin are measured on a table of a million
records and on a table of twenty thousand, about the smallest size with full list pages. Both tables are in one
PostgreSQL database, and are measured alternately.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from benchmarks.harness import Measured, Sample, in_turn, timed
from benchmarks.report import Lines, Report, Table, main

if TYPE_CHECKING:
    from benchmarks.table_cases import Case

SMALL: Final = 20_000
PLOTTED: Final = ("claim", "record SUCCESS", "cleanup_task_records", "reap_lost_tasks", "admin: first page")


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.admin_settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from benchmarks import servers, table_cases
    from benchmarks.records import make_table, sizes, take_out_extra, use_table

    schemas = {"small": SMALL, "large": options.rows}
    for schema, rows in schemas.items():
        make_table(schema, rows)
    large_sizes = sizes("large")
    cases = table_cases.all_cases()

    def contender(case: Case, schema: str) -> Callable[[], Sample]:
        def measured() -> Sample:
            use_table(schema)
            sample = timed(case.prepare(), units=case.units)()
            if case.writes:
                take_out_extra()
            return sample

        return measured

    # Measure each case on both tables before the next case.
    measured = {
        case.name: in_turn({schema: contender(case, schema) for schema in schemas}, rounds=options.rounds)
        for case in cases
    }
    use_table("large")
    plan_rows = [row for case in cases for row in _plan_rows(case)]
    total = sum(large_sizes.values())
    return Report(
        title="A table of a million records",
        question=__doc__ or "",
        method=[
            f"{SMALL:,} and {options.rows:,} records of 30 tasks over 90 days.",
            "97% are SUCCESS, 2% FAILED with tracebacks of 3 KB, 0.5% RETRYING and 0.5% RUNNING.",
            f"{options.rounds} rounds, after one warm-up round; each case alternates between the two tables.",
            "Django's test client requests the admin pages, so the time includes rendering.",
            (
                f"The cleanup deletes {table_cases.CLEANED:,} records, and `reap_lost_tasks` recovers "
                f"{table_cases.LOST} lost tasks."
            ),
            (
                "Plans come from EXPLAIN (ANALYZE, BUFFERS) on the large table; each statement is rolled "
                "back, and then executed."
            ),
            *servers.machine(),
        ],
        tables=[
            Table(
                "Wall time, medians; the ratio of the large table to the small one as median (quartiles).",
                ("", f"{SMALL:,} records, ms", f"{options.rows:,} records, ms", "wall ratio", "CPU ratio"),
                [_row(name, of) for name, of in measured.items()],
            ),
            Table(
                f"Plans on {options.rows:,} records.",
                ("", "statement", "plan", "rows", "buffers", "ms"),
                plan_rows,
            ),
            Table(
                f"Disk space of {options.rows:,} records.",
                ("", "MiB", "share"),
                [(name, f"{size / 2**20:,.1f}", f"{size / total:.1%}") for name, size in large_sizes.items()],
            ),
        ],
        plots=[
            Lines(
                "big-table",
                "Wall time by the size of the table",
                "records",
                "milliseconds",
                [
                    (name, [(rows, of.wall(schema).median * 1e3) for schema, rows in schemas.items()])
                    for name, of in measured.items()
                    if name in PLOTTED
                ],
                logarithmic_x=True,
                logarithmic_y=True,
            )
        ],
    )


def _row(name: str, measured: Measured) -> Sequence[str]:
    return (
        name,
        f"{measured.wall('small').median * 1e3:,.2f}",
        f"{measured.wall('large').median * 1e3:,.2f}",
        str(measured.wall_ratio("large", "small")),
        str(measured.cpu_ratio("large", "small")),
    )


def _plan_rows(case: Case) -> list[Sequence[str]]:
    from benchmarks.plans import plans
    from benchmarks.records import undone

    with undone():
        shown: dict[str, Sequence[str]] = {}
        for plan in plans(case.prepare()):
            # Keep one of each kind: the same statement has the same plan for every task.
            shown.setdefault(
                plan.nodes + plan.statement[:60],
                (
                    case.name,
                    plan.statement,
                    plan.nodes,
                    f"{plan.rows:,}",
                    f"{plan.buffers:,}",
                    f"{plan.milliseconds:,.2f}",
                ),
            )
    return list(shown.values())


if __name__ == "__main__":
    main(measure, rounds=3, rows=1_000_000)
