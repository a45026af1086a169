"""Tasks that may run for longer than 15 minutes, by LAMBDA_TASKS_MAX_TIMEOUT: they run once, and no early loss."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
from django.db.models import F
from django.test import override_settings

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import Redeliver
from lambda_tasks.execution.pipeline import execute, lease_for
from lambda_tasks.handler import handler
from lambda_tasks.operations.reaping import Reaped, reap
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.visibility import advised_visibility, lost_after
from tests.faults.workers import (
    EVERYWHERE,
    backend,
    deliver,
    effects,
    in_another_worker,
    job_of,
    leave_effect,
    lost_record,
    record_of,
    records,
)
from tests.schedules import tasks_forgotten

LONGEST: Final = 5_400

pytestmark = [EVERYWHERE, pytest.mark.usefixtures("empty_queue", "store", "long_functions")]


@pytest.fixture
def long_functions() -> Iterator[None]:
    with tasks_forgotten(), override_settings(LAMBDA_TASKS_MAX_TIMEOUT=LONGEST):
        yield


def let_time_pass(message_id: str, seconds: float) -> None:
    """Move the record into the past, because tests cannot set the database's clock."""
    passed = timedelta(seconds=seconds)
    records().filter(pk=message_id).update(lease_until=F("lease_until") - passed, start_time=F("start_time") - passed)


def long_task(work: Any) -> Any:
    """Return a task with the longest limit, whose function calls `work` in another worker."""

    @lambda_task(soft_timeout=LONGEST - 1, hard_timeout=LONGEST)
    def render(*, name: str) -> None:
        in_another_worker(work)
        leave_effect(name=name)

    return render


def test_legal_attempt_keeps_its_invocation_to_its_end() -> None:
    message_id = ids.new_message_id()

    def look_in_the_last_second() -> None:
        let_time_pass(message_id, LONGEST - 1)
        event = {"Records": [event_record(job_of(task, message_id, name="b"))]}
        assert handler(event, None)["batchItemFailures"] != []
        assert reap(older_than=0) == Reaped()

    task = long_task(look_in_the_last_second)
    deliver(job_of(task, message_id, name="a"))
    assert effects() == ["a"]
    assert (record_of(message_id).status, record_of(message_id).takeovers) == ("SUCCESS", 0)


def test_attempt_that_outlives_its_lease_commits_nothing() -> None:
    message_id = ids.new_message_id()
    to_happen: list[Any] = []

    def outlive_the_lease() -> None:
        let_time_pass(message_id, lease_for(LONGEST) + 1)
        deliver(job_of(task, message_id, name="a"))

    to_happen.append(outlive_the_lease)
    task = long_task(lambda: to_happen.pop()() if to_happen else None)
    with pytest.raises(Redeliver, match="taken over"):
        execute(Invocation(task.name, {"name": "a"}), message_id=message_id)
    assert effects() == ["a"]
    assert (record_of(message_id).status, record_of(message_id).takeovers) == ("SUCCESS", 1)


@pytest.mark.parametrize("window", [0, 300])
def test_record_is_lost_after_its_message_returns(window: int) -> None:
    """A worker died in the first second of the longest task."""
    returns = advised_visibility(LONGEST, window)
    message_id = lost_record(ago=timedelta(seconds=returns - lease_for(LONGEST)))
    assert reap() == Reaped()
    deliver(job_of(leave_effect, message_id, name="a"))
    assert (record_of(message_id).status, record_of(message_id).takeovers) == ("SUCCESS", 1)


def test_record_whose_message_is_gone_is_recovered() -> None:
    message_id = lost_record(ago=timedelta(seconds=lost_after() + 1))
    assert reap() == Reaped(sent_again=1)
    deliver(*backend().take())
    assert (record_of(message_id).status, effects()) == ("SUCCESS", ["a"])


def test_loss_follows_the_setting() -> None:
    lost_record(ago=timedelta(seconds=lost_after() - 60))
    assert reap() == Reaped()
    with override_settings(LAMBDA_TASKS_MAX_TIMEOUT=900):
        assert reap() == Reaped(sent_again=1)
