"""What does the outbox cost?

One task in its own transaction, as in a request, and a thousand tasks in one transaction are enqueued through
the outbox and through the direct path. The outbox writes messages with the transaction, then locks, sends and
deletes them. The direct path sends them after the commit, and loses them if the process dies. Each transaction
also writes a row. SQS is a stand-in on this machine that answers immediately, or after 10 ms. The last table
measures a relay that finds a thousand waiting messages.
"""

from __future__ import annotations

import argparse
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.enqueue import ARGUMENTS, LATENCY, figures, requests
from benchmarks.harness import Measured, Sample, in_turn, microseconds, timed
from benchmarks.report import Bars, Report, Table, main

if TYPE_CHECKING:
    from benchmarks.stand_in import StandIn

DIRECT = "direct"
OUTBOX = "outbox"
RELAY = "a relay of waiting messages"


def together(n: int) -> None:
    """Write a row, and enqueue `n` tasks, in one transaction."""
    from django.db import transaction

    from benchmarks.tasks import greet
    from lambda_tasks.models import TaskRecord

    with transaction.atomic():
        TaskRecord.objects.create(id=uuid.uuid4(), task_name="an order")
        for _ in range(n):
            greet.execute_on_commit(**ARGUMENTS)


def in_requests(n: int) -> None:
    """Write a row and enqueue one task in each of `n` transactions."""
    for _ in range(n):
        together(1)


@contextmanager
def sending(server: StandIn, *, outbox: bool) -> Iterator[None]:
    from django.test import override_settings

    backend = {"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": {"endpoint_url": server.url}}
    queues = {"default": server.queue_url}
    with override_settings(LAMBDA_TASKS_BACKEND=backend, LAMBDA_TASKS_OUTBOX=outbox, LAMBDA_TASKS_QUEUES=queues):
        yield


def compared(server: StandIn, work: Callable[[], object], *, units: int, rounds: int) -> Measured:
    """Measure `work` on both paths; the client and its connection are created before."""

    def contender(*, outbox: bool) -> Callable[[], Sample]:
        def sample() -> Sample:
            with sending(server, outbox=outbox):
                together(1)
                return timed(work, units=units)()

        return sample

    return in_turn({DIRECT: contender(outbox=False), OUTBOX: contender(outbox=True)}, rounds=rounds, reset=empty_tables)


def relayed(server: StandIn, *, units: int, rounds: int) -> Measured:
    """Measure a relay alone, and the direct path including its calls."""

    def relay() -> Sample:
        from lambda_tasks.strategies import get_backend

        with sending(server, outbox=True):
            together(1)
            keep_waiting(units)
            backend: Any = get_backend()
            return timed(backend.relay, units=units)()

    def direct() -> Sample:
        with sending(server, outbox=False):
            together(1)
            return timed(lambda: together(units), units=units)()

    return in_turn({DIRECT: direct, RELAY: relay}, rounds=rounds, reset=empty_tables)


def keep_waiting(n: int) -> None:
    """Store `n` unsent messages in the outbox."""
    from benchmarks.tasks import greet
    from lambda_tasks.strategies import get_backend

    jobs = [greet._invocation((), ARGUMENTS).new_job(greet) for _ in range(n)]
    get_backend().keep(jobs, using="default")


def empty_tables() -> None:
    from lambda_tasks.models import OutboxMessage, TaskRecord

    for model in (OutboxMessage, TaskRecord):
        model.objects.all().delete()


