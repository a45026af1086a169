"""The countable costs of enqueueing: requests to SQS, and queries."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from lambda_tasks.decorators import lambda_task
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE
from tests.calls import counted
from tests.conftest import Sqs
from tests.relay import Answer, Forward, Relay, running

#: The most function calls of `execute_on_commit()` in a transaction, a few more than it needs.
MOST_CALLS = 66

pytestmark = pytest.mark.django_db(transaction=True)


@lambda_task
def greet(*, number: int, text: str = "") -> None: ...


class Failure(Exception):
    """The exception that rolls a savepoint back."""


@pytest.fixture(name="relay")
def _relay(sqs: Sqs, settings: Any) -> Iterator[Relay]:
    """Relay requests to SQS, and count them."""
    with running(sqs.endpoint) as server:
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
            "OPTIONS": {"endpoint_url": server.url, "read_timeout": 20},
        }
        yield server


def sent(relay: Relay) -> list[str]:
    return [
        entry["MessageAttributes"][MESSAGE_ID_ATTRIBUTE]["StringValue"]
        for request in relay.requests
        for entry in request.entries
    ]


def accept(payload: dict[str, Any], forward: Forward) -> Answer:
    """Answer instead of moto, which is slow when a queue is long."""
    return 200, {"Successful": [{"Id": entry["Id"], "MessageId": entry["Id"]} for entry in payload["Entries"]]}


def test_thousand_tasks_need_a_hundred_requests(relay: Relay) -> None:
    relay.faults = [accept] * 100
    with transaction.atomic():
        handles = [greet.execute_on_commit(number=number) for number in range(1_000)]
        assert relay.requests == []
    assert relay.operations() == [("SendMessageBatch", 10)] * 100
    assert sorted(sent(relay)) == sorted(handle.message_id for handle in handles)


@pytest.mark.parametrize("count", [2, 9, 10, 11, 12, 99])
def test_requests_are_as_few_as_possible(relay: Relay, count: int) -> None:
    with transaction.atomic():
        for number in range(count):
            greet.execute_on_commit(number=number)
    assert len(relay.requests) == math.ceil(count / 10)
    assert len(set(sent(relay))) == count


def test_single_task_is_one_send_message(relay: Relay) -> None:
    greet.execute_on_commit(number=1)
    with transaction.atomic():
        greet.execute_on_commit(number=2)
    assert relay.operations() == [("SendMessage", 1)] * 2


def test_large_messages_are_split_by_size(relay: Relay) -> None:
    with transaction.atomic():
        for number in range(10):
            greet.execute_on_commit(number=number, text="x" * 300_000)  # three messages are smaller than 1 MiB
    assert sorted(relay.operations()) == [("SendMessage", 1), *[("SendMessageBatch", 3)] * 3]


def test_rolled_back_savepoints_keep_batches_full(relay: Relay) -> None:
    kept = []
    with transaction.atomic():
        for number in range(200):
            with suppress(Failure), transaction.atomic():
                handle = greet.execute_on_commit(number=number)
                if number % 2:
                    raise Failure
                kept.append(handle.message_id)
    assert relay.operations() == [("SendMessageBatch", 10)] * 10
    assert sorted(sent(relay)) == sorted(kept)


def test_enqueueing_sends_no_queries(relay: Relay) -> None:
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        for number in range(20):
            greet.execute_on_commit(number=number)
    assert list(queries) == []


def test_call_calls_few_functions(relay: Relay) -> None:
    """Options that a task does not use must not cost its calls anything, and CPU time alone is too noisy to hold that.

    If a change needs more calls of functions, look first whether it can do its work once per process, per commit or
    per task definition, or only for the tasks that ask for it.
    """
    with transaction.atomic():
        greet.execute_on_commit(number=0)  # without what a process does once
        with counted() as calls:
            for number in range(10):
                greet.execute_on_commit(number=number)
        transaction.set_rollback(True)
    assert sum(calls.values()) / 10 <= MOST_CALLS, calls.most_common()


def test_later_changes_of_arguments_are_not_sent(relay: Relay) -> None:
    arguments = {"number": 1, "text": "first"}
    with transaction.atomic():
        greet.execute_on_commit(**arguments)
        arguments["text"] = "changed"
    [request] = relay.requests
    assert json.loads(request.payload["MessageBody"])["kwargs"] == {"number": 1, "text": "first"}
