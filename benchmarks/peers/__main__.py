"""What do other libraries need for the same work?

A task with two arguments that does nothing is enqueued in one transaction by a Django process, and executed by
one worker that stores its result. This library and the others are set up as their documentation describes, on the
same PostgreSQL and Redis. Their guarantees differ: the last table says what each library stores.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.harness import Measured, Sample, Spread, in_turn, microseconds
from benchmarks.report import Bars, Report, Table, main

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer
    from benchmarks.peers.running import Writes

_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "eu-west-1"}


class Comparison:
    """Compare all installed peers, with the servers that they need."""

    def __init__(self, tasks: int, *, sqs: Mapping[str, str], keeping: str) -> None:
        from benchmarks.peers.contenders import PEERS

        self.tasks = tasks
        self.sqs = sqs
        #: The URL of a queue server that stores messages.
        self.keeping = keeping
        self.peers = [peer for peer in PEERS if not peer.missing()]
        self.writes: dict[str, list[Writes]] = {}
        #: The reason why a peer has no figures.
        self.failures = {
            peer.name: f"not installed: {', '.join(peer.missing())}" for peer in PEERS if peer not in self.peers
        }

    def enqueue(self, rounds: int) -> Measured:
        from benchmarks.peers import running

        return in_turn(
            {
                label: self._unless_failed(label, lambda peer=peer, way=way: self._enqueuing(peer, way))
                for label, (peer, way) in self.ways().items()
            },
            rounds=rounds,
            warm_up=0,
            reset=running.reset,
        )

    def execute(self, rounds: int) -> Measured:
        from benchmarks.peers import running

        return in_turn(
            {peer.name: self._unless_failed(peer.name, lambda peer=peer: self._executing(peer)) for peer in self.peers},
            rounds=rounds,
            warm_up=0,
            reset=running.reset,
        )

    def ways(self) -> dict[str, tuple[Peer, str]]:
        """Return the ways to enqueue, by display name."""
        return {
            peer.name + (f", {way.replace('_', ' ')}" if len(peer.ways) > 1 else ""): (peer, way)
            for peer in self.peers
            for way in peer.ways
        }

    def _enqueuing(self, peer: Peer, way: str) -> Sample:
        from benchmarks.peers import running

        return running.enqueuing(peer, way, self.tasks, environment=self._environment(peer))

    def _executing(self, peer: Peer) -> Sample:
        from benchmarks.peers import running

        sample, writes = running.executing(peer, self.tasks, environment=self._environment(peer))
        self.writes.setdefault(peer.name, []).append(writes)
        return sample

    def _environment(self, peer: Peer) -> dict[str, str]:
        from benchmarks.peers import ours, queue

        sqs = dict(self.sqs)
        if peer is ours.WORKER:
            sqs = {"AWS_ENDPOINT_URL_SQS": self.keeping, "BENCH_QUEUE_URL": queue.new_queue(self.keeping)}
        return {"BENCH_PEER": peer.name, **sqs}

    def _unless_failed(self, name: str, work: Callable[[], Sample]) -> Callable[[], Sample]:
        """Report a peer that fails, and continue with the others. The floor and this library must not fail."""

        def contender() -> Sample:
            from benchmarks.peers.contenders import FLOOR, OURS
            from benchmarks.peers.running import Failed

            if name not in self.failures:
                try:
                    return work()
                except (Failed, subprocess.TimeoutExpired) as error:
                    if name in {FLOOR.name, OURS.name}:
                        raise
                    self.failures[name] = str(error)
            return Sample(math.nan, math.nan)

        return contender


@contextmanager
def servers_for_all() -> Iterator[tuple[dict[str, str], str]]:
    """Prepare PostgreSQL and Redis, run stand-ins for SQS, and clean up afterwards."""
    from django.db import connection

    from benchmarks import stand_in
    from benchmarks.databases import migrated
    from benchmarks.peers import queue
    from benchmarks.peers.addresses import empty_redis

    os.environ.update(_CREDENTIALS)
    # Clean up after SIGTERM too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with ExitStack() as stack:
        stack.enter_context(empty_redis())
        stack.enter_context(migrated())
        connection.close()
        sqs = stack.enter_context(stand_in.running())
        keeping = stack.enter_context(queue.running())
        yield {"AWS_ENDPOINT_URL_SQS": sqs.url, "BENCH_QUEUE_URL": sqs.queue_url}, keeping


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.settings"
    with servers_for_all() as (sqs, keeping):
        comparison = Comparison(options.tasks, sqs=sqs, keeping=keeping)
        enqueued = comparison.enqueue(options.rounds)
        executed = comparison.execute(options.rounds)
        return report(comparison, enqueued, executed, rounds=options.rounds)


def report(comparison: Comparison, enqueued: Measured, executed: Measured, *, rounds: int) -> Report:
    from benchmarks import servers
    from benchmarks.peers.addresses import redis_durability
    from benchmarks.peers.running import LEAD_IN

    ways = [label for label in comparison.ways() if label not in comparison.failures]
    peers = [peer.name for peer in comparison.peers if peer.name not in comparison.failures]
    return Report(
        title="Comparison with other libraries",
        question=__doc__ or "",
        method=[*_method(comparison.tasks, rounds, LEAD_IN), *servers.machine(), redis_durability()],
        tables=[
            _enqueue_table(comparison, enqueued, ways),
            _execute_table(comparison, executed, peers),
            _promises(comparison),
        ],
        plots=_plots(enqueued, executed, ways, peers),
        remarks=_remarks(comparison, enqueued, executed, ways, peers),
    )


def _method(tasks: int, rounds: int, lead_in: int) -> list[str]:
    """Return the description of the measurement, in one or two sentences for each point."""
    text = f"""
        {tasks:,} tasks in each of {rounds} rounds; the contenders take turns, and ratios are computed within a round
        and are the median (quartiles). Each figure comes from a separate process.

        Enqueue: 50 warm-up tasks, then one transaction with everything that follows its COMMIT. SQS is a stand-in on
        this machine, reached over HTTP, that answers immediately; Redis and PostgreSQL are real.

        Execute: all tasks wait before one worker starts, with one process or thread; the clock starts when it has
        finished {lead_in}, and stops with the last stored result. CPU is the time of all processes of the worker,
        without servers. Commits and rows are PostgreSQL's counts for the worker, per task.

        handler() receives prepared events of ten messages. The local worker receives them over HTTP from a queue on
        this machine, and its CPU time includes work that AWS does on Lambda: polling the queue and deleting from it.

        Django's connections stay open between tasks (CONN_MAX_AGE); only warnings are logged."""
    return [" ".join(point.split()) for point in text.split("\n\n")]


