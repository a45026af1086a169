"""Recover flows that their workers could not end: the message of the ended task does not come back.

A worker that dies after the end of a task is committed leaves its message on the queue, and the next delivery does what
is left. This is for messages that went to the dead letter queue instead or were deleted, and for tasks that no worker
has ended, such as those that were cancelled before they started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from django.apps import apps
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q

from lambda_tasks.database.clock import from_now
from lambda_tasks.database.dividing import divided
from lambda_tasks.flows import ending, rows
from lambda_tasks.flows.due import task_named
from lambda_tasks.handles import cancel
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.strategies import get_store
from lambda_tasks.wire import marks

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task

logger = get_logger("lambda_tasks.flows")

#: Seconds for which the worker that has ended a task may still be busy with what follows.
PATIENCE: Final = 60
#: The number of flows, and of members, that are recovered at a time.
_BATCH_SIZE: Final = 1_000
_ENDED: Final = (rows.SUCCESS, rows.FAILED)
#: The reason of a call whose place a later call has taken.
_REPLACED: Final = "replaced"


def end_from_record(root_id: str, flow: str, database: str, task: Task | None) -> None:
    """End what follows a task, if the task has ended and its worker has not done that."""
    try:
        latest = get_store().latest(root_id)
    except NotImplementedError:
        return
    if latest is None or latest.status not in _ENDED or latest.root_id != root_id:
        return
    if latest.reason == _REPLACED:
        return  # it never ran: the call that has replaced it is followed
    with transaction.atomic(using=database):
        ending.end(ending.End.of_record(latest, task or task_named(latest.task_name), flow, database))


def mark_of(root_id: str, database: str) -> str:
    """Return the mark that the messages of an invocation have, by the rows."""
    call = rows.flows(database).filter(pk=root_id, kind=marks.CALL).exists()
    for flow_id in rows.members(database).filter(pk=root_id).values_list("flow_id", flat=True):
        kind = rows.flows(database).filter(pk=flow_id).values_list("kind", flat=True).first()
        return marks.mark(call=call, kind=kind or "", flow_id=str(flow_id))
    return marks.mark(call=call)


def cancel_members(message_ids: Sequence[str], kind: str, flow_id: str, database: str) -> None:
    """Cancel members of a chain or a group in the open transaction, and do what follows those that never run."""
    followed = rows.flows(database).filter(kind=marks.CALL).values_list("pk", flat=True)
    calls = {str(pk) for some in divided(message_ids) for pk in followed.filter(pk__in=some)}
    flow = ""
    for message_id in message_ids:
        flow = marks.mark(call=message_id in calls, kind=kind, flow_id=flow_id)
        cancel(message_id)
        end_from_record(message_id, flow, database, None)
        if marks.is_call(flow):
            ending.resume(message_id, flow, database)
    if message_ids:
        ending.resume(message_ids[-1], flow, database)


def recover(database: str, *, older_than: float = PATIENCE, seconds: float = float("inf")) -> int:
    """Do what is left of flows for more than `older_than` seconds, and return how many tasks or flows these were.

    Start no new one after `seconds`. An error is logged, and the others go on.
    """
    if not rows.are_in(database):
        return 0
    deadline = monotonic() + seconds
    recovered = 0
    for root_id in _unnoticed(database, older_than):
        recovered += _try(partial(_end, root_id, database), root_id, deadline)
    for flow_id in _complete_groups(database, older_than):
        recovered += _try(partial(_end_group, flow_id, database), flow_id, deadline)
    for row in _debtors(database, older_than):
        recovered += _try(partial(ending.pay, row, database), row.pk, deadline)
    return recovered


def _try(work: Callable[[], object], name: object, deadline: float) -> int:
    if monotonic() >= deadline:
        return 0
    try:
        work()
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        logger.exception("The tasks after %s cannot be sent now. The next maintenance tries again.", name)
        return 0
    return 1


def _end(root_id: str, database: str) -> None:
    flow = mark_of(root_id, database)
    end_from_record(root_id, flow, database, None)
    ending.resume(root_id, flow, database)


def _end_group(flow_id: str, database: str) -> None:
    ending.end_group(flow_id, database, {})
    ending.pay_debts([flow_id], database)  # otherwise, the next maintenance would do that


def _unnoticed(database: str, older_than: float) -> Iterable[str]:
    """Yield the ids of tasks that have ended without their flow being told."""
    created = Q(created_at__lt=from_now(-older_than))
    calls = rows.flows(database).filter(created, kind=marks.CALL, ended_at=None)
    running = rows.flows(database).filter(created, pk=OuterRef("flow_id"), ended_at=None)
    pending = rows.members(database).filter(Exists(running), status=rows.PENDING)
    for waiting in (calls, pending):
        ids = waiting.filter(_has_ended(older_than)).order_by("pk").values_list("pk", flat=True)[:_BATCH_SIZE]
        yield from map(str, list(ids))


def _has_ended(older_than: float) -> Q:
    records = apps.get_model("lambda_tasks", "TaskRecord")._default_manager
    ended = records.filter(status__in=_ENDED, end_time__lt=from_now(-older_than))
    own = Exists(ended.filter(pk=OuterRef("pk")))
    retries = Exists(ended.filter(root_id=OuterRef("pk"), n_retries__gt=0))  # matches the condition of the index
    return Q(own) | Q(retries)


def _complete_groups(database: str, older_than: float) -> Iterable[str]:
    groups = rows.flows(database).filter(kind=marks.GROUP, ended_at=None, created_at__lt=from_now(-older_than))
    complete = groups.annotate(pending=rows.newest_pending(database)).filter(pending=None).order_by("pk")
    return map(str, list(complete.values_list("pk", flat=True)[:_BATCH_SIZE]))


def _debtors(database: str, older_than: float) -> Iterable[Any]:
    owing = rows.flows(database).filter(owed_since__lt=from_now(-older_than))
    return list(owing.order_by(F("owed_since"))[:_BATCH_SIZE])
