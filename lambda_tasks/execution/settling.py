"""Record outcomes outside of the task's transaction: failures, retries, and released claims."""

from __future__ import annotations

from django.db import InternalError, connections, transaction

from lambda_tasks import failpoints
from lambda_tasks.database.errors import (
    DATABASE_ERRORS,
    LOCKED_PAUSE,
    is_conflict,
    is_lock_timeout,
    on_sound_connection,
)
from lambda_tasks.database.infrastructure import is_infrastructure
from lambda_tasks.exceptions import InvalidArguments, LeaseLost, MessageTooLarge, Redeliver, TaskCancelled
from lambda_tasks.execution.attempt import Attempt
from lambda_tasks.jobs import Job, Run
from lambda_tasks.limits.alarms import NoLimits, SoftTimeLimitExceeded, TimeLimits
from lambda_tasks.logging import run_logger
from lambda_tasks.outcomes import Failed, Outcome, Retry, Succeeded
from lambda_tasks.sending import outgoing
from lambda_tasks.strategies import get_backend, get_store, longest_delay


def committed(attempt: Attempt, limits: TimeLimits | NoLimits) -> None:
    """Mark the run as committed. Its callbacks may use the invocation's remaining time, not only the task's."""
    attempt.committed = True
    if attempt.following:
        limits.outlived()


def settle(attempt: Attempt, outcome: Outcome) -> Outcome:
    """Record an outcome that is not yet committed, send its retry, and return the final outcome.

    A retry is sent first and recorded second. If the worker dies in between, the next worker sends it again, with the
    same id; in the other order it would be lost. A transport that keeps jobs stores the retry and the record in one
    transaction. A retry that can never be sent is a failure.
    """
    run = attempt.run
    kept: Job | None = None
    match outcome:
        case Succeeded():
            return outcome  # already committed together with the work
        case Retry(error) if ended := _cancelled(run, error):
            outcome = ended
        case Retry(delay=delay):
            retry = run.retry_job(min(delay, longest_delay()))
            kept = retry if get_backend().keeps else None
            if refusal := send_retry(attempt, retry):
                outcome, kept = Failed(refusal), None
    settled = outcome
    failpoints.reached("settle:before_write")
    try:
        on_sound_connection(run.database, lambda: write(run, settled, kept))
    except LeaseLost as error:
        reason = f"{run.task_name} was taken over, or its record was deleted, before its outcome was recorded"
        raise Redeliver(reason, exact=True) from error
    except (*DATABASE_ERRORS, InternalError) as error:
        if isinstance(error, InternalError) and not is_infrastructure(error):
            raise
        if is_infrastructure(error) and _may_be_rerun(attempt, outcome, kept):
            give_back_if_possible(attempt)
        reason = f"the outcome of {run.task_name} could not be recorded"
        raise Redeliver(reason, visible_in=pause_after(error)) from error
    failpoints.reached("settle:after_write")
    return settled


def _cancelled(run: Run, error: BaseException) -> Failed | None:
    """Return the outcome of a run that was cancelled, and would be retried after `error` otherwise."""
    # Imported here, because most invocations do not need it.
    from lambda_tasks.execution.cancelled import is_requested

    try:
        if not is_requested(run):
            return None
    except DATABASE_ERRORS:
        if connections[run.database].in_atomic_block:
            raise
        return None  # the claim of the retry looks as well
    cancelled = TaskCancelled(f"cancelled: {run.task_name} was cancelled, and is not retried.")
    cancelled.__cause__ = error
    return Failed(cancelled)


def _may_be_rerun(attempt: Attempt, outcome: Outcome, kept: Job | None) -> bool:
    """Return whether a run whose outcome could not be recorded may be rerun before its lease expires.

    A run whose retry was sent must not, since both would run at the same time. A task that must not repeat must not
    either: the next worker records it as crashed after its lease has expired.
    """
    run = attempt.run
    sent = isinstance(outcome, Retry) and kept is None
    return not sent and not (attempt.called and run.task.on_crash == "fail")


def write(run: Run, outcome: Outcome, kept: Job | None) -> None:
    """Record `outcome`, and in the same transaction the retry `kept`, if the transport keeps jobs, or what follows."""
    if kept is None and not run.is_followed:
        get_store().record(run, outcome)
        return
    with transaction.atomic(using=run.database):
        get_store().record(run, outcome)  # first: if the claim is lost, the retry is not kept
        if kept is not None:
            outgoing.leave_on_commit(kept)
        if run.is_followed and not isinstance(outcome, Retry):
            end_flow(run, outcome)


def end_flow(run: Run, outcome: Outcome) -> None:
    """Keep or note what follows a run, in the open transaction that has recorded its end."""
    # Imported here and below, because most tasks are not followed.
    from lambda_tasks.flows.ending import End, end

    end(End.of_run(run, outcome))


def resume_flow(run: Run, *, look: bool = False) -> None:
    """Send what follows a run whose end is committed. With `look`, another worker has ended it, and may have died.

    Raise `Redeliver` if that is impossible now, so that the message stays on its queue.
    """
    from lambda_tasks.flows.ending import resume
    from lambda_tasks.flows.recovery import end_from_record

    try:
        if look:
            end_from_record(run.root_id, run.flow, run.database, run.task)
        resume(run.root_id, run.flow, run.database, run.attributes)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        run_logger.exception("What follows %s could not be sent; its message stays on the queue.", run.task_name)
        raise Redeliver(f"{run.task_name} has ended, and what follows it could not be sent") from error


def send_retry(attempt: Attempt, retry: Job) -> MessageTooLarge | InvalidArguments | None:
    """Send the next retry, or return why it can never be sent. If the transport keeps jobs, only check it.

    If it cannot be sent now, the claim is released, and the message stays on the queue.
    """
    run = attempt.run
    failpoints.reached("retry:before_send")
    try:
        outgoing.prepare(retry)
        if not get_backend().keeps:
            outgoing.dispatch([retry])
    except (MessageTooLarge, InvalidArguments) as refusal:
        return refusal  # every attempt would fail, after running the task again
    except Exception as error:
        run_logger.exception("The retry of %s could not be sent; its message stays on the queue.", run.task_name)
        give_back_if_possible(attempt)
        raise Redeliver(f"the retry of {run.task_name} could not be sent") from error
    failpoints.reached("retry:between")
    return None


def give_back(attempt: Attempt, *, crashed: bool = False) -> None:
    """Release the claim, so that the next delivery may take it immediately; `crashed` counts a dead worker."""
    run = attempt.run
    failpoints.reached("release:before")
    store = get_store()
    release = store.release_crashed if crashed else store.release
    on_sound_connection(run.database, lambda: release(run))
    attempt.claimed = False


def give_back_if_possible(attempt: Attempt) -> None:
    """Release the claim; if the database refuses that, too, log it: the claim expires with its lease."""
    run = attempt.run
    try:
        give_back(attempt)
    except (*DATABASE_ERRORS, InternalError) as error:
        text = run.scrubbed(str(error)).strip()
        run_logger.warning(
            "The claim of %s could not be released (%s); it expires with its lease.", run.task_name, text
        )


def pause_after(error: BaseException) -> float | None:
    """Return the seconds until the next delivery, or None to leave that to the queue."""
    return LOCKED_PAUSE if is_lock_timeout(error) or is_conflict(error) else None
