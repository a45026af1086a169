"""From the call to the transport: jobs wait for the commit of their transaction and leave together."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks import points, registry
from lambda_tasks.commits import before_commit
from lambda_tasks.exceptions import InvalidArguments, UnreachableTaskWarning
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.settings import too_long_delay
from lambda_tasks.strategies import get_backend, longest_delay


def send_on_commit(job: Job) -> TaskHandle:
    """Check `job` now and send it when the transaction on its database commits, or now if there is none.

    Where the transport keeps jobs, that COMMIT makes it durable too.
    """
    prepare(job)
    leave_on_commit(job)
    points.reached("enqueue:before_commit")
    return TaskHandle(job.message_id, job.database)


def leave_on_commit(job: Job) -> None:
    """Send `job`, which is checked, when the transaction on its database commits."""
    connection = connections[job.database]
    if get_backend().keeps:
        before_commit(connection, _keep_departures)
    connection.on_commit(_Departure(job, _waiting_room(job.database)))


def prepare(job: Job) -> None:
    """Let plugins and the transport refuse `job`, and warn of a task that no worker will find."""
    backend = get_backend()
    sending: Any = hooks().lambda_task_sending
    if sending.get_hookimpls():  # to ask is cheaper than to call nobody
        sending(job=job)
    if job.delay > backend.max_delay and job.delay > longest_delay():
        raise InvalidArguments(f"{job.task_name}: {too_long_delay('delay', job.delay)}")
    backend.validate(job)
    if backend.leaves_process and job.task is not None and (reason := registry.unreachable_reason(job.task)):
        warnings.warn(
            f"{job.task_name} is put on queue {job.queue!r}, but a worker will not find it: {reason}.",
            UnreachableTaskWarning,
            stacklevel=4,  # the caller of execute_on_commit()
        )


def dispatch(jobs: Sequence[Job]) -> None:
    """Give `jobs` to the transport, and tell the plugins of each that it has taken."""
    sent_hook = hooks().lambda_task_sent
    points.reached("send:before")
    get_backend().send(jobs, taken=lambda job: notify(sent_hook, job=job))
    points.reached("send:after")


class _Departure:
    """The `on_commit` callback of one job; the first one of a commit takes all that are to follow along.

    Django drops the callbacks of a savepoint that is rolled back without a word. So the waiting room
    holds them weakly: who is still there when the commit comes is who Django is about to call, and
    all of them can leave in one batch, with the savepoint's semantics kept exactly.
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
        points.reached("enqueue:after_commit")
        together = [departure for departure in self._from_here_on() if departure._job is not None]
        keep(together)  # only those for which no COMMIT came: in autocommit mode, and in Django's TestCase
        self._leave_room()
        jobs = []
        for departure in together:
            assert departure._job is not None
            jobs.append(departure._job)
            departure._job = None
        dispatch(jobs)

    def _from_here_on(self) -> list[_Departure]:
        """Return this departure and the later ones.

        Not the earlier ones: inside Django's `captureOnCommitCallbacks` they belong to another block.
        """
        return [departure for waiting in list(self._room)[self._place() :] if (departure := waiting()) is not None]

    def _leave_room(self) -> None:
        """Take this departure and the later ones out of the room."""
        place = self._place()
        while len(self._room) > place:
            self._room.pop()

    def _place(self) -> int:
        return next(i for i, waiting in enumerate(self._room) if waiting() is self)


def _keep_departures(connection: BaseDatabaseWrapper) -> None:
    """Have all jobs kept that leave with the COMMIT that comes next."""
    keep([callback for _, callback, *_ in connection.run_on_commit if isinstance(callback, _Departure)])


def keep(departures: Sequence[_Departure]) -> None:
    """Have the transport write the jobs of `departures` into the open transaction, if it does such things."""
    backend = get_backend()
    if not backend.keeps:
        return
    unkept = [departure for departure in departures if departure._job is not None and not departure._kept]
    if jobs := [departure._job for departure in unkept if departure._job is not None]:
        points.reached("outbox:before_insert")
        backend.keep(jobs, using=jobs[0].database)
        points.reached("outbox:after_insert")
        for departure in unkept:
            departure._kept = True


_rooms = threading.local()


def _waiting_room(using: str) -> deque[weakref.ref[_Departure]]:
    """Return the room of this thread's connection to `using`: Django's connections are per thread too."""
    rooms: dict[str, deque[weakref.ref[_Departure]]] = _rooms.__dict__
    return rooms.setdefault(using, deque())
