"""Define the interface of record stores: claim invocations, record outcomes, and find unfinished work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from django.core.checks import CheckMessage

from lambda_tasks.jobs import Job, Run
from lambda_tasks.outcomes import (
    Cancellation,
    Claim,
    Failed,
    Latest,
    Lost,
    Outcome,
    Progress,
    ReportedProgress,
    Succeeded,
)


class BaseStore(ABC):
    """Base class of stores. LAMBDA_TASKS_STORE selects the class, which is instantiated once per process.

    The OPTIONS of the setting are the keyword arguments of `__init__`. Methods may be called from any thread.
    `lambda_tasks.testing.contracts.StoreContract` tests an implementation.
    """

    #: Whether the store writes `TaskRecord`, from which results of Django's tasks are read.
    keeps_records: ClassVar[bool] = False
    #: Whether the store implements `wait()`. If not, a task with `on_contention="wait"` is retried instead.
    waits: ClassVar[bool] = False
    #: Whether the store implements `write_progress()`. If not, `current_task().progress()` does nothing.
    keeps_progress: ClassVar[bool] = False

    @property
    @abstractmethod
    def database(self) -> str:
        """The alias of the database in whose transactions tasks run and SUCCESS is written."""

    @abstractmethod
    def claim(self, run: Run) -> Claim:
        """Make `run` the holder of its invocation unless another run holds it, and commit the claim immediately.

        Return `Claimed` if the invocation is new, if its claim was released, or if its holder's lease has expired. In
        the last case `takeovers` counts the holders that died. Return `Finished` if the invocation has ended. Return
        `Busy` if another holder's lease is valid, or another run was faster. Of two concurrent claims, only one
        succeeds. A run that repeats its claim because it did not receive the answer keeps it.

        Return `Mismatch`, and change nothing, if a different invocation is recorded under the run's id, or if the run
        is not a retry of the invocation that it names. `lambda_tasks.fitting` compares them.

        The claim of a retry first ends its sender's invocation as RETRYING, if the sender's worker died before it
        could record that. If that invocation has ended otherwise, the retry is `Finished`, too: the work must not be
        done twice.
        """

    @abstractmethod
    def record(self, run: Run, outcome: Outcome) -> None:
        """Record the outcome of `run`: inside its transaction for `Succeeded`, outside of it for the others.

        A `Retry` may be recorded even if that retry was faster and has already ended the run.

        Raise `LeaseLost` if the run no longer holds the claim, and `ResultNotSerializable` for a result that cannot be
        stored. In both cases nothing is written.
        """

    def record_and_commit(self, run: Run, outcome: Succeeded) -> bool:
        """Record the SUCCESS of `run` and commit its transaction, in one request to the database.

        Called instead of `record()`, as the last statement of the run's own transaction, and raises the same errors.
        Return False, and do nothing, if that is impossible: `record()` and Django's COMMIT follow. After True, Django's
        `commit()` must have nothing left to commit. The default implementation returns False.
        """
        return False

    @abstractmethod
    def release(self, run: Run) -> None:
        """Release the claim of `run`, so that the next delivery may take it immediately.

        A release does not count as a death of the holder. Do nothing if another run holds the claim.
        """

    def release_crashed(self, run: Run) -> None:
        """Release the claim of `run`, and count a death of the holder: its task lost the database session.

        Do nothing if another run holds the claim. A store that does not override this method does not count such
        losses, so a task that always loses its session is redelivered until its queue gives up on the message.
        """
        self.release(run)

    def wait(self, run: Run, *, seconds: float) -> None:
        """Release the claim of `run`, which waits for its lock, and whose message is delivered in `seconds`.

        A later claim is `Claimed` at any time, and its `waited` is the number of seconds since the first wait of this
        invocation, by the store's clock. `lost()` must not return the invocation before `seconds` have passed.

        Raise `LeaseLost`, and change nothing, if the run no longer holds the claim. The method is called inside a
        transaction if the transport keeps jobs.
        """
        raise NotImplementedError

    @abstractmethod
    def has_succeeded(self, run: Run) -> bool:
        """Return whether the SUCCESS of `run` is committed; wait for a COMMIT in progress."""

    def begun(self, message_ids: Sequence[str]) -> set[str]:
        """Return the ids of those invocations that a worker has started and that have not ended.

        It is called with redelivered messages. One of the started invocations may have killed its worker, so they run
        after the others. The default implementation returns an empty set.
        """
        return set()

    def cancel(self, message_id: str, waiting: Job | None, *, database: str | None = None) -> Cancellation:
        """Cancel an invocation and its retries, inside the open transaction, if there is one.

        If no run holds the invocation, or its next retry, record that one as FAILED with the reason `cancelled`: claims
        of it return `Finished`, whatever the record lacks. Of a claim and a cancellation that run concurrently, only
        one succeeds. If a run holds it, store the request that `cancel_requested()` returns. A request will do, too,
        if the claim was released.

        `waiting` is its job if the transport still keeps it. `database` is the alias of its record, if that is not the
        store's current one. The default raises NotImplementedError.
        """
        raise NotImplementedError(
            f"{type(self).__name__} cannot cancel tasks. Use ORMStore in LAMBDA_TASKS_STORE, or implement cancel() "
            "and cancel_requested()."
        )

    def cancel_requested(self, run: Run) -> bool:
        """Return whether the chain of retries of `run` was cancelled after it had started.

        Called before each attempt except the first, before a retry is sent, and by `current_task().cancelled`, there
        in a thread of its own.
        """
        return False

    def status(self, message_id: str) -> str | None:
        """Return the status of an invocation's record, or None without a record. `TaskHandle.status` calls this."""
        return None

    def progress(self, root_id: str) -> Progress | None:
        """Return how far the chain of retries of the first invocation `root_id` has come, or None without a record.

        Tasks with `unique` call this. The default implementation knows only the first invocation. While it is
        RETRYING, the unique key is therefore held until the task's `unique_for` has passed.
        """
        status = self.status(root_id)
        return None if status is None else Progress(status)

    def latest(self, message_id: str) -> Latest | None:
        """Return the newest invocation of the chain of retries that `message_id` began, or None without a record.

        For the id of a retry, return that retry, whose `root_id` names the chain. It must not take more than one query.
        `TaskHandle.result()` calls this repeatedly, also in a thread of its own. The default raises
        NotImplementedError.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not return results. Use ORMStore in LAMBDA_TASKS_STORE, or implement latest()."
        )

    def write_progress(self, run: Run, progress: ReportedProgress) -> bool:
        """Store the progress of `run`. Return False, and change nothing, if the run no longer holds its claim.

        Do not wait for the locks of other transactions: return False instead. The method is called outside of the
        task's transaction, mostly in a thread of its own. `progress.updated` is None: use the store's clock.
        """
        return False

    def read_progress(self, message_id: str) -> ReportedProgress | None:
        """Return the progress of the newest invocation of a chain, as `latest()` finds it, or None without any."""
        return None

    def replace(self, message_id: str, *, task_name: str, queue: str) -> bool:
        """Record an invocation that no worker has claimed as SUCCESS, with the reason `replaced`: it never runs.

        Return False, and change nothing, if it has a record. A later claim of its message is `Finished`, whatever its
        arguments. The default implementation does nothing: the replaced invocation then runs, too.
        """
        return False

    def refuse(self, job: Job, error: Exception) -> None:
        """Record an invocation that follows another one, and that cannot be sent because of `error`, as FAILED.

        Do nothing if it has a record. Called in the transaction that records the end of the other one. The default
        implementation does nothing.
        """
        return

    def lost(self, *, older_than: float, limit: int, after: str = "") -> list[Lost]:
        """Return RUNNING invocations whose lease expired more than `older_than` seconds ago.

        Return at most `limit` of them, ordered by id, with ids after `after`. The method is called in a transaction,
        and skips records that another transaction has locked. The default implementation returns an empty list:
        records stay unchanged until their messages are redelivered.
        """
        return []

    def offer(self, lost: Lost, *, older_than: float) -> bool:
        """Take a lost invocation from its holder, so that the next delivery may claim it, and count a takeover.

        An invocation that waits for its lock (`lost.waited` is set) has no holder, so no takeover is counted.
        Return False, and change nothing, if the invocation has changed since: a worker took it over or ended it.
        """
        raise NotImplementedError

    def withdraw(self, lost: Lost) -> None:
        """Subtract the takeover that `offer()` has counted, because the message could not be sent.

        Do nothing if a worker has claimed or ended the invocation since. A store that does not override this method
        counts a takeover for each attempt to send.
        """
        return

    def give_up(self, lost: Lost, outcome: Failed, *, older_than: float) -> bool:
        """Record the outcome of a lost invocation. Return False, and change nothing, if it has changed since."""
        raise NotImplementedError

    def check(self) -> list[CheckMessage]:
        """Return the messages of `manage.py check` about the options."""
        return []
