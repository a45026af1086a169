"""Test records that are deleted, manually or by the cleanup, during their tasks or before their messages are gone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from lambda_tasks import tasks
from lambda_tasks.backends.memory import event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.operations import forgetting
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.wire import ids
from tests.faults.workers import (
    EVERYWHERE,
    deliver,
    effects,
    in_another_worker,
    job_of,
    leave_effect,
    lost_record,
    records,
)

pytestmark = pytest.mark.usefixtures("empty_queue")


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestDeletedRecords:
    @pytest.mark.parametrize(
        "delete", [lambda: records().all().delete(), partial(cleanup_task_records, retention_days=1)]
    )
    def test_run_with_a_deleted_record_runs_again(self, delete: Callable[[], Any]) -> None:
        """Its work is rolled back."""
        deletions = [lambda: records().update(start_time=DatabaseNow() - timedelta(days=2)), delete]

        @lambda_task
        def deleted(*, name: str) -> None:
            while deletions:
                in_another_worker(deletions.pop(0))
            leave_effect(name=name)

        job = job_of(deleted, ids.new_message_id(), name="a")
        event = {"Records": [event_record(job)]}
        assert handler(event, None) == {"batchItemFailures": [{"itemIdentifier": job.message_id}]}
        assert effects() == []
        assert not records().exists()

        deliver(job)
        assert effects() == ["a"]
        assert records().get().status == "SUCCESS"

    def test_late_copy_of_a_purged_record_runs_again(self) -> None:
        """For this reason, records are kept for longer than messages live."""
        job = job_of(leave_effect, ids.new_message_id(), name="a")
        deliver(job, job)
        assert effects() == ["a"]
        records().update(start_time=DatabaseNow() - timedelta(days=8))
        cleanup_task_records()
        deliver(job)
        assert effects() == ["a", "a"]


def test_records_outlive_sqs_messages_by_default() -> None:
    four_days = 345_600  # the default of MessageRetentionPeriod
    retention_days = cleanup_task_records.function.__kwdefaults__["retention_days"]
    assert retention_days * 86_400 > four_days


@EVERYWHERE
@pytest.mark.usefixtures("store")
def test_cleanup_deletes_many_records_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They fill more than one batch."""
    for _ in range(7):
        lost_record(status="SUCCESS")
    records().update(start_time=DatabaseNow())  # as a claim writes it: SQLite's string has fewer digits than Django's
    while records().filter(start_time__lt=DatabaseNow() - timedelta(0)).count() < 7:
        pass  # wait for the next millisecond
    monkeypatch.setattr(forgetting, "BATCH_SIZE", 3)
    monkeypatch.setattr(tasks, "_retention_days", lambda days, name: days)  # accept 0, since the records are new
    assert cleanup_task_records(retention_days=0) == 7
