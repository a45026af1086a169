"""The part of the store contract about messages with the id of another invocation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest

from lambda_tasks.definition.task import Task
from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Mismatch, Succeeded
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.testing.contracts.crowd import OLD_NAME, confidential, example, renamed
from lambda_tasks.testing.contracts.store_kit import Stored, StoreKit
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

_RENAMED: Final = renamed.name

#: Changes that turn the message of a run into a different message, which must not have the same id.
CHANGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "another task": {"task_name": _RENAMED},
    "another argument": {"kwargs": {"number": 8}},
    "additional argument": {"kwargs": {"number": 1, "text": "more"}},
    "missing argument": {"kwargs": {}},
    "another type": {"kwargs": {"number": True}},
    "another retry": {"n_retries": 1},
}
#: Arguments that some databases return with another type or in another order.
AWKWARD: Final[Mapping[str, Any]] = {
    "number": 7,
    "floats": [1.0, 0.1, 1e22, 1e-300, 1.7976931348623157e308, -0.0],
    "integers": [2**53 + 1, 2**63 - 1, 2**70, -(10**25)],
    "object": {"z": None, "a": [True, False, {"ä": "\U0001f600"}], "": ""},
}

_each_change = pytest.mark.parametrize("change", CHANGES)


class ForgedMessages(StoreKit):
    """Tests for messages that claim to be other invocations, or retries of them."""

    def run_of(
        self,
        store: BaseStore,
        task: Task,
        *,
        of: Run | None = None,
        lease: float = 60,
        **body: Any,
    ) -> Run:
        """Return a run of `task`, for the invocation `of` if it is given."""
        run = self.new_run(store, of=of, lease=lease)
        return replace(run, task=task, message=Invocation(**{"task_name": task.name, "kwargs": {"number": 1}, **body}))

    def forged(self, store: BaseStore, run: Run, change: str) -> Run:
        """Return a run with the id of `run`, but a different message."""
        body = {"kwargs": run.message.kwargs, "n_retries": run.n_retries, **CHANGES[change]}
        task = renamed if body.pop("task_name", None) else run.task
        forged = self.run_of(store, task, of=run, **body)
        return replace(forged, root_id=run.root_id)

    def begun(self, store: BaseStore, *, lease: float = 60) -> Run:
        run = self.run_of(store, example, lease=lease)
        assert store.claim(run) == Claimed()
        return run

    @_each_change
    def test_id_of_a_running_invocation_is_a_mismatch(self, store: BaseStore, change: str) -> None:
        """Another message that has the id does not fit the record."""
        run = self.begun(store)
        assert isinstance(store.claim(self.forged(store, run, change)), Mismatch)
        self.record(store, run, Succeeded(1))
        assert self.stored(store, run) == Stored("SUCCESS", 1)

    @_each_change
    def test_id_of_an_expired_claim_is_a_mismatch(self, store: BaseStore, change: str) -> None:
        run = self.begun(store, lease=-1)
        assert isinstance(store.claim(self.forged(store, run, change)), Mismatch)
        assert store.claim(self.run_of(store, example, of=run)) == Claimed(takeovers=1)

    @_each_change
    def test_id_of_a_released_invocation_is_a_mismatch(self, store: BaseStore, change: str) -> None:
        run = self.begun(store)
        store.release(run)
        assert isinstance(store.claim(self.forged(store, run, change)), Mismatch)
        assert store.claim(self.run_of(store, example, of=run)) == Claimed()

    @_each_change
    @pytest.mark.parametrize("redelivered", [False, True], ids=["first delivery", "redelivered"])
    def test_id_of_an_ended_invocation_is_a_mismatch(self, store: BaseStore, change: str, redelivered: bool) -> None:
        run = self.begun(store)
        self.record(store, run, Succeeded("first"))
        forged = replace(self.forged(store, run, change), redelivered=redelivered)
        assert isinstance(store.claim(forged), Mismatch)
        assert self.stored(store, run) == Stored("SUCCESS", "first")
        assert store.claim(self.run_of(store, example, of=run)) == Finished("SUCCESS")

    def test_retry_without_the_derived_id_is_a_mismatch(self, store: BaseStore) -> None:
        run = self.begun(store, lease=-1)
        for message_id in (ids.new_message_id(), ids.retry_id(run.root_id, 2)):
            forged = replace(self.retry_of(store, run), message_id=message_id)
            assert isinstance(store.claim(forged), Mismatch)
            assert self.stored(store, forged) is None
        assert store.claim(self.run_of(store, example, of=run)) == Claimed(takeovers=1)

    @pytest.mark.parametrize("change", [change for change in CHANGES if change != "another retry"])
    @pytest.mark.parametrize(
        "end", [None, Succeeded(1), Failed(ValueError("no"))], ids=["running", "success", "failure"]
    )
    def test_retry_of_another_invocation_is_a_mismatch(self, store: BaseStore, change: str, end: Any) -> None:
        run = self.begun(store)
        if end is not None:
            self.record(store, run, end)
        before = self.stored(store, run)
        forged = self.retry_of(store, self.forged(store, run, change))
        assert isinstance(store.claim(forged), Mismatch)
        assert self.stored(store, forged) is None
        assert self.stored(store, run) == before

    def test_retry_with_a_used_id_is_a_mismatch(self, store: BaseStore) -> None:
        """A first invocation has used the id."""
        run = self.begun(store)
        retry = self.retry_of(store, run)
        squatter = replace(self.run_of(store, example), message_id=retry.message_id, root_id=retry.message_id)
        assert store.claim(squatter) == Claimed()
        assert isinstance(store.claim(retry), Mismatch)
        assert self.status(store, squatter) == "RUNNING"

    def test_retry_with_another_chains_id_is_a_mismatch(self, store: BaseStore) -> None:
        """The first message of the other chain comes from an older version: it has a number of retries, but no root."""
        retry = self.retry_of(store, self.begun(store))
        squatter = self.run_of(store, example, n_retries=1)
        squatter = replace(squatter, message_id=retry.message_id, root_id=retry.message_id)
        assert store.claim(squatter) == Claimed()
        assert isinstance(store.claim(retry), Mismatch)

    # Messages that match

    def test_retry_without_a_root_runs(self, store: BaseStore) -> None:
        run = self.run_of(store, example, n_retries=3, lease=-1)
        assert store.claim(run) == Claimed()
        assert store.claim(self.run_of(store, example, n_retries=3, of=run)) == Claimed(takeovers=1)

    @pytest.mark.parametrize("names", [(OLD_NAME, _RENAMED), (_RENAMED, OLD_NAME)], ids=["to new", "to old"])
    def test_renamed_task_fits_its_records(self, store: BaseStore, names: tuple[str, str]) -> None:
        before, after = names
        run = self.run_of(store, renamed, task_name=before, lease=-1)
        assert store.claim(run) == Claimed()
        again = self.run_of(store, renamed, task_name=after, of=run)
        assert store.claim(again) == Claimed(takeovers=1)
        retry = replace(self.retry_of(store, run), task=renamed, message=again.message.next_retry())
        assert store.claim(retry) == Claimed()
        assert self.status(store, run) == "RETRYING"

    def test_arguments_fit_as_any_database_stores_them(self, store: BaseStore) -> None:
        run = self.run_of(store, example, kwargs=dict(AWKWARD), lease=-1)
        assert store.claim(run) == Claimed()
        kwargs = dict(reversed(list(AWKWARD.items())))
        assert store.claim(self.run_of(store, example, of=run, kwargs=kwargs, lease=-1)) == Claimed(takeovers=1)
        assert store.claim(self._retry(store, run, kwargs)) == Claimed()

    def _retry(self, store: BaseStore, run: Run, kwargs: dict[str, Any]) -> Run:
        retry = self.retry_of(store, run)
        return replace(retry, message=replace(retry.message, kwargs=kwargs))

    @pytest.mark.parametrize(
        "tasks",
        [(confidential, confidential), (confidential, example), (example, confidential)],
        ids=["still", "before", "since"],
    )
    def test_masked_arguments_fit(self, store: BaseStore, tasks: tuple[Any, Any]) -> None:
        """The task keeps its name, but a new version may make other parameters sensitive."""
        before, after = tasks
        body: dict[str, Any] = {"task_name": before.name, "kwargs": {"token": "hunter2"}}
        run = self.run_of(store, before, lease=-1, **body)
        assert store.claim(run) == Claimed()
        again = self.run_of(store, after, of=run, **body)
        assert store.claim(again) == Claimed(takeovers=1)
        assert isinstance(store.claim(self.run_of(store, after, of=run, **body)), Busy)
