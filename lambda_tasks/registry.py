"""The tasks that this process knows by name, and which modules a message may make it import."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings as django_settings
from django.utils.module_loading import module_has_submodule

from lambda_tasks.exceptions import UnknownTask
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper

logger = logging.getLogger("lambda_tasks.registry")

_tasks: dict[str, LambdaTaskWrapper[..., Any]] = {}
#: Names that tasks had before, and those that they have now.
_aliases: dict[str, str] = {}


def register(task: LambdaTaskWrapper[..., Any]) -> None:
    """Make `task` known under its name and its aliases; a later task of the same name replaces an earlier one.

    Raises ValueError for an alias that is another task's name or alias, and for a name that is
    another task's alias: a message could mean either.
    """
    for name in (task.name, *task.aliases):
        other = known_task(name)
        if other is not None and other.name != task.name:
            raise ValueError(
                f"{name!r} would stand for {task.name} and for {other.name}; take it out of the aliases of one, "
                "or give the task another name."
            )
    if task.name in task.aliases:
        raise ValueError(f"{task.name} has its own name in aliases; only names that it had before belong there.")
    _tasks[task.name] = task
    _aliases.update(dict.fromkeys(task.aliases, task.name))


def registered_tasks() -> list[LambdaTaskWrapper[..., Any]]:
    """Return the tasks that were decorated so far, in that order."""
    return list(_tasks.values())


def known_task(task_name: str) -> LambdaTaskWrapper[..., Any] | None:
    """Return the task that has this name, or had it before, if this process has it; nothing is imported."""
    if task := _tasks.get(task_name):
        return task
    task = _tasks.get(_aliases.get(task_name, ""))
    # A task that was defined anew may have other aliases.
    return task if task is not None and task_name in task.aliases else None


def find_task(task_name: str) -> LambdaTaskWrapper[..., Any]:
    """Return the task, importing its module if need be.

    A name that is no task's (any more) may be an alias of one: then the `tasks` modules of the
    installed apps are imported too, once.

    Only modules are imported that lie under an installed app, under the top package of the settings
    or URL module, or under a prefix in LAMBDA_TASKS_MODULES: a message cannot make a worker import
    anything else.

    Raises `UnknownTask`; what the import of the task's own module raises passes through.
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


def _imported_task(task_name: str) -> LambdaTaskWrapper[..., Any]:
    module_name, _, _ = task_name.rpartition(".")
    if not _may_import(module_name):
        raise UnknownTask(
            f"Task {task_name!r} is not registered, and its module may not be imported for a message: it is "
            "not part of an installed app or of the project. If it is yours, add its package to "
            "LAMBDA_TASKS_MODULES."
        )
    _import(module_name, task_name)
    if task := known_task(task_name):
        return task
    raise UnknownTask(
        f"Module {module_name!r} has no task {task_name!r}. Was it renamed (then give the new one "
        "aliases=), or is @lambda_task missing?"
    )


@lru_cache(maxsize=1)
def _import_tasks_of_apps() -> None:
    """Import what Django projects name `tasks`, once per process: a renamed task may be there."""
    for config in apps.get_app_configs():
        if config.module is not None and module_has_submodule(config.module, "tasks"):
            module_name = f"{config.name}.tasks"
            try:
                _import(module_name, module_name)
            except Exception:
                logger.exception("%s cannot be imported, so nobody can tell which tasks it has.", module_name)


def _import(module_name: str, task_name: str) -> None:
    try:
        importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The module itself is missing, or one that it imports: the second is a fault to be seen as it is.
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise UnknownTask(f"Task {task_name!r} is unknown: there is no module {error.name!r}.") from None
        raise
    except SystemExit as error:
        # A module that exits when it is imported would end the worker with its whole batch.
        raise ImportError(f"Module {module_name!r} called sys.exit({error.code!r}) when it was imported.") from error


def _may_import(module_name: str) -> bool:
    return bool(module_name) and any(
        module_name == package or module_name.startswith(f"{package}.") for package in _importable_packages()
    )


def _importable_packages() -> Iterator[str]:
    yield from (config.name for config in apps.get_app_configs())
    for module in (django_settings.SETTINGS_MODULE, getattr(django_settings, "ROOT_URLCONF", None)):
        if isinstance(module, str) and (package := module.partition(".")[0]) not in ("", "__main__"):
            yield package
    yield from app_settings.modules


def unreachable_reason(task: LambdaTaskWrapper[..., Any]) -> str | None:
    """Say why a worker could not find `task` by its name, or None if it could."""
    function = task.function
    if "<locals>" in function.__qualname__:
        return "it is defined inside a function; move it to the level of its module"
    if "<lambda>" in function.__qualname__:
        return "it is a lambda; give it a name with def"
    if "." in function.__qualname__:
        return "it is defined inside a class; move it to the level of its module"
    if function.__module__ == "__main__":
        return "its module is run as a script; move it to a module that the worker can import"
    module = sys.modules.get(function.__module__)
    if module is not None and not hasattr(module, function.__name__):
        return (
            f"module {function.__module__} has no {function.__name__!r}; a decorator below @lambda_task may "
            "have renamed it (functools.wraps keeps the name), or it stands there under another name"
        )
    return None
