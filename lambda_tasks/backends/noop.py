"""Discard jobs after the checks of their calls: for test suites that are not about tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lambda_tasks.backends.base import BaseBackend, Taken
from lambda_tasks.jobs import Job


class NoopBackend(BaseBackend):
    """Accepts each job, and neither sends nor runs it. No record exists, and its handle says `SENT`.

    A discarded job does not hold the key of a unique task, so each call of such a task is a new one.
    """

    leaves_process = False

    def send(self, jobs: Sequence[Job]) -> Iterator[Taken]:
        for job in jobs:
            yield Taken(job)
            if job.unsent is not None:
                job.unsent()
