"""The outbox up to the first try to send: what a commit keeps, what a rollback takes away, what a caller sees."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from django.core.checks import Error
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, transaction
from django.test import TestCase, override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks import identity, lost, points
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.relay import Relayed
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.checks import check_strategies
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments, InvalidSetting, UnknownDatabase, UnknownQueue
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.identity import new_message_id, retry_id
from lambda_tasks.jobs import FIRST_SENT_ATTRIBUTE, Job
from lambda_tasks.messages import SQSLambdaTask
from lambda_tasks.models import DatabaseNow, OutboxMessage, TaskRecord
from lambda_tasks.settings import MAX_KEPT_DELAY
from lambda_tasks.strategies import get_backend
from tests.app.models import Effect
from tests.conftest import Sqs
from tests.courier import (
    COURIER,
    IN_HOUSE,
    OUTBOX,
    Courier,
    later,
    note,
    number_of,
    numbers,
    outbox,
    rows,
    use_outbox,
)

on_each_database = pytest.mark.databases(transaction=True)
committing = pytest.mark.django_db(transaction=True)


class Failure(Exception):
    """What the code around a call raises."""


@pytest.fixture
def courier(database: str, settings: Any) -> Courier:
    return use_outbox(settings, database)


def send(number: int, database: str) -> str:
    return note.using(database=database).execute_on_commit(number=number).message_id


@contextmanager
def rolled_back(database: str, **options: Any) -> Iterator[None]:
    """An atomic block that fails at its end."""
    with suppress(Failure), transaction.atomic(using=database, **options):
        yield
        raise Failure


@contextmanager
def seen_before_commit(monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> Iterator[list[object]]:
    """Look at something when the messages are written, and COMMIT comes next."""
    seen: list[object] = []

    def reached(point: str) -> None:
        if point == "outbox:after_insert":
            seen.append(look())

    with monkeypatch.context() as patch:
        patch.setattr(points, "reached", reached)
        yield seen


# What a transaction keeps


@on_each_database
def test_a_message_is_a_row_of_the_callers_transaction_and_is_gone_when_it_is_sent(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> object:
        return numbers(database), [*courier.calls], connections[database].get_autocommit()

    with seen_before_commit(monkeypatch, look) as seen, transaction.atomic(using=database):
        for number in (1, 2, 3):
            send(number, database)
        assert numbers(database) == []  # it costs nothing before the COMMIT
    assert seen == [([1, 2, 3], [], False)]
    assert courier.calls == [[1, 2, 3]]
    assert numbers(database) == []


@on_each_database
def test_the_row_has_what_somebody_wants_to_know_of_it(database: str, courier: Courier) -> None:
    courier.away = {"other"}
    message_id = note.using(database=database, queue="other").execute_on_commit(number=7).message_id
    [row] = rows(database)
    now = OutboxMessage.objects.using(database).annotate(now=DatabaseNow()).get().now
    assert (str(row.pk), row.task_name, row.queue) == (message_id, note.name, "other")
    assert json.loads(row.body) == {"task_name": note.name, "kwargs": {"number": 7}}
    assert row.attributes == {
        "lambda_tasks.message_id": message_id,
        "lambda_tasks.root_id": message_id,
        "lambda_tasks.queue": "other",
    }
    assert timedelta() <= now - row.created_at < timedelta(minutes=1)
    assert row.run_at is None
    assert (row.attempts, row.error, row.holder) == (1, "ConnectionError: the queue other is away", None)


@on_each_database
def test_a_rollback_leaves_nothing(database: str, courier: Courier) -> None:
    with rolled_back(database):
        send(1, database)
        with transaction.atomic(using=database):
            send(2, database)
    assert numbers(database) == []
    assert courier.calls == []


@on_each_database
def test_a_savepoint_that_is_rolled_back_takes_its_own_away_and_nothing_else(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    with transaction.atomic(using=database, durable=True):
        send(1, database)
        with rolled_back(database):
            send(2, database)
            with transaction.atomic(using=database):
                send(3, database)
        with transaction.atomic(using=database):
            send(4, database)
            with transaction.atomic(using=database, savepoint=False):
                send(5, database)
        send(6, database)
    assert numbers(database) == [1, 4, 5, 6]
    assert courier.calls == [[1, 4, 5, 6]]


@on_each_database
def test_a_savepoint_that_is_set_by_hand_is_to_messages_what_it_is_to_djangos_callbacks(
    database: str, courier: Courier
) -> None:
    called: list[int] = []
    with transaction.atomic(using=database):
        # Under the name that Django 6.1 gave it.
        set_savepoint = getattr(transaction, "savepoint_create", None) or transaction.savepoint
        mark = set_savepoint(using=database)
        transaction.on_commit(lambda: called.append(1), using=database)
        send(1, database)
        transaction.savepoint_rollback(mark, using=database)
    assert courier.sent == called


@on_each_database
def test_what_the_caller_writes_and_its_messages_are_one(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    with rolled_back(database):
        Effect.objects.using(database).create(name="rolled back")
        send(1, database)
    with transaction.atomic(using=database):
        Effect.objects.using(database).create(name="committed")
        send(2, database)
    assert [effect.name for effect in Effect.objects.using(database).order_by("pk")] == ["committed"]
    assert numbers(database) == [2]


@on_each_database
def test_an_insert_that_fails_rolls_the_callers_transaction_back_and_raises(database: str, courier: Courier) -> None:
    called: list[str] = []

    def refuse_insert(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT") and OutboxMessage._meta.db_table in sql:
            raise DatabaseError("no room")
        return execute(sql, params, many, context)

    with (
        connections[database].execute_wrapper(refuse_insert),
        pytest.raises(DatabaseError, match="no room"),
        transaction.atomic(using=database),
    ):
        Effect.objects.using(database).create(name="a")
        transaction.on_commit(lambda: called.append("hook"), using=database)
        send(1, database)
    assert connections[database].get_autocommit()
    assert not connections[database].in_atomic_block
    assert list(Effect.objects.using(database).order_by("pk")) == []
    assert numbers(database) == []
    assert (courier.calls, called) == ([], [])
    send(2, database)  # and everything goes on
    assert courier.calls == [[2]]


@on_each_database
def test_a_commit_that_fails_leaves_no_message_and_sends_none(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise DatabaseError("a constraint that is checked at the end")

    with monkeypatch.context() as patch:
        patch.setattr(connections[database], "_commit", fail)
        with pytest.raises(DatabaseError, match="at the end"), transaction.atomic(using=database):
            send(1, database)
    assert numbers(database) == []
    assert courier.calls == []


@on_each_database
def test_without_a_transaction_a_task_is_kept_and_sent_at_once(database: str, courier: Courier) -> None:
    send(1, database)
    assert (courier.calls, numbers(database)) == ([[1]], [])
    courier.away = {"default"}
    send(2, database)
    assert (courier.calls, numbers(database)) == ([[1], [2]], [2])


@on_each_database
def test_a_transaction_that_is_committed_by_hand_keeps_what_was_sent_in_it(database: str, courier: Courier) -> None:
    transaction.set_autocommit(False, using=database)
    try:
        with transaction.atomic(using=database):
            send(1, database)
        transaction.rollback(using=database)
        with transaction.atomic(using=database):
            send(2, database)
        transaction.commit(using=database)
        assert numbers(database) == [2]
        transaction.rollback(using=database)
        assert numbers(database) == [2]  # Django forgets its callback with that, and the row is committed
        with transaction.atomic(using=database):
            send(3, database)
        transaction.commit(using=database)
        assert courier.calls == []  # Django calls callbacks when autocommit is on again
        transaction.commit(using=database)
    finally:
        transaction.rollback(using=database)
        transaction.set_autocommit(True, using=database)
    assert numbers(database) == [2, 3]
    assert outbox().relay() == Relayed(sent=2)


@on_each_database
def test_callbacks_of_a_transaction_that_is_committed_by_hand_send_when_django_calls_them(
    database: str, courier: Courier
) -> None:
    transaction.set_autocommit(False, using=database)
    with transaction.atomic(using=database):
        send(1, database)
    transaction.commit(using=database)
    assert numbers(database) == [1]
    transaction.commit(using=database)  # also of what the look has begun
    transaction.set_autocommit(True, using=database)
    assert (courier.calls, numbers(database)) == ([[1]], [])


@on_each_database
def test_a_thousand_tasks_are_kept_and_sent(database: str, courier: Courier) -> None:
    with transaction.atomic(using=database):
        for number in range(1_000):
            send(number, database)
    assert courier.calls == [list(range(start, start + 100)) for start in range(0, 1_000, 100)]
    assert numbers(database) == []


@on_each_database
def test_a_connection_that_is_closed_in_a_transaction_leaves_nothing(database: str, courier: Courier) -> None:
    with rolled_back(database):
        send(1, database)
        connections[database].close()
    send(2, database)
    assert courier.calls == [[2]]
    assert numbers(database) == []


# What the caller sees of the transport: nothing


@on_each_database
def test_the_caller_never_sees_an_error_of_the_transport_and_callbacks_of_others_run(
    database: str, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[str] = []
    courier.away = {"default"}
    with transaction.atomic(using=database):
        transaction.on_commit(lambda: called.append("before"), using=database)
        send(1, database)
        transaction.on_commit(lambda: called.append("between"), using=database)
        send(2, database)
        transaction.on_commit(lambda: called.append("after"), using=database)
    assert called == ["before", "between", "after"]
    assert numbers(database) == [1, 2]
    [record] = caplog.records
    assert (record.name, record.levelno) == ("lambda_tasks.outbox", logging.WARNING)
    assert record.getMessage() == (
        f"2 messages stay in the outbox of {database!r} and are tried again (2 of {note.name}): "
        "ConnectionError: the queue default is away"
    )


@on_each_database
def test_a_callback_of_somebody_else_that_raises_first_costs_no_message(database: str, courier: Courier) -> None:
    def fail() -> None:
        raise Failure

    with pytest.raises(Failure), transaction.atomic(using=database):
        transaction.on_commit(fail, using=database)
        send(1, database)
    assert (courier.calls, numbers(database)) == ([], [1])
    assert outbox().relay() == Relayed(sent=1)


@on_each_database
def test_what_a_callback_sends_is_kept_too(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    with transaction.atomic(using=database):
        transaction.on_commit(lambda: send(10, database), using=database)
        send(1, database)
    assert courier.calls == [[10], [1]]
    assert sorted(numbers(database)) == [1, 10]


@on_each_database
def test_an_error_of_the_database_after_the_commit_is_logged_and_the_message_waits(
    database: str, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    def lose(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("DELETE") and OutboxMessage._meta.db_table in sql:
            raise DatabaseError("gone")
        return execute(sql, params, many, context)

    called: list[str] = []
    with connections[database].execute_wrapper(lose), transaction.atomic(using=database):
        send(1, database)
        transaction.on_commit(lambda: called.append("after"), using=database)
    assert called == ["after"]
    [record] = caplog.records
    assert record.getMessage() == f"1 messages stay in the outbox of {database!r} for a relay to send."
    assert record.exc_info is not None
    assert numbers(database) == [1]
    OutboxMessage.objects.using(database).update(due_at=DatabaseNow())  # on SQLite it was put off
    assert outbox().relay() == Relayed(sent=1)


class Crash(BaseException):
    """The end of the process, as far as a test can play it."""


@contextmanager
def dies_after_commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that ends between COMMIT and the first request."""

    def reached(point: str) -> None:
        if point == "enqueue:after_commit":
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(points, "reached", reached)
        yield


