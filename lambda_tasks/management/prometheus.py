"""Write statistics in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from lambda_tasks.operations.statistics import Outbox, Running, Snapshot

#: The metrics, all of which are gauges, and their descriptions.
METRICS: Final = {
    "lambda_tasks_started": "Invocations that were started in the window, by their status now.",
    "lambda_tasks_window_seconds": "The length of the window that the other metrics are about.",
    "lambda_tasks_running": "Invocations that are recorded as RUNNING.",
    "lambda_tasks_running_oldest_seconds": "The age of the oldest invocation that is RUNNING.",
    "lambda_tasks_wait_seconds": "The time from the call to the start, by task; quantile 1 is the maximum.",
    "lambda_tasks_run_seconds": "The time from the start to the end, by task; quantile 1 is the maximum.",
    "lambda_tasks_errors": "Failures among the latest ones, by task, class of the error and reason.",
    "lambda_tasks_outbox_messages": "Messages in the outbox, by database and state.",
    "lambda_tasks_outbox_oldest_seconds": "The age of the oldest message in the outbox.",
    "lambda_tasks_outbox_overdue_seconds": "How long ago the first message in the outbox was due; 0 if none is.",
    "lambda_tasks_queue_messages": "Messages of a queue, by state, as SQS counts them.",
    "lambda_tasks_dead_letters": "Messages in the dead letter queue of a queue.",
    "lambda_tasks_schedule_next_timestamp_seconds": "The next run of a schedule, in seconds since 1970.",
}
_QUANTILES: Final = {"p50": "0.5", "p95": "0.95", "max": "1"}
_ESCAPED: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


class Sample(NamedTuple):
    metric: str
    value: float
    labels: dict[str, str]


def as_prometheus(found: Snapshot) -> str:
    """Return the statistics with a HELP and a TYPE line for each metric that has a value."""
    samples = list(_samples(found))
    lines: list[str] = []
    for metric, text in METRICS.items():
        own = [sample for sample in samples if sample.metric == metric]
        if own:
            lines += [f"# HELP {metric} {text}", f"# TYPE {metric} gauge", *map(_line, own)]
    return "\n".join([*lines, ""])


def _samples(found: Snapshot) -> Iterator[Sample]:
    now = found.window.now
    yield Sample("lambda_tasks_window_seconds", (now - found.window.since).total_seconds(), {})
    for count in found.counts:
        yield Sample("lambda_tasks_started", count.in_window, {"status": count.status})
    yield from running_samples(now, found.running)
    for task in found.durations:
        for kind, metric in (("waiting", "lambda_tasks_wait_seconds"), ("running", "lambda_tasks_run_seconds")):
            for which, quantile in _QUANTILES.items():
                if (value := getattr(task, f"{kind}_{which}")) is not None:
                    yield Sample(metric, value, {"task": task.task_name, "quantile": quantile})
    for each in found.errors:
        labels = {"task": each.task_name, "error": each.error, "reason": each.reason}
        yield Sample("lambda_tasks_errors", each.count, labels)
    yield from _waiting(found)


def running_samples(now: datetime, running: Running) -> Iterator[Sample]:
    """Yield the gauges of the records that are RUNNING."""
    yield Sample("lambda_tasks_running", running.count, {})
    if running.since is not None:
        yield Sample("lambda_tasks_running_oldest_seconds", _age(now, running.since), {})


def outbox_samples(now: datetime, outboxes: Iterable[Outbox]) -> Iterator[Sample]:
    """Yield the gauges of each outbox."""
    for outbox in outboxes:
        for state, number in (("waiting", outbox.waiting), ("dead", outbox.dead)):
            yield Sample("lambda_tasks_outbox_messages", number, {"database": outbox.database, "state": state})
        labels = {"database": outbox.database}
        if outbox.oldest is not None:
            yield Sample("lambda_tasks_outbox_oldest_seconds", _age(now, outbox.oldest), labels)
        overdue = 0.0 if outbox.due_since is None else _age(now, outbox.due_since)
        yield Sample("lambda_tasks_outbox_overdue_seconds", overdue, labels)


def _waiting(found: Snapshot) -> Iterator[Sample]:
    yield from outbox_samples(found.window.now, found.outboxes)
    for queue in found.queues:
        for state in ("visible", "in_flight", "delayed"):
            if (value := getattr(queue, state)) is not None:
                yield Sample("lambda_tasks_queue_messages", value, {"queue": queue.queue, "state": state})
        if queue.dead is not None:
            yield Sample("lambda_tasks_dead_letters", queue.dead, {"queue": queue.queue})
    for schedule in found.schedules:
        if schedule.next is not None:
            yield Sample("lambda_tasks_schedule_next_timestamp_seconds", schedule.next, {"schedule": schedule.key})


def _age(now: datetime, then: datetime) -> float:
    return max((now - then).total_seconds(), 0)


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in sample.labels.items())
    return f"{sample.metric}{{{labels}}} {sample.value:.15g}" if labels else f"{sample.metric} {sample.value:.15g}"
