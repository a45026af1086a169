"""Records that are deleted, by hand or by the cleanup: while their tasks run, and before their messages are gone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from lambda_tasks import identity, tasks
from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.models import DatabaseNow
from lambda_tasks.tasks import cleanup_task_records
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
class TestRecordsThatAreDeleted:
    @pytest.mark.parametrize(
        "delete", [lambda: records().all().delete(), partial(cleanup_task_records, retention_days=0)]
    )
    def test_a_run_whose_record_is_deleted_takes_its_work_back_and_runs_again(self, delete: Callable[[], Any]) -> None:
        deletions = [lambda: records().update(start_time=DatabaseNow() - timedelta(seconds=1)), delete]

        @lambda_task
        def deleted(*, name: str) -> None:
            while deletions:
                in_another_worker(deletions.pop(0))
            leave_effect(name=name)

        job = job_of(deleted, identity.new_message_id(), name="a")
        event = {"Records": [event_record(job)]}
        assert handler(event, None) == {"batchItemFailures": [{"itemIdentifier": job.message_id}]}
        assert effects() == []
        assert not records().exists()

        deliver(job)
        assert effects() == ["a"]
        assert records().get().status == "SUCCESS"

    def test_a_late_copy_of_a_message_whose_record_was_purged_is_a_new_invocation(self) -> None:
        """Which is why records are kept longer than messages live."""
        job = job_of(leave_effect, identity.new_message_id(), name="a")
        deliver(job, job)
        assert effects() == ["a"]
        records().update(start_time=DatabaseNow() - timedelta(days=8))
        cleanup_task_records()
        deliver(job)
        assert effects() == ["a", "a"]


def test_records_are_kept_longer_than_sqs_keeps_messages_if_nobody_says_otherwise() -> None:
    four_days = 345_600  # the default of MessageRetentionPeriod
    retention_days = cleanup_task_records.function.__kwdefaults__["retention_days"]
    assert retention_days * 86_400 > four_days


@EVERYWHERE
@pytest.mark.usefixtures("store")
def test_a_cleanup_deletes_records_of_one_moment_that_fill_more_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(7):
        lost_record(status="SUCCESS")
    records().update(start_time=DatabaseNow())  # as a claim writes it: SQLite's text has fewer digits than Django's
    while records().filter(start_time__lt=DatabaseNow() - timedelta(0)).count() < 7:
        pass  # the next millisecond
    monkeypatch.setattr(tasks, "BATCH_SIZE", 3)
    assert cleanup_task_records(retention_days=0) == 7
