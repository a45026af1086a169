"""Every kind of task, struck at every point that it comes to, by every fault: one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Final

from lambda_tasks.backends.relay import LONGEST_PAUSE
from lambda_tasks.points import POINTS
from lambda_tasks.settings import app_settings
from tests.simulation.faults import FAULTS, FROZEN
from tests.simulation.invariants import EXPECTED, check
from tests.simulation.invocations import Strike
from tests.simulation.report import Report
from tests.simulation.world import PAST_ANY_LEASE, Placement, World, points_of, points_of_customer

#: How many orders are struck before the world is brought to rest; singletons one at a time.
CHUNK: Final = 25

_ALL_FAULTS: Final = (*FAULTS, FROZEN)
_NEED_REDIS: Final = frozenset({"locks forgotten", "Redis away"})
_WITHOUT_REDIS: Final = tuple(fault for fault in _ALL_FAULTS if fault not in _NEED_REDIS)
_NEED_SEND: Final = frozenset({"send refused", "SQS away", "answer to send lost"})
#: What a process comes to that relays the outbox.
RELAY_POINTS: Final = tuple(point for point in POINTS if point.startswith("relay:"))
#: Where a customer's transaction is committed, and nobody may raise anything any more.
_AFTER_COMMIT: Final = frozenset({"enqueue:after_commit", "send:before", "send:after", *RELAY_POINTS})


@dataclass(frozen=True, slots=True)
class Case:
    """One order, and the faults that its invocations meet, the first one's first."""

    kind: str
    producer: tuple[Strike, ...] = ()
    relay: tuple[Strike, ...] = ()
    deliveries: tuple[tuple[Strike, ...], ...] = ()

    @property
    def point(self) -> str:
        """Where the last fault strikes."""
        last = (self.deliveries[-1] if self.deliveries else ()) or self.relay or self.producer
        return last[-1].point

    @property
    def alone(self) -> bool:
        """Whether it must not meet another order: a singleton's lock would keep that from its point."""
        return self.kind.startswith("singleton")


def sweep(
    folder: Path, *, kinds: Sequence[str] = (), prefixes: Sequence[str] = (), part: int = 0, parts: int = 1
) -> Report:
    """Run every case, or every `parts`-th from `part` on, and return what came of it.

    With `kinds` only tasks of these, with `prefixes` only cases whose last fault is at a point that begins
    in one of these ways.
    """
    report = Report()
    chosen = [case for case in _cases(folder, kinds or list(EXPECTED)) if case.point.startswith(tuple(prefixes) or "")]
    cases = chosen[part::parts]
    numbers = count(1)
    for chunk in _chunks(cases):
        _run(folder, [(next(numbers), case) for case in chunk], report)
    return report


def _cases(folder: Path, kinds: Sequence[str]) -> Iterator[Case]:
    yield from _first_invocations({kind: points_of(folder, kind) for kind in kinds})
    yield from (case for case in _later_invocations() if case.kind in kinds)
    yield from _customers(points_of_customer(folder))
    if app_settings.outbox:
        yield from _relays()


def _first_invocations(points_of: dict[str, list[str]]) -> Iterator[Case]:
    for kind, points in points_of.items():
        for point, fault in product(points, _ALL_FAULTS):
            if fault in _NEED_REDIS and not kind.startswith("singleton"):
                continue
            if fault in _NEED_SEND and "retry:before_send" not in points:
                continue
            yield Case(kind, deliveries=((Strike(point, fault),),))


def _later_invocations() -> Iterator[Case]:
    """What only a second invocation comes to, or one that has met a fault already."""
    died = (Strike("task:enter", "killed"),)
    for fault in _ALL_FAULTS:
        yield Case("plain", deliveries=(died, (Strike("claim:before_takeover", fault),)))
        yield Case("plain", deliveries=(died, (Strike("finish:before_commit", fault),)))
        if not app_settings.outbox:  # with it, no retry is refused
            unsent = Strike("retry:before_send", "send refused")
            yield Case("retried", deliveries=((unsent, Strike("release:before", fault)),))
        lost = Strike("finish:before_commit", "session ended")
        yield Case("plain", deliveries=((lost, Strike("release:before", fault)),))


def _customers(points: list[str]) -> Iterator[Case]:
    for point, fault in product(points, _WITHOUT_REDIS):
        yield Case("plain", producer=(Strike(point, fault),))


def _relays() -> Iterator[Case]:
    """A customer was killed, or its message not taken, and the process is struck that sends it next."""
    for unsent in (Strike("enqueue:after_commit", "killed"), Strike("send:before", "send refused")):
        for point, fault in product(RELAY_POINTS, _WITHOUT_REDIS):
            yield Case("plain", producer=(unsent,), relay=(Strike(point, fault),))


def _chunks(cases: Sequence[Case]) -> Iterator[list[Case]]:
    yield from ([case] for case in cases if case.alone)
    together = [case for case in cases if not case.alone]
    for start in range(0, len(together), CHUNK):
        yield together[start : start + CHUNK]


def _run(folder: Path, cases: list[tuple[int, Case]], report: Report) -> None:
    world = World(folder)
    try:
        _place(world, cases)
        for turn in range(max(len(case.deliveries) for _, case in cases)):
            if turn:
                world.pass_time(PAST_ANY_LEASE)
            for number, case in cases:
                if turn < len(case.deliveries):
                    world.deliver(world.messages_of(number), case.deliveries[turn])
        if app_settings.outbox:
            world.relay()  # beside those that are frozen, whose messages it leaves to them
        if world.frozen:
            # Another worker takes over what the frozen ones hold, and then they go on.
            world.pass_time(PAST_ANY_LEASE)
            for message in world.queue.visible():
                world.deliver([message])
        world.come_to_rest()
        report.add(check(world), world.figures)
    finally:
        world.close()


def _place(world: World, cases: list[tuple[int, Case]]) -> None:
    world.place([Placement(number, case.kind) for number, case in cases if not case.producer])
    for number, case in cases:
        if case.producer:
            customer = world.place([Placement(number, case.kind)], case.producer)
            if customer.state == "raised" and case.producer[-1].point in _AFTER_COMMIT:
                world.figures.accidents.append(f"a customer hears after its commit of {customer.error}")
        if case.relay:
            world.pass_time(LONGEST_PAUSE)
            world.relay(case.relay)
