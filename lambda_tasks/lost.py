"""Invocations whose worker ended without a word, and whose message never came back.

A worker that dies leaves its record RUNNING. Its message comes back when its visibility timeout is over,
and the next worker takes the record over. Where the message is gone (deleted by hand, expired, in the
dead letter queue), nobody does. `reap()` does it then: no record stays RUNNING.
"""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from django.db import transaction

from lambda_tasks import executor, identity, outgoing
from lambda_tasks.exceptions import TaskLostError, UnknownTask
from lambda_tasks.jobs import Job, Run
from lambda_tasks.logging import run_logger, task_logger
from lambda_tasks.masking import MASK
from lambda_tasks.outcomes import Failed, Lost
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.settings import LOST_AFTER, LambdaTasksSettings, app_settings
from lambda_tasks.strategies import get_store
from lambda_tasks.timeouts import SoftTimeLimitExceeded

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper
    from lambda_tasks.messages import SQSLambdaTaskMessage
    from lambda_tasks.stores.base import BaseStore

#: Records in one transaction, where `reap()` is not called in one.
BATCH_SIZE: Final = 1_000


@dataclass(slots=True)
class Reaped:
    """How many invocations were sent again, failed, or could be neither: they are tried again next time."""

    sent_again: int = 0
    failed: int = 0
    unsent: int = 0
    #: False if time or limit were used up before all were seen.
    complete: bool = True

    @property
    def total(self) -> int:
        return self.sent_again + self.failed + self.unsent


def reap(*, older_than: int = LOST_AFTER, seconds: float = float("inf"), limit: float = float("inf")) -> Reaped:
    """Settle the invocations whose lease was over more than `older_than` seconds ago; return how many.

    Each is sent again under its own id, so that it runs once even if its first message turns up; or it
    ends as FAILED with the reason `lost`: where `on_crash="fail"` forbids another try, where workers
    died too often, and where it cannot be made again (its task is unknown, its arguments were masked).
    Messages leave when the transaction commits: a batch's own, or the one in which this is called.

    Ends early after so many `seconds`, or after `limit` invocations. Any number may run side by side.
    What the queue refuses raises boto3's exception, after everything else of its transaction was sent;
    what it refused is found again by a `reap()` that comes `older_than` seconds later.

    Raises ValueError for a negative `older_than`.
    """
    if older_than < 0:
        raise ValueError(f"older_than is {older_than}; give 0 or more seconds.")
    deadline = monotonic() + seconds
    reaped = Reaped()
    store = get_store()
    last = ""
    while True:
        with transaction.atomic(using=store.database):
            # Locked in the order of their ids by all who do this, so that nobody waits in a circle.
            batch = store.lost(older_than=older_than, limit=BATCH_SIZE, after=last)
            for lost in batch:
                if monotonic() >= deadline or reaped.total >= limit:
                    reaped.complete = False
                    return reaped
                _settle(store, lost, older_than, reaped)
        if not batch:
            return reaped
        last = batch[-1].message_id


def _settle(store: BaseStore, lost: Lost, older_than: int, reaped: Reaped) -> None:
    with task_logger.bound(lost.message_id, task_name=lost.task_name):
        task, trouble = _find_task(lost)
        if reason := _reason_to_give_up(lost, task, trouble):
            outcome = Failed(TaskLostError(f"lost: {reason}"))
            if store.give_up(lost, outcome, older_than=older_than):
                reaped.failed += 1
                run_logger.error("%s is lost and failed: %s", lost.task_name, reason)
                if task is not None:
                    _tell_plugins(store, _run(store, lost, task), outcome)
            return
        if not store.offer(lost, older_than=older_than):
            return  # it lives after all, or another reaper has it
        if _send(store, lost, task, trouble):
            reaped.sent_again += 1
        else:
            reaped.unsent += 1


def _find_task(lost: Lost) -> tuple[LambdaTaskWrapper[..., Any] | None, Exception | None]:
    try:
        return executor.resolve(lost.task_name), None
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # what the import of somebody's module raises
        return None, error


