"""The relay of the outbox: what it sends, in which order, and what becomes of the rest."""

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

from lambda_tasks.backends import relay as relay_module
from lambda_tasks.backends.relay import HOLD, Relayed
from lambda_tasks.exceptions import InvalidArguments, MessageTooLarge
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.identity import new_message_id
from lambda_tasks.jobs import Job
from lambda_tasks.models import DatabaseNow, OutboxMessage
from lambda_tasks.settings import app_settings
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from tests.courier import (
    COURIER,
    IN_HOUSE,
    Courier,
    later,
    note,
    number_of,
    numbers,
    outbox,
    rows,
    seconds_until,
    use_outbox,
)

pytestmark = pytest.mark.databases(transaction=True)

#: Seconds after which a test that hangs is a failure.
PATIENCE = 30


@pytest.fixture(params=[COURIER, IN_HOUSE], ids=["elsewhere", "in this process"])
def courier(database: str, settings: Any, request: pytest.FixtureRequest) -> Courier:
    """A transport of either kind: in front of one the relay locks rows, of the other it puts them off."""
    return use_outbox(settings, database, transport=request.param)


@pytest.fixture
def longest_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module.random, "uniform", lambda low, high: high)


def waiting(count: int, database: str, **fields: Any) -> list[OutboxMessage]:
    """Put messages into the outbox that are due, in their order, and that nobody has tried to send."""
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
    """Have the optimizer know how few rows there are; otherwise it depends on the tests before what it thinks."""
    if connections[database].vendor == "mysql":
        with connections[database].cursor() as cursor:
            cursor.execute(f"ANALYZE TABLE {OutboxMessage._meta.db_table}")


def table(database: str) -> Any:
    return OutboxMessage.objects.using(database)


# What is sent


def test_what_is_due_is_sent_and_deleted(database: str, courier: Courier) -> None:
    waiting(250, database)
    assert outbox().relay() == Relayed(sent=250)
    assert [len(call) for call in courier.calls] == [100, 100, 50]
    assert courier.sent == list(range(250))
    assert rows(database) == []
    assert outbox().relay() == Relayed()
    assert len(courier.calls) == 3


def test_what_has_been_due_the_longest_leaves_first(database: str, courier: Courier) -> None:
    messages = waiting(5, database)
    for number, seconds in enumerate((20, 50, 10, 50, 40)):
        table(database).filter(pk=messages[number].pk).update(due_at=DatabaseNow() - timedelta(seconds=seconds))
    same = table(database).get(pk=messages[1].pk).due_at
    table(database).filter(pk=messages[3].pk).update(due_at=same)
    outbox().relay()
    assert courier.sent == [1, 3, 4, 0, 2]  # of those that are as long due, the one that was sent first


def test_what_is_not_due_and_what_is_dead_stays(database: str, courier: Courier) -> None:
    _, put_off, dead = waiting(3, database)
    table(database).filter(pk=put_off.pk).update(due_at=DatabaseNow() + timedelta(minutes=1))
    table(database).filter(pk=dead.pk).update(due_at=None)
    assert outbox().relay() == Relayed(sent=1)
    assert numbers(database) == [1, 2]
    later(10**8, database)
    assert outbox().relay() == Relayed(sent=1)
    assert numbers(database) == [2]


def test_a_message_travels_with_its_ids_queue_and_attributes(database: str, courier: Courier) -> None:
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
        database=database,
    )
    outbox().keep([job], using=database)
    outbox().relay()
    [sent] = courier.jobs
    assert sent == job
    assert (sent.body, sent.message_attributes(), sent.task) == (job.body, job.message_attributes(), note)


def test_a_task_that_this_process_does_not_know_is_sent_all_the_same(database: str, courier: Courier) -> None:
    [message] = waiting(1, database)
    body = json.dumps({"task_name": "shop.tasks.gone", "kwargs": {"number": 7}})
    table(database).update(task_name="shop.tasks.gone", body=body)
    assert outbox().relay() == Relayed(sent=1)
    assert [(job.message_id, job.body, job.task) for job in courier.jobs] == [(str(message.pk), body, None)]


