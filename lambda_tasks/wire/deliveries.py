"""Read the messages of an event that SQS's event source mapping passes to a Lambda function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from itertools import islice
from typing import Any, Final

from lambda_tasks.exceptions import InvalidEvent, InvalidMessage
from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.recording.storable import shown
from lambda_tasks.settings import LambdaTasksSettings, app_settings
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import (
    FIRST_SENT_ATTRIBUTE,
    FLOW_ATTRIBUTE,
    GROUP_ATTRIBUTE,
    MESSAGE_ID_ATTRIBUTE,
    MORE_ATTRIBUTE,
    OWN_ATTRIBUTES,
    QUEUE_ATTRIBUTE,
    ROOT_ID_ATTRIBUTE,
    SCHEDULED_FOR_ATTRIBUTE,
    is_group,
    unpacked,
)


@frozen
class Delivery:
    """One message of an event."""

    record: Mapping[str, Any] = field(repr=False)
    #: The attributes that SQS itself has added to the message.
    system: Mapping[str, Any] = field(repr=False)
    #: SQS's own id, which identifies the message in the response to Lambda.
    raw_id: str
    receives: int
    #: The message attributes whose values are strings, with those that are packed into one.
    texts: Mapping[str, str] = field(repr=False)
    #: The producer's id, or SQS's own if another program sent the message.
    message_id: str

    def __init__(
        self,
        record: Mapping[str, Any],
        system: Mapping[str, Any],
        raw_id: str,
        receives: int,
        texts: Mapping[str, str],
        message_id: str,
    ) -> None:
        vars(self).update(
            record=record, system=system, raw_id=raw_id, receives=receives, texts=texts, message_id=message_id
        )

    @classmethod
    def of(cls, record: Any) -> Delivery:
        """Read a record of an event, or raise `InvalidEvent` if it has no id."""
        raw_id = record.get("messageId") if isinstance(record, Mapping) else None
        if not isinstance(raw_id, str) or not raw_id:
            raise InvalidEvent(f"A record of the event has no messageId{_origin(record)}")
        texts = unpacked(_text_attributes(record.get("messageAttributes")))
        message_id = ids.canonical_id(texts.get(MESSAGE_ID_ATTRIBUTE) or raw_id)
        system = record.get("attributes")
        system = system if isinstance(system, dict) else {}
        return cls(record, system, raw_id, _number(system.get("ApproximateReceiveCount")) or 1, texts, message_id)

    @property
    def shown_id(self) -> str:
        """SQS's id, escaped and shortened for a line of the log."""
        return shown(self.raw_id)

    @property
    def body(self) -> str:
        body = self.record.get("body")
        return body if isinstance(body, str) else ""

    @property
    def root_id(self) -> str:
        """The id of the first invocation in the chain of retries; by default the message's own id."""
        root = self.texts.get(ROOT_ID_ATTRIBUTE)
        if root is None or root == self.message_id:
            return self.message_id
        return ids.canonical_id(root)

    @property
    def queue(self) -> str | None:
        """The queue that the message was sent to; None if the settings no longer contain that queue."""
        queue = self.texts.get(QUEUE_ATTRIBUTE)
        known = queue is not None and LambdaTasksSettings.queues.is_set and queue in app_settings.queues
        return queue if known else None

    @property
    def sent_at(self) -> float | None:
        """When SQS accepted this message, in seconds since 1970; None if that is unknown."""
        milliseconds = _number(self.system.get("SentTimestamp"))
        return None if milliseconds is None else milliseconds / 1000

    @property
    def first_sent(self) -> float | None:
        """When SQS accepted the first invocation of the chain, in seconds since 1970; None if that is unknown."""
        milliseconds = _number(self.texts.get(FIRST_SENT_ATTRIBUTE)) or _number(self.system.get("SentTimestamp"))
        return None if milliseconds is None else milliseconds / 1000

    @property
    def scheduled_for(self) -> float | None:
        """The time for which a schedule has sent the chain, in seconds since 1970; None if none has."""
        seconds = _number(self.texts.get(SCHEDULED_FOR_ATTRIBUTE))
        return None if seconds is None else float(seconds)

    @property
    def flow(self) -> str:
        """The mark of an invocation that others follow; empty if none does."""
        return self.texts.get(FLOW_ATTRIBUTE, "")

    @property
    def group(self) -> str | None:
        """The message group; None without one."""
        for group in (self.system.get("MessageGroupId"), self.texts.get(GROUP_ATTRIBUTE)):
            if is_group(group):
                return str(group)
        return None

    @property
    def attributes(self) -> dict[str, str]:
        """The string attributes that a plugin of the producer has added: all except the library's own.

        Raises `InvalidMessage` if the attributes that are packed into one cannot be read.
        """
        if MORE_ATTRIBUTE in self.texts:
            raise InvalidMessage(
                f"The attribute {MORE_ATTRIBUTE} of the message must be a JSON object of strings. Correct the program "
                "that has sent it."
            )
        return {name: self.texts[name] for name in sorted(self.texts.keys() - OWN_ATTRIBUTES)}


_FOR_SCHEDULES: Final = (
    ' If a rule of EventBridge has sent it, give its target the Input {"lambda_tasks": "maintenance"} for the '
    'maintenance, or {"lambda_tasks": "ping"} to keep the function warm.'
)


def _origin(record: object) -> str:
    """Return the end of the error about a record without an id: services other than SQS say who they are."""
    source = (record.get("eventSource") or record.get("EventSource")) if isinstance(record, Mapping) else None
    if not isinstance(source, str) or not source.startswith("aws:") or source == "aws:sqs":
        return ". The whole batch stays on the queue."
    return f": it comes from {shown(source)}, not from a queue. Let that service call another function."


def deliveries(event: object) -> list[Delivery]:
    """Return the messages of `event` in order and without duplicates, or raise `InvalidEvent` if an id is missing."""
    records = event.get("Records") if isinstance(event, Mapping) else None
    if not isinstance(records, list):
        names = islice(event, 10) if isinstance(event, Mapping) else ()
        has = ", ".join(map(shown, names)) or "no fields"
        raise InvalidEvent(
            f"The event must be a batch from an SQS event source mapping, with Records. It has: {has}."
            + (_FOR_SCHEDULES if isinstance(event, Mapping) and event.get("source") == "aws.events" else "")
        )
    found: dict[str, Delivery] = {}
    for delivery in map(Delivery.of, records):
        found.setdefault(delivery.raw_id, delivery)
    return list(found.values())


def _text_attributes(attributes: object) -> dict[str, str]:
    if not isinstance(attributes, dict):
        return {}
    return {
        name: value
        for name, attribute in attributes.items()
        if isinstance(attribute, dict) and isinstance(value := attribute.get("stringValue"), str) and value
    }


def _number(text: object) -> int | None:
    # SQS sends numbers as strings. Milliseconds have at most 15 digits, so a longer string is ignored.
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) <= 15 else None
