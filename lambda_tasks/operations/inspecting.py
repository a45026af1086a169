"""Collect everything that is known about an invocation: its chain of retries, its messages, its key and its reruns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import router

from lambda_tasks.database.dividing import divided
from lambda_tasks.handles import canonical
from lambda_tasks.maintenance import outbox
from lambda_tasks.models import (
    CancelRequest,
    OutboxMessage,
    TaskFlow,
    TaskFlowMember,
    TaskRecord,
    TaskRerun,
    UniqueKey,
)
from lambda_tasks.strategies import get_store
from lambda_tasks.wire import ids

if TYPE_CHECKING:
    from datetime import datetime

    from lambda_tasks.outcomes import ReportedProgress


@dataclass(frozen=True, slots=True)
class Kept:
    """A message that is in an outbox, and not on its queue yet."""

    database: str
    message: OutboxMessage

    @property
    def status(self) -> str:
        """`WAITING`, or `DEAD` if its queue has rejected it."""
        return "DEAD" if self.message.due_at is None else "WAITING"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the databases know about an invocation and about the other invocations of its chain of retries."""

    message_id: str
    #: The first invocation of the chain.
    root_id: str
    #: The records of the chain, the first invocation first. Those that the cleanup has deleted are missing.
    records: list[TaskRecord] = field(default_factory=list)
    #: The messages of the chain that are still in an outbox.
    kept: list[Kept] = field(default_factory=list)
    #: The unique keys that the chain holds, or has held.
    keys: list[UniqueKey] = field(default_factory=list)
    #: When the chain was requested to end, if a worker had started it.
    cancel_requested: datetime | None = None
    progress: ReportedProgress | None = None
    #: The row by which the chain came about, and those of the invocations that do one of the records again.
    rerun_of: TaskRerun | None = None
    reruns: list[TaskRerun] = field(default_factory=list)
    #: Its place in a chain or group of tasks, and that chain or group; both None if it is in none.
    member: TaskFlowMember | None = None
    flow: TaskFlow | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known: the message is on its queue, was never sent, or its record was deleted."""
        return not (self.records or self.kept or self.keys or self.rerun_of or self.member)

    @property
    def record(self) -> TaskRecord | None:
        """The record of the invocation itself; None without one."""
        return next((record for record in self.records if str(record.pk) == self.message_id), None)

    @property
    def status(self) -> str | None:
        """The status of the invocation, as `TaskHandle.status` returns it; None if it is unknown."""
        if (record := self.record) is not None:
            return str(record.status)
        return next((kept.status for kept in self.kept if str(kept.message.pk) == self.message_id), None)


def inspect(message_id: str) -> Inspection:
    """Return everything that is known about an invocation. This takes a query for each table and outbox.

    Raise ValueError for an id that is not a UUID.
    """
    message_id = canonical(message_id)
    store = get_store()
    own = TaskRecord.objects.using(store.database).filter(pk=message_id).values_list("root_id", flat=True)
    root_id = str(next(iter(own), None) or message_id)
    records = list(TaskRecord.objects.using(store.database).chain(root_id))
    chain = [root_id, message_id, *(str(record.pk) for record in records)]
    retries = 1 + max((record.n_retries for record in records), default=0)
    keys, requests = _keys(root_id), _rows(CancelRequest, store.database).filter(pk=root_id)
    reruns = _rows(TaskRerun, store.database)
    return Inspection(
        message_id,
        root_id,
        records,
        _kept([*chain, ids.retry_id(root_id, retries)]),
        keys,
        next(iter(requests.values_list("requested_at", flat=True)), None),
        store.read_progress(root_id),
        reruns.filter(pk=root_id).first(),
        _reruns(reruns, chain),
        member := _rows(TaskFlowMember, store.database).filter(pk=root_id).first(),
        None if member is None else _rows(TaskFlow, store.database).filter(pk=member.flow_id).first(),
    )


def _reruns(rows: Any, chain: list[str]) -> list[TaskRerun]:
    found = (row for some in divided(dict.fromkeys(chain)) for row in rows.filter(original_id__in=some))
    return sorted(found, key=lambda row: (row.rerun_at, row.pk))


def _kept(message_ids: list[str]) -> list[Kept]:
    backend = outbox()
    return [
        Kept(database, message)
        for database in (backend.databases if backend is not None else ())
        for some in divided(sorted(set(message_ids)))
        for message in OutboxMessage.objects.using(database).filter(pk__in=some).order_by("pk")
    ]


def _keys(root_id: str) -> list[UniqueKey]:
    """Return the keys of a chain, from the databases that may have them. The table is small, and has no index on it."""
    backend = outbox()
    databases = {get_store().database, *(backend.databases if backend is not None else ())}
    return [
        key for database in sorted(databases) for key in _rows(UniqueKey, database).filter(message_id=UUID(root_id))
    ]


def _rows(model: Any, database: str) -> Any:
    """Return the rows of a table; none if the routers do not allow the table in the database."""
    rows = model._default_manager.using(database)
    return rows.all() if router.allow_migrate_model(database, model) else rows.none()