def measure(options: argparse.Namespace) -> Report:
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    os.environ.update(AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing", AWS_DEFAULT_REGION="eu-west-1")
    from benchmarks import stand_in
    from benchmarks.databases import migrated

    with ExitStack() as stack:
        near = stack.enter_context(stand_in.running())
        far = stack.enter_context(stand_in.running(latency=LATENCY))
        stack.enter_context(migrated())
        return _measure(options, near, far)


def _measure(options: argparse.Namespace, near: StandIn, far: StandIn) -> Report:
    from benchmarks import servers

    n, rounds = options.tasks, options.rounds
    singles = n // 5
    one_near = compared(near, lambda: in_requests(singles), units=singles, rounds=rounds)
    one_far = compared(far, lambda: in_requests(singles // 4), units=singles // 4, rounds=rounds)
    many_near = compared(near, lambda: together(n), units=n, rounds=rounds)
    many_far = compared(far, lambda: together(n), units=n, rounds=rounds)
    relay = relayed(near, units=n, rounds=rounds)
    return Report(
        title="The outbox",
        question=__doc__ or "",
        method=[
            f"{singles} transactions of one task ({singles // 4} if SQS answers later), and one of {n:,}.",
            "The database is PostgreSQL, and each task has two arguments.",
            f"{rounds} rounds, after one warm-up round; the contenders take turns.",
            (
                "The measurement covers everything from the start of the transaction to the last response "
                "and the last DELETE."
            ),
            "CPU time is the time of the enqueueing process, without PostgreSQL and the stand-in.",
            f"Statements of one task, direct: {statements(near, 1, outbox=False)}.",
            f"Statements of one task, outbox: {statements(near, 1, outbox=True)}.",
            f"Statements of 100 tasks in one transaction, outbox: {statements(near, 100, outbox=True)}.",
            f"Requests for {n:,} tasks, outbox: {counted_requests(near, lambda: together(n))}.",
            *servers.machine(),
        ],
        tables=[
            _table("One task in a transaction, SQS answers immediately", one_near),
            _table(f"One task in a transaction, SQS answers after {LATENCY * 1000:.0f} ms", one_far),
            _table(f"{n:,} tasks in one transaction, SQS answers immediately", many_near),
            _table(f"{n:,} tasks in one transaction, SQS answers after {LATENCY * 1000:.0f} ms", many_far),
            _table(f"{n:,} waiting messages, SQS answers immediately", relay),
        ],
        plots=[
            Bars(
                "outbox",
                "Enqueueing through the outbox",
                "times the direct path, wall time",
                [
                    ("one task", *figures(one_near.wall_ratio(OUTBOX, DIRECT))),
                    (f"one task, {LATENCY * 1000:.0f} ms", *figures(one_far.wall_ratio(OUTBOX, DIRECT))),
                    (f"{n:,} tasks", *figures(many_near.wall_ratio(OUTBOX, DIRECT))),
                    (f"{n:,} tasks, {LATENCY * 1000:.0f} ms", *figures(many_far.wall_ratio(OUTBOX, DIRECT))),
                ],
                mark=1.0,
            )
        ],
    )


def statements(server: StandIn, n: int, *, outbox: bool) -> str:
    """Return the statements of a transaction with `n` tasks, in order."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with sending(server, outbox=outbox):
        together(1)  # opens the connection
        with CaptureQueriesContext(connection) as captured:
            together(n)
    empty_tables()
    return ", ".join(query["sql"].split()[0] for query in captured.captured_queries)


def counted_requests(server: StandIn, work: Callable[[], object]) -> str:
    from django.test import override_settings

    with override_settings(LAMBDA_TASKS_OUTBOX=True):
        counted = requests(server, work)
    empty_tables()
    return counted


def _table(caption: str, measured: Measured) -> Table:
    return Table(
        f"{caption}: per task, medians; ratios to the direct path as median (quartiles).",
        ("", "CPU, µs", "wall, µs", "CPU ratio", "wall ratio"),
        [
            (
                name,
                microseconds(measured.cpu(name).median),
                microseconds(measured.wall(name).median),
                str(measured.cpu_ratio(name, DIRECT)),
                str(measured.wall_ratio(name, DIRECT)),
            )
            for name in measured.samples
        ],
    )


if __name__ == "__main__":
    main(measure, rounds=9, tasks=1000)
