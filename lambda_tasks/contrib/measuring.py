"""What the plugins for metrics measure of a run that has ended, so that all systems have the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lambda_tasks.exceptions import TaskCancelled, TaskCrashedError, TaskExpiredError, TaskLostError
from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.settings import MAX_TIMEOUT, app_settings

SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
RETRIED: Final = "retried"
IGNORED: Final = "ignored"
SKIPPED: Final = "skipped"
CANCELLED: Final = "cancelled"

#: Errors with which runs end whose function was not called, or not in this process. Such a run has no duration.
_NOT_MEASURED: Final = (TaskCancelled, TaskCrashedError, TaskExpiredError, TaskLostError)

#: Boundaries of histograms, in seconds, above those for the usual limits.
_LONG: Final = (1_800, 3_600)


@dataclass(frozen=True, slots=True)
class End:
    """The end of a run."""

    #: One of the constants above.
    outcome: str
    #: Seconds from the start of the run to its end; None if this process has not called the function.
    duration: float | None
    #: Seconds from the call to the start, with the delay; None for retries, and if it is unknown.
    waiting: float | None
    #: The number of workers that died while they ran the invocation.
    takeovers: int


def longer_than_usual() -> tuple[float, ...]:
    """Return the boundaries, in seconds, that histograms of durations need with a raised LAMBDA_TASKS_MAX_TIMEOUT."""
    longest = app_settings.max_timeout
    return (*(each for each in _LONG if each < longest), longest) if longest > MAX_TIMEOUT else ()


def end_of(run: Run, outcome: Outcome) -> End:
    """Return what to measure of a run, in `lambda_task_finished`."""
    name = outcome_name(outcome)
    if name == SKIPPED or (isinstance(outcome, Failed) and isinstance(outcome.error, _NOT_MEASURED)):
        return End(name, None, None, run.takeovers)
    duration = run.duration
    # The age of a retry contains the runs before it.
    age = None if run.n_retries else run.age
    # The clocks of the producer and of the worker may differ.
    return End(name, duration, None if age is None else max(age - duration, 0.0), run.takeovers)


def outcome_name(outcome: Outcome) -> str:
    """Return the name of an outcome in metrics. A task that was cancelled has not failed."""
    match outcome:
        case Succeeded():
            return SUCCEEDED
        case Ignored(skipped=True):
            return SKIPPED
        case Ignored():
            return IGNORED
        case Retry():
            return RETRIED
        case Failed(error):
            return CANCELLED if isinstance(error, TaskCancelled) else FAILED
