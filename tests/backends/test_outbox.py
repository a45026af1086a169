"""The outbox up to the first attempt to send: the effect of commits and rollbacks, and what the caller sees."""

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
from django.db.models import F
from django.test import TestCase, override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks import failpoints
from lambda_tasks.backends import outbox as outbox_module
from lambda_tasks.backends.base import Unsent
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.relay import Relayed
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import (
    AmbiguousTransaction,
    InvalidArguments,
    InvalidSetting,
    UnknownDatabase,
    UnknownQueue,
)
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, SendState
from lambda_tasks.messages import SQSLambdaTask
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations import reaping as lost
from lambda_tasks.operations.checks import check_strategies
from lambda_tasks.settings import MAX_KEPT_DELAY
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import FIRST_SENT_ATTRIBUTE
from lambda_tasks.wire.ids import new_message_id, retry_id
from lambda_tasks.wire.invocation import in_ascii
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
    """An exception from the code around a call."""


@pytest.fixture
def courier(database: str, settings: Any) -> Courier:
    return use_outbox(settings, database)


def send(number: int, database: str) -> str:
    return note.using(database=database).execute_on_commit(number=number).message_id


@contextmanager
def rolled_back(database: str, **options: Any) -> Iterator[None]:
    """Run an atomic block that fails at its end."""
    with suppress(Failure), transaction.atomic(using=database, **options):
        yield
        raise Failure


@contextmanager
def seen_before_commit(monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> Iterator[list[object]]:
    """Call `look` after the messages are inserted and before COMMIT, and collect its results."""
    seen: list[object] = []

    def reached(point: str) -> None:
        if point == "outbox:after_insert":
            seen.append(look())

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "reached", reached)
        yield seen


