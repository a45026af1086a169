"""What SQS and AWS Batch are asked for: the entries of requests, and their answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambda_tasks.backends.sqs_messages import MAX_ATTRIBUTES, size
from lambda_tasks.jobs import Job
from lambda_tasks.settings import JobQueue, app_settings
from lambda_tasks.wire.attributes import packed
from lambda_tasks.wire.queue_urls import Server
from lambda_tasks.wire.signing import signed


@dataclass(frozen=True, slots=True)
class Entry:
    """A job, its message, and the size of that as SQS counts it, in bytes."""

    job: Job
    body: str
    attributes: Mapping[str, str]
    size: int

    def fields(self) -> dict[str, Any]:
        """Return the job in the format of SQS."""
        # On a standard queue, a group has no order: it only makes the queue fair.
        group = {} if self.job.group is None else {"MessageGroupId": self.job.group}
        return {
            **group,
            "MessageBody": self.body,
            "DelaySeconds": self.job.delay,
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in self.attributes.items()
            },
        }


@dataclass(slots=True)
class Progress:
    """The state of one server during a call of `send()`."""

    server: Server = field(default_factory=Server)
    #: How many requests were answered, including rejections.
    answers: int = 0
    #: Whether no further requests are sent.
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    url: str
    progress: Progress
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, and the jobs that were not sent because of it."""

    error: Exception
    jobs: list[Job]
    #: Whether the jobs themselves caused it, so that SQS will never accept them.
    final: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The results of a batch."""

    taken: list[Job] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    not_tried: list[Job] = field(default_factory=list)


def by_queue(jobs: Sequence[Job]) -> tuple[dict[str, list[Entry]], dict[JobQueue, list[Job]]]:
    """Return the entries for each queue, by the queue's URL, and the jobs for each queue of AWS Batch."""
    addresses: dict[str, str | JobQueue] = {}
    keys = app_settings.signing_keys
    by_url: dict[str, list[Entry]] = defaultdict(list)
    to_submit: dict[JobQueue, list[Job]] = {}
    for job in jobs:
        if job.queue not in addresses:
            addresses[job.queue] = app_settings.address_of(job.queue, task_name=job.task_name)
        address = addresses[job.queue]
        if isinstance(address, JobQueue):
            to_submit.setdefault(address, []).append(job)
            continue
        whole = job.message_attributes()
        body = signed(job.body, whole, keys[0]) if keys else job.body
        attributes = whole if len(whole) <= MAX_ATTRIBUTES else packed(whole, MAX_ATTRIBUTES)
        by_url[address].append(Entry(job, body, attributes, size(body, attributes)))
    return by_url, to_submit
