"""Jobs go to Amazon SQS, ten to a request. boto3 is imported when the first one is sent."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.exceptions import InvalidArguments, MessageTooLarge
from lambda_tasks.jobs import FIRST_SENT_ATTRIBUTE, Job
from lambda_tasks.settings import LambdaTasksSettings, app_settings

if TYPE_CHECKING:
    from botocore.client import BaseClient

logger = logging.getLogger("lambda_tasks.backends.sqs")

#: Limits of SQS (SendMessageBatch in its API reference): entries and bytes of a batch, and attributes.
MAX_ENTRIES: Final = 10
MAX_BYTES: Final = 1_048_576
MAX_ATTRIBUTES: Final = 10
#: Seconds: twelve hours.
MAX_VISIBILITY_TIMEOUT: Final = 43_200
#: Bytes by which a retry may be larger than the first message: its `n_retries`.
_RETRY_HEADROOM: Final = len(',"n_retries":2147483647')
#: How often the entries of a batch are sent that SQS refused by a fault of its own.
_BATCH_ATTEMPTS: Final = 3

_ATTRIBUTE_NAME: Final = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9_.-]{0,254}[A-Za-z0-9_-])?")
_ILLEGAL_CHARACTER: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
#: The region in the forms of a queue's address that AWS has: the usual one, FIPS, dual stack, an interface
#: endpoint in a VPC, and the one of old.
_REGION: Final = re.compile(
    r"//(?:(?:vpce-[a-z0-9-]+\.)?sqs(?:-fips)?\.([a-z0-9-]+)\.(?:vpce\.)?|([a-z0-9-]+)\.queue\.)"
    r"(?:amazonaws\.com|api\.aws)"
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A job as SQS takes it, and the bytes that SQS counts of it."""

    job: Job
    fields: dict[str, Any]
    size: int


class SQSBackend(BaseBackend):
    """Sends to the queues of LAMBDA_TASKS_QUEUES with one boto3 client per process and region.

    Options: `endpoint_url` for another server than AWS's (AWS_ENDPOINT_URL_SQS is honoured too);
    `max_message_bytes` where a queue takes less than 1 MiB; `connect_timeout` and `read_timeout` in
    seconds, and `max_attempts`, of each request.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        max_message_bytes: int = MAX_BYTES,
        connect_timeout: float = 2,
        read_timeout: float = 5,
        max_attempts: int = 2,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self._client_options = {"endpoint_url": endpoint_url}
        self._config = {
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "retries": {"mode": "standard", "total_max_attempts": max_attempts},
        }
        self._clients: dict[tuple[int, str | None], BaseClient] = {}
        self._making_client = threading.Lock()

    def validate(self, job: Job) -> None:
        """Refuse unknown queues, attributes that SQS does not take, and messages over the size limit."""
        super().validate(job)
        attributes = _attributes_of_retry(job)
        _check_attributes(job, attributes)
        size = _size(job.message.to_body(), attributes) + _RETRY_HEADROOM
        if size > self.max_message_bytes:
            raise MessageTooLarge(
                f"The message of {job.task_name} has {size:,} bytes with its attributes, and SQS takes "
                f"{self.max_message_bytes:,}; store the data elsewhere and send its key."
            )

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        """Send in as few requests as the limits allow; boto3's exceptions pass through at the end."""
        errors = [
            error
            for url, entries in _by_queue(jobs).items()
            for batch in self._batches(entries)
            for error in self._send_batch(url, batch, taken)
        ]
        for error in errors[1:]:
            logger.error("A message could not be sent to SQS.", exc_info=error)
        if errors:
            raise errors[0]

    def postpone(self, records: Sequence[tuple[Mapping[str, Any], float]]) -> None:
        for url, entries in _entries_by_queue(records).items():
            for start in range(0, len(entries), MAX_ENTRIES):
                batch = [{"Id": str(i), **entry} for i, entry in enumerate(entries[start : start + MAX_ENTRIES])]
                try:
                    self._client(url).change_message_visibility_batch(QueueUrl=url, Entries=batch)
                except Exception as error:
                    # Without the permission the messages come back when their visibility timeout ends.
                    logger.debug("The visibility of %d messages was not changed: %s", len(batch), error)

    def _batches(self, entries: list[_Entry]) -> Iterator[list[_Entry]]:
        batch: list[_Entry] = []
        batch_size = 0
        for entry in entries:
            if batch and (len(batch) == MAX_ENTRIES or batch_size + entry.size > self.max_message_bytes):
                yield batch
                batch, batch_size = [], 0
            batch.append(entry)
            batch_size += entry.size
        if batch:
            yield batch

    def _send_batch(self, url: str, batch: list[_Entry], taken: Callable[[Job], None]) -> list[Exception]:
        """Send one batch and return the errors of what SQS has not taken."""
        from botocore.exceptions import BotoCoreError, ClientError

        errors: list[Exception] = []

        def refused(reason: dict[str, str]) -> None:
            errors.append(ClientError({"Error": reason}, "SendMessageBatch"))

        try:
            client = self._client(url)
            if len(batch) == 1:
                client.send_message(QueueUrl=url, **batch[0].fields)
                taken(batch[0].job)
                return errors
            _send_entries(client, url, {str(i): entry for i, entry in enumerate(batch)}, taken, refused)
        except (BotoCoreError, ClientError) as error:
            errors.append(error)
        return errors

    def _client(self, url: str) -> Any:
        match = _REGION.search(url)
        region = (match[1] or match[2]) if match else None
        # A client's open connections are not to be shared with a forked process.
        key = (os.getpid(), region)
        with self._making_client:
            if key not in self._clients:
                import boto3
                from botocore.config import Config

                self._clients[key] = boto3.client(
                    "sqs", region_name=region, config=Config(**self._config), **self._client_options
                )
            return self._clients[key]