def _remarks(
    comparison: Comparison, enqueued: Measured, executed: Measured, ways: list[str], peers: list[str]
) -> list[str]:
    """Return which libraries were faster than this one, and where each library spends its time."""
    from benchmarks.peers.contenders import OURS

    def faster(labels: list[str], ratio: Callable[[str, str], Spread]) -> str:
        found = [label for label in labels if label != OURS.name and ratio(label, OURS.name).median < 1]
        return ", ".join(found) or "none"

    to_enqueue = (
        f"Enqueued with less CPU than this library: {faster(ways, enqueued.cpu_ratio)}; in less time: "
        f"{faster(ways, enqueued.wall_ratio)}. A task that is enqueued into the database belongs to the transaction, "
        "and cannot be lost between its COMMIT and a queue. A task that is sent after COMMIT, as by this library, can "
        "be lost."
    )
    to_execute = (
        f"Executed with less CPU than handler(): {faster(peers, executed.cpu_ratio)}; in less time: "
        f"{faster(peers, executed.wall_ratio)}."
    )
    return [
        to_enqueue,
        to_execute,
        *(f"{peer.name}: {peer.why}." for peer in comparison.peers if peer.why and peer.name in peers),
        *(f"{name} has no figures: {reason}." for name, reason in comparison.failures.items()),
    ]


def _enqueue_table(comparison: Comparison, measured: Measured, names: list[str]) -> Table:
    from benchmarks.peers.contenders import FLOOR, OURS

    ways = comparison.ways()
    return Table(
        "Enqueuing a task",
        ("", "how", "CPU, µs", "wall, µs", "CPU : this library", "wall : this library", "CPU : floor", "wall : floor"),
        [
            (
                name,
                ways[name][0].ways[ways[name][1]],
                *_times(measured, name),
                *_ratios(measured, name, OURS.name, FLOOR.name),
            )
            for name in names
        ],
    )


def _execute_table(comparison: Comparison, measured: Measured, names: list[str]) -> Table:
    from benchmarks.peers.contenders import FLOOR, OURS

    return Table(
        "Executing a task",
        (
            *("", "CPU, µs", "wall, µs", "CPU : this library", "wall : this library", "CPU : floor", "wall : floor"),
            *("commits", "rows inserted", "updated", "deleted"),
        ),
        [
            (
                name,
                *_times(measured, name),
                *_ratios(measured, name, OURS.name, FLOOR.name),
                *_counts(comparison.writes[name]),
            )
            for name in names
        ],
    )


def _times(measured: Measured, name: str) -> tuple[str, str]:
    return microseconds(measured.cpu(name).median), microseconds(measured.wall(name).median)


def _ratios(measured: Measured, name: str, *others: str) -> list[str]:
    return [
        str(ratio) for other in others for ratio in (measured.cpu_ratio(name, other), measured.wall_ratio(name, other))
    ]


def _counts(writes: list[Writes]) -> list[str]:
    return [
        f"{median(figures):.1f}"
        for figures in zip(*((one.commits, one.inserted, one.updated, one.deleted) for one in writes), strict=True)
    ]


def _promises(comparison: Comparison) -> Table:
    return Table(
        (
            "What each library stores about a task, and what is lost when a worker dies: from documentation "
            "and code, not measured"
        ),
        ("", "versions", "kept", "a worker dies", "result and the task's writes together"),
        [
            (peer.name, peer.versions(), peer.stores, peer.crash, peer.atomic)
            for peer in comparison.peers
            if peer.name not in comparison.failures
        ],
    )


def _plots(enqueued: Measured, executed: Measured, ways: list[str], peers: list[str]) -> list[Bars]:
    from benchmarks.peers.contenders import OURS

    axis = "times ours (median, quartiles)"
    plots = [
        ("peers-enqueue-cpu", "Enqueuing: CPU time", ways, enqueued.cpu_ratio),
        ("peers-enqueue-wall", "Enqueuing: wall time", ways, enqueued.wall_ratio),
        ("peers-execute-cpu", "Executing: CPU time", peers, executed.cpu_ratio),
        ("peers-execute-wall", "Executing: wall time", peers, executed.wall_ratio),
    ]
    return [
        Bars(
            name,
            title,
            axis,
            [(label, s.median, s.low, s.high) for label in labels for s in [ratio(label, OURS.name)]],
            mark=1.0,
        )
        for name, title, labels, ratio in plots
    ]


if __name__ == "__main__":
    main(measure, rounds=3, tasks=500)
