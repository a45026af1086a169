"""Delays: the queue keeps short ones, and the outbox keeps longer ones."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction

from lambda_tasks.backends.relay import Relayed
from lambda_tasks.backends.rows import job_of
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.settings import MAX_KEPT_DELAY
from lambda_tasks.wire import ids
from lambda_tasks.wire.ids import new_message_id, retry_id
from lambda_tasks.wire.invocation import Invocation
from tests.conftest import Sqs
from tests.courier import (
    COURIER,
    IN_HOUSE,
    OUTBOX,
    Courier,
    later,
    note,
    numbers,
    outbox,
    rows,
    seconds_until,
    use_outbox,
)

on_each_database = pytest.mark.databases(transaction=True)
committing = pytest.mark.django_db(transaction=True)

DAY = 86_400


class Busy(Exception):
    """The exception with which a task asks for a retry."""


@pytest.fixture
def courier(database: str, settings: Any) -> Courier:
    return use_outbox(settings, database)


def send(delay: int, database: str, number: int = 1) -> None:
    note.using(database=database, delay=delay).execute_on_commit(number=number)


@on_each_database
@pytest.mark.parametrize("delay", [0, 1, 899, 900])
def test_short_delay_is_left_to_the_queue(database: str, courier: Courier, delay: int) -> None:
    send(delay, database)
    assert [job.delay for job in courier.jobs] == [delay]
    assert rows(database) == []


@on_each_database
@pytest.mark.parametrize("delay", [901, 3_600, 30 * DAY, MAX_KEPT_DELAY])
def test_longer_delay_waits_in_the_outbox(database: str, courier: Courier, delay: int) -> None:
    """The message is sent when the remaining delay is short enough for the queue."""
    handle = note.using(database=database, delay=delay).execute_on_commit(number=1)
    [row] = rows(database)
    assert row.run_at is not None
    assert row.due_at is not None
    assert (row.run_at - row.due_at).total_seconds() == 900
    assert (row.run_at - row.created_at).total_seconds() == pytest.approx(delay, abs=0.01)
    assert handle.status == "WAITING"
    assert outbox().relay() == Relayed()
    assert courier.calls == []

    if delay > 1_000:  # else the test itself may take that long
        later(delay - 900 - 60, database)
        assert outbox().relay() == Relayed()
        later(60, database)
    else:
        later(delay - 900, database)
    assert outbox().relay() == Relayed(sent=1)
    [job] = courier.jobs
    assert 840 <= job.delay <= 900
    assert rows(database) == []


@on_each_database
@pytest.mark.parametrize(("overdue", "left"), [(0, 900), (300, 600), (899, 1), (900, 0), (5 * DAY, 0)])
def test_late_relay_shortens_the_delay(database: str, courier: Courier, overdue: int, left: int) -> None:
    send(2 * 3_600, database)
    later(seconds_until("due_at", database)[0] or 0, database)
    later(overdue, database)
    assert outbox().relay() == Relayed(sent=1)
    # The test itself has taken some of the time.
    assert [job.delay for job in courier.jobs] == [pytest.approx(left, abs=60)]
    assert courier.jobs[0].delay <= left
    assert rows(database) == []


@on_each_database
def test_each_message_leaves_when_due(database: str, courier: Courier) -> None:
    with transaction.atomic(using=database):
        send(3 * DAY, database, number=3)
        send(0, database, number=0)
        send(2 * DAY, database, number=2)
        send(60, database, number=1)
    assert courier.sent == [0, 1]
    assert numbers(database) == [3, 2]
    later(2 * DAY - 900, database)
    assert outbox().relay() == Relayed(sent=1)
    assert courier.sent == [0, 1, 2]
    later(DAY, database)
    assert outbox().relay() == Relayed(sent=1)
    assert courier.sent == [0, 1, 2, 3]


@on_each_database
def test_failed_send_does_not_extend_the_delay(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    send(600, database)
    [run_in] = seconds_until("run_at", database)
    assert run_in == pytest.approx(600, abs=60)
    courier.away = set()
    later(400, database)
    assert outbox().relay() == Relayed(sent=1)
    assert [job.delay for job in courier.jobs] == [pytest.approx(200, abs=60)]
    assert courier.jobs[0].delay <= 200


@on_each_database
def test_transport_without_delays_is_given_none(database: str, settings: Any) -> None:
    courier = use_outbox(settings, database, transport={"BACKEND": COURIER, "OPTIONS": {"max_delay": 0}})
    send(60, database)
    assert courier.calls == []
    [row] = rows(database)
    assert row.due_at == row.run_at != row.created_at
    later(60, database)
    assert outbox().relay() == Relayed(sent=1)
    assert [job.delay for job in courier.jobs] == [0]


@on_each_database
def test_message_sent_manually_is_not_delayed(database: str, courier: Courier) -> None:
    send(DAY, database, number=1)
    send(DAY, database, number=2)
    [first, _] = rows(database)
    assert outbox().send_now([first.pk], using=database) == Relayed(sent=1)
    assert [(job.message_id, job.delay) for job in courier.jobs] == [(str(first.pk), 0)]
    assert numbers(database) == [2]


@committing
def test_sqs_receives_the_remaining_delay(settings: Any, sqs: Sqs) -> None:
    settings.LAMBDA_TASKS_BACKEND = OUTBOX
    note.using(delay=DAY).execute_on_commit(number=1)
    note.using(delay=600).execute_on_commit(number=2)
    assert sqs.depth() == {"visible": 0, "delayed": 1, "in_flight": 0}
    later(DAY - 900)
    assert outbox().relay() == Relayed(sent=1)
    assert sqs.depth() == {"visible": 0, "delayed": 2, "in_flight": 0}
    note.using(delay=DAY).execute_on_commit(number=3)
    later(DAY + 1)
    assert outbox().relay() == Relayed(sent=1)
    assert sqs.depth() == {"visible": 1, "delayed": 2, "in_flight": 0}


# Refused delays


@pytest.mark.parametrize("delay", [901, MAX_KEPT_DELAY])
def test_long_delay_requires_the_outbox(delay: int) -> None:
    sentence = (
        rf"^delay must be a whole number of seconds from 0 to 900, .* not {delay}. .* set LAMBDA_TASKS_OUTBOX = True: "
    )
    with pytest.raises(ValueError, match=sentence):
        note.using(delay=delay)


@pytest.mark.parametrize("chosen", ["by the setting", "by its path"])
def test_outbox_delay_is_limited_to_a_year(settings: Any, chosen: str) -> None:
    if chosen == "by its path":
        use_outbox(settings)
    else:
        settings.LAMBDA_TASKS_OUTBOX = True
    assert note.using(delay=MAX_KEPT_DELAY).delay == MAX_KEPT_DELAY == 365 * DAY
    with pytest.raises(
        ValueError,
        match=r"delay must be .* from 0 to 900, or to 31536000 .*, not 31536001",
    ):
        note.using(delay=MAX_KEPT_DELAY + 1)


@committing
def test_prepared_delay_is_refused_without_its_outbox(settings: Any) -> None:
    settings.LAMBDA_TASKS_OUTBOX = True
    patient = note.using(delay=DAY)
    settings.LAMBDA_TASKS_OUTBOX = False
    with pytest.raises(InvalidArguments, match=rf"{note.name}: delay must be .* 0 to 900, .* not {DAY}"):
        patient.execute_on_commit(number=1)


# Retries


@committing
@pytest.mark.parametrize(("retry_delay", "kept"), [(895, False), (3_600, True), (30 * DAY, True)])
def test_retry_waits_for_its_retry_delay(settings: Any, retry_delay: int, kept: bool) -> None:
    courier = use_outbox(settings, transport=IN_HOUSE)

    @lambda_task(retry_on=[Busy], retry_delay=retry_delay)
    def busy_for_long() -> None:
        raise Busy

    message_id = new_message_id()
    job = Job(Invocation(busy_for_long.name, {}), message_id, message_id, task=busy_for_long)
    courier.jobs.append(job)
    assert handler({"Records": courier.take_records()}, None) == {"batchItemFailures": []}
    assert TaskRecord.objects.get().status == "RETRYING"
    if not kept:
        assert [job.delay for job in courier.jobs] == [pytest.approx(898, abs=2)]
        return
    [row] = rows()
    assert str(row.pk) == retry_id(message_id, 1)
    assert row.run_at is not None
    assert retry_delay + 1 <= round((row.run_at - row.created_at).total_seconds()) <= retry_delay + 5
    later(retry_delay - 900 + 5)
    assert outbox().relay() == Relayed(sent=1)
    assert [job.message_id for job in courier.jobs] == [str(row.pk)]


@on_each_database
def test_relay_uses_the_clock_of_the_database(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    send(DAY, database)
    monkeypatch.setattr(ids, "_last_moment", ids._last_moment)  # ids never go back, so forget the wrong time
    for name in ("time", "time_ns", "monotonic"):
        monkeypatch.setattr(f"time.{name}", lambda: 9e18)
    assert outbox().relay() == Relayed()
    assert OutboxMessage.objects.using(database).filter(due_at__gt=DatabaseNow()).count() == 1


@pytest.mark.parametrize(("left", "delay"), [(10.0, 10), (10.4, 11), (0.4, 1), (0.0, 0), (-5.0, 0), (900.3, 900)])
def test_remaining_delay_is_rounded_up(left: float, delay: int) -> None:
    # Rounding down would run the task too early.
    now = datetime(2026, 11, 22, tzinfo=timezone.utc)
    message = OutboxMessage(
        id=UUID(int=7),
        task_name=note.name,
        queue="default",
        body=f'{{"task_name":"{note.name}","kwargs":{{"number":1}}}}',
        attributes={},
        run_at=now + timedelta(seconds=left),
    )
    assert job_of(message, now=now, max_delay=900, database="default").delay == delay
