"""The relay of the outbox: messages that are sent, their order, and messages that cannot be sent."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connections, transaction

from lambda_tasks.backends import batches
from lambda_tasks.backends import relay as relay_module
from lambda_tasks.backends.base import Refused, Taken, Unsent
from lambda_tasks.backends.batches import HOLD
from lambda_tasks.backends.relay import Relayed
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.exceptions import InvalidArguments, MessageTooLarge
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage
from lambda_tasks.settings import app_settings
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from lambda_tasks.wire.ids import new_message_id
from tests.courier import (
    COURIER,
    IN_HOUSE,
    Courier,
    later,
    note,
    number_of,
    numbers,
    outbox,
    paused,
    rows,
    time_of,
    use_outbox,
)

pytestmark = pytest.mark.databases(transaction=True)

#: Seconds after which a test that hangs fails.
PATIENCE = 30


@pytest.fixture(params=[COURIER, IN_HOUSE], ids=["elsewhere", "in this process"])
def courier(database: str, settings: Any, request: pytest.FixtureRequest) -> Courier:
    """Use a transport of either kind: the relay locks rows for one, and postpones them for the other."""
    return use_outbox(settings, database, transport=request.param)


@pytest.fixture
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches.random, "uniform", lambda low, high: high)


def waiting(count: int, database: str, **fields: Any) -> list[OutboxMessage]:
    """Put messages into the outbox that are due in this order, and were not attempted."""
    jobs = [
        Job.of_call(
            note._call((), {"number": number}),
            queue=fields.get("queue", "default"),
            delay=0,
            task=note,
            database=database,
        )
        for number in range(count)
    ]
    outbox().keep(jobs, using=database)
    messages = OutboxMessage.objects.using(database).filter(pk__in=[job.message_id for job in jobs])
    messages.update(**fields)
    return list(messages.order_by("id"))


def analyze(database: str) -> None:
    """Update the statistics, which otherwise depend on earlier tests, so that the optimizer knows of few rows."""
    if connections[database].vendor == "mysql":
        with connections[database].cursor() as cursor:
            cursor.execute(f"ANALYZE TABLE {OutboxMessage._meta.db_table}")


def table(database: str) -> Any:
    return OutboxMessage.objects.using(database)


# Messages that are sent


def test_due_messages_are_sent_and_deleted(database: str, courier: Courier) -> None:
    waiting(250, database)
    assert outbox().relay() == Relayed(sent=250)
    assert [len(call) for call in courier.calls] == [100, 100, 50]
    assert courier.sent == list(range(250))
    assert rows(database) == []
    assert outbox().relay() == Relayed()
    assert len(courier.calls) == 3


def test_longest_due_message_is_sent_first(database: str, courier: Courier) -> None:
    messages = waiting(5, database)
    for number, seconds in enumerate((20, 50, 10, 50, 40)):
        table(database).filter(pk=messages[number].pk).update(due_at=DatabaseNow() - timedelta(seconds=seconds))
    same = table(database).get(pk=messages[1].pk).due_at
    table(database).filter(pk=messages[3].pk).update(due_at=same)
    outbox().relay()
    assert courier.sent == [1, 3, 4, 0, 2]  # of two that are equally long due, the earlier call is first


def test_delayed_and_dead_messages_stay(database: str, courier: Courier) -> None:
    _, put_off, dead = waiting(3, database)
    table(database).filter(pk=put_off.pk).update(due_at=DatabaseNow() + timedelta(minutes=1))
    table(database).filter(pk=dead.pk).update(due_at=None)
    assert outbox().relay() == Relayed(sent=1)
    assert numbers(database) == [1, 2]
    later(10**8, database)
    assert outbox().relay() == Relayed(sent=1)
    assert numbers(database) == [2]


def test_sent_message_keeps_its_ids_queue_and_attributes(database: str, courier: Courier) -> None:
    root_id = new_message_id()
    job = Job.of_call(note._call((), {"number": 1}), queue="other", delay=0, task=note, database=database)
    job = Job(
        job.message.next_retry(),
        job.message_id,
        root_id,
        queue="other",
        attributes={"tenant": "müller"},
        task=note,
        first_sent=1_700_000_000.125,
        scheduled_for=1_700_000_000.0,
        database=database,
    )
    outbox().keep([job], using=database)
    outbox().relay()
    [sent] = courier.jobs
    assert sent == job
    assert (sent.body, sent.message_attributes(), sent.task) == (job.body, job.message_attributes(), note)


def test_message_of_an_unknown_task_is_sent(database: str, courier: Courier) -> None:
    [message] = waiting(1, database)
    body = json.dumps({"task_name": "shop.tasks.gone", "kwargs": {"number": 7}})
    table(database).update(task_name="shop.tasks.gone", body=body)
    assert outbox().relay() == Relayed(sent=1)
    assert [(job.message_id, job.body, job.task) for job in courier.jobs] == [(str(message.pk), body, None)]


def test_plugins_are_notified_after_the_transaction(database: str, courier: Courier, settings: Any) -> None:
    notified: list[tuple[int, bool, int]] = []

    class Listener:
        @hookimpl
        def lambda_task_sent(self, job: Job) -> None:
            notified.append((number_of(job), connections[database].in_atomic_block, len(rows(database))))

    settings.LAMBDA_TASKS_PLUGINS = [Listener()]
    waiting(2, database)
    outbox().relay()
    assert notified == [(0, False, 0), (1, False, 0)]


# Messages that cannot be sent


@pytest.mark.usefixtures("longest_pauses")
def test_pauses_double_from_five_seconds_to_five_minutes(database: str, courier: Courier) -> None:
    waiting(1, database)
    courier.away = {"default"}
    pauses = [5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300, 300]
    for attempts, pause in enumerate(pauses, 1):
        table(database).update(due_at=DatabaseNow())
        since = time_of(database)
        assert outbox().relay() == Relayed(failed=1)
        [message] = rows(database)
        assert (message.attempts, message.holder) == (attempts, None)
        assert message.error == "ConnectionError: the queue default is away"
        assert paused(pause, since, message, database)
    assert outbox().relay() == Relayed()  # not before it is due
    table(database).update(due_at=DatabaseNow(), attempts=2**31 - 2)
    assert outbox().relay() == Relayed(failed=1)


def test_pauses_are_spread_from_half_to_whole(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return low

    monkeypatch.setattr(batches.random, "uniform", draw)
    courier.away = {"default"}
    waiting(1, database, attempts=10)
    since = time_of(database)
    outbox().relay()
    assert ranges == [(0.5, 1)]
    [message] = rows(database)
    assert paused(150, since, message, database)


def test_refused_message_is_dead_and_never_retried(
    database: str, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    messages = waiting(3, database)
    courier.refuses = {1}
    assert outbox().relay() == Relayed(sent=2, dead=1)
    [dead] = rows(database)
    assert (dead.pk, dead.due_at, dead.attempts) == (messages[1].pk, None, 1)
    assert (dead.error, dead.holder) == ("Refusal: number 1 is not wanted", None)
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "lambda_tasks.outbox")
    courier.refuses = set()
    later(10**8, database)
    assert outbox().relay() == Relayed()
    assert courier.sent == [0, 2]


def test_dead_message_can_be_sent_manually(database: str, courier: Courier) -> None:
    messages = waiting(3, database, due_at=None, attempts=3, error="dead")
    assert outbox().send_now([messages[0].pk, str(messages[2].pk)], using=database) == Relayed(sent=2)
    assert courier.sent == [0, 2]
    assert numbers(database) == [1]


@pytest.mark.usefixtures("longest_pauses")
def test_failed_manual_send_is_handled_as_usual(database: str, courier: Courier) -> None:
    dead, waits = waiting(2, database, due_at=None, attempts=3, error="dead")
    courier.refuses, courier.fails = {0}, {1}
    since = time_of(database)
    assert outbox().send_now([dead.pk, waits.pk], using=database) == Relayed(failed=1, dead=1)
    dead, waits = rows(database)
    assert (dead.due_at, dead.attempts) == (None, 4)
    assert waits.attempts == 4
    assert paused(40, since, waits, database)


def test_message_named_twice_is_sent_once(database: str, courier: Courier) -> None:
    """The id may be a string in any format."""
    [message] = waiting(1, database, due_at=None)
    named = [message.pk, str(message.pk).upper(), message.pk.hex]
    assert outbox().send_now(named, using=database) == Relayed(sent=1)
    assert courier.calls == [[0]]


def test_delayed_messages_can_be_sent_manually(database: str, courier: Courier) -> None:
    messages = waiting(150, database, due_at=DatabaseNow() + timedelta(minutes=1))
    assert outbox().send_now([], using=database) == Relayed()
    assert outbox().send_now([message.pk for message in messages], using=database) == Relayed(sent=150)
    assert rows(database) == []
    assert outbox().send_now([messages[0].pk], using=database) == Relayed()  # already deleted


def test_any_error_message_is_stored(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(1, database)

    def fail(jobs: Any) -> Any:
        yield Unsent(jobs[0], RuntimeError("\x00 \ud800 \U0001f600" + "x" * 10**6))

    monkeypatch.setattr(courier, "send", fail)
    assert outbox().relay() == Relayed(failed=1)
    [message] = rows(database)
    assert message.error.startswith("RuntimeError: ")
    assert "\U0001f600" in message.error
    assert len(message.error) < 2_100


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"body": ""}, "InvalidMessage"),
        ({"body": "{"}, "InvalidMessage"),
        ({"body": '{"task_name": 5, "kwargs": {}}'}, "InvalidMessage"),
        ({"body": '{"task_name": "a.b", "kwargs": {}, "more": 1}'}, "InvalidMessage"),
    ],
    ids=str,
)
def test_unreadable_message_is_dead_and_others_are_sent(
    database: str, courier: Courier, fields: dict[str, Any], error: str
) -> None:
    messages = waiting(3, database)
    table(database).filter(pk=messages[1].pk).update(**fields)
    assert outbox().relay() == Relayed(sent=2, dead=1)
    [dead] = rows(database)
    assert dead.due_at is None
    assert dead.error.startswith(f"{error}: ")


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ([], "The attributes of the row must be an object, not list."),
        ("text", "The attributes of the row must be an object, not str."),
        (7, "The attributes of the row must be an object, not int."),
        ({"tenant": 7}, "Attribute tenant of the row must be a string, not int."),
        ({"lambda_tasks.root_id": None}, "Attribute lambda_tasks.root_id of the row must be a string, not NoneType."),
        *(
            (
                {"lambda_tasks.first_sent": sent},
                "Attribute lambda_tasks.first_sent of the row must be milliseconds, not",
            )
            for sent in ("soon", "", "1e3", "-5", "\u0663", "9" * 5000)
        ),
        (
            {"lambda_tasks.scheduled_for": "noon"},
            "Attribute lambda_tasks.scheduled_for of the row must be seconds, not 'noon'.",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_row_with_unusable_attributes_is_dead(database: str, courier: Courier, attributes: object, reason: str) -> None:
    messages = waiting(3, database)
    table(database).filter(pk=messages[1].pk).update(attributes=attributes)
    assert outbox().relay() == Relayed(sent=2, dead=1)
    assert courier.sent == [0, 2]
    [dead] = rows(database)
    assert (dead.due_at, dead.attempts) == (None, 1)
    assert dead.error.startswith(f"InvalidMessage: {reason}")


def test_row_that_raises_unexpectedly_is_dead(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = waiting(3, database)
    original = Job.of_sent

    def stumble(*args: Any, message_id: str, **kwargs: Any) -> Job:
        if message_id == str(messages[1].pk):
            raise ZeroDivisionError
        return original(*args, message_id=message_id, **kwargs)

    monkeypatch.setattr(Job, "of_sent", stumble)
    assert outbox().relay() == Relayed(sent=2, dead=1)
    [dead] = rows(database)
    assert dead.error == "InvalidMessage: The row does not contain a valid message (ZeroDivisionError)."


@pytest.mark.parametrize("error", [InvalidArguments, MessageTooLarge])
def test_message_no_longer_accepted_is_dead(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    waiting(3, database)

    def refuse(job: Job) -> None:
        if number_of(job) == 1:
            raise error("not any more")

    monkeypatch.setattr(courier, "validate", refuse)
    assert outbox().relay() == Relayed(sent=2, dead=1)
    assert [message.error for message in rows(database)] == [f"{error.__name__}: not any more"]


def test_messages_of_a_removed_queue_wait(database: str, courier: Courier, settings: Any) -> None:
    """The messages do not delay other queues."""
    queues = app_settings.queues
    waiting(150, database, queue="other", due_at=DatabaseNow() - timedelta(hours=1))
    waiting(2, database)
    settings.LAMBDA_TASKS_QUEUES = {"default": queues["default"]}
    courier = keep_courier()
    relayed = outbox().relay()
    assert (relayed.sent, relayed.dead) == (2, 0)
    assert courier.sent == [0, 1]
    tried = [message for message in rows(database) if message.attempts]
    assert len(tried) == relayed.failed == 100  # the first batch shows that the queue fails
    assert all("'other' is not in LAMBDA_TASKS_QUEUES" in message.error for message in tried)
    settings.LAMBDA_TASKS_QUEUES = queues
    later(10, database)
    assert outbox().relay() == Relayed(sent=150)


def keep_courier() -> Courier:
    courier = outbox().transport
    assert isinstance(courier, Courier)
    return courier


def test_failing_queue_is_skipped(database: str, courier: Courier) -> None:
    waiting(300, database, queue="other", due_at=DatabaseNow() - timedelta(hours=1))
    waiting(200, database)
    courier.away = {"other"}
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed) == (200, 100)
    assert relayed.complete
    assert len(courier.calls) == 3


def test_partly_failing_queue_is_continued(database: str, courier: Courier) -> None:
    waiting(300, database)
    courier.fails = {*range(99), *range(150, 160), 299}
    courier.refuses = {200}
    assert outbox().relay() == Relayed(sent=189, failed=110, dead=1)
    assert len(courier.calls) == 3


def test_each_message_is_tried_once_per_relay(database: str, courier: Courier, settings: Any) -> None:
    attempts: Counter[str] = Counter()

    class Impatient:
        """Simulates a relay that takes so long that postponed messages are due again."""

        @hookimpl
        def lambda_task_unsent(self, message_id: str) -> None:
            attempts[message_id] += 1
            if attempts[message_id] < 5:
                table(database).filter(pk=message_id).update(due_at=DatabaseNow())

    settings.LAMBDA_TASKS_PLUGINS = [Impatient()]
    messages = waiting(150, database)
    courier.fails = {3, 140}
    assert outbox().relay() == Relayed(sent=148, failed=2)
    assert attempts == {str(messages[3].pk): 1, str(messages[140].pk): 1}


def test_raising_transport_fails_unreported_messages(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(3, database)

    def fail(jobs: Any) -> Any:
        yield Taken(jobs[0])
        raise ValueError("Invalid endpoint")

    monkeypatch.setattr(courier, "send", fail)
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed, relayed.dead) == (1, 2, 0)
    assert [(message.attempts, message.error) for message in rows(database)] == [
        (1, "ValueError: Invalid endpoint")
    ] * 2


def test_unreported_message_has_failed(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(3, database)
    monkeypatch.setattr(courier, "send", lambda jobs: [Taken(jobs[1])])
    relayed = outbox().relay(seconds=PATIENCE)
    assert (relayed.sent, relayed.failed, relayed.complete) == (1, 2, True)
    assert [message.attempts for message in rows(database)] == [1, 1]


def test_time_limit_ends_the_relay(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit does not count as a transport error."""
    waiting(3, database)

    def strike() -> None:
        raise SoftTimeLimitExceeded

    courier.on_the_way = strike
    with pytest.raises(SoftTimeLimitExceeded):
        outbox().relay()
    assert numbers(database) == [0, 1, 2]
    assert [message.attempts for message in rows(database)] == [0] * 3


