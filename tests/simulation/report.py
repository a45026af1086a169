"""The report of a run: figures that can be merged, and the printed table."""

from __future__ import annotations

import json
from collections import Counter as Tally
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.failpoints import POINTS
from tests.simulation.faults import CRASHED, FAULTS, FROZEN

if TYPE_CHECKING:
    from tests.simulation.invariants import Books
    from tests.simulation.world import Figures

#: Prefixes of failpoints that are reached only with the outbox.
OF_OUTBOX: Final = ("outbox:", "relay:")
#: Prefixes of failpoints that are reached only without it.
OF_DIRECT: Final = ("flow:sent",)
#: The prefix of failpoints that are reached only in worlds with periodic tasks.
OF_SCHEDULES: Final = "schedule:"
#: The prefix of failpoints that are reached only if tasks follow each other.
OF_FLOWS: Final = "flow:"
#: The prefix of failpoints that are reached only by the kind "large".
OF_LARGE: Final = "arguments:"
#: The beginnings of the names of such kinds of orders.
FLOWS: Final = ("followed", "chain", "group")
#: The names of violations, in the order of the report.
NAMES: Final = (
    "lost",
    "doubled",
    "stuck",
    "ghost",
    "gap",
    "disagreeing",
    "overlapped",
    "forged",
    "needless",
    "accident",
)


@dataclass(slots=True)
class Report:
    """Sums over worlds."""

    worlds: int = 0
    sums: Tally[str] = field(default_factory=Tally)
    #: How often each fault struck at each point, as "point|fault".
    struck: Tally[str] = field(default_factory=Tally)
    violations: Tally[str] = field(default_factory=Tally)
    sentences: list[str] = field(default_factory=list)

    def add(self, books: Books, figures: Figures, *, seed: int | None = None) -> None:
        """Add the results and the figures of a world."""
        self.worlds += 1
        self.sums.update(
            {
                "orders committed": books.orders,
                "orders rolled back": books.rolled_back,
                "not sent (no outbox)": books.unsent,
                "relays of the outbox": figures.relays,
                "messages sent again": figures.sent_again,
                "deliveries": figures.deliveries,
                "duplicates": figures.duplicates,
                "redrives": figures.redrives,
                "messages dropped": figures.dropped,
                "forged messages": figures.forged,
                "attempts to cancel": figures.cancels,
                "cancelled before a start": figures.prevented,
                "crashes of the database": figures.crashes,
                "claims lost in crashes": figures.forgotten,
                "successes forgotten": figures.forgotten_successes,
                "takeovers": books.takeovers,
                "ticks": books.ticks,
                "faults": figures.struck.total(),
            }
        )
        self.struck.update({f"{strike.point}|{strike.fault}": times for strike, times in figures.struck.items()})
        for violation in books.violations:
            self.violations[violation.name] += 1
            where = "" if seed is None else f"seed {seed}: "
            self.sentences.append(f"{where}{violation.name}: {violation.sentence}")

    def merge(self, other: Report) -> None:
        self.worlds += other.worlds
        self.sums += other.sums
        self.struck += other.struck
        self.violations += other.violations
        self.sentences += other.sentences

    def to_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_json(cls, text: str) -> Report:
        given: dict[str, Any] = json.loads(text)
        return cls(
            worlds=given["worlds"],
            sums=Tally(given["sums"]),
            struck=Tally(given["struck"]),
            violations=Tally(given["violations"]),
            sentences=given["sentences"],
        )

    def never_killed(self, prefixes: Sequence[str] = (), *, outbox: bool, kinds: Sequence[str] = ()) -> list[str]:
        """Return the failpoints, or those with one of `prefixes`, at which no process was killed.

        If only some kinds of tasks were ordered, leave out the points that other kinds reach.
        """
        elsewhere = (*(OF_DIRECT if outbox else OF_OUTBOX), *(() if prefixes else (OF_SCHEDULES,)))
        if kinds and not prefixes and not any(kind.startswith(FLOWS) for kind in kinds):
            elsewhere += (OF_FLOWS,)
        if kinds and not prefixes and "large" not in kinds:
            elsewhere += (OF_LARGE,)
        meant = [point for point in POINTS if point.startswith(tuple(prefixes) or "")]
        return [point for point in meant if not point.startswith(elsewhere) and not self.struck[f"{point}|killed"]]

    def lines(self) -> Iterator[str]:
        """Yield the lines of the printed report."""
        faults = [*FAULTS, FROZEN, CRASHED]
        found = {point: [self.struck[f"{point}|{fault}"] for fault in faults] for point in [*POINTS, "shop:inside"]}
        yield "Faults by point:"
        for number, fault in enumerate(faults, 1):
            yield f"  [{number}] {fault}"
        yield f"  {'':24}" + "".join(f"{f'[{number}]':>7}" for number in range(1, len(faults) + 1))
        for point, times in found.items():
            yield f"  {point:24}" + "".join(f"{time or '·':>7}" for time in times)
        yield ""
        for name, value in {"worlds": self.worlds, **self.sums}.items():
            yield f"  {name:24}{value:7,}"
        for name in NAMES:
            yield f"  {name:24}{self.violations[name]:7,}"
