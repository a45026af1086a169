"""A plugin that counts and measures tasks for Prometheus, in the local worker and in web processes.

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.prometheus"]

    path("metrics/", metrics_view)  # from lambda_tasks.contrib.prometheus.views

It needs the extra `prometheus`. The metrics are in the default registry of prometheus-client. Nothing scrapes a Lambda
function: use `lambda_tasks.contrib.emf` there, and `metrics_view` for what the database knows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
except ImportError as missing:
    raise ImproperlyConfigured(
        "The package prometheus-client is not installed. Install the extra django-lambda-tasks[prometheus]."
    ) from missing

from lambda_tasks.contrib.measuring import end_of, longer_than_usual
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.outcomes import Outcome

#: Upper bounds of the buckets in seconds: up to the longest run on Lambda, and waiting times of up to six hours.
DURATION_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 900, *longer_than_usual())
WAITING_BUCKETS: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600)

_LABELS: Final = ("task", "queue")

SENT: Final = Counter("lambda_tasks_sent", "Messages that a queue has accepted, with retries.", _LABELS)
UNSENT: Final = Counter(
    "lambda_tasks_unsent", "Failed attempts to send a message, which stays in the outbox.", (*_LABELS, "dead")
)
ENDED: Final = Counter("lambda_tasks_ended", "Runs that have ended, by outcome.", (*_LABELS, "outcome"))
DURATION: Final = Histogram(
    "lambda_tasks_duration_seconds", "The time from the start of a run to its end.", _LABELS, buckets=DURATION_BUCKETS
)
WAITING: Final = Histogram(
    "lambda_tasks_waiting_seconds",
    "The time from the call to the start, with the delay; without retries.",
    _LABELS,
    buckets=WAITING_BUCKETS,
)
TAKEOVERS: Final = Counter(
    "lambda_tasks_takeovers", "Workers that died while they ran an invocation that has ended.", _LABELS
)
SKIPPED: Final = Counter("lambda_tasks_skipped_deliveries", "Deliveries that were not run, by reason.", ("reason",))
MESSAGES: Final = Counter("lambda_tasks_batch_messages", "Messages that workers have received.")
FAILURES: Final = Counter("lambda_tasks_batch_failures", "Messages that workers have left on their queue.")


@hookimpl
def lambda_task_sent(job: Job) -> None:
    SENT.labels(job.task_name, job.queue).inc()


@hookimpl
def lambda_task_unsent(task_name: str, queue: str, dead: bool) -> None:
    UNSENT.labels(task_name, queue, str(dead).lower()).inc()


@hookimpl
def lambda_task_skipped(reason: str) -> None:
    SKIPPED.labels(reason).inc()


@hookimpl
def lambda_task_finished(run: Run, outcome: Outcome) -> None:
    end = end_of(run, outcome)
    ENDED.labels(run.task_name, run.queue, end.outcome).inc()
    if end.takeovers:
        TAKEOVERS.labels(run.task_name, run.queue).inc(end.takeovers)
    if end.duration is not None:
        DURATION.labels(run.task_name, run.queue).observe(end.duration)
    if end.waiting is not None:
        WAITING.labels(run.task_name, run.queue).observe(end.waiting)


@hookimpl
def lambda_task_batch_finished(event: Mapping[str, Any], response: Mapping[str, Any]) -> None:
    records = event.get("Records")
    if isinstance(records, Sequence):
        MESSAGES.inc(len(records))
        FAILURES.inc(len(response["batchItemFailures"]))


def registry(*, database: bool = True) -> CollectorRegistry:
    """Return a registry for an endpoint: everything in the default registry, and gauges from the database.

    In the multiprocess mode of prometheus-client, which PROMETHEUS_MULTIPROC_DIR turns on, the former are those of all
    processes. `database=False` omits the gauges. Raise `ValueError` if the directory does not exist.
    """
    found = CollectorRegistry()
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import MultiProcessCollector

        MultiProcessCollector(found)  # type: ignore[no-untyped-call]
    else:
        found.register(REGISTRY)
    if database:
        from lambda_tasks.contrib.prometheus.collector import DatabaseCollector  # workers do not need it

        found.register(DatabaseCollector())
    return found