# The end of a relay


class Clock:
    """A clock that a test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(relay_module, "monotonic", lambda: self.now)

    def forward(self) -> None:
        self.now += 10


def test_relay_stops_after_its_time(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    courier.on_the_way = clock.forward
    waiting(450, database)
    assert outbox().relay(seconds=0) == Relayed(complete=False)
    assert outbox().relay(seconds=15) == Relayed(sent=200, complete=False)
    assert outbox().relay(seconds=30) == Relayed(sent=250)  # no message was left when the time expired
    assert outbox().relay(seconds=0) == Relayed()


def test_relay_stops_after_its_limit_of_messages(database: str, courier: Courier) -> None:
    waiting(300, database)
    courier.fails, courier.refuses = {1}, {2}
    assert outbox().relay(limit=0) == Relayed(complete=False)
    assert outbox().relay(limit=5) == Relayed(sent=3, failed=1, dead=1, complete=False)
    assert outbox().relay(limit=150) == Relayed(sent=150, complete=False)
    assert outbox().relay(limit=145) == Relayed(sent=145)
    assert courier.sent == [0, *range(3, 300)]


def test_relayed_has_a_total_and_a_string() -> None:
    relayed = Relayed(sent=3, failed=2, dead=1)
    assert relayed.total == 6
    assert str(relayed) == "3 sent, 2 to be retried, 1 dead."


# Several databases


@pytest.mark.databases("sqlite", transaction=True)
def test_databases_share_the_limit_and_the_time(database: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    courier = use_outbox(settings, "sqlite", "default")
    for alias in ("sqlite", "default"):
        waiting(120, alias)
    assert outbox().relay(limit=130) == Relayed(sent=130, complete=False)
    assert (len(rows("sqlite")), len(rows("default"))) == (0, 110)
    clock = Clock(monkeypatch)
    courier.on_the_way = clock.forward
    waiting(100, "sqlite")
    assert outbox().relay(seconds=10) == Relayed(sent=100, complete=False)
    assert (len(rows("sqlite")), len(rows("default"))) == (0, 110)
    assert outbox().relay() == Relayed(sent=110)


@pytest.mark.databases("sqlite", transaction=True)
@pytest.mark.parametrize("broken", ["sqlite", "default"])
def test_failing_database_does_not_block_others(database: str, settings: Any, broken: str) -> None:
    """The error is raised at the end."""

    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        raise DatabaseError(f"{broken} is ill")

    courier = use_outbox(settings, "sqlite", "default")
    waiting(2, "sqlite")
    waiting(3, "default")
    with connections[broken].execute_wrapper(fail), pytest.raises(DatabaseError, match=f"{broken} is ill"):
        outbox().relay()
    assert courier.sent == ([0, 1, 2] if broken == "sqlite" else [0, 1])
    assert len(rows(broken)) == {"sqlite": 2, "default": 3}[broken]


@pytest.mark.databases("sqlite", transaction=True)
def test_error_of_each_failing_database_is_reported(
    database: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        raise DatabaseError(f"{context['connection'].alias} is ill")

    use_outbox(settings, "sqlite", "default")
    with (
        connections["sqlite"].execute_wrapper(fail),
        connections["default"].execute_wrapper(fail),
        pytest.raises(DatabaseError, match="sqlite is ill"),
    ):
        outbox().relay()
    [record] = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "default is ill"


# Parallel relays


@contextmanager
def in_parallel(work: Any) -> Iterator[threading.Thread]:
    """Run `work` in a thread with separate connections, and fail at the end if it raised an error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert errors == []


