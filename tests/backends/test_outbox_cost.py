"""The cost of the outbox in statements and SQS requests."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from lambda_tasks.backends.relay import Relayed
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.models import OutboxMessage
from tests.conftest import Sqs
from tests.courier import COURIER, IN_HOUSE, OUTBOX, Courier, later, note, outbox, rows, use_outbox
from tests.relay import Answer, Forward, running

pytestmark = pytest.mark.databases(transaction=True)


@pytest.fixture
def courier(database: str, settings: Any) -> Courier:
    courier = use_outbox(settings, database)
    note.using(database=database).execute_on_commit(number=0)  # exclude the statements that run once per connection
    courier.jobs.clear()
    return courier


def verbs(queries: CaptureQueriesContext) -> list[str]:
    """Return the first word of each statement, and LOCK for a SELECT that locks rows."""
    return [
        "LOCK" if "FOR UPDATE SKIP LOCKED" in query["sql"] else query["sql"].split()[0]
        for query in queries
        if query["sql"] and not query["sql"].startswith("SET")
    ]


def sent_and_deleted(database: str, count: int = 1) -> list[str]:
    """Return the statements that send `count` messages with a transport to other processes."""
    if database == "sqlite":
        return ["UPDATE", "SELECT", "BEGIN", "DELETE", "COMMIT"]
    # In MariaDB, a DELETE of several rows would wait for locked rows of other relays.
    return ["BEGIN", "LOCK", *["DELETE"] * (count if database == "mariadb" else 1), "COMMIT"]


@pytest.mark.parametrize("count", [1, 2, 10, 90])
def test_transaction_costs_one_insert_select_and_delete(database: str, courier: Courier, count: int) -> None:
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for number in range(count):
            note.using(database=database).execute_on_commit(number=number)
    assert verbs(queries) == ["BEGIN", "INSERT", "COMMIT", *sent_and_deleted(database, count)]
    assert len(courier.jobs) == count


def test_task_outside_a_transaction_costs_the_same(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries:
        note.using(database=database).execute_on_commit(number=1)
    assert verbs(queries) == ["INSERT", *sent_and_deleted(database)]


def test_thousand_tasks_are_two_inserts_and_ten_batches(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for number in range(1_000):
            note.using(database=database).execute_on_commit(number=number)
    inserted, _, sent = " ".join(verbs(queries)).partition(" COMMIT ")
    # SQLite limits the number of parameters in a statement.
    inserts = len(inserted.split()) - 1
    assert inserted == " ".join(["BEGIN", *["INSERT"] * inserts])
    assert inserts == 2 if database != "sqlite" else 2 <= inserts <= 15
    assert sent.split() == sent_and_deleted(database, 100) * 10
    assert len(courier.calls[1:]) == 10


def test_large_messages_are_split_between_inserts(database: str, settings: Any) -> None:
    use_outbox(settings, database)
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for size in (2_000_000, 2_000_000, 500_000, 10, 4_500_000, 10):
            write.using(database=database).execute_on_commit(text="x" * size)
    inserts = [query["sql"] for query in queries if query["sql"].startswith("INSERT")]
    assert [round(len(sql), -5) for sql in inserts] == [4_000_000, 500_000, 4_500_000, 0]


@lambda_task
def write(*, text: str) -> None: ...


def test_transaction_without_tasks_costs_nothing(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries:
        with transaction.atomic(using=database), transaction.atomic(using=database):
            pass
        with transaction.atomic(using=database):
            note.using(database=database).execute_on_commit(number=1)
            transaction.set_rollback(True, using=database)
    assert verbs(queries) == ["BEGIN", "SAVEPOINT", "RELEASE", "COMMIT", "BEGIN", "ROLLBACK"]


def test_delayed_message_costs_one_insert(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        note.using(database=database, delay=3_600).execute_on_commit(number=1)
    assert verbs(queries) == ["BEGIN", "INSERT", "COMMIT"]


def test_identical_failures_are_written_in_one_update(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for number in range(50):
            note.using(database=database).execute_on_commit(number=number)
    assert verbs(queries)[3:].count("UPDATE") == (2 if database == "sqlite" else 1)
    assert "DELETE" not in verbs(queries)
    assert {row.attempts for row in rows(database)} == {1}


def test_empty_outbox_costs_one_select(database: str, settings: Any) -> None:
    use_outbox(settings, database)
    with CaptureQueriesContext(connections[database]) as queries:
        assert outbox().relay() == Relayed()
    assert verbs(queries) == ["SELECT"]


@pytest.mark.parametrize("transport", [COURIER, IN_HOUSE], ids=["elsewhere", "in this process"])
def test_statements_of_a_relay_are_constant(database: str, settings: Any, transport: str) -> None:
    """A relay of many messages runs as many statements as a relay of one."""

    def cost(count: int) -> list[str]:
        courier = use_outbox(settings, database, transport=transport)
        courier.away = {"default"}
        with transaction.atomic(using=database):
            for number in range(count):
                note.using(database=database).execute_on_commit(number=number)
        courier.away = set()
        later(60, database)
        with CaptureQueriesContext(connections[database]) as queries:
            assert outbox().relay() == Relayed(sent=count)
        found = verbs(queries)
        return [verb for verb, before in zip(found, [None, *found], strict=False) if (verb, before) != ("DELETE",) * 2]

    assert cost(1) == cost(90)


def test_handle_costs_at_most_three_queries(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    handle = note.using(database=database).execute_on_commit(number=1)
    counts = []
    for _ in range(2):
        with (
            CaptureQueriesContext(connections["default"]) as of_records,
            CaptureQueriesContext(connections[database]) as of_messages,
        ):
            _ = handle.status
        counts.append((len(of_records), len(of_messages)))
        OutboxMessage.objects.using(database).all().delete()
    # The record, the message, and the record again, because it may have been created in between.
    assert counts == [(1, 1), (2, 1)]


@pytest.mark.databases("postgres", transaction=True)
def test_outbox_makes_no_additional_sqs_requests(database: str, settings: Any, sqs: Sqs) -> None:
    def accept(payload: dict[str, Any], forward: Forward) -> Answer:
        return 200, {"Successful": [{"Id": entry["Id"], "MessageId": entry["Id"]} for entry in payload["Entries"]]}

    with running(sqs.endpoint) as relay:
        transport = {
            "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
            "OPTIONS": {"endpoint_url": relay.url, "read_timeout": 20},
        }
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": OUTBOX,
            "OPTIONS": {"transport": transport, "databases": [database]},
        }
        relay.faults = [accept] * 25
        with transaction.atomic(using=database):
            for number in range(250):
                note.using(database=database).execute_on_commit(number=number)
        assert relay.operations() == [("SendMessageBatch", 10)] * 25
        note.using(database=database).execute_on_commit(number=1)
        assert relay.operations()[25:] == [("SendMessage", 1)]
    assert rows(database) == []


def test_retry_costs_one_insert(database: str, settings: Any) -> None:
    """The INSERT is in the transaction of the retry's record."""
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    courier = use_outbox(settings, database)

    def cost() -> list[str]:
        busy.using(database=database).execute_on_commit()
        records = courier.take_records()
        with CaptureQueriesContext(connections[database]) as queries:
            assert handler({"Records": records}, None) == {"batchItemFailures": []}
        courier.jobs.clear()
        return verbs(queries)

    cost()
    found = cost()
    claimed = ["INSERT", "BEGIN", "ROLLBACK", "SELECT"]  # whether it was cancelled
    settled = ["BEGIN", "UPDATE", "INSERT", "COMMIT", *sent_and_deleted(database)]
    assert found[: len(claimed + settled)] == claimed + settled


@lambda_task(retry_on=[KeyError])
def busy() -> None:
    raise KeyError
