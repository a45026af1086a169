"""What a transport is: the few methods that a class must have to carry jobs to workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from django.core.checks import CheckMessage

from lambda_tasks.jobs import Job
from lambda_tasks.settings import LambdaTasksSettings, app_settings


class BaseBackend(ABC):
    """Base class of transports; chosen by LAMBDA_TASKS_BACKEND and made once per process.

    The OPTIONS of the setting are the keyword arguments of `__init__`. Methods may be called from any
    thread. `lambda_tasks.testing.contracts.BackendContract` checks an implementation.
    """

    #: Whether jobs reach workers in other processes, which find the task by its name.
    leaves_process: ClassVar[bool] = True

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

    def postpone(self, records: Sequence[tuple[Mapping[str, Any], float]]) -> None:
        """Ask the queue to show messages again in so many seconds, where it can; never raises.

        `records` are entries of a Lambda event. Called for messages that are handed back.
        """
        return

    def check(self) -> list[CheckMessage]:
        """Return what `manage.py check` has to say about the options."""
        return []
