"""What every store of records must hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import pytest
from django.db import transaction

from lambda_tasks import identity
from lambda_tasks.exceptions import LeaseLost, ResultNotSerializable
from lambda_tasks.jobs import Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.results import json_result
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.testing.contracts.crowd import (
    ROUNDS,
    InThread,
    confidential,
    crowd,
    example,
    skew,
    together,
    winners,
)
from lambda_tasks.testing.contracts.samples import AWKWARD_ERRORS, STORABLE, UNSTORABLE, nested


@dataclass(frozen=True, slots=True)
class Stored:
    """What a record says."""

    status: str
    result: Any = None
    traceback: str | None = None


_ERROR: Final = ValueError("what the task raised")
OUTCOMES: Final[Sequence[Outcome]] = (Succeeded({"answer": 42}), Ignored(_ERROR), Retry(_ERROR, 5), Failed(_ERROR))
STATUS_OF: Final[Mapping[type, str]] = {
    Succeeded: "SUCCESS",
    Ignored: "SUCCESS",
    Retry: "RETRYING",
    Failed: "FAILED",
}

_each_outcome = pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)


class StoreContract:
    """What every store of records holds; override `store`, `stored` and `delete`.

    The tests commit: with pytest-django, mark the subclass `django_db(transaction=True)`, with all its
    `databases`. They end a lease without waiting by asking for one that is over already, so `claim()`
    must take a negative lease.
    """

    #: Whether `has_succeeded()` waits for a COMMIT under way; not needed where no connection can be lost.
    waits_for_commit: ClassVar[bool] = True

    @pytest.fixture
    def store(self) -> BaseStore:
        """Override: return the store under test."""
        raise NotImplementedError

    def stored(self, store: BaseStore, run: Run) -> Stored | None:
        """Override: return what is recorded of the invocation of `run`, None if nothing is."""
        raise NotImplementedError

    def delete(self, store: BaseStore, run: Run) -> None:
        """Override: delete the record of `run`, as somebody might by hand."""
        raise NotImplementedError

    def new_run(
        self, store: BaseStore, *, of: Run | None = None, lease: float = 60, kwargs: dict[str, Any] | None = None
    ) -> Run:
        """Return a run of a new invocation, or another run of the invocation `of`."""
        message_id = of.message_id if of else identity.new_message_id()
        return Run(
            message=of.message if of else SQSLambdaTaskMessage(task_name=example.name, kwargs=kwargs or {}),
            message_id=message_id,
            root_id=message_id,
            queue="default",
            task=example,
            arguments={},
            soft_timeout=10,
            hard_timeout=20,
            lease=lease,
            database=store.database,
        )

    def claimed_run(self, store: BaseStore, *, of: Run | None = None, lease: float = 60) -> Run:
        """Return a run that holds its invocation."""
        run = self.new_run(store, of=of, lease=lease)
        claim = store.claim(run)
        assert isinstance(claim, Claimed), claim
        return run

    def record(self, store: BaseStore, run: Run, outcome: Outcome) -> None:
        """Record as the executor does: success in the task's transaction, everything else outside."""
        if isinstance(outcome, Succeeded):
            with transaction.atomic(using=store.database):
                store.record(run, outcome)
        else:
            store.record(run, outcome)

    def status(self, store: BaseStore, run: Run) -> str | None:
        stored = self.stored(store, run)
        return None if stored is None else stored.status

    # Claims

    def test_a_new_invocation_is_claimed(self, store: BaseStore) -> None:
        run = self.new_run(store)
        assert store.claim(run) == Claimed(takeovers=0)
        assert self.stored(store, run) == Stored("RUNNING")

    def test_any_arguments_of_a_message_can_be_claimed(self, store: BaseStore) -> None:
        kwargs = {
            "text": STORABLE["emoji"] + STORABLE["noncharacters"],
            "": {"n": [1.5, None, 2**70]},
            "long": "x" * 99_999,
        }
        assert isinstance(store.claim(self.new_run(store, kwargs=kwargs)), Claimed)

    def test_an_invocation_that_runs_is_busy_until_its_lease_ends(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=60)
        claim = store.claim(self.new_run(store, of=run, lease=900))
        assert isinstance(claim, Busy)
        assert 30 < claim.seconds <= 60

    def test_asking_for_a_busy_invocation_does_not_touch_it(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert isinstance(store.claim(self.new_run(store, of=run, lease=-1)), Busy)
        assert isinstance(store.claim(self.new_run(store, of=run)), Busy)
        self.record(store, run, Succeeded(1))
        assert self.stored(store, run) == Stored("SUCCESS", 1)

    def test_a_run_that_claims_again_since_it_heard_no_answer_gets_what_it_has(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        run = self.new_run(store, of=dead)
        assert store.claim(run) == store.claim(run) == Claimed(takeovers=1)
        assert isinstance(store.claim(self.new_run(store, of=dead)), Busy)

    def test_of_runs_that_claim_at_once_one_gets_it(self, store: BaseStore) -> None:
        invocations = [self.new_run(store) for _ in range(ROUNDS)]
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=invocations[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(0)]] * ROUNDS

    def test_when_the_lease_is_over_it_is_taken_over_and_the_death_is_counted(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        second = self.new_run(store, of=run, lease=-1)
        assert store.claim(second) == Claimed(takeovers=1)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=2)
        assert self.status(store, run) == "RUNNING"

    def test_a_takeover_has_a_lease_of_its_own(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        self.claimed_run(store, of=run, lease=60)
        claim = store.claim(self.new_run(store, of=run))
        assert isinstance(claim, Busy)
        assert 30 < claim.seconds <= 60

    def test_of_runs_that_take_over_at_once_one_gets_it(self, store: BaseStore) -> None:
        dead = [self.claimed_run(store, lease=-1) for _ in range(ROUNDS)]
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=dead[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(1)]] * ROUNDS

    def test_a_claim_that_was_given_back_is_taken_at_once_and_counts_no_death(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=900)
        store.release(run)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=0)

    def test_giving_back_does_not_make_earlier_deaths_forgotten(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        second = self.claimed_run(store, of=run)
        store.release(second)
        assert store.claim(self.new_run(store, of=run, lease=-1)) == Claimed(takeovers=1)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=2)

    def test_of_runs_that_claim_what_was_given_back_one_gets_it(self, store: BaseStore) -> None:
        free = [self.claimed_run(store) for _ in range(ROUNDS)]
        for run in free:
            store.release(run)
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=free[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(0)]] * ROUNDS

    def test_of_what_comes_again_nothing_is_suspected_that_nobody_died_with(self, store: BaseStore) -> None:
        running, ended, given_back = (self.claimed_run(store) for _ in range(3))
        self.record(store, ended, Failed(ValueError("ended")))
        store.release(given_back)
        runs = [running, ended, given_back, self.new_run(store)]
        begun = store.begun([run.message_id for run in runs])
        assert begun <= {running.message_id}  # a store need not know of any

    def test_a_run_that_was_taken_over_cannot_give_it_back(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.claimed_run(store, of=dead)
        store.release(dead)
        assert isinstance(store.claim(self.new_run(store, of=dead)), Busy)

    @_each_outcome
    def test_what_has_ended_is_finished_for_good(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store, lease=-1)
        self.record(store, run, outcome)
        assert store.claim(self.new_run(store, of=run)) == Finished(STATUS_OF[type(outcome)])
        store.release(run)
        assert store.claim(self.new_run(store, of=run)) == Finished(STATUS_OF[type(outcome)])

    def test_a_claim_that_is_refused_does_not_spoil_an_open_transaction(self, store: BaseStore) -> None:
        run, other = self.claimed_run(store), self.new_run(store)
        with transaction.atomic(using=store.database):
            assert isinstance(store.claim(self.new_run(store, of=run)), Busy)
            assert store.claim(other) == Claimed(0)
        assert self.status(store, other) == "RUNNING"

    def test_a_clock_of_the_worker_that_is_wrong_ends_no_lease(
        self, store: BaseStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for hours in (-1, 1):
            with monkeypatch.context() as patch:
                run = self.claimed_run(store, lease=60)
                skew(patch, hours * 3600, also=sys.modules[type(store).__module__])
                claim = store.claim(self.new_run(store, of=run))
                assert isinstance(claim, Busy)
                assert 30 < claim.seconds <= 60

    def test_a_clock_of_the_worker_that_is_wrong_prolongs_no_lease(
        self, store: BaseStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for hours in (-1, 1):
            with monkeypatch.context() as patch:
                skew(patch, hours * 3600, also=sys.modules[type(store).__module__])
                dead = self.claimed_run(store, lease=-1)
                assert store.claim(self.new_run(store, of=dead)) == Claimed(1)
                alive = self.claimed_run(store, lease=60)
            claim = store.claim(self.new_run(store, of=alive))
            assert isinstance(claim, Busy)
            assert 30 < claim.seconds <= 60

    # Records

    @_each_outcome
    def test_an_outcome_is_recorded(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.record(store, run, outcome)
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == STATUS_OF[type(outcome)]
        if isinstance(outcome, Succeeded):
            assert (stored.result, stored.traceback) == ({"answer": 42}, None)
        else:
            assert stored.result is None
            assert "ValueError: what the task raised" in (stored.traceback or "")

    def test_success_commits_with_the_transaction(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            assert together(1, lambda _: self.status(store, run)) == ["RUNNING"]
        assert self.stored(store, run) == Stored("SUCCESS", 1)

    def test_success_rolls_back_with_the_transaction(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            transaction.set_rollback(True, using=store.database)
        assert self.stored(store, run) == Stored("RUNNING")
        self.record(store, run, Failed(_ERROR))
        assert self.status(store, run) == "FAILED"

    def test_a_lease_that_is_over_but_was_not_taken_may_still_be_recorded(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        self.record(store, run, Succeeded(1))
        assert self.status(store, run) == "SUCCESS"

    @_each_outcome
    def test_a_run_that_was_taken_over_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        dead = self.claimed_run(store, lease=-1)
        heir = self.claimed_run(store, of=dead)
        with pytest.raises(LeaseLost):
            self.record(store, dead, outcome)
        assert self.stored(store, dead) == Stored("RUNNING")
        self.record(store, heir, Succeeded("the heir's"))
        with pytest.raises(LeaseLost):
            self.record(store, dead, outcome)
        assert self.stored(store, dead) == Stored("SUCCESS", "the heir's")

    @_each_outcome
    def test_a_run_whose_record_was_deleted_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.delete(store, run)
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) is None

    @_each_outcome
    def test_a_run_that_was_given_back_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        store.release(run)
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) == Stored("RUNNING")

    @_each_outcome
    def test_an_outcome_is_never_replaced(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Succeeded("first"))
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) == Stored("SUCCESS", "first")

    def test_success_and_a_takeover_at_once_do_not_both_happen(self, store: BaseStore) -> None:
        late = self.claimed_run(store, lease=-1)
        claim = InThread(lambda: store.claim(self.new_run(store, of=late)))
        with transaction.atomic(using=store.database):
            store.record(late, Succeeded(1))
            claim.start().wait(0.2)  # it has to wait for this transaction, or to be refused
        answer = claim.answer()
        assert isinstance(answer, Busy | Finished), answer
        assert self.stored(store, late) == Stored("SUCCESS", 1)

    # Retries

    def retry_of(self, store: BaseStore, run: Run) -> Run:
        """Return a run of the retry that `run` has sent."""
        retry = self.new_run(store)
        job = run.retry_job(0)
        return replace(retry, message=job.message, message_id=job.message_id, root_id=job.root_id)

    def test_a_retry_ends_the_run_that_has_sent_it_and_died(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        assert store.claim(self.retry_of(store, dead)) == Claimed(takeovers=0)
        assert self.status(store, dead) == "RETRYING"
        assert store.claim(self.new_run(store, of=dead)) == Finished("RETRYING")

    def test_a_retry_ends_whoever_has_taken_that_run_over(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        taken_over = self.claimed_run(store, of=dead)
        assert isinstance(store.claim(self.retry_of(store, dead)), Claimed)
        with pytest.raises(LeaseLost):
            self.record(store, taken_over, Succeeded("twice"))

    @pytest.mark.parametrize("end", [Succeeded(1), Failed(ValueError())], ids=["success", "failure"])
    def test_a_retry_of_what_has_ended_otherwise_since_is_not_run(self, store: BaseStore, end: Outcome) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.record(store, self.claimed_run(store, of=dead), end)
        retry = self.retry_of(store, dead)
        assert store.claim(retry) == Finished(str(self.status(store, dead)))
        assert self.stored(store, retry) is None

    def test_a_retry_that_is_faster_than_the_record_of_it_does_not_lose_the_reason(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert isinstance(store.claim(self.retry_of(store, run)), Claimed)
        self.record(store, run, Retry(ValueError("the reason")))
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == "RETRYING"
        assert "the reason" in (stored.traceback or "")

    def test_a_retry_runs_although_nothing_is_known_of_its_sender(self, store: BaseStore) -> None:
        assert isinstance(store.claim(self.retry_of(store, self.new_run(store))), Claimed)

    # After an accident

    def test_only_a_committed_success_has_succeeded(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert store.has_succeeded(run) is False
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            transaction.set_rollback(True, using=store.database)
        assert store.has_succeeded(run) is False
        self.record(store, run, Succeeded(1))
        assert store.has_succeeded(run) is True

    def test_the_success_of_another_run_is_not_ones_own(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.record(store, self.claimed_run(store, of=dead), Succeeded(1))
        assert store.has_succeeded(dead) is False

    def test_what_failed_or_is_gone_has_not_succeeded(self, store: BaseStore) -> None:
        failed, gone = self.claimed_run(store), self.claimed_run(store)
        self.record(store, failed, Failed(_ERROR))
        self.delete(store, gone)
        assert store.has_succeeded(failed) is False
        assert store.has_succeeded(gone) is False

    def test_whether_it_has_succeeded_is_answered_after_a_commit_under_way(self, store: BaseStore) -> None:
        if not self.waits_for_commit:
            pytest.skip("no connection to this store can be lost during COMMIT")
        run = self.claimed_run(store)
        question = InThread(lambda: store.has_succeeded(run))
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            question.start().wait(0.2)  # who answers before the COMMIT answers wrongly
        assert question.answer() is True

    # What is hard to store

    @pytest.mark.parametrize("name", STORABLE)
    def test_a_result_comes_back_as_its_json(self, store: BaseStore, name: str) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Succeeded(STORABLE[name]))
        stored = self.stored(store, run)
        assert stored is not None
        assert json.dumps(stored.result, sort_keys=True) == json.dumps(json_result(STORABLE[name]), sort_keys=True)

    @pytest.mark.parametrize("name", UNSTORABLE)
    def test_a_result_that_cannot_be_stored_is_refused(self, store: BaseStore, name: str) -> None:
        run = self.claimed_run(store)
        with pytest.raises(ResultNotSerializable):
            self.record(store, run, Succeeded(UNSTORABLE[name]))
        assert self.stored(store, run) == Stored("RUNNING")
        self.record(store, run, Failed(ResultNotSerializable("…")))
        assert self.status(store, run) == "FAILED"

    @pytest.mark.parametrize("depth", [30, 100])
    def test_a_deep_result_is_stored_or_refused(self, store: BaseStore, depth: int) -> None:
        run = self.claimed_run(store)
        try:
            self.record(store, run, Succeeded(nested(depth)))
        except ResultNotSerializable:
            assert self.stored(store, run) == Stored("RUNNING")
        else:
            assert self.stored(store, run) == Stored("SUCCESS", nested(depth))

    @pytest.mark.parametrize("name", AWKWARD_ERRORS)
    def test_any_error_leaves_a_traceback(self, store: BaseStore, name: str) -> None:
        error = AWKWARD_ERRORS[name]
        run = self.claimed_run(store)
        self.record(store, run, Failed(error))
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == "FAILED"
        assert type(error).__name__ in (stored.traceback or "")
        assert len(stored.traceback or "") < 1_000_000

    @pytest.mark.parametrize("kind", [Ignored, Retry, Failed])
    def test_a_traceback_quotes_no_sensitive_argument(self, store: BaseStore, kind: type[Ignored | Failed]) -> None:
        run = self.new_run(store, kwargs={"token": "hunter2"})
        run.task, run.arguments = confidential, {"token": "hunter2"}
        store.claim(run)
        self.record(store, run, kind(ValueError("hunter2 is no token")))
        assert "hunter2" not in repr(self.stored(store, run))
        assert "is no token" in repr(self.stored(store, run))
