"""What the contracts are made of: a task to send, and threads that all want the same thing at once."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Final, Generic, TypeVar

import pytest
from django.db import connections
from django.utils import timezone

from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.outcomes import Busy, Claim

T = TypeVar("T")

#: Seconds after which a thread of a contract counts as stuck.
PATIENCE: Final = 60.0
#: Seconds that an answer may take which must not wait for anything.
AT_ONCE: Final = 5.0
#: How many ask for the same thing at the same moment, and how often that is tried.
CROWD: Final = 8
ROUNDS: Final = 10


@lambda_task
def example(*, number: int = 0, text: str = "") -> int:
    """Return `number`: the task that the contracts send and claim."""
    return number


@lambda_task(sensitive=("token",))
def confidential(*, token: str) -> None:
    """Do nothing with `token`: a task whose argument no record may hold."""


def ignore(job: Job) -> None:
    """Hear of a job that was taken, and do nothing."""


def winners(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims that were granted; whoever got none must have been told to come back."""
    return [claim for claim in claims if not isinstance(claim, Busy)]


def skew(patch: pytest.MonkeyPatch, seconds: float, *, also: ModuleType) -> None:
    """Set the clocks wrong that Python code reads: `time.time`, and `datetime` in Django and in `also`."""
    true_time = time.time

    class WrongDatetime(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.now(tz) + dt.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> Any:
            return cls.now(dt.timezone.utc).replace(tzinfo=None)

    patch.setattr(time, "time", lambda: true_time() + seconds)
    for module in (timezone, also):
        if getattr(module, "datetime", None) is dt.datetime:
            patch.setattr(module, "datetime", WrongDatetime)


class InThread(Generic[T]):
    """A call in a thread of its own, with database connections of its own, which it closes."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._answers: list[T] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self._answers.append(self._call())
        except BaseException as error:
            self.error = error
        finally:
            connections.close_all()

    def start(self) -> InThread[T]:
        self._thread.start()
        return self

    def wait(self, seconds: float) -> None:
        """Wait for the end of the call, but no longer than that."""
        self._thread.join(seconds)

    def answer(self) -> T:
        """Return what the call returned, or raise what it raised."""
        self.wait(PATIENCE)
        assert not self._thread.is_alive(), f"no answer within {PATIENCE:.0f} s"
        if self.error is not None:
            raise self.error
        return self._answers[0]


def together(count: int, action: Callable[[int], T]) -> list[T]:
    """Call `action` with 0, 1, … in as many threads at one moment; return the answers in that order."""
    [answers] = crowd(lambda _, number: action(number), size=count, rounds=1)
    return answers


def crowd(action: Callable[[int, int], T], *, size: int = CROWD, rounds: int = ROUNDS) -> list[list[T]]:
    """Call `action(round, number)` in `size` threads at one moment, for so many rounds; return the answers by round."""
    start = threading.Barrier(size, timeout=PATIENCE)

    def take_part(number: int) -> list[T]:
        try:
            return [(start.wait(), action(round_, number))[1] for round_ in range(rounds)]
        except BaseException:
            start.abort()  # the others need not wait for this one any more
            raise

    threads = [InThread(partial(take_part, number)).start() for number in range(size)]
    for thread in threads:
        thread.wait(PATIENCE)
    # The error to see is the one for which the others then waited in vain.
    for thread in sorted(threads, key=lambda thread: isinstance(thread.error, threading.BrokenBarrierError)):
        thread.answer()
    by_thread = [thread.answer() for thread in threads]
    return [list(answers) for answers in zip(*by_thread, strict=True)]
