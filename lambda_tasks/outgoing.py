"""From the call to the transport: jobs wait for the commit of their transaction and leave together."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction

from lambda_tasks import points, registry
from lambda_tasks.exceptions import UnreachableTaskWarning
from lambda_tasks.jobs import Job, TaskHandle
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.strategies import get_backend


def send_on_commit(job: Job, *, using: str = DEFAULT_DB_ALIAS) -> TaskHandle:
    """Check `job` now and send it when the transaction on `using` commits, or now if there is none."""
    prepare(job)
    departure = _Departure(job, _waiting_room(using))
    transaction.on_commit(departure, using=using)
    points.reached("enqueue:before_commit")
    return TaskHandle(job.message_id)


def send_now(job: Job) -> None:
    """Check and send `job` at once, whatever transaction is open: for retries."""
    prepare(job)
    dispatch([job])


def prepare(job: Job) -> None:
    """Let plugins and the transport refuse `job`, and warn of a task that no worker will find."""
    backend = get_backend()
    sending: Any = hooks().lambda_task_sending
    if sending.get_hookimpls():  # to ask is cheaper than to call nobody
        sending(job=job)
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

    __slots__ = ("__weakref__", "_job", "_room")

    def __init__(self, job: Job, room: deque[weakref.ref[_Departure]]) -> None:
        self._job: Job | None = job
        self._room = room
        while room and room[0]() is None:
            room.popleft()
        room.append(weakref.ref(self))

    def __call__(self) -> None:
        if self._job is None:
            return  # it left with an earlier one
        points.reached("enqueue:after_commit")
        jobs = []
        for departure in self._from_here_on():
            if departure._job is not None:
                jobs.append(departure._job)
                departure._job = None
        dispatch(jobs)

    def _from_here_on(self) -> list[_Departure]:
        """Return this departure and the later ones, and take them out of the room.

        Earlier ones stay: inside Django's `captureOnCommitCallbacks` they belong to another block.
        """
        index = next(i for i, waiting in enumerate(self._room) if waiting() is self)
        followers = [departure for waiting in list(self._room)[index:] if (departure := waiting()) is not None]
        while len(self._room) > index:
            self._room.pop()
        return followers


_rooms = threading.local()


def _waiting_room(using: str) -> deque[weakref.ref[_Departure]]:
    """Return the room of this thread's connection to `using`: Django's connections are per thread too."""
    rooms: dict[str, deque[weakref.ref[_Departure]]] = _rooms.__dict__
    return rooms.setdefault(using, deque())
