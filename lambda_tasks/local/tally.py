"""Count what a worker does, and turn the results of invocations into reports."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lambda_tasks.local import progress
from lambda_tasks.local.event_source import ReceivedBatch, Verdict, judge
from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, InvocationResult, TimedOut

if TYPE_CHECKING:
    from collections.abc import Iterator


class Schedule:
    """Tell one of the threads when an interval has passed. The first one passes immediately."""

    def __init__(self, every: float | None) -> None:
        self._every = every
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        if self._every is None:
            return False
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return False
            self._next = now + self._every
            return True


@dataclass(frozen=True, slots=True)
class Moment:
    started: int = 0
    running: int = 0


class Tally:
    """Count the running and the finished batches of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moment = Moment()
        self._summary = progress.Summary()

    @property
    def summary(self) -> progress.Summary:
        return self._summary

    def moment(self) -> Moment:
        return self._moment

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._lock:
            self._moment = Moment(self._moment.started + 1, self._moment.running + 1)
        try:
            yield
        finally:
            with self._lock:
                self._moment = replace(self._moment, running=self._moment.running - 1)

    def add(self, finished: progress.Finished) -> None:
        with self._lock:
            total = self._summary
            self._summary = replace(
                total,
                batches=total.batches + 1,
                done=total.done + len(finished.done_ids),
                kept=total.kept + len(finished.kept_ids),
                raised=total.raised + (finished.outcome == "raised"),
                crashed=total.crashed + (finished.outcome == "crashed"),
                timed_out=total.timed_out + (finished.outcome == "timed out"),
            )

    def add_handed_back(self, number: int) -> None:
        with self._lock:
            self._summary = replace(self._summary, handed_back=self._summary.handed_back + number)


def finished(
    name: str, batch: ReceivedBatch, result: InvocationResult, verdict: Verdict, *, seconds: float
) -> progress.Finished:
    """Return the report about an invocation with a batch."""
    return progress.Finished(
        environment=name,
        outcome=_outcome(result),
        done_ids=tuple(each for each in batch.message_ids if each not in verdict.failed_ids),
        kept_ids=tuple(each for each in batch.message_ids if each in verdict.failed_ids),
        reason=verdict.reason,
        seconds=seconds,
    )


def maintained(name: str, result: InvocationResult) -> progress.Maintained:
    """Return the report about an invocation with the maintenance event."""
    if not isinstance(result, Answered):
        return progress.Maintained(name, reason=judge(result, ()).reason)
    try:
        answer = json.loads(result.body)
    except ValueError as error:
        return progress.Maintained(name, reason=f"the handler's response is not JSON ({error})")
    parts = answer.items() if isinstance(answer, dict) else ()
    return progress.Maintained(
        name,
        done={
            part: {what: number for what, number in numbers.items() if number}
            for part, numbers in parts
            if isinstance(numbers, dict) and any(numbers.values())
        },
    )


def _outcome(result: InvocationResult) -> progress.Outcome:
    match result:
        case Answered():
            return "answered"
        case Errored():
            return "raised"
        case Crashed():
            return "crashed"
        case TimedOut():
            return "timed out"
