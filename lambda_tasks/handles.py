"""The handle that `execute_on_commit()` returns."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, cast, overload
from uuid import UUID

from django.db import connections

from lambda_tasks.database.coroutines import refuse_coroutine
from lambda_tasks.definition.task import Task
from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.jobs import PENDING, ROLLED_BACK, SendState
from lambda_tasks.outcomes import Latest, Prevented, ReportedProgress, TooLate
from lambda_tasks.recording.described import described
from lambda_tasks.strategies import get_backend, get_store

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from lambda_tasks.awaiting.ends import Following
    from lambda_tasks.awaiting.polling import Polling

    T = TypeVar("T")
    #: The type of the result. A handle without one, as in annotations of earlier versions, may have any result.
    R_co = TypeVar("R_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    R_co = TypeVar("R_co", covariant=True)

__all__ = ["TIMEOUT", "Polling", "TaskHandle", "Withdrawn", "cancel", "canonical"]

#: Seconds for which `result()` waits, unless the call says otherwise.
TIMEOUT: Final = 30.0


@frozen
class TaskHandle(Generic[R_co]):
    """A reference to an invocation, with its id, its status and its result."""

    message_id: str
    #: The alias of the database with whose commit the message is sent.
    database: str = "default"
    #: Whether the call has created the invocation. False if a task with `unique` returned that of an earlier call.
    created: bool = field(default=True, compare=False)
    #: The task, if it is known. Its return annotation is the type of the result.
    task: Task | None = field(default=None, repr=False, compare=False)
    #: What this process knows about sending the message, if it has made the call.
    state: SendState | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        # Another process does not know how far this one has come with sending the message.
        return type(self), (self.message_id, self.database, self.created, self.task)

    @overload
    @classmethod
    def from_id(
        cls, message_id: str | UUID, task: Callable[..., Coroutine[Any, Any, T]], *, database: str = ...
    ) -> TaskHandle[T]: ...
    @overload
    @classmethod
    def from_id(cls, message_id: str | UUID, task: Callable[..., T], *, database: str = ...) -> TaskHandle[T]: ...
    @overload
    @classmethod
    def from_id(cls, message_id: str | UUID, task: None = ..., *, database: str = ...) -> TaskHandle[Any]: ...
    @classmethod
    def from_id(cls, message_id: str | UUID, task: Any = None, *, database: str = "default") -> TaskHandle[Any]:
        """Return a handle for an id that was stored, for instance in a session or a URL.

        With the task, `result()` returns the type of its return annotation, and otherwise JSON values. `database` is
        the alias of the database whose outbox has kept the message. The invocation need not exist.

        Raises ValueError for an id that is not a UUID, and TypeError if `task` is not a task.
        """
        if task is not None and not isinstance(task, Task):
            raise TypeError(f"task must be a function with @lambda_task, not {described(task)}.")
        return TaskHandle(canonical(message_id), database, task=task)

    @property
    def status(self) -> str | None:
        """The current status of the invocation. Reading it takes one to three queries.

        It is the status of the record (`RUNNING`, `SUCCESS`, `FAILED`, `RETRYING`) once a worker has claimed the
        invocation. Before that, with the outbox, it is `WAITING` until the message is sent, or `DEAD` if the queue has
        rejected it.

        The handle that the call has returned also knows what its process has done: `PENDING` until the transaction
        ends, `ROLLED_BACK` if it was rolled back, `SENT` if the queue has accepted the message, and `UNSENT` if
        sending has raised an error.

        Otherwise it is None: the message is in the queue, or the transaction has not committed or was rolled back, or
        the record was deleted by the cleanup.
        """
        refuse_coroutine("status", "handle.astatus()")
        store = get_store()
        if status := store.status(self.message_id):
            return status
        known = self.state.value if self.state is not None else None
        if known in (PENDING, ROLLED_BACK):
            return known
        # A third query, since the message may be sent and claimed between the first two.
        return get_backend().status(self.message_id, database=self.database) or store.status(self.message_id) or known

    async def astatus(self) -> str | None:
        """Return the current status, as `status` does, in a coroutine."""
        return await _in_thread(lambda: self.status)

    def result(self, timeout: float | timedelta | None = TIMEOUT, *, poll: Polling | None = None) -> R_co:
        """Wait until the task has ended, including its retries, and return its result.

        The result has the type of the task's return annotation, as far as that can be read from JSON, and is otherwise
        a JSON value. It is None if the task has raised an ignored error, or was skipped or replaced. `timeout` is a
        number of seconds or a timedelta, or None to wait without a limit; with 0, the database is asked once. `poll`
        says how often.

        Raises `TaskFailed` if the task has failed, TimeoutError if it has not ended in time, and `ResultUnavailable` if
        it cannot end, because the open transaction of the caller sends it, or because that was rolled back.
        """
        refuse_coroutine("result()", "handle.aresult()")
        following, end = self._wait(timeout, poll)
        return self._result(following, end)

    async def aresult(self, timeout: float | timedelta | None = TIMEOUT, *, poll: Polling | None = None) -> R_co:
        """Wait until the task has ended, and return its result, as `result()` does, in a coroutine."""
        following, end = await self._await(timeout, poll)
        return self._result(following, end)

    def wait(self, timeout: float | timedelta | None = TIMEOUT, *, poll: Polling | None = None) -> str:
        """Wait until the task has ended, including its retries, and return its status: `SUCCESS` or `FAILED`.

        Raises TimeoutError and `ResultUnavailable` as `result()` does, but not `TaskFailed`.
        """
        refuse_coroutine("wait()", "handle.await_()")
        return self._wait(timeout, poll)[1].status

    async def await_(self, timeout: float | timedelta | None = TIMEOUT, *, poll: Polling | None = None) -> str:
        """Wait until the task has ended, and return its status, as `wait()` does, in a coroutine."""
        return (await self._await(timeout, poll))[1].status

    @property
    def progress(self) -> ReportedProgress | None:
        """What the task has last reported with `current_task().progress()`; None before that. This is one query.

        After a retry has started, it is what the retry has reported.
        """
        refuse_coroutine("progress", "handle.aprogress()")
        return get_store().read_progress(self.message_id)

    async def aprogress(self) -> ReportedProgress | None:
        """Return what the task has last reported, as `progress` does, in a coroutine."""
        return await _in_thread(lambda: self.progress)

    def cancel(self) -> bool:
        """Cancel the invocation and its retries. Return False if it has already ended.

        If it waits, for a worker, its lock or a retry, it never runs: its record becomes FAILED with the reason
        `cancelled`, and its message is deleted from the outbox. If a worker runs it, `current_task().cancelled` becomes
        true there, and no further attempt runs; a task that returns in spite of that is a SUCCESS.

        In a transaction on the database of the records, cancelling is a part of it, and is rolled back with it.
        """
        refuse_coroutine("cancel()", "handle.acancel()")
        cancelled = cancel(self.message_id)
        connection = connections[self.database]
        if cancelled and connection.in_atomic_block and get_backend().keeps:
            # Its own transaction may have enqueued it, and then stores its message before COMMIT.
            connection.on_commit(Withdrawn(self.message_id))
        return cancelled

    async def acancel(self) -> bool:
        """Cancel the invocation and its retries, as `cancel()` does, in a coroutine."""
        return await _in_thread(self.cancel)

    def _wait(self, timeout: float | timedelta | None, poll: Polling | None) -> tuple[Following, Latest]:
        from lambda_tasks.awaiting.ends import Following
        from lambda_tasks.awaiting.polling import Polling, seconds_of

        poll, seconds = poll or Polling(), seconds_of(timeout)
        following = Following(self.message_id, self.task, self.state, self.database)
        end = following.end()
        for pause in poll.pauses(seconds) if end is None else ():
            poll.sleep(pause)
            if end := following.end():
                break
        if end is None:
            raise following.timed_out(seconds, self.status)
        return following, end

    async def _await(self, timeout: float | timedelta | None, poll: Polling | None) -> tuple[Following, Latest]:
        from lambda_tasks.awaiting.ends import Following
        from lambda_tasks.awaiting.polling import Polling, seconds_of

        poll, seconds = poll or Polling(), seconds_of(timeout)
        following = Following(self.message_id, self.task, self.state, self.database)
        end = await _in_thread(following.end)
        for pause in poll.pauses(seconds) if end is None else ():
            await poll.asleep(pause)
            if end := await _in_thread(following.end):
                break
        if end is None:
            raise following.timed_out(seconds, await self.astatus())
        return following, end

    def _result(self, following: Following, end: Latest) -> R_co:
        from lambda_tasks.awaiting.ends import result_of, succeeded

        if not succeeded(end):
            raise following.failure(end)
        return cast("R_co", result_of(end, self.task))


async def _in_thread(action: Callable[[], T]) -> T:
    """Call `action` in the thread in which the coroutine's synchronous code runs, and in its transaction."""
    from asgiref.sync import sync_to_async

    return await sync_to_async(action)()


