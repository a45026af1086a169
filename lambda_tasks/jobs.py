"""A job to send and a run to execute, with the details that hooks receive."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.exceptions import RetryLater
from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.recording.lines import Lines, indented
from lambda_tasks.recording.masking import masked, scrubbed
from lambda_tasks.recording.storable import storable
from lambda_tasks.recording.tracebacks import dropped_text, traceback_text
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import (
    FIRST_SENT_ATTRIBUTE,
    FLOW_ATTRIBUTE,
    GROUP_ATTRIBUTE,
    MESSAGE_ID_ATTRIBUTE,
    OWN_ATTRIBUTES,
    QUEUE_ATTRIBUTE,
    ROOT_ID_ATTRIBUTE,
    SCHEDULED_FOR_ATTRIBUTE,
    inherited,
    is_group,
)

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task
    from lambda_tasks.wire.invocation import Invocation


#: What this process knows of a call whose message is not in the database: its transaction is open, or was rolled back;
#: the transport has accepted the message, or has raised an error.
PENDING: Final = "PENDING"
ROLLED_BACK: Final = "ROLLED_BACK"
SENT: Final = "SENT"
UNSENT: Final = "UNSENT"


class SendState:
    """How far this process has come with sending a job. The handle of the call reads it."""

    __slots__ = ("_callback", "_thread", "kept", "result")

    def __init__(self) -> None:
        #: `SENT` or `UNSENT` after the transport was called.
        self.result: str | None = None
        #: Whether the transport has stored the job, to send it later. Then only the database knows what became of it.
        self.kept = False
        self._callback: weakref.ref[Any] | None = None
        self._thread = 0

    def wait_for(self, callback: object) -> None:
        """Note the `on_commit` callback that sends the job. Django drops it if its transaction is rolled back."""
        self._callback = weakref.ref(callback)
        self._thread = threading.get_ident()

    @property
    def value(self) -> str | None:
        """`PENDING`, `ROLLED_BACK`, `SENT` or `UNSENT`; None if that is unknown."""
        waits = self._callback is not None and self._callback() is not None  # first: it leaves before it is dropped
        if self.result is not None or self._callback is None:
            return self.result
        if self.kept:
            return None  # even if something, such as the traceback of an error, still refers to the callback
        return PENDING if waits else ROLLED_BACK

    @property
    def waits_for_caller(self) -> bool:
        """Whether the job is sent by a transaction that the calling thread has not ended yet."""
        return self._thread == threading.get_ident() and self.value == PENDING


@frozen
class Job:
    """An invocation to send to a queue. Plugins may add `attributes` before it is sent."""

    message: Invocation
    message_id: str
    #: The id of the first invocation in the chain of retries, which is the job's own id for the first one.
    root_id: str
    queue: str = "default"
    #: Seconds before a worker may receive it.
    delay: int = 0
    #: Message attributes (strings) that are sent in addition to the ids, for instance a trace context.
    attributes: dict[str, str] = field(default_factory=dict)
    #: The task that was called, if this process knows it.
    task: Task | None = field(default=None, repr=False, compare=False)
    #: When the first invocation of the chain was sent, in seconds since 1970, if its age matters.
    first_sent: float | None = None
    #: The time for which a schedule sends the chain, in seconds since 1970; None if none does.
    scheduled_for: float | None = None
    #: The alias of the database with whose commit it is sent.
    database: str = "default"
    #: The mark of an invocation that others follow, as in `lambda_tasks.wire.marks`; empty if none does.
    flow: str = ""
    #: The message group, by which a standard queue shares its workers fairly; None without one.
    group: str | None = None
    #: A callback for when the transport did not accept the job.
    unsent: Callable[[], object] | None = field(default=None, repr=False, compare=False)
    #: A callback for when the job can no longer get lost. With a transport that keeps jobs, it is called in the
    #: transaction that keeps the job, and otherwise after the transport has accepted it.
    secured: Callable[[], object] | None = field(default=None, repr=False, compare=False)
    #: How far sending has come, if a handle wants to know it.
    state: SendState | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_call(
        cls,
        message: Invocation,
        *,
        queue: str,
        delay: int,
        task: Task | None,
        database: str,
        group: str | None = None,
    ) -> Job:
        """Return a new job, the first of its chain, with a new id.

        Without a `group`, its task's option selects the group. Raises `InvalidArguments` if SQS would reject it.
        """
        message_id = ids.new_message_id()
        if group is None and task is not None and task.group is not None:
            from lambda_tasks.definition.groups import group_of

            group = group_of(task, message)
        return cls(
            message,
            message_id,
            root_id=message_id,
            queue=queue,
            delay=delay,
            task=task,
            database=database,
            group=group,
            state=SendState(),
        )

    @classmethod
    def of_sent(
        cls,
        message: Invocation,
        body: str,
        attributes: Mapping[str, str],
        *,
        message_id: str,
        queue: str,
        delay: int,
        task: Task | None,
        database: str,
    ) -> Job:
        """Restore a job from its `body` and its `message_attributes()`."""
        sent = attributes.get(FIRST_SENT_ATTRIBUTE)
        scheduled = attributes.get(SCHEDULED_FOR_ATTRIBUTE)
        job = cls(
            message,
            message_id,
            root_id=attributes.get(ROOT_ID_ATTRIBUTE, message_id),
            queue=queue,
            delay=delay,
            attributes={name: value for name, value in attributes.items() if name not in OWN_ATTRIBUTES},
            task=task,
            first_sent=None if sent is None else int(sent) / 1000,
            scheduled_for=None if scheduled is None else float(scheduled),
            flow=attributes.get(FLOW_ATTRIBUTE, ""),
            group=group if is_group(group := attributes.get(GROUP_ATTRIBUTE)) else None,
            database=database,
        )
        job.__dict__["body"] = body  # exactly as it was, without encoding the message again
        return job

    @property
    def task_name(self) -> str:
        return self.message.task_name

    @property
    def is_followed(self) -> bool:
        """Whether other invocations may follow its end, as the call or the decorator of its task says."""
        return bool(self.flow) or (self.task is not None and self.task.is_followed)

    @cached_property
    def body(self) -> str:
        """The body of the message. It is created once, so that the body that was checked at the call is sent."""
        return (self.sent_message if self.task is not None and self.task.sensitive else self.message).to_body()

    @property
    def sent_message(self) -> Invocation:
        """The message as it is sent: with sensitive arguments encrypted, if the settings have keys for that."""
        if self.task is None or not self.task.sensitive or self.message.stored is not None:
            return self.message
        from lambda_tasks.wire.encryption import encrypted  # few tasks have such arguments

        return encrypted(self.message, self.task.sensitive)

    def message_attributes(self) -> dict[str, str]:
        """Return all attributes of the message. Plugins cannot replace the library's own attributes."""
        own = {
            MESSAGE_ID_ATTRIBUTE: self.message_id,
            ROOT_ID_ATTRIBUTE: self.root_id,
            QUEUE_ATTRIBUTE: self.queue,
        }
        if self.first_sent is not None:
            own[FIRST_SENT_ATTRIBUTE] = str(round(self.first_sent * 1000))
        if self.scheduled_for is not None:
            own[SCHEDULED_FOR_ATTRIBUTE] = str(round(self.scheduled_for))
        if self.flow:
            own[FLOW_ATTRIBUTE] = self.flow
        if self.group is not None:
            own[GROUP_ATTRIBUTE] = self.group
        return {**self.attributes, **own}


