"""Recognize messages of other programs, so that the error about one names the program and the remedy.

Nothing here quotes a value of the message.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final

_INVOCATION: Final = '{"task_name": "…", "kwargs": {…}}'
_OTHER_QUEUE: Final = "Give the other program a queue of its own."

_SNS: Final = (
    "it is a notification of Amazon SNS. Turn on raw message delivery (RawMessageDelivery) for the subscription of the "
    f"queue, and publish {_INVOCATION}"
)
_SNS_CONTROL: Final = (
    "it is a message with which Amazon SNS manages a subscription. Confirm the subscription with its SubscribeURL, and "
    "delete the message"
)
_S3_TEST: Final = (
    "it is the test event that Amazon S3 sends when notifications of a bucket are configured. Delete the message, and "
    "send the notifications elsewhere: to a function that calls a task for each of them"
)
_EVENTBRIDGE: Final = (
    f"it is an event of Amazon EventBridge. Set the Input or the InputTransformer of the rule's target to {_INVOCATION}"
)
#: Events for the function itself, by the value of `lambda_tasks` in them.
_OWN_EVENTS: Final = {
    "maintenance": "it is the maintenance event. Send it to the function itself, and not to its queue",
    "ping": "it is the ping event. Send it to the function itself, and not to its queue",
}
_CELERY: Final = f"it is a message of Celery. {_OTHER_QUEUE[:-1]}"
_ANOTHER: Final = f"it looks like a message of another task queue. {_OTHER_QUEUE[:-1]}"
_EMPTY: Final = f"it is an empty JSON object. Send {_INVOCATION}"

#: The services that send several events in one message, by the source in these events.
_SOURCES: Final = {
    "aws:s3": "Amazon S3",
    "aws:sqs": "Amazon SQS",
    "aws:ses": "Amazon SES",
    "aws:dynamodb": "Amazon DynamoDB",
    "aws:kinesis": "Amazon Kinesis",
}
#: Fields for the name of a task in messages of other task queues, which also have arguments.
_NAMES: Final = frozenset(
    {"task", "func", "func_name", "function", "task_path", "module_path", "actor_name", "job_type"}
)
_ARGUMENTS: Final = frozenset({"args", "kwargs"})


def kind_of(content: object) -> str | None:
    """Return which program sends messages like `content`, decoded from JSON, and the remedy; None if it is unknown."""
    if not isinstance(content, Mapping) or "task_name" in content:
        return None
    if not content:
        return _EMPTY
    event = content.get("lambda_tasks")
    if isinstance(event, str) and event in _OWN_EVENTS:
        return _OWN_EVENTS[event]
    return _service_of(content) or _task_queue_of(content)


def kind_of_text(body: str) -> str | None:
    """Return the same for a body that is not JSON: Celery encodes its messages to SQS in base64."""
    try:
        content = json.loads(base64.b64decode(body, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return kind_of(content) if isinstance(content, Mapping) and content else None


def _service_of(content: Mapping[str, Any]) -> str | None:
    if "TopicArn" in content and "Message" in content:
        return _SNS if content.get("Type") == "Notification" else _SNS_CONTROL
    if content.get("Event") == "s3:TestEvent":
        return _S3_TEST
    if content.keys() >= {"detail-type", "source", "detail"}:
        return _EVENTBRIDGE
    records = content.get("Records")
    if isinstance(records, list) and records and isinstance(records[0], Mapping):
        source = records[0].get("eventSource")
        service = _SOURCES.get(source, "another AWS service") if isinstance(source, str) else "another program"
        return (
            f"it is an event of {service}. Send such events to a function or a queue of their own, and call a task for "
            "each of them"
        )
    return None


def _task_queue_of(content: Mapping[str, Any]) -> str | None:
    headers = content.get("headers")
    if "body" in content and "properties" in content and isinstance(headers, Mapping):
        return _CELERY
    return _ANOTHER if content.keys() & _NAMES and content.keys() & _ARGUMENTS else None