@on_each_database
def test_a_process_that_ends_between_commit_and_send_leaves_the_message_to_a_relay(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dies_after_commit(monkeypatch), transaction.atomic(using=database):
        send(1, database)
    assert (courier.calls, numbers(database)) == ([], [1])
    assert outbox().relay() == Relayed(sent=1)
    assert courier.sent == [1]


@on_each_database
def test_after_a_batch_of_which_nothing_was_taken_the_caller_waits_for_no_other(
    database: str, courier: Courier
) -> None:
    courier.away = {"default"}
    with transaction.atomic(using=database):
        for number in range(250):
            send(number, database)
    assert courier.calls == [list(range(100))]
    assert [row.attempts for row in rows(database)] == [1] * 100 + [0] * 150
    courier.away = set()
    assert outbox().relay() == Relayed(sent=150)  # the first hundred are put off


@on_each_database
def test_what_is_refused_is_dead_and_the_rest_is_sent(
    database: str, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    courier.refuses, courier.fails = {2}, {3}
    with transaction.atomic(using=database):
        handles = [note.using(database=database).execute_on_commit(number=number) for number in (1, 2, 3, 4)]
    assert courier.sent == [1, 4]
    dead, waiting = rows(database)
    assert (dead.due_at, dead.attempts, dead.error) == (None, 1, "Refusal: number 2 is not wanted")
    assert waiting.due_at is not None
    assert waiting.attempts == 1
    assert [handle.status for handle in handles] == [None, "DEAD", "WAITING", None]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            (
                f"1 messages stay in the outbox of {database!r} and are tried again (1 of {note.name}): "
                "ConnectionError: the queue default is away"
            ),
        ),
        (
            logging.ERROR,
            (
                f"{note.name} [{handles[1].message_id}] can never be sent and stays in the outbox of {database!r} "
                "as dead: Refusal: number 2 is not wanted"
            ),
        ),
    ]


