"""Test projects that store local time: `USE_TZ = False`, or a database with its own TIME_ZONE."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo

import pytest
from django.db import connections, transaction
from django.test import override_settings
from django.utils import timezone

from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.database import clock as database_clock
from lambda_tasks.exceptions import Redeliver
from lambda_tasks.execution.pipeline import execute, prepare
from lambda_tasks.models import OutboxMessage
from lambda_tasks.operations import reaping as lost
from lambda_tasks.operations.reaping import Reaped, reap
from lambda_tasks.outcomes import Busy, Claimed
from lambda_tasks.strategies import get_store
from lambda_tasks.wire.ids import new_message_id
from tests.faults.workers import EVERYWHERE, deliver, job_of, leave_effect, lost_record, record_of

pytestmark = [pytest.mark.usefixtures("empty_queue"), EVERYWHERE]

#: Time zones ahead of UTC and behind it, one of them by a fraction of an hour.
ZONES = ("Asia/Tokyo", "America/St_Johns", "Europe/Berlin", "UTC")
#: The maximum time in seconds between two readings of clocks. The offsets are at least half an hour.
SLOW = 300


def seconds_from_now(moment: datetime | None) -> float:
    assert moment is not None
    return (moment - timezone.now()).total_seconds()


@pytest.fixture(params=[(use_tz, zone) for use_tz in (False, True) for zone in ZONES], ids=str)
def _project(request: pytest.FixtureRequest, store: str) -> Iterator[None]:
    """Configure a project with these settings, on a server with yet another time zone."""
    use_tz, zone = request.param
    connection = connections[store]
    with override_settings(USE_TZ=use_tz, TIME_ZONE=zone):
        if connection.vendor == "mysql":
            with connection.cursor() as cursor:
                cursor.execute("SET time_zone = '+05:45'")
        yield
    connection.close()


@pytest.mark.usefixtures("_project")
class TestTimes:
    def test_run_has_current_times(self, store: str) -> None:
        message_id = new_message_id()
        deliver(job_of(leave_effect, message_id, name="a"))
        record = record_of(message_id)
        assert record.status == "SUCCESS"
        assert abs(seconds_from_now(record.start_time)) < SLOW
        assert abs(seconds_from_now(record.end_time)) < SLOW

    def test_outbox_message_has_current_times(self, store: str) -> None:
        job = job_of(leave_effect, new_message_id(), name="a")
        job.__dict__.update(database=store, delay=3600)
        OutboxBackend(transport="lambda_tasks.backends.memory.MemoryBackend", databases=[store]).keep(
            [job], using=store
        )
        message = OutboxMessage.objects.using(store).get()
        assert abs(seconds_from_now(message.created_at)) < SLOW
        assert abs(seconds_from_now(message.run_at) - 3600) < SLOW

    def test_age_of_a_lost_task_starts_with_it(self, store: str) -> None:
        message_id = lost_record()
        with transaction.atomic(using=store):
            [lost_one] = get_store().lost(older_than=60, limit=10)
        started = record_of(message_id).start_time
        assert started is not None
        assert lost_one.started_at == pytest.approx(time.time() + seconds_from_now(started), abs=SLOW)
        assert lost._first_sent(lost_one) is not None

    def test_leases_expire_on_time(self, store: str) -> None:
        alive, over = lost_record(ago=-timedelta(minutes=10)), lost_record(ago=timedelta(minutes=10))
        with pytest.raises(Redeliver, match="running in another worker") as redeliver:
            execute(job_of(leave_effect, alive, name="a").message, message_id=alive)
        assert 300 < (redeliver.value.visible_in or 0) <= 610
        deliver(job_of(leave_effect, over, name="a"))
        assert record_of(over).status == "SUCCESS"

    def test_claim_with_a_long_expired_lease_is_lost(self, store: str) -> None:
        lost_record(ago=timedelta(minutes=40))
        lost_record(ago=timedelta(minutes=20))
        assert reap(older_than=1800) == Reaped(sent_again=1)


class Berlin(tzinfo):
    """A time zone with or without daylight saving time, because tests cannot change the database's clock."""

    def __init__(self, *, summer: bool) -> None:
        self._saving = timedelta(hours=int(summer))

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1) + self._saving

    def dst(self, moment: datetime | None) -> timedelta:
        return self._saving

    def tzname(self, moment: datetime | None) -> str:
        return "CEST" if self._saving else "CET"


@pytest.mark.parametrize("summer_first", [False, True], ids=["spring", "autumn"])
def test_clock_change_does_not_move_leases(store: str, summer_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock changes to or from summer time while a task runs."""
    message = job_of(leave_effect, message_id := new_message_id(), name="a").message
    with override_settings(USE_TZ=False):
        monkeypatch.setattr(database_clock, "get_default_timezone", lambda: Berlin(summer=summer_first))
        run = prepare(message, message_id=message_id)
        assert get_store().claim(run) == Claimed()
        monkeypatch.setattr(database_clock, "get_default_timezone", lambda: Berlin(summer=not summer_first))
        again = prepare(message, message_id=message_id, redelivered=True)
        claim = get_store().claim(again)
    assert isinstance(claim, Busy)
    assert claim.seconds == pytest.approx(run.lease, abs=SLOW / 2)
