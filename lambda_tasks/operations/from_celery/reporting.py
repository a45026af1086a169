"""Read a code base, and collect what it uses of Celery."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lambda_tasks.definition import hints
from lambda_tasks.operations.from_celery.calls import calls_in
from lambda_tasks.operations.from_celery.findings import (
    Call,
    Fate,
    FoundTask,
    Import,
    Report,
    Schedule,
    Setting,
    Unread,
    Use,
)
from lambda_tasks.operations.from_celery.settings import schedules_in, settings_in
from lambda_tasks.operations.from_celery.sources import Source, python_files, read
from lambda_tasks.operations.from_celery.tasks import makes_app, tasks_in

_UNANSWERED: Final = "it has no counterpart"


def report_on(path: Path) -> Report:
    """Return what the Python files in a folder, or one file, use of Celery. They are parsed and never imported.

    Files that cannot be read are in the report. Raises ValueError for a path that is neither a folder nor a Python
    file.
    """
    if not (path.is_dir() or (path.is_file() and path.suffix == ".py")):
        what = "a file of another kind" if path.exists() else "a path that does not exist"
        raise ValueError(f"PATH must be a folder or a Python file, not {what}: {path}.")
    report = Report(str(path))
    sources: list[Source] = []
    for file in python_files(path):
        match read(file, path):
            case Source() as source:
                sources.append(source)
            case Unread() as unread:
                report.unread.append(unread)
        report.files += 1
    app_modules = {source.module for source in sources if makes_app(source)}
    for source in sources:
        report.tasks.extend(sorted(tasks_in(source, app_modules), key=_line))
    known = {task.name: task for task in report.tasks}
    for source in sources:
        report.calls.extend(sorted(calls_in(source, known), key=_line))
        report.imports.extend(_imports_in(source))
        report.settings.extend(sorted(settings_in(source), key=_line))
        report.schedules.extend(sorted(schedules_in(source), key=_line))
    return report


def _line(found: FoundTask | Call | Setting | Schedule) -> int:
    return found.line


def _imports_in(source: Source) -> Iterator[Import]:
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").partition(".")[0] == "celery":
            for alias in node.names:
                fate: Fate = "carried" if alias.name in hints.CARRIED_NAMES else "refused"
                instead = hints.NAMES.get(alias.name, _UNANSWERED)
                yield Import(source.file, Use(alias.name, node.module or "", fate, instead, node.lineno))
