"""Records are rows of `TaskRecord`; their primary key is the mutex of an invocation.

All times that decide something are the database's own: workers need no common clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.core.checks import CheckMessage, Warning
from django.db import IntegrityError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DurationField, Expression, F, Q, QuerySet, Value

from lambda_tasks import points
from lambda_tasks.databases import LOCKED_PAUSE
from lambda_tasks.exceptions import InvalidSetting, LeaseLost
from lambda_tasks.jobs import Run
from lambda_tasks.models import DatabaseNow, TaskRecord, TaskStatus
from lambda_tasks.outcomes import Busy, Claim, Claimed, Failed, Finished, Ignored, Lost, Outcome, Retry, Succeeded
from lambda_tasks.results import json_result
from lambda_tasks.statements import Slot, Statement, Statements, insertion, update
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.tracebacks import traceback_text

#: The traceback of an invocation whose worker sent a retry, and died before it could say why.
_ENDED_BY_RETRY: Final = "Its worker sent a retry and was not heard of again; the retry has ended it."
#: The same where there is no record: most likely the server has crashed and forgotten the claim.
_FORGOTTEN: Final = "Its worker sent a retry, and then there was no record of it; the retry has ended it."

_FIELDS: Final = {field.name: field for field in TaskRecord._meta.concrete_fields}


class ORMStore(BaseStore):
    """Keeps records in the database that Django's routers choose for `TaskRecord`.

    Options: `database`, an alias in DATABASES, to name it regardless of the routers.
    `durable_claims=False` for claims that PostgreSQL commits without waiting for its disk
    (`synchronous_commit`): one that a crash of the server forgets is made again by the next delivery, as
    if the task had not begun; no transaction of its worker has survived that crash either. The end of a
    task is always waited for, and so is the claim of one that must not repeat (`on_crash="fail"`).

    The two statements of every task, the INSERT of its claim and the UPDATE of its end, are written once
    for each connection. They send no signals of Django's models, as an `update()` sends none.
    """

    def __init__(self, *, database: str | None = None, durable_claims: bool = True) -> None:
        if not isinstance(durable_claims, bool):
            raise TypeError(f"durable_claims is {durable_claims!r}; give True or False")
        self._database = database
        self._durable_claims = durable_claims
        self._statements = Statements()

    @property
    def database(self) -> str:
        return self._database or router.db_for_write(TaskRecord)

    def claim(self, run: Run) -> Claim:
        # A message that was received before has a record most of the time, and a retry may have been sent
        # twice. To look first waits for nobody; an INSERT waits for the transaction that is writing the end
        # of the same record, maybe for ever.
        met = self._read(run) if run.redelivered or run.n_retries else None
        if met is None:
            if refused := self._end_predecessor(run):
                return refused
            try:
                with self._savepoint_in_transaction():
                    self._insert(run)
                return Claimed()
            except IntegrityError:
                met = self._read(run)
                if met is None:
                    raise  # no duplicate, then: the row itself is refused
        if met.claim == UUID(run.claim):
            return Claimed(met.takeovers)  # made before; only the answer was lost
        if met.status != TaskStatus.RUNNING:
            return Finished(met.status)
        if met.seconds_left > 0:
            return Busy(met.seconds_left)
        points.reached("claim:before_takeover")
        return self._take_over(run, met)

    def record(self, run: Run, outcome: Outcome) -> None:
        match outcome:
            case Succeeded(result):
                written = self._end(run, TaskStatus.SUCCESS, result=json_result(result), traceback=None)
            case Ignored(error):
                written = self._end(run, TaskStatus.SUCCESS, result=None, traceback=run.traceback_text(error))
            case Retry(error):
                written = self._end_with_retry(run, run.traceback_text(error))
            case Failed(error):
                written = self._end(run, TaskStatus.FAILED, result=None, traceback=run.traceback_text(error))
        if not written:
            raise LeaseLost(f"The claim of {run.message_id} is not this run's any more.")

    def release(self, run: Run) -> None:
        self._mine(run.message_id, run.claim).update(claim=None, lease_until=DatabaseNow())

    def has_succeeded(self, run: Run) -> bool:
        with transaction.atomic(using=self.database):
            # FOR UPDATE waits for the old session if it still commits; then the answer is definite.
            record = self._records().select_for_update().filter(pk=run.message_id, claim=run.claim).first()
            return record is not None and record.status == TaskStatus.SUCCESS

    def begun(self, message_ids: Sequence[str]) -> set[str]:
        running = self._records().filter(pk__in=message_ids, status=TaskStatus.RUNNING)
        # A claim that was given back, and that nobody died with, is as if it had never been.
        return {str(pk) for pk in running.exclude(claim=None, takeovers=0).values_list("pk", flat=True)}

    def status(self, message_id: str) -> str | None:
        for status in self._records().filter(pk=message_id).values_list("status", flat=True):
            return str(status)
        return None

    def check(self) -> list[CheckMessage]:
        if self.database not in connections.settings:
            raise InvalidSetting(
                f"LAMBDA_TASKS_STORE names database {self.database!r}, which is not in DATABASES "
                f"({', '.join(sorted(connections.settings))}); correct the alias, or add the database."
            )
        if self._durable_claims or _commits_at_once(connections[self.database]):
            return []
        return [
            Warning(
                f"LAMBDA_TASKS_STORE has durable_claims=False, which database {self.database!r} cannot keep: "
                "its claims wait for the disk.",
                hint="It is for PostgreSQL without server_side_binding; leave the option out elsewhere.",
                id="lambda_tasks.W003",
            )
        ]

    def lost(self, *, older_than: float, limit: int, after: str = "") -> list[Lost]:
        records = self._abandoned(older_than)
        if after:
            records = records.filter(pk__gt=after)
        found = list(records.order_by("pk")[:limit])
        if connections[self.database].features.has_select_for_update_skip_locked:
            # A worker that was frozen before its COMMIT holds its row, maybe for hours. Asked for by
            # their keys, since InnoDB locks what it reads on the way too.
            free = self._records().select_for_update(skip_locked=True).filter(pk__in=[record.pk for record in found])
            keys = set(free.values_list("pk", flat=True))
            found = [record for record in found if record.pk in keys]
        return [_lost(record) for record in found]

    def offer(self, lost: Lost, *, older_than: float) -> bool:
        return bool(
            self._as_seen(lost, older_than).update(claim=None, lease_until=DatabaseNow(), takeovers=F("takeovers") + 1)
        )

    def give_up(self, lost: Lost, outcome: Failed, *, older_than: float) -> bool:
        return bool(
            self._as_seen(lost, older_than).update(
                status=TaskStatus.FAILED, end_time=DatabaseNow(), traceback=traceback_text(outcome.error)
            )
        )

    def _abandoned(self, older_than: float) -> QuerySet[TaskRecord]:
        over = DatabaseNow() - timedelta(seconds=older_than)
        abandoned: QuerySet[TaskRecord] = self._records().filter(status=TaskStatus.RUNNING, lease_until__lt=over)
        return abandoned

    def _as_seen(self, lost: Lost, older_than: float) -> QuerySet[TaskRecord]:
        """Compare and swap: whoever takes it over changes the claim, and whoever reaps it the takeovers."""
        same = Q(claim__isnull=True) if lost.claim is None else Q(claim=lost.claim)
        unchanged: QuerySet[TaskRecord] = self._abandoned(older_than).filter(
            same, pk=lost.message_id, takeovers=lost.takeovers
        )
        return unchanged

    def _records(self) -> QuerySet[TaskRecord]:
        records: QuerySet[TaskRecord] = TaskRecord.objects.using(self.database)
        return records

    def _mine(self, message_id: str | Slot, claim: str | Slot) -> QuerySet[TaskRecord]:
        """The fence: the record, but only while the claim is the run's."""
        mine: QuerySet[TaskRecord] = self._records().filter(pk=message_id, claim=claim, status=TaskStatus.RUNNING)
        return mine

    def _savepoint_in_transaction(self) -> AbstractContextManager[Any]:
        """Keep a refused INSERT from spoiling an open transaction, as in eager mode; else cost nothing."""
        if connections[self.database].in_atomic_block:
            return transaction.atomic(using=self.database)
        return nullcontext()

    def _insert(self, run: Run) -> None:
        self._statements.run(
            _claiming if self._must_last(run) else _claiming_at_once,
            {
                "id": run.message_id,
                "task_name": run.task_name,
                "kwargs": run.recorded_kwargs,
                "n_retries": run.n_retries,
                "root_id": run.root_id,
                "queue": run.queue,
                "claim": run.claim,
                "lease": timedelta(seconds=run.lease),
            },
            using=self.database,
        )

    def _must_last(self, run: Run) -> bool:
        """Tell whether the claim must survive a crash of the database's server."""
        if self._durable_claims or run.task.on_crash == "fail":
            return True
        connection = connections[self.database]
        # In a transaction of somebody else's, as in eager mode, it would be that one's COMMIT.
        return connection.in_atomic_block or not connection.get_autocommit() or not _commits_at_once(connection)

    def _read(self, run: Run) -> _Met | None:
        row = (
            self._records()
            .filter(pk=run.message_id)
            .annotate(now=DatabaseNow())
            .values_list("status", "claim", "takeovers", "lease_until", "now")
            .first()
        )
        return None if row is None else _Met(*row)

    def _take_over(self, run: Run, met: _Met) -> Claim:
        """Compare and swap: the claim must still be the one that was seen, and its lease over."""
        seen = Q(claim__isnull=True) if met.claim is None else Q(claim=met.claim)
        # A claim that was given back had no death.
        takeovers = met.takeovers + (met.claim is not None)
        with transaction.atomic(using=self.database):
            if self._being_written(run.message_id):
                return Busy(LOCKED_PAUSE)
            taken = (
                self._records()
                .filter(seen, pk=run.message_id, status=TaskStatus.RUNNING, lease_until__lte=DatabaseNow())
                .update(
                    claim=run.claim,
                    queue=run.queue,
                    takeovers=takeovers,
                    start_time=DatabaseNow(),
                    lease_until=_from_now(run.lease),
                )
            )
        return Claimed(takeovers) if taken else Busy(run.lease)

    def _end_predecessor(self, run: Run) -> Finished | Busy | None:
        """End the invocation that has sent the retry `run`; None if it may run, else the answer to its claim.

        A worker that died after it had sent a retry leaves its invocation RUNNING. Nobody may take that
        over now, since it would be done here and there; and if somebody has ended it, this retry is not
        wanted any more.
        """
        predecessor = run.predecessor_id
        if predecessor is None:
            return None
        record = self._records().filter(pk=predecessor)
        status = record.values_list("status", flat=True).first()
        if status is None and not self._durable_claims:
            self._remember(run, predecessor)
            status = record.values_list("status", flat=True).first()
        if status == TaskStatus.RUNNING:
            with transaction.atomic(using=self.database):
                if self._being_written(predecessor):
                    return Busy(LOCKED_PAUSE)
                record.filter(status=TaskStatus.RUNNING).update(
                    status=TaskStatus.RETRYING, end_time=DatabaseNow(), traceback=_ENDED_BY_RETRY
                )
            status = record.values_list("status", flat=True).first()
        return None if status in (None, TaskStatus.RETRYING) else Finished(status)

    def _remember(self, run: Run, predecessor: str) -> None:
        """Write the record of the forgotten invocation that has sent `run`: its message may still come again."""
        with suppress(IntegrityError), transaction.atomic(using=self.database):  # it may have come in between
            self._records().create(
                id=predecessor,
                task_name=run.task_name,
                kwargs=run.recorded_kwargs,
                status=TaskStatus.RETRYING,
                start_time=DatabaseNow(),
                end_time=DatabaseNow(),
                traceback=_FORGOTTEN,
                n_retries=run.n_retries - 1,
                root_id=run.root_id,
                queue=run.queue,
            )

    def _end_with_retry(self, run: Run, traceback: str) -> int:
        """End the record as RETRYING; the retry itself may have done so, if it was faster."""
        mine = self._records().filter(
            pk=run.message_id, claim=run.claim, status__in=(TaskStatus.RUNNING, TaskStatus.RETRYING)
        )
        written: int = mine.update(status=TaskStatus.RETRYING, end_time=DatabaseNow(), result=None, traceback=traceback)
        return written

    def _being_written(self, message_id: str) -> bool:
        """Tell whether the open transaction of another worker has written the record's end already.

        An UPDATE would wait for its COMMIT: for ever, if that worker is frozen or its network gone.
        """
        features = connections[self.database].features
        if not features.has_select_for_update_skip_locked:
            return False
        # No key, where there is that: a row that refers to the record holds its key, and no UPDATE waits for that.
        record = self._records().select_for_update(skip_locked=True, no_key=features.has_select_for_no_key_update)
        return not list(record.filter(pk=message_id).values_list("pk"))

    def _end(self, run: Run, status: str, **columns: Any) -> int:
        values = {"id": run.message_id, "claim": run.claim, "status": status, **columns}
        return self._statements.run(self._ending, values, using=self.database)

    def _ending(self, connection: BaseDatabaseWrapper) -> Statement:
        """Write the UPDATE of an end."""
        columns = {name: _slot(name) for name in ("status", "result", "traceback")}
        return update(self._mine(_slot("id"), _slot("claim")), connection, end_time=DatabaseNow(), **columns)