def _by_queue(jobs: Sequence[Job]) -> dict[str, list[_Entry]]:
    queues = defaultdict(list)
    for job in jobs:
        body, attributes = job.message.to_body(), job.message_attributes()
        fields = {
            "MessageBody": body,
            "DelaySeconds": job.delay,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
            },
        }
        url = app_settings.queue_url(job.queue, task_name=job.task_name)
        queues[url].append(_Entry(job, fields, _size(body, attributes)))
    return queues


def _send_entries(
    client: Any,
    url: str,
    waiting: dict[str, _Entry],
    taken: Callable[[Job], None],
    refused: Callable[[dict[str, str]], None],
) -> None:
    """Send the entries, those again that failed by the service's fault; tell why others were refused."""
    for attempt in range(1, _BATCH_ATTEMPTS + 1):
        answer = client.send_message_batch(
            QueueUrl=url, Entries=[{"Id": entry_id, **entry.fields} for entry_id, entry in waiting.items()]
        )
        for success in answer.get("Successful") or ():
            if (entry := waiting.pop(success["Id"], None)) is not None:
                taken(entry.job)
        failures = {failure["Id"]: failure for failure in answer.get("Failed") or ()}
        for entry_id in list(waiting):
            failure = failures.get(entry_id, {"Code": "NoAnswer", "Message": "SQS did not mention the entry."})
            if failure.get("SenderFault") or attempt == _BATCH_ATTEMPTS:
                job = waiting.pop(entry_id).job
                message = f"{job.task_name} [{job.message_id}]: {failure.get('Message', '')}"
                refused({"Code": failure.get("Code", "Unknown"), "Message": message})
        if not waiting:
            break
        time.sleep(random.uniform(0, 0.1 * 2**attempt))


def _size(body: str, attributes: Mapping[str, str]) -> int:
    """Return what SQS counts: the body, and name, type and value of each attribute, in UTF-8."""
    return len(body.encode()) + sum(
        len(name.encode()) + len("String") + len(value.encode()) for name, value in attributes.items()
    )


def _attributes_of_retry(job: Job) -> dict[str, str]:
    """Return the attributes of the job, and what a retry of it has besides: it must fit too."""
    attributes = job.message_attributes()
    if job.task is not None and job.task.expires_in is not None:
        attributes.setdefault(FIRST_SENT_ATTRIBUTE, "0" * len("1700000000000"))
    return attributes


def _check_attributes(job: Job, attributes: Mapping[str, str]) -> None:
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidArguments(
            f"The message of {job.task_name} has {len(attributes)} attributes ({', '.join(attributes)}); "
            f"SQS takes {MAX_ATTRIBUTES}."
        )
    for name, value in attributes.items():
        if not _ATTRIBUTE_NAME.fullmatch(name) or ".." in name or name.lower().startswith(("aws.", "amazon.")):
            raise InvalidArguments(f"Message attribute {name!r} of {job.task_name} has a name that SQS refuses.")
        text: object = value  # a plugin's, whatever its annotations say
        if not isinstance(text, str) or not text or _ILLEGAL_CHARACTER.search(text):
            raise InvalidArguments(
                f"Message attribute {name!r} of {job.task_name} is empty, no text, or has characters that SQS refuses."
            )


def _entries_by_queue(records: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, list[dict[str, Any]]]:
    by_queue: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if not LambdaTasksSettings.queues.is_set:
        return by_queue
    for record, seconds in records:
        if (url := _queue_url_of(record)) and record.get("receiptHandle"):
            timeout = min(int(seconds), MAX_VISIBILITY_TIMEOUT)
            by_queue[url].append({"ReceiptHandle": record["receiptHandle"], "VisibilityTimeout": timeout})
    return by_queue


def _queue_url_of(record: Mapping[str, Any]) -> str | None:
    """Return the URL of the queue that a record of an event came from, if it is one of ours."""
    _, _, account_and_name = str(record.get("eventSourceARN", "")).partition(":sqs:")
    _, _, account_and_name = account_and_name.partition(":")
    path = account_and_name.replace(":", "/")
    return next((url for url in app_settings.queues.values() if path and url.rstrip("/").endswith(f"/{path}")), None)
