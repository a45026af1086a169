"""Run random worlds: orders, duplicates, redrives, and faults at random failpoints, all from one seed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lambda_tasks.models import TaskRecord
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE
from tests.simulation.faults import FAULTS, FROZEN
from tests.simulation.invariants import USUAL, check
from tests.simulation.invocations import Strike
from tests.simulation.queue import Message
from tests.simulation.report import Report
from tests.simulation.shop.flows import FAMILIES
from tests.simulation.shop.tasks import UNIQUE
from tests.simulation.sweep import CANCEL_POINTS, RELAY_POINTS, WAIT_POINTS
from tests.simulation.world import (
    PAST_ANY_LEASE,
    Placement,
    World,
    family_of,
    order_of,
    points_of,
    points_of_customer,
)

ORDERS: Final = 16
STEPS: Final = 60
#: Workers that may be frozen at the same time. Each holds a connection to the database.
MAX_FROZEN: Final = 5
#: How many times more often the chosen events happen.
MORE_OFTEN: Final = 6

#: Kills and freezes are more frequent than other faults, because the protocol exists for them.
MIXED_FAULTS: Final = [*FAULTS, "killed", FROZEN, FROZEN, FROZEN]


@dataclass(frozen=True, slots=True)
class Choice:
    """The events that are possible in random worlds. An empty attribute restricts nothing."""

    #: The kinds of tasks that customers order.
    kinds: Sequence[str] = ()
    #: The faults, and the failpoints at which they strike.
    faults: Sequence[str] = ()
    points: Sequence[str] = ()
    #: The names of events that happen more often.
    often: Sequence[str] = ()
    #: Whether the first world that violates an invariant is the last one.
    stop: bool = False
    #: Seconds after which no further world begins.
    seconds: float = float("inf")


def chaos(folder: Path, seeds: Iterable[int], choice: Choice) -> Report:
    """Run one world for each seed, and return the report."""
    report = Report()
    points = {kind: [*choice.points] or points_of(folder, kind) for kind in choice.kinds or USUAL}
    at_enqueue = [*choice.points] or points_of_customer(folder, "replacing")
    until = time.monotonic() + choice.seconds
    for seed in seeds:
        if time.monotonic() >= until:
            break
        world = ChaosWorld(folder, seed, points, at_enqueue, choice)
        try:
            world.live()
            world.come_to_rest()
            report.add(check(world), world.figures, seed=seed)
        finally:
            world.close()
        if choice.stop and report.sentences:
            break
    return report


class ChaosWorld(World):
    """A random world, which is determined by its seed."""

    def __init__(
        self, folder: Path, seed: int, points: dict[str, list[str]], at_enqueue: list[str], choice: Choice
    ) -> None:
        self._random = random.Random(seed)
        self._faults = choice.faults or MIXED_FAULTS
        self._points = choice.points
        self._often = choice.often
        self._points_of = points
        self._at_enqueue = at_enqueue
        self._outbox: bool = app_settings.outbox
        super().__init__(folder, visibility_timeout=self._random.choice((30, 200, 900)))

    def live(self) -> None:
        kinds = list(self._points_of)
        placements = [
            Placement(number, self._random.choice(kinds), self._random.choices(HOWS, HOW_OFTEN)[0])
            for number in range(1, ORDERS + 1)
        ]
        steps, weights = zip(*self._weighted_steps(), strict=True)
        for step in self._random.choices(steps, weights, k=STEPS):
            if placements and self._random.random() < 0.5:
                # Calls with one key matter only if some wait, or run, while others are placed.
                count = 1 if set(kinds) <= {*UNIQUE} else self._random.randint(1, 5)
                # With the outbox, customers may die more often, because their messages are not lost.
                self.place(placements[:count], self._strikes(self._at_enqueue, 0.5 if self._outbox else 0.3))
                del placements[:count]
            step()
        if placements:
            self.place(placements)

    def _weighted_steps(self) -> Iterator[tuple[Callable[[], None], int]]:
        for step, weight in self.steps():
            yield step, weight * (MORE_OFTEN if step.__name__.strip("_") in self._often else 1)

    def steps(self) -> Iterator[tuple[Callable[[], None], int]]:
        """Yield what may happen in this world, with its frequency."""
        yield from ((self._deliver, 50), (self._deliver_again, 12), (self._thaw, 14), (self._pass_time, 22))
        yield from ((self._redrive, 2), (self._forge, 10), (self._cancel, 6))
        if self._outbox:
            yield from ((self._relay, 25), (self._lose_sqs, 6))
        if not FAMILIES.keys().isdisjoint(self._points_of):
            yield (self._drop, 6)
            if not self._outbox:
                yield (self._relay, 10)
        elif "brief" in self._points_of and not self._outbox:
            yield (self._relay, 10)

    def points_in_worker(self) -> list[str]:
        """Return failpoints that any worker may reach."""
        return ["claim:before_takeover", "release:before", *WAIT_POINTS]

    def _deliver(self) -> None:
        if visible := self.queue.visible():
            self._random.shuffle(visible)
            self._invoke(visible[: self._random.choice((1, 1, 1, 2, 4))])

    def _deliver_again(self) -> None:
        """Deliver a message that is in flight or deleted, because a standard queue delivers at least once."""
        messages = [*self.queue.messages.values(), *self.queue.deleted.values()]
        if messages:
            message = self._random.choice(messages)
            self.queue.messages.setdefault(message.raw_id, message)
            self.figures.duplicates += 1
            self.repeated.add(order_of(message))
            self._invoke([message])

    def _forge(self) -> None:
        """Forge a message about an invocation that has a record. Without a record, forgeries cannot be detected."""
        messages = [
            message
            for message in [*self.queue.messages.values(), *self.queue.deleted.values()]
            if not message.forged
            # The record of a cancelled task may lack everything that a forgery could contradict.
            and TaskRecord.objects.filter(pk=message.attributes[MESSAGE_ID_ATTRIBUTE], task_name__gt="").exists()
        ]
        if messages:
            self.forge(self._random.choice(messages), self._random.choice(("retry", "derived", "same")))

    def _drop(self) -> None:
        """Delete a message of an ended task. Its worker may be frozen."""
        if messages := [*self.queue.messages.values()]:
            self.drop([self._random.choice(messages)])

    def _cancel(self) -> None:
        if orders := self.cancellable():
            self.cancel(self._random.choice(orders), self._strikes([*CANCEL_POINTS], 0.5))

    def _invoke(self, messages: list[Message]) -> None:
        points = self.points_in_worker()
        for message in messages:
            points += self._points_of.get(family_of(message, self), ())
        strikes = self._strikes(points, 0.9)
        self.deliver(messages, strikes, answer_arrives=self._random.random() < 0.9)

    def _relay(self) -> None:
        self.relay(self._strikes([*RELAY_POINTS], 0.7))

    def _lose_sqs(self) -> None:
        self.lose_sqs(unavailable=self._random.random() < 0.5)

    def _thaw(self) -> None:
        if self.frozen:
            self.thaw(self._random.choice(self.frozen), answer_arrives=self._random.random() < 0.5)

    def _pass_time(self) -> None:
        self.pass_time(self._random.choice((2, 30, 200, PAST_ANY_LEASE)))

    def _redrive(self) -> None:
        self.figures.redrives += len(self.queue.dead)
        self.queue.redrive()

    def _strikes(self, points: list[str], probability: float) -> list[Strike]:
        strikes = []
        if self._points:  # few processes reach them
            points, probability = [*self._points], max(probability, 0.9)
        while self._random.random() < probability:
            strikes.append(Strike(self._random.choice(points), self._random.choice(self._faults)))
            probability /= 2
        if len(self.frozen) >= MAX_FROZEN:
            return [strike for strike in strikes if strike.fault != FROZEN]
        return strikes


HOWS: Final = ("commit", "roll back", "savepoint")
HOW_OFTEN: Final = (10, 1, 1)
