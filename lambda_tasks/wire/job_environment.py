"""Read the message of a job on AWS Batch from the environment of its container."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from lambda_tasks.exceptions import InvalidMessage

#: The variables in which `BatchJobs` sends a message: its body, and the rest of its delivery as JSON.
BODY: Final = "LAMBDA_TASKS_BODY"
DELIVERY: Final = "LAMBDA_TASKS_DELIVERY"
#: The variables of AWS Batch: the id of the job, and the number of this attempt at it, from 1.
JOB_ID: Final = "AWS_BATCH_JOB_ID"
ATTEMPT: Final = "AWS_BATCH_JOB_ATTEMPT"


@dataclass(frozen=True, slots=True)
class JobMessage:
    """The message of a job."""

    body: str = field(repr=False)
    attributes: Mapping[str, str] = field(repr=False)
    #: When the job was submitted, and the earliest time for its task, in seconds since 1970.
    sent: float
    not_before: float
    #: The id of the job; empty outside of Batch.
    job_id: str
    #: The number of this attempt, from 1.
    attempt: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> JobMessage:
        """Read the variables of a job, or raise `InvalidMessage` if it has none, or if one is malformed."""
        body = environment.get(BODY)
        if body is None or DELIVERY not in environment:
            raise InvalidMessage(
                f"The environment must have {BODY} and {DELIVERY}, which a job on AWS Batch gets when it is "
                "submitted. Enqueue a task of a queue with job_queue_arn in LAMBDA_TASKS_QUEUES."
            )
        delivery = _object(environment[DELIVERY])
        attributes = delivery.get("attributes")
        if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
            raise InvalidMessage(f"{DELIVERY} must have attributes that are strings.")
        sent = _seconds(delivery, "sent")
        attempt = environment.get(ATTEMPT, "1")
        return cls(
            body=body,
            attributes=attributes,
            sent=sent,
            not_before=_seconds(delivery, "not_before") if "not_before" in delivery else sent,
            job_id=environment.get(JOB_ID, ""),
            attempt=int(attempt) if attempt.isdecimal() else 1,
        )

    def record(self, receives: int) -> dict[str, Any]:
        """Return the message in the format of Lambda's events, as if it was received so often."""
        return {
            "messageId": self.job_id or "job",
            "body": self.body,
            "attributes": {
                "ApproximateReceiveCount": str(receives),
                "SentTimestamp": str(round(self.sent * 1000)),
            },
            "messageAttributes": {
                name: {"stringValue": value, "dataType": "String"} for name, value in self.attributes.items()
            },
            "eventSource": "aws:batch",
        }


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidMessage(f"{DELIVERY} must be a JSON object.")
    return found


def _seconds(delivery: Mapping[str, Any], name: str) -> float:
    milliseconds = delivery.get(name)
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int):
        raise InvalidMessage(f"{name} in {DELIVERY} must be a number of milliseconds since 1970.")
    return milliseconds / 1000
