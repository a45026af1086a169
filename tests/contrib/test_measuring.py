"""What the plugins for metrics measure of a run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from django.db import DEFAULT_DB_ALIAS

from lambda_tasks import jobs
from lambda_tasks.contrib.measuring import End, end_of
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import TaskCancelled, TaskCrashedError, TaskExpiredError, TaskLostError
from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

ERROR = ValueError()


@lambda_task(expires_in=3600)
def act() -> None: ...


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a run that was called at 100, started at 107 and ended at 110."""
    monkeypatch.setattr(jobs, "time", SimpleNamespace(time=lambda: 110.0, monotonic=lambda: 50.0))
    message_id = ids.new_message_id()
    return Run(
        message=Invocation(act.name, {}),
        message_id=message_id,
        root_id=message_id,
        task=act,
        queue="default",
        arguments={},
        soft_timeout=10,
        hard_timeout=20,
        lease=60,
        database=DEFAULT_DB_ALIAS,
        first_sent=100.0,
        started_at=47.0,
        received=107.0,
    )


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (Succeeded(), "succeeded"),
        (Failed(ERROR), "failed"),
        (Retry(ERROR), "retried"),
        (Ignored(ERROR), "ignored"),
    ],
)
def test_run_is_measured_with_its_outcome(run: Run, outcome: Outcome, name: str) -> None:
    assert end_of(run, outcome) == End(name, duration=3.0, waiting=7.0, takeovers=0)


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (Ignored(ERROR, skipped=True), "skipped"),
        (Failed(TaskCancelled()), "cancelled"),
        (Failed(TaskCrashedError()), "failed"),
        (Failed(TaskExpiredError()), "failed"),
        (Failed(TaskLostError()), "failed"),
    ],
)
def test_run_without_a_call_has_no_times(run: Run, outcome: Outcome, name: str) -> None:
    assert end_of(replace(run, takeovers=2), outcome) == End(name, None, None, takeovers=2)


def test_retry_has_no_waiting_time(run: Run) -> None:
    again = replace(run, message=Invocation(act.name, {}, n_retries=1))
    assert end_of(again, Succeeded()) == End("succeeded", duration=3.0, waiting=None, takeovers=0)


def test_clock_behind_the_producer_gives_zero(run: Run) -> None:
    assert end_of(replace(run, first_sent=200.0), Succeeded()).waiting == 0.0
