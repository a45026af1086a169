"""Lambda's event source mapping for SQS: poll, make the event, read the answer, delete what is done.

The rules are AWS's: https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html and
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html. The pure functions
(`build_event`, `split_by_size`, `judge`, `interpret_answer`) know nothing of queues and processes.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, InvocationResult, TimedOut

#: What a boto3 client raises.
SQS_ERRORS: Final = (BotoCoreError, ClientError)

#: The most messages that one ReceiveMessage or DeleteMessageBatch takes.
MAX_PER_CALL: Final = 10
#: Bytes: the largest event that Lambda takes.
MAX_EVENT_SIZE: Final = 6 * 1024 * 1024
#: Limits of an event source mapping.
MAX_BATCH_SIZE: Final = 10_000
MAX_BATCHING_WINDOW: Final = 300

_COUNTS: Final = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)
_REGION_IN_URL: Final = re.compile(r"//(?:sqs\.)?([a-z0-9-]+)(?:\.queue)?\.amazonaws\.com")

#: A message as boto3 has it.
Message: TypeAlias = Mapping[str, Any]
#: A message as Lambda's event has it.
Record: TypeAlias = dict[str, Any]


class QueueUnavailable(Exception):
    """A queue cannot be read: it does not exist, is not ours to read, or SQS cannot be reached."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the end of an invocation means for its messages.

    `failed_ids` are those that must stay in the queue; `reason` says why, and is empty where none
    has to.
    """

    failed_ids: frozenset[str]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages that go into one invocation, and the event that they make."""

    messages: tuple[Message, ...]
    event: dict[str, Any]

    @property
    def message_ids(self) -> tuple[str, ...]:
        """Their ids, in the order of the event. The same id may be there twice."""
        return tuple(message["MessageId"] for message in self.messages)


# From messages to an event.


def build_event(records: Iterable[Record]) -> dict[str, Any]:
    """Return the event that Lambda calls a handler with."""
    return {"Records": list(records)}


