"""The contract of stores."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Final

import pytest
from django.db import transaction

from lambda_tasks.exceptions import LeaseLost, ResultNotSerializable, RetryLater
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.results import json_result
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.testing.contracts.cancelled import CancelledInvocations
from lambda_tasks.testing.contracts.crowd import ROUNDS, InThread, confidential, crowd, skew, together, winners
from lambda_tasks.testing.contracts.followed import FollowedInvocations
from lambda_tasks.testing.contracts.forged import ForgedMessages
from lambda_tasks.testing.contracts.keyed import KeyedInvocations
from lambda_tasks.testing.contracts.samples import AWKWARD_ERRORS, STORABLE, UNSTORABLE, nested
from lambda_tasks.testing.contracts.store_kit import Stored

_ERROR: Final = ValueError("what the task raised")
OUTCOMES: Final[Sequence[Outcome]] = (Succeeded({"answer": 42}), Ignored(_ERROR), Retry(_ERROR, 5), Failed(_ERROR))
STATUS_OF: Final[Mapping[type, str]] = {
    Succeeded: "SUCCESS",
    Ignored: "SUCCESS",
    Retry: "RETRYING",
    Failed: "FAILED",
}

_each_outcome = pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)


class StoreContract(CancelledInvocations, FollowedInvocations, ForgedMessages, KeyedInvocations):
    """Tests that every store of records must pass. Override `store`, `stored` and `delete`.

    The tests commit. With pytest-django, mark the subclass with `django_db(transaction=True)` and all its `databases`.
    To avoid waiting for the end of a lease, the tests request leases that have already expired, so `claim()` must
    accept a negative lease.
    """

    #: Whether `has_succeeded()` waits for a COMMIT in progress. Not needed if no connection can be lost.
    waits_for_commit: ClassVar[bool] = True

    # Claims

    def test_new_invocation_is_claimed(self, store: BaseStore) -> None:
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

    def test_running_invocation_is_busy_until_its_lease_expires(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=60)
        claim = store.claim(self.new_run(store, of=run, lease=900))
        assert isinstance(claim, Busy)
        assert 30 < claim.seconds <= 60

    def test_refused_claim_does_not_change_a_running_invocation(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert isinstance(store.claim(self.new_run(store, of=run, lease=-1)), Busy)
        assert isinstance(store.claim(self.new_run(store, of=run)), Busy)
        self.record(store, run, Succeeded(1))
        assert self.stored(store, run) == Stored("SUCCESS", 1)

    def test_repeated_claim_of_one_run_returns_its_claim(self, store: BaseStore) -> None:
        """A run claims again if the answer to its first claim is lost."""
        dead = self.claimed_run(store, lease=-1)
        run = self.new_run(store, of=dead)
        assert store.claim(run) == store.claim(run) == Claimed(takeovers=1)
        assert isinstance(store.claim(self.new_run(store, of=dead)), Busy)

    def test_one_of_many_simultaneous_claims_succeeds(self, store: BaseStore) -> None:
        invocations = [self.new_run(store) for _ in range(ROUNDS)]
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=invocations[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(0)]] * ROUNDS

    def test_expired_lease_is_taken_over_and_counted(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        second = self.new_run(store, of=run, lease=-1)
        assert store.claim(second) == Claimed(takeovers=1)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=2)
        assert self.status(store, run) == "RUNNING"

    def test_takeover_has_its_own_lease(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        self.claimed_run(store, of=run, lease=60)
        claim = store.claim(self.new_run(store, of=run))
        assert isinstance(claim, Busy)
        assert 30 < claim.seconds <= 60

    def test_one_of_many_simultaneous_takeovers_succeeds(self, store: BaseStore) -> None:
        dead = [self.claimed_run(store, lease=-1) for _ in range(ROUNDS)]
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=dead[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(1)]] * ROUNDS

    def test_released_claim_is_free_and_counts_no_takeover(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=900)
        store.release(run)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=0)

    def test_release_keeps_the_count_of_takeovers(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        second = self.claimed_run(store, of=run)
        store.release(second)
        assert store.claim(self.new_run(store, of=run, lease=-1)) == Claimed(takeovers=1)
        assert store.claim(self.new_run(store, of=run)) == Claimed(takeovers=2)

    def test_claim_released_after_a_crash_is_free(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        store.release_crashed(run)
        # A store need not implement the method, and then does not count the crash.
        assert store.claim(self.new_run(store, of=run)) in (Claimed(takeovers=1), Claimed(takeovers=0))

    def test_overtaken_run_cannot_count_a_crash(self, store: BaseStore) -> None:
        run = self.claimed_run(store, lease=-1)
        successor = self.claimed_run(store, of=run)
        store.release_crashed(run)
        assert store.claim(successor) == Claimed(takeovers=1)
        assert isinstance(store.claim(self.new_run(store, of=run)), Busy)

    def test_one_of_many_claims_on_released_invocation_succeeds(self, store: BaseStore) -> None:
        free = [self.claimed_run(store) for _ in range(ROUNDS)]
        for run in free:
            store.release(run)
        claims = crowd(lambda round_, _: store.claim(self.new_run(store, of=free[round_])))
        assert [winners(answers) for answers in claims] == [[Claimed(0)]] * ROUNDS

    def test_only_an_unended_claim_counts_as_begun(self, store: BaseStore) -> None:
        """`begun()` may leave out any invocation, but must not name one that was released, has ended or is new."""
        running, ended, given_back = (self.claimed_run(store) for _ in range(3))
        self.record(store, ended, Failed(ValueError("ended")))
        store.release(given_back)
        runs = [running, ended, given_back, self.new_run(store)]
        begun = store.begun([run.message_id for run in runs])
        assert begun <= {running.message_id}  # a store may also return an empty set

    def test_overtaken_run_cannot_release_the_claim(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.claimed_run(store, of=dead)
        store.release(dead)
        assert isinstance(store.claim(self.new_run(store, of=dead)), Busy)

    @_each_outcome
    def test_ended_invocation_stays_finished(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store, lease=-1)
        self.record(store, run, outcome)
        assert store.claim(self.new_run(store, of=run)) == Finished(STATUS_OF[type(outcome)])
        store.release(run)
        assert store.claim(self.new_run(store, of=run)) == Finished(STATUS_OF[type(outcome)])

    def test_refused_claim_does_not_break_an_open_transaction(self, store: BaseStore) -> None:
        run, other = self.claimed_run(store), self.new_run(store)
        with transaction.atomic(using=store.database):
            assert isinstance(store.claim(self.new_run(store, of=run)), Busy)
            assert store.claim(other) == Claimed(0)
        assert self.status(store, other) == "RUNNING"

    def test_wrong_worker_clock_ends_no_lease(self, store: BaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
        for hours in (-1, 1):
            with monkeypatch.context() as patch:
                run = self.claimed_run(store, lease=60)
                skew(patch, hours * 3600, also=sys.modules[type(store).__module__])
                claim = store.claim(self.new_run(store, of=run))
                assert isinstance(claim, Busy)
                assert 30 < claim.seconds <= 60

    def test_wrong_worker_clock_prolongs_no_lease(self, store: BaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
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
    def test_outcome_is_recorded(self, store: BaseStore, outcome: Outcome) -> None:
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

    def test_requested_retry_keeps_its_reason(self, store: BaseStore) -> None:
        """The task has not failed, so its record shows why it asked: see `Run.retry_text()`."""
        run = self.claimed_run(store)
        self.record(store, run, Retry(RetryLater(delay=5, reason="the report is not ready"), 5))
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == "RETRYING"
        assert "the report is not ready" in (stored.traceback or "")

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

    def test_run_with_an_expired_lease_records_its_outcome(self, store: BaseStore) -> None:
        """Unless another run has taken it over."""
        run = self.claimed_run(store, lease=-1)
        self.record(store, run, Succeeded(1))
        assert self.status(store, run) == "SUCCESS"

    @_each_outcome
    def test_overtaken_run_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
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
    def test_run_with_a_deleted_record_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.delete(store, run)
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) is None

    @_each_outcome
    def test_released_run_records_nothing(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        store.release(run)
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) == Stored("RUNNING")

    @_each_outcome
    def test_outcome_is_never_replaced(self, store: BaseStore, outcome: Outcome) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Succeeded("first"))
        with pytest.raises(LeaseLost):
            self.record(store, run, outcome)
        assert self.stored(store, run) == Stored("SUCCESS", "first")

    def test_success_is_recorded_with_its_commit(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        with transaction.atomic(using=store.database):
            if not store.record_and_commit(run, Succeeded({"answer": 42})):
                pytest.skip("this store records and commits in two requests")
            # The block ends after the COMMIT, and another connection sees its work before.
            assert together(1, lambda _: self.stored(store, run)) == [Stored("SUCCESS", {"answer": 42})]
        assert store.has_succeeded(run)

    def test_overtaken_run_does_not_commit(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.claimed_run(store, of=dead)
        with pytest.raises(LeaseLost), transaction.atomic(using=store.database):
            if not store.record_and_commit(dead, Succeeded(1)):
                pytest.skip("this store records and commits in two requests")
        assert self.stored(store, dead) == Stored("RUNNING")

    def test_success_and_a_takeover_exclude_each_other(self, store: BaseStore) -> None:
        late = self.claimed_run(store, lease=-1)
        claim = InThread(lambda: store.claim(self.new_run(store, of=late)))
        with transaction.atomic(using=store.database):
            store.record(late, Succeeded(1))
            claim.start().wait(0.2)  # the claim must wait for this transaction, or be rejected
        answer = claim.answer()
        assert isinstance(answer, Busy | Finished), answer
        assert self.stored(store, late) == Stored("SUCCESS", 1)

    # Retries

    def test_retry_ends_the_dead_run_that_sent_it(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        assert store.claim(self.retry_of(store, dead)) == Claimed(takeovers=0)
        assert self.status(store, dead) == "RETRYING"
        assert store.claim(self.new_run(store, of=dead)) == Finished("RETRYING")

    def test_retry_ends_the_takeover_of_its_sender(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        taken_over = self.claimed_run(store, of=dead)
        assert isinstance(store.claim(self.retry_of(store, dead)), Claimed)
        with pytest.raises(LeaseLost):
            self.record(store, taken_over, Succeeded("twice"))

    @pytest.mark.parametrize("end", [Succeeded(1), Failed(ValueError())], ids=["success", "failure"])
    def test_retry_of_an_ended_invocation_is_not_run(self, store: BaseStore, end: Outcome) -> None:
        """The sender died, and its takeover has succeeded or failed."""
        dead = self.claimed_run(store, lease=-1)
        self.record(store, self.claimed_run(store, of=dead), end)
        retry = self.retry_of(store, dead)
        assert store.claim(retry) == Finished(str(self.status(store, dead)))
        assert self.stored(store, retry) is None

    def test_early_retry_keeps_its_senders_reason(self, store: BaseStore) -> None:
        """The retry is claimed before its sender has recorded why it is retried."""
        run = self.claimed_run(store)
        assert isinstance(store.claim(self.retry_of(store, run)), Claimed)
        self.record(store, run, Retry(ValueError("the reason")))
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == "RETRYING"
        assert "the reason" in (stored.traceback or "")

    def test_retry_of_an_unknown_sender_runs(self, store: BaseStore) -> None:
        assert isinstance(store.claim(self.retry_of(store, self.new_run(store))), Claimed)

    # After a lost connection

    def test_only_a_committed_success_counts(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert store.has_succeeded(run) is False
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            transaction.set_rollback(True, using=store.database)
        assert store.has_succeeded(run) is False
        self.record(store, run, Succeeded(1))
        assert store.has_succeeded(run) is True

    def test_another_runs_success_does_not_count(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        self.record(store, self.claimed_run(store, of=dead), Succeeded(1))
        assert store.has_succeeded(dead) is False

    def test_failed_and_deleted_runs_have_not_succeeded(self, store: BaseStore) -> None:
        failed, gone = self.claimed_run(store), self.claimed_run(store)
        self.record(store, failed, Failed(_ERROR))
        self.delete(store, gone)
        assert store.has_succeeded(failed) is False
        assert store.has_succeeded(gone) is False

    def test_has_succeeded_waits_for_a_commit_under_way(self, store: BaseStore) -> None:
        if not self.waits_for_commit:
            pytest.skip("no connection to this store can be lost during COMMIT")
        run = self.claimed_run(store)
        question = InThread(lambda: store.has_succeeded(run))
        with transaction.atomic(using=store.database):
            store.record(run, Succeeded(1))
            question.start().wait(0.2)  # an answer before the COMMIT would be wrong
        assert question.answer() is True

    # Values that are hard to store

    @pytest.mark.parametrize("name", STORABLE)
    def test_stored_result_equals_its_json(self, store: BaseStore, name: str) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Succeeded(STORABLE[name]))
        stored = self.stored(store, run)
        assert stored is not None
        assert json.dumps(stored.result, sort_keys=True) == json.dumps(json_result(STORABLE[name]), sort_keys=True)

    @pytest.mark.parametrize("name", UNSTORABLE)
    def test_unstorable_result_is_refused(self, store: BaseStore, name: str) -> None:
        run = self.claimed_run(store)
        with pytest.raises(ResultNotSerializable):
            self.record(store, run, Succeeded(UNSTORABLE[name]))
        assert self.stored(store, run) == Stored("RUNNING")
        self.record(store, run, Failed(ResultNotSerializable("…")))
        assert self.status(store, run) == "FAILED"

    @pytest.mark.parametrize("depth", [30, 100])
    def test_deeply_nested_result_is_stored_or_refused(self, store: BaseStore, depth: int) -> None:
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
    def test_traceback_quotes_no_sensitive_argument(self, store: BaseStore, kind: type[Ignored | Failed]) -> None:
        run = self.new_run(store, kwargs={"token": "hunter2"})
        run = replace(run, task=confidential, arguments={"token": "hunter2"})
        store.claim(run)
        self.record(store, run, kind(ValueError("hunter2 is not a token")))
        assert "hunter2" not in repr(self.stored(store, run))
        assert "is not a token" in repr(self.stored(store, run))
