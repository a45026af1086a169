"""What the outbox costs, in what can be counted: statements, and requests to SQS."""

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
    note.using(database=database).execute_on_commit(number=0)  # what is done once for a connection is no cost
    courier.jobs.clear()
    return courier


def verbs(queries: CaptureQueriesContext) -> list[str]:
    """Return the first words of the statements; those that lock rows, of the SELECTs, are told apart."""
    return [
        "LOCK" if "FOR UPDATE SKIP LOCKED" in query["sql"] else query["sql"].split()[0]
        for query in queries
        if query["sql"] and not query["sql"].startswith("SET")
    ]


def sent_and_deleted(database: str, count: int = 1) -> list[str]:
    """Return what it takes to send so many messages on a transport whose workers are elsewhere."""
    if database == "sqlite":
        return ["UPDATE", "SELECT", "DELETE"]
    # A DELETE of several rows would wait for those of others on MariaDB.
    return ["BEGIN", "LOCK", *["DELETE"] * (count if database == "mariadb" else 1), "COMMIT"]


@pytest.mark.parametrize("count", [1, 2, 10, 90])
def test_a_transaction_costs_one_insert_and_its_messages_one_look_and_one_delete(
    database: str, courier: Courier, count: int
) -> None:
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for number in range(count):
            note.using(database=database).execute_on_commit(number=number)
    assert verbs(queries) == ["BEGIN", "INSERT", "COMMIT", *sent_and_deleted(database, count)]
    assert len(courier.jobs) == count


def test_without_a_transaction_a_task_costs_the_same(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries:
        note.using(database=database).execute_on_commit(number=1)
    assert verbs(queries) == ["INSERT", *sent_and_deleted(database)]


def test_a_thousand_tasks_are_two_inserts_and_ten_batches(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for number in range(1_000):
            note.using(database=database).execute_on_commit(number=number)
    inserted, _, sent = " ".join(verbs(queries)).partition(" COMMIT ")
    # SQLite takes so many parameters in a statement.
    inserts = len(inserted.split()) - 1
    assert inserted == " ".join(["BEGIN", *["INSERT"] * inserts])
    assert inserts == 2 if database != "sqlite" else 2 <= inserts <= 15
    assert sent.split() == sent_and_deleted(database, 100) * 10
    assert len(courier.calls[1:]) == 10


def test_an_insert_ends_where_the_next_message_would_make_it_too_large(database: str, settings: Any) -> None:
    use_outbox(settings, database)
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for size in (2_000_000, 2_000_000, 500_000, 10, 4_500_000, 10):
            write.using(database=database).execute_on_commit(text="x" * size)
    inserts = [query["sql"] for query in queries if query["sql"].startswith("INSERT")]
    assert [round(len(sql), -5) for sql in inserts] == [4_000_000, 500_000, 4_500_000, 0]


@lambda_task
def write(*, text: str) -> None: ...


def test_a_transaction_without_tasks_costs_nothing(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries:
        with transaction.atomic(using=database), transaction.atomic(using=database):
            pass
        with transaction.atomic(using=database):
            note.using(database=database).execute_on_commit(number=1)
            transaction.set_rollback(True, using=database)
    assert verbs(queries) == ["BEGIN", "SAVEPOINT", "RELEASE", "COMMIT", "BEGIN", "ROLLBACK"]


def test_a_message_that_is_kept_for_later_costs_its_insert(database: str, courier: Courier) -> None:
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        note.using(database=database, delay=3_600).execute_on_commit(number=1)
    assert verbs(queries) == ["BEGIN", "INSERT", "COMMIT"]


def test_what_fails_alike_is_written_in_one_update(database: str, courier: Courier) -> None:
    courier.away = {"default"}
    with CaptureQueriesContext(connections[database]) as queries, transaction.atomic(using=database):
        for number in range(50):
            note.using(database=database).execute_on_commit(number=number)
    assert verbs(queries)[3:].count("UPDATE") == (2 if database == "sqlite" else 1)
    assert "DELETE" not in verbs(queries)
    assert {row.attempts for row in rows(database)} == {1}


def test_an_empty_outbox_costs_a_relay_one_select(database: str, settings: Any) -> None:
    use_outbox(settings, database)
    with CaptureQueriesContext(connections[database]) as queries:
        assert outbox().relay() == Relayed()
    assert verbs(queries) == ["SELECT"]


@pytest.mark.parametrize("transport", [COURIER, IN_HOUSE], ids=["elsewhere", "in this process"])
def test_a_relay_makes_no_more_statements_for_a_hundred_messages_than_for_one(
    database: str, settings: Any, transport: str
) -> None:
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


def test_a_handle_costs_up_to_three_queries(database: str, courier: Courier) -> None:
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
    # The record, and the message; then the record once more, which may have come in between.
    assert counts == [(1, 1), (2, 1)]


@pytest.mark.databases("postgres", transaction=True)
def test_requests_to_sqs_are_as_few_as_without_the_outbox(database: str, settings: Any, sqs: Sqs) -> None:
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


def test_a_retry_costs_one_insert_in_the_transaction_of_its_record(database: str, settings: Any) -> None:
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
    claimed = ["INSERT", "BEGIN", "ROLLBACK"]
    settled = ["BEGIN", "UPDATE", "INSERT", "COMMIT", *sent_and_deleted(database)]
    assert found[: len(claimed + settled)] == claimed + settled


@lambda_task(retry_on=[KeyError])
def busy() -> None:
    raise KeyError
