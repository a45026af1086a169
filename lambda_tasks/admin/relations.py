"""Other invocations to which the page of a record links, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from lambda_tasks.admin.showing import to_the_second
from lambda_tasks.operations import rerunning

if TYPE_CHECKING:
    from django.utils.functional import Promise

    from lambda_tasks.models import TaskRecord, TaskRerun

#: The maximum number of invocations of one kind that the page names: the latest ones.
MOST_RELATED: Final = 20


@dataclass(frozen=True, slots=True)
class Related:
    """Another invocation: the text of the link and its address."""

    text: str
    url: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of relation, such as "Run again as", with the invocations that have it."""

    label: str | Promise
    related: list[Related] = field(default_factory=list)


def of(record: TaskRecord, site: str) -> list[Relation]:
    """Return the relations of a record that the database knows, with links to the admin `site`.

    Add a new kind of relation here.
    """
    return [relation for relation in (_original(record, site), _reruns(record, site)) if relation.related]


def _original(record: TaskRecord, site: str) -> Relation:
    row = rerunning.rerun_of(record)
    return Relation(_("Runs again"), [] if row is None else [_related(str(row.original_id), row, site)])


def _reruns(record: TaskRecord, site: str) -> Relation:
    rows = rerunning.reruns(record)[:MOST_RELATED]
    return Relation(_("Was run again as"), [_related(str(row.pk), row, site) for row in rows])


def _related(key: str, row: TaskRerun, site: str) -> Related:
    address = reverse(f"{site}:lambda_tasks_taskrecord_changelist")
    note = _("%(time)s by %(user)s") if row.username else "%(time)s"
    # A search instead of the page, because the record does not exist before the task starts.
    return Related(key, f"{address}?q={key}", note % {"time": to_the_second(row.rerun_at), "user": row.username})
