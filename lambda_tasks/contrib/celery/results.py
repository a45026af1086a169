"""What `.delay()` returns, with the methods and the words of Celery's AsyncResult."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload
from uuid import UUID

from lambda_tasks.definition.hints import PAGE, for_attribute
from lambda_tasks.exceptions import ResultUnavailable, TaskFailed
from lambda_tasks.flows.handles import FlowHandle
from lambda_tasks.handles import TaskHandle
from lambda_tasks.outcomes import ReportedProgress

R_co = TypeVar("R_co", covariant=True)

PENDING: Final = "PENDING"
SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
REVOKED: Final = "REVOKED"
#: The statuses of the library as Celery calls them. A task that is neither running nor ended is PENDING.
_STATES: Final = {
    "RUNNING": "STARTED",
    "RETRYING": "RETRY",
    "SUCCESS": SUCCESS,
    "FAILED": FAILURE,
    "DEAD": FAILURE,
    "ROLLED_BACK": FAILURE,
    "UNSENT": FAILURE,
}
_ENDED: Final = frozenset({SUCCESS, FAILURE, REVOKED})
_CANCELLED: Final = "cancelled"


class _Result:
    """What the results of tasks, chains and groups have in common."""

    id: str

    @property
    def state(self) -> str:
        """One of PENDING, STARTED, RETRY, SUCCESS, FAILURE and REVOKED."""
        raise NotImplementedError

    @property
    def status(self) -> str:
        return self.state

    def ready(self) -> bool:
        """Return whether it has ended."""
        return self.state in _ENDED

    def successful(self) -> bool:
        """Return whether it has ended with success. Unlike Celery's, it is False while it runs."""
        return self.state == SUCCESS

    def failed(self) -> bool:
        """Return whether it has failed."""
        return self.state == FAILURE

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    if not TYPE_CHECKING:  # otherwise type checkers would accept any name

        def __getattr__(self, name):
            hint = for_attribute(name) or f"See {PAGE}, or use the handle in its attribute handle."
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}. {hint}", name=name, obj=self)


class AsyncResult(_Result, Generic[R_co]):
    """A call of a task. `handle` is its `TaskHandle`, which can do more.

    Its id is that of the first attempt, and `self.request.id` in the task. The argument is such an id or a handle.
    Raises ValueError for an id that is not a UUID.
    """

    @overload
    def __init__(self: AsyncResult[Any], id: str | UUID) -> None: ...
    @overload
    def __init__(self, id: TaskHandle[R_co]) -> None: ...
    def __init__(self, id: str | UUID | TaskHandle[R_co]) -> None:
        self.handle: TaskHandle[R_co] = id if isinstance(id, TaskHandle) else TaskHandle.from_id(id)
        self.id = self.handle.message_id

    @property
    def task_id(self) -> str:
        return self.id

    def get(self, timeout: float | None = None, propagate: bool = True, **_harmless: Any) -> R_co:
        """Wait until the task has ended, including its retries, and return its result.

        `timeout` is a number of seconds, or None to wait without a limit. With `propagate=False`, the error of a failed
        task is returned. Celery's `interval` and `disable_sync_subtasks` have no effect.

        Raises `TaskFailed`, with the traceback as text, TimeoutError, and `ResultUnavailable` inside the transaction
        that sends the task.
        """
        try:
            return self.handle.result(timeout)
        except TaskFailed as error:
            if propagate:
                raise
            failure: Any = error
            return failure  # type: ignore[no-any-return]  # as Celery does

    @property
    def state(self) -> str:
        try:
            self.handle.result(0)
        except TaskFailed as error:
            return REVOKED if error.reason == _CANCELLED else FAILURE
        except (TimeoutError, ResultUnavailable):
            return _STATES.get(self.handle.status or "", PENDING)
        return SUCCESS

    @property
    def result(self) -> Any:
        """The result, or the error of a failed task; the progress while the task runs, and None before that."""
        try:
            return self.get(0, propagate=False)
        except (TimeoutError, ResultUnavailable):
            progress = self.handle.progress
            return None if progress is None else _as_meta(progress)

    info = result

    @property
    def traceback(self) -> str | None:
        """The traceback of a failed task."""
        error = self.result
        return error.traceback if isinstance(error, TaskFailed) else None

    def revoke(self, *, terminate: bool = False) -> bool:
        """Cancel the task and its retries. Return False if it has already ended.

        Raises TypeError with `terminate`, since no worker is killed for a task.
        """
        if terminate:
            raise TypeError(
                "terminate must be False, since workers run other tasks too. A running task ends itself after its "
                f"current_task().cancelled is True ({PAGE})."
            )
        return self.handle.cancel()


class _FlowResult(_Result):
    """A chain or a group that was sent. `handle` is its `FlowHandle`, which can do more."""

    def __init__(self, handle: FlowHandle) -> None:
        self.handle = handle
        self.id = handle.flow_id

    @property
    def state(self) -> str:
        return {"RUNNING": "STARTED", "FAILED": FAILURE, "SUCCESS": SUCCESS}.get(self.handle.status or "", PENDING)

    def revoke(self) -> bool:
        """Cancel all tasks that have not ended. Return False if there are none."""
        return self.handle.cancel()

    def _results(self, timeout: float | None, propagate: bool) -> list[Any]:
        if self.handle.wait(timeout) != "SUCCESS" and propagate:
            for failed in self.handle.tasks("FAILED"):
                failed.result(0)  # raises its error
        return self.handle.results()


class ChainResult(_FlowResult, Generic[R_co]):
    """A chain that was sent. Its result is that of the last task."""

    def get(self, timeout: float | None = None, propagate: bool = True, **_harmless: Any) -> R_co:
        """Wait until the chain has ended, and return the result of its last task.

        Raises `TaskFailed` with the error of the task that has failed, and TimeoutError. With `propagate=False`, a
        chain that has failed returns None.
        """
        last: R_co = self._results(timeout, propagate)[-1]
        return last


class GroupResult(_FlowResult):
    """A group that was sent. Its result is the list of those of its tasks."""

    @property
    def results(self) -> list[AsyncResult[Any]]:
        """The results of the tasks, in their order. This is one query."""
        return [AsyncResult(handle) for handle in self.handle.tasks()]

    def get(self, timeout: float | None = None, propagate: bool = True, **_harmless: Any) -> list[Any]:
        """Wait until all tasks have ended, and return their results; None for each that has not succeeded.

        Raises `TaskFailed` with the first error, unless `propagate` is False, and TimeoutError.
        """
        return self._results(timeout, propagate)

    join = get

    def completed_count(self) -> int:
        """Return the number of tasks that have succeeded."""
        return self.handle.counts.succeeded


def _as_meta(progress: ReportedProgress) -> dict[str, Any]:
    return {"current": progress.done, "total": progress.total, "status": progress.note}
