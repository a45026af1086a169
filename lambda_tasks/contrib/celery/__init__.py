"""Celery's way of writing tasks, for the first day of a project that comes from Celery.

    from lambda_tasks.contrib.celery import shared_task     # in place of: from celery import shared_task

Each task that is defined with it raises a `DeprecationWarning` that says what to write. Celery is not imported, and
need not be installed. Names of Celery that are missing here raise an ImportError that says what to write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambda_tasks.contrib.celery.bound import Retry, Task
from lambda_tasks.contrib.celery.decorator import shared_task
from lambda_tasks.contrib.celery.results import AsyncResult, ChainResult, GroupResult
from lambda_tasks.contrib.celery.signatures import Signature, chain, group
from lambda_tasks.contrib.celery.tasks import CeleryTask, get_task_logger
from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded

__all__ = [
    "AsyncResult",
    "CeleryTask",
    "ChainResult",
    "GroupResult",
    "MaxRetriesExceededError",
    "Retry",
    "Signature",
    "SoftTimeLimitExceeded",
    "Task",
    "chain",
    "get_task_logger",
    "group",
    "shared_task",
]

if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name):
        from lambda_tasks.definition.hints import for_name

        if hint := for_name(name):
            # Python replaces the text of an AttributeError in `from … import …`.
            raise ImportError(f"{__name__} does not have {name}. {hint}", name=__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
