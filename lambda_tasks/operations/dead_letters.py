"""Read the dead letter queues of the queues in LAMBDA_TASKS_QUEUES, send their messages back, or delete them.

AWS moves messages by itself (StartMessageMoveTask). Where that is not available, as in emulators, each message is sent
to its queue first and deleted afterwards: if the process dies in between, the message is delivered twice, under one id,
and runs once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import lru_cache
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks import registry
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.foundation.parts import parts_of
from lambda_tasks.operations.aws import connect_to_aws
from lambda_tasks.operations.queues import VISIBLE
from lambda_tasks.recording.lines import sentence
from lambda_tasks.recording.masking import masked
from lambda_tasks.settings import app_settings
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE, QUEUE_ATTRIBUTE, unpacked
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.queue_urls import problem_of, server_of
from lambda_tasks.wire.signing import signed_again

if TYPE_CHECKING:
    from collections.abc import Callable

#: The most messages of one request, and the most attributes of a message.
_BATCH: Final = 10
_MAX_ATTRIBUTES: Final = 10
#: The most bytes of messages in one request, which older queues and emulators accept, too.
_MAX_REQUEST: Final = 256 * 1024
#: Seconds for which a received message is hidden from others while it is looked at or moved.
_HIDDEN: Final = 60
#: Seconds that a request waits for messages, which makes SQS look on all of its servers.
WAIT: Final = 1
#: Seconds between two questions how far AWS has moved the messages.
POLL: Final = 1.0
#: Error codes of servers that do not know StartMessageMoveTask, or cannot move the messages of this queue.
_UNSUPPORTED: Final = ("InvalidAction", "UnsupportedOperation", "NotImplemented", "UnknownOperation")
_SERVER_ERROR: Final = 500


class DeadLetterError(Exception):
    """A dead letter queue cannot be read, or its messages cannot be moved."""


@dataclass(frozen=True, slots=True)
class DeadLetterQueue:
    """A dead letter queue, and the queues in LAMBDA_TASKS_QUEUES whose messages end there: names and URLs by ARN."""

    name: str
    url: str
    arn: str
    sources: Mapping[str, tuple[str, str]]
    client: Any = field(repr=False, compare=False)

    @property
    def count(self) -> int:
        """The number of visible messages, approximately."""
        answer = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=[VISIBLE])
        return int(answer["Attributes"][VISIBLE])


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message in a dead letter queue. Sensitive arguments are masked; those of unknown tasks are left out."""

    queue: str
    #: The id of the invocation, under which its record is found, if there is one.
    message_id: str
    #: The name of the task; empty if the message is not an invocation, and `problem` says why.
    task_name: str = ""
    kwargs: dict[str, Any] | None = None
    #: Where the arguments are, if they are not in the message, because they are too large for it.
    stored: str = ""
    n_retries: int = 0
    receives: int = 0
    sent: datetime | None = None
    problem: str = ""


@dataclass(slots=True)
class Moved:
    """How many messages were sent back, and the errors of those that were not and stay where they are."""

    number: int = 0
    errors: list[str] = field(default_factory=list)


