"""The state of a run while it is executed, which plugins and stores do not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Succeeded


class Stage(Enum):
    """The part of a task's transaction that is executed. The meaning of an error depends on it."""

    BEGIN = "begin"
    #: The task's own function.
    CALL = "call"
    #: The UPDATE that records SUCCESS.
    RECORD = "record"
    COMMIT = "commit"
    #: The UPDATE and COMMIT, in one request.
    END = "end"


_NOT_YET: Final = Succeeded()


class Attempt:
    """A run and how far it has come."""

    def __init__(self, run: Run) -> None:
        #: Replaced by a copy when the claim has counted the takeovers, and when the task is rerun with new arguments.
        self.run = run
        #: Whether the run holds the claim. Until its lease expires, no other worker can run the invocation.
        self.claimed = False
        #: The keys of the lock that the run holds, if its task has one.
        self.lock_keys: Sequence[str] = ()
        #: Whether the task was called, so that its effects outside of the transaction may have happened.
        self.called = False
        self.stage = Stage.BEGIN
        #: Whether the task's transaction is known to be committed.
        self.committed = False
        #: Whether the server may still execute a request that records SUCCESS and commits, whose answer is lost. The
        #: claim settles it: once it is released, or another outcome is recorded, that request finds no row.
        self.in_doubt = False
        #: The outcome that the task's transaction has written. It is valid if `committed`.
        self.success = _NOT_YET
        #: Django's list of `on_commit` callbacks of the transaction, which a commit empties one by one.
        self.following: list[Any] = []
        #: The names of the tasks that the task has enqueued and that wait for its commit, by message id.
        self.enqueued: dict[str, str] = {}
        #: The driver's connection on which the transaction began. On another connection, the transaction is lost.
        self.session: object = None

    @property
    def rolled_back_run(self) -> Run:
        """The run, with the tasks that are not sent because its transaction is rolled back."""
        if not self.enqueued or self.committed:
            return self.run
        return replace(self.run, dropped_tasks=tuple(self.enqueued.values()))

    @property
    def lease_left(self) -> float:
        """Seconds until another worker may take over the invocation, or 0 if this run does not hold the claim."""
        return max(self.run.lease - self.run.duration, 0.0) if self.claimed else 0.0
