"""The documented schema of an invocation, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from lambda_tasks import registry
from lambda_tasks.database.commits import open_transaction
from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.execution import pipeline
from lambda_tasks.execution.fetching import fetched
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.outcomes import Failed, Outcome, Skipped
from lambda_tasks.recording.storable import unstorable
from lambda_tasks.sending import outgoing
from lambda_tasks.settings import MAX_KEPT_DELAY
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import is_group
from lambda_tasks.wire.invocation import MAX_NAME_LENGTH, MAX_RETRY_NUMBER, Invocation, is_task_name


def _storable(kwargs: dict[str, Any]) -> dict[str, Any]:
    if problem := unstorable(kwargs, uncounted=1):
        raise ValueError(problem)
    return kwargs


def _task_name(name: str) -> str:
    if not is_task_name(name):
        raise ValueError("must be the dotted path of a task, as in shop.mail.send")
    return name


def _group(group: str | None) -> str | None:
    if group is not None and not is_group(group):
        raise ValueError("must be 1 to 128 ASCII letters, digits and punctuation characters, without spaces")
    return group


_Arguments = Annotated[dict[str, JsonValue], AfterValidator(_storable)]
_TaskName = Annotated[str, Field(max_length=MAX_NAME_LENGTH), AfterValidator(_task_name)]


class SQSLambdaTaskMessage(BaseModel):
    """One invocation, as in the body of a message: the task name, the arguments, and the number of the retry."""

    # Arguments may be secrets, so neither the repr() nor pydantic's errors quote them.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    #: As in `Invocation`, which has such a reference only until it is read.
    stored: ClassVar[None] = None

    task_name: _TaskName
    kwargs: _Arguments = Field(default_factory=dict, repr=False)
    n_retries: Annotated[int, Field(ge=0, le=MAX_RETRY_NUMBER)] = 0

    @model_serializer
    def _documented_shape(self) -> dict[str, Any]:
        shape = {"task_name": self.task_name, "kwargs": self.kwargs}
        return shape | {"n_retries": self.n_retries} if self.n_retries else shape

    @classmethod
    def from_body(cls, body: str) -> SQSLambdaTaskMessage:
        """Read the body of a message, or raise `InvalidMessage`, which does not quote the arguments.

        Arguments that are stored outside of the message are read, too. Raise `ArgumentsMissing` if they do not exist.
        """
        call = Invocation.of_body(body)
        if call.stored is not None:
            call = fetched(call)
        return cls(task_name=call.task_name, kwargs=call.kwargs, n_retries=call.n_retries)

    @property
    def invocation(self) -> Invocation:
        """The same invocation as the library's own type, which does not need pydantic."""
        return Invocation(self.task_name, self.kwargs, self.n_retries)

    def to_body(self) -> str:
        """Return the body of a message as JSON, in which only the characters that SQS rejects are escaped."""
        return self.invocation.to_body()

    def next_retry(self) -> SQSLambdaTaskMessage:
        """Return the invocation that retries this one."""
        return self.model_copy(update={"n_retries": self.n_retries + 1})

    def execute_immediately(self, message_id: str | None = None) -> Outcome | Skipped:
        """Run the task in this process, as a worker would, and return its outcome.

        The run is recorded under `message_id`, or under a new id. Time limits apply only in the main thread.

        Raises `MaxRetriesExceededError` if the task needs more retries than it is allowed (its record is FAILED),
        `UnknownTask` and `InvalidMessage` before anything is recorded, and `Redeliver` if the invocation is running
        elsewhere or could not be finished.
        """
        own_id = ids.canonical_id(message_id) if message_id else ids.new_message_id()
        outcome = pipeline.execute(self.invocation, message_id=own_id)
        if isinstance(outcome, Failed) and isinstance(outcome.error, MaxRetriesExceededError):
            raise outcome.error
        return outcome


class SQSLambdaTask(BaseModel):
    """An invocation with the options for sending it. `task.serialize()` returns it as a dict."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    message: SQSLambdaTaskMessage
    delay: Annotated[int, Field(ge=0, le=MAX_KEPT_DELAY)] = 0
    queue: Annotated[str, Field(min_length=1)] = "default"
    #: The message group of `using(group=…)`. Without it, the task's option selects the group.
    group: Annotated[str | None, AfterValidator(_group)] = None

    @model_serializer(mode="wrap")
    def _without_missing_group(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        shape: dict[str, Any] = serialize(self)
        return {name: value for name, value in shape.items() if name != "group" or value is not None}

    def execute_on_commit(self) -> TaskHandle[Any]:
        """Send the invocation when the transaction commits, or immediately without a transaction.

        Invalid invocations raise an error here, inside the transaction: `UnknownQueue`, `MessageTooLarge`,
        `InvalidArguments` for a delay that is too long, and any exception from a plugin's `lambda_task_sending`. If SQS
        rejects the message, boto3's exception is raised after the commit, unless the outbox is on.
        """
        return outgoing.send_on_commit(self.new_job())

    async def aexecute_on_commit(self) -> TaskHandle[Any]:
        """Send the invocation in a coroutine, as `execute_on_commit()` does."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.execute_on_commit)()

    def new_job(self, task: Any = None) -> Job:
        """Return a new job for this invocation, with a new id."""
        return Job.of_call(
            self.message.invocation,
            queue=self.queue,
            delay=self.delay,
            task=task or registry.known_task(self.message.task_name),
            database=open_transaction(),
            group=self.group,
        )