def dead_letter_queues(names: Sequence[str] = ()) -> list[DeadLetterQueue]:
    """Return the dead letter queues of the queues with these names, or of all queues in the settings.

    It needs the permissions `sqs:GetQueueAttributes` and `sqs:GetQueueUrl`. Raise `DeadLetterError` if a queue cannot
    be read, ValueError for an unknown name, and ImproperlyConfigured for invalid settings.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    from lambda_tasks.operations.doctor.asking import remedy_for

    urls = app_settings.queue_urls
    for name in names:
        if name not in urls:
            raise ValueError(
                f"--queue must be a queue in LAMBDA_TASKS_QUEUES ({', '.join(sorted(urls))}), not {name!r}. Correct "
                "--queue, or add the URL of the queue to the setting."
            )
    found: dict[str, DeadLetterQueue] = {}
    client_of = lru_cache(lambda server: connect_to_aws("sqs", server.region, server))
    for name in names or urls:
        if problem := problem_of(urls[name]):
            raise DeadLetterError(f"The URL of queue {name!r} {problem}")
        try:
            _add_queue_of(name, urls[name], client_of(server_of(urls[name])), found)
        except (BotoCoreError, ClientError) as error:
            raise DeadLetterError(
                f"Queue {name!r} ({urls[name]}) cannot be read: {sentence(error)} "
                f"{remedy_for(error, 'sqs:GetQueueAttributes')}"
            ) from error
    return list(found.values())


def _add_queue_of(name: str, url: str, client: Any, found: dict[str, DeadLetterQueue]) -> None:
    attributes = client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn", "RedrivePolicy"])["Attributes"]
    arn = json.loads(attributes.get("RedrivePolicy") or "{}").get("deadLetterTargetArn")
    if arn is None:
        return
    sources: Mapping[str, tuple[str, str]] = {attributes["QueueArn"]: (name, url)}
    if arn in found:
        known = found[arn]
        found[arn] = DeadLetterQueue(known.name, known.url, arn, {**known.sources, **sources}, known.client)
        return
    *_, account, dead_name = arn.split(":")
    dead_url = client.get_queue_url(QueueName=dead_name, QueueOwnerAWSAccountId=account)["QueueUrl"]
    found[arn] = DeadLetterQueue(dead_name, dead_url, arn, sources, client)


# Looking


def peek(queue: DeadLetterQueue, *, limit: int) -> list[DeadLetter]:
    """Return up to `limit` messages, which become visible again afterwards. Each receive is counted by SQS."""
    letters: list[DeadLetter] = []
    hidden: list[Mapping[str, Any]] = []
    try:
        while len(letters) < limit and (batch := _receive(queue, min(limit - len(letters), _BATCH))):
            hidden += batch
            letters += [_letter(queue, message) for message in batch]
    finally:
        for start in range(0, len(hidden), _BATCH):
            part = hidden[start : start + _BATCH]
            queue.client.change_message_visibility_batch(
                QueueUrl=queue.url,
                Entries=[
                    {"Id": str(place), "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0}
                    for place, message in enumerate(part)
                ],
            )
    return letters


def _receive(queue: DeadLetterQueue, number: int) -> list[Mapping[str, Any]]:
    answer = queue.client.receive_message(
        QueueUrl=queue.url,
        MaxNumberOfMessages=number,
        VisibilityTimeout=_HIDDEN,
        WaitTimeSeconds=WAIT,
        AttributeNames=["All"],  # the older name of MessageSystemAttributeNames, which every boto3 supports
        MessageAttributeNames=["All"],
    )
    messages: list[Mapping[str, Any]] = answer.get("Messages", [])
    return messages


def _letter(queue: DeadLetterQueue, message: Mapping[str, Any]) -> DeadLetter:
    attributes = message.get("Attributes", {})
    sent = attributes.get("SentTimestamp")
    letter = DeadLetter(
        queue.name,
        _id_of(message),
        receives=int(attributes.get("ApproximateReceiveCount") or 0),
        sent=None if sent is None else datetime.fromtimestamp(int(sent) / 1000, timezone.utc),
    )
    try:
        call = Invocation.of_body(message["Body"])
    except InvalidMessage as error:
        return replace(letter, problem=str(error))
    task = registry.known_task(call.task_name)
    letter = replace(letter, task_name=call.task_name, n_retries=call.n_retries)
    if call.stored is not None:
        return replace(letter, stored=str(call.stored))
    return replace(letter, kwargs=None if task is None else masked(call.kwargs, task.sensitive))


def _id_of(message: Mapping[str, Any]) -> str:
    carried = message.get("MessageAttributes", {}).get(MESSAGE_ID_ATTRIBUTE, {}).get("StringValue")
    return ids.canonical_id(carried or message["MessageId"])


# Sending back


def redrive(
    queue: DeadLetterQueue, *, limit: int | None = None, report: Callable[[int], object] = lambda number: None
) -> Moved:
    """Send the messages back to the queues that they came from, and return how many were.

    `report` is called with numbers of moved messages. AWS moves all messages; with a `limit`, and where AWS's way is
    not available, this process moves them. A message that comes back while it works is left there. Raise
    `DeadLetterError` if AWS cannot finish the move.
    """
    if limit is None and (handle := _start_move(queue)) is not None:
        return _follow_move(queue, handle, report)
    return _move_each(queue, float("inf") if limit is None else limit, report)


def _start_move(queue: DeadLetterQueue) -> str | None:
    """Ask AWS to move the messages. Return None if the server, or the installed boto3, does not know how to."""
    from botocore.exceptions import ClientError

    _, url = next(iter(queue.sources.values()))
    server = server_of(url)
    # Asked once: emulators answer with an internal error, as often as they are asked.
    start = getattr(connect_to_aws("sqs", server.region, server, attempts=1), "start_message_move_task", None)
    if start is None:
        return None
    try:
        answer: dict[str, str] = start(SourceArn=queue.arn)
    except ClientError as error:
        if _is_unsupported(error.response):
            return None
        raise DeadLetterError(f"The messages of {queue.name!r} cannot be moved: {error}") from error
    return answer["TaskHandle"]


def _is_unsupported(response: Mapping[str, Any]) -> bool:
    """Return whether a server does not know the request. Moving messages twice at a time would do no harm."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return status >= _SERVER_ERROR or any(part in code for part in _UNSUPPORTED)


def _follow_move(queue: DeadLetterQueue, handle: str, report: Callable[[int], object]) -> Moved:
    moved = Moved()
    while True:
        results = queue.client.list_message_move_tasks(SourceArn=queue.arn, MaxResults=10)["Results"]
        # A task that runs has its handle, and the latest one is the first.
        task = next((each for each in results if each.get("TaskHandle") == handle), results[0] if results else {})
        number = int(task.get("ApproximateNumberOfMessagesMoved") or 0)
        report(number - moved.number)
        moved.number = number
        if task.get("Status") == "FAILED":
            moved.errors.append(str(task.get("FailureReason") or "AWS gives no reason"))
        if task.get("Status") != "RUNNING":
            return moved
        sleep(POLL)


