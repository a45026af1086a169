"""The `TaskResult` of a task while a worker runs it, and when it has ended."""

from __future__ import annotations

from typing import Any

from lambda_tasks.contrib.django_tasks.calls import BACKEND, about_call
from lambda_tasks.contrib.django_tasks.compat import AnyTaskResult, TaskResult, TaskResultStatus
from lambda_tasks.contrib.django_tasks.values import enqueued_at, error_of, errors_of, moment, task_for
from lambda_tasks.jobs import Run
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Succeeded
from lambda_tasks.wire import ids


def backend_alias(run: Run) -> str:
    """Return the alias in TASKS of the backend that the call has used."""
    return str(about_call(run.message.kwargs).get(BACKEND, "default"))


def running_result(run: Run) -> AnyTaskResult:
    """Return the result of a task with `@task` that `run` executes now. For a retry, this is one query."""
    adapter: Any = run.task
    alias = backend_alias(run)
    args, kwargs = adapter.signature.passed(run.message.kwargs)
    began = moment(run.received)
    earlier = _records_before(run)
    return TaskResult(
        task=task_for(adapter.task, backend=alias),
        id=run.root_id,
        status=TaskResultStatus.RUNNING,
        enqueued_at=enqueued_at(run.root_id),
        started_at=next((record.start_time for record in earlier if record.start_time), began),
        finished_at=None,
        last_attempted_at=began,
        args=args,
        kwargs=kwargs,
        backend=alias,
        errors=errors_of(earlier),
        worker_ids=[
            *(ids.retry_id(run.root_id, n) if n else run.root_id for n in range(run.n_retries)),
            run.message_id,
        ],
    )


def ended_result(run: Run, outcome: Outcome) -> AnyTaskResult:
    """Return the result of a task with `@task` that has ended with an outcome other than a retry."""
    result = running_result(run)
    changes: dict[str, Any] = {
        "status": TaskResultStatus.FAILED if isinstance(outcome, Failed) else TaskResultStatus.SUCCESSFUL,
        "finished_at": moment(run.received + run.duration),
    }
    match outcome:
        case Succeeded(value):
            changes["_return_value"] = value
        case Ignored(error, skipped=False) | Failed(error):
            changes["errors"] = [*result.errors, error_of(error, run)]
    for name, value in changes.items():
        object.__setattr__(result, name, value)  # as Django's own backends do: the class is frozen
    return result


def _records_before(run: Run) -> list[TaskRecord]:
    if not run.n_retries:
        return []
    return list(TaskRecord.objects.using(run.database).chain(run.root_id).filter(n_retries__lt=run.n_retries))
