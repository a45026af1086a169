"""Keep jobs in a list: for tests that inspect the sent jobs, or run them later."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from lambda_tasks.backends.base import BaseBackend, Taken
from lambda_tasks.jobs import Job
from lambda_tasks.settings import MAX_DELAY
from lambda_tasks.wire.signing import signed_if_configured


class MemoryBackend(BaseBackend):
    """Keeps jobs in the list `jobs`, oldest first, until they are removed.

    Options: `max_delay`, the longest delay in seconds that it accepts. Delays are not waited for.
    """

    leaves_process = False

    def __init__(self, *, max_delay: int = MAX_DELAY) -> None:
        self.max_delay = max_delay
        self.jobs: list[Job] = []

    def send(self, jobs: Sequence[Job]) -> Iterator[Taken]:
        for job in jobs:
            self.jobs.append(job)
            yield Taken(job)

    def take_records(self, count: int | None = None) -> list[dict[str, Any]]:
        """Remove the oldest `count` jobs (all by default) and return them as records of a Lambda event."""
        return [event_record(job) for job in self.take(count)]

    def take(self, count: int | None = None) -> list[Job]:
        """Remove the oldest `count` jobs (all by default) and return them."""
        taken = self.jobs[:count]
        del self.jobs[: len(taken)]
        return taken


def event_record(job: Job, *, receive_count: int = 1) -> dict[str, Any]:
    """Return `job` as an entry of `Records` in the event that Lambda makes of SQS messages."""
    body = signed_if_configured(job.body, job.message_attributes())
    now = str(int(time.time() * 1000))
    return {
        "messageId": job.message_id,
        "receiptHandle": f"receipt-{job.message_id}",
        "body": body,
        "attributes": {
            "ApproximateReceiveCount": str(receive_count),
            "SentTimestamp": now,
            "SenderId": "local",
            "ApproximateFirstReceiveTimestamp": now,
            **({} if job.group is None else {"MessageGroupId": job.group}),
        },
        "messageAttributes": {
            name: {"stringValue": value, "stringListValues": [], "binaryListValues": [], "dataType": "String"}
            for name, value in job.message_attributes().items()
        },
        "md5OfBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
        "eventSource": "aws:sqs",
        "eventSourceARN": f"arn:aws:sqs:eu-west-1:123456789012:{job.queue}",
        "awsRegion": "eu-west-1",
    }
