"""The tasks of the soak test, and a plugin that shortens their leases and records their events."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from lambda_tasks import handler, timeouts
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution import pipeline
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.logging import current_message_id
from lambda_tasks.models import TaskRecord
from tests.app.models import Effect

#: Seconds, instead of nine, so that another worker takes over within the visibility timeout of the soak test.
SHORT: Final = {"KILL_GRACE": 0.5, "WATCHDOG_DELAY": 0.5, "LEASE_MARGIN": 0.5, "_JITTER": 0.5}


class Soaked:
    """A plugin that writes each event as one line of a file, in one write, so that a kill cannot split it."""

    def __init__(self) -> None:
        self._diary = os.open(os.environ["SOAK_DIARY"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @hookimpl
    def lambda_task_boot(self) -> None:
        for name, seconds in SHORT.items():
            having = [module for module in (timeouts, pipeline, handler) if hasattr(module, name)]
            if not having:
                raise LookupError(f"{name} was not found, so the soak test would wait minutes for its leases.")
            for module in having:
                setattr(module, name, seconds)

    @hookimpl
    def lambda_task_retry_delay(self) -> int:
        return 1

    @hookimpl
    def lambda_task_started(self, run: Any) -> None:
        self._write("started", run.message_id)

    @hookimpl
    def lambda_task_skipped(self, message_id: str, reason: str) -> None:
        self._write(f"skipped:{reason}", message_id)

    @hookimpl
    def lambda_task_finished(self, run: Any, outcome: Any) -> None:
        self._write("finished", run.message_id)

    def _write(self, event: str, message_id: str) -> None:
        os.write(self._diary, f"{event} {message_id} {os.getpid()}\n".encode())


class OutOfStock(Exception):
    """An error of some orders, on every run or only on the first."""


# The names of effects that are expected after all activity has ended.


def effect_of(order: int) -> str:
    return f"order {order}"


def effect_of_follow_up(order: int) -> str:
    return f"follow-up of {order}"


# The leases of 3.5 s end before the visibility timeout, so that the next delivery takes over immediately. The longer
# leases of `slow` end after it, so that the next delivery first finds a live lease.


@lambda_task(soft_timeout=1, hard_timeout=2)
def plain(*, order: int) -> None:
    Effect.objects.create(name=effect_of(order))


@lambda_task(soft_timeout=1, hard_timeout=2, retry_on=(OutOfStock,))
def at_second_attempt(*, order: int) -> None:
    Effect.objects.create(name=effect_of(order))
    if TaskRecord.objects.get(pk=current_message_id()).n_retries == 0:
        raise OutOfStock


@lambda_task(soft_timeout=1, hard_timeout=2)
def failing(*, order: int) -> None:
    Effect.objects.create(name=effect_of(order))
    raise OutOfStock


@lambda_task(soft_timeout=1, hard_timeout=2)
def leading(*, order: int) -> None:
    Effect.objects.create(name=effect_of(order))
    follow_up.execute_on_commit(order=order)


@lambda_task(soft_timeout=1, hard_timeout=2)
def follow_up(*, order: int) -> None:
    Effect.objects.create(name=effect_of_follow_up(order))


@lambda_task(soft_timeout=5, hard_timeout=6)
def slow(*, order: int) -> None:
    Effect.objects.create(name=effect_of(order))
    time.sleep(0.3)


@lambda_task(soft_timeout=1, hard_timeout=2)
def endless(*, order: int) -> None:
    Effect.objects.create(name=effect_of(order))
    while True:
        try:
            time.sleep(60)
        except timeouts.SoftTimeLimitExceeded:
            continue