def build_record(message: Message, *, queue_arn: str) -> Record:
    """Return `message` in the shape that it has in Lambda's event."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": {name: str(value) for name, value in message.get("Attributes", {}).items()},
        "messageAttributes": {
            name: _message_attribute(value) for name, value in message.get("MessageAttributes", {}).items()
        },
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": queue_arn.split(":")[3],
    }


def _message_attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    attribute: dict[str, Any] = {}
    if "StringValue" in value:
        attribute["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        attribute["binaryValue"] = _base64(value["BinaryValue"])
    return {
        **attribute,
        "stringListValues": list(value.get("StringListValues", ())),
        "binaryListValues": [_base64(item) for item in value.get("BinaryListValues", ())],
        "dataType": value["DataType"],
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def split_by_size(records: Iterable[Record], *, limit: int = MAX_EVENT_SIZE) -> Iterator[list[Record]]:
    """Split records, in their order, so that the event of each part stays within `limit` bytes."""
    part: list[Record] = []
    size = overhead = len(json.dumps(build_event([])))
    for record in records:
        record_size = len(json.dumps(record)) + len(", ")
        if part and size + record_size > limit:
            yield part
            part, size = [], overhead
        part.append(record)
        size += record_size
    if part:
        yield part


# From the answer to a verdict.


def judge(result: InvocationResult, message_ids: Collection[str]) -> Verdict:
    """Say which of the messages must stay in the queue after an invocation that ended so."""
    match result:
        case Answered(body):
            return interpret_answer(body, message_ids)
        case Errored():
            return _everything_failed(message_ids, f"the handler raised {result}")
        case Crashed(how):
            return _everything_failed(message_ids, f"the runtime crashed: {how}")
        case TimedOut(seconds):
            return _everything_failed(message_ids, f"the function timed out after {seconds:g} s")


def interpret_answer(body: bytes, message_ids: Collection[str]) -> Verdict:
    """Read a handler's answer under the rules of `ReportBatchItemFailures`.

    `{"batchItemFailures": []}`, a null list, `{}` and null say that all is done. Whatever does not
    name failed messages of this batch, and only such, makes the whole batch fail.
    """
    try:
        failed = frozenset(_reported_failures(_parse(body), message_ids))
    except ValueError as error:
        return _everything_failed(message_ids, f"the handler's answer cannot be used: {error}")
    return Verdict(failed, "the handler reported them as failed" if failed else "")


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}): {_excerpt(body)}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _reported_failures(answer: Any, message_ids: Collection[str]) -> Iterator[str]:
    if answer is None or answer == {}:
        return
    if not isinstance(answer, dict) or "batchItemFailures" not in answer:
        raise ValueError(f'it has no key "batchItemFailures": {_excerpt(answer)}')
    failures = answer["batchItemFailures"]
    if failures is None:
        return
    if not isinstance(failures, list):
        raise ValueError(f'"batchItemFailures" is not a list: {_excerpt(failures)}')
    for failure in failures:
        yield _failed_id(failure, message_ids)


def _failed_id(failure: Any, message_ids: Collection[str]) -> str:
    if not isinstance(failure, dict) or "itemIdentifier" not in failure:
        raise ValueError(f'an item has no key "itemIdentifier": {_excerpt(failure)}')
    identifier = failure["itemIdentifier"]
    if not isinstance(identifier, str) or not identifier:
        raise ValueError(f'an "itemIdentifier" is null, empty or no text: {_excerpt(failure)}')
    if identifier not in message_ids:
        raise ValueError(f"the itemIdentifier {_excerpt(identifier)} is of no message in this batch")
    return identifier


def _everything_failed(message_ids: Collection[str], reason: str) -> Verdict:
    return Verdict(frozenset(message_ids), reason)


def _excerpt(value: object, length: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= length else text[:length] + "…"


# The queue.


class EventSource:
    """One queue, polled as an event source mapping polls it. Safe to use from many threads.

    `wait_seconds` is how long one poll waits for a first message, and so how long a stop may take;
    `batching_window_seconds` how long a batch that has begun waits to be filled.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        client: Any,
        batch_size: int,
        batching_window_seconds: int,
        wait_seconds: int,
    ) -> None:
        self.name = name
        self.url = url
        self._client = client
        self._batch_size = batch_size
        self._window = batching_window_seconds
        self._wait = wait_seconds
        self._turn = threading.Lock()
        attributes = self._describe()
        self.arn: str = attributes["QueueArn"]
        self.visibility_timeout = int(attributes["VisibilityTimeout"])

    @property
    def region(self) -> str:
        """The region, as the queue's ARN has it."""
        return self.arn.split(":")[3]

    def gather(self, stopping: threading.Event) -> list[Message]:
        """Wait for messages; return up to the batch size, none if none came.

        One thread polls at a time, the others wait for their turn: more polls of an empty queue
        would bring nothing sooner.
        """
        with self._turn:
            if stopping.is_set():
                return []
            messages = self._receive(self._batch_size, wait=self._wait)
            if messages:
                with suppress(*SQS_ERRORS):  # what has been received must not wait for SQS to recover
                    self._fill(messages, stopping)
            return messages

    def batches(self, messages: Sequence[Message]) -> Iterator[Batch]:
        """Make of gathered messages the batches, nearly always one, that Lambda would take as events."""
        remaining = iter(messages)
        for part in split_by_size(build_record(message, queue_arn=self.arn) for message in messages):
            yield Batch(tuple(next(remaining) for _ in part), build_event(part))

    def delete_succeeded(self, batch: Batch, verdict: Verdict) -> list[str]:
        """Delete what `verdict` does not keep; return complaints of SQS about single messages."""
        done = [message for message in batch.messages if message["MessageId"] not in verdict.failed_ids]
        complaints: list[str] = []
        for start in range(0, len(done), MAX_PER_CALL):
            complaints += self._delete(done[start : start + MAX_PER_CALL])
        return complaints

    def is_idle(self) -> bool:
        """Whether nothing is in the queue: visible, in flight or delayed.

        On AWS these numbers are approximate, and may lag behind by a minute.
        """
        # Twice: a message that becomes visible between two of the counts is in neither.
        return self._counts_nothing() and self._counts_nothing()

    def _counts_nothing(self) -> bool:
        answer = self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=list(_COUNTS))
        return all(int(answer["Attributes"][name]) == 0 for name in _COUNTS)

    def _describe(self) -> dict[str, str]:
        try:
            answer = self._client.get_queue_attributes(
                QueueUrl=self.url, AttributeNames=["QueueArn", "VisibilityTimeout"]
            )
        except SQS_ERRORS as error:
            raise QueueUnavailable(_cannot_read(self.name, self.url, self._client, error)) from error
        attributes: dict[str, str] = answer["Attributes"]
        return attributes

    def _receive(self, room: int, *, wait: int) -> list[Message]:
        answer = self._client.receive_message(
            QueueUrl=self.url,
            MaxNumberOfMessages=min(room, MAX_PER_CALL),
            WaitTimeSeconds=wait,
            AttributeNames=["All"],  # the older name of MessageSystemAttributeNames: every boto3 knows it
            MessageAttributeNames=["All"],
        )
        messages: list[Message] = answer.get("Messages", [])
        return messages

    def _fill(self, messages: list[Message], stopping: threading.Event) -> None:
        closes_at = time.monotonic() + self._window
        while len(messages) < self._batch_size and not stopping.is_set():
            left = closes_at - time.monotonic()
            if left <= 0:
                return
            messages += self._receive(self._batch_size - len(messages), wait=min(self._wait, math.ceil(left)))

    def _delete(self, messages: Sequence[Message]) -> list[str]:
        answer = self._client.delete_message_batch(
            QueueUrl=self.url,
            Entries=[
                {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
                for number, message in enumerate(messages)
            ],
        )
        return [
            f"SQS did not delete {messages[int(failed['Id'])]['MessageId']}, so it comes again: {failed['Code']}"
            for failed in answer.get("Failed", [])
        ]


def open_sources(queues: Mapping[str, str], *, endpoint_url: str | None = None, **options: int) -> list[EventSource]:
    """Return an event source for each queue, with `EventSource`'s options; `queues` has URLs by name.

    Raises `QueueUnavailable`. Without `endpoint_url`, boto3 honours AWS_ENDPOINT_URL_SQS.
    """
    session = boto3.session.Session()  # one for all: it is what takes time, a client is had in milliseconds
    return [
        EventSource(name, url, client=_connect(session, url, endpoint_url), **options) for name, url in queues.items()
    ]


def _connect(session: Any, queue_url: str, endpoint_url: str | None) -> Any:
    return session.client(
        "sqs",
        region_name=region_in(queue_url) or session.region_name or "us-east-1",
        endpoint_url=endpoint_url,
        # One connection for each thread that polls or deletes.
        config=Config(connect_timeout=2, read_timeout=10, max_pool_connections=50, retries={"mode": "standard"}),
    )


def region_in(queue_url: str) -> str | None:
    """Return the region that the URL of a queue names, None for one that is not on AWS."""
    match = _REGION_IN_URL.search(queue_url)
    return match[1] if match else None


def _cannot_read(name: str, url: str, client: Any, error: Exception) -> str:
    return (
        f"Queue {name!r} ({url}) cannot be read at {client.meta.endpoint_url}: {error}. Check its URL in "
        f"LAMBDA_TASKS_QUEUES, the AWS credentials (for moto or LocalStack any will do), and "
        f"AWS_ENDPOINT_URL_SQS if SQS runs on this machine."
    )
