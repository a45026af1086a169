"""The subcommand `stats`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.maintenance import stopped_by_signals
from lambda_tasks.management.output import JSON, TEXT, plain_json, seconds, utc
from lambda_tasks.management.prometheus import as_prometheus
from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.operations import statistics
from lambda_tasks.operations.statistics import Snapshot, snapshot

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

PROMETHEUS: Final = "prometheus"
#: The most hours of the window, and the shortest and the longest pause of the live view in seconds.
MAX_HOURS: Final = 24 * 31
MIN_PAUSE: Final = 0.5
MAX_PAUSE: Final = 3600
#: Moves the cursor of a terminal to its upper left corner, and clears it.
_CLEAR: Final = "\x1b[H\x1b[2J"


class Stats(Subcommand):
    """Prints statistics."""

    name = "stats"
    help = (
        "Print statistics: how many tasks were started, have failed and run, how long they waited and ran, the most "
        "frequent errors, and what waits in the outbox and on the queues."
    )
    examples = ("stats", "stats --watch", "stats --hours 1 --format prometheus")
    formats = (TEXT, JSON, PROMETHEUS)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--hours", type=float, default=24, metavar="N", help="of the last N hours (default: %(default)s)"
        )
        parser.add_argument(
            "--watch",
            type=float,
            nargs="?",
            const=2.0,
            metavar="S",
            help="print them again every S seconds, until SIGTERM or Ctrl-C (default: 2)",
        )
        parser.add_argument("--no-queues", action="store_true", help="do not ask SQS for the depth of the queues")

    def run(self, *, hours: float, watch: float | None, no_queues: bool, **_: Any) -> None:
        if not 0 < hours <= MAX_HOURS:
            raise ValueError(f"--hours must be more than 0 and at most {MAX_HOURS}, not {hours:g}.")
        if watch is None:
            self._print(snapshot(hours=hours, queues=not no_queues))
            return
        if not MIN_PAUSE <= watch <= MAX_PAUSE:
            raise ValueError(f"--watch must be from {MIN_PAUSE} to {MAX_PAUSE} seconds, not {watch:g}.")
        with stopped_by_signals() as stop:
            while not stop.asked:
                found = snapshot(hours=hours, queues=not no_queues)
                if self.output.is_terminal:
                    self.output.raw(_CLEAR)
                self._print(found, one_line=True)
                stop.wait(watch)

    def _print(self, found: Snapshot, *, one_line: bool = False) -> None:
        if self.output.as_json:
            self.output.raw(json.dumps(as_fields(found), indent=None if one_line else 2, default=plain_json) + "\n")
        elif self.output.format == PROMETHEUS:
            self.output.raw(as_prometheus(found))
        else:
            self._print_tables(found)

    def _print_tables(self, found: Snapshot) -> None:
        of = found.window
        since = f"Since {utc(of.since)}, at {utc(of.now)}"
        self.output.line(f"{since}{'' if of.complete else ' (there are more records: this is the latest part)'}\n")
        rows = [(each.status, each.last_hour, each.in_window) for each in found.counts]
        self.output.table(("status", "last hour", "in all"), rows, title="Started:")
        if (running := found.running).since is not None:
            age = _age(of.now, running.since)
            self.output.line(
                f"\n{running.count:,} RUNNING, the oldest for {age}: {running.oldest_task} [{running.oldest_id}]"
            )
        self._print_durations(found)
        self._print_errors(found)
        self._print_waiting(found)

    def _print_durations(self, found: Snapshot) -> None:
        rows = [
            (each.task_name, each.count, _three(each, "waiting"), _three(each, "running")) for each in found.durations
        ]
        if rows:
            headings = ("task", "started", "waited (p50, p95, max)", "ran for (p50, p95, max)")
            self.output.line("")
            self.output.table(headings, rows, title="Durations:")

    def _print_errors(self, found: Snapshot) -> None:
        rows = [(each.error or each.reason, each.task_name, each.count, utc(each.latest)) for each in found.errors]
        if rows:
            self.output.line("")
            self.output.table(("error", "task", "failures", "latest"), rows, title="Most frequent errors:")

    def _print_waiting(self, found: Snapshot) -> None:
        now = found.window.now
        if found.outboxes:
            rows = [
                (each.database, each.waiting, each.dead, None if each.oldest is None else _age(now, each.oldest))
                for each in found.outboxes
            ]
            self.output.line("")
            self.output.table(("outbox of", "waiting", "dead", "oldest"), rows)
        if found.schedules:
            schedules = [
                (each.key, utc(each.last), each.last_status, "paused" if each.paused else utc(each.next))
                for each in found.schedules
            ]
            self.output.line("")
            self.output.table(("schedule", "last run", "status", "next run"), schedules)
        if found.queues:
            queues = [(each.queue, each.visible, each.in_flight, each.delayed, each.dead) for each in found.queues]
            self.output.line("")
            self.output.table(("queue", "visible", "in flight", "delayed", "dead letters"), queues)
        for depth in found.queues:
            if depth.problem:
                self.output.warn(f"Queue {depth.queue!r} cannot be read: {depth.problem}")


def as_fields(found: Snapshot) -> dict[str, Any]:
    """Return the statistics as JSON values; times and ids are left to `plain_json()`."""
    return {
        "at": found.window.now,
        "since": found.window.since,
        "complete": found.window.complete,
        "started": {each.status: {"last_hour": each.last_hour, "in_window": each.in_window} for each in found.counts},
        "running": asdict(found.running),
        "throughput": [asdict(each) for each in found.buckets],
        "durations": [asdict(each) for each in found.durations],
        "errors": [asdict(each) for each in found.errors],
        "outboxes": [asdict(each) for each in found.outboxes],
        "schedules": [
            {"key": each.key, "paused": each.paused, "last_run": utc(each.last), "next_run": utc(each.next)}
            for each in found.schedules
        ],
        "queues": [asdict(each) for each in found.queues],
    }


def _age(now: Any, then: Any) -> str | None:
    return seconds(max((now - then).total_seconds(), 0))


def _three(each: statistics.Durations, kind: str) -> str | None:
    values = [getattr(each, f"{kind}_{which}") for which in ("p50", "p95", "max")]
    return None if None in values else ", ".join(str(seconds(value)) for value in values)
