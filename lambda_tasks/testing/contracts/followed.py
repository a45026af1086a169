"""The part of the store contract about results and progress. Stores that do not implement them skip it."""

from __future__ import annotations

import pytest
from django.db import transaction

from lambda_tasks.jobs import Job, Run
from lambda_tasks.outcomes import Failed, Finished, Ignored, Latest, ReportedProgress, Retry, Succeeded
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.testing.contracts.store_kit import Stored, StoreKit

_ERROR = ValueError("what the task raised")


class FollowedInvocations(StoreKit):
    """Tests of `latest()`, `refuse()`, `write_progress()` and `read_progress()`."""

    @pytest.fixture
    def result_store(self, store: BaseStore) -> BaseStore:
        if type(store).latest is BaseStore.latest:
            pytest.skip("this store does not implement latest()")
        return store

    @pytest.fixture
    def progress_store(self, store: BaseStore) -> BaseStore:
        if not store.keeps_progress:
            pytest.skip("this store does not implement write_progress()")
        return store

    @pytest.fixture
    def refusing_store(self, store: BaseStore) -> BaseStore:
        if type(store).refuse is BaseStore.refuse:
            pytest.skip("this store does not implement refuse()")
        return store

    def latest(self, store: BaseStore, message_id: str) -> Latest:
        found = store.latest(message_id)
        assert found is not None
        return found

    def test_invocation_without_a_record_has_no_latest(self, result_store: BaseStore) -> None:
        assert result_store.latest(self.new_run(result_store).message_id) is None

    def test_latest_has_the_result(self, result_store: BaseStore) -> None:
        run = self.claimed_run(result_store)
        assert self.latest(result_store, run.message_id).status == "RUNNING"
        self.record(result_store, run, Succeeded({"answer": [42]}))
        found = self.latest(result_store, run.message_id)
        assert (found.message_id, found.root_id) == (run.message_id, run.root_id)
        assert (found.status, found.result, found.reason) == ("SUCCESS", {"answer": [42]}, "")

    def test_latest_has_the_traceback(self, result_store: BaseStore) -> None:
        run = self.claimed_run(result_store)
        self.record(result_store, run, Failed(_ERROR))
        found = self.latest(result_store, run.message_id)
        assert found.status == "FAILED"
        assert "what the task raised" in found.traceback

    def test_latest_names_the_reason_of_an_ignored_error(self, result_store: BaseStore) -> None:
        """Otherwise its missing result would be read as the task's return type."""
        run = self.claimed_run(result_store)
        self.record(result_store, run, Ignored(_ERROR))
        found = self.latest(result_store, run.message_id)
        assert (found.status, found.result) == ("SUCCESS", None)
        assert found.reason

    def test_latest_is_the_newest_retry(self, result_store: BaseStore) -> None:
        run = self.claimed_run(result_store)
        self.record(result_store, run, Retry(_ERROR, 5))
        assert self.latest(result_store, run.root_id).status == "RETRYING"
        retry = self.retry_of(result_store, run)
        result_store.claim(retry)
        assert self.latest(result_store, run.root_id).message_id == retry.message_id
        self.record(result_store, retry, Succeeded(1))
        assert self.latest(result_store, run.root_id).result == 1

    def test_latest_of_a_retry_names_its_root(self, result_store: BaseStore) -> None:
        run = self.claimed_run(result_store)
        self.record(result_store, run, Retry(_ERROR, 5))
        retry = self.retry_of(result_store, run)
        result_store.claim(retry)
        assert self.latest(result_store, retry.message_id).root_id == run.message_id

    def test_progress_is_the_last_report(self, progress_store: BaseStore) -> None:
        run = self.claimed_run(progress_store)
        assert progress_store.read_progress(run.root_id) is None
        for progress in (ReportedProgress(0), ReportedProgress(1, 2, "ü"), ReportedProgress(2**63 - 1, 2**63 - 1)):
            assert progress_store.write_progress(run, progress)
            found = progress_store.read_progress(run.root_id)
            assert found == progress
            assert found.updated is not None

    def test_progress_of_a_retry_starts_again(self, progress_store: BaseStore) -> None:
        run = self.claimed_run(progress_store)
        assert progress_store.write_progress(run, ReportedProgress(9, 10))
        self.record(progress_store, run, Retry(_ERROR, 5))
        retry = self.retry_of(progress_store, run)
        progress_store.claim(retry)
        assert progress_store.read_progress(run.root_id) is None
        assert progress_store.write_progress(retry, ReportedProgress(1, 10))
        assert progress_store.read_progress(run.root_id) == ReportedProgress(1, 10)

    def test_run_without_its_claim_writes_no_progress(self, progress_store: BaseStore) -> None:
        dead = self.claimed_run(progress_store, lease=-1)
        heir = self.claimed_run(progress_store, of=dead)
        released, ended = self.claimed_run(progress_store), self.claimed_run(progress_store)
        assert progress_store.write_progress(heir, ReportedProgress(1))
        progress_store.release(released)
        self.record(progress_store, ended, Succeeded(1))
        never: Run = self.new_run(progress_store)
        for run in (dead, released, ended, never):
            assert not progress_store.write_progress(run, ReportedProgress(2))
        assert progress_store.read_progress(heir.root_id) == ReportedProgress(1)
        assert progress_store.read_progress(ended.root_id) is None

    def test_refused_invocation_has_failed(self, refusing_store: BaseStore) -> None:
        run = self.new_run(refusing_store)
        refusing_store.refuse(self.job_of(run), _ERROR)
        stored = self.stored(refusing_store, run)
        assert stored is not None
        assert stored.status == "FAILED"
        assert "what the task raised" in (stored.traceback or "")
        assert refusing_store.claim(run) == Finished("FAILED")

    def test_refusal_changes_no_record(self, refusing_store: BaseStore) -> None:
        run = self.claimed_run(refusing_store)
        with transaction.atomic(using=refusing_store.database):
            refusing_store.refuse(self.job_of(run), _ERROR)
        assert self.stored(refusing_store, run) == Stored("RUNNING")
        self.record(refusing_store, run, Succeeded(1))
        refusing_store.refuse(self.job_of(run), _ERROR)
        assert self.stored(refusing_store, run) == Stored("SUCCESS", 1)

    def job_of(self, run: Run) -> Job:
        """Return a job that sends the invocation of `run`."""
        return Job(run.message, run.message_id, root_id=run.root_id, task=run.task)
