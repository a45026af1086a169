"""What travels: the documented schema of an invocation, as pydantic models."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_serializer,
)
from pydantic_core import to_json

from lambda_tasks import executor, identity, outgoing, registry
from lambda_tasks.commits import open_transaction
from lambda_tasks.exceptions import InvalidMessage, MaxRetriesExceededError
from lambda_tasks.fidelity import problems_of
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.outcomes import Failed, Outcome, Skipped
from lambda_tasks.plain import MAX_NAME_LENGTH, MAX_RETRY_NUMBER
from lambda_tasks.settings import MAX_KEPT_DELAY
from lambda_tasks.storable import MAX_DEPTH, depth

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _storable(value: Any) -> Any:
    """Refuse what JSON or databases have no place for, wherever in `value` it stands."""
    match value:
        case str():
            if "\x00" in value:
                raise ValueError("contains a NUL character")
            if not value.isascii() and _SURROGATE.search(value):
                raise ValueError("contains half of a character: a surrogate without its partner")
        case float():
            if not math.isfinite(value):
                raise ValueError(f"contains {value}, which is no number of JSON's")
        case dict():
            for key, item in value.items():
                _storable(key)
                _storable(item)
        case list():
            for item in value:
                _storable(item)
    return value


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what is nested deeper than every database stores, as the call does."""
    if depth(value) > MAX_DEPTH:
        raise ValueError(f"is nested more than {MAX_DEPTH - 1} levels deep")
    return value


_Arguments = Annotated[dict[str, JsonValue], AfterValidator(_storable), AfterValidator(_shallow)]


#: Of ASCII the only character that json escapes and pydantic does not.
_DELETE: Final = b"\x7f"
#: `json.dumps` with options would make a new one for each message.
_encoder: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class SQSLambdaTaskMessage(BaseModel):
    """One invocation, as it stands in the body of a message: task name, arguments, number of the retry."""

    # Neither its repr() nor pydantic's errors quote arguments: they may be secrets.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    task_name: Annotated[str, Field(pattern=r"^[^\s.\x00]+(\.[^\s.\x00]+)+$", max_length=MAX_NAME_LENGTH)]
    kwargs: _Arguments = Field(default_factory=dict, repr=False)
    n_retries: Annotated[int, Field(ge=0, le=MAX_RETRY_NUMBER)] = 0

    @model_serializer
    def _documented_shape(self) -> dict[str, Any]:
        return self._shape()

    def _shape(self) -> dict[str, Any]:
        shape = {"task_name": self.task_name, "kwargs": self.kwargs}
        return shape | {"n_retries": self.n_retries} if self.n_retries else shape

    @classmethod
    def from_body(cls, body: str) -> SQSLambdaTaskMessage:
        """Read the body of a message; raises `InvalidMessage`, which quotes no argument."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            problems = problems_of(error, whole="body")
        # Outside of the block, so that no error with the body in it hangs on this one.
        raise InvalidMessage(f"The message is no invocation of a task: {problems}")

    def to_body(self) -> str:
        """Return the body of a message: JSON in ASCII, of which SQS takes every character."""
        text = to_json(self._shape())
        # pydantic writes ASCII as it is, several times faster than json does.
        return text.decode() if text.isascii() and _DELETE not in text else _encoder.encode(self._shape())

    def next_retry(self) -> SQSLambdaTaskMessage:
        """Return the invocation that repeats this one."""
        return self.model_copy(update={"n_retries": self.n_retries + 1})

    def execute_immediately(self, message_id: str | None = None) -> Outcome | Skipped:
        """Run the task here and now, as a worker would, and return how it ended.

        The run is recorded under `message_id`, or under a new one. Time limits hold in the main thread.

        Raises `MaxRetriesExceededError` when the task asked for one retry too many (its record is
        FAILED); `UnknownTask` and `InvalidMessage` before anything is recorded; `Redeliver` when the
        invocation is running elsewhere or could not be settled.
        """
        own_id = identity.canonical_id(message_id) if message_id else identity.new_message_id()
        outcome = executor.execute(self, message_id=own_id)
        if isinstance(outcome, Failed) and isinstance(outcome.error, MaxRetriesExceededError):
            raise outcome.error
        return outcome


class SQSLambdaTask(BaseModel):
    """An invocation and how to send it: what `task.serialize()` returns as a dict."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    message: SQSLambdaTaskMessage
    delay: Annotated[int, Field(ge=0, le=MAX_KEPT_DELAY)] = 0
    queue: Annotated[str, Field(min_length=1)] = "default"

    def execute_on_commit(self) -> TaskHandle:
        """Send the invocation when the transaction commits: at once where there is none.

        What is wrong with it is refused here, inside the transaction: `UnknownQueue`,
        `MessageTooLarge`, a delay that is too long, and whatever a plugin's `lambda_task_sending` raises.
        What the queue itself refuses raises boto3's exception after the commit, unless the outbox is on.
        """
        return outgoing.send_on_commit(self.new_job())

    def new_job(self, task: Any = None) -> Job:
        """Return a new job for this invocation, with an id of its own."""
        return Job.of_call(
            self.message,
            queue=self.queue,
            delay=self.delay,
            task=task or registry.known_task(self.message.task_name),
            database=open_transaction(),
        )
