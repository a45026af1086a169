"""Compare enqueued jobs with those that a test expects, and describe them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from lambda_tasks.definition.task import Task
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.jobs import Job
from lambda_tasks.recording.masking import masked
from lambda_tasks.sending.outgoing import waiting_jobs

#: The number of jobs that an error lists.
_MOST_LISTED: Final = 20
#: The length of the longest argument that an error shows in full.
_MOST_SHOWN: Final = 200

_MISSING: Final = object()


def matching(jobs: Iterable[Job], task: Task, arguments: Mapping[str, Any]) -> list[Job]:
    """Return the jobs of `task` that have `arguments`, as Python values or as JSON.

    Raise TypeError for an argument that the task lacks.
    """
    parameters = task.signature.parameters
    for name in arguments:
        if name not in parameters:
            existing = ", ".join(parameters) or "none"
            raise TypeError(f"{task.name} must have the parameter {name!r} to be compared. Its parameters: {existing}.")
    return [job for job in jobs if job.task_name == task.name and _has(job, task, arguments)]


def _has(job: Job, task: Task, arguments: Mapping[str, Any]) -> bool:
    encoded = job.message.kwargs
    try:
        decoded = task.signature.decode(encoded)
    except InvalidMessage:
        decoded = {}
    defaults = {name: parameter.default for name, parameter in task.signature.parameters.items()}
    return all(
        {**defaults, **decoded}.get(name, _MISSING) == value or encoded.get(name, _MISSING) == value
        for name, value in arguments.items()
    )


def missing_text(task: Task, arguments: Mapping[str, Any], jobs: Sequence[Job], *, ran: Sequence[Job]) -> str:
    """Return the error for a job that is not enqueued: what is, what has run, and what waits for a commit."""
    lines = [f"{_call(task.name, masked(arguments, task.sensitive))} must be enqueued, but is not."]
    if jobs:
        lines += ["These jobs are enqueued:", *_listed(jobs)]
    else:
        lines.append("No job is enqueued.")
    if done := [job for job in ran if job.task_name == task.name]:
        lines += ["These jobs of the task have already run:", *_listed(done)]
    if waiting := waiting_jobs():
        lines += ["These calls wait for the commit of their transaction:", *_listed(waiting)]
    if waiting or not jobs:
        lines.append(
            "A call enqueues its job when its transaction commits. In a test whose transaction is rolled back, such as "
            "with TestCase, wrap the call in `with queue.commit():`."
        )
    return "\n".join(lines)


def described(job: Job) -> str:
    """Return a job as a call, with sensitive arguments masked."""
    arguments = masked(job.message.kwargs, job.task.sensitive if job.task else ())
    details = {"queue": job.queue} if job.queue != "default" else {}
    extra = [f"{name} {value}" for name, value in details.items()]
    extra += [f"retry {job.message.n_retries}"] if job.message.n_retries else []
    extra += [f"delayed by {job.delay} s"] if job.delay else []
    return _call(job.task_name, arguments) + (f" ({', '.join(extra)})" if extra else "")


def _listed(jobs: Sequence[Job]) -> list[str]:
    lines = [f"  {described(job)}" for job in jobs[:_MOST_LISTED]]
    left = len(jobs) - len(lines)
    return [*lines, f"  and {left} more"] if left else lines


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={_shown(value)}' for key, value in arguments.items())})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
