"""Does a task cost more in a large batch?

A task that does nothing runs in the handler, in batches of 1, 10, 100 and 1,000 messages. Lambda delivers up to
10,000 messages in a batch, and ten by default.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from benchmarks.harness import in_turn, microseconds, timed
from benchmarks.report import Lines, Report, Table, main

SIZES: Final = (1, 10, 100, 1_000)
#: The size that the others are compared with: Lambda's default.
USUAL: Final = 10
#: Messages of one measurement: one batch of the largest size.
MESSAGES: Final = max(SIZES)


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from benchmarks import servers, tasks
    from benchmarks.events import events_of
    from lambda_tasks.handler import handler
    from lambda_tasks.models import TaskRecord

    def contender(size: int) -> Callable[[], None]:
        # Each message is new, because the handler recognises messages that it has run before.
        rounds: Iterator[list[dict[str, Any]]] = iter(
            [events_of(tasks.nothing, messages=MESSAGES, size=size) for _ in range(options.rounds + 1)]
        )

        def run() -> None:
            for event in next(rounds):
                assert handler(event, None) == {"batchItemFailures": []}

        return run

    measured = in_turn(
        {str(size): timed(contender(size), units=MESSAGES) for size in SIZES},
        rounds=options.rounds,
        reset=TaskRecord.objects.all().delete,
    )
    usual = str(USUAL)
    return Report(
        title="Batches of one to a thousand",
        question=__doc__ or "",
        method=[
            f"{MESSAGES:,} messages in each of {options.rounds} rounds, after one warm-up round, on PostgreSQL.",
            "CPU time is the time of the worker's process, without the database.",
            *servers.machine(),
        ],
        tables=[
            Table(
                f"Per task, medians; ratios to batches of {USUAL} as median (quartiles).",
                ("messages in a batch", "CPU, µs", "wall, µs", "CPU ratio", "wall ratio"),
                [
                    (
                        f"{size:,}",
                        microseconds(measured.cpu(str(size)).median),
                        microseconds(measured.wall(str(size)).median),
                        str(measured.cpu_ratio(str(size), usual)),
                        str(measured.wall_ratio(str(size), usual)),
                    )
                    for size in SIZES
                ],
            )
        ],
        plots=[
            Lines(
                "batch-size",
                "CPU time of a task by the size of its batch",
                "messages in a batch",
                "µs",
                [("handler()", [(size, measured.cpu(str(size)).median * 1e6) for size in SIZES])],
                logarithmic_x=True,
            )
        ],
    )


if __name__ == "__main__":
    main(measure, rounds=9)
