"""The base class of transports, which carry jobs to workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.core.checks import CheckMessage

from lambda_tasks.backends.callbacks import accept_callbacks
from lambda_tasks.exceptions import ArgumentsMissing
from lambda_tasks.jobs import Job
from lambda_tasks.sending.results import Kept, Refused, SendResult, Taken, Unsent
from lambda_tasks.settings import MAX_DELAY, app_settings
from lambda_tasks.wire.stored import Stored

__all__ = ["BaseBackend", "Kept", "Refused", "SendResult", "Taken", "Unsent"]


class BaseBackend(ABC):
    """Base class of transports. LAMBDA_TASKS_BACKEND selects one, which is created once per process.

    The OPTIONS of the setting are the keyword arguments of `__init__`. Methods may be called from any
    thread. `lambda_tasks.testing.contracts.BackendContract` checks an implementation.
    """

    #: Whether jobs reach workers in other processes, which look the task up by its name.
    leaves_process: bool = True
    #: Whether jobs are written into the caller's transaction: then `keep()` is called before its COMMIT.
    keeps: bool = False
    #: Whether `stow()` is called for jobs that do not refer to stored arguments yet.
    stows: bool = False
    #: The longest delay of a job that the transport takes, in seconds.
    max_delay: int = MAX_DELAY
    #: The maximum number of retries if LAMBDA_TASKS_MAX_RETRIES is not set. None means the default of the setting.
    default_max_retries: int | None = None

    def validate(self, job: Job) -> None:
        """Refuse a job that cannot be sent, during the call and inside the caller's transaction.

        Raises `UnknownQueue`, and `ImproperlyConfigured` if queues are needed and not set. Extend it to
        refuse more.
        """
        if self.leaves_process:
            app_settings.queue_url(job.queue, task_name=job.task_name)
        else:
            app_settings.refuse_unknown_queue(job.queue, task_name=job.task_name)

    def stow(self, job: Job) -> Job:
        """Store arguments outside of the message if they are too large for it, and return the job that is sent.

        Called with `stows` for each job before it waits for its COMMIT, in the open transaction of its database. The
        message of the returned job refers to the arguments (`Invocation.stored`). If the job refers to some already, as
        a retry does, note that they are needed from now on, or after its delay. The default implementation stores
        nothing.
        """
        return job

    def fetch(self, stored: Stored) -> str:
        """Return the arguments that `stow()` has stored, as JSON.

        Raise `ArgumentsMissing` if they do not exist, and any other exception if they cannot be read now.
        """
        raise ArgumentsMissing(
            f"The arguments are stored outside of the message ({stored}), and {type(self).__name__} cannot read them. "
            "Select SQSBackend in LAMBDA_TASKS_BACKEND, or implement fetch()."
        )

    @abstractmethod
    def send(self, jobs: Sequence[Job]) -> Iterable[SendResult]:
        """Send `jobs`, and return one result for each: `Taken`, `Kept`, `Unsent` or `Refused`, in any order.

        It may be a generator: the library takes every result, in the calling thread. A job that cannot be sent
        must not keep others from being sent. An exception is the result of all jobs that have none yet. A job
        that was sent, but whose answer was lost, may be sent again: its id stays the same, and it runs once.

        Transports of earlier versions, with `send(self, jobs, *, taken)`, still work: they call `taken(job)` for each
        job that the queue has taken, and raise the first error after all jobs were tried.
        """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        accept_callbacks(cls)

    def keep(self, jobs: Sequence[Job], *, using: str) -> None:
        """Write `jobs` into the open transaction of the database `using`, just before its COMMIT.

        For transports with `keeps`; `send()` gets the jobs after the COMMIT, and directly after `keep()` if no
        transaction is open. A job may have the id of one that is already kept.
        """
        raise NotImplementedError

    def longest_delay(self, queue: str) -> int:
        """Return for how many seconds this queue itself delays a job; the outbox keeps it until then.

        By default `max_delay`. A longer delay up to `max_delay` is still kept, in another way.
        """
        return self.max_delay

    @property
    def direct(self) -> BaseBackend:
        """The transport to which `execute_now()` gives a job. A transport that keeps jobs returns the one behind it."""
        if self.keeps:
            raise NotImplementedError(
                f"{type(self).__name__} cannot send a message immediately. Implement its property `direct`, or call "
                "execute_on_commit()."
            )
        return self

    def status(self, message_id: str, *, database: str) -> str | None:
        """Return the status of a job that is not on its queue yet, or None if the transport does not keep it."""
        return None

    def find(self, message_id: str) -> Job | None:
        """Return the job of a message that is not on its queue yet, or None if the transport does not keep it."""
        return None

    def discard(self, message_id: str) -> None:
        """Delete a message that the transport keeps, unless it is being sent, because its task was cancelled."""
        return

    def expedite(self, message_id: str) -> None:
        """Send a message that the transport keeps without its delay: its task was cancelled, and others follow it."""
        return

    def kept(self, message_ids: Sequence[str]) -> set[str]:
        """Return those of the messages that this transport still keeps and that no queue has accepted."""
        return set()

    def rewrite(self, job: Job, *, message_id: str, using: str) -> bool:
        """Give the kept message `message_id` the arguments of `job`, in the open transaction of the database `using`.

        Return False, and change nothing, unless it is certain that the message was never sent: two messages of one
        invocation must have the same arguments. The default implementation returns False.
        """
        return False

    def postpone(self, records: Sequence[tuple[Mapping[str, Any], float]]) -> None:
        """Ask the queue to make messages visible again after some seconds, if it can. Never raises.

        `records` are entries of a Lambda event with the seconds for each. Called for messages that are handed back.
        """
        return

    def check(self) -> list[CheckMessage]:
        """Return messages about the options for `manage.py check`."""
        return []
