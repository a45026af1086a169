"""A clock for code that waits: sleeping takes no time, and something may happen meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lambda_tasks.handles import Polling


class Clock:
    """A clock that only sleeping moves. `during` lists what happens in each sleep, the first one first."""

    def __init__(self, *during: Callable[[], object]) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []
        self._during = list(during)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds
        if self._during:
            self._during.pop(0)()

    async def asleep(self, seconds: float) -> None:
        from asgiref.sync import sync_to_async

        await sync_to_async(self.sleep)(seconds)

    def polling(self, *, jitter: float = 0.0, **options: Any) -> Polling:
        """Return how to poll by this clock. `jitter` is the random number that shortens each pause."""
        return Polling(clock=lambda: self.now, sleep=self.sleep, asleep=self.asleep, random=lambda: jitter, **options)
