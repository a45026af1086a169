"""The subcommand `list`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.definition.options import OPTION_NAMES, Options
from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.recording.described import described
from lambda_tasks.registry import import_tasks_of_apps, registered_tasks

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

    from lambda_tasks.definition.task import Task

#: The options that have a column of their own.
_COLUMNS: Final = frozenset({"queue", "soft_timeout", "hard_timeout", "schedule"})


class List(Subcommand):
    """Lists the tasks."""

    name = "list"
    help = "List the tasks of all apps with their arguments and options."
    examples = ("list", "list --queue mail", "list --format json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--queue", metavar="NAME", help="only the tasks of this queue")

    def run(self, *, queue: str | None, **_: Any) -> None:
        for module, error in import_tasks_of_apps().items():
            self.output.warn(
                f"{module} cannot be imported, so its tasks are missing: {type(error).__name__}: {error}. Correct the "
                "module."
            )
        chosen = [task for task in registered_tasks() if queue in (None, task.queue)]
        chosen.sort(key=lambda task: task.name)
        none = f"No task uses queue {queue!r}." if queue else "There are no tasks."
        self.output.result([_fields(task) for task in chosen], None if chosen else none)
        if chosen:
            self.output.table(
                ("task", "arguments", "queue", "timeouts", "schedule", "options"), [_row(task) for task in chosen]
            )


def _fields(task: Task) -> dict[str, Any]:
    soft, hard = task.timeouts()
    options = {name: _plain(getattr(task.options, name)) for name in OPTION_NAMES}
    return {
        "task": task.name,
        "parameters": _parameters(task),
        "options": options | {"soft_timeout": soft, "hard_timeout": hard},
    }


def _row(task: Task) -> tuple[str, ...]:
    parameters = [name if is_required else f"[{name}]" for name, is_required in _required(task).items()]
    schedules = ", ".join(schedule.description for schedule in task.schedule)
    soft, hard = task.timeouts()
    return task.name, ", ".join(parameters), task.queue, f"{soft}/{hard} s", schedules, _changed_options(task)


def _changed_options(task: Task) -> str:
    defaults = Options()
    changed = {
        name: _plain(getattr(task.options, name))
        for name in OPTION_NAMES
        if name not in _COLUMNS and getattr(task.options, name) != getattr(defaults, name)
    }
    return ", ".join(f"{name}={_short(value)}" for name, value in changed.items())


def _short(value: object) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(str(each).rpartition(".")[2] for each in value) + ")"
    return str(value)


def _parameters(task: Task) -> dict[str, Any]:
    required = _required(task)
    return {
        name: {"type": _annotation(parameter.annotation), "required": required[name]}
        for name, parameter in task.signature.parameters.items()
    }


def _required(task: Task) -> dict[str, bool]:
    return {name: each.default is each.empty for name, each in task.signature.parameters.items()}


def _annotation(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None) or str(annotation)


def _plain(value: Any) -> Any:
    """Return an option as JSON values: a type as its dotted path, and a schedule as its description."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, timedelta):
        return value.total_seconds()
    if hasattr(value, "description"):
        return value.description
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return described(value)
