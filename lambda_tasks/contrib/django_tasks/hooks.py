"""The plugin that finds Django's tasks, and sends their signals. The backend adds it."""

from __future__ import annotations

from lambda_tasks import registry
from lambda_tasks.contrib.django_tasks.adapters import DjangoTask, find_adapter
from lambda_tasks.contrib.django_tasks.compat import task_backends, task_finished, task_started
from lambda_tasks.definition.task import Task
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Failed, Outcome, Retry


@hookimpl
def lambda_task_resolve(task_name: str) -> Task | None:
    """Find a task whose own backend is another one. The registry finds all others."""
    return None if registry.known_task(task_name) else find_adapter(task_name)


@hookimpl
def lambda_task_started(run: Run) -> None:
    if isinstance(run.task, DjangoTask):
        from lambda_tasks.contrib.django_tasks.running import running_result

        task_started.send(_sender(run), task_result=running_result(run))


@hookimpl
def lambda_task_finished(run: Run, outcome: Outcome) -> None:
    """Send `task_finished` after the last attempt. Its receivers find an error in `sys.exc_info()`."""
    if not isinstance(run.task, DjangoTask) or isinstance(outcome, Retry):
        return
    from lambda_tasks.contrib.django_tasks.running import ended_result

    result, sender = ended_result(run, outcome), _sender(run)
    if not isinstance(outcome, Failed) or run.task.sensitive:  # Django would log the message of the error
        task_finished.send(sender, task_result=result)
        return
    traceback = outcome.error.__traceback__
    try:
        raise outcome.error
    except BaseException as error:
        error.with_traceback(traceback)  # without the frame of this function
        task_finished.send(sender, task_result=result)


def _sender(run: Run) -> type:
    from lambda_tasks.contrib.django_tasks.running import backend_alias

    alias = backend_alias(run)
    return type(task_backends[alias if alias in task_backends.settings else "default"])