def _claiming(connection: BaseDatabaseWrapper) -> Statement:
    """Write the INSERT of a claim."""
    columns = {name: _slot(name) for name in ("id", "task_name", "kwargs", "n_retries", "root_id", "queue", "claim")}
    times = {"start_time": DatabaseNow(), "lease_until": DatabaseNow() + Slot("lease", DurationField())}
    return insertion(TaskRecord(status=TaskStatus.RUNNING, **columns, **times), connection)


def _claiming_at_once(connection: BaseDatabaseWrapper) -> Statement:
    """Write the INSERT of a claim whose COMMIT does not wait for the disk.

    Both statements are one message to the server, and with it one transaction, in which LOCAL holds.
    """
    claiming = _claiming(connection)
    return replace(claiming, sql=f"SET LOCAL synchronous_commit TO OFF; {claiming.sql}")


def _commits_at_once(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether statements can be told not to wait for the disk."""
    # Parameters that are bound by the server come with one statement in a message.
    bound_by_server = connection.settings_dict["OPTIONS"].get("server_side_binding", False)
    return connection.vendor == "postgresql" and not bound_by_server


def _slot(column: str) -> Slot:
    return Slot(column, _FIELDS[column])


class _Met:
    """What a claim found instead of a free place."""

    def __init__(
        self, status: str, claim: UUID | None, takeovers: int, lease_until: datetime | None, now: datetime
    ) -> None:
        self.status = status
        self.claim = claim
        self.takeovers = takeovers
        self.seconds_left = (lease_until - now).total_seconds() if lease_until else 0.0


def _lost(record: TaskRecord) -> Lost:
    return Lost(
        message_id=str(record.pk),
        root_id=str(record.root_id or record.pk),
        task_name=record.task_name,
        kwargs=record.kwargs,
        n_retries=record.n_retries,
        takeovers=record.takeovers,
        queue=record.queue,
        claim=None if record.claim is None else str(record.claim),
        started_at=None if record.start_time is None else record.start_time.timestamp(),
    )


def _from_now(seconds: float) -> Expression:
    return DatabaseNow() + Value(timedelta(seconds=seconds), output_field=DurationField())
