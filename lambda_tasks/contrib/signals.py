"""A plugin that sends Django signals about tasks.

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.signals"]

    @receiver(task_failed, sender=send_receipt)
    def alert(sender, run, error, **kwargs): ...

The sender of every signal is the task, so that `sender=` selects one; None if the process does not know the task.
Receivers are called like listeners: one after the other, outside of the task's transaction and of its time limits. An
exception in one is logged by Django to `django.dispatch`, and changes nothing. Without receivers, a signal costs next
to nothing, and without the plugin nothing at all.
"""

from __future__ import annotations

from typing import Final

from django.dispatch import Signal

from lambda_tasks import registry
from lambda_tasks.definition.task import Task
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Succeeded

#: A queue has accepted a message, so its transaction is committed. Arguments: `job`. Also sent for retries.
task_enqueued: Final = Signal()
#: A message could not be sent, and stays in the outbox. Arguments: `message_id`, `task_name`, `queue`, `error`, and
#: `dead`, which is true if the message can never be sent.
task_unsent: Final = Signal()
#: A delivery is not run. Arguments: `message_id` and `reason`, as in `lambda_task_skipped`. The sender is None.
task_skipped: Final = Signal()
#: A worker has claimed an invocation, and its record is RUNNING. Arguments: `run`.
task_started: Final = Signal()
#: A task has returned, and its transaction is committed. Arguments: `run`, `result`.
task_succeeded: Final = Signal()
#: A task has raised an error that it ignores, and its record is SUCCESS. Arguments: `run`, `error`.
task_ignored: Final = Signal()
#: A retry was sent, or kept in the outbox, and the record is RETRYING. Arguments: `run`, `error`, `delay` in seconds.
task_retried: Final = Signal()
#: A task has failed for good, was cancelled or is lost, and its record is FAILED. Arguments: `run`, `error`.
task_failed: Final = Signal()


@hookimpl
def lambda_task_sent(job: Job) -> None:
    task_enqueued.send_robust(_sender(job.task_name, job.task), job=job)


@hookimpl
def lambda_task_unsent(message_id: str, task_name: str, queue: str, error: Exception, dead: bool) -> None:
    task_unsent.send_robust(
        _sender(task_name, None), message_id=message_id, task_name=task_name, queue=queue, error=error, dead=dead
    )


@hookimpl
def lambda_task_skipped(message_id: str, reason: str) -> None:
    task_skipped.send_robust(None, message_id=message_id, reason=reason)


@hookimpl
def lambda_task_started(run: Run) -> None:
    task_started.send_robust(_sender(run.task_name, run.task), run=run)


@hookimpl
def lambda_task_finished(run: Run, outcome: Outcome) -> None:
    sender = _sender(run.task_name, run.task)
    match outcome:
        case Succeeded(result):
            task_succeeded.send_robust(sender, run=run, result=result)
        case Ignored(error):
            task_ignored.send_robust(sender, run=run, error=error)
        case Retry(error, delay):
            task_retried.send_robust(sender, run=run, error=error, delay=delay)
        case Failed(error):
            task_failed.send_robust(sender, run=run, error=error)


def _sender(task_name: str, task: Task | None) -> Task | None:
    """Return the task that a project imports, and not a copy of it that `using()` has made."""
    return registry.known_task(task_name) or task
