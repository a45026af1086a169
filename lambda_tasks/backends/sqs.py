"""Send jobs to Amazon SQS, ten per request. boto3 is imported when the first job is sent."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from django.core.checks import CheckMessage, Error, Warning

from lambda_tasks.backends.base import BaseBackend, Refused, SendResult, Taken, Unsent
from lambda_tasks.backends.entries import Answer, Batch, Entry, Failure, Progress, by_queue
from lambda_tasks.backends.sqs_messages import (
    MARGIN,
    MAX_ATTRIBUTES,
    MAX_BYTES,
    MAX_LARGE_BYTES,
    MAX_REFERENCE,
    attributes_of_retry,
    check_attributes,
    excessive_size,
)
from lambda_tasks.backends.sqs_messages import size as size_of
from lambda_tasks.backends.visibility import entries_by_queue
from lambda_tasks.exceptions import InvalidSetting, MessageTooLarge
from lambda_tasks.foundation.forks import ForkSafeLock, random
from lambda_tasks.foundation.parts import parts_of
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.real_aws import guarded
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.sending.side_by_side import SideBySide
from lambda_tasks.settings import JobQueue, LambdaTasksSettings, app_settings, whole_number
from lambda_tasks.wire.attributes import packed
from lambda_tasks.wire.queue_urls import Server, client_options, looks_like_aws, problem_of, server_of
from lambda_tasks.wire.stored import Stored

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    from lambda_tasks.backends.batch_jobs import BatchJobs
    from lambda_tasks.backends.large_arguments import LargeArguments
    from lambda_tasks.backends.places import Place

logger = get_logger("lambda_tasks.backends.sqs")

#: The most entries of a batch (SendMessageBatch in the API reference of SQS).
MAX_ENTRIES: Final = 10
#: Open connections that a client keeps, for all threads of a process that send at the same time.
_CONNECTIONS: Final = 50
#: Seconds of waiting per request from which threads are worth their cost: SQS itself takes several
#: milliseconds, an emulator on the same machine almost none.
_WORTH_A_THREAD: Final = 0.002
#: How often entries of a batch are sent that SQS rejected through its own fault.
_BATCH_ATTEMPTS: Final = 3

#: Errors of SQS (SendMessage and SendMessageBatch in its API reference) that are about the message itself.
_ABOUT_CONTENTS: Final = frozenset(
    {"InvalidMessageContents", "InvalidParameterValue", "UnsupportedOperation", "BatchRequestTooLong"}
)
#: Errors of entries that SQS attributes to the sender and that can still be fixed: permissions, keys and quotas can
#: be granted, a queue can be created, and a FIFO queue (which lacks a parameter) can be replaced.
_CURABLE: Final = re.compile(
    "Kms|KMS|Throttl|OverLimit|Access|Auth|Security|Token|NonExistent|DoesNotExist|Unavailable|MissingParameter"
)

_NO_REGION: Final = (
    "is a URL without an AWS region, and boto3 has no default region to sign requests for. Set the environment "
    "variable AWS_DEFAULT_REGION (an emulator accepts any region), or use the queue's URL on AWS, which contains the "
    "region."
)
_UNKNOWN_PARTITION: Final = (
    "has a host that looks like AWS, but belongs to no partition of AWS that this version of the library knows. "
    "Requests go to this host. Correct the URL if it is misspelt; otherwise, silence this warning."
)


class SQSBackend(BaseBackend):
    """Sends to the queues of LAMBDA_TASKS_QUEUES with one boto3 client per process and server.

    Options: `endpoint_url` for requests to another address than that of the queue's URL (AWS_ENDPOINT_URL_SQS also
    works); `max_message_bytes` for queues that accept less than 1 MiB; `connect_timeout` and `read_timeout` in seconds,
    and `max_attempts`, of each request; `max_threads`, how many requests of one commit are sent in parallel;
    `large_arguments`, where arguments are stored that are too large for a message: `"database"`, `"s3://bucket/prefix"`,
    or a list of them, of which the first one stores, and all are read; `max_large_bytes`, the most bytes of them.
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
        large_arguments: str | Sequence[str] | None = None,
        max_large_bytes: int = MAX_LARGE_BYTES,
    ) -> None:
        try:
            self.max_threads = whole_number(1)(max_threads, "max_threads")
            max_large_bytes = whole_number(MAX_BYTES)(max_large_bytes, "max_large_bytes")
        except ValueError as error:
            raise TypeError(str(error)) from None  # like any other invalid option
        self.max_message_bytes = max_message_bytes
        self._endpoint_url = endpoint_url
        self._config = {
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "retries": {"mode": "standard", "total_max_attempts": max_attempts},
            "max_pool_connections": max(_CONNECTIONS, max_threads),
            # validate() has checked the message; botocore would check the type of every field again.
            "parameter_validation": False,
        }
        self._clients: dict[tuple[int, Server], BaseClient] = {}
        self._making_client = ForkSafeLock()
        #: Seconds that the latest request to a server waited for its answer, among requests without threads.
        self._waited: dict[Server, float] = {}
        self._region_is_configured = False
        self._large_arguments: LargeArguments | None = None
        self.stows = large_arguments is not None
        if large_arguments is not None:
            self._large_arguments = _large_arguments(large_arguments, max_bytes=max_large_bytes)
        self._batch_jobs: BatchJobs | None = None

    @property
    def places(self) -> list[Place]:
        """The places for large arguments, of which the first one stores new ones; empty without the option."""
        return [] if self._large_arguments is None else self._large_arguments.places

    def validate(self, job: Job) -> None:
        """Refuse queues that are unknown or have no usable URL, and messages and attributes that SQS rejects."""
        url = app_settings.address_of(job.queue, task_name=job.task_name)
        if isinstance(url, JobQueue):
            self._check_size_of_job(job)
            return
        if problem := problem_of(url) or self._missing_region(url):
            raise InvalidSetting(_named(job.queue, problem))
        whole = attributes_of_retry(job)
        attributes = whole if len(whole) <= MAX_ATTRIBUTES else packed(whole, MAX_ATTRIBUTES)
        check_attributes(job, whole, attributes)
        limit = self.max_message_bytes
        if size_of(job.body, attributes) <= limit - MARGIN or not (size := excessive_size(job, attributes, limit)):
            return
        too_large = size_of("", attributes) + MAX_REFERENCE > limit
        if self._large_arguments is None or job.message.stored is not None or too_large:
            raise MessageTooLarge(
                f"The message of {job.task_name} must have at most {limit:,} bytes with its attributes, "
                f"not {size:,}. Store the data elsewhere and send its key, or set the option "
                "large_arguments of SQSBackend."
            )
        self._large_arguments.refuse(job, size)

    def _check_size_of_job(self, job: Job) -> None:
        """Refuse a job of AWS Batch that is too large, even if its arguments are stored outside of it."""
        if size := self._jobs().excessive_size(job):
            if self._large_arguments is None or job.message.stored is not None:
                raise self._jobs().too_large(job, size)
            self._large_arguments.refuse(job, size)

    def _is_too_large(self, job: Job) -> bool:
        if isinstance(app_settings.queues.get(job.queue), JobQueue):
            return self._jobs().excessive_size(job) > 0
        attributes = packed(attributes_of_retry(job), MAX_ATTRIBUTES)
        return excessive_size(job, attributes, self.max_message_bytes) > 0

    def stow(self, job: Job) -> Job:
        if (stored := job.message.stored) is not None:
            (self._large_arguments or _large_arguments()).renew(stored, delay=job.delay)
            return job
        large = self._large_arguments
        if large is None or not self._is_too_large(job):
            return job
        return large.stow(job)

    def fetch(self, stored: Stored) -> str:
        return (self._large_arguments or _large_arguments()).fetch(stored)  # it may be sent before the option changed

    def check(self) -> list[CheckMessage]:
        """Report URLs of queues that cannot be used (E030), that need a region (W030), or that look misspelt (W031)."""
        if not LambdaTasksSettings.queues.is_set:
            return []  # reported as E002
        messages: list[CheckMessage] = []
        for queue, url in app_settings.queue_urls.items():
            if problem := problem_of(url):
                messages.append(Error(_named(queue, problem), id="lambda_tasks.E030"))
            elif problem := self._missing_region(url):
                messages.append(Warning(_named(queue, problem), id="lambda_tasks.W030"))
            if looks_like_aws(url):
                messages.append(Warning(_named(queue, _UNKNOWN_PARTITION), id="lambda_tasks.W031"))
        return messages

    def _missing_region(self, url: str) -> str | None:
        """Return the problem of a queue whose region neither its URL nor the configuration of boto3 contains."""
        if self._region_is_configured or server_of(url).region is not None or os.environ.get("AWS_DEFAULT_REGION"):
            return None
        import boto3

        self._region_is_configured = boto3.session.Session().region_name is not None
        return None if self._region_is_configured else _NO_REGION

    def longest_delay(self, queue: str) -> int:
        # AWS Batch has no delays: the container of a job would wait, and its time is paid for.
        return 0 if isinstance(app_settings.queues.get(queue), JobQueue) else self.max_delay

    def send(self, jobs: Sequence[Job]) -> Iterator[SendResult]:
        """Send in as few requests as the limits allow, several of them in parallel.

        Results come in the order of the batches.
        """
        not_tried = ConnectionError("SQS did not answer the messages before it.")
        entries, to_submit = by_queue(jobs)
        for job_queue, jobs_of_queue in to_submit.items():
            yield from self._jobs().send(job_queue, jobs_of_queue)
        for answer in self._answers(entries):
            yield from map(Taken, answer.taken)
            for failure in answer.failures:
                kind = Refused if failure.final else Unsent
                yield from (kind(job, failure.error) for job in failure.jobs)
            yield from (Unsent(job, not_tried) for job in answer.not_tried)

    def _jobs(self) -> BatchJobs:
        """Return what submits jobs to AWS Batch. Most projects do not need it, so it is imported here."""
        if self._batch_jobs is None:
            from lambda_tasks.backends.batch_jobs import BatchJobs

            self._batch_jobs = BatchJobs(
                endpoint_url=self._endpoint_url, config=self._config, max_threads=self.max_threads
            )
        return self._batch_jobs

    def _answers(self, entries: Mapping[str, list[Entry]]) -> Iterator[Answer]:
        servers = {server: Progress(server) for server in map(self._server, entries)}
        batches = [
            Batch(url, servers[self._server(url)], entries)
            for url, entries_of_queue in entries.items()
            for entries in self._batches(entries_of_queue)
        ]
        # The first request of this process to a server shows how far away it is.
        first = [self._send_timed(batch) for batch in batches[:1] if batch.progress.server not in self._waited]
        rest = batches[len(first) :]
        far = any(self._waited.get(server, _WORTH_A_THREAD) >= _WORTH_A_THREAD for server in servers)
        side_by_side = (
            SideBySide(self._send_batch, rest, max_threads=self.max_threads)
            if far
            else SideBySide(self._send_timed, rest, max_threads=1)
        )
        with side_by_side as answers:
            yield from chain(first, answers)

    def postpone(self, records: Sequence[tuple[Mapping[str, Any], float]]) -> None:
        for url, entries in entries_by_queue(records).items():
            for start in range(0, len(entries), MAX_ENTRIES):
                batch = [{"Id": str(i), **entry} for i, entry in enumerate(entries[start : start + MAX_ENTRIES])]
                try:
                    self._client(url).change_message_visibility_batch(QueueUrl=url, Entries=batch)
                except Exception as error:
                    # Without the permission, messages come back when their visibility timeout ends.
                    logger.debug("The visibility of %d messages was not changed: %s", len(batch), error)

    def _batches(self, entries: list[Entry]) -> Iterator[list[Entry]]:
        return parts_of(entries, lambda entry: entry.size, most_size=self.max_message_bytes, most_items=MAX_ENTRIES)

    def _send_timed(self, batch: Batch) -> Answer:
        """Send one batch in the caller's thread, and remember how long the thread waited."""
        with suppress(Exception):  # the batch raises the same error
            self._client(batch.url)  # creating a client takes longer than a request
        began, worked = time.perf_counter(), time.thread_time()
        answer = self._send_batch(batch)
        if answer.taken:  # a refused connection, or a request that was not sent, does not show the distance
            self._waited[batch.progress.server] = time.perf_counter() - began - (time.thread_time() - worked)
        return answer

    def _send_batch(self, batch: Batch) -> Answer:
        """Send one batch, unless its server was given up, and return the results. Nothing is raised."""
        from botocore import exceptions

        answer = Answer()
        progress = batch.progress
        if progress.given_up:
            answer.not_tried.extend(entry.job for entry in batch.entries)
            return answer
        answered_before = progress.answers
        try:
            client = self._client(batch.url)
            if len(batch.entries) == 1:
                client.send_message(QueueUrl=batch.url, **batch.entries[0].fields())
                progress.answers += 1
                answer.taken.append(batch.entries[0].job)
            else:
                _send_entries(client, batch, answer)
        except exceptions.ClientError as error:
            progress.answers += 1
            final = _refuses_contents(error)
            unsettled = _unsettled(batch, answer)
            if final and len(unsettled) > 1:
                # One of them is the cause, and SQS does not tell which.
                self._send_one_by_one(batch, unsettled, answer)
            else:
                answer.failures.append(Failure(error, [entry.job for entry in unsettled], final))
        except exceptions.BotoCoreError as error:
            answer.failures.append(Failure(error, [entry.job for entry in _unsettled(batch, answer)]))
            no_answer = isinstance(error, exceptions.ConnectionError | exceptions.ReadTimeoutError)
            if no_answer and progress.answers == answered_before:
                # Each further batch would wait for the same timeouts, and the caller for the sum.
                progress.given_up = True
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # from code around requests: instrumentation, a provider of credentials
            answer.failures.append(Failure(error, [entry.job for entry in _unsettled(batch, answer)]))
        return answer

    def _send_one_by_one(self, batch: Batch, entries: Sequence[Entry], together: Answer) -> None:
        for entry in entries:
            answer = self._send_batch(Batch(batch.url, batch.progress, [entry]))
            together.taken.extend(answer.taken)
            together.failures.extend(answer.failures)
            together.not_tried.extend(answer.not_tried)

    def _client(self, url: str) -> Any:
        if problem := problem_of(url):
            raise InvalidSetting(f"The URL of a queue {problem}")
        server = self._server(url)
        # A forked process must not share a client's open connections.
        key = (os.getpid(), server)
        with self._making_client:
            if key not in self._clients:
                self._clients[key] = self._new_client(server)
            return self._clients[key]

    def _server(self, url: str) -> Server:
        server = server_of(url)
        return server if self._endpoint_url is None else Server(server.region, self._endpoint_url)

    def _new_client(self, server: Server) -> BaseClient:
        import boto3
        from botocore.config import Config

        options = client_options(
            boto3.client, "sqs", server, config=Config(**self._config), endpoint_url=self._endpoint_url
        )
        model = boto3.client("sqs", **options)
        # botocore builds its User-Agent for each request, a tenth of its time, unless it is configured.
        given = Config(user_agent=model.meta.config.user_agent)
        return guarded(boto3.client("sqs", **{**options, "config": options["config"].merge(given)}))


