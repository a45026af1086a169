"""Messages of other programs stay on the queue, with an error that names the program and the remedy."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation

SECRET = "hunter2"
SNS = {
    "Type": "Notification",
    "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
    "TopicArn": "arn:aws:sns:eu-west-1:123456789012:orders",
    "Subject": SECRET,
    "Message": json.dumps({"task_name": "shop.tasks.greet", "kwargs": {"name": SECRET}}),
    "Timestamp": "2026-05-02T00:54:06.655Z",
    "SignatureVersion": "1",
}
CELERY = {
    "body": base64.b64encode(json.dumps([[SECRET], {}, {}]).encode()).decode(),
    "content-encoding": "utf-8",
    "content-type": "application/json",
    "headers": {"lang": "py", "task": "shop.tasks.greet", "id": "1", "root_id": "1", "argsrepr": SECRET},
    "properties": {"correlation_id": "1", "delivery_mode": 2, "body_encoding": "base64", "delivery_tag": "2"},
}
#: The body of each kind of message, and the error about it.
KINDS: dict[str, tuple[Any, str]] = {
    "SNS": (SNS, "a notification of Amazon SNS. Turn on raw message delivery (RawMessageDelivery)"),
    "SNS subscription": (
        {**SNS, "Type": "SubscriptionConfirmation", "SubscribeURL": "https://sns.example"},
        "Amazon SNS manages a subscription. Confirm the subscription",
    ),
    "S3": (
        {"Records": [{"eventVersion": "2.1", "eventSource": "aws:s3", "s3": {"object": {"key": SECRET}}}]},
        "an event of Amazon S3. Send such events to a function or a queue of their own",
    ),
    "S3 test": (
        {"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": SECRET},
        "the test event that Amazon S3 sends",
    ),
    "another service": ({"Records": [{"eventSource": SECRET}]}, "an event of another AWS service"),
    "records": ({"Records": [{"value": SECRET}]}, "an event of another program"),
    "EventBridge": (
        {"version": "0", "id": "1", "detail-type": "Scheduled Event", "source": "aws.events", "detail": {"x": SECRET}},
        "an event of Amazon EventBridge. Set the Input or the InputTransformer of the rule's target",
    ),
    "Celery": (CELERY, "a message of Celery. Give the other program a queue of its own"),
    "Celery on SQS": (
        base64.b64encode(json.dumps(CELERY).encode()).decode(),
        "a message of Celery. Give the other program a queue of its own",
    ),
    "django-tasks": (
        {"task_path": "shop.tasks.greet", "args": [SECRET], "kwargs": {}, "priority": 0},
        "a message of another task queue. Give the other program a queue of its own",
    ),
    "Dramatiq": (
        {"queue_name": "default", "actor_name": "greet", "args": [SECRET], "kwargs": {}, "options": {}},
        "a message of another task queue",
    ),
    "maintenance": ({"lambda_tasks": "maintenance"}, "the maintenance event. Send it to the function itself"),
    "ping": ({"lambda_tasks": "ping"}, "the ping event. Send it to the function itself"),
    "empty": ({}, 'an empty JSON object. Send {"task_name": "…", "kwargs": {…}}'),
    "other JSON": (
        {"order": SECRET},
        "has unknown fields: 'order'. The fields of an invocation are task_name, kwargs and n_retries",
    ),
    "array": ([SECRET], "must be a JSON object, not list"),
    "text": (SECRET, "is not valid JSON"),
    "base64 of something else": (base64.b64encode(b'{"order": 1}').decode(), "is not valid JSON"),
    "base64 of an empty object": (base64.b64encode(b"{}").decode(), "is not valid JSON"),
}


def body_of(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)


@pytest.mark.parametrize("kind", KINDS)
def test_error_names_the_program_and_the_remedy(kind: str) -> None:
    content, error = KINDS[kind]
    with pytest.raises(InvalidMessage) as raised:
        Invocation.of_body(body_of(content))
    assert error in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", KINDS)
def test_message_stays_on_the_queue(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    content, error = KINDS[kind]
    message_id = new_message_id()
    event = {"Records": [{"messageId": message_id, "receiptHandle": "r", "body": body_of(content)}]}
    assert handler(event, None) == {"batchItemFailures": [{"itemIdentifier": message_id}]}
    assert error in caplog.text
    assert SECRET not in caplog.text
    assert not TaskRecord.objects.exists()


def test_task_whose_argument_looks_foreign_is_accepted() -> None:
    body = json.dumps({"task_name": "shop.tasks.forward", "kwargs": {"event": SNS}})
    assert Invocation.of_body(body).kwargs == {"event": SNS}


@pytest.mark.parametrize("records", [None, [], [1], {}, "x"])
def test_malformed_records_are_unknown_fields(records: Any) -> None:
    with pytest.raises(InvalidMessage, match="unknown fields: 'Records'"):
        Invocation.of_body(json.dumps({"Records": records}))
