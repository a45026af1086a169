"""Measure contenders in turn, in one run, so that a slow machine slows all of them down.

A round measures every contender once, and each round begins with the next contender. Contenders are compared
within a round, so the ratios hold while the machine's speed drifts. Reports quote the median and the quartiles.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

QUARTERS: Final = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """The seconds of one unit of work, and the peak memory of the process in KiB if it was measured."""

    wall: float
    #: User and system time of the process with all its threads, without servers.
    cpu: float
    peak_memory: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the quartiles of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        if len(figures) < 2:
            return cls(figures[0], figures[0], figures[0])
        low, median, high = statistics.quantiles(figures, n=QUARTERS, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True, slots=True)
class Measured:
    """The samples of every contender, round by round."""

    samples: Mapping[str, Sequence[Sample]]

    def wall(self, name: str) -> Spread:
        return Spread.of([sample.wall for sample in self.samples[name]])

    def cpu(self, name: str) -> Spread:
        return Spread.of([sample.cpu for sample in self.samples[name]])

    def peak_memory(self, name: str) -> Spread:
        return Spread.of([sample.peak_memory for sample in self.samples[name]])

    def wall_ratio(self, name: str, floor: str) -> Spread:
        """Return the ratio of the contender's wall time to the floor's, computed round by round."""
        return Spread.of([one.wall / other.wall for one, other in self._pairs(name, floor)])

    def cpu_ratio(self, name: str, floor: str) -> Spread:
        return Spread.of([one.cpu / other.cpu for one, other in self._pairs(name, floor)])

    def memory_ratio(self, name: str, floor: str) -> Spread:
        return Spread.of([one.peak_memory / other.peak_memory for one, other in self._pairs(name, floor)])

    def _pairs(self, name: str, floor: str) -> list[tuple[Sample, Sample]]:
        return list(zip(self.samples[name], self.samples[floor], strict=True))


def in_turn(
    contenders: Mapping[str, Callable[[], Sample]], *, rounds: int, warm_up: int = 1, reset: Callable[[], object] = int
) -> Measured:
    """Measure every contender `rounds` times, after `warm_up` rounds that are discarded.

    `reset` is called before each measurement, and is not part of it: it empties tables and queues.
    """
    names = list(contenders)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            reset()
            gc.collect()
            sample = contenders[name]()
            if number >= 0:
                samples[name].append(sample)
    return Measured(samples)


def timed(work: Callable[[], object], *, units: int) -> Callable[[], Sample]:
    """Return a contender that does `work`, which consists of `units` units, in this process."""

    def contender() -> Sample:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return Sample((time.perf_counter() - wall) / units, (time.process_time() - cpu) / units)

    return contender


def process(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Callable[[], Sample]:
    """Return a contender that is a whole process, from its start to its end. It must succeed.

    Its CPU time and peak memory are those that the operating system reports.
    """

    def contender() -> Sample:
        started = time.perf_counter()
        # Show its output only if it fails.
        child = subprocess.Popen(
            command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        child.stderr.close()
        if child.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {said.decode()[-2000:]}")
        return Sample(wall, _cpu(usage), usage.ru_maxrss)

    return contender


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"
