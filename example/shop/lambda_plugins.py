"""A plugin that counts how runs end and measures how long the tasks' functions take.

LAMBDA_TASKS_PLUGINS names this module. `lambda_tasks/hookspecs.py` documents all hooks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from contextvars import ContextVar

from django.db.models import F
from django.db.models.functions import Greatest

from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Outcome
from shop.models import Measurement

logger = logging.getLogger(__name__)

#: Passes the time from the wrapper to the listener of a run. Each run has its own context.
_seconds: ContextVar[float] = ContextVar("seconds", default=0.0)


@hookimpl(wrapper=True)
def lambda_task_call(run: Run) -> Generator[None, object, object]:
    """Measure only the function, without claim, lock, commit and record."""
    began = time.perf_counter()
    try:
        return (yield)
    finally:
        _seconds.set(time.perf_counter() - began)


@hookimpl
def lambda_task_finished(run: Run, outcome: Outcome) -> None:
    """Count the run. It is already recorded, so an error here does not change its outcome."""
    seconds, how = _seconds.get(), type(outcome).__name__.lower()
    logger.info("[%s] %s: %s after %.3f s", run.message_id, run.task_name, how, seconds)
    row, _ = Measurement.objects.get_or_create(task_name=run.task_name, outcome=how)
    Measurement.objects.filter(pk=row.pk).update(
        runs=F("runs") + 1,
        total=F("total") + seconds,
        slowest=Greatest(F("slowest"), seconds),
    )
