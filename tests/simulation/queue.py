"""SQS as the parent process plays it: visibility, receive counts, dead letters, and answers under Lambda's rules."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_RECEIVES: Final = 5


@dataclass(slots=True)
class Message:
    """One message: what was sent, and what the queue knows of it."""

    body: str
    attributes: Mapping[str, str]
    visible_at: float
    raw_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    receives: int = 0

    def as_record(self) -> dict[str, Any]:
        """Return it as Lambda shows it to the handler."""
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
    """A standard queue with a dead letter queue; time is what `now` says."""

    def __init__(self, visibility_timeout: float) -> None:
        self.now = 0.0
        self.visibility_timeout = visibility_timeout
        self.messages: dict[str, Message] = {}
        self.dead: dict[str, Message] = {}
        #: Deleted ones, which a standard queue may deliver once more.
        self.deleted: dict[str, Message] = {}

    def add(self, body: str, attributes: Mapping[str, str], delay: float = 0) -> Message:
        message = Message(body, attributes, self.now + delay)
        self.messages[message.raw_id] = message
        return message

    def visible(self) -> list[Message]:
        return [message for message in self.messages.values() if message.visible_at <= self.now]

    def receive(self, messages: Iterable[Message]) -> list[Message]:
        """Hand out `messages`, those that were received too often to the dead letter queue instead."""
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
        """Delete what the answer leaves out; None is no answer, and deletes nothing.

        Lambda's rules for partial responses: an id that is not of the batch fails it as a whole.
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
        """Put the dead letters back, under new ids of SQS's."""
        for message in self.dead.values():
            self.add(message.body, message.attributes)
        self.dead.clear()

    def next_change(self) -> float | None:
        """Return when the next message becomes visible; None if there is none."""
        return min((message.visible_at for message in self.messages.values()), default=None)
