"""Every kind of task, struck at every point that it comes to, by every fault: one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from tests.simulation.faults import FAULTS, FROZEN
from tests.simulation.invariants import EXPECTED, check
from tests.simulation.invocations import Strike
from tests.simulation.report import Report
from tests.simulation.world import PAST_ANY_LEASE, Placement, World, points_of

#: How many orders are struck before the world is brought to rest; singletons one at a time.
CHUNK: Final = 25

_NEED_REDIS: Final = frozenset({"locks forgotten", "Redis away"})
_NEED_SEND: Final = frozenset({"send refused", "answer to send lost"})
_PRODUCER: Final = ("enqueue:before_commit", "enqueue:after_commit", "send:before", "send:after")


@dataclass(frozen=True, slots=True)
class Case:
    """One order, and the faults that its invocations meet, the first one's first."""

    kind: str
    producer: tuple[Strike, ...] = ()
    deliveries: tuple[tuple[Strike, ...], ...] = ()

    @property
    def alone(self) -> bool:
        """Whether it must not meet another order: a singleton's lock would keep that from its point."""
        return self.kind.startswith("singleton")


def sweep(folder: Path, *, part: int = 0, parts: int = 1) -> Report:
    """Run every case, or every `parts`-th from `part` on, and return what came of it."""
    report = Report()
    points = {kind: points_of(folder, kind) for kind in EXPECTED}
    cases = list(_cases(points))[part::parts]
    numbers = count(1)
    for chunk in _chunks(cases):
        _run(folder, [(next(numbers), case) for case in chunk], report)
    return report


def _cases(points_of: dict[str, list[str]]) -> Iterator[Case]:
    faults = [*FAULTS, FROZEN]
    for kind, points in points_of.items():
        for point in points:
            for fault in faults:
                if fault in _NEED_REDIS and not kind.startswith("singleton"):
                    continue
                if fault in _NEED_SEND and "retry:before_send" not in points:
                    continue
                yield Case(kind, deliveries=((Strike(point, fault),),))
    # What only a second invocation comes to, or one that has met a fault already.
    died = (Strike("task:enter", "killed"),)
    for fault in faults:
        yield Case("plain", deliveries=(died, (Strike("claim:before_takeover", fault),)))
        yield Case("plain", deliveries=(died, (Strike("finish:before_commit", fault),)))
        unsent = Strike("retry:before_send", "send refused")
        yield Case("retried", deliveries=((unsent, Strike("release:before", fault)),))
        lost = Strike("finish:before_commit", "session ended")
        yield Case("plain", deliveries=((lost, Strike("release:before", fault)),))
    for point in _PRODUCER:
        for fault in faults:
            yield Case("plain", producer=(Strike(point, fault),))


def _chunks(cases: Sequence[Case]) -> Iterator[list[Case]]:
    yield from ([case] for case in cases if case.alone)
    together = [case for case in cases if not case.alone]
    for start in range(0, len(together), CHUNK):
        yield together[start : start + CHUNK]


def _run(folder: Path, cases: list[tuple[int, Case]], report: Report) -> None:
    world = World(folder)
    try:
        world.place([Placement(number, case.kind) for number, case in cases if not case.producer])
        for number, case in cases:
            if case.producer:
                world.place([Placement(number, case.kind)], case.producer)
        for turn in range(max(len(case.deliveries) for _, case in cases)):
            if turn:
                world.pass_time(PAST_ANY_LEASE)
            for number, case in cases:
                if turn < len(case.deliveries):
                    world.deliver(world.messages_of(number), case.deliveries[turn])
        if world.frozen:
            # Another worker takes over what the frozen ones hold, and then they go on.
            world.pass_time(PAST_ANY_LEASE)
            for message in world.queue.visible():
                world.deliver([message])
        world.come_to_rest()
        report.add(check(world), world.figures)
    finally:
        world.close()
