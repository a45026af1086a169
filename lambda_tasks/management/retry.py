"""The subcommand `retry`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from django.core.management.base import CommandError
from django.db.models import Exists, OuterRef

from lambda_tasks.database.dividing import divided
from lambda_tasks.handles import canonical
from lambda_tasks.management.output import utc
from lambda_tasks.management.subcommands import Subcommand, plural
from lambda_tasks.management.times import moment
from lambda_tasks.models import TaskRecord, TaskRerun
from lambda_tasks.operations.rerunning import Again, problem_of, run_all_again
from lambda_tasks.strategies import get_store

if TYPE_CHECKING:
    from datetime import datetime

    from django.core.management.base import CommandParser

#: The number of records that are run again in one transaction.
BATCH_SIZE: Final = 100
MAX_LIMIT: Final = 100_000


class Retry(Subcommand):
    """Runs ended invocations again."""

    name = "retry"
    help = (
        "Run failed tasks again: the same arguments under new ids, the oldest first. Records that were run again "
        "before are left out, unless their ids are given."
    )
    examples = (
        "retry --task shop.tasks.greet --since 2h --dry-run",
        "retry --since 2026-05-02T09:00 --until 2026-05-02T11:30 --limit 500",
        "retry 019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10",
    )
    statuses = "exit status:\n  0  all were sent\n  1  some were not sent, and the output says why"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("ids", nargs="*", metavar="ID", help="the message ids of records; the filters are ignored")
        parser.add_argument("--task", metavar="NAME", help="only this task")
        parser.add_argument("--since", type=moment, metavar="TIME", help="only what was started since, such as 2h ago")
        parser.add_argument("--until", type=moment, metavar="TIME", help="only what was started before")
        parser.add_argument(
            "--status",
            choices=("FAILED", "SUCCESS"),
            default="FAILED",
            help="(default: %(default)s)",
        )
        parser.add_argument(
            "--limit", type=int, default=1_000, metavar="N", help="at most N records (default: %(default)s)"
        )
        parser.add_argument("--dry-run", action="store_true", help="only print what would be run again")

    def run(self, *, ids: Sequence[str], limit: int, dry_run: bool, **options: Any) -> None:
        if not 1 <= limit <= MAX_LIMIT:
            raise ValueError(f"--limit must be from 1 to {MAX_LIMIT}, not {limit}.")
        self.warn_of_eager_mode()
        keys = _chosen(ids) if ids else _matching(limit, **options)
        done: list[Again] = []
        with self.output.progress("Running again", total=len(keys)) as advance:
            for batch in _batches(keys):
                done += (
                    [Again(each, problem=problem_of(each) or "") for each in batch] if dry_run else run_all_again(batch)
                )
                advance(len(batch))
        self._print(done, dry_run)

    def _print(self, done: Sequence[Again], dry_run: bool) -> None:
        problems = [each for each in done if each.problem]
        self.output.result(
            {
                "dry_run": dry_run,
                "records": [
                    {"id": str(each.record.pk), "task": each.record.task_name, "new_id": each.new_id}
                    | {"problem": each.problem}
                    for each in done
                ],
            }
        )
        if done:
            headings = ("record", "task", "started", "would run again" if dry_run else "id")
            self.output.table(headings, [_row(each, dry_run) for each in done])
        sent = plural(len(done) - len(problems), "record")
        for each in problems if not self.output.as_json else ():
            self.output.warn(each.problem)
        if not self.output.as_json:
            self.output.line(f"{sent} {'would be run' if dry_run else 'run'} again, {len(problems)} refused.")
        if problems:
            raise CommandError(f"{plural(len(problems), 'record')} cannot be run again; the output says why.")


def _row(again: Again, dry_run: bool) -> tuple[object, ...]:
    following = ("no" if again.problem else "yes") if dry_run else again.new_id
    return str(again.record.pk), again.record.task_name, utc(again.record.start_time), following


def _chosen(ids: Sequence[str]) -> list[str]:
    """Return the ids in their canonical form. Raise an error if one has no record."""
    keys = list(dict.fromkeys(map(canonical, ids)))
    records = TaskRecord.objects.using(get_store().database)
    pks = records.values_list("pk", flat=True)
    known = {str(pk) for some in divided(keys) for pk in pks.filter(pk__in=some)}
    for key in keys:
        if key not in known:
            raise CommandError(f"{key} has no record. `lambda_tasks inspect {key}` prints what is known about it.")
    return keys


def _matching(
    limit: int, *, task: str | None, since: datetime | None, until: datetime | None, status: str, **_: Any
) -> list[str]:
    """Return the ids of the oldest records that match, and that were not run again before."""
    records = TaskRecord.objects.using(get_store().database).filter(status=status, start_time__isnull=False)
    if task is not None:
        records = records.filter(task_name=task)
    if since is not None:
        records = records.filter(start_time__gte=since)
    if until is not None:
        records = records.filter(start_time__lt=until)
    again = TaskRerun.objects.filter(original_id=OuterRef("pk"))
    keys = records.exclude(Exists(again)).order_by("start_time").values_list("pk", flat=True)[:limit]
    return [str(key) for key in keys]


def _batches(keys: Sequence[str]) -> Iterator[list[TaskRecord]]:
    """Yield the records in the order of `keys`, without their results. Those deleted meanwhile are left out."""
    left = iter(keys)
    records = TaskRecord.objects.using(get_store().database).defer("result", "traceback")
    while batch := list(islice(left, BATCH_SIZE)):
        found = {str(record.pk): record for record in records.filter(pk__in=batch)}
        yield [found[key] for key in batch if key in found]
