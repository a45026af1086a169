"""Find the settings and the beat schedules of Celery, and their counterparts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final, TypeGuard

from lambda_tasks.definition import hints
from lambda_tasks.operations.from_celery.findings import Schedule, Setting
from lambda_tasks.operations.from_celery.sources import Source
from lambda_tasks.operations.from_celery.tasks import UNKNOWN, literal

_PREFIXES: Final = ("CELERY_", "CELERYBEAT_", "CELERYD_", "CELERY")
_SCHEDULES: Final = frozenset({"CELERY_BEAT_SCHEDULE", "CELERYBEAT_SCHEDULE", "beat_schedule"})
#: The parameters of crontab(), in their order, and their places in a cron expression.
_CRONTAB: Final = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
_EXPRESSION: Final = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
_UNITS: Final = ("weeks", "days", "hours", "minutes", "seconds")


def settings_in(source: Source) -> Iterator[Setting]:
    """Yield the settings of Celery that a file assigns: names with CELERY, and attributes of an app's `conf`."""
    for name, node in _assigned(source):
        yield Setting(source.file, node.lineno, name, _counterpart(name, node))


def _counterpart(name: str, value: ast.expr) -> str:
    short = name.upper() if name.islower() else name.removeprefix("CELERY_").replace("CELERYBEAT_", "BEAT_")
    if short == "TASK_SERIALIZER" and literal(value) != "json":
        return "arguments are JSON: replace those that JSON cannot represent"
    return hints.SETTINGS.get(short, "")


def schedules_in(source: Source) -> Iterator[Schedule]:
    """Yield the entries of beat schedules, and the periodic tasks that are added in code."""
    for name, value in _assigned(source):
        if name in _SCHEDULES and isinstance(value, ast.Dict):
            for key, entry in zip(value.keys, value.values, strict=True):
                if key is not None and isinstance(entry, ast.Dict):
                    yield _entry(key, entry, source)
    for node in source.nodes:
        if _calls(node, "add_periodic_task") and len(node.args) >= 2:
            schedule, task = node.args[0], ast.unparse(node.args[1])
            yield _schedule(source, node.lineno, "add_periodic_task", task, schedule)


def _assigned(source: Source) -> Iterator[tuple[str, ast.expr]]:
    for node in source.nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id.isupper() and target.id.startswith(_PREFIXES):
                    yield target.id, node.value
                elif isinstance(target, ast.Attribute) and _is_conf(target.value):
                    yield target.attr, node.value
        elif _calls(node, "update") and isinstance(node.func, ast.Attribute) and _is_conf(node.func.value):
            yield from ((each.arg, each.value) for each in node.keywords if each.arg is not None)


def _calls(node: ast.AST, method: str) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method


def _is_conf(node: ast.expr) -> bool:
    """Return whether an expression is the `conf` of an app of Celery, such as `app.conf`."""
    return isinstance(node, ast.Attribute) and node.attr == "conf" and isinstance(node.value, ast.Name)


def _entry(key: ast.expr, entry: ast.Dict, source: Source) -> Schedule:
    fields = {
        name.value: value
        for name, value in zip(entry.keys, entry.values, strict=True)
        if isinstance(name, ast.Constant) and isinstance(name.value, str)
    }
    task = fields.get("task")
    shown = "" if task is None else str(value) if (value := literal(task)) is not UNKNOWN else ast.unparse(task)
    name = str(value) if (value := literal(key)) is not UNKNOWN else ast.unparse(key)
    arguments = " and ".join(f"{each}={ast.unparse(fields[each])}" for each in ("args", "kwargs") if each in fields)
    return _schedule(source, key.lineno, name, shown, fields.get("schedule"), arguments)


def _schedule(
    source: Source, line: int, name: str, task: str, schedule: ast.expr | None, arguments: str = ""
) -> Schedule:
    text, option = ("", "") if schedule is None else (ast.unparse(schedule), _option(schedule, source))
    return Schedule(source.file, line, name, task, text, option, arguments)


def _option(schedule: ast.expr, source: Source) -> str:
    """Return the option `schedule` of a task; empty if the source text does not show enough."""
    value = literal(schedule)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"schedule=Every(seconds={value})"
    if not isinstance(schedule, ast.Call):
        return ""
    function = source.origin(schedule.func).rpartition(".")[2]
    if function == "crontab":
        expression = _expression(schedule)
        return f'schedule=Cron("{expression}")' if expression else ""
    if function == "timedelta" and not schedule.args:
        units = [(each.arg, each.value) for each in schedule.keywords]
        if units and all(unit in _UNITS for unit, _ in units):
            return f"schedule=Every({', '.join(f'{unit}={ast.unparse(amount)}' for unit, amount in units)})"
    return ""


def _expression(crontab: ast.Call) -> str | None:
    given: dict[str, ast.expr] = dict(zip(_CRONTAB, crontab.args, strict=False))
    given.update({each.arg: each.value for each in crontab.keywords if each.arg is not None})
    if given.keys() - {*_CRONTAB} or len(given) < len(crontab.args) + len(crontab.keywords):
        return None
    parts = {name: literal(value) for name, value in given.items()}
    if not all(isinstance(part, str | int) for part in parts.values()):
        return None
    return " ".join(str(parts.get(name, "*")).replace(" ", "") for name in _EXPRESSION)
