"""What users build: invocations that can be stored and sent later, chains and groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from django.db import connections

from lambda_tasks import registry
from lambda_tasks.database.commits import is_open, open_transaction
from lambda_tasks.database.coroutines import refuse_coroutine
from lambda_tasks.definition.steps import AFTER_FAILURE, AFTER_SUCCESS, IN_FLOW, Step, read, steps_of
from lambda_tasks.definition.task import Task
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.jobs import Job
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_store

if TYPE_CHECKING:
    from lambda_tasks.flows.handles import FlowHandle
    from lambda_tasks.handles import TaskHandle

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True)
class TaskInvocation(Step, Generic[R_co]):
    """A call of a task as a value: it can be sent, stored as JSON, and follow others. `task.invocation()` returns it.

    Each `execute_on_commit()` sends a new invocation, with a new id.
    """

    #: The alias of the database with whose transaction it is sent; None for the one that is open.
    database: str | None = None
    _task: Task | None = field(default=None, repr=False, compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self.serialize(), self.database)

    @classmethod
    def deserialize(cls, data: Mapping[str, Any]) -> TaskInvocation[Any]:
        """Return the invocation that `serialize()` has written. Raise ValueError if `data` is not one."""
        invocation = read(data, cls)
        assert isinstance(invocation, TaskInvocation)
        return invocation

    def execute_on_commit(self) -> TaskHandle[R_co]:
        """Send the invocation when the transaction commits, as the task's `execute_on_commit()` does.

        Raises the same errors, and `InvalidArguments` for one with a placeholder, which only an invocation that follows
        another one can have.
        """
        refuse_coroutine("execute_on_commit()", "aexecute_on_commit()")
        self.refuse_placeholders_except(frozenset(), "unless the invocation follows another one")
        if not self.is_followed:
            return outgoing.send_on_commit(self._new_job(open_transaction))
        from lambda_tasks.flows.sending import send_followed  # few tasks are followed

        return send_followed(self._new_job(_own_transaction), self)

    async def aexecute_on_commit(self) -> TaskHandle[R_co]:
        """Send the invocation in a coroutine, as `execute_on_commit()` does."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.execute_on_commit)()

    def _new_job(self, database: Callable[[], str]) -> Job:
        task = self._task or registry.known_task(self.task_name)
        if self._task is None and task is not None:
            task.signature.decode(self.kwargs)  # the stored arguments may be those of another version
        return Job.of_call(
            self.message({}),
            queue=self.queue,
            delay=self.delay,
            task=task,
            database=self.database or database(),
            group=self.group,
        )


def _own_transaction() -> str:
    """Return the alias of the database whose transaction is open, or that of the records if none is open."""
    alias = open_transaction()
    return alias if is_open(connections[alias]) else get_store().database


def _restored(data: Mapping[str, Any], database: str | None) -> TaskInvocation[Any]:
    return replace(TaskInvocation.deserialize(data), database=database)


@dataclass(frozen=True)
class _Flow:
    """What chains and groups have in common."""

    members: tuple[Step, ...]
    on_failure: tuple[Step, ...] = ()
    #: The alias of the database with whose transaction it is sent; None for the one that is open.
    database: str | None = None

    def execute_on_commit(self) -> FlowHandle:
        """Send it when the transaction commits, or immediately without a transaction, and return its handle.

        Raises the errors of the tasks' `execute_on_commit()`, and `UnknownDatabase` if the transaction is not on the
        database of the records.
        """
        refuse_coroutine("execute_on_commit()", "aexecute_on_commit()")
        return self._send(self.database or _own_transaction())

    async def aexecute_on_commit(self) -> FlowHandle:
        """Send it in a coroutine, as `execute_on_commit()` does."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(self.execute_on_commit)()

    def _send(self, database: str) -> FlowHandle:
        raise NotImplementedError


@dataclass(frozen=True)
class Chain(_Flow):
    """Tasks that run one after the other. `chain()` returns it."""

    def _send(self, database: str) -> FlowHandle:
        from lambda_tasks.flows.handles import FlowHandle
        from lambda_tasks.flows.sending import send_chain

        flow_id, state = send_chain(self.members, self.on_failure, database)
        return FlowHandle(flow_id, database, state)


@dataclass(frozen=True)
class Group(_Flow):
    """Tasks that run in any order. `group()` returns it."""

    then: tuple[Step, ...] = ()

    def _send(self, database: str) -> FlowHandle:
        from lambda_tasks.flows.handles import FlowHandle
        from lambda_tasks.flows.sending import send_group

        flow_id, state = send_group(self.members, self.then, self.on_failure, database)
        return FlowHandle(flow_id, database, state)


def chain(
    *invocations: TaskInvocation[Any],
    on_failure: TaskInvocation[Any] | Iterable[TaskInvocation[Any]] = (),
    database: str | None = None,
) -> Chain:
    """Return a chain: each task is sent when the one before has succeeded, in the transaction that records this.

    An argument may be `RESULT`, the result of the task before, `TASK_ID`, its id, or `FLOW_ID`, the id of the chain.
    When a task has failed, the later ones never run, and `on_failure` is sent. It may take `TASK_ID` and `ERROR`, those
    of the failed task, and `FLOW_ID`. `database` is the alias of the database of the transaction.

    Raises TypeError for anything but invocations and for a task with `unique`, and `InvalidArguments` for a chain
    without tasks and a placeholder without a value.
    """
    if not invocations:
        raise InvalidArguments("A chain must have at least one task, as in chain(first.invocation(order_id=1), …).")
    first = steps_of(invocations[0], "the first task of chain()", IN_FLOW)
    later = steps_of(invocations[1:], "the later tasks of chain()", AFTER_SUCCESS | IN_FLOW)
    members = _members((*first, *later), "a chain")
    return Chain(members, steps_of(on_failure, "on_failure", AFTER_FAILURE | IN_FLOW), database)


def group(
    invocations: Iterable[TaskInvocation[Any]],
    *,
    then: TaskInvocation[Any] | Iterable[TaskInvocation[Any]] = (),
    on_failure: TaskInvocation[Any] | Iterable[TaskInvocation[Any]] = (),
    database: str | None = None,
) -> Group:
    """Return a group: its tasks run in any order, and when all have ended, `then` is sent if all have succeeded.

    If a task has failed, `on_failure` is sent instead, also when all have ended. All of them may take `FLOW_ID`, the id
    of the group, by which `FlowHandle.from_id()` reads the results. `database` is the alias of the database of the
    transaction.

    Raises TypeError for anything but invocations and for a task with `unique`, and `InvalidArguments` for a placeholder
    without a value.
    """
    members = _members(steps_of(invocations, "the tasks of group()", IN_FLOW), "a group")
    return Group(
        members,
        steps_of(on_failure, "on_failure", IN_FLOW),
        database,
        steps_of(then, "then", IN_FLOW),
    )


def _members(steps: tuple[Step, ...], what: str) -> tuple[Step, ...]:
    """Return the members of a flow, or raise TypeError if the call of one may be replaced by an earlier call."""
    for step in steps:
        task = registry.known_task(step.task_name)
        if task is not None and task.unique is not False:
            raise TypeError(
                f"{step.task_name} has the option unique, so it cannot be a member of {what}: an earlier call may take "
                "its place. Use a task without it."
            )
    return steps
