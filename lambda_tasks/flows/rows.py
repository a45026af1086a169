"""The rows of flows and of their members."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from django.apps import apps
from django.db import router
from django.db.models import OuterRef, Subquery

from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.definition.steps import Step
from lambda_tasks.exceptions import UnknownDatabase
from lambda_tasks.recording.described import described
from lambda_tasks.strategies import get_store
from lambda_tasks.wire import ids, marks

PENDING: Final = "PENDING"
SUCCESS: Final = "SUCCESS"
FAILED: Final = "FAILED"
SKIPPED: Final = "SKIPPED"

#: The number of members in one INSERT, so that its text has less than 16 KB: see `lambda_tasks.database.dividing`.
_BATCH_SIZE: Final = 120


def flows(database: str) -> Any:
    return apps.get_model("lambda_tasks", "TaskFlow")._default_manager.using(database)


def members(database: str) -> Any:
    return apps.get_model("lambda_tasks", "TaskFlowMember")._default_manager.using(database)


def are_in(database: str) -> bool:
    """Return whether the database has the tables of flows."""
    return router.allow_migrate_model(database, apps.get_model("lambda_tasks", "TaskFlow"))


def refuse_other_database(database: str, what: str) -> None:
    """Raise `UnknownDatabase` unless the end of a task is recorded in the database in which it was sent."""
    if database != (own := get_store().database) or not are_in(own):
        raise UnknownDatabase(
            f"{what} must be sent with a transaction on {own!r}, the database of the records, which needs the tables "
            f"of flows; not on {described(database)}. Pass database={own!r}, and allow the migrations of lambda_tasks "
            "there."
        )


def create_call(message_id: str, task_name: str, step: Step | Any, database: str) -> None:
    """Write what follows an invocation, unless it is written already."""
    row = _new(
        database,
        id=message_id,
        kind=marks.CALL,
        task_name=task_name,
        size=1,
        on_success=[each.serialize() for each in step.on_success],
        on_failure=[each.serialize() for each in step.on_failure],
    )
    flows(database).bulk_create([row], ignore_conflicts=True)


def create_flow(database: str, **columns: Any) -> None:
    """Write a chain or a group."""
    flows(database).bulk_create([_new(database, **columns)])


def create_members(flow_id: str, message_ids: Sequence[str], database: str) -> None:
    """Write the members of a chain or a group, in their order."""
    model = members(database).model
    rows = [
        model(id=message_id, flow_id=flow_id, position=position, status=PENDING)
        for position, message_id in enumerate(message_ids)
    ]
    members(database).bulk_create(rows, batch_size=_BATCH_SIZE)


def _new(database: str, **columns: Any) -> Any:
    return flows(database).model(created_at=DatabaseNow(), **columns)


def locked(flow_id: str, database: str) -> Any | None:
    """Return the row of a flow, locked against other ends, or None if there is none."""
    return flows(database).select_for_update().filter(pk=flow_id).first()


def count_member(message_id: str, flow_id: str, database: str, *, succeeded: bool) -> bool:
    """Count the end of a member in its own row. Return False, and change nothing, if it was counted before."""
    pending = members(database).filter(pk=message_id, flow_id=flow_id, status=PENDING)
    return bool(pending.update(status=SUCCESS if succeeded else FAILED))


def has_pending_members(flow_id: str, database: str) -> bool:
    """Return whether a member has not ended.

    Members end more or less in the order in which they were sent. Reading the index from its end finds one that is
    pending with the first entries, and does not read those of all that have ended.
    """
    pending = members(database).filter(flow_id=flow_id, status=PENDING).order_by("-pk")
    return bool(pending.values_list("pk", flat=True)[:1])


def newest_pending(database: str) -> Subquery:
    """Return the same question as a subquery, for the flow of an outer query."""
    pending = members(database).filter(flow_id=OuterRef("pk"), status=PENDING).order_by("-pk")
    return Subquery(pending.values("pk")[:1])


def has_failed_members(flow_id: str, database: str) -> bool:
    return bool(members(database).filter(flow_id=flow_id, status=FAILED).exists())


def skip_pending(flow_id: str, database: str) -> None:
    """Count the steps of a chain that never run."""
    members(database).filter(flow_id=flow_id, status=PENDING).update(status=SKIPPED)


def owe(flow_id: str, owed: list[dict[str, Any]], database: str, *, unended: bool = False, **columns: Any) -> None:
    """Note what must be sent after COMMIT, if there is anything, and change other columns of the flow.

    With `unended`, only if it has not ended.
    """
    if owed:
        columns |= {"owed": owed, "owed_since": DatabaseNow(), "debt": ids.new_message_id()}
    if columns:
        flow = flows(database).filter(pk=flow_id)
        (flow.filter(ended_at=None) if unended else flow).update(**columns)


def owe_after_call(message_id: str, task_name: str, owed: list[dict[str, Any]], database: str) -> None:
    """Note what must be sent after the end of a call, whether or not it has a row.

    Do nothing if that was noted before: only the first note has what the call named.
    """
    row = _new(database, id=message_id, kind=marks.CALL, task_name=task_name, size=1)
    flows(database).bulk_create([row], ignore_conflicts=True)
    owe(message_id, owed, database, ended_at=DatabaseNow(), unended=True)


def delete_call(message_id: str, database: str) -> None:
    flows(database).filter(pk=message_id, kind=marks.CALL).delete()


def pay(row: Any, database: str) -> None:
    """Forget a debt that the transport has accepted, unless the flow owes something else meanwhile."""
    paid = flows(database).filter(pk=row.pk, debt=row.debt)
    if row.kind == marks.CALL:
        paid.delete()
    else:
        paid.update(owed=None, owed_since=None, debt=None)


def in_debt(flow_ids: Iterable[str], database: str) -> list[Any]:
    """Return those of the flows that owe something."""
    return list(flows(database).filter(pk__in=list(flow_ids), owed_since__isnull=False))
