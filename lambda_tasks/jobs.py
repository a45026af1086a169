"""The details that travel through the library and are shown to hooks: a job to send, a run to execute."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks import identity

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper
    from lambda_tasks.messages import SQSLambdaTaskMessage

#: The message attributes that carry an invocation's identity. The body stays the documented schema,
#: so producers and workers of different versions understand each other.
MESSAGE_ID_ATTRIBUTE: Final = "lambda_tasks.message_id"
ROOT_ID_ATTRIBUTE: Final = "lambda_tasks.root_id"
#: The queue by its name in LAMBDA_TASKS_QUEUES, so that a retry goes where its first invocation went.
QUEUE_ATTRIBUTE: Final = "lambda_tasks.queue"

OWN_ATTRIBUTES: Final = frozenset({MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE, QUEUE_ATTRIBUTE})


@dataclass(frozen=True, slots=True)
class TaskHandle:
    """What `execute_on_commit()` returns: enough to find the record of the invocation later."""

    message_id: str


@dataclass(frozen=True, slots=True)
class Job:
    """An invocation on its way to a queue. A plugin may add to `attributes` before it is sent."""

    message: SQSLambdaTaskMessage
    message_id: str
    #: The id of the first invocation of a chain of retries; the job's own where it is the first.
    root_id: str
    queue: str = "default"
    #: Seconds before a worker may receive it.
    delay: int = 0
    #: Message attributes (text) that are sent beside the ids, for instance a trace context.
    attributes: dict[str, str] = field(default_factory=dict)
    #: The task that was called, where this process knows it.
    task: LambdaTaskWrapper[..., Any] | None = field(default=None, repr=False, compare=False)

    @property
    def task_name(self) -> str:
        return self.message.task_name

    def message_attributes(self) -> dict[str, str]:
        """Return all attributes of the message: the plugins', and ours, which nobody may replace."""
        return {
            **self.attributes,
            MESSAGE_ID_ATTRIBUTE: self.message_id,
            ROOT_ID_ATTRIBUTE: self.root_id,
            QUEUE_ATTRIBUTE: self.queue,
        }


@dataclass(slots=True)
class Run:
    """One execution of an invocation, from the claim to its outcome."""

    message: SQSLambdaTaskMessage
    message_id: str
    root_id: str
    task: LambdaTaskWrapper[..., Any]
    #: The queue that it came from, and that its retry goes to.
    queue: str
    #: The arguments as the function takes them.
    arguments: dict[str, Any] = field(repr=False)
    #: Seconds that the task may take: what it asked for, or less where the invocation ends before.
    soft_timeout: float
    hard_timeout: float
    #: Seconds for which no other worker may take the invocation over.
    lease: float
    #: The alias of the database that holds the record and the task's transaction.
    database: str
    #: The message attributes (text) that plugins of the producer have added, for instance a trace context.
    attributes: Mapping[str, str] = field(default_factory=dict)
    #: The proof that the claim is this run's: every write of the store compares it.
    claim: str = field(default_factory=identity.new_message_id, repr=False)
    #: How many workers died holding the invocation before this one.
    takeovers: int = 0
    #: True from the moment at which the task's transaction is known to be committed.
    committed: bool = False
    started_at: float = field(default_factory=time.monotonic, repr=False)

    @property
    def task_name(self) -> str:
        return self.message.task_name

    @property
    def n_retries(self) -> int:
        return self.message.n_retries

    @property
    def duration(self) -> float:
        """Seconds since the run began, by a clock that never goes back."""
        return time.monotonic() - self.started_at

    def mark_committed(self) -> None:
        self.committed = True

    def retry_job(self, delay: int) -> Job:
        """Return the job of the next retry; its id is derived, so sending it twice sends one."""
        message = self.message.next_retry()
        return Job(
            message=message,
            message_id=identity.retry_id(self.root_id, message.n_retries),
            root_id=self.root_id,
            queue=self.queue,
            delay=delay,
            task=self.task,
        )