# What is refused at the call


@on_each_database
def test_what_the_transport_refuses_at_the_call_is_refused_inside_the_transaction(
    database: str, courier: Courier
) -> None:
    with transaction.atomic(using=database):
        with pytest.raises(UnknownQueue):
            note.using(database=database, queue="nowhere").execute_on_commit(number=1)
        send(2, database)
    assert courier.calls == [[2]]


@on_each_database
def test_a_message_too_long_for_sqs_is_refused_at_the_call(database: str, settings: Any) -> None:
    use_outbox(
        settings,
        database,
        transport={"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": {"max_message_bytes": 100}},
    )
    with pytest.raises(ValueError, match="SQS takes 100"), transaction.atomic(using=database):
        send(1, database)
    assert numbers(database) == []


# On its way


@on_each_database
@pytest.mark.parametrize("late", [False, True], ids=["after the commit", "from the relay"])
def test_what_is_sent_is_to_the_letter_what_is_sent_without_the_outbox(
    database: str, settings: Any, sqs: Sqs, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\u2028 ünï \U0001f600 \"'\\ % %s \x7f"
    settings.LAMBDA_TASKS_PLUGINS = [TracedText()]

    def received() -> dict[str, Any]:
        [message] = sqs.receive()
        attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
        message_id = attributes.pop("lambda_tasks.message_id")
        assert attributes.pop("lambda_tasks.root_id") == message_id
        return {"body": message["Body"], "attributes": attributes}

    say.execute_on_commit(text=text)
    direct = received()
    settings.LAMBDA_TASKS_BACKEND = {
        "BACKEND": OUTBOX,
        "OPTIONS": {"transport": "lambda_tasks.backends.sqs.SQSBackend", "databases": [database]},
    }
    with dies_after_commit(monkeypatch) if late else nullcontext(), transaction.atomic(using=database):
        say.using(database=database).execute_on_commit(text=text)
    if late:
        assert sqs.receive() == []
        assert outbox().relay() == Relayed(sent=1)
    assert received() == direct
    assert rows(database) == []


class TracedText:
    @hookimpl
    def lambda_task_sending(self, job: Job) -> None:
        job.attributes["tenant"] = "müller \U0001f600"


@lambda_task
def say(*, text: str) -> None: ...


@on_each_database
def test_plugins_hear_of_each_message_that_is_sent_once_and_after_its_deletion(database: str, settings: Any) -> None:
    heard: list[tuple[int, int]] = []

    class Listener:
        @hookimpl
        def lambda_task_sent(self, job: Job) -> None:
            heard.append((number_of(job), len(rows(database))))

    courier = use_outbox(settings, database, plugins=[Listener()])
    courier.fails = {2}
    with transaction.atomic(using=database):
        for number in (1, 2, 3):
            send(number, database)
    assert heard == [(1, 1), (3, 1)]
    courier.fails = set()
    OutboxMessage.objects.using(database).update(due_at=DatabaseNow())
    outbox().relay()
    assert heard == [(1, 1), (3, 1), (2, 0)]


@on_each_database
def test_a_listener_that_raises_harms_no_message(database: str, settings: Any) -> None:
    class Clumsy:
        @hookimpl
        def lambda_task_sent(self, job: Job) -> None:
            raise Failure

        @hookimpl
        def lambda_task_unsent(self, message_id: str) -> None:
            raise Failure

    courier = use_outbox(settings, database, plugins=[Clumsy()])
    courier.fails = {2}
    with transaction.atomic(using=database):
        for number in (1, 2, 3):
            send(number, database)
    assert courier.sent == [1, 3]
    assert [row.attempts for row in rows(database)] == [1]


@lambda_task(expires_in=3_600)
def perishable(*, number: int) -> None: ...


@on_each_database
@pytest.mark.parametrize("ahead", [0, 3_600], ids=["", "after a clock that was an hour ahead"])
def test_the_time_in_the_outbox_counts_for_what_expires(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    # An id has the moment of the call in it, and never goes back.
    monkeypatch.setattr(identity, "_last_moment", int((time.time() + ahead) * 1000) << 12)
    courier.away = {"default"}
    before = round(time.time() * 1000) - 1
    perishable.using(database=database).execute_on_commit(number=1)
    [row] = rows(database)
    made_at = int(row.attributes[FIRST_SENT_ATTRIBUTE])
    assert before <= made_at <= round(time.time() * 1000) + 1
    courier.away = set()
    OutboxMessage.objects.using(database).update(due_at=DatabaseNow())
    outbox().relay()
    [job] = courier.jobs
    assert job.first_sent == made_at / 1000
    assert job.message_attributes() == row.attributes


@committing
def test_a_message_that_has_waited_too_long_in_the_outbox_is_not_run(settings: Any) -> None:
    courier = use_outbox(settings)
    courier.away = {"default"}
    handle = perishable.execute_on_commit(number=1)
    [row] = rows()
    row.attributes[FIRST_SENT_ATTRIBUTE] = str(int(row.attributes[FIRST_SENT_ATTRIBUTE]) - 3_601_000)
    OutboxMessage.objects.update(due_at=DatabaseNow(), attributes=row.attributes)
    courier.away = set()
    outbox().relay()
    handler({"Records": courier.take_records()}, None)
    record = TaskRecord.objects.get(pk=handle.message_id)
    assert record.status == "FAILED"
    assert "expires_in is 3600 s" in (record.traceback or "")


# How a message stands


@committing
@pytest.mark.parametrize("fails", [False, True], ids=["SUCCESS", "FAILED"])
def test_a_handle_tells_how_its_message_stands_from_the_call_to_the_end(settings: Any, fails: bool) -> None:
    courier = use_outbox(settings)
    courier.away = {"default"}
    seen: list[str | None] = []
    with transaction.atomic():
        handle = ask_for_own_status.execute_on_commit(fails=fails)
        seen.append(handle.status)
    seen.append(handle.status)
    courier.away = set()
    OutboxMessage.objects.update(due_at=DatabaseNow())
    outbox().relay()
    seen.append(handle.status)
    handler({"Records": courier.take_records()}, None)
    seen.append(handle.status)
    assert seen == [None, "WAITING", None, "FAILED" if fails else "SUCCESS"]


@lambda_task
def ask_for_own_status(*, fails: bool) -> None:
    if fails:
        raise Failure


@committing
def test_the_record_says_how_a_message_stands_even_if_it_is_still_in_the_outbox(settings: Any) -> None:
    use_outbox(settings).away = {"default"}
    handle = note.execute_on_commit(number=1)
    TaskRecord.objects.create(id=handle.message_id, task_name=note.name, status="RUNNING")
    assert handle.status == "RUNNING"


@committing
def test_a_message_that_is_begun_while_its_handle_is_asked_is_found(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_outbox(settings).away = {"default"}
    handle = note.execute_on_commit(number=1)

    def begin(*_: object, **__: object) -> None:
        OutboxMessage.objects.all().delete()
        TaskRecord.objects.create(id=handle.message_id, task_name=note.name, status="RUNNING")

    monkeypatch.setattr(OutboxBackend, "status", begin)
    assert handle.status == "RUNNING"


@committing
def test_without_the_outbox_a_handle_knows_what_the_records_know(settings: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = COURIER
    courier = get_backend()
    assert isinstance(courier, Courier)
    handle = note.execute_on_commit(number=1)
    assert handle.status is None
    handler({"Records": courier.take_records()}, None)
    assert handle.status == "SUCCESS"


@on_each_database
def test_a_handle_asks_the_database_that_its_message_is_kept_in(database: str, courier: Courier) -> None:
    courier.refuses = {1}
    assert note.using(database=database).execute_on_commit(number=1).status == "DEAD"


# Which database


@pytest.fixture
def several(settings: Any) -> Courier:
    return use_outbox(settings, "default", "sqlite")


on_two_databases = pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)


@on_two_databases
def test_a_message_is_kept_in_the_transaction_that_is_open(several: Courier) -> None:
    several.away = {"default"}
    assert note.execute_on_commit(number=1).database == "default"
    with transaction.atomic(using="sqlite"):
        assert note.execute_on_commit(number=2).database == "sqlite"
        with transaction.atomic():
            assert note.execute_on_commit(number=3).database == "default"
            assert SQSLambdaTask.model_validate(note.serialize(number=4)).execute_on_commit().database == "default"
        assert SQSLambdaTask.model_validate(note.serialize(number=5)).execute_on_commit().database == "sqlite"
    assert numbers("default") == [1, 3, 4]
    assert numbers("sqlite") == [2, 5]


@on_two_databases
def test_using_names_the_database_whatever_is_open(several: Courier) -> None:
    with transaction.atomic():
        handle = note.using(database="sqlite").execute_on_commit(number=1)
        assert several.calls == [[1]]  # nothing is open there
        with transaction.atomic(using="sqlite"):
            note.using(database="sqlite", delay=3).using(queue="other").execute_on_commit(number=2)
            note.using(database="sqlite").using(database="default").execute_on_commit(number=3)
            assert several.calls == [[1]]
        assert several.calls == [[1], [2]]
    assert several.calls == [[1], [2], [3]]
    assert handle.database == "sqlite"
    assert note.database is None


@on_two_databases
def test_each_message_lives_and_dies_with_its_own_transaction(several: Courier) -> None:
    several.away = {"default"}
    with transaction.atomic():
        with rolled_back("sqlite"):
            note.using(database="default").execute_on_commit(number=1)
            note.using(database="sqlite").execute_on_commit(number=2)
        with transaction.atomic(using="sqlite"):
            note.using(database="sqlite").execute_on_commit(number=3)
        assert (numbers("default"), numbers("sqlite")) == ([], [3])
    assert (numbers("default"), numbers("sqlite")) == ([1], [3])


@on_two_databases
def test_where_several_others_are_open_it_is_default(several: Courier, settings: Any) -> None:
    if "postgres" not in settings.DATABASES:
        pytest.skip("only one other database")
    with transaction.atomic(using="sqlite"):
        connections["postgres"].in_atomic_block = True
        connections["postgres"].atomic_blocks.append(transaction.Atomic("postgres", True, False))
        try:
            assert note.execute_on_commit(number=1).database == "default"
        finally:
            connections["postgres"].in_atomic_block = False
            connections["postgres"].atomic_blocks.clear()


class TestInADjangoTestCase(TestCase):
    """Its own transactions, on every alias that it may use, are not the caller's."""

    databases: ClassVar = {"default", "sqlite"}

    def setUp(self) -> None:
        options = {"transport": COURIER, "databases": ["default", "sqlite"]}
        override = override_settings(LAMBDA_TASKS_BACKEND={"BACKEND": OUTBOX, "OPTIONS": options})
        override.enable()
        self.addCleanup(override.disable)

    @property
    def courier(self) -> Courier:
        courier = outbox().transport
        assert isinstance(courier, Courier)
        return courier

    def test_the_transactions_of_the_test_do_not_count(self) -> None:
        assert note.execute_on_commit(number=1).database == "default"
        with transaction.atomic(using="sqlite"):
            assert note.execute_on_commit(number=2).database == "sqlite"
            with transaction.atomic():
                assert note.execute_on_commit(number=3).database == "default"
        assert self.courier.calls == []
        assert numbers() == numbers("sqlite") == []

    def test_captured_callbacks_keep_and_send(self) -> None:
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            note.execute_on_commit(number=1)
            with rolled_back("default"):
                note.execute_on_commit(number=2)
            note.execute_on_commit(number=3)
        assert len(callbacks) == 2
        assert self.courier.calls == [[1, 3]]
        assert numbers() == []

    def test_what_cannot_be_sent_stays_in_the_outbox(self) -> None:
        self.courier.away = {"default"}
        with self.captureOnCommitCallbacks(execute=True):
            note.execute_on_commit(number=1)
        with self.captureOnCommitCallbacks(using="sqlite", execute=True):
            note.using(database="sqlite").execute_on_commit(number=2)
        assert (numbers(), numbers("sqlite")) == ([1], [2])

    def test_captured_callbacks_that_nobody_calls_keep_nothing(self) -> None:
        with self.captureOnCommitCallbacks() as callbacks:
            note.execute_on_commit(number=1)
        assert numbers() == []
        callbacks[0]()
        callbacks[0]()
        assert self.courier.calls == [[1]]

    def test_an_inner_capture_keeps_and_sends_its_own(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            note.execute_on_commit(number=1)
            with self.captureOnCommitCallbacks(execute=True):
                note.execute_on_commit(number=2)
            assert self.courier.calls == [[2]]
        assert self.courier.calls == [[2], [1]]
        assert numbers() == []


# The settings


class TestSettings:
    def test_the_setting_puts_the_outbox_before_whatever_transport_is_chosen(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": COURIER, "OPTIONS": {"max_delay": 5}}
        assert isinstance(get_backend(), Courier)
        settings.LAMBDA_TASKS_OUTBOX = True
        assert isinstance(get_backend(), OutboxBackend)
        assert isinstance(outbox().transport, Courier)
        assert outbox().transport.max_delay == 5
        assert outbox().max_delay == MAX_KEPT_DELAY
        settings.LAMBDA_TASKS_OUTBOX = False
        assert isinstance(get_backend(), Courier)

    def test_one_that_is_chosen_by_its_path_is_not_wrapped_again(self, settings: Any) -> None:
        use_outbox(settings, "default", "sqlite")
        settings.LAMBDA_TASKS_OUTBOX = True
        assert isinstance(outbox().transport, Courier)
        assert outbox().databases == ["default", "sqlite"]

    def test_its_transport_is_sqs_unless_another_is_named(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = OUTBOX
        assert isinstance(outbox().transport, SQSBackend)

    @pytest.mark.parametrize(("transport", "leaves"), [(COURIER, True), (IN_HOUSE, False)])
    def test_whether_messages_leave_the_process_is_up_to_the_transport(
        self, settings: Any, transport: str, leaves: bool
    ) -> None:
        use_outbox(settings, transport=transport)
        assert outbox().leaves_process is leaves

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"transport": OUTBOX}, f"transport is '{OUTBOX}'; name a transport that is no outbox itself"),
            ({"transport": "lambda_tasks.locks.memory.MemoryLock"}, "name a transport that is no outbox itself"),
            ({"transport": "shop.Missing"}, "names 'shop.Missing', which cannot be imported"),
            (
                {"transport": {"BACKEND": COURIER, "OPTIONS": {"speed": 1}}},
                r"the OPTIONS \['speed'\], which it refuses",
            ),
            ({"transport": {"BACKEND": COURIER, "SPEED": 1}}, "transport has the keys .*'SPEED'"),
            ({"transport": None}, "transport is None; give a dotted path"),
            ({"transport": {}}, "transport is {}; give a dotted path"),
            ({"transport": COURIER, "databases": "default"}, "databases is 'default'; give a list of aliases"),
            ({"transport": COURIER, "databases": []}, r"databases is \[\]; give a list of aliases"),
            ({"table": "outbox"}, r"the OPTIONS \['table'\], which it refuses"),
        ],
        ids=str,
    )
    def test_options_that_cannot_work_are_refused_by_name(self, settings: Any, options: Any, sentence: str) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": options}
        with pytest.raises(InvalidSetting, match=sentence) as caught:
            get_backend()
        assert "LAMBDA_TASKS_BACKEND" in str(caught.value)
        assert [message.id for message in check_strategies()] == ["lambda_tasks.E004"]

    def test_the_database_of_the_records_always_has_an_outbox(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": "sqlite"}}
        use_outbox(settings, "default")
        assert outbox().databases == ["default", "sqlite"]
        use_outbox(settings, "sqlite")
        assert outbox().databases == ["sqlite"]

    def test_without_a_list_the_routers_choose(self, settings: Any) -> None:
        use_outbox(settings)
        assert outbox().databases == ["default"]
        settings.DATABASE_ROUTERS = [Router()]
        assert outbox().databases == ["sqlite", "default"]

    def test_a_database_without_an_outbox_is_refused_at_the_call_with_the_remedy(self, settings: Any) -> None:
        use_outbox(settings, "default")
        with pytest.raises(UnknownDatabase) as caught:
            note.using(database="sqlite").execute_on_commit(number=1)
        assert isinstance(caught.value, ImproperlyConfigured)
        assert str(caught.value) == (
            f"{note.name} would be kept in 'sqlite', which has no outbox (there are: default). Add it to the option "
            '`databases` of OutboxBackend, and migrate it; or say using(database="default") if the message is to leave '
            "with that one's commit."
        )

    def test_an_alias_that_is_not_in_the_settings_is_refused_by_using(self) -> None:
        with pytest.raises(
            ValueError, match=r"^database is 'shop'; give an alias in DATABASES \(.*default.*sqlite.*\)"
        ):
            note.using(database="shop")


class Router:
    """Keeps the outbox in `sqlite`, and its table out of `mariadb`."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "sqlite" if model is OutboxMessage else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "lambda_tasks" and db == "default" else None


class TestChecks:
    def test_an_outbox_that_can_work_is_nothing_to_talk_about(self, settings: Any) -> None:
        use_outbox(settings, "default", "sqlite")
        assert outbox().check() == []
        assert check_strategies() == []

    def test_an_alias_that_is_not_in_the_settings_is_an_error(self, settings: Any) -> None:
        use_outbox(settings, "default", "shop")
        [message] = check_strategies()
        assert isinstance(message, Error)
        assert message.id == "lambda_tasks.E004"
        assert message.msg.startswith(
            "LAMBDA_TASKS_BACKEND gives the outbox database 'shop', which is not in DATABASES (default, "
        )

    def test_a_database_on_which_the_routers_forbid_the_table_is_an_error(self, settings: Any) -> None:
        use_outbox(settings)
        settings.DATABASE_ROUTERS = [Router()]
        [message] = check_strategies()
        assert message.id == "lambda_tasks.E004"
        assert message.msg.startswith(
            "The outbox is to be kept in 'default', where DATABASE_ROUTERS do not allow its table; let allow_migrate()"
        )

    def test_what_the_transport_has_to_say_is_said_too(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        courier = use_outbox(settings)
        trouble = Error("the courier is ill", id="tests.E001")
        monkeypatch.setattr(courier, "check", lambda: [trouble])
        assert check_strategies() == [trouble]


# Eager mode


@lambda_task
def leave(*, name: str) -> None:
    Effect.objects.create(name=name)


@committing
def test_eager_mode_wins_over_the_outbox(settings: Any) -> None:
    settings.LAMBDA_TASKS_OUTBOX = True
    settings.LAMBDA_TASKS_EAGER = True
    with CaptureQueriesContext(connections["default"]) as queries, transaction.atomic():
        handle = leave.execute_on_commit(name="a")
    assert handle.status == "SUCCESS"
    assert not any(OutboxMessage._meta.db_table in query["sql"] for query in queries)


@committing
def test_a_long_delay_is_not_waited_for_in_eager_mode(settings: Any) -> None:
    settings.LAMBDA_TASKS_OUTBOX = True
    settings.LAMBDA_TASKS_EAGER = True
    assert leave.using(delay=86_400).execute_on_commit(name="a").status == "SUCCESS"
    with pytest.raises(ValueError, match="delay is 31536001"):
        leave.using(delay=MAX_KEPT_DELAY + 1)


@on_each_database
def test_tasks_that_run_in_this_process_run_outside_of_the_outboxs_transaction(database: str, settings: Any) -> None:
    use_outbox(settings, database, transport="lambda_tasks.backends.eager.EagerBackend")
    with transaction.atomic(using=database):
        handle = leave_if_free.using(database=database).execute_on_commit(alias=database)
    assert rows(database) == []
    record = TaskRecord.objects.get(pk=handle.message_id)
    assert record.result is False


@lambda_task
def leave_if_free(*, alias: str) -> bool:
    # The transaction of the task itself is on `default`.
    return alias != "default" and connections[alias].in_atomic_block


# Retries


class Busy(Exception):
    """What a task meets that wants to be retried."""


@lambda_task(retry_on=[Busy], retry_delay=40)
def busy(*, number: int) -> None:
    raise Busy


def run(courier: Courier) -> list[str]:
    """Have a worker run what was sent, and return the ids that it hands back."""
    answer = handler({"Records": courier.take_records()}, None)
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


@pytest.fixture
def records_in(database: str, settings: Any) -> Courier:
    """An outbox, and records, in `database`."""
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    return use_outbox(settings, database)


@on_each_database
def test_retrying_and_the_retry_are_one_transaction(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = busy.using(database=database).execute_on_commit(number=1)

    def look() -> object:
        record = TaskRecord.objects.using(database).get(pk=first.message_id)
        return record.status, [str(row.pk) for row in rows(database)], connections[database].get_autocommit()

    retry = retry_id(first.message_id, 1)
    with seen_before_commit(monkeypatch, look) as seen:
        assert run(records_in) == []
    assert seen == [("RETRYING", [retry], False)]
    assert [job.message_id for job in records_in.jobs] == [retry]
    assert rows(database) == []


@on_each_database
def test_a_retry_that_cannot_be_kept_leaves_the_message_on_the_queue(database: str, records_in: Courier) -> None:
    first = busy.using(database=database).execute_on_commit(number=1)

    def refuse_insert(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("INSERT") and OutboxMessage._meta.db_table in sql:
            raise DatabaseError("no room")
        return execute(sql, params, many, context)

    with connections[database].execute_wrapper(refuse_insert):
        assert run(records_in) == [first.message_id]
    assert TaskRecord.objects.using(database).get(pk=first.message_id).status == "RUNNING"
    assert rows(database) == []


@on_each_database
def test_a_retry_is_not_kept_by_a_worker_that_has_lost_its_claim(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = busy.using(database=database).execute_on_commit(number=1)

    def reached(point: str) -> None:
        if point == "settle:before_write":
            TaskRecord.objects.using(database).update(claim=new_message_id())

    with monkeypatch.context() as patch:
        patch.setattr(points, "reached", reached)
        assert run(records_in) == [first.message_id]
    assert rows(database) == []
    assert records_in.jobs == []
    assert TaskRecord.objects.using(database).get(pk=first.message_id).status == "RUNNING"


@on_each_database
def test_a_retry_that_cannot_be_sent_waits_in_the_outbox_and_the_message_is_acknowledged(
    database: str, records_in: Courier
) -> None:
    first = busy.using(database=database).execute_on_commit(number=1)
    records_in.away = {"default"}
    assert run(records_in) == []
    [row] = rows(database)
    assert str(row.pk) == retry_id(first.message_id, 1)
    assert row.attempts == 1
    assert first.status == "RETRYING"


@on_each_database
def test_a_retry_that_the_transport_refuses_is_a_failure(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = busy.using(database=database).execute_on_commit(number=1)

    def refuse(job: Job) -> None:
        raise InvalidArguments("no retries any more")

    monkeypatch.setattr(records_in, "validate", refuse)
    assert run(records_in) == []
    record = TaskRecord.objects.using(database).get(pk=first.message_id)
    assert record.status == "FAILED"
    assert "no retries any more" in (record.traceback or "")
    assert rows(database) == []


@on_each_database
def test_a_message_that_is_kept_again_is_one_row_that_begins_anew(database: str, courier: Courier) -> None:
    job = Job.of_call(note._call((), {"number": 1}), queue="default", delay=0, task=note, database=database)
    neighbour = Job.of_call(note._call((), {"number": 2}), queue="default", delay=0, task=note, database=database)
    outbox().keep([job], using=database)
    messages = OutboxMessage.objects.using(database)
    messages.update(due_at=None, attempts=9, error="dead", holder=new_message_id())
    with transaction.atomic(using=database):
        outbox().keep([job, neighbour], using=database)
    assert numbers(database) == [1, 2]
    revived = messages.get(pk=job.message_id)
    assert (revived.attempts, revived.error, revived.holder) == (0, "", None)
    assert outbox().relay() == Relayed(sent=2)


@on_each_database
def test_what_a_task_sends_itself_is_kept_with_its_success(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = send_more.using(database=database).execute_on_commit(alias=database)

    def look() -> object:
        return TaskRecord.objects.using(database).get(pk=first.message_id).status, numbers(database)

    with seen_before_commit(monkeypatch, look) as seen:
        assert run(records_in) == []
    assert seen == [("SUCCESS", [5])]
    assert records_in.sent == [5]


@lambda_task
def send_more(*, alias: str) -> None:
    note.using(database=alias).execute_on_commit(number=5)
    with suppress(Failure), transaction.atomic(using=alias):
        note.using(database=alias).execute_on_commit(number=6)
        raise Failure


# Lost tasks


@on_each_database
def test_reaping_keeps_what_it_sends_again_in_its_transaction(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = DatabaseNow() - timedelta(days=1)
    ids = [new_message_id() for _ in range(3)]
    for number, message_id in enumerate(ids):
        TaskRecord.objects.using(database).create(
            id=message_id,
            root_id=message_id,
            task_name=note.name,
            kwargs={"number": number},
            queue="default",
            claim=new_message_id(),
            start_time=long_ago,
            lease_until=long_ago,
        )
    records_in.away = {"default"}
    with rolled_back(database):
        assert lost.reap().sent_again == 3
    assert (rows(database), records_in.calls) == ([], [])

    with seen_before_commit(monkeypatch, lambda: numbers(database)) as seen:
        assert lost.reap().sent_again == 3
    assert seen == [[0, 1, 2]]
    assert [str(row.pk) for row in rows(database)] == ids


# The rest of what a transport does


def test_what_is_handed_back_is_postponed_by_the_transport(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    postponed: list[Sequence[Any]] = []
    courier = use_outbox(settings)
    monkeypatch.setattr(courier, "postpone", postponed.append)
    outbox().postpone([({}, 5)])
    assert postponed == [[({}, 5)]]


@lambda_task(sensitive=("card",))
def charge(*, card: str) -> None: ...


@on_each_database
class TestSensitiveArgumentsInErrors:
    SECRET = "4000-0000-0000-0002"

    @pytest.mark.parametrize("is_known", [True, False])
    def test_are_masked_in_the_row_and_in_the_log(
        self, database: str, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, is_known: bool
    ) -> None:
        courier = use_outbox(settings, database)

        def quote(jobs: Any, *, taken: Any, failed: Any, refused: Any) -> None:
            for job in jobs:
                failed(job, OSError(f"I do not like {job.message.kwargs['card']}"))

        monkeypatch.setattr(courier, "send_each", quote)
        if not is_known:  # to a process that relays and has not imported it
            monkeypatch.setattr("lambda_tasks.registry.known_task", lambda name: None)
        charge.using(database=database).execute_on_commit(card=self.SECRET)
        later(5, database)
        outbox().relay()
        [row] = rows(database)
        assert row.attempts == 2
        assert row.error == "OSError: I do not like ********************"
        assert self.SECRET not in caplog.text
