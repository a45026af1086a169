"""Test claims, leases, fences and retries of the ORM store against a small model.

Hypothesis generates histories: runs that claim, end, give back, die or are copied, messages that use the ids of other
invocations, time that passes, and records that are deleted. After each step, the store must agree with the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.db.models import F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from lambda_tasks.exceptions import LeaseLost
from lambda_tasks.jobs import Run
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Busy, Claim, Claimed, Failed, Finished, Ignored, Mismatch, Outcome, Retry, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.testing.contracts import example
from lambda_tasks.testing.contracts.crowd import renamed
from lambda_tasks.wire.ids import new_message_id, retry_id
from lambda_tasks.wire.invocation import Invocation

pytestmark = pytest.mark.thorough

LEASE = 100.0
#: A lease is not a multiple of this, so that no time is at its end, even on a slow machine.
STEP = 37.0

ENDS: dict[str, tuple[Outcome, str]] = {
    "success": (Succeeded("result"), "SUCCESS"),
    "ignored": (Ignored(ValueError("ignored")), "SUCCESS"),
    "retry": (Retry(ValueError("again")), "RETRYING"),
    "failure": (Failed(ValueError("failed")), "FAILED"),
}


def work_of(run: Run) -> tuple[str, int]:
    """Return the values that all messages of an invocation and its retries must share."""
    return run.task_name, run.message.kwargs["number"]


@dataclass(frozen=True)
class Sent:
    """A message with its ids and its work."""

    message_id: str
    root_id: str
    n_retries: int = 0
    task: Any = example
    number: int = 7


@dataclass
class Row:
    """The model of one record."""

    holder: str | None
    lease_end: float
    work: tuple[str, int]
    n_retries: int
    root_id: str
    takeovers: int = 0
    status: str = "RUNNING"


@dataclass
class Model:
    """The model of the store."""

    now: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)

    def claim(self, run: Run) -> Claim:
        row = self.rows.get(run.message_id)
        if run.n_retries and run.message_id not in (run.root_id, retry_id(run.root_id, 1)):
            return Mismatch("id")
        if row is None:
            is_retry = run.n_retries and run.root_id != run.message_id
            sender = self.rows.get(run.root_id) if is_retry else None
            if sender is not None and (sender.work, sender.n_retries) != (work_of(run), 0):
                return Mismatch("sender")
            if sender is not None and sender.status == "RUNNING":
                sender.status = "RETRYING"
            if sender is not None and sender.status != "RETRYING":
                return Finished(sender.status)
            self.rows[run.message_id] = Row(run.claim, self.now + LEASE, work_of(run), run.n_retries, run.root_id)
            return Claimed()
        if row.holder == run.claim:
            return Claimed(row.takeovers)
        of_chain = not run.n_retries or row.root_id == run.root_id
        if not of_chain or (row.work, row.n_retries) != (work_of(run), run.n_retries):
            return Mismatch("record")
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
        # A retry may start before it is recorded.
        return row.status == "RUNNING" or row.status == status == "RETRYING"


class Histories(RuleBasedStateMachine):
    """One history; the test sets `database`."""

    database: str
    messages = Bundle("messages")
    runs = Bundle("runs")

    @initialize()
    def begin(self) -> None:
        TaskRecord.objects.using(self.database).all().delete()
        self.store = ORMStore(database=self.database)
        self.model = Model()

    @rule(target=messages)
    def new_message(self) -> Sent:
        message_id = new_message_id()
        return Sent(message_id, message_id)

    @rule(target=messages, sender=messages)
    def new_retry(self, sender: Sent) -> Sent:
        return replace(sender, message_id=retry_id(sender.root_id, 1), n_retries=1)

    @rule(target=messages, message=messages, task=st.sampled_from([example, renamed]), number=st.integers(7, 8))
    def forge(self, message: Sent, task: Any, number: int) -> Sent:
        """Use the ids of a message for other work."""
        return replace(message, task=task, number=number)

    @rule(target=messages, message=messages)
    def make_up_retry(self, message: Sent) -> Sent:
        """Claim to be a retry of a message, with an underived id."""
        return replace(message, message_id=new_message_id(), n_retries=1)

    @rule(target=messages, message=messages)
    def forget_root(self, message: Sent) -> Sent:
        """Send the id and the number of a retry as a first invocation."""
        return replace(message, root_id=message.message_id)

    @rule(target=runs, message=messages, redelivered=st.booleans())
    def claim(self, message: Sent, redelivered: bool) -> Run:
        run = self._run(message, redelivered=redelivered)
        self._same(self.store.claim(run), self.model.claim(run))
        return run

    @rule(run=runs)
    def claim_again(self, run: Run) -> None:
        """Claim again, because the answer to the first claim was lost."""
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
    def delete(self, message: Sent) -> None:
        """Delete a record, as a cleanup does."""
        TaskRecord.objects.using(self.database).filter(pk=message.message_id).delete()
        self.model.rows.pop(message.message_id, None)

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

    def _run(self, sent: Sent, **details: Any) -> Run:
        return Run(
            message=Invocation(task_name=sent.task.name, kwargs={"number": sent.number}, n_retries=sent.n_retries),
            message_id=sent.message_id,
            root_id=sent.root_id,
            queue="default",
            task=sent.task,
            arguments={},
            soft_timeout=1,
            hard_timeout=2,
            lease=LEASE,
            database=self.database,
            **details,
        )

    def _same(self, answer: Claim, expected: Claim) -> None:
        if isinstance(expected, Busy):
            # The lease has become shorter by the elapsed time. If it was lost in a race, its end is unknown.
            assert isinstance(answer, Busy)
            assert answer.seconds == pytest.approx(expected.seconds, abs=STEP / 2)
        elif isinstance(expected, Mismatch):
            assert isinstance(answer, Mismatch), answer
        else:
            assert answer == expected


@pytest.mark.databases(transaction=True)
def test_every_history_of_claims_matches_the_model(database: str) -> None:
    machine = type("HistoriesOnDatabase", (Histories,), {"database": database})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
