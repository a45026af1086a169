"""What would an INSERT at each call cost?

The outbox inserts the messages of a transaction together, just before its COMMIT. To do so, the library replaces
`commit()` on Django's connection. An INSERT at each call would not need that. A few tasks in one transaction are
enqueued in both ways. PostgreSQL is on this machine: every further INSERT also costs a round trip to the server, which
takes longer on a network.
"""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from benchmarks.enqueue import ARGUMENTS
from benchmarks.harness import Measured, in_turn, microseconds, timed
from benchmarks.outbox import empty_tables, sending
from benchmarks.report import Report, Table, main

if TYPE_CHECKING:
    from benchmarks.stand_in import StandIn

TOGETHER: Final = "one INSERT before COMMIT"
EACH: Final = "an INSERT at each call"
#: Tasks in one transaction.
SIZES: Final = (1, 2, 3, 10, 100)


def enqueue(n: int, *, at_call: bool) -> None:
    """Write a row, and enqueue `n` tasks, in one transaction."""
    from django.db import connection, transaction

    from benchmarks.tasks import greet
    from lambda_tasks.models import TaskRecord
    from lambda_tasks.sending.outgoing import keep_departures

    with transaction.atomic():
        TaskRecord.objects.create(id=uuid.uuid4(), task_name="an order")
        for _ in range(n):
            greet.execute_on_commit(**ARGUMENTS)
            if at_call:
                keep_departures([connection.run_on_commit[-1][1]])  # type: ignore[list-item]


def compared(size: int, *, tasks: int, rounds: int) -> Measured:
    transactions = max(1, tasks // size)

    def contender(*, at_call: bool) -> Callable[[], None]:
        def work() -> None:
            for _ in range(transactions):
                enqueue(size, at_call=at_call)

        return work

    contenders = {
        TOGETHER: timed(contender(at_call=False), units=transactions),
        EACH: timed(contender(at_call=True), units=transactions),
    }
    return in_turn(contenders, rounds=rounds, reset=empty_tables)


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    os.environ.update(AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing", AWS_DEFAULT_REGION="eu-west-1")
    from benchmarks import stand_in
    from benchmarks.databases import migrated

    with ExitStack() as stack:
        near = stack.enter_context(stand_in.running())
        stack.enter_context(migrated())
        return _measure(options, near)


def _measure(options: argparse.Namespace, near: StandIn) -> Report:
    from benchmarks import servers

    with sending(near, outbox=True):
        enqueue(1, at_call=False)  # creates the client and its connection
        measured = {size: compared(size, tasks=options.tasks, rounds=options.rounds) for size in SIZES}
    return Report(
        title="An INSERT at each call",
        question=__doc__ or "",
        method=[
            f"{options.tasks} tasks in transactions of each size, which also write a row, to an SQS on this machine.",
            "The database is PostgreSQL, and each task has two arguments.",
            f"{options.rounds} rounds, after one warm-up round; the contenders take turns.",
            *servers.machine(),
        ],
        tables=[
            Table(
                "Per transaction, medians; ratios to one INSERT before COMMIT as median (quartiles).",
                ("tasks", "CPU, µs", "at each call", "CPU ratio", "wall, µs", "at each call", "wall ratio"),
                [_row(size, found) for size, found in measured.items()],
            )
        ],
    )


def _row(size: int, found: Measured) -> tuple[str, ...]:
    return (
        str(size),
        microseconds(found.cpu(TOGETHER).median),
        microseconds(found.cpu(EACH).median),
        str(found.cpu_ratio(EACH, TOGETHER)),
        microseconds(found.wall(TOGETHER).median),
        microseconds(found.wall(EACH).median),
        str(found.wall_ratio(EACH, TOGETHER)),
    )


if __name__ == "__main__":
    main(measure, rounds=9, tasks=300)
