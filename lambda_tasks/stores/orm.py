"""Records are rows of `TaskRecord`; their primary key is the mutex of an invocation.

All times that decide something are the database's own: workers need no common clock.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connections, router, transaction
from django.db.models import DurationField, Expression, Q, QuerySet, Value

from lambda_tasks.exceptions import LeaseLost
from lambda_tasks.jobs import Run
from lambda_tasks.models import DatabaseNow, TaskRecord, TaskStatus
from lambda_tasks.outcomes import Busy, Claim, Claimed, Failed, Finished, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.results import json_result
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.tracebacks import traceback_text


class ORMStore(BaseStore):
    """Keeps records in the database that Django's routers choose for `TaskRecord`.

    Option: `database`, an alias in DATABASES, to name it regardless of the routers.
    """

    def __init__(self, *, database: str | None = None) -> None:
        self._database = database

    @property
    def database(self) -> str:
        return self._database or router.db_for_write(TaskRecord)

    def claim(self, run: Run) -> Claim:
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
        return self._take_over(run, met)

    def record(self, run: Run, outcome: Outcome) -> None:
        match outcome:
            case Succeeded(result):
                written = self._end(run, TaskStatus.SUCCESS, result=json_result(result), traceback=None)
            case Ignored(error):
                written = self._end(run, TaskStatus.SUCCESS, result=None, traceback=traceback_text(error))
            case Retry(error):
                written = self._end(run, TaskStatus.RETRYING, result=None, traceback=traceback_text(error))
            case Failed(error):
                written = self._end(run, TaskStatus.FAILED, result=None, traceback=traceback_text(error))
        if not written:
            raise LeaseLost(f"The claim of {run.message_id} is not this run's any more.")

    def release(self, run: Run) -> None:
        self._mine(run).update(claim=None, lease_until=DatabaseNow())

    def has_succeeded(self, run: Run) -> bool:
        with transaction.atomic(using=self.database):
            # FOR UPDATE waits for the old session if it still commits; then the answer is definite.
            record = self._records().select_for_update().filter(pk=run.message_id, claim=run.claim).first()
            return record is not None and record.status == TaskStatus.SUCCESS

    def _records(self) -> QuerySet[TaskRecord]:
        records: QuerySet[TaskRecord] = TaskRecord.objects.using(self.database)
        return records

    def _mine(self, run: Run) -> QuerySet[TaskRecord]:
        """The fence: the record, but only while the claim is the run's."""
        mine: QuerySet[TaskRecord] = self._records().filter(
            pk=run.message_id, claim=run.claim, status=TaskStatus.RUNNING
        )
        return mine

    def _savepoint_in_transaction(self) -> AbstractContextManager[Any]:
        """Keep a refused INSERT from spoiling an open transaction, as in eager mode; else cost nothing."""
        if connections[self.database].in_atomic_block:
            return transaction.atomic(using=self.database)
        return nullcontext()

    def _insert(self, run: Run) -> None:
        self._records().create(
            id=run.message_id,
            task_name=run.task_name,
            kwargs=run.message.kwargs,
            status=TaskStatus.RUNNING,
            start_time=DatabaseNow(),
            n_retries=run.n_retries,
            root_id=run.root_id,
            claim=run.claim,
            lease_until=_from_now(run.lease),
        )

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
        taken = (
            self._records()
            .filter(seen, pk=run.message_id, status=TaskStatus.RUNNING, lease_until__lte=DatabaseNow())
            .update(
                claim=run.claim,
                takeovers=takeovers,
                start_time=DatabaseNow(),
                lease_until=_from_now(run.lease),
            )
        )
        return Claimed(takeovers) if taken else Busy(run.lease)

    def _end(self, run: Run, status: str, **columns: Any) -> int:
        return self._mine(run).update(status=status, end_time=DatabaseNow(), **columns)


class _Met:
    """What a claim found instead of a free place."""

    def __init__(
        self, status: str, claim: UUID | None, takeovers: int, lease_until: datetime | None, now: datetime
    ) -> None:
        self.status = status
        self.claim = claim
        self.takeovers = takeovers
        self.seconds_left = (lease_until - now).total_seconds() if lease_until else 0.0


def _from_now(seconds: float) -> Expression:
    return DatabaseNow() + Value(timedelta(seconds=seconds), output_field=DurationField())
