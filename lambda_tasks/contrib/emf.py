"""A plugin that writes metrics of tasks to CloudWatch, as lines of the log in the embedded metric format (EMF).

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.emf.EmfMetrics"]

It needs the extra `emf`, which installs AWS Lambda Powertools. CloudWatch turns the lines into metrics, so no request
is sent. The plugin counts in memory and writes at the end of each batch, or after 99 runs of a task. It measures only
in functions, which write to CloudWatch, and in the local worker.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from lambda_tasks.contrib.measuring import end_of
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Outcome

NAMESPACE: Final = "LambdaTasks"
#: The maximum number of runs in a line. The format allows 100 values of a metric, and Powertools writes at the 100th.
MOST_RUNS: Final = 99
#: The variable in which Lambda, and the local worker, set the name of the function.
_FUNCTION_NAME: Final = "AWS_LAMBDA_FUNCTION_NAME"


@dataclass(slots=True)
class _Tally:
    """Measurements since the last line, for one set of dimensions."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class EmfMetrics:
    """The plugin. Each metric has the dimensions `service`, `queue` and `task`.

    `namespace` is that of the metrics; by default the variable POWERTOOLS_METRICS_NAMESPACE, or "LambdaTasks".
    `service` is the value of its dimension; by default POWERTOOLS_SERVICE_NAME, or the name of the function.
    `per_task=False` omits the dimension `task`, so that the number of metrics, for which AWS charges, does not grow
    with the number of tasks.

    Raises `ImproperlyConfigured` if Powertools is not installed.
    """

    def __init__(self, *, namespace: str | None = None, service: str | None = None, per_task: bool = True) -> None:
        if find_spec("aws_lambda_powertools") is None:
            raise ImproperlyConfigured(
                "The package aws-lambda-powertools is not installed. Install the extra django-lambda-tasks[emf]."
            )
        environ = os.environ
        function = environ.get(_FUNCTION_NAME, "")
        self._namespace = namespace or environ.get("POWERTOOLS_METRICS_NAMESPACE") or NAMESPACE
        self._service = service or environ.get("POWERTOOLS_SERVICE_NAME") or function
        self._per_task = per_task
        # Other processes have no end of a batch, so they would keep what they have measured.
        self._measures = function != ""
        self._tallies: defaultdict[tuple[tuple[str, str], ...], _Tally] = defaultdict(_Tally)

    @hookimpl
    def lambda_task_finished(self, run: Run, outcome: Outcome) -> None:
        if not self._measures:
            return
        end = end_of(run, outcome)
        dimensions: tuple[tuple[str, str], ...] = (("queue", run.queue),)
        if self._per_task:
            dimensions += (("task", run.task_name),)
        tally = self._tallies[dimensions]
        tally.counts[end.outcome.capitalize()] += 1
        if end.takeovers:
            tally.counts["Takeovers"] += end.takeovers
        if end.duration is not None:
            tally.seconds["Duration"].append(end.duration)
        if end.waiting is not None:
            tally.seconds["WaitingTime"].append(end.waiting)
        if len(tally.seconds["Duration"]) == MOST_RUNS:
            self._write(dimensions, self._tallies.pop(dimensions))

    @hookimpl
    def lambda_task_skipped(self, reason: str) -> None:
        if self._measures and reason != "waiting":  # that delivery was run, and has found its lock held
            self._tallies[()].counts["SkippedDeliveries"] += 1

    @hookimpl
    def lambda_task_batch_finished(self, event: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        if not self._measures:
            return
        records = event.get("Records")
        if isinstance(records, Sequence) and records:
            self._tallies[()].counts.update(
                Messages=len(records),
                BatchFailures=len(response["batchItemFailures"]),  # also 0, so that an alarm has data
            )
        # An error while a line is written must not repeat the lines before it.
        tallies, self._tallies = self._tallies, defaultdict(_Tally)
        for dimensions, tally in tallies.items():
            self._write(dimensions, tally)

    def _write(self, dimensions: tuple[tuple[str, str], ...], tally: _Tally) -> None:
        """Print the line of one set of dimensions."""
        # Imported here, since it takes up to a fifth of a second, which only functions need to pay for.
        from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

        metrics = EphemeralMetrics(namespace=self._namespace, service=self._service)
        for name, value in dimensions:
            metrics.add_dimension(name=name, value=value)
        for name, values in tally.seconds.items():
            for seconds in values:
                metrics.add_metric(name=name, unit=MetricUnit.Seconds, value=round(seconds, 6))
        for name, count in tally.counts.items():
            metrics.add_metric(name=name, unit=MetricUnit.Count, value=count)
        metrics.flush_metrics()
