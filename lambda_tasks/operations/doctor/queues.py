"""Check a queue and its dead letter queue for problems that would lose or repeat messages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from lambda_tasks.execution.backoff import in_words, survived_outage
from lambda_tasks.operations.doctor.findings import (
    ADVISED_RECEIVES,
    ADVISED_RETENTION,
    DAY,
    DEFAULT_CLEANUP_DAYS,
    LEAST_RECEIVES,
    LONGEST_RETENTION,
    RESERVE,
    Doctor,
    Queue,
    lease_sentence,
    max_message_bytes,
)
from lambda_tasks.operations.doctor.functions import look_at_mappings
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.queue_urls import problem_of
from lambda_tasks.wire.visibility import MAX_BATCHING_WINDOW, VISIBILITY_FACTOR, lost_after

#: Seconds that the retention period must leave for repairs: a weekend and a day.
_LEAST_RETENTION: Final = 3 * DAY


def look_at_queue(doctor: Doctor, queue: Queue) -> None:
    if queue.url.endswith(".fifo"):
        doctor.find(
            "D102",
            queue,
            f"{queue.url} is a FIFO queue, which rejects messages without a message group and messages with an "
            "individual delay.",
            "Create a standard queue, and put its URL into LAMBDA_TASKS_QUEUES.",
        )
    elif problem := problem_of(queue.url):
        doctor.find("D112", queue, f"LAMBDA_TASKS_QUEUES[{queue.name!r}] {problem}", "Correct the setting.")
        return
    client = doctor.connect("sqs", queue.server.region, queue.server)
    attributes = _attributes(doctor, client, queue)
    if attributes is None:
        return
    _check_redrive(doctor, client, queue, attributes)
    _check_retention(doctor, queue, attributes)
    _check_forgetting(doctor, queue, attributes)
    _check_size(doctor, queue, attributes)
    visibility = int(attributes["VisibilityTimeout"])
    if visibility < queue.hard_timeout + RESERVE:
        doctor.find(
            "D105",
            queue,
            f"VisibilityTimeout is {visibility} s, but its tasks may take {queue.hard_timeout} s. Messages are "
            "delivered again while they run, and use up receives until valid messages end in the dead letter queue. "
            f"{lease_sentence(queue.lease)}",
            f"Set VisibilityTimeout to {VISIBILITY_FACTOR} times the function's timeout, plus the batching window.",
        )
    elif visibility < queue.lease:
        doctor.find(
            "D111",
            queue,
            f"VisibilityTimeout is {visibility} s, shorter than a lease. {lease_sentence(queue.lease)}",
            f"Set VisibilityTimeout to {VISIBILITY_FACTOR} times the function's timeout, plus the batching window, or "
            f"at least to {queue.lease:g} s.",
        )
    _check_lost(doctor, queue, visibility)
    look_at_mappings(doctor, queue, attributes["QueueArn"], visibility)


def _attributes(doctor: Doctor, client: Any, queue: Queue) -> Mapping[str, str] | None:
    from botocore.exceptions import ClientError

    def call() -> Any:
        try:
            return client.get_queue_attributes(QueueUrl=queue.url, AttributeNames=["All"])
        except ClientError as error:
            if "NonExistentQueue" not in error.response["Error"]["Code"]:
                raise
            doctor.find(
                "D101",
                queue,
                f"{queue.url} does not exist. All messages that are sent there are lost.",
                "Correct the URL in LAMBDA_TASKS_QUEUES, or the account and region that you use.",
            )
            return {}

    answer = doctor.ask(queue, "sqs:GetQueueAttributes", call)
    return (answer or {}).get("Attributes")


def _check_redrive(doctor: Doctor, client: Any, queue: Queue, attributes: Mapping[str, str]) -> None:
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    if not policy:
        doctor.find(
            "D103",
            queue,
            "it has no dead letter queue. A message that cannot be processed is redelivered until its retention "
            "period ends, and is then deleted without a trace.",
            f"Add a dead letter queue, with a RedrivePolicy whose maxReceiveCount is {ADVISED_RECEIVES}.",
        )
        return
    receives = int(policy["maxReceiveCount"])
    lasts = in_words(min(survived_outage(receives), int(attributes["MessageRetentionPeriod"])))
    doctor.note(f"{queue}: with a maxReceiveCount of {receives}, messages survive an outage of {lasts}.")
    if receives < LEAST_RECEIVES:
        doctor.find(
            "D104",
            queue,
            f"maxReceiveCount is {receives}. Throttling, a deployment, or another message in the batch that crashes "
            "the process uses up receives too, and valid messages end in the dead letter queue. Messages survive an "
            f"outage of {lasts}.",
            f"Set maxReceiveCount to {ADVISED_RECEIVES}, or at least to {LEAST_RECEIVES}.",
        )
    _check_dead_letters(doctor, client, queue, attributes, policy["deadLetterTargetArn"])


def _check_dead_letters(doctor: Doctor, client: Any, queue: Queue, attributes: Mapping[str, str], arn: str) -> None:
    *_, account, name = arn.split(":")

    def call() -> Any:
        url = client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
        return client.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]

    dead, is_first = doctor.ask_once(
        f"dead letter queue {name!r}",
        "sqs:GetQueueUrl and sqs:GetQueueAttributes on dead letter queues",
        call,
    )
    if dead is None:
        return
    if is_first and (waiting := int(dead.get("ApproximateNumberOfMessages") or 0)):
        messages = "1 message waits" if waiting == 1 else f"{waiting:,} messages wait"
        doctor.find(
            "D113",
            f"dead letter queue {name!r}",
            f"{messages} in the dead letter queue. No worker could process them, so their tasks did not run, or did "
            "not end.",
            "Find the cause in the log of the function, and repair it. `manage.py lambda_tasks dlq peek` lists the "
            "messages, and `dlq redrive` sends them back.",
        )
    kept, kept_dead = int(attributes["MessageRetentionPeriod"]), int(dead["MessageRetentionPeriod"])
    if kept_dead <= kept:
        doctor.find(
            "D106",
            queue,
            f"its dead letter queue keeps messages for {_days(kept_dead)}, and the queue itself for {_days(kept)}. "
            "The retention period starts when a message is first sent, so a message may be deleted as soon as it is "
            "moved.",
            f"Set the dead letter queue's MessageRetentionPeriod to {_days(LONGEST_RETENTION)} ({LONGEST_RETENTION}).",
        )


def _check_retention(doctor: Doctor, queue: Queue, attributes: Mapping[str, str]) -> None:
    kept = int(attributes["MessageRetentionPeriod"])
    if kept > DEFAULT_CLEANUP_DAYS * DAY:
        doctor.find(
            "D107",
            queue,
            f"cleanup_task_records deletes records after {DEFAULT_CLEANUP_DAYS} days by default (the doctor cannot see "
            f"which arguments your schedule passes), but MessageRetentionPeriod is {_days(kept)}. A message that "
            "outlives its record runs again.",
            f"Pass a retention_days above {kept / DAY:.0f} to cleanup_task_records, or shorten the retention period.",
        )
    if kept < _LEAST_RETENTION:
        doctor.find(
            "D108",
            queue,
            f"MessageRetentionPeriod is {_days(kept)}. A message that cannot be run during that time, such as in an "
            "outage over a weekend, is deleted without a trace.",
            f"Set MessageRetentionPeriod to {_days(ADVISED_RETENTION)} ({ADVISED_RETENTION}), the default of AWS.",
        )


def _check_forgetting(doctor: Doctor, queue: Queue, attributes: Mapping[str, str]) -> None:
    """Compare the time for which successes are remembered with the time after which a copy may still come."""
    window, kept = app_settings.forget_after, int(attributes["MessageRetentionPeriod"])
    visibility = int(attributes["VisibilityTimeout"])
    if not queue.forgets or window >= kept:
        return
    if window <= visibility:
        text = (
            f"successes of tasks with record='failures' are forgotten after {window} s, and VisibilityTimeout is "
            f"{visibility} s. If a worker dies after a success and before its message is deleted, the message comes "
            "back later, and the task runs again."
        )
    else:
        text = (
            f"successes of tasks with record='failures' are forgotten after {_days(window)}, and "
            f"MessageRetentionPeriod is {_days(kept)}. A copy of a message that waits on the queue for longer, such "
            "as in an outage of the workers, runs its task again."
        )
    doctor.find(
        "D115",
        queue,
        text,
        f"Set LAMBDA_TASKS_FORGET_AFTER = {kept}, or shorten the retention period of the queue.",
    )


def _check_size(doctor: Doctor, queue: Queue, attributes: Mapping[str, str]) -> None:
    ours = max_message_bytes()
    theirs = int(attributes.get("MaximumMessageSize") or 0)
    if ours is not None and theirs and theirs < ours:
        doctor.find(
            "D110",
            queue,
            f"MaximumMessageSize is {theirs:,} bytes, but the backend allows messages of {ours:,} bytes. SQS rejects "
            "a message between the two sizes after the commit, when it is too late.",
            f'Raise MaximumMessageSize to {ours}, or set the backend\'s option "max_message_bytes": {theirs}.',
        )


def _check_lost(doctor: Doctor, queue: Queue, visibility: int) -> None:
    if visibility <= (seconds := lost_after()):
        return
    enough = math.ceil((visibility - MAX_BATCHING_WINDOW) / VISIBILITY_FACTOR)
    doctor.find(
        "D114",
        queue,
        f"VisibilityTimeout is {visibility} s, but a record counts as lost {seconds} s after its lease. Its message is "
        "then sent again before the first one has come back, which uses up a takeover.",
        f"Set VisibilityTimeout to {seconds} s or less, or LAMBDA_TASKS_MAX_TIMEOUT = {enough}.",
    )


def _days(seconds: int) -> str:
    return f"{seconds / DAY:.3g} days" if seconds != DAY else "1 day"
