"""Run worlds with periodic tasks, whose processes suffer faults, and count ticks that are missed or doubled."""

from __future__ import annotations

import json
import time
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from lambda_tasks.failpoints import POINTS
from lambda_tasks.models import TaskSchedule
from lambda_tasks.operations import schedules
from lambda_tasks.wire.attributes import ROOT_ID_ATTRIBUTE, SCHEDULED_FOR_ATTRIBUTE
from tests.simulation.chaos import ChaosWorld, Choice
from tests.simulation.faults import FAULTS, FROZEN
from tests.simulation.invariants import Books, check
from tests.simulation.invocations import Process, Strike
from tests.simulation.report import Report
from tests.simulation.rules import Violation
from tests.simulation.shop.models import Effect
from tests.simulation.shop.periodic import EACH, INTERVALS, LATEST, numbers_by_id, tick_number
from tests.simulation.sweep import RELAY_POINTS
from tests.simulation.transport import FileBackend
from tests.simulation.world import PAST_ANY_LEASE, Invocation, points_of, points_of_customer

#: The failpoints of a process that starts periodic tasks.
SCHEDULE_POINTS: Final = tuple(point for point in POINTS if point.startswith("schedule:"))
#: Worlds start some days ago, so that they end before the present, by which lost tasks are found.
_DAYS_AGO: Final = 5
_FIRE: Final = schedules.fire_due


def ticks(folder: Path, seeds: Sequence[int], choice: Choice, *, part: int = 0, parts: int = 1) -> Report:
    """Strike each fault at each failpoint of schedules, and then run a random world for each seed."""
    report = Report()
    kinds = {kind: points_of(folder, kind) for kind in ("plain", "moody")}
    at_enqueue = points_of_customer(folder)
    chosen = product(choice.points or SCHEDULE_POINTS, choice.faults or (*FAULTS, FROZEN))
    strikes = [Strike(*each) for each in chosen][part::parts]
    for seed, strike in [*((None, strike) for strike in strikes), *((seed, None) for seed in seeds)]:
        world = TickWorld(folder, seed or 0, kinds, at_enqueue, choice)
        try:
            if strike is None:
                world.live()
            else:
                world.live_briefly(strike)
            world.come_to_rest()
            report.add(check_ticks(world), world.figures, seed=seed)
        finally:
            world.close()
            setattr(schedules, "fire_due", _FIRE)  # noqa: B010, mypy refuses to replace a function
        if choice.stop and report.sentences:
            break
    return report


class TickWorld(ChaosWorld):
    """A world of orders and periodic tasks. Its clock is that of the queue, and every process fires what is due."""

    def __init__(self, folder: Path, *given: Any) -> None:
        super().__init__(folder, *given)
        self._last_ticks: dict[str, int] = {}
        TaskSchedule.objects.all().delete()
        self.start = int(time.time()) - _DAYS_AGO * 86_400
        FileBackend.file.with_name("start").write_text(str(self.start))
        setattr(schedules, "fire_due", self._fire)  # noqa: B010, mypy refuses to replace a function
        schedules.fire_due()

    @property
    def now(self) -> int:
        """The simulated time, in seconds since 1970."""
        return self.start + int(self.queue.now)

    def _fire(self, now: object = None, **options: Any) -> schedules.Fired:
        return _FIRE(self.now, **options)

    def go_on(self, invocation: Invocation, *, answer_arrives: bool = True) -> None:
        super().go_on(invocation, answer_arrives=answer_arrives)
        self._look_for_earlier_ticks()

    def thaw(self, invocation: Invocation, *, answer_arrives: bool = True) -> None:
        super().thaw(invocation, answer_arrives=answer_arrives)
        self._look_for_earlier_ticks()

    def _look_for_earlier_ticks(self) -> None:
        """Report schedules that have moved back. They would send ticks again."""
        for key, tick in TaskSchedule.objects.values_list("key", "last_tick"):
            if tick < self._last_ticks.get(key, 0):
                self.figures.accidents.append(f"{key} has moved back by {self._last_ticks[key] - tick} s")
            self._last_ticks[key] = tick

    def tick(self, strikes: Sequence[Strike] = ()) -> Process:
        """Start periodic tasks in a new process, as cron does."""
        process = Process(lambda: schedules.fire_due().total, strikes)
        self.go_on(Invocation(process))
        return process

    def live_briefly(self, strike: Strike) -> None:
        """Strike one process, and have another one fire meanwhile and later."""
        self.pass_time(PAST_ANY_LEASE)
        self.tick([strike])
        self.tick()
        self.pass_time(PAST_ANY_LEASE)
        self.relay()

    def steps(self) -> Iterator[tuple[Any, int]]:
        yield from super().steps()
        yield self._tick, 30
        yield self._relay, 10

    def points_in_worker(self) -> list[str]:
        return [*super().points_in_worker(), *SCHEDULE_POINTS]

    def _tick(self) -> None:
        points = [*SCHEDULE_POINTS, "send:before", "send:after", "outbox:after_insert"]
        self.tick(self._strikes(points, 0.7))

    def _relay(self) -> None:
        self.relay(self._strikes([*RELAY_POINTS, *SCHEDULE_POINTS], 0.7))

    def come_to_rest(self) -> None:
        """Come to rest, fire what has become due meanwhile, and come to rest again."""
        super().come_to_rest()
        self.tick()
        self.ended_at = self.now
        super().come_to_rest()


def check_ticks(world: TickWorld) -> Books:
    """Check the orders, and that each tick until the end of the world has one effect."""
    books = check(world)
    effects: Tally[int] = Tally(Effect._default_manager.filter(order__gte=EACH).values_list("order", flat=True))
    violations = [
        Violation("doubled", f"tick {order} took effect {times} times") for order, times in effects.items() if times > 1
    ]
    for order in INTERVALS:
        last = tick_number(order, world.ended_at)
        expected = range(1, last + 1) if order == EACH else range(last, last + 1)
        missed = [number for number in expected if number > 0 and not effects[order + number]]
        violations += (Violation("lost", f"tick {order + number} was missed") for number in missed)
    violations += _wrong_times(world)
    return replace(books, ticks=effects.total(), violations=[*books.violations, *violations])


def _wrong_times(world: TickWorld) -> Iterable[Violation]:
    """Yield messages whose scheduled time is not that of their tick."""
    numbers = numbers_by_id()
    for line in FileBackend.file.read_text().splitlines():
        attributes = json.loads(line)["attributes"]
        number = numbers.get(attributes[ROOT_ID_ATTRIBUTE])
        if number is None:
            continue
        order = EACH if number < LATEST else LATEST
        moment = attributes.get(SCHEDULED_FOR_ATTRIBUTE)
        if moment is None or order + tick_number(order, int(moment)) != number:
            yield Violation("disagreeing", f"a message of tick {number} says that it was scheduled for {moment}")
