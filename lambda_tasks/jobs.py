"""The details that travel through the library and are shown to hooks: a job to send, a run to execute."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks import identity
from lambda_tasks.masking import masked, scrubbed
from lambda_tasks.outcomes import Succeeded
from lambda_tasks.tracebacks import traceback_text

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper
    from lambda_tasks.handles import TaskHandle as TaskHandle  # noqa: PLC0414, it was here once
    from lambda_tasks.messages import SQSLambdaTaskMessage
    from lambda_tasks.plain import Invocation

#: The message attributes that carry an invocation's identity. The body stays the documented schema,
#: so producers and workers of different versions understand each other.
MESSAGE_ID_ATTRIBUTE: Final = "lambda_tasks.message_id"
ROOT_ID_ATTRIBUTE: Final = "lambda_tasks.root_id"
#: The queue by its name in LAMBDA_TASKS_QUEUES, so that a retry goes where its first invocation went.
QUEUE_ATTRIBUTE: Final = "lambda_tasks.queue"
#: In retries of tasks with `expires_in`: when the first invocation was sent, in milliseconds since 1970.
FIRST_SENT_ATTRIBUTE: Final = "lambda_tasks.first_sent"

OWN_ATTRIBUTES: Final = frozenset({MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE, QUEUE_ATTRIBUTE, FIRST_SENT_ATTRIBUTE})


@dataclass(frozen=True)
class Job:
    """An invocation on its way to a queue. A plugin may add to `attributes` before it is sent."""

    message: SQSLambdaTaskMessage | Invocation
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
    #: Seconds since 1970 at which the first invocation of the chain was sent, where its age matters.
    first_sent: float | None = None
    #: The alias of the database with whose COMMIT it leaves.
    database: str = "default"

    @classmethod
    def of_call(
        cls,
        message: SQSLambdaTaskMessage | Invocation,
        *,
        queue: str,
        delay: int,
        task: LambdaTaskWrapper[..., Any] | None,
        database: str,
    ) -> Job:
        """Return a new job, the first of its chain, with an id of its own."""
        message_id = identity.new_message_id()
        return cls(message, message_id, root_id=message_id, queue=queue, delay=delay, task=task, database=database)

    @classmethod
    def of_sent(
        cls,
        message: SQSLambdaTaskMessage | Invocation,
        body: str,
        attributes: Mapping[str, str],
        *,
        message_id: str,
        queue: str,
        delay: int,
        task: LambdaTaskWrapper[..., Any] | None,
        database: str,
    ) -> Job:
        """Return the job again that once had this `body` and these `message_attributes()`."""
        sent = attributes.get(FIRST_SENT_ATTRIBUTE)
        job = cls(
            message,
            message_id,
            root_id=attributes.get(ROOT_ID_ATTRIBUTE, message_id),
            queue=queue,
            delay=delay,
            attributes={name: value for name, value in attributes.items() if name not in OWN_ATTRIBUTES},
            task=task,
            first_sent=None if sent is None else int(sent) / 1000,
            database=database,
        )
        job.__dict__["body"] = body  # to the letter
        return job

    @property
    def task_name(self) -> str:
        return self.message.task_name

    @cached_property
    def body(self) -> str:
        """The body of the message. Made once: what was checked at the call is what is sent after the commit."""
        return self.message.to_body()

    def message_attributes(self) -> dict[str, str]:
        """Return all attributes of the message: the plugins', and ours, which nobody may replace."""
        own = {
            MESSAGE_ID_ATTRIBUTE: self.message_id,
            ROOT_ID_ATTRIBUTE: self.root_id,
            QUEUE_ATTRIBUTE: self.queue,
        }
        if self.first_sent is not None:
            own[FIRST_SENT_ATTRIBUTE] = str(round(self.first_sent * 1000))
        return {**self.attributes, **own}


@dataclass(slots=True)
class Run:
    """One execution of an invocation, from the claim to its outcome."""

    message: SQSLambdaTaskMessage | Invocation
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
    #: False where no time limits are kept, as in eager mode.
    limited: bool = True
    #: The message attributes (text) that plugins of the producer have added, for instance a trace context.
    attributes: Mapping[str, str] = field(default_factory=dict)
    #: Seconds since 1970 at which the first invocation of the chain was sent; None where nobody knows.
    first_sent: float | None = None
    #: Whether the message was received before: then a record of it is to be expected.
    redelivered: bool = False
    #: The proof that the claim is this run's: every write of the store compares it.
    claim: str = field(default_factory=identity.new_message_id, repr=False)
    #: How many workers died holding the invocation before this one.
    takeovers: int = 0
    #: Whether the task was called: what it does outside of its transaction may have happened.
    called: bool = False
    #: True from the moment at which the task's transaction is known to be committed.
    committed: bool = False
    #: What the task's transaction has written; it stands if `committed`.
    success: Succeeded = field(default_factory=Succeeded, repr=False)
    #: The driver's connection on which the transaction began: with another one it is lost.
    session: object = field(default=None, repr=False)
    started_at: float = field(default_factory=time.monotonic, repr=False)

    @property
    def task_name(self) -> str:
        return self.message.task_name

    @property
    def n_retries(self) -> int:
        return self.message.n_retries

    @property
    def predecessor_id(self) -> str | None:
        """The id of the invocation that has sent this one as its retry; None if there is none, or nobody knows."""
        predecessor = identity.predecessor_id(self.root_id, self.n_retries)
        # A retry that came without the id of its root is its own root.
        return None if predecessor == self.message_id else predecessor

    @property
    def duration(self) -> float:
        """Seconds since the run began, by a clock that never goes back."""
        return time.monotonic() - self.started_at

    @property
    def recorded_kwargs(self) -> dict[str, Any]:
        """The arguments as JSON, for records and other eyes: those that are sensitive are masked."""
        return masked(self.message.kwargs, self.task.sensitive)

    def traceback_text(self, error: BaseException) -> str:
        """Return the traceback of `error` as a text that every database stores, without sensitive arguments."""
        return traceback_text(error, hiding=self._hidden_values())

    def scrubbed(self, text: str) -> str:
        """Return `text` with masks in the place of sensitive arguments."""
        return scrubbed(text, self._hidden_values())

    def log_error(
        self,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        level: int,
        message: str,
        *args: object,
        error: BaseException,
    ) -> None:
        """Log `message` with the traceback of `error`; where arguments are sensitive, as text without them."""
        if self.task.sensitive:
            logger.log(level, "%s\n%s", message % args, self.traceback_text(error))
        else:
            logger.log(level, message, *args, exc_info=error)

    def _hidden_values(self) -> list[object]:
        # As they travelled and as the task has them: an error may quote either.
        return [
            values[name]
            for name in self.task.sensitive
            for values in (self.message.kwargs, self.arguments)
            if name in values
        ]

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
            first_sent=None if self.task.expires_in is None else self.first_sent,
            database=self.database,
        )


def __getattr__(name: str) -> Any:
    # Where the first versions had it: annotations of users name it.
    if name == "TaskHandle":
        return importlib.import_module("lambda_tasks.handles").TaskHandle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
