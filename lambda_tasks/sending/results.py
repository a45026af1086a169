"""What became of each job that a transport was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.outgoing")


@dataclass(frozen=True, slots=True)
class Taken:
    """The queue has accepted the job."""

    job: Job


@dataclass(frozen=True, slots=True)
class Kept:
    """The transport has stored the job, and sends it later."""

    job: Job


@dataclass(frozen=True, slots=True)
class Unsent:
    """The job could not be sent, and may be later: the queue is unavailable, or access was denied."""

    job: Job
    error: Exception


@dataclass(frozen=True, slots=True)
class Refused:
    """The queue will never accept the job, whenever it is sent."""

    job: Job
    error: Exception


#: What became of one job.
SendResult: TypeAlias = Taken | Kept | Unsent | Refused
#: The method `send()` of a transport.
Send: TypeAlias = Callable[[Sequence[Job]], Iterable[SendResult]]


def results_of(send: Send, jobs: Sequence[Job]) -> Generator[SendResult, None, None]:
    """Send `jobs`, and return exactly one result for each, whatever the transport says or raises.

    What is raised after the last result is raised here, too: by a transport that runs tasks in this process.
    """
    left = {job.message_id: job for job in jobs}
    error: Exception = RuntimeError("The transport did not report a result.")
    try:
        for result in send(jobs):
            if left.pop(result.job.message_id, None) is not None:
                yield result
    except SoftTimeLimitExceeded:
        raise
    except Exception as raised:
        if not left:
            raise
        error = raised
    for job in left.values():
        yield Unsent(job, error)


def send_all(send: Send, jobs: Sequence[Job], *, taken: Callable[[Job], object]) -> list[Unsent | Refused]:
    """Send `jobs`, call `taken` for each that the queue has accepted, and return the results of those that failed."""
    failures: list[Unsent | Refused] = []
    with closing(results_of(send, jobs)) as results:  # so that no request is under way after an interruption
        for result in results:
            if isinstance(result, Taken):
                taken(result.job)
            elif isinstance(result, Unsent | Refused):
                failures.append(result)
    return failures


def first_error(failures: Sequence[Unsent | Refused]) -> Exception | None:
    """Return the first error of `failures`, and log the others with the tasks that each has kept from being sent."""
    by_error: dict[int, tuple[Exception, Counter[str]]] = {}
    for failure in failures:
        _, names = by_error.setdefault(id(failure.error), (failure.error, Counter()))
        names[failure.job.task_name] += 1
    errors = list(by_error.values())
    for error, names in errors[1:]:
        counted = ", ".join(f"{count} of {name}" for name, count in names.items())
        logger.error("Messages could not be sent: %s.", counted, exc_info=error)
    return errors[0][0] if errors else None