def test_plugins_hear_of_what_is_sent_after_the_transaction(database: str, courier: Courier, settings: Any) -> None:
    heard: list[tuple[int, bool, int]] = []

    class Listener:
        @hookimpl
        def lambda_task_sent(self, job: Job) -> None:
            heard.append((number_of(job), connections[database].in_atomic_block, len(rows(database))))

    settings.LAMBDA_TASKS_PLUGINS = [Listener()]
    waiting(2, database)
    outbox().relay()
    assert heard == [(0, False, 0), (1, False, 0)]


# What cannot be sent


@pytest.mark.usefixtures("longest_pauses")
def test_pauses_double_from_five_seconds_to_five_minutes(database: str, courier: Courier) -> None:
    waiting(1, database)
    courier.away = {"default"}
    pauses = []
    for attempts in range(1, 13):
        table(database).update(due_at=DatabaseNow())
        assert outbox().relay() == Relayed(failed=1)
        [message] = rows(database)
        assert (message.attempts, message.holder) == (attempts, None)
        assert message.error == "ConnectionError: the queue default is away"
        [pause] = seconds_until("due_at", database)
        assert pause is not None
        pauses.append(pause)
        assert outbox().relay() == Relayed()  # not before it is due
    expected = [5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300, 300]
    # Less by what it took to read them.
    assert pauses == [pytest.approx(pause - 2, abs=2) for pause in expected]
    table(database).update(due_at=DatabaseNow(), attempts=2**31 - 2)
    assert outbox().relay() == Relayed(failed=1)


