"""The state of a run while it is executed, which plugins and stores do not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

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


@dataclass(slots=True)
class Attempt:
    """A run and how far it has come."""

    #: Replaced by a copy when the claim has counted the takeovers, and when the task is rerun with new arguments.
    run: Run
    #: Whether the run holds the claim. Until its lease expires, no other worker can run the invocation.
    claimed: bool = False
    #: The keys of the lock that the run holds, if its task has one.
    lock_keys: Sequence[str] = ()
    #: Whether the task was called, so that its effects outside of the transaction may have happened.
    called: bool = False
    stage: Stage = Stage.BEGIN
    #: Whether the task's transaction is known to be committed.
    committed: bool = False
    #: Whether the server may still execute a request that records SUCCESS and commits, whose answer is lost. The claim
    #: settles it: once it is released, or another outcome is recorded, that request finds no row.
    in_doubt: bool = False
    #: The outcome that the task's transaction has written. It is valid if `committed`.
    success: Succeeded = field(default_factory=Succeeded)
    #: Django's list of `on_commit` callbacks of the transaction, which a commit empties one by one.
    following: list[Any] = field(default_factory=list)
    #: The names of the tasks that the task has enqueued and that wait for its commit, by message id.
    enqueued: dict[str, str] = field(default_factory=dict)
    #: The driver's connection on which the transaction began. On another connection, the transaction is lost.
    session: object = None

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