@frozen
class Run:
    """One execution of an invocation, from the claim to its outcome."""

    message: Invocation
    message_id: str
    root_id: str
    task: Task
    #: The queue that it came from, and that its retry is sent to.
    queue: str
    #: The arguments for the function.
    arguments: dict[str, Any] = field(repr=False)
    #: The time limits in seconds: those of the task, or less if the Lambda invocation ends earlier.
    soft_timeout: float
    hard_timeout: float
    #: The number of seconds for which no other worker may take over the invocation.
    lease: float
    #: The alias of the database that holds the record and the task's transaction.
    database: str
    #: False if no time limits apply, as in eager mode.
    limited: bool = True
    #: The message attributes (strings) that the producer's plugins have added, for instance a trace context.
    attributes: Mapping[str, str] = field(default_factory=dict)
    #: When the first invocation of the chain was sent, in seconds since 1970; None if that is unknown.
    first_sent: float | None = None
    #: The time for which a schedule has sent the chain, in seconds since 1970; None if none has.
    scheduled_for: float | None = None
    #: The mark of an invocation that others follow; empty if none does.
    flow: str = ""
    #: The message group; None if its message has none.
    group: str | None = None
    #: Whether other invocations may follow its end, as its call or the decorator of its task says.
    is_followed: bool = False
    #: Whether a success leaves no lasting record, as the decorator of its task or the settings say.
    forgets: bool = False
    #: Whether the message was received before. If so, its record is expected to exist.
    redelivered: bool = False
    #: Whether it runs inside a transaction of the caller, as in eager mode and in Django's TestCase.
    nested: bool = False
    #: The token that identifies this run's claim. Every write of the store compares it.
    claim: str = field(default_factory=ids.new_message_id, repr=False)
    #: The number of workers that died earlier while they ran the invocation.
    takeovers: int = 0
    #: Seconds since the invocation began to wait for its lock; 0 if it did not wait.
    waited: float = 0.0
    #: The time, by `time.monotonic()`, at which the Lambda invocation ends; None if it has no end.
    deadline: float | None = field(default=None, repr=False)
    started_at: float = field(default_factory=time.monotonic, repr=False)
    #: The names of the tasks that it had enqueued, and that are not sent because its transaction was rolled back.
    dropped_tasks: tuple[str, ...] = ()
    #: When the worker received it, in seconds since 1970.
    received: float = field(default_factory=time.time, repr=False)
    #: When the queue accepted the message, in seconds since 1970; None if that is unknown.
    sent_at: float | None = None
    #: The id of the Lambda invocation, as in Lambda's own log lines; None outside of Lambda.
    request_id: str | None = None
    #: The last printed error of a task with sensitive arguments, and its text, since masking arguments takes time.
    _printed: list[tuple[BaseException, str]] = field(default_factory=list, repr=False, compare=False)

    @property
    def task_name(self) -> str:
        return self.message.task_name

    @property
    def n_retries(self) -> int:
        return self.message.n_retries

    @property
    def predecessor_id(self) -> str | None:
        """The id of the invocation that sent this one as its retry; None if it does not exist or is unknown."""
        predecessor = ids.predecessor_id(self.root_id, self.n_retries)
        # A retry whose message does not contain the id of its root is its own root.
        return None if predecessor == self.message_id else predecessor

    @property
    def age(self) -> float | None:
        """Seconds since the first invocation of the chain was sent; None if that is unknown."""
        # A retry whose message does not carry the time of the first one has only the time of its own message.
        carried = self.first_sent if carries_first_sent(self.task, self.root_id) else None
        began = carried or ids.made_at(self.root_id)
        return None if began is None else time.time() - began

    @property
    def duration(self) -> float:
        """Seconds since the start of the run, by a monotonic clock."""
        return time.monotonic() - self.started_at

    @property
    def recorded_kwargs(self) -> dict[str, Any]:
        """The arguments as JSON, with sensitive ones masked, for records and other output."""
        return masked(self.message.kwargs, self.task.sensitive)

    def traceback_text(self, error: BaseException) -> str:
        """Return the traceback of `error` without sensitive arguments, as a string that every database can store.

        It ends with a sentence about the tasks that were dropped because of the error, if there are any.
        """
        text = self._printed_error(error)
        return f"{text.rstrip()}\n\n{dropped_text(self.dropped_tasks)}\n" if self.dropped_tasks else text

    def _printed_error(self, error: BaseException) -> str:
        if not self.task.sensitive:
            return traceback_text(error)
        if not self._printed or self._printed[0][0] is not error:  # the record and the log show the same text
            self._printed[:] = [(error, traceback_text(error, hiding=self._hidden_values()))]
        return self._printed[0][1]

    def retry_text(self, error: BaseException) -> str | None:
        """Return what the record shows of a retry: the reason for which the task asked, or the traceback of `error`."""
        if isinstance(error, RetryLater):
            return storable(f"RetryLater: {self.scrubbed(error.reason)}") if error.reason else None
        return self.traceback_text(error)

    def scrubbed(self, text: str) -> str:
        """Return `text` with sensitive arguments masked."""
        return scrubbed(text, self._hidden_values())

    def _hidden_values(self) -> list[object]:
        # Both the JSON values and the decoded ones, since an error may quote either.
        return [
            values[name]
            for name in self.task.sensitive
            for values in (self.message.kwargs, self.arguments)
            if name in values
        ]

    def retry_job(self, delay: int) -> Job:
        """Return the job of the next retry. Its id is derived, so a job that is sent twice is one invocation."""
        message = self.message.next_retry()
        return Job(
            message=message,
            message_id=ids.retry_id(self.root_id, message.n_retries),
            root_id=self.root_id,
            queue=self.queue,
            delay=delay,
            attributes=inherited(self.attributes),
            task=self.task,
            first_sent=self.first_sent if carries_first_sent(self.task, self.root_id) else None,
            scheduled_for=self.scheduled_for,
            flow=self.flow,
            group=self.group,
            database=self.database,
        )

    def same_job(self, delay: int) -> Job:
        """Return the job of the same invocation, to be delivered again: same id, body and attributes."""
        retry = self.retry_job(delay)
        return replace(retry, message=self.message, message_id=self.message_id, attributes=dict(self.attributes))


def carries_first_sent(task: Task, root_id: str) -> bool:
    """Return whether a repeated message has to say when the first one of its chain was sent.

    That is so if the age matters, or if the id of the first one, such as that of a schedule's tick, does not tell.
    """
    return task.measures_age or not ids.tells_time(root_id)


def log_error(
    logger: logging.Logger | logging.LoggerAdapter[Any],
    run: Run,
    message: str,
    *args: object,
    error: BaseException,
    level: int = logging.ERROR,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Log `message` with the traceback of `error`. If the task has sensitive arguments, they are masked.

    `extra` are fields of the log record. The location of the line is that of the caller.
    """
    if run.task.sensitive:
        # The traceback is a part of the line, since `exc_info` would show the arguments.
        text = Lines(indented(run.traceback_text(error)))
        logger.log(level, "%s\n%s", message % args, text, extra=extra, stacklevel=2)
    else:
        logger.log(level, message, *args, exc_info=error, extra=extra, stacklevel=2)
