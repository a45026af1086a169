"""System checks of the schedules of a task."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks import registry
from lambda_tasks.exceptions import InvalidArguments, InvalidSetting
from lambda_tasks.settings import LambdaTasksSettings, app_settings

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task


def check_schedules_of(task: Task) -> Iterator[CheckMessage]:
    """Yield schedules with invalid arguments or an unknown queue (E010), and a task that no process starts (W027)."""
    for schedule in task.schedule:
        where = f"{task.name}: the schedule {schedule.label!r}"
        try:
            task.signature.encode(schedule.kwargs)
        except InvalidArguments as error:
            hint = "Correct the kwargs of the schedule."
            yield Error(f"{where} cannot send its task. {error}", hint=hint, obj=task, id="lambda_tasks.E010")
        if schedule.queue is not None and (problem := _problem_of_queue(schedule.queue, task)):
            hint = "Add the queue to the setting, or correct queue= of the schedule."
            yield Error(f"{where} cannot send its task. {problem}", hint=hint, obj=task, id="lambda_tasks.E010")
    if not _is_discovered(task):
        module = task.function.__module__
        yield Warning(
            f"{task.name} has a schedule, but no `tasks` module of an installed app imports {module}, so the processes "
            "that start periodic tasks do not know it.",
            hint=f"Move the task to the module `tasks` of an app, or import {module} there.",
            obj=task,
            id="lambda_tasks.W027",
        )


def _problem_of_queue(queue: str, task: Task) -> str | None:
    if not LambdaTasksSettings.queues.is_set:
        return None
    try:
        app_settings.address_of(queue, task_name=task.name)
    except InvalidSetting:
        return None  # reported as E001
    except ImproperlyConfigured as error:
        return str(error)
    return None


def _is_discovered(task: Task) -> bool:
    """Return whether importing the `tasks` modules of the apps imports the task's module, as far as can be seen."""
    registry.discover_tasks()
    for config in apps.get_app_configs():
        module = sys.modules.get(f"{config.name}.tasks")
        if module is not None and (module.__name__ == task.function.__module__ or _imports(module, task)):
            return True
    return False


def _imports(module: ModuleType, task: Task) -> bool:
    """Return whether the module contains the task's module, or something that is defined there."""
    return any(_module_of(value) == task.function.__module__ for value in vars(module).values())


def _module_of(value: Any) -> object:
    return value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
