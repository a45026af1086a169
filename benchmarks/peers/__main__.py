"""What do other libraries need for the same work?

The same task, which does nothing with two arguments, enqueued in one transaction by a Django process, and
executed by one worker with its result stored: by this library and by others, each as its documentation sets
it up, on the same PostgreSQL and Redis. They do not promise the same: the last table says what each keeps.
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
    """Every peer that is there, with the servers that it needs."""

    def __init__(self, tasks: int, *, sqs: Mapping[str, str], keeping: str) -> None:
        from benchmarks.peers.contenders import PEERS

        self.tasks = tasks
        self.sqs = sqs
        #: A queue server that keeps what it is sent.
        self.keeping = keeping
        self.peers = [peer for peer in PEERS if not peer.missing()]
        self.writes: dict[str, list[Writes]] = {}
        #: Why a peer has no figures.
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
        """Return the ways to enqueue, under names for people."""
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
        """One that fails is told of in the report, and leaves the others their figures; but they need a measure."""

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
    """Prepare PostgreSQL and Redis, and run stand-ins for SQS; all is as before in the end."""
    from django.db import connection

    from benchmarks import stand_in
    from benchmarks.databases import migrated
    from benchmarks.peers import queue
    from benchmarks.peers.addresses import empty_redis

    os.environ.update(_CREDENTIALS)
    # What was started is ended, and what was made removed, also when somebody has had enough of waiting.
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
        title="Beside other libraries",
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
    """Say how it was measured, one sentence or two for each point."""
    text = f"""
        {tasks:,} tasks in each of {rounds} rounds, the contenders in turn; ratios are taken within a round and are the
        median (quartiles). Each figure is of a process of its own.

        Enqueue: after 50 tasks to warm up, one transaction, with what follows its COMMIT. SQS is spoken to over HTTP,
        and is a stand-in on this machine that answers at once; Redis and PostgreSQL are themselves.

        Execute: all tasks wait before one worker starts, with one process or thread; the clock starts when it has done
        {lead_in}, and ends with the last result that is stored. CPU is that of all processes of the worker, without
        servers. Commits and rows are what PostgreSQL has counted for the worker, by task.

        handler() is given events of ten messages that were made before; the local worker gets them over HTTP from a
        queue on this machine, and its CPU has in it what AWS does on Lambda: polling the queue and deleting from it.

        Connections are kept between tasks (CONN_MAX_AGE) where Django's are used; logs are those of warnings."""
    return [" ".join(point.split()) for point in text.split("\n\n")]


def _remarks(
    comparison: Comparison, enqueued: Measured, executed: Measured, ways: list[str], peers: list[str]
) -> list[str]:
    """Say who was faster than we are, and where everybody's time goes."""
    from benchmarks.peers.contenders import OURS

    def faster(labels: list[str], ratio: Callable[[str, str], Spread]) -> str:
        found = [label for label in labels if label != OURS.name and ratio(label, OURS.name).median < 1]
        return ", ".join(found) or "nobody"

    to_enqueue = (
        f"Enqueued with less CPU than ours: {faster(ways, enqueued.cpu_ratio)}; in less time: "
        f"{faster(ways, enqueued.wall_ratio)}. What is enqueued into the database belongs to the transaction, and "
        "cannot be lost between its COMMIT and a queue; what leaves after COMMIT, as ours does, can."
    )
    to_execute = (
        f"Executed with less CPU than by handler(): {faster(peers, executed.cpu_ratio)}; in less time: "
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
        ("", "how", "CPU, µs", "wall, µs", "CPU : ours", "wall : ours", "CPU : floor", "wall : floor"),
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
            *("", "CPU, µs", "wall, µs", "CPU : ours", "wall : ours", "CPU : floor", "wall : floor"),
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
        "What is kept of a task, and what is lost with a worker that dies: by documentation and code, not measured",
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
