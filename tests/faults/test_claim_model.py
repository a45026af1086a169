"""Claims, leases, fences and retries of the ORM store, against a model of thirty lines.

Hypothesis makes up histories: runs that claim, end, give back, die in silence, are copied; time that
passes; records that are deleted. After each step the store has answered as the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models import F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from lambda_tasks.exceptions import LeaseLost
from lambda_tasks.identity import new_message_id, retry_id
from lambda_tasks.jobs import Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Busy, Claim, Claimed, Failed, Finished, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.testing.contracts import example

LEASE = 100.0
#: No multiple of it is a lease, so that no moment is on the edge of one, however slow the machine is.
STEP = 37.0

ENDS: dict[str, tuple[Outcome, str]] = {
    "success": (Succeeded("result"), "SUCCESS"),
    "ignored": (Ignored(ValueError("ignored")), "SUCCESS"),
    "retry": (Retry(ValueError("again")), "RETRYING"),
    "failure": (Failed(ValueError("failed")), "FAILED"),
}


@dataclass
class Row:
    """What the model knows of one record."""

    holder: str | None
    lease_end: float
    takeovers: int = 0
    status: str = "RUNNING"


@dataclass
class Model:
    """The store as it should be."""

    now: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)

    def claim(self, run: Run) -> Claim:
        row = self.rows.get(run.message_id)
        if row is None:
            sender = self.rows.get(run.root_id) if run.n_retries else None
            if sender is not None and sender.status == "RUNNING":
                sender.status = "RETRYING"
            if sender is not None and sender.status != "RETRYING":
                return Finished(sender.status)
            self.rows[run.message_id] = Row(run.claim, self.now + LEASE)
            return Claimed()
        if row.holder == run.claim:
            return Claimed(row.takeovers)
        if row.status != "RUNNING":
            return Finished(row.status)
        if row.lease_end > self.now:
            return Busy(row.lease_end - self.now)
        row.takeovers += row.holder is not None
        row.holder, row.lease_end = run.claim, self.now + LEASE
        return Claimed(row.takeovers)

    def may_end(self, run: Run, status: str) -> bool:
        row = self.rows.get(run.message_id)
        if row is None or row.holder != run.claim:
            return False
        # A retry that was sent may be faster than the record of it.
        return row.status == "RUNNING" or row.status == status == "RETRYING"


class Histories(RuleBasedStateMachine):
    """One history; `database` is set by the test."""

    database: str
    messages = Bundle("messages")
    runs = Bundle("runs")

    @initialize()
    def begin(self) -> None:
        TaskRecord.objects.using(self.database).all().delete()
        self.store = ORMStore(database=self.database)
        self.model = Model()

    @rule(target=messages)
    def new_message(self) -> tuple[str, str, int]:
        message_id = new_message_id()
        return message_id, message_id, 0

    @rule(target=messages, sender=messages)
    def new_retry(self, sender: tuple[str, str, int]) -> tuple[str, str, int]:
        _, root_id, _ = sender
        return retry_id(root_id, 1), root_id, 1

    @rule(target=runs, message=messages, redelivered=st.booleans())
    def claim(self, message: tuple[str, str, int], redelivered: bool) -> Run:
        run = self._run(*message, redelivered=redelivered)
        self._same(self.store.claim(run), self.model.claim(run))
        return run

    @rule(run=runs)
    def claim_again(self, run: Run) -> None:
        """The answer to the first claim was lost on its way."""
        row = self.model.rows.get(run.message_id)
        if row is not None and row.status == "RUNNING":
            self._same(self.store.claim(run), self.model.claim(run))

    @rule(run=runs, end=st.sampled_from(sorted(ENDS)))
    def end(self, run: Run, end: str) -> None:
        outcome, status = ENDS[end]
        may_end = self.model.may_end(run, status)
        try:
            with transaction.atomic(using=self.database):
                self.store.record(run, outcome)
        except LeaseLost:
            assert not may_end
        else:
            assert may_end
            self.model.rows[run.message_id].status = status

    @rule(run=runs)
    def give_back(self, run: Run) -> None:
        self.store.release(run)
        row = self.model.rows.get(run.message_id)
        if row is not None and row.holder == run.claim and row.status == "RUNNING":
            row.holder, row.lease_end = None, self.model.now

    @rule(run=runs)
    def ask_after_lost_commit(self, run: Run) -> None:
        row = self.model.rows.get(run.message_id)
        succeeded = row is not None and row.holder == run.claim and row.status == "SUCCESS"
        assert self.store.has_succeeded(run) is succeeded

    @rule(message=messages)
    def delete(self, message: tuple[str, str, int]) -> None:
        """Somebody cleans up."""
        TaskRecord.objects.using(self.database).filter(pk=message[0]).delete()
        self.model.rows.pop(message[0], None)

    @rule(steps=st.integers(1, 4))
    def pass_time(self, steps: int) -> None:
        self.model.now += STEP * steps
        TaskRecord.objects.using(self.database).update(lease_until=F("lease_until") - timedelta(seconds=STEP * steps))

    @invariant()
    def records_are_as_in_the_model(self) -> None:
        stored = TaskRecord.objects.using(self.database).values_list("pk", "status", "claim", "takeovers")
        assert {str(pk): (status, claim and str(claim), takeovers) for pk, status, claim, takeovers in stored} == {
            message_id: (row.status, row.holder, row.takeovers) for message_id, row in self.model.rows.items()
        }

    def _run(self, message_id: str, root_id: str, n_retries: int, **details: Any) -> Run:
        return Run(
            message=SQSLambdaTaskMessage(task_name=example.name, n_retries=n_retries),
            message_id=message_id,
            root_id=root_id,
            queue="default",
            task=example,
            arguments={},
            soft_timeout=1,
            hard_timeout=2,
            lease=LEASE,
            database=self.database,
            **details,
        )

    def _same(self, answer: Claim, expected: Claim) -> None:
        if isinstance(expected, Busy):
            # The lease has run on by what the machine took; when it was lost in a race, nobody knows.
            assert isinstance(answer, Busy)
            assert answer.seconds == pytest.approx(expected.seconds, abs=STEP / 2)
        else:
            assert answer == expected


@pytest.mark.databases(transaction=True)
def test_every_history_of_claims_goes_as_in_the_model(database: str) -> None:
    machine = type("HistoriesOnDatabase", (Histories,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