def canonical(message_id: str | UUID) -> str:
    """Return an id in its canonical form. Raise ValueError for one that is not a UUID."""
    try:
        return str(UUID(str(message_id)))
    except ValueError:
        raise ValueError(
            f"The id of a task must be a UUID, as in handle.message_id and TaskRecord.pk, not {message_id!r}."
        ) from None


def cancel(message_id: str, *, database: str | None = None) -> bool:
    """Cancel the invocation, whose record is in `database`, by default in that of the store.

    Raise ValueError for an id that is not a UUID.
    """
    message_id = canonical(message_id)
    backend = get_backend()
    waiting = backend.find(message_id)
    result = get_store().cancel(message_id, waiting, database=database)
    if isinstance(result, Prevented):
        kept = waiting if result.message_id == message_id else backend.find(result.message_id)
        if kept is None or not kept.is_followed:  # the worker that receives the message sends what follows the task
            backend.discard(result.message_id)
        else:
            backend.expedite(result.message_id)
    return not isinstance(result, TooLate)


@frozen
class Withdrawn:
    """An `on_commit` callback that does nothing.

    While it waits with a transaction's other callbacks, the transaction has cancelled the task that it has enqueued.
    Django drops it if the savepoint in which the task was cancelled is rolled back.
    """

    message_id: str

    def __call__(self) -> None:
        return


if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name):
        if name != "Polling":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from lambda_tasks.awaiting.polling import Polling  # most processes do not wait for results

        return Polling
