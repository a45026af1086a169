"""Send a task with `unique` only if no earlier call with the same key waits or runs.

A call inserts the row of its key in the caller's transaction, or locks the row that exists. So of several concurrent
calls, one inserts the row, and the others wait for its COMMIT or ROLLBACK. Nothing is written at the end of a task:
the next call finds out whether the holder of the key has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from enum import Enum
from functools import partial
from typing import Any, Final, NamedTuple

from django.apps import apps
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DurationField

from lambda_tasks import failpoints
from lambda_tasks.database.clock import DatabaseNow, FromNow, from_now
from lambda_tasks.database.dividing import divided
from lambda_tasks.database.errors import DATABASE_ERRORS
from lambda_tasks.database.slots import Slot
from lambda_tasks.database.statements import Insertion, OrmInsertion, Statements, insertion_of_many
from lambda_tasks.definition.keys import unique_key
from lambda_tasks.exceptions import DuplicateTask, UnknownDatabase
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.settings import MAX_DELAY
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire import ids

logger = get_logger("lambda_tasks.outgoing")

_statements: Final = Statements()


class Holder(NamedTuple):
    """The first invocation of the chain that holds a key."""

    message_id: str
    #: Whether it no longer counts as waiting if it has no record and no row in the outbox.
    expired: bool


class State(Enum):
    """How far the holder of a key has come."""

    #: No worker has claimed it.
    WAITING = "waiting"
    #: A worker has claimed it. It runs, or waits for its lock or its retry.
    STARTED = "started"
    #: It has ended or will never run, so its key is free.
    ENDED = "ended"


def send_unique(job: Job, leave: Callable[[Job], object]) -> TaskHandle[Any]:
    """Send the checked `job` on commit unless its key is held; then do what its task's `on_duplicate` says.

    `leave` is called with the job, inside the transaction that writes its key. Raise `DuplicateTask` if
    `on_duplicate` is "raise". The caller's transaction remains usable.
    """
    task = job.task
    assert task is not None
    # Only functions take decoded arguments.
    arguments = task.signature.decode(job.message.kwargs) if callable(task.unique) else {}
    key = unique_key(task, job.message.kwargs, arguments)
    _refuse_missing_table(job)
    # Without a savepoint, so that the block adds no statement to the caller's transaction.
    with transaction.atomic(using=job.database, savepoint=False):
        holder = _take_or_lock(key, job)
        failpoints.reached("unique:after_key")
        if holder is None:
            return _sent(leave, job, unsent=partial(_free, key, job))
        state = _state(holder, job.database, unique_for=task.unique_for)
        if state is State.ENDED:
            _hand_over(key, job)
            return _sent(leave, job, unsent=partial(_free, key, job))
        if task.on_duplicate == "replace":
            return _replaced(leave, job, key, holder, state)
    handle = TaskHandle(holder.message_id, job.database, created=False, task=job.task)
    if task.on_duplicate == "raise":  # after the block, which would otherwise break the caller's transaction
        raise DuplicateTask(
            f"{job.task_name} has the unique key of an earlier call that has not ended: {holder.message_id}. "
            "Catch DuplicateTask, whose `handle` belongs to that call, or set on_duplicate='return'.",
            handle,
        )
    return handle


def _refuse_missing_table(job: Job) -> None:
    if not router.allow_migrate_model(job.database, apps.get_model("lambda_tasks", "UniqueKey")):
        raise UnknownDatabase(
            f"Database {job.database!r} has no table of unique keys for {job.task_name}. Return True from "
            "allow_migrate() for the app lambda_tasks there and migrate it, or pass using(database=…) to send the "
            "message with the commit of another database."
        )


def _sent(
    leave: Callable[[Job], object],
    job: Job,
    *,
    unsent: Callable[[], object],
    secured: Callable[[], object] | None = None,
) -> TaskHandle[Any]:
    # A transport that keeps jobs does not lose them: the key and the job are committed together.
    undo = None if get_backend().keeps else unsent
    leave(replace(job, unsent=undo, secured=secured))
    failpoints.reached("enqueue:before_commit")
    return TaskHandle(job.message_id, job.database, task=job.task, state=job.state)


# The rows of keys


def _keys(database: str) -> Any:
    return apps.get_model("lambda_tasks", "UniqueKey")._default_manager.using(database)


def _take_or_lock(key: str, job: Job) -> Holder | None:
    """Insert the row of a free key and return None, or lock the existing row and return its holder."""
    assert job.task is not None
    connection = connections[job.database]
    row = {"key": key, "task_name": job.task_name, "message_id": job.message_id, "held_for": _held_for(job)}
    _statements.of(_inserting, connection).run(connection, [row])
    columns = _keys(job.database).filter(pk=key).select_for_update().annotate(now=DatabaseNow())
    message_id, expires_at, now = columns.values_list("message_id", "expires_at", "now").get()
    return None if str(message_id) == job.message_id else Holder(str(message_id), expires_at <= now)


def _inserting(connection: BaseDatabaseWrapper) -> Insertion | OrmInsertion:
    """Write the INSERT of a key. If it exists, an UPDATE that changes nothing locks it.

    An INSERT that ignores the existing row would take a shared lock on InnoDB, and two callers that then lock the row
    would deadlock.
    """
    model = apps.get_model("lambda_tasks", "UniqueKey")
    fields: dict[str, Any] = {field.name: field for field in model._meta.concrete_fields}
    columns = {name: Slot(name, fields[name]) for name in ("key", "task_name", "message_id")}
    expires_at = FromNow(Slot("held_for", DurationField()))
    return insertion_of_many(model(**columns, expires_at=expires_at), connection, anew=("task_name",), unique="key")


def _held_for(job: Job) -> timedelta:
    assert job.task is not None
    return timedelta(seconds=job.delay + job.task.unique_for)


def _hand_over(key: str, job: Job) -> None:
    expires_at = from_now(_held_for(job).total_seconds())
    _keys(job.database).filter(pk=key).update(message_id=job.message_id, task_name=job.task_name, expires_at=expires_at)


def _free(key: str, job: Job) -> None:
    """Free the key of a job that the transport did not accept."""
    _undo(job, lambda: _keys(job.database).filter(pk=key, message_id=job.message_id).delete())


def _hand_back(key: str, job: Job, holder: Holder) -> None:
    """Return the key of a job that the transport did not accept to the call that it should have replaced."""
    mine = _keys(job.database).filter(pk=key, message_id=job.message_id)
    _undo(job, lambda: mine.update(message_id=holder.message_id))


def _undo(job: Job, action: Callable[[], object]) -> None:
    try:
        action()
    except DATABASE_ERRORS:
        logger.exception(
            "%s was not sent, and its unique key could not be freed; it is held for %s.", job.task_name, _held_for(job)
        )


# The holder of a key


def _state(holder: Holder, database: str, *, unique_for: float) -> State:
    store = get_store()
    progress = store.progress(holder.message_id)
    if progress is None:
        if _is_kept(holder.message_id, database):
            return State.WAITING
        progress = store.progress(holder.message_id)  # it may have been sent and claimed between the two queries
    if progress is None:
        return State.ENDED if holder.expired else State.WAITING
    if progress.status == "RETRYING":
        retry = ids.retry_id(holder.message_id, progress.n_retries + 1)
        # On the queue, a retry waits for its delay, and then for a worker.
        pending = progress.idle < unique_for + MAX_DELAY or _is_kept(retry, store.database)
        return State.STARTED if pending else State.ENDED
    return State.STARTED if progress.status == "RUNNING" else State.ENDED


def _is_kept(message_id: str, database: str) -> bool:
    """Return whether the transport will send the message. A dead message is not sent unless an operator does it."""
    return get_backend().status(message_id, database=database) not in (None, "DEAD")


def _replaced(leave: Callable[[Job], object], job: Job, key: str, holder: Holder, state: State) -> TaskHandle[Any]:
    """Give the waiting call the new arguments, or send the new call instead of it, or after the one that runs."""
    if state is State.WAITING and get_backend().rewrite(job, message_id=holder.message_id, using=job.database):
        return TaskHandle(holder.message_id, job.database, created=False, task=job.task)
    _hand_over(key, job)
    sent = partial(_sent, leave, job, unsent=partial(_hand_back, key, job, holder))
    if state is State.STARTED:
        return sent()
    if not get_backend().keeps:
        return sent(secured=partial(_end_if_possible, job, holder))
    if get_store().database == job.database:
        return sent(secured=partial(_end, job, holder))
    # Only after the COMMIT that keeps the new call: the record is in another database, which cannot roll back with it.
    transaction.on_commit(partial(_end_if_possible, job, holder), using=job.database)
    return sent()


def _end(job: Job, holder: Holder) -> None:
    """Record the replaced call as ended, unless a worker has claimed it: then both calls run."""
    failpoints.reached("unique:before_replaced")
    get_store().replace(holder.message_id, task_name=job.task_name, queue=job.queue)
    failpoints.reached("unique:after_replaced")


def _end_if_possible(job: Job, holder: Holder) -> None:
    """Do the same after the new call was sent, when an error must not reach the caller."""
    try:
        _end(job, holder)
    except DATABASE_ERRORS:
        logger.exception("%s [%s] is replaced, but may still run.", job.task_name, holder.message_id)


# Cleanup


def delete_old_keys(database: str, *, days: int, limit: int) -> int:
    """Delete up to `limit` keys that expired more than `days` days ago and whose holders have ended."""
    old = _keys(database).filter(expires_at__lt=from_now(-timedelta(days=days).total_seconds())).order_by("expires_at")
    if connections[database].features.has_select_for_update_skip_locked:
        old = old.select_for_update(skip_locked=True)
    with transaction.atomic(using=database):
        found = list(old.values_list("pk", "message_id")[:limit])
        holders = {key: Holder(str(message_id), expired=True) for key, message_id in found}
        ended = [key for key, holder in holders.items() if _state(holder, database, unique_for=0) is State.ENDED]
        return sum(_keys(database).filter(pk__in=some).delete()[0] for some in divided(ended))
