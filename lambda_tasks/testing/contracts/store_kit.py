"""Tools of the store contract: runs, and their records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from django.db import transaction

from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Claimed, Outcome, Succeeded
from lambda_tasks.stores.base import BaseStore
from lambda_tasks.testing.contracts.crowd import example
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation


@dataclass(frozen=True, slots=True)
class Stored:
    """The contents of a record."""

    status: str
    result: Any = None
    traceback: str | None = None


class StoreKit:
    """The methods that a subclass of the contract overrides, and those that its tests use."""

    @pytest.fixture
    def store(self) -> BaseStore:
        """Override: return the store under test."""
        raise NotImplementedError

    # Subclasses narrow `store` to their own class, which type checkers allow for Any.

    def stored(self, store: Any, run: Run) -> Stored | None:
        """Override: return the record of the invocation of `run`, or None if there is none."""
        raise NotImplementedError

    def delete(self, store: Any, run: Run) -> None:
        """Override: delete the record of `run`, as an operator might do."""
        raise NotImplementedError

    def new_run(
        self, store: BaseStore, *, of: Run | None = None, lease: float = 60, kwargs: dict[str, Any] | None = None
    ) -> Run:
        """Return a run of a new invocation, or another run of the invocation `of`."""
        message_id = of.message_id if of else ids.new_message_id()
        return Run(
            message=of.message if of else Invocation(task_name=example.name, kwargs=kwargs or {}),
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
        """Return a run that has claimed its invocation."""
        run = self.new_run(store, of=of, lease=lease)
        claim = store.claim(run)
        assert isinstance(claim, Claimed), claim
        return run

    def record(self, store: BaseStore, run: Run, outcome: Outcome) -> None:
        """Record `outcome` like the executor: success in the task's transaction, everything else outside it."""
        if isinstance(outcome, Succeeded):
            with transaction.atomic(using=store.database):
                store.record(run, outcome)
        else:
            store.record(run, outcome)

    def status(self, store: BaseStore, run: Run) -> str | None:
        stored = self.stored(store, run)
        return None if stored is None else stored.status

    def retry_of(self, store: BaseStore, run: Run) -> Run:
        """Return a run of the retry that `run` sent."""
        retry = self.new_run(store)
        job = run.retry_job(0)
        return replace(retry, task=run.task, message=job.message, message_id=job.message_id, root_id=job.root_id)
