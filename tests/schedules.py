"""Tools for tests of periodic tasks: tasks that only one test knows, and a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from lambda_tasks import registry
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.definition.schedules import Schedule
from lambda_tasks.models import TaskSchedule
from lambda_tasks.strategies import get_store

#: A time that all schedules of the tests start from: 2026-01-01 00:00 UTC.
START: Final = 1_767_225_600
MINUTE: Final = 60
HOUR: Final = 3600


@contextmanager
def own_tasks() -> Iterator[Callable[..., LambdaTaskWrapper[Any, Any]]]:
    """Yield a function that makes a task of a function. Other tasks are not known in the block."""
    with tasks_forgotten():
        registry._tasks.clear()
        registry._aliases.clear()
        yield LambdaTaskWrapper


@contextmanager
def tasks_forgotten() -> Iterator[None]:
    """Forget the tasks that the block defines, so that other tests do not find them."""
    registry.discover_tasks()  # so that no module registers its tasks in the block
    known, aliases = dict(registry._tasks), dict(registry._aliases)
    try:
        yield
    finally:
        registry._tasks.clear()
        registry._tasks.update(known)
        registry._aliases.clear()
        registry._aliases.update(aliases)


def periodic(function: Callable[..., Any], schedule: Schedule | Sequence[Schedule], **options: Any) -> Any:
    """Make a periodic task of a function."""
    return LambdaTaskWrapper(function, schedule=schedule, **options)


def rows() -> Any:
    return TaskSchedule.objects.using(get_store().database)


def last_ticks() -> dict[str, int]:
    """Return the last tick of each schedule, in seconds after `START`."""
    return {key: last - START for key, last in rows().order_by("key").values_list("key", "last_tick")}
