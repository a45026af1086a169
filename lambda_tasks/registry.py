"""Register tasks and find them by name, importing their modules if necessary."""

from __future__ import annotations

import importlib
import sys
from functools import lru_cache
from typing import TYPE_CHECKING

from django.apps import apps
from django.utils.module_loading import module_has_submodule

from lambda_tasks.exceptions import UnknownTask

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task

_tasks: dict[str, Task] = {}
#: Maps aliases, which are former names of tasks, to their current names.
_aliases: dict[str, str] = {}


def register(task: Task) -> None:
    """Register `task` under its name and its aliases, replacing an earlier task of the same name.

    Raises ValueError if an alias is another task's name or alias, or if the name is another task's alias: a message
    with that name would be ambiguous.
    """
    for name in (task.name, *task.aliases):
        other = known_task(name)
        if other is not None and other.name != task.name:
            raise ValueError(
                f"{name!r} must name a single task, not both {task.name} and {other.name}. Remove it from the aliases "
                "of one of them, or rename the task."
            )
    if task.name in task.aliases:
        raise ValueError(
            f"The aliases of {task.name} must not contain its own name. Remove it: aliases are former names of a task."
        )
    _tasks[task.name] = task
    _aliases.update(dict.fromkeys(task.aliases, task.name))


def registered_tasks() -> list[Task]:
    """Return all registered tasks, in the order of their registration."""
    return list(_tasks.values())


def known_task(task_name: str) -> Task | None:
    """Return the registered task with this name or alias, without importing a module; None if there is none."""
    if task := _tasks.get(task_name):
        return task
    task = _tasks.get(_aliases.get(task_name, ""))
    # The task may have been redefined with different aliases.
    return task if task is not None and task_name in task.aliases else None


def find_task(task_name: str) -> Task:
    """Return the task with this name or alias, importing its module if necessary.

    If there is no task with this name, it may be an alias. To find it, the `tasks` modules of the installed apps are
    imported as well, once per process.

    `importable.allows` decides which modules a message may import.

    Raises `UnknownTask`. Exceptions from the import of the task's own module propagate.
    """
    if task := known_task(task_name):
        return task
    try:
        return _imported_task(task_name)
    except UnknownTask as error:
        unknown = error
    _import_tasks_of_apps()
    if task := known_task(task_name):
        return task
    raise unknown


def _imported_task(task_name: str) -> Task:
    from lambda_tasks.definition import importable  # only workers import modules

    module_name, _, _ = task_name.rpartition(".")
    if not module_name:
        raise UnknownTask(
            f"Task {task_name!r} is unknown: the name of a task is its module and its function, as in "
            "shop.tasks.greet. `lambda_tasks list` prints the names of all tasks."
        )
    if not importable.allows(module_name):
        raise UnknownTask(
            f"Task {task_name!r} is not registered, and a message must not import its module: "
            f"{importable.reason_against(module_name)}. If the task is yours, move it to an ordinary module of an "
            "installed app, or add its module to LAMBDA_TASKS_MODULES."
        )
    _import(module_name, task_name)
    if task := known_task(task_name):
        return task
    raise UnknownTask(
        f"Module {module_name!r} does not contain a task {task_name!r}. If the task was renamed, add its old name to "
        "aliases=. If it is a plain function, decorate it with @lambda_task."
    )


def discover_tasks() -> list[Task]:
    """Return all registered tasks, after importing the `tasks` modules of all installed apps, once per process."""
    _import_tasks_of_apps()
    return registered_tasks()


@lru_cache(maxsize=1)
def _import_tasks_of_apps() -> None:
    """Import the `tasks` modules of all installed apps, once per process: one may contain a renamed task."""
    from lambda_tasks.recording.lines import get_logger

    logger = get_logger("lambda_tasks.registry")
    for module_name, error in import_tasks_of_apps().items():
        logger.error("%s cannot be imported, so its tasks are unknown.", module_name, exc_info=error)


def import_tasks_of_apps() -> dict[str, Exception]:
    """Import the `tasks` modules of all installed apps, and return the errors of those that cannot be imported."""
    from lambda_tasks.limits.alarms import SoftTimeLimitExceeded

    failed: dict[str, Exception] = {}
    for config in apps.get_app_configs():
        if config.module is not None and module_has_submodule(config.module, "tasks"):
            module_name = f"{config.name}.tasks"
            try:
                _import(module_name, module_name)
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                failed[module_name] = error
    return failed


def _import(module_name: str, task_name: str) -> None:
    before = dict(_tasks)
    try:
        importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Either the module itself is missing, or a module that it imports. The latter error must stay visible.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UnknownTask(f"Task {task_name!r} is unknown: module {error.name!r} does not exist.") from None
        raise
    except SystemExit as error:
        # Otherwise, a module that exits on import would end the worker with its whole batch.
        raise ImportError(f"Module {module_name!r} called sys.exit({error.code!r}) during its import.") from error
    finally:
        _forget_unfinished(before)


def _forget_unfinished(before: dict[str, Task]) -> None:
    """Remove tasks registered since `before` whose module failed to import, since the module is incomplete."""
    for name, task in list(_tasks.items()):
        if task is not before.get(name) and task.function.__module__ not in sys.modules:
            del _tasks[name]
            if name in before:
                _tasks[name] = before[name]


def unimportable_reason(task: Task) -> str | None:
    """Return why no worker can find `task`, because its function has no name of its own; None if it has one.

    A task that a function has made is found if its module keeps it in a variable, since importing the module makes it
    again.
    """
    qualname = task.function.__qualname__
    if "." not in qualname and "<lambda>" not in qualname:
        return None
    known = known_task(task.name)
    if known is not None and known.function is task.function and _is_kept(task):
        return None
    if "<locals>" in qualname:
        return "it is defined inside a function; move it to module level"
    if "<lambda>" in qualname:
        return "it is a lambda; define it with def"
    return "it is defined inside a class; move it to module level"


def _is_kept(task: Task) -> bool:
    """Tell whether a variable of the task's module holds the task."""
    module = sys.modules.get(task.function.__module__)
    values = list(vars(module).values()) if module is not None else []
    return any(getattr(value, "function", None) is task.function for value in values)


def unreachable_reason(task: Task) -> str | None:
    """Return why a worker could probably not find `task` by its name, although the name looks like one; else None."""
    function = task.function
    if "." in function.__qualname__ or "<lambda>" in function.__qualname__:
        return None
    if function.__module__ == "__main__":
        return "its module is run as a script; move it to a module that the worker can import"
    module = sys.modules.get(function.__module__)
    if module is not None and not hasattr(module, function.__name__):
        return (
            f"module {function.__module__} has no attribute {function.__name__!r}; a decorator below @lambda_task may "
            "have renamed it (functools.wraps keeps the name), or the module uses another name for it"
        )
    return None
