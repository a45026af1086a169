"""Run jobs immediately, in this process and one after the other: for development and tests."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextvars import copy_context

from lambda_tasks.backends.base import BaseBackend, Taken
from lambda_tasks.execution import pipeline
from lambda_tasks.jobs import Job
from lambda_tasks.outcomes import Outcome, Skipped, error_of
from lambda_tasks.recording.notes import name_task
from lambda_tasks.settings import app_settings

_line = threading.local()


def _leave_line() -> None:
    """Forget the parent's jobs in a forked process, where the parent does not run them."""
    vars(_line).clear()


os.register_at_fork(after_in_child=_leave_line)


class EagerBackend(BaseBackend):
    """Runs each job in this process after the transaction has committed, without time limits and delays.

    A task that sends another task, or a retry, appends it to the waiting jobs instead of running it inside
    itself. Arguments are JSON at that point, and are read back as a worker reads them.

    Errors of tasks are in their records. With LAMBDA_TASKS_EAGER_PROPAGATES, the first one of a task that failed is
    also raised to the caller, after all waiting jobs have run.
    """

    leaves_process = False
    #: The caller waits for all retries, often in a request.
    default_max_retries = 3

    def send(self, jobs: Sequence[Job]) -> Iterator[Taken]:
        waiting: deque[Job] | None = getattr(_line, "jobs", None)
        is_first = waiting is None
        if waiting is None:
            waiting = _line.jobs = deque()
        for job in jobs:
            waiting.append(job)
            yield Taken(job)
        if is_first:
            self._drain(waiting)

    def _drain(self, waiting: deque[Job]) -> None:
        errors: list[BaseException] = []
        try:
            while waiting:
                job = waiting.popleft()
                try:
                    # In its own context, so that the language or time zone that a task sets ends with it.
                    outcome = copy_context().run(self._run, job)
                except Exception as error:
                    errors.append(error)
                else:
                    if (failure := error_of(outcome)) is not None and app_settings.eager_propagates:
                        name_task(failure, task_name=job.task_name, message_id=job.message_id)
                        errors.append(failure)
        finally:
            del _line.jobs
        if errors:
            raise errors[0]

    def _run(self, job: Job) -> Outcome | Skipped:
        return pipeline.execute(
            job.message,
            message_id=job.message_id,
            root_id=job.root_id,
            queue=job.queue,
            attributes=job.attributes,
            task=job.task,
            scheduled_for=job.scheduled_for,
            flow=job.flow,
            group=job.group,
            limited=False,
        )
