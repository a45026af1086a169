"""When a handle asks for the end of an invocation: at growing intervals, with jitter, until a timeout."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from lambda_tasks.foundation.forks import random
from lambda_tasks.recording.described import described

#: Each pause is shortened at random by up to this share, so that callers who began together do not ask together.
_JITTER: Final = 0.5


async def _asleep(seconds: float) -> None:
    import asyncio  # most processes that wait do not need it

    await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Polling:
    """How often a handle asks for the end of an invocation. Each time is one query.

    It asks immediately, again after `first` seconds, and then at intervals that double up to `longest` seconds. Each
    pause is shortened at random by up to half. The other fields are clocks, for tests.

    Raises TypeError or ValueError unless both are numbers with 0 < first <= longest.
    """

    first: float = 0.1
    longest: float = 5.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], object] = field(default=time.sleep, repr=False)
    #: The same for `aresult()` and `await_()`.
    asleep: Callable[[float], Awaitable[object]] = field(default=_asleep, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        for name in ("first", "longest"):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number of seconds, not {described(value)}.")
        if not 0 < self.first <= self.longest:
            raise ValueError(f"first must be more than 0 and at most longest, not {self.first!r} and {self.longest!r}.")

    def pauses(self, timeout: float | None) -> Iterator[float]:
        """Yield the seconds before each further question, until the timeout. The last question is asked at its end."""
        deadline = None if timeout is None else self.clock() + timeout
        pause = self.first
        while True:
            shortened = pause * (1 - _JITTER * self.random())
            if deadline is not None:
                left = deadline - self.clock()
                if left <= 0:
                    return
                shortened = min(shortened, left)
            yield shortened
            pause = min(2 * pause, self.longest)


def seconds_of(timeout: float | timedelta | None) -> float | None:
    """Return a timeout in seconds; None for no timeout. Raise TypeError or ValueError for an invalid one."""
    seconds: Any = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | None):
        raise TypeError(f"timeout must be a number of seconds, a timedelta or None, not {described(timeout)}.")
    if seconds is not None and not seconds >= 0:  # also refuses NaN
        raise ValueError(f"timeout must be at least 0 seconds, not {timeout!r}.")
    return None if seconds is None else float(seconds)
