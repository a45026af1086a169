"""Lambda's event source mapping for SQS: poll, build the event, read the response, delete finished messages.

The rules are those of AWS: https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html and
https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html. `build_event`, `split_by_size`, `judge`
and `interpret_answer` are pure functions, which do not depend on queues or processes.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NoReturn, TypeAlias

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from lambda_tasks.foundation.parts import parts_of
from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, InvocationResult, TimedOut
from lambda_tasks.real_aws import guarded
from lambda_tasks.recording.lines import sentence
from lambda_tasks.wire.queue_urls import client_options, problem_of, server_of

#: The exceptions that a boto3 client raises.
SQS_ERRORS: Final = (BotoCoreError, ClientError)

#: The maximum number of messages in one ReceiveMessage or DeleteMessageBatch request.
MAX_PER_CALL: Final = 10
#: The maximum size of an event in Lambda, in bytes.
MAX_EVENT_SIZE: Final = 6 * 1024 * 1024
#: The largest batch of an event source mapping.
MAX_BATCH_SIZE: Final = 10_000

#: Error codes of AWS, and names of botocore's errors, after which a client with other credentials may succeed.
_ABOUT_CREDENTIALS: Final = re.compile(
    "Expired|InvalidClientToken|UnrecognizedClient|InvalidAccessKey|Credential|Token"
)

#: Seconds to wait for the answer to a request, in addition to the time that a poll itself waits; and for a connection.
_READ_TIMEOUT: Final = 10
_CONNECT_TIMEOUT: Final = 2
_ATTEMPTS: Final = 3

_COUNTS: Final = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)

#: A message in the format of boto3.
Message: TypeAlias = Mapping[str, Any]
#: A message in the format of Lambda's event.
Record: TypeAlias = dict[str, Any]


class QueueUnavailable(Exception):
    """A queue cannot be read: it does not exist, a permission is missing, or SQS is unavailable."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which messages of an invocation must stay in the queue.

    `failed_ids` are the ids of these messages. `reason` says why they must stay, and is empty if there are none.
    """

    failed_ids: frozenset[str]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReceivedBatch:
    """The messages of one invocation, and their event."""

    messages: tuple[Message, ...]
    event: dict[str, Any]

    @property
    def message_ids(self) -> tuple[str, ...]:
        """The ids of the messages, in the order of the event. An id may occur twice."""
        return tuple(message["MessageId"] for message in self.messages)


# From messages to an event.


def build_event(records: Iterable[Record]) -> dict[str, Any]:
    """Return the event with which Lambda calls a handler."""
    return {"Records": list(records)}


def build_record(message: Message, *, queue_arn: str) -> Record:
    """Return `message` in the format of Lambda's event."""
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
    """Split records in order, so that the event of each part has at most `limit` bytes."""
    overhead = len(json.dumps(build_event([])))
    return parts_of(records, lambda record: len(json.dumps(record)) + len(", "), most_size=limit - overhead)


# From the response to a verdict.


def judge(result: InvocationResult, message_ids: Collection[str]) -> Verdict:
    """Return which messages must stay in the queue after an invocation with this result."""
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
    """Interpret a handler's response by the rules of `ReportBatchItemFailures`.

    `{"batchItemFailures": []}`, a null list, `{}` and null mean that all messages succeeded. A malformed response, or
    one with an id that is not in this batch, fails the whole batch.
    """
    try:
        failed = frozenset(_reported_failures(_parse(body), message_ids))
    except ValueError as error:
        return _everything_failed(message_ids, f"the handler's response is invalid: {error}")
    return Verdict(failed, "the handler reported them as failed" if failed else "")


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}): {_excerpt(body)}") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not allowed in JSON")


def _reported_failures(answer: Any, message_ids: Collection[str]) -> Iterator[str]:
    if answer is None or answer == {}:
        return
    if not isinstance(answer, dict) or "batchItemFailures" not in answer:
        raise ValueError(f'it lacks the key "batchItemFailures": {_excerpt(answer)}')
    failures = answer["batchItemFailures"]
    if failures is None:
        return
    if not isinstance(failures, list):
        raise ValueError(f'"batchItemFailures" must be a list, not {_excerpt(failures)}')
    for failure in failures:
        yield _failed_id(failure, message_ids)


def _failed_id(failure: Any, message_ids: Collection[str]) -> str:
    if not isinstance(failure, dict) or "itemIdentifier" not in failure:
        raise ValueError(f'an item lacks the key "itemIdentifier": {_excerpt(failure)}')
    identifier = failure["itemIdentifier"]
    if not isinstance(identifier, str) or not identifier:
        raise ValueError(f'"itemIdentifier" must be a non-empty string: {_excerpt(failure)}')
    if identifier not in message_ids:
        raise ValueError(f"the itemIdentifier {_excerpt(identifier)} is not the id of a message in this batch")
    return identifier


def _everything_failed(message_ids: Collection[str], reason: str) -> Verdict:
    return Verdict(frozenset(message_ids), reason)


