"""Simulate SQS: visibility, receive counts, dead letters, and responses under Lambda's rules."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_RECEIVES: Final = 5


@dataclass(slots=True)
class Message:
    """One message, with its state on the queue."""

    body: str
    attributes: Mapping[str, str]
    visible_at: float
    raw_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    receives: int = 0
    #: Whether a sender has forged the message; forged messages are not redriven.
    forged: bool = False

    def as_record(self) -> dict[str, Any]:
        """Return the message as Lambda passes it to the handler."""
        return {
            "messageId": self.raw_id,
            "receiptHandle": f"receipt-{self.raw_id}-{self.receives}",
            "body": self.body,
            "attributes": {"ApproximateReceiveCount": str(self.receives)},
            "messageAttributes": {
                name: {"stringValue": value, "dataType": "String"} for name, value in self.attributes.items()
            },
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:simulation",
        }


class Queue:
    """A standard queue with a dead letter queue; `now` is the current time."""

    def __init__(self, visibility_timeout: float) -> None:
        self.now = 0.0
        self.visibility_timeout = visibility_timeout
        self.messages: dict[str, Message] = {}
        self.dead: dict[str, Message] = {}
        #: Deleted messages, which a standard queue may deliver again.
        self.deleted: dict[str, Message] = {}

    def add(self, body: str, attributes: Mapping[str, str], delay: float = 0) -> Message:
        message = Message(body, attributes, self.now + delay)
        self.messages[message.raw_id] = message
        return message

    def visible(self) -> list[Message]:
        return [message for message in self.messages.values() if message.visible_at <= self.now]

    def receive(self, messages: Iterable[Message]) -> list[Message]:
        """Return `messages`, except those that were received too often, which go to the dead letter queue."""
        received = []
        for message in messages:
            if message.receives >= MAX_RECEIVES:
                del self.messages[message.raw_id]
                self.dead[message.raw_id] = message
                continue
            message.receives += 1
            message.visible_at = self.now + self.visibility_timeout
            received.append(message)
        return received

    def settle(self, batch: Iterable[Message], answer: Mapping[str, Any] | None) -> None:
        """Delete the messages that the answer does not list. If it is None, delete nothing.

        By Lambda's rules for partial responses, an id that is not in the batch fails the whole batch.
        """
        if answer is None:
            return
        of_batch = {message.raw_id: message for message in batch}
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        if not failed <= of_batch.keys():
            return
        for raw_id in of_batch.keys() - failed:
            if message := self.messages.pop(raw_id, None):
                self.deleted[raw_id] = message

    def redrive(self) -> None:
        """Put the dead letters back on the queue, under new SQS ids."""
        for message in self.dead.values():
            if not message.forged:
                self.add(message.body, message.attributes)
        self.dead.clear()

    def next_change(self) -> float | None:
        """Return when the next message becomes visible, or None if the queue is empty."""
        return min((message.visible_at for message in self.messages.values()), default=None)
