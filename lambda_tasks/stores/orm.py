"""Store records as rows of `TaskRecord`, whose primary key is the mutex of an invocation.

All times that affect decisions are the database's, so workers do not depend on each other's clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.core.checks import CheckMessage, Warning
from django.db import IntegrityError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Q, QuerySet

from lambda_tasks import failpoints
from lambda_tasks.database.clock import DatabaseNow, LeaseNow, from_now
from lambda_tasks.database.dividing import divided
from lambda_tasks.database.errors import LOCKED_PAUSE
from lambda_tasks.database.statements import Statements
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.fitting import Recorded, misfit, misfit_of_ids, misfit_of_sender
from lambda_tasks.jobs import Job, Run
from lambda_tasks.models import TaskReason, TaskRecord, TaskStatus
from lambda_tasks.outcomes import (
    Busy,
    Cancellation,
    Claim,
    Claimed,
    Failed,
    Finished,
    Ignored,
    Latest,
    Lost,
    Mismatch,
    Outcome,
    Progress,
    ReportedProgress,
    Retry,
    Succeeded,
)
from lambda_tasks.recording.described import described
from lambda_tasks.recording.tracebacks import traceback_text
from lambda_tasks.results import json_result
from lambda_tasks.stores import cancelling, following, keyed
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.stores.committing import end_and_commit, lease_lost
from lambda_tasks.stores.reasons import reason_of, reason_of_success
from lambda_tasks.stores.rows import (
    EXISTING,
    NO_LEASE,
    NOT_CLAIMED,
    NOT_ENDED,
    RECORDED,
    Existing,
    claiming,
    claiming_asynchronously,
    ending,
    ending_with_reason,
    expired_since,
    held,
    lost_of,
    takes_several_statements,
)

#: The traceback of an invocation whose worker sent a retry, and died before it could record the error.
_ENDED_BY_RETRY: Final = "The worker sent a retry and did not record the error. The retry has ended this invocation."
#: The same if the record is missing: most likely the database server has crashed and lost the claim. Stored records
#: are compared with this string, so a change would no longer match the records of earlier versions.
_FORGOTTEN: Final = "The worker sent a retry, and its record is missing. The retry has ended this invocation."


class ORMStore(BaseStore):
    """Store records in the database that Django's routers choose for `TaskRecord`.

    The option `database`, an alias in DATABASES, overrides the routers. With `durable_claims=False`, PostgreSQL commits
    claims without waiting for its disk (`synchronous_commit`). If a server crash loses a claim, the next delivery makes
    it again, as if the task had not started; the crash has also rolled back all transactions of its worker. The outcome
    of a task always waits for the disk, unless the server itself is configured not to (`lambda_tasks.W021`). So does
    the claim of a task that must not repeat (`on_crash="fail"`).

    The two statements of every task, the INSERT of its claim and the UPDATE of its outcome, are compiled once per
    connection. Like `update()`, they do not send Django's model signals.
    """

    keeps_records = True
    waits = True
    keeps_progress = True

    def __init__(self, *, database: str | None = None, durable_claims: bool = True) -> None:
        if not isinstance(database, str | None):
            raise TypeError(f"database must be an alias in DATABASES, not {described(database)}")
        if not isinstance(durable_claims, bool):
            raise TypeError(f"durable_claims must be True or False, not {durable_claims!r}.")
        self._database = database
        self._durable_claims = durable_claims
        self._statements = Statements()

    @property
    def database(self) -> str:
        return self._database or router.db_for_write(TaskRecord)

    def claim(self, run: Run) -> Claim:
        if reason := misfit_of_ids(run):
            return Mismatch(reason)
        # A message that was received before usually has a record, and a retry may have been sent twice. Reading the
        # record does not wait, while an INSERT waits for the transaction that writes the outcome of the same record,
        # maybe forever.
        existing = self._read(run) if run.redelivered or run.n_retries else None
        if existing is None:
            if refused := self._end_predecessor(run):
                return refused
            connection = connections[run.database]
            try:
                with _savepoint_in_transaction(connection):
                    self._insert(run, connection)
                return Claimed()
            except IntegrityError:
                existing = self._read(run)
                if existing is None:
                    raise  # not a duplicate: the database refuses the row itself
        return self._claim_existing(run, existing)

    def _claim_existing(self, run: Run, existing: Existing) -> Claim:
        if existing.claim == UUID(run.claim):
            # Claimed before, but the response was lost.
            return Claimed(existing.takeovers, existing.waited, first=False)
        if existing.cancelled_unclaimed and not existing.recorded.task_name:
            return cancelling.finished(run)
        # The record of a call that was cancelled or replaced while it waited may lack its arguments.
        known = not (existing.cancelled_unclaimed or existing.replaced)
        if reason := misfit(run, existing.recorded, arguments=known):
            return Claimed() if self._replace_remembered(run) else Mismatch(reason)
        if existing.status != TaskStatus.RUNNING:
            return Finished(existing.status)
        if existing.seconds_left > 0:
            return Busy(existing.seconds_left)
        failpoints.reached("claim:before_takeover")
        return self._take_over(run, existing)

    def record(self, run: Run, outcome: Outcome) -> None:
        match outcome:
            case Succeeded(result):
                forgotten = {"reason": reason} if run.forgets and (reason := reason_of_success(run)) else {}
                written = self._end(run, TaskStatus.SUCCESS, result=json_result(result), traceback=None, **forgotten)
            case Retry(error):
                written = self._end_with_retry(run, run.retry_text(error), reason_of(outcome))
            case Ignored(error) | Failed(error):
                status = TaskStatus.SUCCESS if isinstance(outcome, Ignored) else TaskStatus.FAILED
                text, reason = run.traceback_text(error), reason_of(outcome)
                written = self._end(run, status, result=None, traceback=text, reason=reason)
        if not written:
            raise lease_lost(run)

    def record_and_commit(self, run: Run, outcome: Succeeded) -> bool:
        connection = connections[run.database]
        # A subclass with a method of its own records in its own way.
        if connection.vendor != "postgresql" or type(self).record is not ORMStore.record:
            return False
        result = json_result(outcome.result)
        reason = reason_of_success(run) if run.forgets else None
        return end_and_commit(self._statements, run, connection, result=result, reason=reason)

    def release(self, run: Run) -> None:
        self._mine(run).update(claim=None, lease_until=LeaseNow())

    def wait(self, run: Run, *, seconds: float) -> None:
        if not keyed.wait(self._mine(run), seconds):
            raise lease_lost(run)

    def release_crashed(self, run: Run) -> None:
        counted = F("takeovers") + 1
        self._mine(run).update(takeovers=counted, claim=None, lease_until=LeaseNow())

    def has_succeeded(self, run: Run) -> bool:
        with transaction.atomic(using=run.database):
            # FOR UPDATE waits for the old session if it is still committing, so the result is final.
            record = self._records(run.database).select_for_update().filter(pk=run.message_id, claim=run.claim).first()
            return record is not None and record.status == TaskStatus.SUCCESS

    def cancel(self, message_id: str, waiting: Job | None, *, database: str | None = None) -> Cancellation:
        return cancelling.cancel(database or self.database, message_id, waiting)

    def cancel_requested(self, run: Run) -> bool:
        return cancelling.is_requested(run.database, run.root_id)

    def begun(self, message_ids: Sequence[str]) -> set[str]:
        # A claim that was released, without a worker that died, does not count as started.
        running = self._records().filter(NOT_ENDED).exclude(claim=None, takeovers=0).values_list("pk", flat=True)
        return {str(pk) for some in divided(message_ids) for pk in running.filter(pk__in=some)}

    def status(self, message_id: str) -> str | None:
        for status in self._records().filter(pk=message_id).values_list("status", flat=True):
            return str(status)
        return None

    def progress(self, root_id: str) -> Progress | None:
        return keyed.progress(root_id, self.database)

    def latest(self, message_id: str) -> Latest | None:
        return following.latest(message_id, self.database)

    def write_progress(self, run: Run, progress: ReportedProgress) -> bool:
        return following.write_progress(run, progress)

    def read_progress(self, message_id: str) -> ReportedProgress | None:
        return following.read_progress(message_id, self.database)

    def replace(self, message_id: str, *, task_name: str, queue: str) -> bool:
        return keyed.replace(message_id, task_name=task_name, queue=queue, database=self.database)

    def refuse(self, job: Job, error: Exception) -> None:
        cancelling.refuse(job, error, self.database)

    def check(self) -> list[CheckMessage]:
        if self.database not in connections.settings:
            raise InvalidSetting(
                f"The database of LAMBDA_TASKS_STORE must be an alias in DATABASES "
                f"({', '.join(sorted(connections.settings))}), not {self.database!r}. Correct the alias, or add the "
                "database."
            )
        if self._durable_claims or takes_several_statements(connections[self.database]):
            return []
        return [
            Warning(
                f"LAMBDA_TASKS_STORE has durable_claims=False, which database {self.database!r} does not support: "
                "its claims wait for the disk.",
                hint="Remove the option: it requires PostgreSQL without server_side_binding.",
                id="lambda_tasks.W003",
            )
        ]

    def lost(self, *, older_than: float, limit: int, after: str = "") -> list[Lost]:
        records = self._records().filter(expired_since(older_than), status=TaskStatus.RUNNING)
        if after:
            records = records.filter(pk__gt=after)
        found = list(records.annotate(now=DatabaseNow()).order_by("pk")[:limit])
        if connections[self.database].features.has_select_for_update_skip_locked:
            # A worker that was frozen before its COMMIT locks its row, maybe for hours. The rows are selected by their
            # keys, because InnoDB locks all rows that it scans.
            free = self._records().select_for_update(skip_locked=True).values_list("pk", flat=True)
            keys = {pk for some in divided(record.pk for record in found) for pk in free.filter(pk__in=some)}
            found = [record for record in found if record.pk in keys]
        return [lost_of(record, record.now) for record in found]

    def offer(self, lost: Lost, *, older_than: float) -> bool:
        died = int(lost.waited is None)
        return bool(
            self._as_seen(lost, older_than).update(claim=None, lease_until=LeaseNow(), takeovers=F("takeovers") + died)
        )

    def withdraw(self, lost: Lost) -> None:
        offered = self._records().filter(NOT_ENDED, pk=lost.message_id, claim=None, takeovers=lost.takeovers + 1)
        offered.update(takeovers=lost.takeovers)

    def give_up(self, lost: Lost, outcome: Failed, *, older_than: float) -> bool:
        return bool(
            self._as_seen(lost, older_than).update(
                status=TaskStatus.FAILED,
                end_time=DatabaseNow(),
                traceback=traceback_text(outcome.error),
                reason=reason_of(outcome),
            )
        )

    def _as_seen(self, lost: Lost, older_than: float) -> QuerySet[TaskRecord]:
        """Return the record if it is unchanged (compare and swap): a takeover changes `claim`, reaping `takeovers`."""
        same = Q(claim__isnull=True) if lost.claim is None else Q(claim=lost.claim)
        unchanged: QuerySet[TaskRecord] = self._records().filter(
            NOT_ENDED, expired_since(older_than), same, pk=lost.message_id, takeovers=lost.takeovers
        )
        return unchanged

    def _records(self, database: str | None = None) -> QuerySet[TaskRecord]:
        """Return the records in a run's database, or by default in the one that the store uses now."""
        records: QuerySet[TaskRecord] = TaskRecord.objects.using(database or self.database)
        return records

    def _mine(self, run: Run) -> QuerySet[TaskRecord]:
        """Return the record only while the run holds its claim: this is the fence."""
        return held(run.database, run.message_id, run.claim)

    def _insert(self, run: Run, connection: BaseDatabaseWrapper) -> None:
        self._statements.run(
            claiming if self._must_last(run, connection) else claiming_asynchronously,
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
            connection,
        )

    def _must_last(self, run: Run, connection: BaseDatabaseWrapper) -> bool:
        """Return whether the claim must survive a crash of the database server."""
        if self._durable_claims or run.task.on_crash == "fail":
            return True
        # In the caller's transaction, as in eager mode, the setting would apply to the caller's COMMIT.
        in_transaction = connection.in_atomic_block or not connection.get_autocommit()
        return in_transaction or not takes_several_statements(connection)

    def _read(self, run: Run) -> Existing | None:
        row = (
            self._records(run.database)
            .filter(pk=run.message_id)
            .annotate(now=LeaseNow(), waits_until_now=DatabaseNow())
            .values_list(*RECORDED, *EXISTING)
            .first()
        )
        return None if row is None else Existing(Recorded(*row[: len(RECORDED)]), *row[len(RECORDED) :])

    def _take_over(self, run: Run, existing: Existing) -> Claim:
        """Take the claim over if it is unchanged (compare and swap) and its lease has expired."""
        seen = Q(claim__isnull=True) if existing.claim is None else Q(claim=existing.claim)
        # A released claim does not count as a death.
        takeovers = existing.takeovers + (existing.claim is not None)
        with transaction.atomic(using=run.database):
            if self._being_written(run.database, run.message_id):
                return Busy(LOCKED_PAUSE, locked=True)
            taken = (
                self._records(run.database)
                .filter(NOT_ENDED, seen, NO_LEASE | Q(lease_until__lte=LeaseNow()) | NOT_CLAIMED, pk=run.message_id)
                .update(
                    claim=run.claim,
                    queue=run.queue,
                    takeovers=takeovers,
                    start_time=DatabaseNow(),
                    lease_until=from_now(run.lease, clock=LeaseNow),
                )
            )
        return Claimed(takeovers, existing.waited, first=False) if taken else Busy(run.lease)

    def _end_predecessor(self, run: Run) -> Finished | Busy | Mismatch | None:
        """End the invocation that has sent the retry `run`. Return None if `run` may run, or the answer to its claim.

        A worker that died after it had sent a retry leaves its invocation RUNNING. Another worker must not take it
        over, since the work would be done twice. If it has ended otherwise, the retry must not run.
        """
        predecessor = run.predecessor_id
        if predecessor is None:
            return None
        record = self._records(run.database).filter(pk=predecessor)
        columns = record.values_list(*RECORDED, "status")
        sender = columns.first()
        if sender is None and not self._durable_claims:
            self._remember(run, predecessor)
            sender = columns.first()
        if sender is None:
            return None
        *recorded, status = sender
        if reason := misfit_of_sender(run, Recorded(*recorded)):
            return Mismatch(reason)
        if status == TaskStatus.RUNNING:
            with transaction.atomic(using=run.database):
                if self._being_written(run.database, predecessor):
                    return Busy(LOCKED_PAUSE, locked=True)
                record.filter(NOT_ENDED).update(
                    status=TaskStatus.RETRYING,
                    end_time=DatabaseNow(),
                    traceback=_ENDED_BY_RETRY,
                    reason=TaskReason.ERROR,
                )
            status = record.values_list("status", flat=True).first()
        return None if status in (None, TaskStatus.RETRYING) else Finished(status)

    def _remember(self, run: Run, predecessor: str) -> None:
        """Create the missing record of the invocation that has sent `run`, whose message may be redelivered."""
        with suppress(IntegrityError), transaction.atomic(using=run.database):  # another worker may have created it
            self._records(run.database).create(
                id=predecessor,
                task_name=run.task_name,
                kwargs=run.recorded_kwargs,
                status=TaskStatus.RETRYING,
                start_time=DatabaseNow(),
                end_time=DatabaseNow(),
                traceback=_FORGOTTEN,
                reason=TaskReason.ERROR,
                n_retries=run.n_retries - 1,
                root_id=run.root_id,
                queue=run.queue,
            )

    def _replace_remembered(self, run: Run) -> bool:
        """Claim a record that `_remember` created for a forged retry, which did not belong to this invocation.

        The invocation's own message was still in the queue at that time, so it cannot have sent a retry.
        """
        # Without the status, whose index PostgreSQL might read instead of the primary key.
        remembered = self._records(run.database).filter(pk=run.message_id, claim=None, traceback=_FORGOTTEN)
        return bool(
            remembered.update(
                task_name=run.task_name,
                kwargs=run.recorded_kwargs,
                status=TaskStatus.RUNNING,
                start_time=DatabaseNow(),
                end_time=None,
                traceback=None,
                reason="",
                n_retries=run.n_retries,
                root_id=run.root_id,
                queue=run.queue,
                claim=run.claim,
                lease_until=from_now(run.lease, clock=LeaseNow),
            )
        )

    def _end_with_retry(self, run: Run, traceback: str | None, reason: str | None) -> int:
        """End the record as RETRYING, even if the retry itself was faster and has already ended it."""
        mine = self._records(run.database).filter(
            pk=run.message_id, claim=run.claim, status__in=(TaskStatus.RUNNING, TaskStatus.RETRYING)
        )
        written: int = mine.update(
            status=TaskStatus.RETRYING, end_time=DatabaseNow(), result=None, traceback=traceback, reason=reason or ""
        )
        return written

    def _being_written(self, database: str, message_id: str) -> bool:
        """Return whether the open transaction of another worker has written the record's outcome.

        An UPDATE would wait for its COMMIT: forever, if that worker is frozen or has lost its network connection.
        """
        features = connections[database].features
        if not features.has_select_for_update_skip_locked:
            return False
        # FOR NO KEY UPDATE, if available: a foreign key to the record locks its key, which does not block an UPDATE.
        record = self._records(database).select_for_update(
            skip_locked=True, no_key=features.has_select_for_no_key_update
        )
        return not list(record.filter(pk=message_id).values_list("pk"))

    def _end(self, run: Run, status: str, **columns: Any) -> int:
        values = {"id": run.message_id, "claim": run.claim, "status": status, **columns}
        statement = ending_with_reason if "reason" in columns else ending
        return self._statements.run(statement, values, connections[run.database])


def _savepoint_in_transaction(connection: BaseDatabaseWrapper) -> AbstractContextManager[Any]:
    """Open a savepoint in an open transaction, as in eager mode, so that a refused INSERT does not break it."""
    return transaction.atomic(using=connection.alias) if connection.in_atomic_block else nullcontext()
