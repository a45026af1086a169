"""Send what follows the end of a task, a chain or a group.

`end()` is called in the transaction that records the end. With a transport that keeps jobs, the same transaction keeps
the invocations that follow. Otherwise it writes down what is owed, and `resume()` sends it after COMMIT, before the
message is acknowledged; whatever dies in between, the redelivered message or the maintenance sends it again. The ids of
all invocations are derived from that of the ended one, so that they run once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from django.db import InterfaceError, OperationalError, transaction

from lambda_tasks import failpoints
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.definition.steps import read
from lambda_tasks.exceptions import DuplicateTask
from lambda_tasks.flows import rows
from lambda_tasks.flows.due import Due, dues, serialized
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.outcomes import Failed, Latest, Outcome, Succeeded
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.recording.storable import storable
from lambda_tasks.recording.tracebacks import without_later_lines
from lambda_tasks.results import json_result
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire import marks
from lambda_tasks.wire.attributes import inherited

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task
    from lambda_tasks.jobs import Job, Run

logger = get_logger("lambda_tasks.flows")

#: The number of characters of an error that `ERROR` has.
_MAX_ERROR: Final = 2_000


@dataclass(frozen=True, slots=True)
class End:
    """The end of a chain of retries."""

    #: The first invocation of the chain of retries.
    root_id: str
    task_name: str
    task: Task | None
    #: The mark in its messages.
    flow: str
    database: str
    succeeded: bool
    #: The result as JSON values.
    result: Any = field(default=None, repr=False)
    error: str = field(default="", repr=False)
    #: The attributes of its message that the invocations that follow inherit, if they are known.
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of_run(cls, run: Run, outcome: Outcome) -> End:
        """Return the end that `outcome` is. A result that JSON cannot represent was refused before."""
        return cls(
            root_id=run.root_id,
            task_name=run.task_name,
            task=run.task,
            flow=run.flow,
            database=run.database,
            succeeded=not isinstance(outcome, Failed),
            result=json_result(outcome.result) if isinstance(outcome, Succeeded) else None,
            error=run.scrubbed(error_text(outcome.error)) if isinstance(outcome, Failed) else "",
            attributes=inherited(run.attributes),
        )

    @classmethod
    def of_record(cls, latest: Latest, task: Task | None, flow: str, database: str) -> End:
        """Return the end of a chain of retries whose newest record is `latest`."""
        return cls(
            root_id=latest.root_id,
            task_name=latest.task_name,
            task=task,
            flow=flow,
            database=database,
            succeeded=latest.status == rows.SUCCESS,
            result=latest.result,
            error=_last_line(latest.traceback),
        )

    @property
    def values(self) -> dict[str, Any]:
        """The values of the placeholders."""
        return {"result": self.result, "task_id": self.root_id, "error": self.error}


def error_text(error: BaseException) -> str:
    """Return an error as `ERROR` has it."""
    text = str(error)
    return storable(f"{type(error).__name__}: {text}" if text else type(error).__name__)[:_MAX_ERROR]


def _last_line(traceback: str) -> str:
    """Return the error at the end of a traceback, without the module of its class."""
    error = without_later_lines(traceback.rstrip(), cause=False).rstrip().rpartition("\n")[2]
    name, separator, text = error.partition(": ")
    return f"{name.rpartition('.')[2]}{separator}{text}"[:_MAX_ERROR]


def end(ended: End) -> None:
    """Keep or note what follows the end of a task, in the open transaction that records this end."""
    failpoints.reached("flow:before_end")
    _end_call(ended)
    if flow_id := marks.flow_of(ended.flow, marks.CHAIN):
        _end_step(flow_id, ended)
    elif flow_id := marks.flow_of(ended.flow, marks.GROUP):  # `resume()` finds the last one after COMMIT
        rows.count_member(ended.root_id, flow_id, ended.database, succeeded=ended.succeeded)
    failpoints.reached("flow:after_end")


def _end_call(ended: End) -> None:
    """Keep or note what follows by the decorator of the task, and by the call."""
    name = "on_success" if ended.succeeded else "on_failure"
    owed: list[Due] = []
    if ended.task is not None:
        steps = getattr(ended.task.options, name)
        owed += dues(ended.root_id, f"task {name}", steps, ended.values, ended.attributes)
    row = rows.locked(ended.root_id, ended.database) if marks.is_call(ended.flow) else None
    if row is not None and row.ended_at is None:
        owed += dues(ended.root_id, name, getattr(row, name), ended.values, ended.attributes)
    if not get_backend().keeps and owed:
        rows.owe_after_call(ended.root_id, ended.task_name, serialized(owed), ended.database)
        return
    send(owed, ended.database)
    if row is not None and row.owed is None:
        rows.delete_call(ended.root_id, ended.database)


def _end_step(flow_id: str, ended: End) -> None:
    """Count a step of a chain, and keep or note the next one, or what follows the chain."""
    flow = rows.locked(flow_id, ended.database)
    if flow is None or not rows.count_member(ended.root_id, flow_id, ended.database, succeeded=ended.succeeded):
        return
    values = {**ended.values, "flow_id": flow_id}
    later = [index for index, step in enumerate(flow.steps) if step["id"] == ended.root_id]
    position = later[0] + 1 if later else 0
    if ended.succeeded and flow.cancelled_at is None and position < len(flow.steps):
        step = flow.steps[position]
        due = Due(step["id"], read(step["step"]), values, chain_id=flow_id, attributes=ended.attributes)
        _keep_or_owe(flow_id, [due], ended.database)
        return
    done = ended.succeeded and position == len(flow.steps)
    rows.skip_pending(flow_id, ended.database)
    owed = dues(flow_id, "on_failure", flow.on_failure, values, ended.attributes) if not done else []
    _keep_or_owe(flow_id, owed, ended.database, ended_at=DatabaseNow(), failed=not done)


def _keep_or_owe(flow_id: str, owed: Sequence[Due], database: str, **columns: Any) -> None:
    if get_backend().keeps:
        send(owed, database)
        rows.owe(flow_id, [], database, **columns)
    else:
        rows.owe(flow_id, serialized(owed), database, **columns)


def end_group(flow_id: str, database: str, attributes: Mapping[str, str]) -> None:
    """Keep or note what follows a group whose members have all ended. Of several that call this, one does it.

    `attributes` are those of one of the members, since all were sent by one call.
    """
    with transaction.atomic(using=database):
        flow = rows.locked(flow_id, database)
        if flow is None or flow.ended_at is not None:
            return
        failpoints.reached("flow:last_member")
        failed = rows.has_failed_members(flow_id, database)
        name = "on_failure" if failed else "on_success"
        owed = dues(flow_id, name, getattr(flow, name), {"flow_id": flow_id}, inherited(attributes))
        _keep_or_owe(flow_id, owed, database, ended_at=DatabaseNow(), failed=failed)


def resume(root_id: str, flow: str, database: str, attributes: Mapping[str, str] = MappingProxyType({})) -> None:
    """Do what is left after the end of a task is committed: end its group if it was the last, and send what is owed.

    `attributes` are those of its message, if they are known. It can be repeated. Raise the transport's exception if
    something could not be sent.
    """
    failpoints.reached("flow:after_commit")
    group = marks.flow_of(flow, marks.GROUP)
    if group and not rows.has_pending_members(group, database):
        end_group(group, database, attributes)
    pay_debts(filter(None, [root_id, group, marks.flow_of(flow, marks.CHAIN)]), database)


def pay_debts(flow_ids: Iterable[str], database: str) -> None:
    """Send what these flows owe. With a transport that keeps jobs, none owes anything."""
    if get_backend().keeps:
        return
    for row in rows.in_debt(flow_ids, database):
        pay(row, database)


def pay(row: Any, database: str) -> None:
    """Send what a flow owes, and forget the debt when the transport has accepted it."""
    with transaction.atomic(using=database):
        refused = send([Due.of(due) for due in row.owed], database)
        transaction.on_commit(partial(_paid, row, database), using=database)
    for job in refused:
        resume(job.message_id, job.flow, database, job.attributes)


def _paid(row: Any, database: str) -> None:
    failpoints.reached("flow:sent")
    rows.pay(row, database)


def send(owed: Sequence[Due], database: str) -> list[Job]:
    """Send invocations when the open transaction commits.

    Those that can never be sent end as failed, and are returned.
    """
    refused = []
    for due in owed:
        job = due.job(database)
        if due.step.is_followed:
            rows.create_call(due.message_id, due.step.task_name, due.step, database)
        try:
            with transaction.atomic(using=database):  # a plugin's failed query must not break the transaction
                if job.task is not None:
                    job.task.signature.decode(job.message.kwargs)
                outgoing.prepare(job)
                outgoing.accept(job, outgoing.leave_on_commit)
        except (OperationalError, InterfaceError, SoftTimeLimitExceeded):
            raise
        except DuplicateTask as duplicate:
            logger.info("%s [%s] is not sent: %s", job.task_name, job.message_id, duplicate)
        except Exception as error:
            _refuse(job, error)
            refused.append(job)
    return refused


def _refuse(job: Job, error: Exception) -> None:
    """Record an invocation that cannot be sent, such as one whose argument does not take the result, as FAILED."""
    sentence = "%s [%s] follows another task and cannot be sent, so it has failed: %s"
    logger.error(sentence, job.task_name, job.message_id, error_text(error))
    get_store().refuse(job, error)
    end(
        End(
            root_id=job.message_id,
            task_name=job.task_name,
            task=job.task,
            flow=job.flow,
            database=job.database,
            succeeded=False,
            error=error_text(error),
            attributes=inherited(job.attributes),
        )
    )
