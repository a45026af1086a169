"""Let a worker die at a failpoint, in the process of the test."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any, Final
from unittest import mock

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from lambda_tasks import failpoints
from lambda_tasks.failpoints import POINTS, WorkerKilled

#: The statements by which Django leaves a transaction of the worker inside that of the test.
_LEAVING: Final = ("ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT")


class PlannedCrashes:
    """The points at which workers will die, one worker for each.

    `WorkerKilled` ends the worker like any exception, through its `finally` blocks. These must have no effect, since a
    killed process does not run them: after the crash, every failpoint raises again, and no statement is executed.
    """

    def __init__(self) -> None:
        self._points: deque[str] = deque()
        self._is_dead = False
        self._own: list[BaseDatabaseWrapper] = []
        #: How many workers have died.
        self.deaths = 0

    def plan(self, point: str) -> None:
        """Let the next worker die at `point`. Raise ValueError for a point that does not exist."""
        if point not in POINTS:
            close = get_close_matches(str(point), POINTS, n=3)
            hint = f"Did you mean {', '.join(map(repr, close))}?" if close else f"The points are {', '.join(POINTS)}."
            raise ValueError(f"point must be one of lambda_tasks.failpoints.POINTS, not {point!r}. {hint}")
        self._points.append(point)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Let the worker that runs in the block die, if that is planned."""
        if not self._points:
            yield
            return
        every = connections.all()
        # A connection in a transaction belongs to the test, which is in the same process and does not die.
        self._own = [connection for connection in every if not connection.in_atomic_block]
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(failpoints, "reached", self._reached))
            for connection in every:
                stack.enter_context(connection.execute_wrapper(self._execute))
            stack.callback(self.revive)
            yield

    def revive(self) -> None:
        """End the crash: what runs from now on is another process."""
        self._is_dead = False

    def refuse_unreached(self, cause: BaseException | None) -> None:
        """Raise AssertionError for a point that no worker reached, since the test would not test the crash."""
        if self._points:
            point = self._points[0]
            self._points.clear()
            raise AssertionError(
                f"No worker reached {point!r}, at which crash_at() should end one. The state at this point: "
                f"{POINTS[point]}."
            ) from cause

    def _reached(self, point: str) -> None:
        if self._is_dead:
            raise WorkerKilled
        if self._points and self._points[0] == point:
            self._points.popleft()
            self._is_dead = True
            self.deaths += 1
            for connection in self._own:
                connection.close()
            raise WorkerKilled(f"crash_at({point!r}) has ended this worker.")

    def _execute(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if self._is_dead and not sql.startswith(_LEAVING):
            raise WorkerKilled
        return execute(sql, params, many, context)
