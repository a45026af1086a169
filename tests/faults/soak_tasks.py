"""What the soak's workers run, and the plugin that shortens their leases and writes down what they do."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from lambda_tasks import executor, handler, timeouts
from lambda_tasks.decorators import lambda_task
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.logging import current_message_id
from lambda_tasks.models import TaskRecord
from tests.app.models import Effect

#: Seconds, instead of nine: a worker that died is succeeded within the visibility timeout of the soak.
SHORT: Final = {"KILL_GRACE": 0.5, "WATCHDOG_DELAY": 0.5, "LEASE_MARGIN": 0.5, "_JITTER": 0.5}


class Soaked:
    """The plugin: each event is one line of a file, in one write, so that no kill can tear it."""

    def __init__(self) -> None:
        self._diary = os.open(os.environ["SOAK_DIARY"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @hookimpl
    def lambda_task_boot(self) -> None:
        for name, seconds in SHORT.items():
            having = [module for module in (timeouts, executor, handler) if hasattr(module, name)]
            if not having:
                raise LookupError(f"{name} is nowhere; the soak would wait for its leases for minutes.")
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
    """What some orders fail with, for good or the first time."""


# The names of effects: what the orders are expected to have left, when all is at rest.


def effect_of(order: int) -> str:
    return f"order {order}"


def effect_of_follow_up(order: int) -> str:
    return f"follow-up of {order}"


# The leases of 3.5 s end before the visibility timeout, so that the next delivery takes over at once;
# the longer ones of `slow` end after it, so that it meets a live one first.


@lambda_task(soft_timeout=1, hard_timeout=2)
def plain(*, order: int) -> None:
    Effect.objects.create(name=effect_of(order))


@lambda_task(soft_timeout=1, hard_timeout=2, retry_on=(OutOfStock,))
def at_second_try(*, order: int) -> None:
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