@on_each_database
def test_message_is_due_immediately(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite compares times as strings, so a fast machine needs both in the same form to find its own message due."""

    def look() -> object:
        messages = OutboxMessage.objects.using(database)
        return messages.filter(due_at__lte=F("created_at"), due_at__gte=F("created_at")).count()

    with seen_before_commit(monkeypatch, look) as seen, transaction.atomic(using=database):
        send(1, database)
    assert seen == [1]
    assert courier.sent == [1]


@lambda_task
def translate(*, text: str) -> None: ...


@on_each_database
def test_message_in_any_script_is_sent_compactly(database: str, courier: Courier) -> None:
    """A row may be stored in ASCII, since the table of an older MySQL database may lack characters."""
    text = "注é😀\uffff\u2028"
    for delay in (0, 5_000):
        translate.using(database=database, delay=delay).execute_on_commit(text=text)
    [row] = rows(database)
    assert row.body.isascii() == (connections[database].vendor == "mysql")
    outbox().send_now([row.pk], using=database)
    for job in courier.jobs:
        assert job.body == job.message.to_body()
        assert "注é😀" in job.body
        assert job.message.kwargs == {"text": text}
    assert len(courier.jobs) == 2


@on_each_database
def test_escaped_row_is_sent_compactly(database: str, courier: Courier) -> None:
    """An earlier version has stored it."""
    translate.using(database=database, delay=5_000).execute_on_commit(text="注")
    [row] = rows(database)
    OutboxMessage.objects.using(database).update(body=in_ascii(row.body))
    outbox().send_now([row.pk], using=database)
    assert [job.body for job in courier.jobs] == [job.message.to_body() for job in courier.jobs]
    assert "注" in courier.jobs[0].body


@pytest.mark.django_db
def test_bytes_of_one_insert_are_limited() -> None:
    rows_of = [{"body": character * 30, "attributes": {}} for character in ("a", "注")]
    default = connections["default"]
    assert [len(chunk) for chunk in outbox_module._chunks([rows_of[0]] * 3, default, 100)] == [3]
    assert [len(chunk) for chunk in outbox_module._chunks([rows_of[1]] * 3, default, 100)] == [1, 1, 1]
    assert outbox_module._MAX_BYTES == 4 * 1024 * 1024


@pytest.mark.databases("sqlite", transaction=True)
def test_times_on_sqlite_have_its_clocks_form(database: str, courier: Courier) -> None:
    """SQLite compares them as strings: with more digits, a message is not due in its own millisecond."""
    translate.using(database=database, delay=5_000).execute_on_commit(text="a")
    with connections[database].cursor() as cursor:
        cursor.execute(f"SELECT LENGTH(due_at), LENGTH(run_at), LENGTH(created_at) FROM {OutboxMessage._meta.db_table}")
        assert cursor.fetchone() == (len("2026-11-30 13:05:22.123"),) * 3


@pytest.mark.databases("postgres", "mariadb", transaction=True)
@pytest.mark.parametrize("text", ["a", "it's a \\ and a \"", "注é" * 50, "'\\\"" * 100])
def test_statements_have_at_most_the_given_bytes(database: str, settings: Any, text: str) -> None:
    use_outbox(settings, database)
    settings.LAMBDA_TASKS_BACKEND["OPTIONS"]["max_statement_bytes"] = 4_000
    settings.LAMBDA_TASKS_BACKEND = dict(settings.LAMBDA_TASKS_BACKEND)
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for delay in (0, 30_000) * 6:
            translate.using(database=database, delay=delay).execute_on_commit(text=text)
    sizes = [len(query["sql"].encode()) for query in queries if query["sql"].startswith("INSERT")]
    assert len(sizes) > 1
    assert 2_000 < max(sizes) <= 4_000
    assert OutboxMessage.objects.using(database).filter(run_at__isnull=False).count() == 6


@pytest.mark.parametrize("value", [2_047, -1, "16000", True])
def test_invalid_limit_of_statements_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="max_statement_bytes must be an integer of at least 2048, not "):
        OutboxBackend(transport="lambda_tasks.backends.memory.MemoryBackend", max_statement_bytes=value)


# Storing messages with a transaction


@on_each_database
def test_message_is_a_row_until_it_is_sent(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    """The INSERT is in the caller's transaction."""

    def look() -> object:
        return numbers(database), [*courier.calls], connections[database].get_autocommit()

    with seen_before_commit(monkeypatch, look) as seen, transaction.atomic(using=database):
        for number in (1, 2, 3):
            send(number, database)
        assert numbers(database) == []  # inserted only before the COMMIT
    assert seen == [([1, 2, 3], [], False)]
    assert courier.calls == [[1, 2, 3]]
    assert numbers(database) == []


@on_each_database
def test_row_has_its_message_queue_and_times(database: str, courier: Courier) -> None:
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
def test_rollback_leaves_no_message(database: str, courier: Courier) -> None:
    with rolled_back(database):
        send(1, database)
        with transaction.atomic(using=database):
            send(2, database)
    assert numbers(database) == []
    assert courier.calls == []


@on_each_database
def test_savepoint_rollback_discards_only_its_messages(database: str, courier: Courier) -> None:
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
def test_manual_savepoint_treats_messages_like_callbacks(database: str, courier: Courier) -> None:
    called: list[int] = []
    with transaction.atomic(using=database):
        # The name is from Django 6.1.
        set_savepoint = getattr(transaction, "savepoint_create", None) or transaction.savepoint
        mark = set_savepoint(using=database)
        transaction.on_commit(lambda: called.append(1), using=database)
        send(1, database)
        transaction.savepoint_rollback(mark, using=database)
    assert courier.sent == called


@on_each_database
def test_callers_writes_and_messages_commit_together(database: str, courier: Courier) -> None:
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
def test_failed_insert_rolls_back_the_caller(database: str, courier: Courier) -> None:
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
    send(2, database)  # later messages are sent as usual
    assert courier.calls == [[2]]


@on_each_database
def test_failed_commit_sends_nothing(database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DatabaseError("a constraint that is checked at the end")

    with monkeypatch.context() as patch:
        patch.setattr(connections[database], "_commit", fail)
        with pytest.raises(DatabaseError, match="at the end"), transaction.atomic(using=database):
            send(1, database)
    assert numbers(database) == []
    assert courier.calls == []


@on_each_database
def test_task_outside_a_transaction_is_sent_immediately(database: str, courier: Courier) -> None:
    send(1, database)
    assert (courier.calls, numbers(database)) == ([[1]], [])
    courier.away = {"default"}
    send(2, database)
    assert (courier.calls, numbers(database)) == ([[1], [2]], [2])


@on_each_database
def test_manual_commit_keeps_its_messages(database: str, courier: Courier) -> None:
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
        assert numbers(database) == [2]  # Django drops the callback here, but the row is committed
        with transaction.atomic(using=database):
            send(3, database)
        transaction.commit(using=database)
        assert courier.calls == []  # Django calls the callbacks after autocommit is on again
        transaction.commit(using=database)
    finally:
        transaction.rollback(using=database)
        transaction.set_autocommit(True, using=database)
    assert numbers(database) == [2, 3]
    assert outbox().relay() == Relayed(sent=2)


@on_each_database
def test_callbacks_after_a_manual_commit_send_messages(database: str, courier: Courier) -> None:
    """The messages are sent when Django calls the callbacks."""
    transaction.set_autocommit(False, using=database)
    with transaction.atomic(using=database):
        send(1, database)
    transaction.commit(using=database)
    assert numbers(database) == [1]
    transaction.commit(using=database)  # also ends the transaction that `numbers` started
    transaction.set_autocommit(True, using=database)
    assert (courier.calls, numbers(database)) == ([[1]], [])


@on_each_database
def test_thousand_tasks_are_sent(database: str, courier: Courier) -> None:
    with transaction.atomic(using=database):
        for number in range(1_000):
            send(number, database)
    assert courier.calls == [list(range(start, start + 100)) for start in range(0, 1_000, 100)]
    assert numbers(database) == []


@on_each_database
def test_connection_closed_in_a_transaction_leaves_no_message(database: str, courier: Courier) -> None:
    with rolled_back(database):
        send(1, database)
        connections[database].close()
    send(2, database)
    assert courier.calls == [[2]]
    assert numbers(database) == []


# Transport errors do not reach the caller


@on_each_database
def test_transport_errors_do_not_reach_the_caller(
    database: str, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    """Other callbacks still run."""
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
        f"Messages stay in the outbox of {database!r} and are retried (2 of {note.name}): "
        "ConnectionError: the queue default is away"
    )


@on_each_database
def test_raising_foreign_callback_loses_no_message(database: str, courier: Courier) -> None:
    def fail() -> None:
        raise Failure

    with pytest.raises(Failure), transaction.atomic(using=database):
        transaction.on_commit(fail, using=database)
        send(1, database)
    assert (courier.calls, numbers(database)) == ([[1]], [])


@on_each_database
def test_message_sent_by_a_callback_is_kept(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    with transaction.atomic(using=database):
        transaction.on_commit(lambda: send(10, database), using=database)
        send(1, database)
    assert courier.calls == [[10], [1]]
    assert sorted(numbers(database)) == [1, 10]


@on_each_database
def test_database_error_after_the_commit_is_logged(
    database: str, courier: Courier, caplog: pytest.LogCaptureFixture
) -> None:
    """The message waits in the outbox."""

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
    assert record.getMessage() == f"The outbox of {database!r} keeps its due messages (1) for a relay to send."
    assert record.exc_info is not None
    assert numbers(database) == [1]
    OutboxMessage.objects.using(database).update(due_at=DatabaseNow())  # on SQLite it was postponed
    assert outbox().relay() == Relayed(sent=1)


class Crash(BaseException):
    """Simulates the end of the process."""


@contextmanager
def dies_after_commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Simulate a process that ends between COMMIT and the first request."""

    def reached(point: str) -> None:
        if point == "enqueue:after_commit":
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(failpoints, "reached", reached)
        yield


@on_each_database
def test_relay_sends_after_a_crash_before_sending(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dies_after_commit(monkeypatch), transaction.atomic(using=database):
        send(1, database)
    assert (courier.calls, numbers(database)) == ([], [1])
    assert outbox().relay() == Relayed(sent=1)
    assert courier.sent == [1]


@on_each_database
def test_caller_stops_after_a_failed_batch(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    with transaction.atomic(using=database):
        for number in range(250):
            send(number, database)
    assert courier.calls == [list(range(100))]
    assert [row.attempts for row in rows(database)] == [1] * 100 + [0] * 150
    courier.away = set()
    assert outbox().relay() == Relayed(sent=150)  # the first hundred are postponed


@on_each_database
def test_refused_message_is_dead_and_others_are_sent(
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
    assert [handle.status for handle in handles] == ["SENT", "DEAD", "WAITING", "SENT"]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            logging.WARNING,
            (
                f"Messages stay in the outbox of {database!r} and are retried (1 of {note.name}): "
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


# Errors at the call


@on_each_database
def test_transport_refuses_inside_the_transaction(database: str, courier: Courier) -> None:
    with transaction.atomic(using=database):
        with pytest.raises(UnknownQueue):
            note.using(database=database, queue="nowhere").execute_on_commit(number=1)
        send(2, database)
    assert courier.calls == [[2]]


@on_each_database
def test_message_too_long_for_sqs_is_refused(database: str, settings: Any) -> None:
    use_outbox(
        settings,
        database,
        transport={"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": {"max_message_bytes": 100}},
    )
    with pytest.raises(ValueError, match="must have at most 100 bytes"), transaction.atomic(using=database):
        send(1, database)
    assert numbers(database) == []


# Delivery


@on_each_database
@pytest.mark.parametrize("late", [False, True], ids=["after the commit", "from the relay"])
def test_sent_message_is_identical_without_the_outbox(
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
def test_plugins_are_notified_once_after_the_deletion(database: str, settings: Any) -> None:
    notified: list[tuple[int, int]] = []

    class Listener:
        @hookimpl
        def lambda_task_sent(self, job: Job) -> None:
            notified.append((number_of(job), len(rows(database))))

    courier = use_outbox(settings, database, plugins=[Listener()])
    courier.fails = {2}
    with transaction.atomic(using=database):
        for number in (1, 2, 3):
            send(number, database)
    assert notified == [(1, 1), (3, 1)]
    courier.fails = set()
    OutboxMessage.objects.using(database).update(due_at=DatabaseNow())
    outbox().relay()
    assert notified == [(1, 1), (3, 1), (2, 0)]


@on_each_database
def test_raising_listener_does_not_affect_messages(database: str, settings: Any) -> None:
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
def test_time_in_the_outbox_counts_towards_expiry(
    database: str, courier: Courier, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    # An id contains the time of the call, and never decreases.
    monkeypatch.setattr(ids, "_last_moment", int((time.time() + ahead) * 1000) << 12)
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
def test_message_that_expired_in_the_outbox_fails(settings: Any) -> None:
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


# The state of a message


@committing
def test_kept_message_is_not_pending(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of a failed request does so, until the garbage collector has run."""
    referred: list[object] = []
    wait_for = SendState.wait_for

    def refer(state: SendState, callback: object) -> None:
        referred.append(callback)
        wait_for(state, callback)

    monkeypatch.setattr(SendState, "wait_for", refer)
    use_outbox(settings).away = {"default"}
    handle = note.execute_on_commit(number=1)
    assert (len(referred), handle.status) == (1, "WAITING")


@committing
@pytest.mark.parametrize("fails", [False, True], ids=["SUCCESS", "FAILED"])
def test_handle_shows_each_state_of_its_message(settings: Any, fails: bool) -> None:
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
    assert seen == ["PENDING", "WAITING", None, "FAILED" if fails else "SUCCESS"]


@lambda_task
def ask_for_own_status(*, fails: bool) -> None:
    if fails:
        raise Failure


@committing
def test_record_takes_precedence_over_the_outbox(settings: Any) -> None:
    use_outbox(settings).away = {"default"}
    handle = note.execute_on_commit(number=1)
    TaskRecord.objects.create(id=handle.message_id, task_name=note.name, status="RUNNING")
    assert handle.status == "RUNNING"


@committing
def test_handle_finds_a_message_claimed_meanwhile(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use_outbox(settings).away = {"default"}
    handle = note.execute_on_commit(number=1)

    def begin(*_: object, **__: object) -> None:
        OutboxMessage.objects.all().delete()
        TaskRecord.objects.create(id=handle.message_id, task_name=note.name, status="RUNNING")

    monkeypatch.setattr(OutboxBackend, "status", begin)
    assert handle.status == "RUNNING"


@committing
def test_handle_reads_only_records_without_the_outbox(settings: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = COURIER
    courier = get_backend()
    assert isinstance(courier, Courier)
    handle = note.execute_on_commit(number=1)
    assert handle.status == "SENT"
    handler({"Records": courier.take_records()}, None)
    assert handle.status == "SUCCESS"


@on_each_database
def test_handle_queries_the_database_of_its_message(database: str, courier: Courier) -> None:
    courier.refuses = {1}
    assert note.using(database=database).execute_on_commit(number=1).status == "DEAD"


# The choice of the database


@pytest.fixture
def several(settings: Any) -> Courier:
    return use_outbox(settings, "default", "sqlite")


on_two_databases = pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)


@on_two_databases
def test_message_is_kept_in_the_open_transaction(several: Courier) -> None:
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
def test_using_overrides_the_open_transactions(several: Courier) -> None:
    with transaction.atomic():
        handle = note.using(database="sqlite").execute_on_commit(number=1)
        assert several.calls == [[1]]  # no transaction is open there
        with transaction.atomic(using="sqlite"):
            note.using(database="sqlite", delay=3).using(queue="other").execute_on_commit(number=2)
            note.using(database="sqlite").using(database="default").execute_on_commit(number=3)
            assert several.calls == [[1]]
        assert several.calls == [[1], [2]]
    assert several.calls == [[1], [2], [3]]
    assert handle.database == "sqlite"
    assert note.database is None


@on_two_databases
def test_each_message_depends_on_its_own_transaction(several: Courier) -> None:
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
def test_several_open_transactions_require_a_database(several: Courier, settings: Any) -> None:
    if "postgres" not in settings.DATABASES:
        pytest.skip("only one other database")
    with transaction.atomic(using="sqlite"):
        connections["postgres"].in_atomic_block = True
        connections["postgres"].atomic_blocks.append(transaction.Atomic("postgres", True, False))
        try:
            with pytest.raises(AmbiguousTransaction, match=r'postgres, sqlite, .* using\(database="postgres"\)'):
                note.execute_on_commit(number=1)
            assert note.using(database="sqlite").execute_on_commit(number=1).database == "sqlite"
        finally:
            connections["postgres"].in_atomic_block = False
            connections["postgres"].atomic_blocks.clear()


class TestInDjangoTestCase(TestCase):
    """The transactions that TestCase opens on every allowed alias do not count as the caller's."""

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

    def test_transactions_of_the_test_do_not_count(self) -> None:
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

    def test_unsent_messages_stay_in_the_outbox(self) -> None:
        self.courier.away = {"default"}
        with self.captureOnCommitCallbacks(execute=True):
            note.execute_on_commit(number=1)
        with self.captureOnCommitCallbacks(using="sqlite", execute=True):
            note.using(database="sqlite").execute_on_commit(number=2)
        assert (numbers(), numbers("sqlite")) == ([1], [2])

    def test_captured_callbacks_keep_nothing_until_called(self) -> None:
        with self.captureOnCommitCallbacks() as callbacks:
            note.execute_on_commit(number=1)
        assert numbers() == []
        callbacks[0]()
        callbacks[0]()
        assert self.courier.calls == [[1]]

    def test_inner_capture_sends_its_own_messages(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            note.execute_on_commit(number=1)
            with self.captureOnCommitCallbacks(execute=True):
                note.execute_on_commit(number=2)
            assert self.courier.calls == [[2]]
        assert self.courier.calls == [[2], [1]]
        assert numbers() == []


# The settings


class TestSettings:
    def test_setting_puts_the_outbox_before_the_transport(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": COURIER, "OPTIONS": {"max_delay": 5}}
        assert isinstance(get_backend(), Courier)
        settings.LAMBDA_TASKS_OUTBOX = True
        assert isinstance(get_backend(), OutboxBackend)
        assert isinstance(outbox().transport, Courier)
        assert outbox().transport.max_delay == 5
        assert outbox().max_delay == MAX_KEPT_DELAY
        settings.LAMBDA_TASKS_OUTBOX = False
        assert isinstance(get_backend(), Courier)

    def test_outbox_chosen_by_path_is_not_wrapped(self, settings: Any) -> None:
        use_outbox(settings, "default", "sqlite")
        settings.LAMBDA_TASKS_OUTBOX = True
        assert isinstance(outbox().transport, Courier)
        assert outbox().databases == ["default", "sqlite"]

    def test_transport_is_sqs_by_default(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = OUTBOX
        assert isinstance(outbox().transport, SQSBackend)

    @pytest.mark.parametrize(("transport", "leaves"), [(COURIER, True), (IN_HOUSE, False)])
    def test_transport_decides_if_messages_leave_the_process(self, settings: Any, transport: str, leaves: bool) -> None:
        use_outbox(settings, transport=transport)
        assert outbox().leaves_process is leaves

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"transport": OUTBOX}, f"transport must be a transport other than an outbox, not '{OUTBOX}'"),
            (
                {"transport": "lambda_tasks.locks.memory.MemoryLock"},
                "must name a subclass of .*BaseBackend, not the class",
            ),
            ({"transport": "shop.Missing"}, "names 'shop.Missing', which cannot be imported"),
            (
                {"transport": {"BACKEND": COURIER, "OPTIONS": {"speed": 1}}},
                r"the OPTIONS \['speed'\] to .*, which rejects them",
            ),
            (
                {"transport": {"BACKEND": COURIER, "SPEED": 1}},
                "transport must have only the keys .*, not .*'SPEED'",
            ),
            ({"transport": None}, "transport must be a dotted path or .*, not None"),
            ({"transport": {}}, "transport must be a dotted path or .*, not {}"),
            (
                {"transport": COURIER, "databases": "default"},
                "databases must be a list of aliases in DATABASES, not 'default'",
            ),
            ({"transport": COURIER, "databases": []}, r"databases must be a list of aliases in DATABASES, not \[\]"),
            ({"table": "outbox"}, r"the OPTIONS \['table'\] to .*, which rejects them"),
        ],
        ids=str,
    )
    def test_invalid_options_are_refused_by_name(self, settings: Any, options: Any, sentence: str) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": options}
        with pytest.raises(InvalidSetting, match=sentence) as caught:
            get_backend()
        assert "LAMBDA_TASKS_BACKEND" in str(caught.value)
        assert [message.id for message in check_strategies()] == ["lambda_tasks.E004"]

    def test_database_of_the_records_has_an_outbox(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": "sqlite"}}
        use_outbox(settings, "default")
        assert outbox().databases == ["default", "sqlite"]
        use_outbox(settings, "sqlite")
        assert outbox().databases == ["sqlite"]

    def test_routers_choose_the_databases_by_default(self, settings: Any) -> None:
        use_outbox(settings)
        assert outbox().databases == ["default"]
        settings.DATABASE_ROUTERS = [Router()]
        assert outbox().databases == ["sqlite", "default"]

    def test_database_without_an_outbox_is_refused(self, settings: Any) -> None:
        use_outbox(settings, "default")
        with pytest.raises(UnknownDatabase) as caught:
            note.using(database="sqlite").execute_on_commit(number=1)
        assert isinstance(caught.value, ImproperlyConfigured)
        assert str(caught.value) == (
            f"Database 'sqlite' has no outbox for {note.name}; databases with one: default. Add it to the option "
            '`databases` of OutboxBackend, and migrate it; or pass using(database="default") to send the message with '
            "that database's commit."
        )

    def test_unknown_alias_is_refused_by_using(self) -> None:
        with pytest.raises(
            ValueError, match=r"^database must be an alias in DATABASES \(.*default.*sqlite.*\), not 'shop'"
        ):
            note.using(database="shop")


class Router:
    """Routes the outbox to `sqlite`, and does not create its table in `mariadb`."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "sqlite" if model is OutboxMessage else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "lambda_tasks" and db == "default" else None


class TestChecks:
    def test_valid_outbox_passes_the_checks(self, settings: Any) -> None:
        use_outbox(settings, "default", "sqlite")
        assert outbox().check() == []
        assert check_strategies() == []

    def test_unknown_alias_is_an_error(self, settings: Any) -> None:
        use_outbox(settings, "default", "shop")
        [message] = check_strategies()
        assert isinstance(message, Error)
        assert message.id == "lambda_tasks.E004"
        assert message.msg.startswith(
            "LAMBDA_TASKS_BACKEND gives the outbox database 'shop', which is not in DATABASES (default, "
        )

    def test_database_forbidden_by_the_routers_is_an_error(self, settings: Any) -> None:
        use_outbox(settings)
        settings.DATABASE_ROUTERS = [Router()]
        [message] = check_strategies()
        assert message.id == "lambda_tasks.E004"
        assert message.msg.startswith(
            "DATABASE_ROUTERS do not allow the outbox table in 'default'; return True from allow_migrate()"
        )

    def test_messages_of_the_transports_check_are_included(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        courier = use_outbox(settings)
        trouble = Error("the courier is ill", id="tests.E001")
        monkeypatch.setattr(courier, "check", lambda: [trouble])
        assert check_strategies() == [trouble]


# Eager mode


@lambda_task
def leave(*, name: str) -> None:
    Effect.objects.create(name=name)


@committing
def test_eager_mode_takes_precedence_over_the_outbox(settings: Any) -> None:
    settings.LAMBDA_TASKS_OUTBOX = True
    settings.LAMBDA_TASKS_EAGER = True
    with CaptureQueriesContext(connections["default"]) as queries, transaction.atomic():
        handle = leave.execute_on_commit(name="a")
    assert handle.status == "SUCCESS"
    assert not any(OutboxMessage._meta.db_table in query["sql"] for query in queries)


@committing
def test_eager_mode_ignores_long_delays(settings: Any) -> None:
    settings.LAMBDA_TASKS_OUTBOX = True
    settings.LAMBDA_TASKS_EAGER = True
    assert leave.using(delay=86_400).execute_on_commit(name="a").status == "SUCCESS"
    with pytest.raises(ValueError, match=r"delay must be .* not 31536001"):
        leave.using(delay=MAX_KEPT_DELAY + 1)


@on_each_database
def test_in_process_tasks_run_outside_the_outboxs_transaction(database: str, settings: Any) -> None:
    use_outbox(settings, database, transport="lambda_tasks.backends.eager.EagerBackend")
    with transaction.atomic(using=database):
        handle = leave_if_free.using(database=database).execute_on_commit(alias=database)
    assert rows(database) == []
    record = TaskRecord.objects.get(pk=handle.message_id)
    assert record.result is False


@lambda_task
def leave_if_free(*, alias: str) -> bool:
    # The task's own transaction is on `default`.
    return alias != "default" and connections[alias].in_atomic_block


# Retries


class Busy(Exception):
    """An error after which a task is retried."""


@lambda_task(retry_on=[Busy], retry_delay=40)
def busy(*, number: int) -> None:
    raise Busy


def run(courier: Courier) -> list[str]:
    """Run the sent messages in a worker, and return the ids of those that it hands back."""
    answer = handler({"Records": courier.take_records()}, None)
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


@pytest.fixture
def records_in(database: str, settings: Any) -> Courier:
    """Use `database` for the outbox and for records."""
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    return use_outbox(settings, database)


@on_each_database
def test_retry_commits_with_the_retrying_record(
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
def test_unkept_retry_returns_the_message(database: str, records_in: Courier) -> None:
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
def test_worker_without_its_claim_keeps_no_retry(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = busy.using(database=database).execute_on_commit(number=1)

    def reached(point: str) -> None:
        if point == "settle:before_write":
            TaskRecord.objects.using(database).update(claim=new_message_id())

    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "reached", reached)
        assert run(records_in) == [first.message_id]
    assert rows(database) == []
    assert records_in.jobs == []
    assert TaskRecord.objects.using(database).get(pk=first.message_id).status == "RUNNING"


@on_each_database
def test_unsent_retry_waits_in_the_outbox(database: str, records_in: Courier) -> None:
    """The message is acknowledged."""
    first = busy.using(database=database).execute_on_commit(number=1)
    records_in.away = {"default"}
    assert run(records_in) == []
    [row] = rows(database)
    assert str(row.pk) == retry_id(first.message_id, 1)
    assert row.attempts == 1
    assert first.status == "RETRYING"


@on_each_database
def test_refused_retry_fails_the_task(database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_message_kept_again_resets_its_row(database: str, courier: Courier) -> None:
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
def test_message_sent_by_a_task_commits_with_it(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = send_more.using(database=database).execute_on_commit(alias=database)

    def look() -> object:
        return TaskRecord.objects.using(database).get(pk=first.message_id).status, numbers(database)

    with seen_before_commit(monkeypatch, look) as seen:
        assert run(records_in) == []
    # PostgreSQL records the outcome in the request that also commits.
    assert seen == [("RUNNING" if database == "postgres" else "SUCCESS", [5])]
    assert records_in.sent == [5]


@lambda_task
def send_more(*, alias: str) -> None:
    note.using(database=alias).execute_on_commit(number=5)
    with suppress(Failure), transaction.atomic(using=alias):
        note.using(database=alias).execute_on_commit(number=6)
        raise Failure


# Lost tasks


@on_each_database
def test_reaping_keeps_messages_in_its_transaction(
    database: str, records_in: Courier, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = DatabaseNow() - timedelta(days=1)
    made = [new_message_id() for _ in range(3)]
    for number, message_id in enumerate(made):
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
    assert [str(row.pk) for row in rows(database)] == made


# Other methods of a transport


def test_transport_postpones_returned_messages(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
    def test_arguments_are_masked_in_row_and_log(
        self, database: str, settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any, is_known: bool
    ) -> None:
        courier = use_outbox(settings, database)

        def quote(jobs: Any) -> Any:
            return [Unsent(job, OSError(f"I do not like {job.message.kwargs['card']}")) for job in jobs]

        monkeypatch.setattr(courier, "send", quote)
        if not is_known:  # the relaying process has not imported the task
            monkeypatch.setattr("lambda_tasks.registry.known_task", lambda name: None)
        charge.using(database=database).execute_on_commit(card=self.SECRET)
        later(5, database)
        outbox().relay()
        [row] = rows(database)
        assert row.attempts == 2
        assert row.error == "OSError: I do not like ********************"
        assert self.SECRET not in caplog.text
