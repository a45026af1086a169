"""Jobs go to Amazon SQS, ten to a request. boto3 is imported when the first one is sent."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.backends.side_by_side import SideBySide
from lambda_tasks.exceptions import InvalidArguments, MessageTooLarge
from lambda_tasks.jobs import FIRST_SENT_ATTRIBUTE, OWN_ATTRIBUTES, Job
from lambda_tasks.settings import LambdaTasksSettings, app_settings, whole_number

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

logger = logging.getLogger("lambda_tasks.backends.sqs")

#: Limits of SQS (SendMessageBatch in its API reference): entries and bytes of a batch, and attributes.
MAX_ENTRIES: Final = 10
MAX_BYTES: Final = 1_048_576
MAX_ATTRIBUTES: Final = 10
#: Seconds: twelve hours.
MAX_VISIBILITY_TIMEOUT: Final = 43_200
#: Bytes by which a retry may be larger than the first message: its `n_retries`.
_RETRY_HEADROOM: Final = len(',"n_retries":2147483647')
#: Open connections that a client keeps, for all threads of a process that send at the same time.
_CONNECTIONS: Final = 50
#: Seconds that a request must wait for its answer for threads to be worth what they cost: SQS itself takes
#: several milliseconds, an emulator on the same machine none.
_WORTH_A_THREAD: Final = 0.002
#: How often the entries of a batch are sent that SQS refused by a fault of its own.
_BATCH_ATTEMPTS: Final = 3

#: Errors of SQS (SendMessage and SendMessageBatch in its API reference) that are about the message itself.
_ABOUT_CONTENTS: Final = frozenset(
    {"InvalidMessageContents", "InvalidParameterValue", "UnsupportedOperation", "BatchRequestTooLong"}
)
#: Errors of a batch's entries that SQS calls the sender's fault, and that pass all the same: permissions, keys and
#: quotas can be given, a queue can be made, and a FIFO queue (which misses a parameter) be replaced.
_CURABLE: Final = re.compile(
    "Kms|KMS|Throttl|OverLimit|Access|Auth|Security|Token|NonExistent|DoesNotExist|Unavailable|MissingParameter"
)

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
    """A job, its attributes, and the bytes that SQS counts of both."""

    job: Job
    attributes: Mapping[str, str]
    size: int

    def fields(self) -> dict[str, Any]:
        """Return the job as SQS takes it."""
        return {
            "MessageBody": self.job.body,
            "DelaySeconds": self.job.delay,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in self.attributes.items()
            },
        }


@dataclass(slots=True)
class _Server:
    """What is known of a region's SQS during one call of `send()`."""

    region: str | None = None
    #: How many requests were answered, by a refusal too.
    answers: int = 0
    #: Whether no further request is tried.
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class _Batch:
    url: str
    server: _Server
    entries: list[_Entry]


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error, and the jobs that it kept from being sent."""

    error: Exception
    jobs: list[Job]
    #: Whether SQS says that the jobs themselves are to blame: it will never take them.
    final: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of a batch."""

    taken: list[Job] = field(default_factory=list)
    failures: list[_Failure] = field(default_factory=list)
    not_tried: list[Job] = field(default_factory=list)


