"""Other invocations to which the page of a record links, by kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from lambda_tasks.admin.showing import to_the_second
from lambda_tasks.models import FlowKind, MemberStatus, TaskFlow, TaskFlowMember
from lambda_tasks.operations import rerunning

if TYPE_CHECKING:
    from django.utils.functional import Promise

    from lambda_tasks.models import TaskRecord, TaskRerun

#: The maximum number of invocations of one kind that the page names: the latest ones.
MOST_RELATED: Final = 20
#: The maximum number of members of a group that are sorted by their position. Any others are shown of a larger group.
MOST_ORDERED: Final = 1_000


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
    found = (_original(record, site), _reruns(record, site), _flow(record, site))
    return [relation for relation in found if relation.related]


def _original(record: TaskRecord, site: str) -> Relation:
    row = rerunning.rerun_of(record)
    return Relation(_("Runs again"), [] if row is None else [_related(str(row.original_id), row, site)])


def _reruns(record: TaskRecord, site: str) -> Relation:
    rows = rerunning.reruns(record)[:MOST_RELATED]
    return Relation(_("Was run again as"), [_related(str(row.pk), row, site) for row in rows])


def _flow(record: TaskRecord, site: str) -> Relation:
    """Return the other members of the chain or the group of the record. This is up to three queries."""
    database = str(record._state.db)
    mine = TaskFlowMember.objects.using(database).filter(pk=record.root_id or record.pk).first()
    if mine is None:
        return Relation("")
    flow = TaskFlow.objects.using(database).filter(pk=mine.flow_id).only("kind", "size").first()
    if flow is None:
        return Relation("")
    label = _("Chain of %d tasks") if flow.kind == FlowKind.CHAIN else _("Group of %d tasks")
    members = TaskFlowMember.objects.using(database).filter(flow_id=flow.pk).exclude(pk=mine.pk)
    shown = members.order_by("position")[:MOST_RELATED] if flow.size <= MOST_ORDERED else members[:MOST_RELATED]
    whole = Related(str(flow.pk), reverse(f"{site}:lambda_tasks_taskflow_change", args=[flow.pk]), str(_("the whole")))
    return Relation(label % flow.size, [whole, *(_member(each, site) for each in shown)])


def _member(member: TaskFlowMember, site: str) -> Related:
    note = f"{member.position + 1}: {MemberStatus(member.status).label}"
    return Related(str(member.pk), _search(site, member.pk), note)


def _search(site: str, key: object) -> str:
    """Return the address of a search for an invocation, because its record does not exist before it starts."""
    return f"{reverse(f'{site}:lambda_tasks_taskrecord_changelist')}?q={key}"


def _related(key: str, row: TaskRerun, site: str) -> Related:
    note = _("%(time)s by %(user)s") if row.username else "%(time)s"
    return Related(key, _search(site, key), note % {"time": to_the_second(row.rerun_at), "user": row.username})
