"""Tools of the contracts: tasks to send, and threads that do the same thing at the same time."""

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
#: The maximum number of seconds for a call that must not wait.
AT_ONCE: Final = 5.0
#: The number of threads that make the same call at the same time, and the number of rounds.
CROWD: Final = 8
ROUNDS: Final = 10


@lambda_task
def example(*, number: int = 0, text: str = "") -> int:
    """Return `number`. The contracts send and claim this task."""
    return number


#: The previous name of the task `renamed`.
OLD_NAME: Final = "lambda_tasks.testing.contracts.crowd.example_before"


@lambda_task(aliases=(OLD_NAME,))
def renamed(*, number: int = 0, text: str = "") -> int:
    """Return `number`. Messages and records of this task may have either name."""
    return number


@lambda_task(sensitive=("token",))
def confidential(*, token: str) -> None:
    """Do nothing. No record may contain the argument of this task."""


def ignore(job: Job) -> None:
    """Do nothing when a job is reported as taken."""


def winners(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims that were granted. All others must be `Busy`."""
    return [claim for claim in claims if not isinstance(claim, Busy)]


def skew(patch: pytest.MonkeyPatch, seconds: float, *, also: ModuleType) -> None:
    """Skew the clocks that Python code reads: `time.time`, and `datetime` in Django and in `also`."""
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
    """A call in a separate thread, with its own database connections, which it closes."""

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
        """Wait until the call has ended, for at most `seconds`."""
        self._thread.join(seconds)

    def answer(self) -> T:
        """Return what the call returned, or raise what it raised."""
        self.wait(PATIENCE)
        assert not self._thread.is_alive(), f"no answer within {PATIENCE:.0f} s"
        if self.error is not None:
            raise self.error
        return self._answers[0]


def together(count: int, action: Callable[[int], T]) -> list[T]:
    """Call `action` with 0, 1, … in `count` threads at the same time, and return the results in that order."""
    [answers] = crowd(lambda _, number: action(number), size=count, rounds=1)
    return answers


def crowd(action: Callable[[int, int], T], *, size: int = CROWD, rounds: int = ROUNDS) -> list[list[T]]:
    """Call `action(round, number)` in `size` threads at the same time, and return the results of each round."""
    start = threading.Barrier(size, timeout=PATIENCE)

    def take_part(number: int) -> list[T]:
        try:
            return [(start.wait(), action(round_, number))[1] for round_ in range(rounds)]
        except BaseException:
            start.abort()  # the other threads must not wait for this one
            raise

    threads = [InThread(partial(take_part, number)).start() for number in range(size)]
    for thread in threads:
        thread.wait(PATIENCE)
    # Raise the original error rather than the broken barrier of another thread.
    for thread in sorted(threads, key=lambda thread: isinstance(thread.error, threading.BrokenBarrierError)):
        thread.answer()
    by_thread = [thread.answer() for thread in threads]
    return [list(answers) for answers in zip(*by_thread, strict=True)]