class SQSBackend(BaseBackend):
    """Sends to the queues of LAMBDA_TASKS_QUEUES with one boto3 client per process and region.

    Options: `endpoint_url` for another server than AWS's (AWS_ENDPOINT_URL_SQS is honoured too);
    `max_message_bytes` where a queue takes less than 1 MiB; `connect_timeout` and `read_timeout` in
    seconds, and `max_attempts`, of each request; `max_threads`, how many requests of one commit are made
    side by side.
    """

    def __init__(
        self,
        *,
        endpoint_url: str | None = None,
        max_message_bytes: int = MAX_BYTES,
        connect_timeout: float = 2,
        read_timeout: float = 5,
        max_attempts: int = 2,
        max_threads: int = 8,
    ) -> None:
        try:
            self.max_threads = whole_number(1)(max_threads, "max_threads")
        except ValueError as error:
            raise TypeError(str(error)) from None  # an option that is refused, as any other
        self.max_message_bytes = max_message_bytes
        self._client_options = {"endpoint_url": endpoint_url}
        self._config = {
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "retries": {"mode": "standard", "total_max_attempts": max_attempts},
            "max_pool_connections": max(_CONNECTIONS, max_threads),
            # validate() has looked at what can be wrong; botocore would look at the type of every field again.
            "parameter_validation": False,
        }
        self._clients: dict[tuple[int, str | None], BaseClient] = {}
        self._making_client = threading.Lock()
        #: Seconds that the latest request to a region waited for its answer, of those that were made alone.
        self._waited: dict[str | None, float] = {}

    def validate(self, job: Job) -> None:
        """Refuse unknown queues, attributes that SQS does not take, and messages over the size limit."""
        super().validate(job)
        attributes = _attributes_of_retry(job)
        _check_attributes(job, attributes)
        size = _size(job.body, attributes) + _RETRY_HEADROOM
        if size > self.max_message_bytes:
            raise MessageTooLarge(
                f"The message of {job.task_name} has {size:,} bytes with its attributes, and SQS takes "
                f"{self.max_message_bytes:,}; store the data elsewhere and send its key."
            )

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        """Send in as few requests as the limits allow; boto3's exceptions pass through at the end.

        Several requests are made side by side. `taken` is called in the order of the batches, in this thread.
        """
        errors: list[Exception] = []
        not_tried: list[Job] = []
        for answer in self._answers(jobs):
            for job in answer.taken:
                taken(job)
            errors += [failure.error for failure in answer.failures]
            not_tried += answer.not_tried
        for error in errors[1:]:
            logger.error("A message could not be sent to SQS.", exc_info=error)
        if not_tried:
            counts = Counter(job.task_name for job in not_tried)
            logger.error(
                "%d messages were not sent, because SQS had not answered: %s.",
                len(not_tried),
                ", ".join(f"{count} of {name}" for name, count in counts.items()),
            )
        if errors:
            raise errors[0]

    def send_each(
        self,
        jobs: Sequence[Job],
        *,
        taken: Callable[[Job], None],
        failed: Callable[[Job, Exception], None],
        refused: Callable[[Job, Exception], None],
    ) -> None:
        for answer in self._answers(jobs):
            for job in answer.taken:
                taken(job)
            for failure in answer.failures:
                for job in failure.jobs:
                    (refused if failure.final else failed)(job, failure.error)
            for job in answer.not_tried:
                failed(job, ConnectionError("SQS had not answered the messages before it."))

    def _answers(self, jobs: Sequence[Job]) -> Iterator[_Answer]:
        by_queue = _by_queue(jobs)
        servers = {region: _Server(region) for region in map(_region_in, by_queue)}
        batches = [
            _Batch(url, servers[_region_in(url)], entries)
            for url, entries_of_queue in by_queue.items()
            for entries in self._batches(entries_of_queue)
        ]
        # The first request that this process makes of a region tells how far away it is.
        first = [self._send_timed(batch) for batch in batches[:1] if batch.server.region not in self._waited]
        rest = batches[len(first) :]
        far = any(self._waited.get(region, _WORTH_A_THREAD) >= _WORTH_A_THREAD for region in servers)
        side_by_side = (
            SideBySide(self._send_batch, rest, max_threads=self.max_threads)
            if far
            else SideBySide(self._send_timed, rest, max_threads=1)
        )
        with side_by_side as answers:
            yield from chain(first, answers)

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

    def _send_timed(self, batch: _Batch) -> _Answer:
        """Send one batch in the caller's thread, and remember how long that thread had nothing to do."""
        with suppress(Exception):  # it is the batch's error, and is met there again
            self._client(batch.url)  # to make one takes longer than a request
        began, worked = time.perf_counter(), time.thread_time()
        answer = self._send_batch(batch)
        if answer.taken:  # a refused connection, or a request that was not made, tells nothing of the distance
            self._waited[batch.server.region] = time.perf_counter() - began - (time.thread_time() - worked)
        return answer

    def _send_batch(self, batch: _Batch) -> _Answer:
        """Send one batch, unless its server was given up; what SQS says is returned, and not raised."""
        from botocore import exceptions

        answer = _Answer()
        server = batch.server
        if server.given_up:
            answer.not_tried.extend(entry.job for entry in batch.entries)
            return answer
        answered_before = server.answers
        try:
            client = self._client(batch.url)
            if len(batch.entries) == 1:
                client.send_message(QueueUrl=batch.url, **batch.entries[0].fields())
                server.answers += 1
                answer.taken.append(batch.entries[0].job)
            else:
                _send_entries(client, batch, answer)
        except exceptions.ClientError as error:
            server.answers += 1
            final = _refuses_contents(error)
            unsettled = _unsettled(batch, answer)
            if final and len(unsettled) > 1:
                # One of them is to blame, and SQS does not say which.
                self._send_one_by_one(batch, unsettled, answer)
            else:
                answer.failures.append(_Failure(error, [entry.job for entry in unsettled], final))
        except exceptions.BotoCoreError as error:
            answer.failures.append(_Failure(error, [entry.job for entry in _unsettled(batch, answer)]))
            nobody_there = isinstance(error, exceptions.ConnectionError | exceptions.ReadTimeoutError)
            if nobody_there and server.answers == answered_before:
                # Each further batch would wait for the same timeouts, and the caller for all of them.
                server.given_up = True
        return answer

    def _send_one_by_one(self, batch: _Batch, entries: Sequence[_Entry], together: _Answer) -> None:
        for entry in entries:
            answer = self._send_batch(_Batch(batch.url, batch.server, [entry]))
            together.taken.extend(answer.taken)
            together.failures.extend(answer.failures)
            together.not_tried.extend(answer.not_tried)

    def _client(self, url: str) -> Any:
        region = _region_in(url)
        # A client's open connections are not to be shared with a forked process.
        key = (os.getpid(), region)
        with self._making_client:
            if key not in self._clients:
                self._clients[key] = self._new_client(region)
            return self._clients[key]

    def _new_client(self, region: str | None) -> BaseClient:
        import boto3
        from botocore.config import Config

        config = Config(**self._config)
        options = {"region_name": region, **self._client_options}
        model = boto3.client("sqs", config=config, **options)
        # botocore puts its User-Agent together anew for each request, unless it is given: a tenth of its time.
        given = Config(user_agent=model.meta.config.user_agent)
        return boto3.client("sqs", config=config.merge(given), **options)


