"""From the call to the transport: jobs wait for the commit of their transaction and leave together."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence, Set
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks import failpoints, registry
from lambda_tasks.database.commits import before_commit, is_open, rescue_callbacks
from lambda_tasks.database.private_names import callbacks_in, entries_on_commit
from lambda_tasks.exceptions import InvalidArguments, UnreachableTask, UnreachableTaskWarning
from lambda_tasks.handles import TaskHandle, Withdrawn
from lambda_tasks.jobs import SENT, UNSENT, Job
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.settings import delay_constraint
from lambda_tasks.strategies import get_backend, longest_delay

logger = get_logger("lambda_tasks.outgoing")


def send_on_commit(job: Job) -> TaskHandle[Any]:
    """Check `job`, and send it when the transaction on its database commits, or now if none is open.

    If the transport keeps jobs, that COMMIT also makes the job durable. A job of a task with `unique` is sent only if
    its key is free.
    """
    prepare(job)
    return accept(job, leave_on_commit)


def send_immediately(job: Job) -> TaskHandle[Any]:
    """Check `job`, and give it to the transport now, past the outbox and whatever transaction is open.

    Raise TypeError for a task with `unique`, whose key belongs to the caller's transaction.
    """
    if job.task is not None and job.task.unique is not False:
        raise TypeError(
            f"{job.task_name} has the option unique, so execute_now() cannot send it: its key is a part of the "
            "transaction, which may be rolled back. Call execute_on_commit()."
        )
    prepare(job, direct=True)
    dispatch([_stowed_outside(job)], direct=True)
    return handle_of(job)


def _stowed_outside(job: Job) -> Job:
    """Return the job as it is sent past the open transaction, which must not contain its arguments."""
    backend = get_backend().direct
    stowed = backend.stow(job) if backend.stows else job
    reference = stowed.message.stored if stowed is not job else None
    if reference is not None and reference.is_in_database and is_open(connections[job.database]):
        raise InvalidArguments(
            f"The arguments of {job.task_name} are too large for a message, and execute_now() cannot store them in "
            f"database {job.database!r}, whose transaction may be rolled back. Call execute_on_commit(), or store "
            "large arguments in S3."
        )
    return stowed


def handle_of(job: Job) -> TaskHandle[Any]:
    """Return the handle of a job that was created by a call."""
    return TaskHandle(job.message_id, job.database, task=job.task, state=job.state)


def accept(job: Job, leave: Callable[[Job], object]) -> TaskHandle[Any]:
    """Call `leave` with the checked `job`, unless its task has `unique` and its key is held."""
    if job.task is not None and job.task.unique is not False:
        from lambda_tasks.sending.unique import send_unique  # most processes never send such a task

        return send_unique(job, leave)
    leave(job)
    failpoints.reached("enqueue:before_commit")
    return handle_of(job)


def leave_on_commit(job: Job) -> None:
    """Send the checked `job` when the transaction on its database commits."""
    connection = connections[job.database]
    backend = get_backend()
    if backend.keeps:
        before_commit(connection, _keep_leaving)
    if backend.stows or job.message.stored is not None:
        job = backend.stow(job)
    rescue_callbacks(connection, _send_dropped)
    departure = _Departure(job, _waiting_room(job.database))
    if job.state is not None:
        job.state.wait_for(departure)
    connection.on_commit(departure)
    if departure._job is not None:  # it waits for a commit
        for names in _notes.current:
            names[job.message_id] = job.task_name


def waiting_jobs() -> list[Job]:
    """Return the jobs of this thread that wait for the commit of their transaction."""
    rooms: list[deque[weakref.ref[_Departure]]] = list(_rooms.__dict__.values())
    departures = [waiting() for room in rooms for waiting in room]
    return [each._job for each in departures if each is not None and each._job is not None]


def depart(following: Sequence[Any]) -> int:
    """Send the jobs among Django's `on_commit` callbacks of a transaction that is known to be committed.

    Django drops the callbacks if the connection is lost in COMMIT. Returns how many callbacks are not the library's
    jobs; these are not called.
    """
    departures = [callback for callback in following if isinstance(callback, _Departure)]
    for departure in departures:
        departure()
    return len(following) - len(departures)


def _send_dropped(dropped: Sequence[Any], error: BaseException) -> None:
    """Send the jobs of a committed transaction although a callback before them has raised `error`."""
    departures = [callback for callback in callbacks_in(dropped) if isinstance(callback, _Departure)]
    jobs = [departure._job for departure in departures if departure._job is not None]
    if not jobs:
        return
    logger.warning(
        "An on_commit callback of another program raised %s; %s enqueued in the same transaction is sent all the same.",
        type(error).__name__,
        ", ".join(sorted({job.task_name for job in jobs})),
    )
    for departure in departures:
        try:
            departure()
        except Exception:
            logger.exception("Tasks of a committed transaction could not be sent.")


def prepare(job: Job, *, direct: bool = False) -> None:
    """Let plugins and the transport refuse `job`, and warn about a task that workers will not find.

    With `direct`, the transport is the one behind the outbox.
    """
    backend = get_backend().direct if direct else get_backend()
    sending: Any = hooks().lambda_task_sending
    if sending.get_hookimpls():  # asking is cheaper than calling a hook that has no implementation
        sending(job=job)
    if job.delay > backend.max_delay and job.delay > (longest := backend.max_delay if direct else longest_delay()):
        raise InvalidArguments(f"{job.task_name}: {delay_constraint('delay', job.delay, longest=longest)}")
    backend.validate(job)
    if not backend.leaves_process or job.task is None:
        return
    # A worker that runs the task has found it, so its retry can be sent.
    if job.message.n_retries == 0 and (reason := registry.unimportable_reason(job.task)):
        raise UnreachableTask(f"{job.task_name} cannot be sent to a queue, because no worker can import it: {reason}.")
    if reason := registry.unreachable_reason(job.task):
        warnings.warn(
            f"{job.task_name} is sent to queue {job.queue!r}, but workers will not find it: {reason}.",
            UnreachableTaskWarning,
            stacklevel=4,  # the caller of execute_on_commit()
        )


def dispatch(jobs: Sequence[Job], *, direct: bool = False) -> None:
    """Give `jobs` to the transport, and tell the plugins of each that it has taken. Raises the first error.

    With `direct`, the transport is the one behind the outbox.
    """
    # Imported here, because most workers send nothing.
    from lambda_tasks.sending.results import first_error, send_all

    sent_hook = hooks().lambda_task_sent
    taken: set[str] = set()
    backend = get_backend().direct if direct else get_backend()

    def take(job: Job) -> None:
        taken.add(job.message_id)
        if job.secured is not None and not backend.keeps:
            job.secured()
        notify(sent_hook, job=job)

    failpoints.reached("send:before")
    try:
        if error := first_error(send_all(backend.send, jobs, taken=take)):
            raise error
    except Exception:
        _note_sent(jobs, taken, otherwise=UNSENT)
        for job in jobs:
            if job.unsent is not None and job.message_id not in taken:
                job.unsent()
        raise
    _note_sent(jobs, taken, otherwise=None)
    failpoints.reached("send:after")


def _note_sent(jobs: Sequence[Job], taken: Set[str], *, otherwise: str | None) -> None:
    """Tell the handles which jobs were taken. Without an error, the transport has stored the others."""
    for job in jobs:
        if job.state is not None:
            job.state.kept = True
            job.state.result = SENT if job.message_id in taken else otherwise


class _Departure:
    """The `on_commit` callback of one job; the first one of a commit sends the jobs of all later ones.

    Django drops the callbacks of a savepoint that is rolled back, and tells nothing. So the waiting room
    holds them by weak references: those that are alive when the commit comes are those that Django is about
    to call. They leave in one batch, and savepoints keep their meaning.
    """

    __slots__ = ("__weakref__", "_job", "_kept", "_room")

    def __init__(self, job: Job, room: deque[weakref.ref[_Departure]]) -> None:
        self._job: Job | None = job
        self._kept = False
        self._room = room
        while room and room[0]() is None:
            room.popleft()
        room.append(weakref.ref(self))

    def __call__(self) -> None:
        if self._job is None:
            return  # it left with an earlier one
        failpoints.reached("enqueue:after_commit")
        together = [departure for departure in self._from_here_on() if departure._job is not None]
        keep_departures(together)  # only those for which no COMMIT came: in autocommit mode, and in Django's TestCase
        self._leave_room()
        jobs = []
        for departure in together:
            assert departure._job is not None
            jobs.append(departure._job)
            departure._job = None
        for names in _notes.current:
            for job in jobs:
                names.pop(job.message_id, None)
        dispatch(jobs)

    def withdraw(self, message_ids: Set[str]) -> None:
        """Drop the job if it is one of `message_ids`: its own transaction has cancelled it."""
        job = self._job
        if job is None or job.message_id not in message_ids or job.is_followed:
            return  # the worker that receives the message of a cancelled task sends what follows it
        self._job = None
        if job.secured is not None:
            job.secured()  # the call that it has replaced must not run either

    def _from_here_on(self) -> list[_Departure]:
        """Return this departure and the later ones.

        The earlier ones belong to another block of Django's `captureOnCommitCallbacks`.
        """
        return [departure for waiting in list(self._room)[self._place() :] if (departure := waiting()) is not None]

    def _leave_room(self) -> None:
        """Take this departure and the later ones out of the room."""
        place = self._place()
        while len(self._room) > place:
            self._room.pop()

    def _place(self) -> int:
        return next(i for i, waiting in enumerate(self._room) if waiting() is self)


def _keep_leaving(connection: BaseDatabaseWrapper) -> None:
    """Have the transport keep all jobs that leave with the next COMMIT."""
    callbacks = callbacks_in(entries_on_commit(connection))
    leaving = [callback for callback in callbacks if isinstance(callback, _Departure)]
    withdrawn = {callback.message_id for callback in callbacks if type(callback) is Withdrawn}
    for departure in leaving if withdrawn else ():
        departure.withdraw(withdrawn)
    keep_departures(leaving)


def keep_departures(departures: Sequence[_Departure]) -> None:
    """Have the transport write the jobs of `departures` into the open transaction, if it keeps jobs."""
    backend = get_backend()
    if not backend.keeps:
        return
    unkept = [departure for departure in departures if departure._job is not None and not departure._kept]
    if jobs := [departure._job for departure in unkept if departure._job is not None]:
        failpoints.reached("outbox:before_insert")
        backend.keep(jobs, using=jobs[0].database)
        for job in jobs:
            if job.secured is not None:
                job.secured()
        failpoints.reached("outbox:after_insert")
        for departure in unkept:
            departure._kept = True
            if departure._job is not None and departure._job.state is not None:
                departure._job.state.kept = True


class NotedNames:
    """Note in `names`, by message id, the tasks that this thread enqueues in a `with` block and that wait for a commit.

    If their transaction is rolled back, they stay there, since Django does not report the callbacks that it drops.
    """

    __slots__ = ("_names", "_outer")

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def __enter__(self) -> None:
        self._outer = _notes.current
        _notes.current = (*self._outer, self._names)

    def __exit__(self, *error: object) -> None:
        _notes.current = self._outer


class _Notes(threading.local):
    """The dicts of the `NotedNames` that this thread is in."""

    current: Sequence[dict[str, str]] = ()


_notes = _Notes()
_rooms = threading.local()


def _waiting_room(using: str) -> deque[weakref.ref[_Departure]]:
    """Return the room of this thread's connection to `using`: Django's connections are per thread too."""
    rooms: dict[str, deque[weakref.ref[_Departure]]] = _rooms.__dict__
    return rooms.setdefault(using, deque())