def _excerpt(value: object, length: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= length else text[:length] + "…"


# The queue.


class EventSource:
    """A queue that is polled like an event source mapping polls it. Thread-safe.

    `wait_seconds` is how long one poll waits for a first message, and thereby how long stopping may take.
    `batching_window_seconds` is how long a batch may take to fill after its first message. `connect` makes another
    client when the credentials of `client` have expired.
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
        connect: Callable[[], Any] | None = None,
    ) -> None:
        self.name = name
        self.url = url
        self._client = client
        self._connect = connect
        self._batch_size = batch_size
        self._window = batching_window_seconds
        self._wait = wait_seconds
        self._turn = threading.Lock()
        attributes = self._describe()
        self.arn: str = attributes["QueueArn"]
        self.visibility_timeout = int(attributes["VisibilityTimeout"])

    @property
    def region(self) -> str:
        """The region in the queue's ARN."""
        return self.arn.split(":")[3]

    @property
    def longest_gathering(self) -> float:
        """Seconds that `gather()` may take after its turn has come, if SQS answers only its last request."""
        return float(_ATTEMPTS * (_CONNECT_TIMEOUT + _READ_TIMEOUT + self._wait) + self._window)

    def gather(self, stopping: threading.Event, *, on_turn: Callable[[], object] = lambda: None) -> list[Message]:
        """Wait for messages, and return up to the batch size, or an empty list if none arrived.

        One thread polls at a time while the others wait, because parallel polls of an empty queue would not receive
        messages any sooner. `on_turn` is called when the turn of this thread has come.
        """
        with self._turn:
            on_turn()
            if stopping.is_set():
                return []
            messages = self._receive(self._batch_size, wait=self._wait)
            if messages:
                with suppress(*SQS_ERRORS):  # messages that were received must not wait for SQS to recover
                    self._fill(messages, stopping)
            return messages

    def batches(self, messages: Sequence[Message], *, one_by_one: bool = False) -> Iterator[ReceivedBatch]:
        """Yield the messages as batches whose events Lambda would accept: nearly always a single batch.

        With `one_by_one`, each message is a batch of its own.
        """
        records = [build_record(message, queue_arn=self.arn) for message in messages]
        remaining = iter(messages)
        for part in ([record] for record in records) if one_by_one else split_by_size(records):
            yield ReceivedBatch(tuple(next(remaining) for _ in part), build_event(part))

    def renew_client(self, error: Exception) -> None:
        """After an error about the credentials, make a new client, which reads them again."""
        code = error.response["Error"].get("Code", "") if isinstance(error, ClientError) else type(error).__name__
        if self._connect is not None and _ABOUT_CREDENTIALS.search(str(code)):
            self._client = self._connect()

    def delete_succeeded(self, batch: ReceivedBatch, verdict: Verdict) -> list[str]:
        """Delete the messages that `verdict` does not keep, and return SQS's errors for single messages."""
        done = [message for message in batch.messages if message["MessageId"] not in verdict.failed_ids]
        complaints: list[str] = []
        for start in range(0, len(done), MAX_PER_CALL):
            complaints += self._delete(done[start : start + MAX_PER_CALL])
        return complaints

    def change_visibility(self, messages: Sequence[Message], seconds: int) -> list[str]:
        """Make messages visible in `seconds`, and return SQS's errors for single messages."""
        complaints: list[str] = []
        for start in range(0, len(messages), MAX_PER_CALL):
            part = messages[start : start + MAX_PER_CALL]
            answer = self._client.change_message_visibility_batch(
                QueueUrl=self.url,
                Entries=[
                    {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": seconds}
                    for number, message in enumerate(part)
                ],
            )
            complaints += [
                f"SQS did not change the visibility timeout of {part[int(failed['Id'])]['MessageId']}: {failed['Code']}"
                for failed in answer.get("Failed", [])
            ]
        return complaints

    def is_idle(self) -> bool:
        """Return whether the queue has no visible, in-flight or delayed messages.

        On AWS these numbers are approximate, and may lag behind by a minute.
        """
        # Count twice, because a message that becomes visible between two of the counts is in neither.
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
            AttributeNames=["All"],  # the older name of MessageSystemAttributeNames, which every boto3 supports
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
            f"SQS did not delete {messages[int(failed['Id'])]['MessageId']}, so it will be redelivered: "
            f"{failed['Code']}"
            for failed in answer.get("Failed", [])
        ]


def open_sources(queues: Mapping[str, str], *, endpoint_url: str | None = None, **options: int) -> list[EventSource]:
    """Return an event source for each queue, with the options of `EventSource`. `queues` maps names to URLs.

    Raise `QueueUnavailable` if a queue cannot be read. Without `endpoint_url`, boto3 uses AWS_ENDPOINT_URL_SQS.
    """
    for name, url in queues.items():
        if problem := problem_of(url):
            raise QueueUnavailable(f"The URL of queue {name!r} {problem}")
    waits = options.get("wait_seconds", 0)
    session = boto3.session.Session()  # shared, because creating it is slow, and creating a client is fast

    def connect_again(url: str) -> Any:
        return _connect(boto3.session.Session(), url, endpoint_url, waits)

    return [
        EventSource(
            name,
            url,
            client=_connect(session, url, endpoint_url, waits),
            connect=partial(connect_again, url),
            **options,
        )
        for name, url in queues.items()
    ]


def _connect(session: Any, queue_url: str, endpoint_url: str | None, wait_seconds: int) -> Any:
    server = server_of(queue_url)
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT,
        read_timeout=_READ_TIMEOUT + wait_seconds,  # an empty queue answers a poll only when its time has passed
        max_pool_connections=50,  # one for each thread that polls or deletes
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
    )
    region = server.region or session.region_name or "us-east-1"
    options = client_options(
        session.client, "sqs", replace(server, region=region), config=config, endpoint_url=endpoint_url
    )
    return guarded(session.client("sqs", **options))


def _cannot_read(name: str, url: str, client: Any, error: Exception) -> str:
    return (
        f"Queue {name!r} ({url}) cannot be read at {client.meta.endpoint_url}: {sentence(error)} Check its URL in "
        f"LAMBDA_TASKS_QUEUES, the AWS credentials (moto and LocalStack accept any), and AWS_ENDPOINT_URL_SQS if SQS "
        f"runs on this machine."
    )