def _region_in(url: str) -> str | None:
    match = _REGION.search(url)
    return (match[1] or match[2]) if match else None


def _by_queue(jobs: Sequence[Job]) -> dict[str, list[_Entry]]:
    """Return what goes to each queue, under the queue's URL."""
    urls: dict[str, str] = {}
    by_url: dict[str, list[_Entry]] = defaultdict(list)
    for job in jobs:
        if job.queue not in urls:
            urls[job.queue] = app_settings.queue_url(job.queue, task_name=job.task_name)
        attributes = job.message_attributes()
        by_url[urls[job.queue]].append(_Entry(job, attributes, _size(job.body, attributes)))
    return by_url


def _send_entries(client: Any, batch: _Batch, answer: _Answer) -> None:
    """Send the entries, those again that failed by the service's fault; write down what became of each."""
    from botocore.exceptions import ClientError

    waiting = {str(i): entry for i, entry in enumerate(batch.entries)}
    for attempt in range(1, _BATCH_ATTEMPTS + 1):
        said = client.send_message_batch(
            QueueUrl=batch.url,
            Entries=[{"Id": entry_id, **entry.fields()} for entry_id, entry in waiting.items()],
        )
        batch.server.answers += 1
        taken = {success["Id"] for success in said.get("Successful") or ()}
        failures = {failure["Id"]: failure for failure in said.get("Failed") or ()}
        for entry_id, entry in list(waiting.items()):
            failure = failures.get(entry_id, {"Code": "NoAnswer", "Message": "SQS did not mention the entry."})
            our_fault = bool(failure.get("SenderFault"))
            if entry_id in taken:
                del waiting[entry_id]
                answer.taken.append(entry.job)
            elif our_fault or attempt == _BATCH_ATTEMPTS:
                del waiting[entry_id]
                code = failure.get("Code", "Unknown")
                message = f"{entry.job.task_name} [{entry.job.message_id}]: {failure.get('Message', '')}"
                error = ClientError({"Error": {"Code": code, "Message": message}}, "SendMessageBatch")
                answer.failures.append(_Failure(error, [entry.job], our_fault and not _CURABLE.search(code)))
        if not waiting:
            break
        time.sleep(random.uniform(0, 0.1 * 2**attempt))


def _unsettled(batch: _Batch, answer: _Answer) -> list[_Entry]:
    """Return the entries of a batch of which nothing was said before a request failed, which may be a repeated one."""
    settled = {job.message_id for job in answer.taken}
    settled.update(job.message_id for failure in answer.failures for job in failure.jobs)
    return [entry for entry in batch.entries if entry.job.message_id not in settled]


def _refuses_contents(error: ClientError) -> bool:
    """Tell whether SQS refuses a request for what its messages are, and not for who sends them, when, or where to."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code.rpartition(".")[2] in _ABOUT_CONTENTS


def _size(body: str, attributes: Mapping[str, str]) -> int:
    """Return what SQS counts: the body, and name, type and value of each attribute, in UTF-8."""
    texts = "".join([*attributes, *attributes.values()])
    return _bytes(body) + _bytes(texts) + len("String") * len(attributes)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


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
        if name not in OWN_ATTRIBUTES and not _is_name(name):
            raise InvalidArguments(f"Message attribute {name!r} of {job.task_name} has a name that SQS refuses.")
        if not _is_text(value):
            raise InvalidArguments(
                f"Message attribute {name!r} of {job.task_name} is empty, no text, or has characters that SQS refuses."
            )


def _is_name(name: str) -> bool:
    return bool(
        _ATTRIBUTE_NAME.fullmatch(name) and ".." not in name and not name.lower().startswith(("aws.", "amazon."))
    )


def _is_text(value: object) -> bool:
    """Tell whether SQS takes `value`, which may be a plugin's, whatever its annotations say."""
    if not isinstance(value, str) or not value:
        return False
    # Ids are printable ASCII, which needs no search.
    return (value.isascii() and value.isprintable()) or not _ILLEGAL_CHARACTER.search(value)


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
