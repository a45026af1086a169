"""Periodic tasks. Only the worlds of `ticks` import this module, so the others have no schedules."""

from __future__ import annotations

from typing import Final

from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.schedules import Every
from lambda_tasks.execution.current import current_task
from lambda_tasks.wire.ids import tick_id
from tests.simulation.shop.tasks import Again, retry_number, take_effect
from tests.simulation.transport import FileBackend

#: The order numbers of the schedules. The effect of a tick has the number of its schedule plus that of the tick.
EACH: Final = 20_000
LATEST: Final = 30_000
#: The intervals of the schedules, in seconds.
INTERVALS: Final = {EACH: 300, LATEST: 420}


def start() -> int:
    """Return the time at which the world has started, in seconds since 1970."""
    return int(FileBackend.file.with_name("start").read_text())


def tick_number(order: int, moment: float) -> int:
    """Return the number of a tick in its world."""
    interval = INTERVALS[order]
    return int(moment) // interval - start() // interval


@lambda_task(
    schedule=[
        Every(seconds=INTERVALS[EACH], missed=1000, kwargs={"order": EACH}, name="each"),
        Every(seconds=INTERVALS[LATEST], kwargs={"order": LATEST}, name="latest"),
    ],
    retry_on=(Again,),
)
def periodic(*, order: int) -> None:
    """Take effect once for each tick. Every third tick needs a retry."""
    task = current_task()
    assert task is not None
    assert task.scheduled_for is not None
    number = tick_number(order, task.scheduled_for.timestamp())
    take_effect(order + number)
    if number % 3 == 0 and retry_number() == 0:
        raise Again


def numbers_by_id() -> dict[str, int]:
    """Return the order number of each tick that a world may have, by the id of its invocation."""
    labels = {EACH: "each", LATEST: "latest"}
    return {
        tick_id(periodic.name, labels[order], (start() // interval + number) * interval): order + number
        for order, interval in INTERVALS.items()
        for number in range(1, 1000)
    }