def test_concurrent_relays_send_each_message_once(database: str, courier: Courier) -> None:
    waiting(1_000, database)
    # Both relays hold messages before either has sent its first batch.
    both_are_under_way = threading.Barrier(2, timeout=PATIENCE)
    first = threading.local()

    def meet() -> None:
        if not hasattr(first, "done"):
            first.done = True
            both_are_under_way.wait()

    courier.on_the_way = meet
    done: list[Relayed] = []
    with in_parallel(lambda: done.append(outbox().relay())):
        done.append(outbox().relay())
    assert sorted(courier.sent) == list(range(1_000))
    assert sum(relayed.sent for relayed in done) == 1_000
    assert all(relayed.sent for relayed in done)
    assert rows(database) == []


def test_messages_held_by_another_relay_are_skipped(database: str, courier: Courier) -> None:
    """The relay sends the messages that are due later."""
    waiting(350, database)
    analyze(database)
    other_is_under_way, ours_is_done = threading.Event(), threading.Event()
    here = threading.current_thread()

    def wait() -> None:
        if threading.current_thread() is not here:
            other_is_under_way.set()
            assert ours_is_done.wait(PATIENCE)

    courier.on_the_way = wait
    done: list[Relayed] = []
    with in_parallel(lambda: done.append(outbox().relay(limit=100))):
        assert other_is_under_way.wait(PATIENCE)
        ours = outbox().relay()
        # The other relay holds 100 messages. SQLite has one writer at a time, which waits here.
        ours_is_done.set()
    assert (ours.sent, ours.failed, ours.complete) == (250, 0, True)
    assert [relayed.sent for relayed in done] == [100]
    assert Counter(courier.sent) == dict.fromkeys(range(350), 1)
    assert rows(database) == []


