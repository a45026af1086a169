"""Whether a started task was cancelled: for its later attempts, and for the task itself while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Final

from django.db import connections

from lambda_tasks.database.aside import can_run_aside, run_aside
from lambda_tasks.database.coroutines import in_coroutine
from lambda_tasks.database.errors import on_sound_connection
from lambda_tasks.jobs import Run
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.logging import run_logger
from lambda_tasks.strategies import get_store

#: Seconds for which a running task gets the same answer without another query.
FRESH: Final = 1.0
#: The number of runs whose answers are kept: more than a process runs at the same time.
_MAX_ANSWERS: Final = 64


@dataclass(frozen=True, slots=True)
class _Answer:
    cancelled: bool
    at: float

    @property
    def valid(self) -> bool:
        return self.cancelled or monotonic() - self.at < FRESH  # a request is never withdrawn


#: The latest answer for each run, by the token of its claim.
_answers: dict[str, _Answer] = {}


def is_requested(run: Run) -> bool:
    """Return whether the chain of retries of `run` was cancelled, outside of the task's transaction."""
    return on_sound_connection(run.database, lambda: get_store().cancel_requested(run))


def is_cancelled(run: Run) -> bool:
    """Return whether the running task was cancelled since it has started. Any thread or coroutine of it may ask.

    At most one query in `FRESH` seconds, on a separate connection. If the database does not answer, that is logged,
    and the answer is False: it must not fail a task that would go on otherwise.
    """
    answer = _answers.get(run.claim)
    if answer is None or not answer.valid:
        answer = _Answer(_ask(run), monotonic())
        while len(_answers) >= _MAX_ANSWERS:
            _answers.pop(next(iter(_answers)), None)
        _answers[run.claim] = answer
    return answer.cancelled


def _ask(run: Run) -> bool:
    connection = connections[run.database]
    if not in_coroutine():  # where Django refuses queries
        # Only the caller's connection sees what its transaction has written.
        if (run.nested and connection.in_atomic_block) or not can_run_aside(connection):
            return get_store().cancel_requested(run)
    elif not can_run_aside(connection):
        return False
    try:
        return run_aside(lambda: get_store().cancel_requested(run))
    except SoftTimeLimitExceeded:
        raise  # it belongs to the task
    except Exception as error:
        text = run.scrubbed(f"{type(error).__name__}: {error}").strip()
        run_logger.warning("It is unknown whether %s was cancelled (%s).", run.task_name, text)
        return False