def _large_arguments(*places: Any, **options: Any) -> LargeArguments:
    from lambda_tasks.backends.large_arguments import LargeArguments  # few projects use them

    return LargeArguments(*places, **options)


def _send_entries(client: Any, batch: Batch, answer: Answer) -> None:
    """Send the entries, resend those that failed through the fault of SQS, and note the result of each."""
    from botocore.exceptions import ClientError

    waiting = {str(i): entry for i, entry in enumerate(batch.entries)}
    for attempt in range(1, _BATCH_ATTEMPTS + 1):
        said = client.send_message_batch(
            QueueUrl=batch.url,
            Entries=[{"Id": entry_id, **entry.fields()} for entry_id, entry in waiting.items()],
        )
        batch.progress.answers += 1
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
                answer.failures.append(Failure(error, [entry.job], our_fault and not _CURABLE.search(code)))
        if not waiting:
            break
        time.sleep(random.uniform(0, 0.1 * 2**attempt))


def _unsettled(batch: Batch, answer: Answer) -> list[Entry]:
    """Return the entries of a batch without a result when a request failed, which may be a repeated request."""
    settled = {job.message_id for job in answer.taken}
    settled.update(job.message_id for failure in answer.failures for job in failure.jobs)
    return [entry for entry in batch.entries if entry.job.message_id not in settled]


def _refuses_contents(error: ClientError) -> bool:
    """Return whether SQS rejects a request for the contents of its messages, not for its sender, time or queue."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code.rpartition(".")[2] in _ABOUT_CONTENTS


def _named(queue: str, problem: str) -> str:
    return f"LAMBDA_TASKS_QUEUES[{queue!r}] {problem}"
