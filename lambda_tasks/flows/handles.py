"""The handle of a chain or a group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from django.db import connections, transaction
from django.db.models import Count

from lambda_tasks.awaiting.ends import in_own_transaction
from lambda_tasks.awaiting.polling import Polling, seconds_of
from lambda_tasks.database.aside import can_run_aside, run_aside
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.database.coroutines import refuse_coroutine
from lambda_tasks.flows import rows
from lambda_tasks.flows.recovery import cancel_members
from lambda_tasks.handles import TIMEOUT, TaskHandle, canonical
from lambda_tasks.jobs import SendState
from lambda_tasks.strategies import get_store
from lambda_tasks.wire import marks

T = TypeVar("T")

#: The status of a flow whose tasks have not all ended.
RUNNING: Final = "RUNNING"


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tasks of a chain or a group have ended, and how."""

    total: int
    pending: int = 0
    succeeded: int = 0
    failed: int = 0
    #: The tasks of a chain that never run, since one before them has failed.
    skipped: int = 0


@dataclass(frozen=True)
class FlowHandle:
    """A reference to a chain or a group, with its status, its counts and its tasks."""

    flow_id: str
    #: The alias of the database of the records.
    database: str = field(default_factory=lambda: get_store().database)
    state: SendState | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.flow_id, self.database)

    @classmethod
    def from_id(cls, flow_id: str | UUID) -> FlowHandle:
        """Return a handle for an id that was stored, or that a task has taken as `FLOW_ID`. It need not exist.

        Raises ValueError for an id that is not a UUID.
        """
        return cls(canonical(flow_id))

    @property
    def status(self) -> str | None:
        """`RUNNING` until the last task has ended, then `SUCCESS`, or `FAILED` if a task has failed. This is one query.

        It is None if there is no such chain or group: its transaction has not committed or was rolled back, or the
        cleanup has deleted it.
        """
        refuse_coroutine("status", "handle.astatus()")
        for ended_at, failed in self._rows().values_list("ended_at", "failed"):
            return RUNNING if ended_at is None else rows.FAILED if failed else rows.SUCCESS
        return None

    async def astatus(self) -> str | None:
        """Return the status, as `status` does, in a coroutine."""
        return await _in_thread(lambda: self.status)

    @property
    def counts(self) -> Counts:
        """How many tasks have ended, and how. This is one query, which reads the index entries of all tasks."""
        refuse_coroutine("counts", "handle.acounts()")
        by_status = self._members().values_list("status")
        found = dict(by_status.annotate(number=Count("pk")).order_by())
        return Counts(
            total=sum(found.values()),
            pending=found.get(rows.PENDING, 0),
            succeeded=found.get(rows.SUCCESS, 0),
            failed=found.get(rows.FAILED, 0),
            skipped=found.get(rows.SKIPPED, 0),
        )

    async def acounts(self) -> Counts:
        """Return the counts, as `counts` does, in a coroutine."""
        return await _in_thread(lambda: self.counts)

    def tasks(self, status: str | None = None) -> list[TaskHandle[Any]]:
        """Return the handles of the tasks, in the order of the call: all, or those with the `status` of a member.

        These are `PENDING`, `SUCCESS`, `FAILED`, and `SKIPPED` for the tasks of a chain that never run. This is one
        query.
        """
        refuse_coroutine("tasks()", "handle.atasks()")
        members = self._members().order_by("position")
        if status is not None:
            members = members.filter(status=status)
        return [TaskHandle(str(message_id), self.database) for message_id in members.values_list("pk", flat=True)]

    async def atasks(self, status: str | None = None) -> list[TaskHandle[Any]]:
        """Return the handles of the tasks, as `tasks()` does, in a coroutine."""
        return await _in_thread(lambda: self.tasks(status))

    def results(self) -> list[Any]:
        """Return the results of the tasks, in the order of the call; None for each that has not succeeded.

        They have the types of the tasks' return annotations, as those of `TaskHandle.result()`. Two queries read
        three hundred of them.
        """
        from lambda_tasks.flows.results import results_of

        refuse_coroutine("results()", "handle.aresults()")
        return list(results_of(self.flow_id, self.database))

    async def aresults(self) -> list[Any]:
        """Return the results of the tasks, as `results()` does, in a coroutine."""
        return await _in_thread(self.results)

    def wait(self, timeout: float | timedelta | None = TIMEOUT, *, poll: Polling | None = None) -> str:
        """Wait until all tasks have ended, and return the status: `SUCCESS` or `FAILED`.

        `timeout` is a number of seconds or a timedelta, or None to wait without a limit. `poll` says how often the
        database is asked. Raises TimeoutError if they have not ended in time.
        """
        refuse_coroutine("wait()", "handle.await_()")
        poll, seconds = poll or Polling(), seconds_of(timeout)
        status = self.status
        for pause in poll.pauses(seconds) if status in (None, RUNNING) else ():
            poll.sleep(pause)
            if (status := self._read_status()) not in (None, RUNNING):
                break
        return self._ended(status, seconds)

    async def await_(self, timeout: float | timedelta | None = TIMEOUT, *, poll: Polling | None = None) -> str:
        """Wait until all tasks have ended, as `wait()` does, in a coroutine."""
        poll, seconds = poll or Polling(), seconds_of(timeout)
        status = await self.astatus()
        for pause in poll.pauses(seconds) if status in (None, RUNNING) else ():
            await poll.asleep(pause)
            if (status := await _in_thread(self._read_status)) not in (None, RUNNING):
                break
        return self._ended(status, seconds)

    def _read_status(self) -> str | None:
        """Return the status as other transactions see it: an open one may have a snapshot in which it never changes."""
        connection = connections[self.database]
        if in_own_transaction(connection) and can_run_aside(connection):
            return run_aside(lambda: self.status)
        return self.status

    def _ended(self, status: str | None, seconds: float | None) -> str:
        if status is None or status == RUNNING:
            raise TimeoutError(
                f"The chain or group [{self.flow_id}] has not ended within {seconds:g} s; its status is {status}. Wait "
                "longer, or look at its tasks with handle.tasks()."
            )
        return status

    def cancel(self) -> bool:
        """Cancel all tasks that have not ended, and return False if there are none.

        Each is cancelled as `TaskHandle.cancel()` does it: those that wait never run, and those that run are asked to
        end. The later tasks of a chain never run. A cancelled task has failed, so `on_failure` is sent.

        In a transaction on the database of the records, cancelling is a part of it.
        """
        refuse_coroutine("cancel()", "handle.acancel()")
        with transaction.atomic(using=self.database):
            flow = rows.locked(self.flow_id, self.database)
            if flow is None or flow.ended_at is not None or flow.kind == marks.CALL:
                return False
            self._rows().update(cancelled_at=DatabaseNow())
            pending = self._members().filter(status=rows.PENDING).order_by("position")
            if flow.kind == marks.CHAIN:
                pending = pending[:1]  # the later steps are not sent
            cancel_members(
                [str(pk) for pk in pending.values_list("pk", flat=True)], flow.kind, self.flow_id, self.database
            )
        return True

    async def acancel(self) -> bool:
        """Cancel all tasks that have not ended, as `cancel()` does, in a coroutine."""
        return await _in_thread(self.cancel)

    def _members(self) -> Any:
        return rows.members(self.database).filter(flow_id=self.flow_id)

    def _rows(self) -> Any:
        return rows.flows(self.database).filter(pk=self.flow_id).exclude(kind=marks.CALL)


async def _in_thread(action: Callable[[], T]) -> T:
    from asgiref.sync import sync_to_async

    return await sync_to_async(action)()
