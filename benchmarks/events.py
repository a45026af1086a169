"""Events as SQS's event source mapping passes them to the handler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.wire import ids


def events_of(task: LambdaTaskWrapper[..., Any], *, messages: int, size: int, **arguments: Any) -> list[dict[str, Any]]:
    """Return events of `size` messages each, `messages` in all, that call `task` with `arguments`."""
    records = [_record(task, arguments) for _ in range(messages)]
    return [{"Records": list(chunk)} for chunk in _chunks(records, size)]


def _record(task: LambdaTaskWrapper[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    invocation = task._invocation((), arguments)
    message_id = ids.new_message_id()
    attributes = {
        "lambda_tasks.message_id": message_id,
        "lambda_tasks.root_id": message_id,
        "lambda_tasks.queue": "default",
    }
    now = str(int(time.time() * 1000))
    return {
        "messageId": ids.new_message_id(),
        "receiptHandle": "AQEB" + "x" * 240,
        "body": invocation.message.to_body(),
        "attributes": {
            "ApproximateReceiveCount": "1",
            "SentTimestamp": now,
            "SenderId": "AIDAIENQZJOLO23YVJ4VO",
            "ApproximateFirstReceiveTimestamp": now,
        },
        "messageAttributes": {
            name: {"stringValue": value, "dataType": "String", "stringListValues": [], "binaryListValues": []}
            for name, value in attributes.items()
        },
        "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:default",
        "awsRegion": "eu-west-1",
    }


def _chunks(records: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]