def test_pauses_are_spread_out_between_half_and_whole(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        ranges.append((low, high))
        return low

    monkeypatch.setattr(relay_module.random, "uniform", draw)
    courier.away = {"default"}
    waiting(1, database, attempts=10)
    outbox().relay()
    assert ranges == [(0.5, 1)]
    assert seconds_until("due_at", database) == [pytest.approx(148, abs=2)]


def test_what_is_refused_is_dead_and_never_tried_again(
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


def test_a_dead_message_that_is_sent_by_hand_is_sent(database: str, courier: Courier) -> None:
    messages = waiting(3, database, due_at=None, attempts=3, error="dead")
    assert outbox().send_now([messages[0].pk, str(messages[2].pk)], using=database) == Relayed(sent=2)
    assert courier.sent == [0, 2]
    assert numbers(database) == [1]


@pytest.mark.usefixtures("longest_pauses")
def test_one_that_is_sent_by_hand_and_fails_again_goes_the_way_of_all(database: str, courier: Courier) -> None:
    dead, waits = waiting(2, database, due_at=None, attempts=3, error="dead")
    courier.refuses, courier.fails = {0}, {1}
    assert outbox().send_now([dead.pk, waits.pk], using=database) == Relayed(failed=1, dead=1)
    dead, waits = rows(database)
    assert (dead.due_at, dead.attempts) == (None, 4)
    assert waits.attempts == 4
    assert seconds_until("due_at", database)[1] == pytest.approx(38, abs=2)


def test_one_that_is_named_twice_or_in_another_way_is_sent_once(database: str, courier: Courier) -> None:
    [message] = waiting(1, database, due_at=None)
    named = [message.pk, str(message.pk).upper(), message.pk.hex]
    assert outbox().send_now(named, using=database) == Relayed(sent=1)
    assert courier.calls == [[0]]


def test_those_that_are_put_off_are_sent_by_hand_at_once(database: str, courier: Courier) -> None:
    messages = waiting(150, database, due_at=DatabaseNow() + timedelta(minutes=1))
    assert outbox().send_now([], using=database) == Relayed()
    assert outbox().send_now([message.pk for message in messages], using=database) == Relayed(sent=150)
    assert rows(database) == []
    assert outbox().send_now([messages[0].pk], using=database) == Relayed()  # gone by now


def test_errors_are_stored_whatever_is_in_them(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(1, database)

    def fail(jobs: Any, *, taken: Any, failed: Any, refused: Any) -> None:
        failed(jobs[0], RuntimeError("\x00 \ud800 \U0001f600" + "x" * 10**6))

    monkeypatch.setattr(courier, "send_each", fail)
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
def test_a_message_that_cannot_be_read_is_dead_and_the_others_go_on(
    database: str, courier: Courier, fields: dict[str, Any], error: str
) -> None:
    messages = waiting(3, database)
    table(database).filter(pk=messages[1].pk).update(**fields)
    assert outbox().relay() == Relayed(sent=2, dead=1)
    [dead] = rows(database)
    assert dead.due_at is None
    assert dead.error.startswith(f"{error}: ")


@pytest.mark.parametrize("attributes", [[], "text", {"lambda_tasks.first_sent": "soon"}], ids=str)
def test_attributes_that_cannot_be_read_keep_no_other_message(
    database: str, courier: Courier, attributes: object
) -> None:
    messages = waiting(3, database)
    table(database).filter(pk=messages[1].pk).update(attributes=attributes)
    assert outbox().relay() == Relayed(sent=2, failed=1)
    assert courier.sent == [0, 2]
    assert [message.attempts for message in rows(database)] == [1]


@pytest.mark.parametrize("error", [InvalidArguments, MessageTooLarge])
def test_what_the_transport_does_not_accept_any_more_is_dead(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    waiting(3, database)

    def refuse(job: Job) -> None:
        if number_of(job) == 1:
            raise error("not any more")

    monkeypatch.setattr(courier, "validate", refuse)
    assert outbox().relay() == Relayed(sent=2, dead=1)
    assert [message.error for message in rows(database)] == [f"{error.__name__}: not any more"]


def test_a_queue_that_is_not_in_the_settings_any_more_waits_for_it_and_holds_up_no_other(
    database: str, courier: Courier, settings: Any
) -> None:
    queues = app_settings.queues
    waiting(150, database, queue="other", due_at=DatabaseNow() - timedelta(hours=1))
    waiting(2, database)
    settings.LAMBDA_TASKS_QUEUES = {"default": queues["default"]}
    courier = keep_courier()
    relayed = outbox().relay()
    assert (relayed.sent, relayed.dead) == (2, 0)
    assert courier.sent == [0, 1]
    tried = [message for message in rows(database) if message.attempts]
    assert len(tried) == relayed.failed == 100  # of which the first batch told enough
    assert all("'other' is not in LAMBDA_TASKS_QUEUES" in message.error for message in tried)
    settings.LAMBDA_TASKS_QUEUES = queues
    later(10, database)
    assert outbox().relay() == Relayed(sent=150)


def keep_courier() -> Courier:
    courier = outbox().transport
    assert isinstance(courier, Courier)
    return courier


def test_a_queue_that_takes_nothing_is_left_alone_and_holds_up_no_other(database: str, courier: Courier) -> None:
    waiting(300, database, queue="other", due_at=DatabaseNow() - timedelta(hours=1))
    waiting(200, database)
    courier.away = {"other"}
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed) == (200, 100)
    assert relayed.complete
    assert len(courier.calls) == 3


def test_a_queue_that_takes_some_is_gone_on_with(database: str, courier: Courier) -> None:
    waiting(300, database)
    courier.fails = {*range(99), *range(150, 160), 299}
    courier.refuses = {200}
    assert outbox().relay() == Relayed(sent=189, failed=110, dead=1)
    assert len(courier.calls) == 3


def test_each_message_is_tried_once_however_soon_it_is_due_again(
    database: str, courier: Courier, settings: Any
) -> None:
    tries: Counter[str] = Counter()

    class Impatient:
        """As if a relay took so long that what it has put off is due again."""

        @hookimpl
        def lambda_task_unsent(self, message_id: str) -> None:
            tries[message_id] += 1
            if tries[message_id] < 5:
                table(database).filter(pk=message_id).update(due_at=DatabaseNow())

    settings.LAMBDA_TASKS_PLUGINS = [Impatient()]
    messages = waiting(150, database)
    courier.fails = {3, 140}
    assert outbox().relay() == Relayed(sent=148, failed=2)
    assert tries == {str(messages[3].pk): 1, str(messages[140].pk): 1}


def test_a_transport_that_raises_has_not_sent_what_it_did_not_mention(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(3, database)

    def fail(jobs: Any, *, taken: Any, failed: Any, refused: Any) -> None:
        taken(jobs[0])
        raise ValueError("Invalid endpoint")

    monkeypatch.setattr(courier, "send_each", fail)
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed, relayed.dead) == (1, 2, 0)
    assert [(message.attempts, message.error) for message in rows(database)] == [
        (1, "ValueError: Invalid endpoint")
    ] * 2


def test_a_transport_that_says_nothing_of_a_message_has_not_sent_it(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(3, database)
    monkeypatch.setattr(courier, "send_each", lambda jobs, *, taken, failed, refused: taken(jobs[1]))
    relayed = outbox().relay(seconds=PATIENCE)
    assert (relayed.sent, relayed.failed, relayed.complete) == (1, 2, True)
    assert [message.attempts for message in rows(database)] == [1, 1]


def test_a_time_limit_ends_the_relay_and_is_not_taken_for_the_transports_error(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(3, database)

    def strike() -> None:
        raise SoftTimeLimitExceeded

    courier.on_the_way = strike
    with pytest.raises(SoftTimeLimitExceeded):
        outbox().relay()
    assert numbers(database) == [0, 1, 2]
    assert [message.attempts for message in rows(database)] == [0] * 3


# When it ends


class Clock:
    """A clock that a test puts forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(relay_module, "monotonic", lambda: self.now)

    def forward(self) -> None:
        self.now += 10


def test_it_ends_when_its_time_is_over(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    courier.on_the_way = clock.forward
    waiting(450, database)
    assert outbox().relay(seconds=0) == Relayed(complete=False)
    assert outbox().relay(seconds=15) == Relayed(sent=200, complete=False)
    assert outbox().relay(seconds=30) == Relayed(sent=250)  # nothing was left when its time was over
    assert outbox().relay(seconds=0) == Relayed()


def test_it_ends_after_so_many_messages(database: str, courier: Courier) -> None:
    waiting(300, database)
    courier.fails, courier.refuses = {1}, {2}
    assert outbox().relay(limit=0) == Relayed(complete=False)
    assert outbox().relay(limit=5) == Relayed(sent=3, failed=1, dead=1, complete=False)
    assert outbox().relay(limit=150) == Relayed(sent=150, complete=False)
    assert outbox().relay(limit=145) == Relayed(sent=145)
    assert courier.sent == [0, *range(3, 300)]


def test_a_message_in_numbers_and_in_words() -> None:
    relayed = Relayed(sent=3, failed=2, dead=1)
    assert relayed.total == 6
    assert str(relayed) == "3 sent, 2 to be tried again, 1 dead."


# Several databases


@pytest.mark.databases("sqlite", transaction=True)
def test_all_databases_are_relayed_under_one_limit_and_one_clock(
    database: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_a_database_that_fails_keeps_no_other_and_its_error_is_raised_at_the_end(
    database: str, settings: Any, broken: str
) -> None:
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
def test_of_several_databases_that_fail_each_is_told(
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


# Side by side


@contextmanager
def beside(work: Any) -> Iterator[threading.Thread]:
    """Do `work` in a thread with connections of its own; what it raises is raised at the end."""
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


def test_two_relays_side_by_side_send_each_message_once_and_wait_for_nobody(database: str, courier: Courier) -> None:
    waiting(1_000, database)
    # Both have messages in their hands before either is done with its first.
    both_are_under_way = threading.Barrier(2, timeout=PATIENCE)
    first = threading.local()

    def meet() -> None:
        if not hasattr(first, "done"):
            first.done = True
            both_are_under_way.wait()

    courier.on_the_way = meet
    done: list[Relayed] = []
    with beside(lambda: done.append(outbox().relay())):
        done.append(outbox().relay())
    assert sorted(courier.sent) == list(range(1_000))
    assert sum(relayed.sent for relayed in done) == 1_000
    assert all(relayed.sent for relayed in done)
    assert rows(database) == []


def test_what_another_is_sending_is_passed_by_and_what_lies_behind_it_is_sent(database: str, courier: Courier) -> None:
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
    with beside(lambda: done.append(outbox().relay(limit=100))):
        assert other_is_under_way.wait(PATIENCE)
        ours = outbox().relay()
        # 100 are in the other's hands; SQLite has one writer at a time, who waits in here.
        ours_is_done.set()
    assert (ours.sent, ours.failed, ours.complete) == (250, 0, True)
    assert [relayed.sent for relayed in done] == [100]
    assert Counter(courier.sent) == dict.fromkeys(range(350), 1)
    assert rows(database) == []


def test_a_message_that_a_relay_has_in_its_hands_after_the_commit_is_not_sent_again(
    database: str, courier: Courier
) -> None:
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
    with beside(commit):
        assert under_way.wait(PATIENCE)
        assert outbox().relay() == Relayed()
        looked.set()
    assert courier.calls == [[1]]
    assert rows(database) == []


def test_a_caller_whose_message_a_relay_is_sending_leaves_it_to_that(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay comes between COMMIT and the first request: the caller finds its message in other hands."""
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
def test_rows_that_a_session_has_locked_are_passed_by_without_waiting(database: str, settings: Any) -> None:
    courier = use_outbox(settings, database)
    messages = waiting(5, database)
    analyze(database)  # MariaDB goes through all rows of a small table, and would wait for those that are locked
    locked, done = threading.Event(), threading.Event()

    def lock() -> None:
        with transaction.atomic(using=database):
            keys = [messages[0].pk, messages[3].pk]
            assert len(list(table(database).filter(pk__in=keys).order_by("id").select_for_update())) == 2
            locked.set()
            assert done.wait(PATIENCE)

    with beside(lock):
        assert locked.wait(PATIENCE)
        assert outbox().relay() == Relayed(sent=3)
        done.set()
    assert courier.sent == [1, 2, 4]
    assert outbox().relay() == Relayed(sent=2)


@pytest.mark.databases("postgres", "mariadb", transaction=True)
def test_a_relay_that_dies_frees_its_messages_at_once(database: str, settings: Any) -> None:
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


# Where rows cannot be locked


def test_a_relay_that_dies_in_the_middle_has_its_messages_for_a_minute(database: str, settings: Any) -> None:
    class Killed(BaseException):
        pass

    courier = use_outbox(settings, database, transport=IN_HOUSE)
    waiting(2, database)

    def die() -> None:
        raise Killed

    courier.on_the_way = die
    with pytest.raises(Killed):
        outbox().relay()
    courier.on_the_way = lambda: None
    holders = {message.holder for message in rows(database)}
    assert len(holders) == 1
    assert holders != {None}
    assert seconds_until("due_at", database) == [pytest.approx(HOLD - 2, abs=2)] * 2
    assert outbox().relay() == Relayed()
    later(HOLD, database)
    assert outbox().relay() == Relayed(sent=2)
    assert rows(database) == []


def test_a_message_whose_minute_is_over_is_the_next_ones(database: str, settings: Any) -> None:
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


def test_no_transaction_is_open_around_tasks_that_run_in_this_process(database: str, settings: Any) -> None:
    seen: list[bool] = []
    courier = use_outbox(settings, database, transport=IN_HOUSE)
    courier.on_the_way = lambda: seen.append(connections[database].in_atomic_block)
    waiting(1, database)
    outbox().relay()
    note.using(database=database).execute_on_commit(number=1)
    assert seen == [False, False]


@pytest.mark.databases("postgres", "mariadb", transaction=True)
def test_rows_are_locked_while_they_are_sent_elsewhere(database: str, settings: Any) -> None:
    seen: list[tuple[bool, object]] = []
    courier = use_outbox(settings, database)
    courier.on_the_way = lambda: seen.append((connections[database].in_atomic_block, rows(database)[0].holder))
    waiting(1, database)
    outbox().relay()
    note.using(database=database).execute_on_commit(number=1)
    assert seen == [(True, None), (True, None)]


def test_it_may_be_called_inside_of_a_transaction(database: str, courier: Courier) -> None:
    waiting(2, database)
    with transaction.atomic(using=database):
        assert outbox().relay() == Relayed(sent=2)
        transaction.set_rollback(True, using=database)
    assert numbers(database) == [0, 1]  # sent again, under the same ids


class Wordless(Exception):
    """An error whose text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


def test_an_error_without_a_text_does_not_have_its_neighbours_sent_again(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_each(jobs: Any, *, taken: Any, failed: Any, refused: Any) -> None:
        failed(jobs[0], Wordless())
        for job in jobs[1:]:
            courier.jobs.append(job)
            taken(job)

    monkeypatch.setattr(courier, "send_each", send_each)
    waiting(3, database)
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed) == (2, 1)
    [left] = rows(database)
    assert (left.attempts, left.error) == (1, "Wordless")


def test_what_a_transport_says_of_messages_of_others_is_not_listened_to(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_each(jobs: Any, *, taken: Any, failed: Any, refused: Any) -> None:
        stranger = Job.of_call(jobs[0].message, queue="default", delay=0, task=note, database=database)
        for say in (taken, lambda job: failed(job, OSError()), lambda job: refused(job, OSError())):
            say(stranger)
        for job in jobs:
            taken(job)

    monkeypatch.setattr(courier, "send_each", send_each)
    waiting(2, database)
    relayed = outbox().relay()
    assert (relayed.sent, relayed.failed, relayed.dead) == (2, 0, 0)
    assert not rows(database)


@pytest.mark.databases("postgres", "mariadb", transaction=True)
class TestOvertaken:
    """In a strict isolation level, PostgreSQL refuses to pass over a row that was deleted in the very moment."""

    @pytest.fixture
    def courier(self, database: str, settings: Any) -> Courier:
        return use_outbox(settings, database, transport=COURIER)

    @contextmanager
    def conflicts(self, database: str, times: int) -> Iterator[list[str]]:
        met: list[str] = []

        def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if "SKIP LOCKED" in sql and len(met) < times:
                met.append(sql)
                raise OperationalError("could not serialize access") from self.Cause()
            return execute(sql, params, many, context)

        with connections[database].execute_wrapper(refuse):
            yield met

    class Cause(Exception):
        sqlstate = "40001"

    def test_it_begins_the_batch_anew(self, database: str, courier: Courier) -> None:
        waiting(3, database)
        with self.conflicts(database, 2) as met:
            assert outbox().relay().sent == 3
        assert len(met) == 2
        assert courier.calls == [[0, 1, 2]]

    def test_it_leaves_them_to_the_others_when_they_are_always_faster(self, database: str, courier: Courier) -> None:
        waiting(3, database)
        with self.conflicts(database, 1_000):
            assert outbox().relay() == Relayed()
        assert courier.calls == []
        assert outbox().relay().sent == 3

    def test_no_caller_hears_of_it(self, database: str, courier: Courier, caplog: pytest.LogCaptureFixture) -> None:
        with self.conflicts(database, 1_000), transaction.atomic(using=database):
            note.using(database=database).execute_on_commit(number=7)
        assert not caplog.records
        assert len(rows(database)) == 1


def test_a_batch_has_no_more_characters_than_a_small_function_holds(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(5, database)
    monkeypatch.setattr(relay_module, "_MAX_CHARACTERS", 2 * len(rows(database)[0].body) + 1)
    assert outbox().relay().sent == 5
    assert courier.calls == [[0, 1], [2, 3], [4]]
    waiting(2, database)
    monkeypatch.setattr(relay_module, "_MAX_CHARACTERS", 1)
    assert outbox().relay().sent == 2
    assert courier.calls[3:] == [[0], [1]]