def _reason_to_give_up(lost: Lost, task: LambdaTaskWrapper[..., Any] | None, trouble: Exception | None) -> str | None:
    """Say why the invocation ends here; None if it is to be sent again."""
    if isinstance(trouble, UnknownTask):
        return f"its worker ended without a word, and the task is unknown by now. {trouble}"
    if task is not None and task.on_crash == "fail":
        return "its worker ended without a word, and on_crash='fail' forbids another try."
    if lost.takeovers >= app_settings.max_takeovers:
        return (
            f"it was given up {lost.takeovers + 1} times (LAMBDA_TASKS_MAX_TAKEOVERS is {app_settings.max_takeovers}), "
            "and its message did not come back."
        )
    sensitive = () if task is None else task.sensitive
    # Its record may be of a time at which other arguments were sensitive.
    masked = sorted(name for name, value in lost.kwargs.items() if name in sensitive or value == MASK)
    if masked:
        return f"its worker ended without a word, and the record does not hold {', '.join(masked)} to send it again."
    return None


def _send(store: BaseStore, lost: Lost, task: LambdaTaskWrapper[..., Any] | None, trouble: Exception | None) -> bool:
    """Put the invocation in line for the commit; False if that cannot be, so that a later reap tries again."""
    try:
        if trouble is not None:
            raise trouble
        assert task is not None
        with transaction.atomic(using=store.database):  # a plugin's query that fails must not spoil the rest
            job = _job(lost, task, store.database)
            outgoing.send_on_commit(job)
    except SoftTimeLimitExceeded:
        raise
    except Exception:
        run_logger.exception("%s is lost and cannot be sent again now; it stays RUNNING.", lost.task_name)
        return False
    run_logger.warning(
        "%s is lost and sent again to queue %r; it was given up %d times so far.",
        lost.task_name,
        job.queue,
        lost.takeovers + 1,
    )
    return True


def _job(lost: Lost, task: LambdaTaskWrapper[..., Any], database: str) -> Job:
    return Job(
        message=_message(lost),
        message_id=lost.message_id,
        root_id=lost.root_id,
        queue=_queue(lost, task),
        task=task,
        first_sent=None if task.expires_in is None else _first_sent(lost),
        database=database,
    )


def _first_sent(lost: Lost) -> float | None:
    """Return when the chain began: its age counts, and not that of the message that is sent now."""
    # An id that is not ours, as a schedule's, tells no time; but it was sent before it was begun.
    return identity.made_at(lost.root_id) or lost.started_at


def _message(lost: Lost) -> SQSLambdaTaskMessage:
    # Imported when there is one: who only imports the tasks of this library needs no pydantic.
    from lambda_tasks.messages import SQSLambdaTaskMessage

    return SQSLambdaTaskMessage(task_name=lost.task_name, kwargs=lost.kwargs, n_retries=lost.n_retries)


def _queue(lost: Lost, task: LambdaTaskWrapper[..., Any]) -> str:
    """Return the queue that it came from, or the task's if there is none of that name any more."""
    known = LambdaTasksSettings.queues.is_set and lost.queue in app_settings.queues
    return lost.queue if known else task.queue


def _run(store: BaseStore, lost: Lost, task: LambdaTaskWrapper[..., Any]) -> Run:
    """Return what plugins are told about: the run of which nobody has heard again. Its arguments are not read."""
    soft, hard = task.timeouts()
    return Run(
        message=_message(lost),
        message_id=lost.message_id,
        root_id=lost.root_id,
        task=task,
        queue=_queue(lost, task),
        arguments={},
        soft_timeout=soft,
        hard_timeout=hard,
        lease=0,
        database=store.database,
        takeovers=lost.takeovers + 1,
    )


def _tell_plugins(store: BaseStore, run: Run, outcome: Failed) -> None:
    told = partial(notify, hooks().lambda_task_finished, run=run, outcome=outcome)
    transaction.on_commit(partial(copy_context().run, told), using=store.database)
