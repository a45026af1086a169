"""The subcommand `from_celery`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.management.subcommands import Subcommand, plural
from lambda_tasks.recording.storable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.core.management.base import CommandParser

    from lambda_tasks.operations.from_celery.findings import Call, FoundTask, Note, Report, Use

#: What `lambda_tasks.contrib.celery` does, in words for people.
_FATES: Final = {"carried": "carried over", "dropped": "no effect", "refused": "REFUSED", "unknown": "UNKNOWN"}
_MAX_LINE: Final = 400


class FromCelery(Subcommand):
    """Reports what a code base uses of Celery."""

    name = "from_celery"
    help = (
        "Report the tasks, calls, settings and schedules of Celery in a code base, and what becomes of each. The code "
        "is read and never imported."
    )
    needs_checks = False  # a project that is about to move may not pass them
    examples = ("from_celery .", "from_celery shop/tasks.py", "from_celery . --format json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", metavar="PATH", type=Path, help="a folder with Python files, or one Python file")

    def run(self, *, path: Path, **_: Any) -> None:
        from lambda_tasks.operations.from_celery import report_on

        report = report_on(path)
        if self.output.as_json:
            self.output.result(asdict(report) | {"summary": _summary(report)})
            return
        self._section("Imports", (_import_line(each.file, each.use) for each in report.imports))
        self._section("Tasks", (line for task in report.tasks for line in _task_lines(task)))
        self._section("Calls", (line for call in report.calls for line in _call_lines(call)))
        self._section(
            "Settings",
            (
                f"{each.file}:{each.line}  {each.name}: {each.counterpart or 'no counterpart'}"
                for each in report.settings
            ),
        )
        self._section(
            "Schedules",
            (
                f"{each.file}:{each.line}  {each.name}: {each.task}, {each.schedule or 'a schedule in a variable'} → "
                f"{each.write or 'write the option schedule at the task'}"
                f"{f', and pass {each.arguments} by kwargs= of the schedule' if each.arguments else ''}"
                for each in report.schedules
            ),
        )
        self._section("Files that were not read", (f"{each.file}: {each.problem}" for each in report.unread))
        summary = _summary(report)
        self.output.line(
            f"{plural(summary['files'], 'file')}, {plural(summary['tasks'], 'task')}, "
            f"{plural(summary['calls'], 'call')}. With shared_task of lambda_tasks.contrib.celery, "
            f"{plural(summary['tasks_that_run_unchanged'], 'task')} and "
            f"{plural(summary['calls_that_run_unchanged'], 'call')} stay as they are. See docs/howto/from-celery.md."
        )

    def _section(self, title: str, lines: Iterable[str]) -> None:
        shown = [printable(line, max_length=_MAX_LINE) for line in lines]
        if shown:
            self.output.line(title, self.output.style_of("MIGRATE_HEADING"))
            self.output.line("\n".join(f"  {line}" for line in shown) + "\n")


def _summary(report: Report) -> dict[str, int]:
    return {
        "files": report.files,
        "tasks": len(report.tasks),
        "tasks_that_run_unchanged": sum(task.runs_unchanged for task in report.tasks),
        "calls": len(report.calls),
        "calls_that_run_unchanged": sum(call.fate == "carried" for call in report.calls),
    }


def _import_line(file: str, use: Use) -> str:
    return f"{file}:{use.line}  {use.name} from {use.value}  [{_FATES[use.fate]}]  {use.instead}"


def _task_lines(task: FoundTask) -> list[str]:
    parameters = ", ".join(
        f"{each.name}: {each.annotation}" if each.annotation else each.name for each in task.parameters
    )
    verdict = "" if task.runs_unchanged else "  [needs a change]"
    return [
        f"{task.file}:{task.line}  {task.name}({parameters}){verdict}",
        *_uses(task.options),
        *_uses(task.attributes),
        *_notes(task.notes),
    ]


def _call_lines(call: Call) -> list[str]:
    what = f"{call.task}.{call.kind}" if call.task and call.kind != "send_task" else call.kind
    first = f"{call.file}:{call.line}  {what}  [{_FATES[call.fate]}]  {call.write}"
    return [first, *_uses(call.options), *_notes(call.notes)]


def _uses(uses: Iterable[Use]) -> list[str]:
    return [
        f"    {use.name}{f'={use.value}' if use.value else ''}  [{_FATES[use.fate]}]  {use.instead}" for use in uses
    ]


def _notes(notes: Iterable[Note]) -> list[str]:
    return [f"    line {note.line}: {note.text}" for note in notes]
