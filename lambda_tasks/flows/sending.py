"""Send invocations that others follow, chains and groups: their rows are written in the caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import transaction

from lambda_tasks import registry
from lambda_tasks.definition.groups import group_of
from lambda_tasks.definition.steps import Step
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.flows import rows
from lambda_tasks.flows.ending import End, end, end_group, pay_debts, resume
from lambda_tasks.jobs import Job, SendState
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.recording.storable import unstorable
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire import ids, marks
from lambda_tasks.wire.attributes import inherited

if TYPE_CHECKING:
    from lambda_tasks.handles import TaskHandle

logger = get_logger("lambda_tasks.flows")


def send_followed(job: Job, step: Step) -> TaskHandle[Any]:
    """Send `job` on commit, and note what follows it, as `step` says."""
    if job.task is not None and job.task.unique is not False:
        raise TypeError(
            f"{job.task_name} has the option unique, so its calls cannot have on_success or on_failure: an earlier "
            "call may take their place. Give these options to the decorator."
        )
    rows.refuse_other_database(job.database, f"{job.task_name} with on_success or on_failure")
    _refuse_unstorable(step.task_name, [*step.on_success, *step.on_failure])
    job = replace(job, flow=marks.mark(call=True))
    outgoing.prepare(job)
    with transaction.atomic(using=job.database, savepoint=False):
        rows.create_call(job.message_id, job.task_name, step, job.database)
        outgoing.leave_on_commit(job)
        return outgoing.handle_of(job)


def send_chain(steps: Sequence[Step], on_failure: Sequence[Step], database: str) -> tuple[str, SendState | None]:
    """Send the first step of a chain on commit, and return the chain's id."""
    rows.refuse_other_database(database, "A chain")
    _refuse_unstorable("The chain", [*steps, *on_failure])
    flow_id = ids.new_message_id()
    message_ids = [ids.new_message_id() for _ in steps]
    later = [
        {"id": message_id, "step": step.serialize()}
        for message_id, step in zip(message_ids[1:], steps[1:], strict=True)
    ]
    first = _job(steps[0], message_ids[0], marks.CHAIN, flow_id, database)
    outgoing.prepare(first)
    with transaction.atomic(using=database, savepoint=False):
        rows.create_flow(
            database,
            id=flow_id,
            kind=marks.CHAIN,
            task_name=steps[0].task_name,
            size=len(steps),
            steps=later,
            on_failure=[step.serialize() for step in on_failure],
        )
        rows.create_members(flow_id, message_ids, database)
        _leave(first, steps[0])
    return flow_id, first.state


def send_group(
    steps: Sequence[Step], then: Sequence[Step], on_failure: Sequence[Step], database: str
) -> tuple[str, SendState | None]:
    """Send all members of a group on commit, and return the group's id."""
    rows.refuse_other_database(database, "A group")
    _refuse_unstorable("The group", [*then, *on_failure])
    flow_id = ids.new_message_id()
    jobs = [_job(step, ids.new_message_id(), marks.GROUP, flow_id, database) for step in steps]
    jobs = [replace(job, unsent=_undo(partial(_fail, job))) for job in jobs]
    for job in jobs:
        outgoing.prepare(job)
    with transaction.atomic(using=database, savepoint=False):
        rows.create_flow(
            database,
            id=flow_id,
            kind=marks.GROUP,
            task_name=steps[0].task_name if steps else "",
            size=len(steps),
            on_success=[step.serialize() for step in then],
            on_failure=[step.serialize() for step in on_failure],
        )
        rows.create_members(flow_id, [job.message_id for job in jobs], database)
        for job, step in zip(jobs, steps, strict=True):
            _leave(job, step)
        if not jobs:
            end_group(flow_id, database, {})
            transaction.on_commit(partial(pay_debts, [flow_id], database), using=database)
    return flow_id, jobs[-1].state if jobs else None


def _job(step: Step, message_id: str, kind: str, flow_id: str, database: str) -> Job:
    task = registry.known_task(step.task_name)
    message = step.message({"flow_id": flow_id})
    return Job(
        message=message,
        message_id=message_id,
        root_id=message_id,
        queue=step.queue,
        delay=step.delay,
        task=task,
        flow=marks.mark(call=step.is_followed, kind=kind, flow_id=flow_id),
        group=step.group if step.group is not None or task is None else group_of(task, message),
        database=database,
        state=SendState(),
    )


def _leave(job: Job, step: Step) -> None:
    if step.is_followed:
        rows.create_call(job.message_id, job.task_name, step, job.database)
    outgoing.leave_on_commit(job)


def _fail(job: Job) -> None:
    """Count a member that the transport did not accept as failed, so that its group ends."""
    failed = End(
        job.message_id,
        job.task_name,
        job.task,
        job.flow,
        job.database,
        succeeded=False,
        error="not sent",
        attributes=inherited(job.attributes),
    )
    with transaction.atomic(using=job.database):
        end(failed)
    resume(job.message_id, job.flow, job.database, job.attributes)


def _undo(action: Callable[[], object]) -> Callable[[], object] | None:
    """Return a callback for a job that the transport did not accept. A transport that keeps jobs loses none."""
    return None if get_backend().keeps else partial(_try, action)


def _try(action: Callable[[], object]) -> None:
    try:
        action()
    except Exception:
        logger.exception("A task was not sent. The tasks that follow it are sent by the next maintenance.")


def _refuse_unstorable(name: str, steps: Sequence[Step]) -> None:
    if problem := unstorable([step.serialize() for step in steps]):
        raise InvalidArguments(f"What follows {name} {problem}.")
