"""The part of the contract of stores that tasks with a lock or a unique key need."""

from __future__ import annotations

from dataclasses import replace

import pytest
from django.db import transaction

from lambda_tasks.exceptions import LeaseLost
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Mismatch, Retry, Succeeded
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.testing.contracts.crowd import ROUNDS, crowd, example, renamed, together, winners
from lambda_tasks.testing.contracts.store_kit import Stored, StoreKit
from lambda_tasks.wire.invocation import Invocation

_ERROR = ValueError("what the task raised")


class KeyedInvocations(StoreKit):
    """Tests of invocations that wait for a lock, that are replaced, and of the progress of a chain."""

    @pytest.fixture
    def waiting_store(self, store: BaseStore) -> BaseStore:
        if not store.waits:
            pytest.skip("this store does not implement wait()")
        return store

    def test_waiting_invocation_is_free_and_counts_no_takeover(self, waiting_store: BaseStore) -> None:
        run = self.claimed_run(waiting_store, lease=900)
        waiting_store.wait(run, seconds=300)
        claim = waiting_store.claim(self.new_run(waiting_store, of=run))
        assert isinstance(claim, Claimed)
        assert claim.takeovers == 0
        assert claim.waited >= 0
        assert self.stored(waiting_store, run) == Stored("RUNNING")

    def test_new_invocation_has_not_waited(self, waiting_store: BaseStore) -> None:
        assert waiting_store.claim(self.new_run(waiting_store)) == Claimed(takeovers=0, waited=0)

    def test_wait_counts_from_the_first_wait(self, waiting_store: BaseStore) -> None:
        first = run = self.claimed_run(waiting_store)
        waited = []
        for _ in range(3):
            waiting_store.wait(run, seconds=1)
            run = self.new_run(waiting_store, of=first)
            claim = waiting_store.claim(run)
            assert isinstance(claim, Claimed)
            waited.append(claim.waited)
        assert waited == sorted(waited)

    def test_overtaken_run_cannot_wait(self, waiting_store: BaseStore) -> None:
        dead = self.claimed_run(waiting_store, lease=-1)
        self.claimed_run(waiting_store, of=dead)
        with pytest.raises(LeaseLost):
            waiting_store.wait(dead, seconds=1)
        assert isinstance(waiting_store.claim(self.new_run(waiting_store, of=dead)), Busy)

    def test_wait_rolls_back_with_its_transaction(self, waiting_store: BaseStore) -> None:
        run = self.claimed_run(waiting_store)
        with transaction.atomic(using=waiting_store.database):
            waiting_store.wait(run, seconds=1)
            transaction.set_rollback(True, using=waiting_store.database)
        assert isinstance(waiting_store.claim(self.new_run(waiting_store, of=run)), Busy)

    def test_one_of_many_claims_on_waiting_invocation_succeeds(self, waiting_store: BaseStore) -> None:
        waiting = [self.claimed_run(waiting_store) for _ in range(ROUNDS)]
        for run in waiting:
            waiting_store.wait(run, seconds=300)
        claims = crowd(lambda round_, _: waiting_store.claim(self.new_run(waiting_store, of=waiting[round_])))
        assert [len(winners(answers)) for answers in claims] == [1] * ROUNDS

    def test_waiting_invocation_is_not_lost(self, waiting_store: BaseStore) -> None:
        run = self.claimed_run(waiting_store)
        waiting_store.wait(run, seconds=300)
        assert waiting_store.lost(older_than=0, limit=10) == []

    def test_waiting_invocation_is_lost_after_its_time(self, waiting_store: BaseStore) -> None:
        """No takeover is counted, because no worker has died."""
        run = self.claimed_run(waiting_store)
        waiting_store.wait(run, seconds=-60)
        with transaction.atomic(using=waiting_store.database):
            for lost in waiting_store.lost(older_than=30, limit=10):  # a store may not find lost invocations
                assert lost.waited is not None
                assert waiting_store.offer(lost, older_than=30)
        claim = waiting_store.claim(self.new_run(waiting_store, of=run))
        assert isinstance(claim, Claimed)
        assert claim.takeovers == 0

    def test_replaced_invocation_is_finished(self, store: BaseStore) -> None:
        """Its arguments need not be recorded."""
        run = self.new_run(store, kwargs={"number": 1})
        if not store.replace(run.message_id, task_name=example.name, queue="default"):
            pytest.skip("this store does not implement replace()")
        assert store.claim(run) == Finished("SUCCESS")
        assert self.status(store, run) == "SUCCESS"

    def test_replaced_id_is_a_mismatch_for_another_task(self, store: BaseStore) -> None:
        run = self.new_run(store, kwargs={"number": 1})
        if not store.replace(run.message_id, task_name=example.name, queue="default"):
            pytest.skip("this store does not implement replace()")
        forged = replace(run, task=renamed, message=Invocation(renamed.name, run.message.kwargs))
        assert isinstance(store.claim(forged), Mismatch)
        assert store.claim(run) == Finished("SUCCESS")

    def test_claimed_invocation_is_not_replaced(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        assert store.replace(run.message_id, task_name=example.name, queue="default") is False
        self.record(store, run, Succeeded(1))
        assert store.replace(run.message_id, task_name=example.name, queue="default") is False
        assert self.stored(store, run) == Stored("SUCCESS", 1)

    def test_refused_replacement_leaves_its_transaction_usable(self, store: BaseStore) -> None:
        run = self.claimed_run(store)
        with transaction.atomic(using=store.database):
            store.replace(run.message_id, task_name=example.name, queue="default")
            store.record(run, Succeeded(1))
        assert self.status(store, run) == "SUCCESS"

    def test_claim_or_replacement_wins(self, store: BaseStore) -> None:
        for _ in range(ROUNDS):
            run = self.new_run(store)

            def race(number: int, run: object = run) -> object:
                if number:
                    return store.replace(run.message_id, task_name=example.name, queue="default")  # type: ignore[attr-defined]
                return store.claim(run)  # type: ignore[arg-type]

            claim, replaced = together(2, race)
            assert isinstance(claim, Claimed) is not replaced

    def test_progress_is_that_of_the_newest_invocation(self, store: BaseStore) -> None:
        run = self.new_run(store)
        assert store.progress(run.root_id) is None
        run = self.claimed_run(store, of=run)
        if store.progress(run.root_id) is None:
            pytest.skip("this store implements neither progress() nor status()")
        for status, outcome in (("RETRYING", Retry(_ERROR)), ("FAILED", Failed(_ERROR))):
            progress = store.progress(run.root_id)
            assert progress is not None
            assert progress.status in ("RUNNING", "RETRYING")
            self.record(store, run, outcome)
            progress = store.progress(run.root_id)
            assert progress is not None
            # A store may know only the first invocation.
            assert progress.status in (status, "RETRYING")
            if status == "RETRYING":
                run = self.retry_of(store, run)
                store.claim(run)
