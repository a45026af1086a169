"""What a transport is: the few methods that a class must have to carry jobs to workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core.checks import CheckMessage

from lambda_tasks.jobs import Job
from lambda_tasks.settings import MAX_DELAY, LambdaTasksSettings, app_settings
from lambda_tasks.timeouts import SoftTimeLimitExceeded


class BaseBackend(ABC):
    """Base class of transports; chosen by LAMBDA_TASKS_BACKEND and made once per process.

    The OPTIONS of the setting are the keyword arguments of `__init__`. Methods may be called from any
    thread. `lambda_tasks.testing.contracts.BackendContract` checks an implementation.
    """

    #: Whether jobs reach workers in other processes, which find the task by its name.
    leaves_process: bool = True
    #: Whether jobs are written into the caller's transaction: then `keep()` is called before its COMMIT.
    keeps: bool = False
    #: The longest delay of a job that the transport takes, in seconds.
    max_delay: int = MAX_DELAY

    def validate(self, job: Job) -> None:
        """Refuse what can be known to fail, at the call and inside the caller's transaction.

        Raises `UnknownQueue`; `ImproperlyConfigured` where queues are needed and not set. Extend it to
        refuse more.
        """
        if self.leaves_process or LambdaTasksSettings.queues.is_set:
            app_settings.queue_url(job.queue, task_name=job.task_name)

    @abstractmethod
    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        """Send `jobs`, and call `taken` for each that the queue has accepted.

        A job that cannot be sent keeps no other from being sent; after all were tried, the first error
        is raised. A job that was sent, but whose answer was lost, may be sent again: its id stays the
        same, and it runs once.
        """

    def send_each(
        self,
        jobs: Sequence[Job],
        *,
        taken: Callable[[Job], None],
        failed: Callable[[Job, Exception], None],
        refused: Callable[[Job, Exception], None],
    ) -> None:
        """Do as `send()`, and say of each job what became of it: exactly one of the three is called for each.

        For the outbox, which tries again what has `failed`, and never what was `refused`: what the queue
        will not take whenever it is sent. A transport that leaves this out refuses nothing, and all that
        it has not taken has failed by the error that `send()` raises.
        """
        left = {job.message_id: job for job in jobs}

        def take(job: Job) -> None:
            left.pop(job.message_id, None)
            taken(job)

        error: Exception = RuntimeError("The transport neither took it nor said why.")
        try:
            self.send(jobs, taken=take)
        except SoftTimeLimitExceeded:
            raise
        except Exception as raised:
            error = raised
        for job in left.values():
            failed(job, error)

    def keep(self, jobs: Sequence[Job], *, using: str) -> None:
        """Write `jobs` into the transaction that is open on the database `using`, just before its COMMIT.

        For transports with `keeps`; `send()` gets the jobs after the COMMIT. Where there is no
        transaction, it is called just before that. A job may come with the id of one that is kept already.
        """
        raise NotImplementedError

    def status(self, message_id: str, *, database: str) -> str | None:
        """Return how a job stands that is not on its queue yet; None if the transport knows nothing of it."""
        return None

    def postpone(self, records: Sequence[tuple[Mapping[str, Any], float]]) -> None:
        """Ask the queue to show messages again in so many seconds, where it can; never raises.

        `records` are entries of a Lambda event. Called for messages that are handed back.
        """
        return

    def check(self) -> list[CheckMessage]:
        """Return what `manage.py check` has to say about the options."""
        return []