def _move_each(queue: DeadLetterQueue, limit: float, report: Callable[[int], object]) -> Moved:
    moved = Moved()
    seen: set[str] = set()
    while moved.number < limit and (batch := _receive(queue, int(min(limit - moved.number, _BATCH)))):
        fresh = [message for message in batch if _id_of(message) not in seen]
        seen.update(map(_id_of, batch))
        before = moved.number
        for url, messages in _by_source(queue, fresh, moved).items():
            _send_back(queue, url, messages, moved)
        report(moved.number - before)
        if not fresh:
            break  # the rest has come back: its cause persists
    return moved


def _by_source(
    queue: DeadLetterQueue, messages: Sequence[Mapping[str, Any]], moved: Moved
) -> dict[str, list[Mapping[str, Any]]]:
    """Group messages by the URL of the queue that each came from, and note those whose queue is unknown."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for message in messages:
        url = _source_of(queue, message)
        if url is None:
            moved.errors.append(f"{_id_of(message)} came from another queue than {_names(queue)}")
        else:
            groups.setdefault(url, []).append(message)
    return groups


def _source_of(queue: DeadLetterQueue, message: Mapping[str, Any]) -> str | None:
    """Return the URL of the queue that a message came from; None if that is another one, or unknown."""
    if arn := message.get("Attributes", {}).get("DeadLetterQueueSourceArn"):
        return queue.sources[arn][1] if arn in queue.sources else None
    # An emulator may omit the attribute. The library's own one has the name of the queue.
    urls = dict(queue.sources.values())
    name = message.get("MessageAttributes", {}).get(QUEUE_ATTRIBUTE, {}).get("StringValue")
    if name in urls or name in app_settings.queues:
        return urls.get(name)
    return next(iter(urls.values())) if len(urls) == 1 else None


def _names(queue: DeadLetterQueue) -> str:
    return ", ".join(sorted(name for name, _ in queue.sources.values()))


def _send_back(queue: DeadLetterQueue, url: str, messages: Sequence[Mapping[str, Any]], moved: Moved) -> None:
    """Send messages first and delete those that were accepted afterwards."""
    sent: list[Mapping[str, Any]] = []
    for part in _parts(messages):
        entries = [_entry(place, message) for place, message in enumerate(part)]
        answer = queue.client.send_message_batch(QueueUrl=url, Entries=entries)
        sent += [part[int(each["Id"])] for each in answer.get("Successful", [])]
        moved.errors += [f"{_id_of(part[int(each['Id'])])}: {each['Code']}" for each in answer.get("Failed", [])]
    if not sent:
        return
    answer = queue.client.delete_message_batch(
        QueueUrl=queue.url,
        Entries=[{"Id": str(place), "ReceiptHandle": each["ReceiptHandle"]} for place, each in enumerate(sent)],
    )
    moved.number += len(sent)
    moved.errors += [
        f"{_id_of(sent[int(each['Id'])])} was sent back, but could not be deleted: {each['Code']}"
        for each in answer.get("Failed", [])
    ]


def _parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Split messages, so that no request is larger than SQS accepts: a body may have up to the whole size."""

    def size(message: Mapping[str, Any]) -> int:
        return len(json.dumps([message["Body"], message.get("MessageAttributes", {})], default=str).encode())

    return parts_of(messages, size, most_size=_MAX_REQUEST)


def _entry(place: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message for a request, with the id that it had: SQS gives it a new one of its own."""
    attributes = {
        name: {key: value for key, value in each.items() if not key.endswith("ListValues")}
        for name, each in message.get("MessageAttributes", {}).items()
    }
    body = message["Body"]
    if MESSAGE_ID_ATTRIBUTE not in attributes and len(attributes) < _MAX_ATTRIBUTES and _is_invocation(message):
        before = unpacked(_texts(attributes))
        attributes[MESSAGE_ID_ATTRIBUTE] = {"DataType": "String", "StringValue": _id_of(message)}
        body = signed_again(body, before, unpacked(_texts(attributes)))
    entry = {"Id": str(place), "MessageBody": body, "MessageAttributes": attributes}
    if group := message.get("Attributes", {}).get("MessageGroupId"):
        entry["MessageGroupId"] = group
    return entry


def _texts(attributes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: value for name, each in attributes.items() if isinstance(value := each.get("StringValue"), str)}


def _is_invocation(message: Mapping[str, Any]) -> bool:
    try:
        Invocation.of_body(message["Body"])
    except InvalidMessage:
        return False
    return True


def purge(queue: DeadLetterQueue) -> None:
    """Delete all messages of the dead letter queue. SQS accepts this once in 60 seconds.

    Raise `DeadLetterError` if SQS refuses it.
    """
    from botocore.exceptions import ClientError

    try:
        queue.client.purge_queue(QueueUrl=queue.url)
    except ClientError as error:
        raise DeadLetterError(f"The messages of {queue.name!r} cannot be deleted: {error}") from error
