"""The subcommand `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import CommandError

from lambda_tasks.management.subcommands import Subcommand, plural
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

#: The exit status of the doctor if it found no error, but could not do all checks.
UNKNOWN_STATUS: Final = 2
_STYLES: Final = {"error": "ERROR", "warning": "WARNING", "skipped": "NOTICE"}


class Doctor(Subcommand):
    """Checks what is deployed."""

    name = "doctor"
    help = (
        "Check the queues and functions on AWS, the databases and the outbox for configurations that would lose or "
        "repeat work."
    )
    examples = ("doctor", "doctor --function shop-tasks", "doctor --allow-skipped --format json")
    statuses = (
        "exit status:\n  0  no errors, and all checks were done\n  1  errors\n"
        "  2  no errors, but checks were skipped (0 with --allow-skipped)"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--function",
            metavar="NAME",
            help="the Lambda function that reads from the queues (default: those of the event source mappings)",
        )
        parser.add_argument(
            "--allow-skipped",
            action="store_true",
            help="exit with status 0 although checks were skipped, for example because a permission is missing",
        )

    def run(self, *, function: str | None, allow_skipped: bool, **_: Any) -> None:
        from lambda_tasks.operations.doctor import diagnose

        self.warn_of_eager_mode()
        notes: list[str] = []
        findings = diagnose(function=function, note=notes.append)
        for note in () if self.output.as_json else notes:
            self.output.line(note)
        for finding in () if self.output.as_json else findings:
            self.output.line(str(finding), self.output.style_of(_STYLES[finding.level]))
        levels = [finding.level for finding in findings]
        errors, warnings, skipped = (levels.count(level) for level in ("error", "warning", "skipped"))
        summary = (
            f"Checked {', '.join(sorted(app_settings.queues))}: {plural(errors, 'error')}, "
            f"{plural(warnings, 'warning')}, {plural(skipped, 'skipped check')}."
        )
        self.output.result(
            {
                "queues": sorted(app_settings.queues),
                "errors": errors,
                "warnings": warnings,
                "skipped": skipped,
                "findings": [{"level": finding.level} | asdict(finding) for finding in findings],
                "notes": notes,
            }
        )
        if errors:
            raise CommandError(summary)
        if skipped and not allow_skipped:
            raise CommandError(
                f"{summary} Without them, the result is unknown. To accept this, pass --allow-skipped.",
                returncode=UNKNOWN_STATUS,
            )
        if not self.output.as_json:
            self.output.line(summary)
