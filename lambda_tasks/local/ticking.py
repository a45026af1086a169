"""Start periodic tasks while the local worker runs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from django.db import connections

from lambda_tasks.local import progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds between two looks at the schedules.
TICK_SECONDS: Final = 1.0
#: Seconds that the end of the worker waits for the last look.
_PATIENCE: Final = 10.0


class Ticker:
    """Start periodic tasks every `every` seconds, in a thread of the worker's process; never if it is None.

    A thread and not one of the processes, because these are busy while they run a task.
    """

    def __init__(self, every: float | None, *, stopping: threading.Event, report: Callable[[progress.Event], None]):
        if every is not None and not every > 0:
            raise ValueError(f"tick_every must be more than 0 seconds, or None, not {every:g}.")
        self._every = every
        self._stopping = stopping
        self._report = report

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start what is due before the block, and then regularly until its end or the end of the worker."""
        if self._every is None:
            yield
            return
        ended = threading.Event()
        self._tick()
        thread = threading.Thread(target=self._run, args=(self._every, ended), name="ticker", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_PATIENCE)

    def _run(self, every: float, ended: threading.Event) -> None:
        try:
            while not ended.wait(every) and not self._stopping.is_set():
                self._tick()
        finally:
            connections.close_all()

    def _tick(self) -> None:
        from lambda_tasks.operations.schedules import fire_due

        try:
            fired = fire_due()
        except Exception as error:  # an unavailable database, for example
            self._report(progress.Trouble("schedules", f"Periodic tasks were not started, trying again: {error}"))
            connections.close_all()
            return
        if fired.total:
            self._report(progress.Ticked(fired.sent, fired.failed))
