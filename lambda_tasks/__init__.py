"""Background tasks for Django on AWS Lambda and SQS, recorded in your own database."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambda_tasks.decorators import lambda_task
    from lambda_tasks.definition.retry import RetryPolicy
    from lambda_tasks.definition.schedules import Cron, Every
    from lambda_tasks.definition.steps import ERROR, FLOW_ID, RESULT, TASK_ID
    from lambda_tasks.exceptions import RetryLater, TaskCancelled, TaskFailed
    from lambda_tasks.execution.current import current_task
    from lambda_tasks.flows.handles import FlowHandle
    from lambda_tasks.flows.works import TaskInvocation, chain, group

__version__ = "1.0.0"

__all__ = [
    "ERROR",
    "FLOW_ID",
    "RESULT",
    "TASK_ID",
    "Cron",
    "Every",
    "FlowHandle",
    "RetryLater",
    "RetryPolicy",
    "TaskCancelled",
    "TaskFailed",
    "TaskInvocation",
    "chain",
    "current_task",
    "group",
    "lambda_task",
]

#: The module of each name that can be imported from the package. It is loaded on first use, since Django imports the
#: package before the settings and the apps are ready.
_MODULES = {
    "ERROR": "lambda_tasks.definition.steps",
    "FLOW_ID": "lambda_tasks.definition.steps",
    "RESULT": "lambda_tasks.definition.steps",
    "TASK_ID": "lambda_tasks.definition.steps",
    "Cron": "lambda_tasks.definition.schedules",
    "Every": "lambda_tasks.definition.schedules",
    "FlowHandle": "lambda_tasks.flows.handles",
    "RetryLater": "lambda_tasks.exceptions",
    "RetryPolicy": "lambda_tasks.definition.retry",
    "TaskCancelled": "lambda_tasks.exceptions",
    "TaskFailed": "lambda_tasks.exceptions",
    "TaskInvocation": "lambda_tasks.flows.works",
    "chain": "lambda_tasks.flows.works",
    "current_task": "lambda_tasks.execution.current",
    "group": "lambda_tasks.flows.works",
    "lambda_task": "lambda_tasks.decorators",
}

if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
