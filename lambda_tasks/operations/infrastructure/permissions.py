"""The permissions of the application that enqueues tasks, of the functions, and of the cleanup's schedule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from lambda_tasks.operations.infrastructure.described import BucketPlan, Statement, Target
from lambda_tasks.settings import JobQueue

#: What the poller of an event source mapping does with the role of its function.
_POLLING: Final = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes")
#: What Lambda does with the role of a function in a VPC. The interfaces do not exist before.
_NETWORK: Final = tuple(
    f"ec2:{action}"
    for action in (
        *("CreateNetworkInterface", "DescribeNetworkInterfaces", "DescribeSubnets", "DeleteNetworkInterface"),
        *("AssignPrivateIpAddresses", "UnassignPrivateIpAddresses"),
    )
)


def for_sender(
    queues: Sequence[str],
    kms_key: str | None,
    job_queues: Iterable[JobQueue] = (),
    buckets: Iterable[BucketPlan] = (),
) -> tuple[Statement, ...]:
    """Return the permissions of a process that sends messages to these queues, and submits jobs to AWS Batch.

    It stores large arguments in those of `buckets` that take new ones.
    """
    send = Statement("SendTasks", ("sqs:SendMessage",), _queues(queues))
    stored = tuple(_objects(bucket) for bucket in buckets if bucket.stores)
    storing = (Statement("StoreArguments", ("s3:PutObject",), stored),) if stored else ()
    return (send, *_submit_jobs(job_queues), *storing, *_use_key(kms_key, ("sqs",)))


def for_arguments(buckets: Sequence[BucketPlan]) -> tuple[Statement, ...]:
    """Return the permissions of a function that reads large arguments, stores them, and copies old ones to themselves.

    With the list of a bucket, S3 says that an object is missing, and not that access to it is denied.
    """
    if not buckets:
        return ()
    names = dict.fromkeys(bucket.name for bucket in buckets)
    return (
        Statement("UseArguments", ("s3:GetObject", "s3:PutObject"), tuple(map(_objects, buckets))),
        Statement("FindArguments", ("s3:ListBucket",), tuple(Target("s3", name) for name in names)),
    )


def _objects(bucket: BucketPlan) -> Target:
    return Target("s3", f"{bucket.name}/{bucket.prefix}*")


def for_function(
    own: Sequence[str],
    queues: Sequence[str],
    function: str,
    *,
    kms_key: str | None,
    secrets: Sequence[str],
    job_queues: Iterable[JobQueue] = (),
) -> tuple[Statement, ...]:
    """Return the permissions of a function that reads the queues `own` and sends to all `queues` and `job_queues`.

    `secrets` are the ARNs of its secrets. The key may be used for them too.
    """
    reading = Statement("ReadQueues", _POLLING, _queues(own))
    # For messages that are handed back: it determines when they reappear.
    postponing = Statement("PostponeMessages", ("sqs:ChangeMessageVisibility",), _queues(own))
    # Retries are messages to the queue of their task, and a task may enqueue any other.
    sending = Statement("SendTasks", ("sqs:SendMessage",), _queues(queues))
    logging = Statement("WriteLogs", ("logs:CreateLogStream", "logs:PutLogEvents"), (Target("log_streams", function),))
    via = ("sqs", "secretsmanager") if secrets else ("sqs",)
    return (
        *(reading, postponing, sending, *_submit_jobs(job_queues), logging),
        *_read_secrets(secrets),
        *_use_key(kms_key, via),
    )


def for_network(function_name: str) -> tuple[Statement, ...]:
    """Return the permissions with which Lambda connects a function to a VPC, and which its own code does not have."""
    everything = (Target("arn", "*"),)
    return (
        Statement("ManageInterfaces", _NETWORK, everything),
        Statement("OnlyForLambda", _NETWORK, everything, denied_to=function_name),
    )


def _submit_jobs(job_queues: Iterable[JobQueue]) -> tuple[Statement, ...]:
    arns: dict[str, None] = {}  # each once, in order
    for queue in job_queues:
        definition = queue.job_definition_arn
        # Without a revision, AWS checks the permission for the latest one.
        revisions = [definition] if ":" in definition.partition("/")[2] else [definition, f"{definition}:*"]
        arns.update(dict.fromkeys([queue.job_queue_arn, *revisions]))
    if not arns:
        return ()
    return (Statement("SubmitJobs", ("batch:SubmitJob",), tuple(Target("arn", arn) for arn in arns)),)


def _queues(keys: Iterable[str]) -> tuple[Target, ...]:
    return tuple(Target("queue", key) for key in keys)


def _read_secrets(arns: Sequence[str]) -> tuple[Statement, ...]:
    if not arns:
        return ()
    return (Statement("ReadSecrets", ("secretsmanager:GetSecretValue",), tuple(Target("arn", arn) for arn in arns)),)


def _use_key(kms_key: str | None, via: tuple[str, ...]) -> tuple[Statement, ...]:
    if kms_key is None:
        return ()
    # A sender needs both: SQS decrypts the data key that it encrypts messages with.
    return (Statement("UseKey", ("kms:Decrypt", "kms:GenerateDataKey"), (Target("arn", kms_key),), via),)
