"""The time of a test's queue, which only passes when the test says so."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

from django.apps import apps
from django.db.models import DateTimeField, F

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.jobs import Job
from lambda_tasks.settings import duration
from lambda_tasks.strategies import get_store


class QueueClock:
    """The time of a queue. Instead of setting a clock, it moves stored times into the past."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend
        self._began = time.time()
        #: The seconds that have passed on this clock.
        self._passed = 0.0
        #: The time at which each waiting message is due, by its id.
        self._due: dict[str, float] = {}
        self._has_ticked = False

    def due(self) -> list[Job]:
        """Return the waiting jobs whose delay has passed, oldest first."""
        self._note_sent()
        return [job for job in self._backend.jobs if self._due[job.message_id] <= self._passed]

    def make_due(self, job: Job) -> None:
        """Deliver a job without its delay, since it has already waited."""
        self._due[job.message_id] = self._passed

    def forget(self, job: Job) -> None:
        """Forget a job that was received. A later job with its id has its own delay."""
        self._due.pop(job.message_id, None)

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass for waiting jobs and for the rows of the library's tables."""
        passing = duration(seconds, "seconds")
        self._note_sent()
        self._passed += passing
        self._backend.jobs[:] = [_older(job, passing) for job in self._backend.jobs]
        for alias in sorted({get_store().database, *(job.database for job in self._backend.jobs)}):
            _move_stored_times(alias, timedelta(seconds=passing))

    def tick(self) -> int:
        """Start the periodic tasks that are due, and return how many jobs this sent."""
        from lambda_tasks.operations.schedules import fire_due  # only tests of periodic tasks need it

        sent = 0
        if not self._has_ticked:
            self._has_ticked = True
            sent = fire_due(self._began).sent
        return sent + fire_due(time.time() + self._passed).sent

    def _note_sent(self) -> None:
        # The clock has stood still since these jobs were sent.
        for job in self._backend.jobs:
            self._due.setdefault(job.message_id, self._passed + job.delay)


def _older(job: Job, seconds: float) -> Job:
    """Return a job that was sent `seconds` earlier, if its task asks for its age."""
    if job.task is None or not job.task.measures_age:
        return job
    return replace(job, first_sent=(job.first_sent or time.time()) - seconds)


def _move_stored_times(alias: str, by: timedelta) -> None:
    for model in apps.get_app_config("lambda_tasks").get_models():
        names = [field.name for field in model._meta.concrete_fields if isinstance(field, DateTimeField)]
        if names and not model._meta.proxy:  # the table of a proxy is that of its model
            model._base_manager.using(alias).update(**{name: F(name) - by for name in names})
