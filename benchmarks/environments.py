"""Measure what preparing environments gains: `python -m benchmarks.environments`.

It starts the real runtime client as SnapStart, provisioned concurrency and Managed Instances do, without AWS.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import cold_start, servers
from benchmarks.harness import Spread
from benchmarks.report import Report, Table, main
from tests.environments.runtime_api import RuntimeApi

RUNTIME: Final = "awslambdaric"
INSTANCES: Final = "lambda_tasks.instances"
KIND: Final = "AWS_LAMBDA_INITIALIZATION_TYPE"
CONCURRENCY: Final = "AWS_LAMBDA_MAX_CONCURRENCY"
PROCESSES: Final = 4
HANDLER: Final = "lambda_tasks.handler.handler"

ON_DEMAND: Final = "on demand"
SINGLE: Final = {
    ON_DEMAND: "on-demand",
    "provisioned concurrency": "provisioned-concurrency",
    "SnapStart": "snap-start",
}
UNPREPARED: Final = "awslambdaric, set up in the first invocations"
MANY: Final = {
    UNPREPARED: (RUNTIME, "on-demand"),
    "awslambdaric, set up while the processes start": (RUNTIME, "lambda-managed-instances"),
    "lambda_tasks.instances, set up before the fork": (INSTANCES, "lambda-managed-instances"),
}


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds until the processes are ready, and of their first invocations; their memory in MiB after these."""

    ready: float
    first: float
    #: The sums of what is resident, in which shared pages count once for each process, and of the shares.
    resident: float
    shares: float


def measure(options: argparse.Namespace) -> Report:
    with cold_start.databases() as (postgres, _), tempfile.TemporaryDirectory() as bytecode:
        environment = cold_start.with_tasks(cold_start.project("web", postgres, bytecode), "yes")
        contenders: dict[str, Callable[[], Start]] = {
            name: partial(started, environment | {KIND: kind}, RUNTIME, 1) for name, kind in SINGLE.items()
        }
        for name, (module, kind) in MANY.items():
            variables = {KIND: kind, CONCURRENCY: str(PROCESSES)}
            contenders[name] = partial(started, environment | variables, module, PROCESSES)
        for contender in contenders.values():
            contender()  # compiles the modules
        found: dict[str, list[Start]] = {name: [] for name in contenders}
        for _ in range(options.rounds):
            for name, contender in contenders.items():
                found[name].append(contender())
    return Report(
        title="Environments",
        question="What does it gain to set Django up before the first message, and before the processes are forked?",
        method=[
            *servers.machine(),
            f"{options.rounds} rounds; in each round, the contenders take turns",
            "The project has Django's own apps and 20 tasks; its database is PostgreSQL",
            f"The first invocations are one event each for all processes, {PROCESSES} at the same time",
            "Memory is that of all processes after their first invocations, from /proc/PID/smaps_rollup",
        ],
        tables=[
            table("One process: start, and first invocation", {name: found[name] for name in SINGLE}),
            table(f"{PROCESSES} processes: start, and first invocations", {name: found[name] for name in MANY}),
        ],
        plots=[],
        remarks=[],
    )


def started(environment: Mapping[str, str], module: str, count: int) -> Start:
    """Start `count` processes, and let each of them run one message."""
    with RuntimeApi() as api, running(environment, module, api) as process:
        began = time.perf_counter()
        api.wait_until(lambda: api.idle == count)
        ready = time.perf_counter() - began
        began = time.perf_counter()
        invocations = [api.offer(cold_start.event(), timeout=600) for _ in range(count)]
        for invocation in invocations:
            if invocation.wait().response != {"batchItemFailures": []}:
                raise RuntimeError(f"{module} answered {invocation.response or invocation.error}")
        first = time.perf_counter() - began
        api.wait_until(lambda: api.idle == count)
        return Start(ready, first, *memory_of([process.pid, *children_of(process.pid)]))


@contextmanager
def running(environment: Mapping[str, str], module: str, api: RuntimeApi) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, HANDLER],
        env={**os.environ, **environment, "AWS_LAMBDA_RUNTIME_API": api.address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory_of(pids: list[int]) -> tuple[float, float]:
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    resident, shares = (
        sum(int(number) for text in texts for number in re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)) / 1024
        for name in ("Rss", "Pss")
    )
    return resident, shares


def table(caption: str, found: Mapping[str, list[Start]]) -> Table:
    return Table(
        caption,
        ["environment", "ready, s", "first invocations, s", "resident, MiB", "shares, MiB"],
        [
            [
                name,
                str(Spread.of([start.ready for start in starts])),
                str(Spread.of([start.first for start in starts])),
                f"{Spread.of([start.resident for start in starts]).median:.0f}",
                f"{Spread.of([start.shares for start in starts]).median:.0f}",
            ]
            for name, starts in found.items()
        ],
    )


if __name__ == "__main__":
    main(measure, rounds=7)