def test_relay_skips_messages_their_caller_is_sending(database: str, courier: Courier) -> None:
    under_way, looked = threading.Event(), threading.Event()
    here = threading.current_thread()

    def wait() -> None:
        if threading.current_thread() is not here:
            under_way.set()
            assert looked.wait(PATIENCE)

    def commit() -> None:
        with transaction.atomic(using=database):
            note.using(database=database).execute_on_commit(number=1)

    courier.on_the_way = wait
    with in_parallel(commit):
        assert under_way.wait(PATIENCE)
        assert outbox().relay() == Relayed()
        looked.set()
    assert courier.calls == [[1]]
    assert rows(database) == []


def test_caller_skips_messages_a_relay_is_sending(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay locks the row between the caller's COMMIT and the caller's first request."""
    relay_has_it, caller_is_done = threading.Event(), threading.Event()
    here = threading.current_thread()

    def wait() -> None:
        if threading.current_thread() is not here:
            relay_has_it.set()
            assert caller_is_done.wait(PATIENCE)

    courier.on_the_way = wait
    done: list[Relayed] = []
    other = threading.Thread(target=lambda: (done.append(outbox().relay()), connections.close_all()), daemon=True)

    def between() -> None:
        other.start()
        assert relay_has_it.wait(PATIENCE)

    with transaction.atomic(using=database):
        transaction.on_commit(between, using=database)
        note.using(database=database).execute_on_commit(number=1)
    assert courier.calls == [[1]]
    caller_is_done.set()
    other.join(PATIENCE)
    assert done == [Relayed(sent=1)]
    assert rows(database) == []


@pytest.mark.databases("postgres", "mariadb", transaction=True)
def test_locked_rows_are_skipped_without_waiting(database: str, settings: Any) -> None:
    courier = use_outbox(settings, database)
    messages = waiting(5, database)
    analyze(database)  # in a small table, MariaDB would read all rows, and wait for the locked ones
    locked, done = threading.Event(), threading.Event()

    def lock() -> None:
        with transaction.atomic(using=database):
            keys = [messages[0].pk, messages[3].pk]
            assert len(list(table(database).filter(pk__in=keys).order_by("id").select_for_update())) == 2
            locked.set()
            assert done.wait(PATIENCE)

    with in_parallel(lock):
        assert locked.wait(PATIENCE)
        assert outbox().relay() == Relayed(sent=3)
        done.set()
    assert courier.sent == [1, 2, 4]
    assert outbox().relay() == Relayed(sent=2)


@pytest.mark.databases("postgres", "mariadb", transaction=True)
def test_dead_relay_frees_its_messages_immediately(database: str, settings: Any) -> None:
    class Killed(BaseException):
        pass

    courier = use_outbox(settings, database)
    waiting(2, database)

    def die() -> None:
        connections[database].close()
        raise Killed

    courier.on_the_way = die
    with pytest.raises(Killed):
        outbox().relay()
    courier.on_the_way = lambda: None
    assert outbox().relay() == Relayed(sent=2)


# Transports for which rows are not locked


def test_dead_in_process_relay_holds_messages_one_minute(database: str, settings: Any) -> None:
    class Killed(BaseException):
        pass

    courier = use_outbox(settings, database, transport=IN_HOUSE)
    waiting(2, database)

    def die() -> None:
        raise Killed

    courier.on_the_way = die
    since = time_of(database)
    with pytest.raises(Killed):
        outbox().relay()
    courier.on_the_way = lambda: None
    holders = {message.holder for message in rows(database)}
    assert len(holders) == 1
    assert holders != {None}
    assert all(paused(HOLD, since, message, database) for message in rows(database))
    assert outbox().relay() == Relayed()
    later(HOLD, database)
    assert outbox().relay() == Relayed(sent=2)
    assert rows(database) == []


def test_expired_hold_passes_to_the_next_relay(database: str, settings: Any) -> None:
    courier = use_outbox(settings, database, transport=IN_HOUSE)
    waiting(2, database)
    inner: list[Relayed] = []

    def slow() -> None:
        courier.on_the_way = lambda: None
        later(HOLD, database)
        inner.append(outbox().relay())

    courier.on_the_way = slow
    assert outbox().relay() == Relayed(sent=2)
    assert inner == [Relayed(sent=2)]  # sent twice, under the same ids
    assert len({job.message_id for job in courier.jobs}) == 2
    assert rows(database) == []


def test_in_process_tasks_run_outside_a_transaction(database: str, settings: Any) -> None:
    seen: list[bool] = []
    courier = use_outbox(settings, database, transport=IN_HOUSE)
    courier.on_the_way = lambda: seen.append(connections[database].in_atomic_block)
    waiting(1, database)
    outbox().relay()
    note.using(database=database).execute_on_commit(number=1)
    assert seen == [False, False]


@pytest.mark.databases("postgres", "mariadb", transaction=True)
def test_rows_are_locked_while_they_are_sent(database: str, settings: Any) -> None:
    seen: list[tuple[bool, object]] = []
    courier = use_outbox(settings, database)
    courier.on_the_way = lambda: seen.append((connections[database].in_atomic_block, rows(database)[0].holder))
    waiting(1, database)
    outbox().relay()
    note.using(database=database).execute_on_commit(number=1)
    assert seen == [(True, None), (True, None)]


def test_relay_may_be_called_inside_a_transaction(database: str, courier: Courier) -> None:
    waiting(2, database)
    with transaction.atomic(using=database):
        assert outbox().relay() == Relayed(sent=2)
        transaction.set_rollback(True, using=database)
    assert numbers(database) == [0, 1]  # sent again, under the same ids


class Unprintable(Exception):
    """An error that cannot be converted to a string."""

    def __str__(self) -> str:
        raise ValueError("cannot be converted")


def test_unprintable_error_does_not_resend_neighbours(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(jobs: Any) -> Any:
        yield Unsent(jobs[0], Unprintable())
        for job in jobs[1:]:
            courier.jobs.append(job)
            yield Taken(job)

    monkeypatch.setattr(courier, "send", send)
    waiting(3, database)
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed) == (2, 1)
    [left] = rows(database)
    assert (left.attempts, left.error) == (1, "Unprintable")


def test_reports_about_unknown_messages_are_ignored(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(jobs: Any) -> Any:
        stranger = Job.of_call(jobs[0].message, queue="default", delay=0, task=note, database=database)
        yield from (Taken(stranger), Unsent(stranger, OSError()), Refused(stranger, OSError()))
        yield from map(Taken, jobs)

    monkeypatch.setattr(courier, "send", send)
    waiting(2, database)
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed, relayed.dead) == (2, 0, 0)
    assert not rows(database)


@pytest.mark.databases("postgres", "mariadb", transaction=True)
class TestOvertaken:
    """In a strict isolation level, PostgreSQL raises an error instead of skipping a row that was just deleted."""

    @pytest.fixture
    def courier(self, database: str, settings: Any) -> Courier:
        return use_outbox(settings, database, transport=COURIER)

    @contextmanager
    def conflicts(self, database: str, times: int) -> Iterator[list[str]]:
        raised: list[str] = []

        def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if "SKIP LOCKED" in sql and len(raised) < times:
                raised.append(sql)
                raise OperationalError("could not serialize access") from self.Cause()
            return execute(sql, params, many, context)

        with connections[database].execute_wrapper(refuse):
            yield raised

    class Cause(Exception):
        sqlstate = "40001"

    def test_batch_is_restarted(self, database: str, courier: Courier) -> None:
        waiting(3, database)
        with self.conflicts(database, 2) as raised:
            assert outbox().relay().sent == 3
        assert len(raised) == 2
        assert courier.calls == [[0, 1, 2]]

    def test_repeated_conflicts_leave_messages_to_others(self, database: str, courier: Courier) -> None:
        waiting(3, database)
        with self.conflicts(database, 1_000):
            assert outbox().relay() == Relayed()
        assert courier.calls == []
        assert outbox().relay().sent == 3

    def test_caller_sees_no_error(self, database: str, courier: Courier, caplog: pytest.LogCaptureFixture) -> None:
        with self.conflicts(database, 1_000), transaction.atomic(using=database):
            note.using(database=database).execute_on_commit(number=7)
        assert not caplog.records
        assert len(rows(database)) == 1


def test_batch_is_limited_in_characters(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch must fit into the memory of a small function."""
    waiting(5, database)
    monkeypatch.setattr(relay_module, "_MAX_CHARACTERS", 2 * len(rows(database)[0].body) + 1)
    assert outbox().relay().sent == 5
    assert courier.calls == [[0, 1], [2, 3], [4]]
    waiting(2, database)
    monkeypatch.setattr(relay_module, "_MAX_CHARACTERS", 1)
    assert outbox().relay().sent == 2
    assert courier.calls[3:] == [[0], [1]]
