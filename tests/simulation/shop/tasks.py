"""One task for each way to end. Each task writes its effect first, so that rollbacks are visible."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import django
from django.db import connection, transaction
from django.utils.module_loading import import_string

from lambda_tasks import failpoints
from lambda_tasks.contrib.django_tasks import lambda_options
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.exceptions import RetryLater
from lambda_tasks.execution.current import current_task
from lambda_tasks.logging import current_message_id
from lambda_tasks.models import TaskRecord
from lambda_tasks.settings import app_settings
from tests.simulation.shop.models import Counter, Effect, Span
from tests.simulation.transport import FileBackend, locks

#: The reason with which tasks ask for a retry.
NOT_YET: Final = "the warehouse is closed"
#: The difference between the order numbers of a task and of the task that it enqueues.
CHILD: Final = 10_000
#: The number of values of keyed and unique tasks, and the number of runs of a limited task at the same time.
VALUES: Final = 2
LIMIT: Final = 2
#: The tasks whose calls may share one invocation.
UNIQUE: Final = ("unique", "replacing", "postponed")
#: Short time limits, with which locks expire in many worlds while their holders are frozen.
SOFT: Final = 100
HARD: Final = 150
#: Seconds that a postponed task is delayed. With the outbox, its message waits there, where a call can rewrite it.
DELAY: Final = 1_000 if app_settings.outbox else 60


#: Django's decorator.
task: Final[Callable[[Callable[..., str]], Any]] = import_string(
    "django.tasks.task" if django.VERSION >= (6, 0) else "django_tasks.task"
)


class Again(Exception):
    """Request a retry."""


class Unimportant(Exception):
    """An error that `ignore_errors` lists."""


class Broken(Exception):
    """An unexpected error."""


def take_effect(order: int) -> None:
    Effect._default_manager.create(order=order)
    failpoints.reached("shop:inside")


def retry_number() -> int:
    message_id = current_message_id()
    assert message_id is not None
    return TaskRecord.objects.get(pk=message_id).n_retries


@lambda_task
def plain(*, order: int) -> str:
    take_effect(order)
    return f"order {order} is done"


@lambda_task(record="failures")
def brief(*, order: int) -> None:
    """Succeed, and leave a record only for a while."""
    take_effect(order)


@lambda_task(retry_on=(Again,))
def retried(*, order: int) -> None:
    take_effect(order)
    if retry_number() < 2:
        raise Again


@lambda_task(retry_on=(Again,))
def large(*, order: int) -> None:
    """Succeed in the first retry. The transport stores its arguments outside of the messages."""
    take_effect(order)
    if retry_number() < 1:
        raise Again


#: The policy of several kinds of tasks. Its delays are those of the simulated queue.
POLICY: Final = RetryPolicy(on=(Again,), max_retries=2, max_age=timedelta(days=30), delay=5, backoff=True)


@lambda_task(retry=POLICY)
def with_policy(*, order: int) -> None:
    """Succeed in the last attempt that the policy allows."""
    take_effect(order)
    task = current_task()
    assert task is not None
    assert (task.message_id, task.attempt) == (current_message_id(), retry_number() + 1)
    if not task.is_last_attempt:
        raise Again


@lambda_task(retry={Exception: RetryPolicy(max_retries=0), Again: POLICY})
def exhausted(*, order: int) -> None:
    """Fail in every attempt that the policy allows."""
    take_effect(order)
    raise Again


@task
@lambda_options(retry_on=(Again,))
def djangos(order: int) -> str:
    """One of Django's tasks, which succeeds in its first retry."""
    take_effect(order)
    if retry_number() < 1:
        raise Again
    return f"order {order} is done"


@lambda_task(ignore_errors=(Unimportant,))
def later(*, order: int) -> None:
    """Ask for two retries, although no error is retried."""
    take_effect(order)
    if retry_number() < 2:
        raise RetryLater(delay=20, reason=NOT_YET)


@lambda_task(retry_on=(Again,))
def moody(*, order: int) -> None:
    """Fail on the first run, in whichever invocation, as if a service were unavailable for a moment."""
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
    """Fail after the commit, where a retry would repeat the effect."""

    def fail() -> None:
        raise Again

    take_effect(order)
    transaction.on_commit(fail)


@lambda_task
def spawning(*, order: int) -> None:
    """Enqueue another task, which must run exactly once if this one succeeds."""
    take_effect(order)
    plain.execute_on_commit(order=order + CHILD)


@lambda_task
def rolling_back(*, order: int) -> None:
    """End the transaction bypassing Django. Its writes are gone, so SUCCESS would be wrong."""
    take_effect(order)
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")


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


@lambda_task(atomic=False)
def committing(*, order: int) -> None:
    """Commit each write, so that a run that is repeated has repeated effects."""
    take_effect(order)


@lambda_task(atomic=False, on_crash="fail")
def committing_once(*, order: int) -> None:
    take_effect(order)


@contextmanager
def _span(key: str) -> Iterator[None]:
    """Store during which time the task ran. Nothing is stored if it does not commit."""
    began = time.time()
    yield
    task = current_task()
    assert task is not None
    robbed = locks().is_robbed(task.root_id)
    Span._default_manager.create(key=key, began=began, ended=time.time(), robbed=robbed)


@lambda_task(singleton=lambda *, order: order % VALUES)
def keyed(*, order: int) -> None:
    with _span(f"keyed {order % VALUES}"):
        take_effect(order)


@lambda_task(max_concurrency=LIMIT, soft_timeout=SOFT, hard_timeout=HARD)
def limited(*, order: int) -> None:
    with _span("limited"):
        take_effect(order)


@lambda_task(singleton=True, on_contention="wait", max_wait=10_000_000, soft_timeout=SOFT, hard_timeout=HARD)
def waiting(*, order: int) -> None:
    with _span("waiting"):
        take_effect(order)


@lambda_task(singleton=True, on_contention="wait", max_wait=60)
def impatient(*, order: int) -> None:
    """Wait for a lock that stays held, unless a fault loses it."""
    take_effect(order)


@lambda_task(singleton=True, on_contention="skip")
def skipping(*, order: int) -> None:
    with _span("skipping"):
        take_effect(order)


@lambda_task(unique=lambda *, order: order % VALUES)
def unique(*, order: int) -> None:
    take_effect(order)


@lambda_task(unique=lambda *, order: order % VALUES, on_duplicate="replace")
def replacing(*, order: int) -> None:
    take_effect(order)


@lambda_task(unique=lambda *, order: order % VALUES, on_duplicate="replace", delay=DELAY)
def postponed(*, order: int) -> None:
    take_effect(order)


@lambda_task
def forged(*, order: int) -> None:
    """The task of forged messages, which customers never order."""
    take_effect(order)
