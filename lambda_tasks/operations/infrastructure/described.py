"""What a deployment consists of, as data: queues, functions, permissions, schedules and alarms.

`planning.describe()` computes it, and each format has a renderer. A `Number` carries the reason for its value, which
the renderers print as a comment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Format: TypeAlias = Literal["cloudformation", "sam", "terraform"]
TargetKind: TypeAlias = Literal["queue", "dead_letter_queue", "function", "log_streams", "s3", "arn"]


@dataclass(frozen=True, slots=True)
class Number:
    """A number, and the reason for its value."""

    value: int
    reason: str


@dataclass(frozen=True, slots=True)
class Target:
    """A resource that a permission or an alarm refers to: by its key in the description, or by its ARN.

    The key of a bucket, or of objects in one, is the last part of its ARN.
    """

    kind: TargetKind
    key: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement of an IAM policy.

    `via` are the services through which a key may be used, such as `sqs`. `denied_to` is the name of the function
    whose own code may not do this, although its role may.
    """

    sid: str
    actions: tuple[str, ...]
    resources: tuple[Target, ...]
    via: tuple[str, ...] = ()
    denied_to: str | None = None

    @property
    def effect(self) -> str:
        return "Allow" if self.denied_to is None else "Deny"


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """A queue with its dead letter queue.

    `key` identifies it among the queues of the template. `aliases` are its names in LAMBDA_TASKS_QUEUES.
    """

    key: str
    aliases: tuple[str, ...]
    name: str
    dead_letter_name: str
    #: Seconds.
    visibility_timeout: Number
    retention: Number
    dead_letter_retention: Number
    max_receives: Number
    max_message_bytes: Number | None


@dataclass(frozen=True, slots=True)
class MappingPlan:
    """The event source mapping from a queue to a function."""

    queue: str
    batch_size: Number
    #: Seconds.
    batching_window: Number
    maximum_concurrency: Number | None


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """A function. Its key is empty if it is the main one, which also does the maintenance."""

    key: str
    name: str
    #: Seconds, and megabytes.
    timeout: Number
    memory: Number
    mappings: tuple[MappingPlan, ...]
    statements: tuple[Statement, ...]

    @property
    def log_group(self) -> str:
        return f"/aws/lambda/{self.name}"


@dataclass(frozen=True, slots=True)
class Code:
    """The code of the functions: in S3, in a registry of images, or in a local path. Without any, a parameter."""

    package: Literal["zip", "image"]
    bucket: str | None = None
    key: str | None = None
    image: str | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class MaintenancePlan:
    """The rule that sends the maintenance event to the main function."""

    rate: str
    reason: str
    event: str


@dataclass(frozen=True, slots=True)
class CleanupPlan:
    """The schedule that sends a message for the cleanup of records to a queue."""

    queue: str
    expression: str
    body: str
    reason: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class BucketPlan:
    """A bucket for large arguments, and the prefix of their keys, with a slash at its end unless it is empty."""

    name: str
    prefix: str
    #: Whether new arguments are stored here. Otherwise, earlier ones are read.
    stores: bool
    #: The age in days at which objects are deleted, if the template creates the bucket.
    days: Number | None = None


@dataclass(frozen=True, slots=True)
class AlarmPlan:
    """A CloudWatch alarm on one metric of a queue or a function; `period` is in seconds."""

    key: str
    description: str
    namespace: str
    metric: str
    subject: Target
    statistic: str
    period: int
    threshold: Number


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """Everything that a template creates. `account` and `region` are those of the queues' URLs, if they name any."""

    account: str | None
    region: str | None
    queues: tuple[QueuePlan, ...]
    functions: tuple[FunctionPlan, ...]
    sender_statements: tuple[Statement, ...]
    maintenance: MaintenancePlan
    cleanup: CleanupPlan | None
    alarms: tuple[AlarmPlan, ...]
    buckets: tuple[BucketPlan, ...]
    code: Code
    handler: str
    runtime: str
    architecture: str
    environment: Mapping[str, str]
    log_retention_days: Number
    kms_key: str | None
    alarm_topic: str | None
    vpc: bool

    def queue(self, key: str) -> QueuePlan:
        """Return the queue with this key."""
        return next(queue for queue in self.queues if queue.key == key)

    @property
    def created_bucket(self) -> BucketPlan | None:
        """The bucket that the template creates, if any."""
        return next((bucket for bucket in self.buckets if bucket.days is not None), None)

    def function(self, key: str) -> FunctionPlan:
        """Return the function with this key."""
        return next(function for function in self.functions if function.key == key)
