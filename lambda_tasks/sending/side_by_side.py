"""Call a function for many items in parallel, for work that mostly waits, such as requests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from types import TracebackType
from typing import Final, Generic, TypeVar

#: How the names of the threads begin.
THREAD_NAME: Final = "lambda_tasks"

T = TypeVar("T")
R = TypeVar("R")


class SideBySide(Generic[T, R]):
    """Calls `work` with each of `things` in up to `max_threads` threads, and yields the results in order.

        with SideBySide(send, batches, max_threads=4) as answers:
            for answer in answers:
                ...

    Items are started in order, too. An exception of `work` is raised in its place among the results. Threads see
    the caller's context variables. If one thread is enough, or none can be started, the caller does the work.

    However the block ends, also by an alarm or Ctrl-C, no further item is started, and running ones are
    waited for: no thread continues after the block, or freezes with a container.
    """

    def __init__(self, work: Callable[[T], R], things: Sequence[T], *, max_threads: int) -> None:
        self._work = work
        self._things = things
        self._wanted = min(max_threads, len(things))
        self._threads: list[threading.Thread] = []
        self._waiting = deque(range(len(things)))
        self._results: list[Future[R]] = [Future() for _ in things]

    def __enter__(self) -> SideBySide[T, R]:
        try:
            self._start_threads()
        except BaseException:
            self._finish()
            raise
        return self

    def __iter__(self) -> Iterator[R]:
        for result in self._results:
            if not self._threads:
                self._do_next()
            yield result.result()

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        interruption = self._finish()
        if interruption is not None and error is None:
            raise interruption

    def _start_threads(self) -> None:
        if self._wanted < 2:
            return
        for number in range(self._wanted):
            thread = threading.Thread(target=copy_context().run, args=(self._do_all,), name=f"{THREAD_NAME}-{number}")
            try:
                thread.start()
            except RuntimeError:
                return  # the system allows no more threads, or the interpreter is shutting down
            self._threads.append(thread)

    def _do_all(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Do the next item, and return False if none is left."""
        try:
            number = self._waiting.popleft()
        except IndexError:
            return False
        result = self._results[number]
        if result.set_running_or_notify_cancel():
            try:
                result.set_result(self._work(self._things[number]))
            except BaseException as error:
                result.set_exception(error)
        return True

    def _finish(self) -> BaseException | None:
        """Cancel what has not started, wait for the rest, and return what interrupted the wait, if anything."""
        interruption = None
        self._waiting.clear()
        for result in self._results:
            while not (result.cancel() or result.done()):
                try:
                    result.exception()  # waits
                except BaseException as error:
                    # A hard limit interrupts every half second. A request ends by its own timeouts.
                    interruption = interruption or error
        for thread in self._threads:
            thread.join()  # it has nothing left to do
        return interruption
