"""Jobs run here and now, one after the other: for development and tests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context

from lambda_tasks import executor
from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.jobs import Job

_line = threading.local()


class EagerBackend(BaseBackend):
    """Runs each job in this process when the transaction has committed; no time limits, no delays.

    A task that sends another one, or a retry, puts it at the end of the line instead of running it
    inside of itself. Arguments are in JSON by now, and are read back as a worker reads them.
    """

    leaves_process = False

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        waiting: deque[Job] | None = getattr(_line, "jobs", None)
        is_first = waiting is None
        if waiting is None:
            waiting = _line.jobs = deque()
        for job in jobs:
            waiting.append(job)
            taken(job)
        if is_first:
            self._drain(waiting)

    def _drain(self, waiting: deque[Job]) -> None:
        errors: list[Exception] = []
        try:
            while waiting:
                job = waiting.popleft()
                try:
                    # A context of its own: what the task sets (language, time zone) ends with it.
                    copy_context().run(self._run, job)
                except Exception as error:
                    errors.append(error)
        finally:
            del _line.jobs
        if errors:
            raise errors[0]

    def _run(self, job: Job) -> None:
        executor.execute(
            job.message,
            message_id=job.message_id,
            root_id=job.root_id,
            queue=job.queue,
            attributes=job.attributes,
            task=job.task,
            limited=False,
        )
