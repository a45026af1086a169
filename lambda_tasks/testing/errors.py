"""Keep the exceptions of failed tasks, which the handler only records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.outcomes import Outcome, error_of
from lambda_tasks.plugins import hooks, manager
from lambda_tasks.recording.notes import name_task


class TaskErrors:
    """A plugin that keeps the first exception of a task that failed."""

    def __init__(self) -> None:
        self.first: BaseException | None = None

    @hookimpl
    def lambda_task_finished(self, run: Run, outcome: Outcome) -> None:
        error = error_of(outcome)
        if error is not None and self.first is None:
            name_task(error, task_name=run.task_name, message_id=run.message_id)
            self.first = error

    def clear(self) -> None:
        self.first = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Listen to the tasks that run in the block."""
        hooks()  # loads the plugins of the settings, which registers them from scratch
        manager.register(self)
        try:
            yield
        finally:
            if manager.is_registered(self):  # unless a test has changed LAMBDA_TASKS_PLUGINS meanwhile
                manager.unregister(self)
