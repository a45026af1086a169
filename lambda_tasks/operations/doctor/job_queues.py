"""Check the job queues and the job definitions of AWS Batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.operations.doctor.findings import RESERVE, Doctor, Queue
from lambda_tasks.wire.queue_urls import Server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lambda_tasks.settings import JobQueue

#: The number of attempts that a job definition should have: one may end with its host.
_ADVISED_ATTEMPTS: Final = 3


def look_at_job_queue(doctor: Doctor, name: str, queue: JobQueue) -> None:
    """Check that jobs can be submitted to this queue, and that their definition gives them enough time."""
    subject = f"queue {name!r}"
    client = doctor.connect("batch", queue.region, Server(queue.region))
    found = doctor.ask(
        subject,
        "batch:DescribeJobQueues",
        lambda: client.describe_job_queues(jobQueues=[queue.job_queue_arn])["jobQueues"],
    )
    if found is not None:
        _check_queue(doctor, subject, queue, found[0] if found else None)
    found = doctor.ask(
        subject, "batch:DescribeJobDefinitions", lambda: _active_definitions(client, queue.job_definition_arn)
    )
    if found is not None:
        latest = max(found, key=lambda each: int(each["revision"]), default=None)
        _check_definition(doctor, Queue(name, ""), queue, latest)


def _active_definitions(client: Any, arn: str) -> list[dict[str, Any]]:
    """Return the active definition with this ARN, or all active revisions of it if the ARN has none."""
    name = arn.partition("/")[2]
    if ":" in name:
        found = client.describe_job_definitions(jobDefinitions=[arn])["jobDefinitions"]
    else:
        found = client.describe_job_definitions(jobDefinitionName=name, status="ACTIVE")["jobDefinitions"]
    return [definition for definition in found if definition.get("status", "ACTIVE") == "ACTIVE"]


def _check_queue(doctor: Doctor, subject: str, queue: JobQueue, found: Mapping[str, Any] | None) -> None:
    if found is None:
        doctor.find(
            "D601",
            subject,
            f"{queue.job_queue_arn} does not exist. Its tasks cannot be sent.",
            "Correct job_queue_arn in LAMBDA_TASKS_QUEUES, or create the job queue.",
        )
    elif (found["state"], found["status"]) != ("ENABLED", "VALID"):
        doctor.find(
            "D602",
            subject,
            f"{queue.job_queue_arn} is {found['state']} and {found['status']}. It accepts no jobs.",
            "Enable the job queue, and repair its compute environments.",
        )


def _check_definition(doctor: Doctor, of: Queue, queue: JobQueue, found: Mapping[str, Any] | None) -> None:
    if found is None:
        doctor.find(
            "D603",
            of,
            f"{queue.job_definition_arn} does not exist, or is not active. Tasks cannot be sent.",
            "Correct job_definition_arn in LAMBDA_TASKS_QUEUES, or register the job definition.",
        )
        return
    attempts = (found.get("retryStrategy") or {}).get("attempts", 1)
    if attempts < 2:
        doctor.find(
            "D604",
            of,
            f"{queue.job_definition_arn} has one attempt. If a host dies, its task waits for the recovery of lost "
            "tasks.",
            f'Set "retryStrategy": {{"attempts": {_ADVISED_ATTEMPTS}}}.',
        )
    limit = (found.get("timeout") or {}).get("attemptDurationSeconds")
    if limit is not None and limit < of.hard_timeout + RESERVE:
        doctor.find(
            "D605",
            of,
            f"{queue.job_definition_arn} ends an attempt after {limit} s, but its tasks may take {of.hard_timeout} s.",
            "Raise attemptDurationSeconds: the container also needs time to start, and to wait for other attempts.",
        )
