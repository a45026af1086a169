"""Find the end of an invocation and of its retries: one query for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks.database.aside import can_run_aside, run_aside
from lambda_tasks.database.private_names import blocks_of_test_case
from lambda_tasks.exceptions import ResultUnavailable, TaskFailed
from lambda_tasks.jobs import PENDING, ROLLED_BACK, SENT, UNSENT
from lambda_tasks.outcomes import Latest
from lambda_tasks.recording.tracebacks import without_later_lines
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_store

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task
    from lambda_tasks.jobs import SendState

_SUCCESS: Final = "SUCCESS"
_ENDED: Final = frozenset({_SUCCESS, "FAILED"})
#: The reason of a task that failed after its last retry: its own error is the cause of the recorded one.
_MAX_RETRIES: Final = "max_retries"

#: What to do about an invocation that has not ended, by its status.
_REMEDIES: Final = {
    PENDING: "End the transaction that sends it.",
    UNSENT: "The queue did not accept it. The error was raised when it was sent.",
    SENT: "No worker has claimed it. Check that a worker receives messages from its queue, or wait longer.",
    "WAITING": "Its message waits in the outbox. Check that a relay sends it, or wait longer.",
    "DEAD": "The queue has rejected its message for good. See the messages of the outbox in the admin.",
    "RUNNING": "Wait longer, or cancel it with handle.cancel().",
    "RETRYING": "It waits for its next retry. Wait longer, or cancel it with handle.cancel().",
}
_UNKNOWN: Final = "It has no record: it is still on its way, or it was never sent, or its record was deleted."


class Following:
    """An invocation whose end is waited for, and the name under which errors mention it."""

    def __init__(self, message_id: str, task: Task | None, state: SendState | None, database: str) -> None:
        self._id = message_id
        self._state = state
        self._database = database
        self._task = task
        self._name = f"{task.name} [{message_id}]" if task is not None else f"The task [{message_id}]"
        self._asked = False

    def end(self) -> Latest | None:
        """Return the invocation that has ended the chain of retries, or None if it has not ended. This is one query.

        Raise `ResultUnavailable` if it cannot end while the caller waits.
        """
        self._refuse_unsent()
        latest = self._read()
        self._asked = True
        if latest is None or latest.status in _ENDED:
            return latest
        self._id = latest.root_id  # if the handle is that of a retry, its own retries belong to the root's chain
        return None

    def timed_out(self, timeout: float | None, status: str | None) -> TimeoutError:
        """Return the error for an invocation that has not ended in time."""
        remedy = self._unknown() if status is None else _REMEDIES.get(status, _REMEDIES["RUNNING"])
        return TimeoutError(f"{self._name} has not ended within {timeout:g} s; its status is {status}. {remedy}")

    def _unknown(self) -> str:
        """Return what is known about an invocation without a record."""
        if self._task is None or (self._task.record or app_settings.record) == "all":
            return _UNKNOWN
        hours = app_settings.forget_after / 3600
        return f"{_UNKNOWN} {self._task.name} has record='failures': it may have succeeded more than {hours:g} h ago."

    def failure(self, end: Latest) -> TaskFailed:
        """Return the error for an invocation that has failed."""
        text = without_later_lines(end.traceback.rstrip(), cause=end.reason == _MAX_RETRIES)
        last_line = text.rstrip().rpartition("\n")[2] or "no traceback is recorded"
        because = f" ({end.reason})" if end.reason else ""
        return TaskFailed(
            f"{self._name} has failed{because}: {last_line}",
            record=end.record,
            traceback=end.traceback,
            reason=end.reason,
        )

    def _refuse_unsent(self) -> None:
        if self._state is None:
            return
        if self._state.waits_for_caller:
            raise ResultUnavailable(
                f"{self._name} has not been sent: it is sent when the open transaction on {self._database!r} commits. "
                "Wait for it after that transaction, or send it with execute_now()."
            )
        if self._state.value == ROLLED_BACK:
            raise ResultUnavailable(
                f"{self._name} was never sent: the transaction on {self._database!r} that should have sent it was "
                "rolled back. Call the task again."
            )

    def _read(self) -> Latest | None:
        store = get_store()
        connection = connections[store.database]
        # The first question is asked in the caller's transaction, which may contain the record, as in eager mode. It
        # may also have a snapshot, in which no later record appears.
        if self._asked and in_own_transaction(connection) and can_run_aside(connection):
            return run_aside(lambda: store.latest(self._id))
        return store.latest(self._id)


def in_own_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction is open that is not that of a Django TestCase, which contains everything."""
    if not connection.in_atomic_block:
        return not connection.get_autocommit()
    return not blocks_of_test_case(connection)


def result_of(end: Latest, task: Task | None) -> Any:
    """Return the result of an invocation that has succeeded, as the task's return annotation describes it.

    It is None if the function has not returned: its error was ignored, or it was skipped or replaced.
    """
    if task is None or end.reason or end.result is None:
        return end.result
    return task.signature.returned.read(end.result)


def succeeded(end: Latest) -> bool:
    """Return whether an invocation that has ended is a success."""
    return end.status == _SUCCESS
