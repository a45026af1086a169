"""One task for each way to end; each writes its effect first, so that what is rolled back is seen."""

from __future__ import annotations

import sys

from django.db import transaction

from lambda_tasks import points
from lambda_tasks.decorators import lambda_task
from lambda_tasks.logging import current_message_id
from lambda_tasks.models import TaskRecord
from tests.simulation.shop.models import Counter, Effect
from tests.simulation.transport import FileBackend


class Again(Exception):
    """A retry is wanted."""


class Unimportant(Exception):
    """May be ignored."""


class Broken(Exception):
    """Nobody expects it."""


def take_effect(order: int) -> None:
    Effect._default_manager.create(order=order)
    points.reached("shop:inside")


def retry_number() -> int:
    number: int = TaskRecord.objects.get(pk=current_message_id()).n_retries
    return number


@lambda_task
def plain(*, order: int) -> str:
    take_effect(order)
    return f"order {order} is done"


@lambda_task(retry_on=(Again,))
def retried(*, order: int) -> None:
    take_effect(order)
    if retry_number() < 2:
        raise Again


@lambda_task(retry_on=(Again,))
def moody(*, order: int) -> None:
    """Fails the first time that it runs, whichever invocation that is: as when a service is away for a moment."""
    take_effect(order)
    file = FileBackend.file.with_name(f"mood-{order}")
    if not file.exists():
        file.touch()
        raise Again


@lambda_task
def failing(*, order: int) -> None:
    take_effect(order)
    raise Broken


@lambda_task(ignore_errors=(Unimportant,))
def ignored(*, order: int) -> None:
    take_effect(order)
    raise Unimportant


@lambda_task
def exiting(*, order: int) -> None:
    take_effect(order)
    sys.exit(3)


@lambda_task
def unserialisable(*, order: int) -> object:
    take_effect(order)
    return object()


@lambda_task(retry_on=(Again,))
def callback(*, order: int) -> None:
    """Commits, and fails afterwards: a retry would do it twice."""

    def fail() -> None:
        raise Again

    take_effect(order)
    transaction.on_commit(fail)


@lambda_task(on_crash="fail")
def unrepeatable(*, order: int) -> None:
    take_effect(order)


@lambda_task(singleton=True)
def singleton(*, order: int) -> None:
    counter, _ = Counter._default_manager.get_or_create(name="singleton")
    take_effect(order)
    Counter._default_manager.filter(name="singleton").update(value=counter.value + 1)


@lambda_task(singleton=True, retry_on=(Again,))
def singleton_retried(*, order: int) -> None:
    take_effect(order)
    if retry_number() < 1:
        raise Again
