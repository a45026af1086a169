"""Submit jobs to AWS Batch, one for each task. The message travels in the environment of the job's container.

AWS Batch may submit a job twice, if an answer is lost: both jobs have the same message id, and one of them runs it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.backends.base import SendResult, Taken, Unsent
from lambda_tasks.backends.sqs_messages import RETRY_HEADROOM, attributes_of_retry
from lambda_tasks.exceptions import MessageTooLarge
from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.real_aws import guarded
from lambda_tasks.sending.side_by_side import SideBySide
from lambda_tasks.settings import JobQueue
from lambda_tasks.wire.job_environment import BODY, DELIVERY
from lambda_tasks.wire.queue_urls import server_of
from lambda_tasks.wire.signing import signed_if_configured

if TYPE_CHECKING:
    from botocore.client import BaseClient

#: The size of a container's overrides, in characters of JSON, above which ECS fails a job that AWS Batch has accepted:
#: 8,192 (`overrides` of RunTask in the API reference of ECS), less what Batch itself adds to the environment.
MAX_OVERRIDES: Final = 7_000
#: Characters by which a retry may be larger: its number of retries, with escaped quotes, and the time for it.
_HEADROOM: Final = RETRY_HEADROOM + len(r"\\") + len(r",\"not_before\":1700000000000")
#: The length of a job's name, and of the part of it before the id of the message.
_MAX_NAME: Final = 128
_MAX_TASK: Final = _MAX_NAME - len("-019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10")


class BatchJobs:
    """Submits jobs with one boto3 client per process and region.

    `endpoint_url` is the address of an emulator of AWS, and `config` has the options of botocore's `Config`. At most
    `max_threads` requests are under way at the same time.
    """

    def __init__(self, *, endpoint_url: str | None, config: Mapping[str, Any], max_threads: int) -> None:
        # An address on AWS is one of SQS, and not of Batch.
        self._endpoint_url = None if endpoint_url is None or server_of(endpoint_url).is_aws else endpoint_url
        self._config = config
        self._max_threads = max_threads
        self._clients: dict[tuple[int, str], BaseClient] = {}
        self._making_client = ForkSafeLock()

    def excessive_size(self, job: Job) -> int:
        """Return the characters of the job, or of its largest retry, if they are too many, or otherwise 0."""
        overrides = container_overrides(job, attributes_of_retry(job), sent=time.time())
        size = len(json.dumps(overrides, ensure_ascii=False).encode()) + _HEADROOM
        return size if size > MAX_OVERRIDES else 0

    def too_large(self, job: Job, size: int) -> MessageTooLarge:
        """Return the error for a job of so many characters."""
        return MessageTooLarge(
            f"The job of {job.task_name} on AWS Batch must have at most {MAX_OVERRIDES:,} characters with its "
            f"attributes, not {size:,}. Store the data elsewhere and send its key, or set the option "
            "large_arguments of SQSBackend."
        )

    def send(self, queue: JobQueue, jobs: Sequence[Job]) -> Iterator[SendResult]:
        """Submit a job for each of `jobs`, several in parallel, and yield the results in their order."""

        def submit(job: Job) -> SendResult:
            try:
                self._client(queue.region).submit_job(
                    jobName=job_name(job),
                    jobQueue=queue.job_queue_arn,
                    jobDefinition=queue.job_definition_arn,
                    containerOverrides=container_overrides(job, job.message_attributes(), sent=time.time()),
                )
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                # Batch says ClientException to a queue that does not exist yet, and to one that is disabled.
                return Unsent(job, error)
            return Taken(job)

        with SideBySide(submit, jobs, max_threads=self._max_threads) as results:
            yield from results

    def _client(self, region: str) -> Any:
        # A forked process must not share a client's open connections.
        key = (os.getpid(), region)
        with self._making_client:
            if key not in self._clients:
                import boto3
                from botocore.config import Config

                config = Config(**self._config)
                self._clients[key] = guarded(
                    boto3.client("batch", region_name=region, endpoint_url=self._endpoint_url, config=config)
                )
            return self._clients[key]


def job_name(job: Job) -> str:
    """Return the name of a job, which the console shows: that of the task, in characters that Batch accepts."""
    task = re.sub(r"[^A-Za-z0-9_-]+", "-", job.task_name).lstrip("-_")
    return f"{task[-_MAX_TASK:].lstrip('-_')}-{job.message_id}"


def container_overrides(job: Job, attributes: Mapping[str, str], *, sent: float) -> dict[str, Any]:
    """Return the overrides of a job's container: the body, and the rest of the delivery.

    `sent` is the time, in seconds since 1970. The body is a variable of its own, so that it is escaped only once.
    """
    delivery: dict[str, Any] = {"attributes": dict(attributes), "sent": round(sent * 1000)}
    if job.delay:
        delivery["not_before"] = round((sent + job.delay) * 1000)
    text = json.dumps(delivery, separators=(",", ":"))
    body = signed_if_configured(job.body, attributes)
    return {"environment": [{"name": BODY, "value": body}, {"name": DELIVERY, "value": text}]}
