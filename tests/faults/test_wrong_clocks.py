"""Test workers' clocks that are an hour fast or slow: only the database's clock matters."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
from django.utils import timezone

from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.exceptions import Redeliver
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.operations.reaping import Reaped, reap
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.wire import ids
from tests.faults.workers import (
    EVERYWHERE,
    backend,
    deliver,
    effects,
    job_of,
    leave_effect,
    lost_record,
    record_of,
    records,
)

pytestmark = pytest.mark.usefixtures("empty_queue")


@EVERYWHERE
@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("hours", [-1, 1])
class TestWrongClocks:
    """A worker's clock that is wrong by an hour changes nothing."""

    @pytest.fixture(autouse=True)
    def _wrong_clock(self, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
        now, seconds, nanoseconds = timezone.now, time.time, time.time_ns
        monkeypatch.setattr(ids, "_last_moment", ids._last_moment)  # ids never go back, so forget the wrong hour
        monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(hours=hours))
        monkeypatch.setattr(time, "time", lambda: seconds() + hours * 3600)
        monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + hours * 3600 * 10**9)

    def test_reaper_finds_only_lost_tasks(self) -> None:
        found = lost_record(ago=timedelta(minutes=40))
        lost_record(ago=timedelta(minutes=20))
        lost_record(ago=-timedelta(minutes=10))
        assert reap(older_than=1800) == Reaped(sent_again=1)
        assert [job.message_id for job in backend().take()] == [found]

    def test_resent_task_can_be_taken_over_immediately(self) -> None:
        message_id = lost_record()
        reap()
        deliver(*backend().take())
        assert record_of(message_id).status == "SUCCESS"

    def test_claim_holds_until_its_lease_expires(self) -> None:
        alive, over = lost_record(ago=-timedelta(minutes=10)), lost_record(ago=timedelta(minutes=10))
        with pytest.raises(Redeliver, match="running in another worker") as redeliver:
            execute(job_of(leave_effect, alive, name="a").message, message_id=alive)
        assert 500 < (redeliver.value.visible_in or 0) <= 600
        deliver(job_of(leave_effect, over, name="a"))
        assert effects() == ["a"]

    def test_run_has_its_times_from_the_database(self) -> None:
        handle = leave_effect.execute_on_commit(name="a")
        deliver(*backend().take())
        lag = records().filter(
            pk=handle.message_id,
            start_time__gt=DatabaseNow() - timedelta(minutes=10),
            end_time__lte=DatabaseNow() + timedelta(seconds=1),
            lease_until__gt=DatabaseNow(),
            lease_until__lt=DatabaseNow() + timedelta(minutes=10),
        )
        assert lag.exists()

    def test_cleanup_deletes_only_old_records(self) -> None:
        for minutes in (-40, -20, 20, 40):
            age = timedelta(days=7, minutes=minutes)
            lost_record(status="SUCCESS", kwargs={"minutes": minutes}, start_time=DatabaseNow() - age)
        assert cleanup_task_records() == 2
        assert sorted(kwargs["minutes"] for kwargs in records().values_list("kwargs", flat=True)) == [-40, -20]
