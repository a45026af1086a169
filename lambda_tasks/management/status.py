"""The subcommands `status` and `inspect`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import CommandError

from lambda_tasks.handles import TaskHandle
from lambda_tasks.management.output import seconds, utc
from lambda_tasks.management.subcommands import Subcommand
from lambda_tasks.operations.inspecting import Inspection, Kept, inspect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.core.management.base import CommandParser

    from lambda_tasks.models import TaskRecord

_UNKNOWN: Final = "UNKNOWN"
_RECORD: Final = ("retry", "id", "status", "reason", "queue", "started", "ran for", "crashes")
_KEPT: Final = ("id", "status", "queue", "due", "attempts", "error")
_RERUN: Final = ("id", "of", "when", "user")
_NO_TRACE: Final = (
    "Nothing is known about {}: its message is on its queue, its transaction was rolled back, or its record was "
    "deleted by the cleanup. `lambda_tasks stats` shows how many messages wait on the queues."
)


class Status(Subcommand):
    """Prints the status of invocations."""

    name = "status"
    help = "Print the status of tasks by their message ids: one line for each."
    examples = ("status 019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10",)
    statuses = "exit status:\n  0  all are known\n  1  nothing is known about one of them, or an id is invalid"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "ids", nargs="+", metavar="ID", help="a message id: handle.message_id, or the id of a record"
        )

    def run(self, *, ids: Sequence[str], **_: Any) -> None:
        found = {each: TaskHandle.from_id(each).status or inspect(each).status for each in ids}
        self.output.result(
            [{"id": each, "status": status} for each, status in found.items()],
            "\n".join(f"{each}: {status or _UNKNOWN}" for each, status in found.items()),
        )
        for each, status in found.items():
            if status is None:
                raise CommandError(_NO_TRACE.format(each))


class Inspect(Subcommand):
    """Prints everything about an invocation."""

    name = "inspect"
    help = (
        "Print everything that is known about a task: its arguments and its result, its chain of retries, its messages "
        "in the outbox, its unique key, and its reruns."
    )
    examples = ("inspect 019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", metavar="ID", help="the message id of a task, or of any of its retries")

    def run(self, *, id: str, **_: Any) -> None:
        found = inspect(id)
        if found.is_empty:
            raise CommandError(_NO_TRACE.format(id))
        self.output.result(as_fields(found))
        if not self.output.as_json:
            self._print(found)

    def _print(self, found: Inspection) -> None:
        self._print_head(found)
        self._print_table("Chain of retries:", _RECORD, [_row(record) for record in found.records])
        self._print_table("In the outbox:", _KEPT, [_kept_row(each) for each in found.kept])
        reruns = [(str(each.pk), str(each.original_id), utc(each.rerun_at), each.username) for each in found.reruns]
        self._print_table("Run again:", _RERUN, reruns)
        record = found.record or (found.records[-1] if found.records else None)
        if record is not None:
            self._print_values(record)

    def _print_table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if rows:
            self.output.line("")
            self.output.table(headings, rows, title=title)

    def _print_head(self, found: Inspection) -> None:
        record = found.record or (found.records[-1] if found.records else None)
        known = record or (found.kept[0].message if found.kept else found.keys[0] if found.keys else None)
        progress = found.progress
        self.output.facts(
            {
                "task": known.task_name if known is not None else None,
                "id": found.message_id,
                "first id": found.root_id if found.root_id != found.message_id else None,
                "status": found.status or _UNKNOWN,
                "reason": record.reason if record is not None else None,
                "progress": None
                if progress is None
                else " ".join(_progress(progress.done, progress.total, progress.note)),
                "cancel requested": utc(found.cancel_requested),
                "unique key": ", ".join(f"{key.key} (until {utc(key.expires_at)})" for key in found.keys),
                "part of": _flow_text(found),
                "rerun of": str(found.rerun_of.original_id) if found.rerun_of is not None else None,
                "rerun by": found.rerun_of.username if found.rerun_of is not None else None,
            }
        )

    def _print_values(self, record: TaskRecord) -> None:
        values = {"Arguments": record.kwargs, "Result": record.result}
        for title, value in values.items():
            if value not in (None, {}):
                self.output.line(f"\n{title}:")
                self.output.block(json.dumps(value, indent=2, ensure_ascii=False))
        if record.traceback:
            self.output.line("\nTraceback:")
            self.output.block(record.traceback)


def as_fields(found: Inspection) -> dict[str, Any]:
    """Return what is known about an invocation as JSON values."""
    return {
        "id": found.message_id,
        "root_id": found.root_id,
        "status": found.status,
        "chain": [_fields(record) for record in found.records],
        "outbox": [_kept_fields(each) for each in found.kept],
        "unique_keys": [{"key": key.key, "task": key.task_name, "expires": utc(key.expires_at)} for key in found.keys],
        "cancel_requested": utc(found.cancel_requested),
        "progress": None
        if found.progress is None
        else {
            "done": found.progress.done,
            "total": found.progress.total,
            "note": found.progress.note,
            "updated": utc(found.progress.updated),
        },
        "flow": _flow_fields(found),
        "rerun_of": None if found.rerun_of is None else str(found.rerun_of.original_id),
        "reruns": [
            {"id": str(each.pk), "of": str(each.original_id), "at": utc(each.rerun_at), "user": each.username}
            for each in found.reruns
        ],
    }


def _flow_fields(found: Inspection) -> dict[str, Any] | None:
    if found.member is None:
        return None
    return {
        "id": str(found.member.flow_id),
        "kind": found.flow.kind if found.flow is not None else None,
        "position": found.member.position,
        "size": found.flow.size if found.flow is not None else None,
        "status": str(found.member.status),
    }


def _flow_text(found: Inspection) -> str | None:
    if (flow := _flow_fields(found)) is None:
        return None
    return f"{flow['kind'] or 'chain or group'} {flow['id']}, place {flow['position'] + 1} of {flow['size'] or '?'}"


def _fields(record: TaskRecord) -> dict[str, Any]:
    return {
        "id": str(record.pk),
        "task": record.task_name,
        "retry": record.n_retries,
        "status": str(record.status),
        "reason": record.reason,
        "queue": record.queue,
        "started": utc(record.start_time),
        "ended": utc(record.end_time),
        "seconds": _duration(record),
        "crashes": record.takeovers,
        "arguments": record.kwargs,
        "result": record.result,
        "traceback": record.traceback,
    }


def _kept_fields(kept: Kept) -> dict[str, Any]:
    return {
        "id": str(kept.message.pk),
        "status": kept.status,
        "task": kept.message.task_name,
        "queue": kept.message.queue,
        "database": kept.database,
        "enqueued": utc(kept.message.created_at),
        "due": utc(kept.message.due_at),
        "attempts": kept.message.attempts,
        "error": kept.message.error,
    }


def _row(record: TaskRecord) -> tuple[object, ...]:
    return (
        record.n_retries,
        str(record.pk),
        str(record.status),
        record.reason,
        record.queue,
        utc(record.start_time),
        seconds(_duration(record)),
        record.takeovers,
    )


def _kept_row(kept: Kept) -> tuple[object, ...]:
    message = kept.message
    return str(message.pk), kept.status, message.queue, utc(message.due_at), message.attempts, message.error


def _duration(record: TaskRecord) -> float | None:
    if record.start_time is None or record.end_time is None:
        return None
    return (record.end_time - record.start_time).total_seconds()


def _progress(done: int, total: int | None, note: str) -> Sequence[str]:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}", note
