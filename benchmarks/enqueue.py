"""What does it cost to enqueue a task?

A thousand tasks in one transaction, from `execute_on_commit()` and its checks to SQS, are compared with
a loop around boto3's `send_message_batch()` whose entries are prepared beforehand. One task alone is compared
with `send_message()`. SQS is a stand-in on this machine that answers immediately, or after 10 ms.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Measured, Spread, in_turn, microseconds, timed
from benchmarks.report import Bars, Report, Table, main

if TYPE_CHECKING:
    from benchmarks.stand_in import StandIn

OURS = "execute_on_commit()"
BATCHES = "boto3, batch after batch"
ONE = "boto3, send_message()"
BATCH = 10
#: Seconds until the stand-in answers: about the latency of SQS within its region.
LATENCY = 0.010
ARGUMENTS = {"user_id": 4711, "greeting": "Good morning"}


def together(n: int, *, commit: bool = True) -> None:
    """Enqueue `n` tasks in one transaction. Without `commit`, send nothing."""
    from django.db import transaction

    from benchmarks.tasks import greet

    with transaction.atomic():
        for _ in range(n):
            greet.execute_on_commit(**ARGUMENTS)
        transaction.set_rollback(not commit)


def alone(n: int) -> None:
    """Enqueue `n` tasks outside a transaction, which sends each immediately in a separate request."""
    from benchmarks.tasks import greet

    for _ in range(n):
        greet.execute_on_commit(**ARGUMENTS)


def batch_after_batch(client: Any, url: str, entries: list[dict[str, Any]]) -> None:
    for start in range(0, len(entries), BATCH):
        client.send_message_batch(QueueUrl=url, Entries=entries[start : start + BATCH])


def one_after_one(client: Any, url: str, messages: list[dict[str, Any]]) -> None:
    for message in messages:
        client.send_message(QueueUrl=url, **message)


def ordinary_client(server: StandIn) -> Any:
    """Return an ordinary boto3 client with default settings."""
    import boto3

    return boto3.client("sqs", region_name="eu-west-1", endpoint_url=server.url)


def our_client(server: StandIn) -> Any:
    from lambda_tasks.strategies import get_backend

    return get_backend()._client(server.queue_url)


def messages(n: int) -> list[dict[str, Any]]:
    """Return messages as `execute_on_commit()` sends them."""
    from benchmarks.tasks import greet

    jobs = [greet._invocation((), ARGUMENTS).new_job(greet) for _ in range(n)]
    return [
        {
            "MessageBody": job.message.to_body(),
            "DelaySeconds": job.delay,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in job.message_attributes().items()
            },
        }
        for job in jobs
    ]


def entries(n: int) -> list[dict[str, Any]]:
    return [{"Id": str(number % BATCH), **message} for number, message in enumerate(messages(n))]


@contextmanager
def queue_on(server: StandIn, **backend_options: Any) -> Iterator[None]:
    from django.test import override_settings

    backend = {
        "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
        "OPTIONS": {"endpoint_url": server.url, **backend_options},
    }
    with override_settings(LAMBDA_TASKS_BACKEND=backend, LAMBDA_TASKS_QUEUES={"default": server.queue_url}):
        yield


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
    at_once = against_batches(near, n, rounds)
    later = against_batches(far, n, rounds)
    single = against_send_message(near, n // BATCH, rounds)
    costs = parts(near, n, rounds)
    return Report(
        title="Enqueueing a task",
        question=__doc__ or "",
        method=[
            f"{n:,} tasks in one transaction on PostgreSQL, with two arguments each.",
            f"{rounds} rounds, after one warm-up round; the contenders take turns.",
            "boto3's client has its default settings. The client and its entries are created before the clock starts.",
            "The measurement of the library covers everything from the call to the last response.",
            "CPU time is the time of the enqueueing process, without PostgreSQL and the stand-in.",
            f"Requests for {n:,} tasks, as counted by the stand-in: {requests(near, lambda: together(n))}.",
            f"Requests for one task: {requests(near, lambda: alone(1))}.",
            *servers.machine(),
        ],
        tables=[
            compared(f"{n:,} tasks, SQS answers immediately", at_once, BATCHES),
            compared(f"{n:,} tasks, SQS answers after {LATENCY * 1000:.0f} ms", later, BATCHES),
            compared("One task alone, SQS answers immediately", single, ONE),
            Table(
                (
                    "Where the library spends its CPU time, µs per task (SQS answers immediately); each part "
                    "is measured separately."
                ),
                ("", "µs", "of all"),
                [(name, microseconds(cost), f"{cost / costs[OURS]:.0%}") for name, cost in costs.items()],
            ),
        ],
        plots=[
            Bars(
                "enqueue",
                f"{n:,} tasks in one transaction",
                "times the loop around send_message_batch()",
                [
                    ("CPU", *figures(at_once.cpu_ratio(OURS, BATCHES))),
                    ("wall", *figures(at_once.wall_ratio(OURS, BATCHES))),
                    (f"wall, {LATENCY * 1000:.0f} ms", *figures(later.wall_ratio(OURS, BATCHES))),
                ],
                mark=1.0,
            )
        ],
    )


def against_batches(server: StandIn, n: int, rounds: int) -> Measured:
    with queue_on(server):
        client, ready = ordinary_client(server), entries(n)
        return in_turn(
            {
                BATCHES: timed(lambda: batch_after_batch(client, server.queue_url, ready), units=n),
                OURS: timed(lambda: together(n), units=n),
            },
            rounds=rounds,
        )


def against_send_message(server: StandIn, n: int, rounds: int) -> Measured:
    with queue_on(server):
        client, ready = ordinary_client(server), messages(n)
        return in_turn(
            {
                ONE: timed(lambda: one_after_one(client, server.queue_url, ready), units=n),
                OURS: timed(lambda: alone(n), units=n),
            },
            rounds=rounds,
        )


def parts(server: StandIn, n: int, rounds: int) -> dict[str, float]:
    """Return the CPU seconds of a task and of its steps."""
    from benchmarks.tasks import greet
    from lambda_tasks.wire import ids

    message = greet._invocation((), ARGUMENTS).message

    def repeated(step: Callable[[], object]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(n):
                step()

        return work

    with queue_on(server):
        client, ready = our_client(server), entries(n)
        steps: dict[str, Callable[[], object]] = {
            "arguments: checked, encoded, decoded, compared": repeated(lambda: greet.signature.encode(ARGUMENTS)),
            "id": repeated(ids.new_message_id),
            "body: JSON": repeated(message.to_body),
            "call": lambda: together(n, commit=False),
            "botocore, with the library's client": lambda: batch_after_batch(client, server.queue_url, ready),
            OURS: lambda: together(n),
        }
        measured = in_turn({name: timed(step, units=n) for name, step in steps.items()}, rounds=rounds)
    cpu = {name: measured.cpu(name).median for name in steps}
    whole, call, botocore = cpu.pop(OURS), cpu.pop("call"), cpu.pop("botocore, with the library's client")
    return {
        **cpu,
        "the rest of the call (difference)": call - sum(cpu.values()),
        "after the commit, without botocore (difference)": whole - call - botocore,
        "botocore, with the library's client": botocore,
        OURS: whole,
    }


def requests(server: StandIn, work: Callable[[], object]) -> str:
    with queue_on(server):
        server.requests()
        work()
        return ", ".join(f"{count} {operation}" for operation, count in server.requests().items())


def compared(caption: str, measured: Measured, floor: str) -> Table:
    return Table(
        f"{caption}: per task, medians; ratios to boto3's loop as median (quartiles).",
        ("", "CPU, µs", "wall, µs", "CPU ratio", "wall ratio"),
        [
            (
                name,
                microseconds(measured.cpu(name).median),
                microseconds(measured.wall(name).median),
                str(measured.cpu_ratio(name, floor)),
                str(measured.wall_ratio(name, floor)),
            )
            for name in (floor, OURS)
        ],
    )


def figures(spread: Spread) -> tuple[float, float, float]:
    return spread.median, spread.low, spread.high


if __name__ == "__main__":
    main(measure, rounds=9, tasks=1000)
