"""Do parallel workers slow each other down?

One, two, four and eight processes run the handler against one PostgreSQL. In the first table, each process has
its own events. In the second table, every message is delivered to every worker at the same time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import psycopg

from benchmarks.harness import Measured, Sample, Spread, in_turn, microseconds
from benchmarks.parallel_worker import END, GO, Done, serve
from benchmarks.report import Lines, Report, Table, main

WORKERS: Final = (1, 2, 4, 8)
BATCH: Final = 10
#: Seconds between two samples of the sessions' waits.
PAUSE: Final = 0.01
OWN = "their own messages"
SAME = "the same messages"


@dataclass(slots=True)
class Observed:
    """The waits of the database's sessions, in all samples of a contender."""

    looks: int = 0
    sessions: int = 0
    busy: Counter[str] = field(default_factory=Counter)
    met_busy: int = 0

    def share(self, kind: str) -> str:
        """Return how many sessions, on average, had this kind of wait event."""
        return f"{self.busy[kind] / max(self.looks, 1):.2f}"


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.memory_settings"
    from benchmarks.databases import migrated

    with migrated():
        return _measure(options)


def _measure(options: argparse.Namespace) -> Report:
    from benchmarks import servers, settings

    observed: dict[str, Observed] = {}
    with (
        _workers(max(WORKERS)) as workers,
        psycopg.connect(servers.address("PostgreSQL"), autocommit=True) as observer,
    ):
        deadlocks = _deadlocks(observer, settings.NAME)

        def contender(how: str, number: int) -> Any:
            def run() -> Sample:
                seen = observed.setdefault(_name(how, number), Observed())
                return _run(workers[:number], observer, seen, how=how, tasks=options.tasks)

            return run

        from lambda_tasks.models import TaskRecord

        measured = in_turn(
            {_name(how, number): contender(how, number) for how in (OWN, SAME) for number in WORKERS},
            rounds=options.rounds,
            reset=TaskRecord.objects.all().delete,
        )
        deadlocks = _deadlocks(observer, settings.NAME) - deadlocks
    return Report(
        title="Parallel workers",
        question=__doc__ or "",
        method=[
            f"{options.tasks:,} tasks in batches of {BATCH}, divided among the workers, or all delivered to each.",
            f"{options.rounds} rounds, after one warm-up round.",
            f"{os.cpu_count()} processors run the workers and PostgreSQL, so more workers than that add no throughput.",
            "A message that is running in another worker is delivered again immediately, until its task has ended.",
            f"The waits of sessions are read from pg_stat_activity every {PAUSE * 1e3:.0f} ms.",
            *servers.machine(),
        ],
        tables=[_table(how, measured, observed) for how in (OWN, SAME)],
        plots=[
            Lines(
                "parallel",
                "Throughput by the number of workers",
                "workers",
                "tasks a second",
                [
                    (how, [(number, 1 / measured.wall(_name(how, number)).median) for number in WORKERS])
                    for how in (OWN, SAME)
                ],
            )
        ],
        remarks=[f"Every task ran once, in every round. Deadlocks: {deadlocks}."],
    )


def _name(how: str, number: int) -> str:
    return f"{number} with {how}"


def _table(how: str, measured: Measured, observed: dict[str, Observed]) -> Table:
    names = {number: _name(how, number) for number in WORKERS}
    speed = {
        number: Spread.of([1 / ratio.wall for ratio in measured.samples[name]]).median for number, name in names.items()
    }
    return Table(
        (
            f"Workers with {how}. CPU time is the time of all workers, per task; sessions and waits are "
            "averages of all samples."
        ),
        (
            *("workers", "tasks a second", "relative to one worker", "deliveries a second", "CPU, µs", "sessions"),
            *("waiting for a lock", "for the disk", "inside the server", "busy in another worker, in all rounds"),
        ),
        [
            (
                str(number),
                f"{speed[number]:,.0f}",
                f"{1 / measured.wall_ratio(name, names[1]).median:.2f}",
                f"{speed[number] * (number if how == SAME else 1):,.0f}",
                microseconds(measured.cpu(name).median),
                f"{observed[name].sessions / max(observed[name].looks, 1):.1f}",
                observed[name].share("Lock"),
                observed[name].share("IO"),
                observed[name].share("LWLock"),
                f"{observed[name].met_busy:,}",
            )
            for number, name in names.items()
        ],
    )


@contextmanager
def _workers(number: int) -> Iterator[list[Connection]]:
    """Start worker processes, and end them."""
    spawn = multiprocessing.get_context("spawn")  # a forked child would share the connections of this process
    pipes = [spawn.Pipe() for _ in range(number)]
    processes = [spawn.Process(target=serve, args=(theirs,), daemon=True) for _, theirs in pipes]
    for process in processes:
        process.start()
    try:
        yield [ours for ours, _ in pipes]
    finally:
        for ours, _ in pipes:
            ours.send(END)
        for process in processes:
            process.join()


def _run(workers: list[Connection], observer: psycopg.Connection, seen: Observed, *, how: str, tasks: int) -> Sample:
    from benchmarks.events import events_of
    from benchmarks.tasks import note

    events = events_of(note, messages=tasks, size=BATCH)
    for index, worker in enumerate(workers):
        worker.send(events if how == SAME else events[index :: len(workers)])
    for worker in workers:
        assert worker.recv() == "ready"
    started = time.perf_counter()
    for worker in workers:
        worker.send(GO)
    done: list[Done] = []
    waiting = list(workers)
    while waiting:
        for worker in wait(waiting, timeout=PAUSE):
            assert isinstance(worker, Connection)
            done.append(worker.recv())
            waiting.remove(worker)
        if waiting:
            _look(observer, seen)
    wall = time.perf_counter() - started
    seen.met_busy += sum(one.met_busy for one in done)
    ran = [message_id for one in done for message_id in one.ran]
    if len(ran) != tasks or len(set(ran)) != tasks:
        raise AssertionError(f"{len(ran)} runs of {len(set(ran))} tasks, of {tasks}")
    return Sample(wall / tasks, sum(one.cpu for one in done) / tasks)


def _look(observer: psycopg.Connection, seen: Observed) -> None:
    from benchmarks import settings

    found = observer.execute(
        "SELECT state, wait_event_type FROM pg_stat_activity"
        " WHERE datname = %s AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
        [settings.NAME],
    ).fetchall()
    seen.looks += 1
    # One session belongs to this process, which created the tables.
    seen.sessions += len(found) - 1
    seen.busy.update(kind for state, kind in found if state == "active" and kind)


def _deadlocks(observer: psycopg.Connection, name: str) -> int:
    row = observer.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = %s", [name]).fetchone()
    assert row is not None
    return int(row[0])


if __name__ == "__main__":
    main(measure, rounds=3, tasks=400)
