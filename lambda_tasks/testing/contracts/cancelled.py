"""The part of the store contract about cancelled invocations. Stores that do not override `cancel()` skip it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from django.db import transaction

from lambda_tasks.jobs import Job, Run
from lambda_tasks.outcomes import (
    Cancellation,
    Claimed,
    Failed,
    Finished,
    Mismatch,
    Prevented,
    Requested,
    Retry,
    Succeeded,
    TooLate,
)
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.testing.contracts.crowd import ROUNDS, confidential, crowd, renamed
from lambda_tasks.testing.contracts.store_kit import StoreKit
from lambda_tasks.wire.invocation import Invocation

_ERROR = ValueError("what the task raised")


class Undone(Exception):
    """Roll the transaction back."""


class CancelledInvocations(StoreKit):
    """Tests of `cancel()`, which must never lose the race with a claim half-way."""

    @pytest.fixture(autouse=True)
    def _only_if_implemented(self, request: pytest.FixtureRequest) -> None:
        of_cancelling = request.node.name.startswith("test_cancel")
        if of_cancelling and type(request.getfixturevalue("store")).cancel is BaseStore.cancel:
            pytest.skip("The store does not implement cancel().")

    def cancel(self, store: BaseStore, run: Run) -> Cancellation:
        return store.cancel(run.root_id, None)

    def test_cancelled_invocation_never_starts(self, store: BaseStore) -> None:
        run = self.new_run(store)
        assert self.cancel(store, run) == Prevented(run.message_id)
        assert store.claim(run) == store.claim(self.new_run(store, of=run)) == Finished("FAILED")
        assert self.cancel(store, run) == TooLate()
        stored = self.stored(store, run)
        assert stored is not None
        assert stored.status == "FAILED"
        assert "cancelled" in (stored.traceback or "")

    def test_cancelled_message_in_the_outbox_never_starts(self, store: BaseStore) -> None:
        run = self.new_run(store, kwargs={"number": 7})
        waiting = Job(run.message, run.message_id, root_id=run.root_id, task=run.task)
        assert store.cancel(run.message_id, waiting) == Prevented(run.message_id)
        assert store.claim(run) == Finished("FAILED")

    def test_cancelled_message_of_an_unknown_task_never_starts(self, store: BaseStore) -> None:
        """The record may lack the arguments, since it is unknown which of them are sensitive."""
        run = self.new_run(store, kwargs={"number": 7})
        waiting = Job(run.message, run.message_id, root_id=run.root_id)
        assert store.cancel(run.message_id, waiting) == Prevented(run.message_id)
        assert store.claim(run) == Finished("FAILED")

    def test_cancelled_id_is_a_mismatch_for_another_task(self, store: BaseStore) -> None:
        run = self.new_run(store, kwargs={"number": 7})
        waiting = Job(run.message, run.message_id, root_id=run.root_id, task=run.task)
        assert store.cancel(run.message_id, waiting) == Prevented(run.message_id)
        forged = replace(run, task=renamed, message=Invocation(renamed.name, run.message.kwargs))
        assert isinstance(store.claim(forged), Mismatch)
        assert store.claim(run) == Finished("FAILED")

    def test_cancelling_stores_no_sensitive_argument(self, store: BaseStore) -> None:
        run = self.new_run(store)
        message = confidential.serialize(token="the secret of this test")["message"]
        waiting = Job(type(run.message)(**message), run.message_id, root_id=run.root_id, task=confidential)
        assert store.cancel(run.message_id, waiting) == Prevented(run.message_id)
        assert "secret" not in str(self.stored(store, run))

    def test_cancelling_rolls_back_with_the_transaction(self, store: BaseStore) -> None:
        run = self.new_run(store)
        with pytest.raises(Undone), transaction.atomic(using=store.database):
            assert self.cancel(store, run) == Prevented(run.message_id)
            raise Undone
        assert store.claim(run) == Claimed()

    def test_cancelling_too_late_does_not_break_the_transaction(self, store: BaseStore) -> None:
        ended, running = self.claimed_run(store), self.claimed_run(store)
        self.record(store, ended, Succeeded(1))
        with transaction.atomic(using=store.database):
            assert self.cancel(store, ended) == TooLate()
            assert self.cancel(store, running) == Requested()
        assert self.status(store, ended) == "SUCCESS"
        assert store.cancel_requested(running)

    def test_cancelled_running_invocation_may_still_succeed(self, store: BaseStore) -> None:
        run, other = self.claimed_run(store), self.claimed_run(store)
        assert not store.cancel_requested(run)
        assert self.cancel(store, run) == self.cancel(store, run) == Requested()
        assert store.cancel_requested(run)
        assert not store.cancel_requested(other)
        self.record(store, run, Succeeded(1))
        assert self.status(store, run) == "SUCCESS"

    def test_cancelling_reaches_a_takeover(self, store: BaseStore) -> None:
        dead = self.claimed_run(store, lease=-1)
        assert self.cancel(store, dead) == Requested()
        assert store.cancel_requested(self.claimed_run(store, of=dead))

    def test_cancelling_finds_a_released_claim(self, store: BaseStore) -> None:
        """An invocation that no worker holds ends immediately, or is not new to its next run."""
        run = self.claimed_run(store)
        store.release(run)
        answer = self.cancel(store, run)
        claim = store.claim(self.new_run(store, of=run))
        if answer == Prevented(run.message_id):
            assert claim == Finished("FAILED")
            return
        assert answer == Requested()
        assert isinstance(claim, Claimed)
        assert not claim.first

    def test_cancelled_waiting_retry_never_starts(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Retry(_ERROR, 5))
        assert self.cancel(store, run) == Prevented(self.retry_of(store, run).message_id)
        assert store.claim(self.retry_of(store, run)) == Finished("FAILED")
        assert self.status(store, run) == "RETRYING"
        assert self.cancel(store, run) == TooLate()

    def test_cancelling_reaches_a_running_retry(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Retry(_ERROR, 5))
        retry = self.retry_of(store, run)
        assert store.claim(retry) == Claimed()
        assert store.cancel(retry.message_id, None) == Requested()
        assert store.cancel_requested(retry)

    def test_cancelling_an_ended_chain_is_too_late(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        self.record(store, run, Retry(_ERROR, 5))
        retry = self.retry_of(store, run)
        assert store.claim(retry) == Claimed()
        self.record(store, retry, Failed(_ERROR))
        assert self.cancel(store, run) == TooLate()

    def test_cancelling_and_claiming_exclude_each_other(self, store: BaseStore) -> None:
        runs = [self.new_run(store) for _ in range(ROUNDS)]

        def take_part(round_: int, number: int) -> object:
            run = runs[round_]
            return self.cancel(store, run) if number % 2 else store.claim(self.new_run(store, of=run))

        for answers in crowd(take_part):
            claimed = sum(isinstance(answer, Claimed) for answer in answers)
            prevented = sum(isinstance(answer, Prevented) for answer in answers)
            assert claimed + prevented == 1
            assert answers.count(Requested()) == (0 if prevented else len(answers) // 2)
