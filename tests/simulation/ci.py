"""The simulations that CI runs, three at a time: `python -m tests.simulation.ci`."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

#: With the outbox only what that changes: its points, and the retries that go through it.
_OUTBOX: Final = (
    *("--outbox=yes", "--kinds", "plain", "retried", "waiting", "unique", "replacing", "postponed"),
    *("--points", "enqueue:", "outbox:", "relay:", "send:", "wait:", "unique:"),
)
#: One kind of task for each way through the executor. `make sweep` has all kinds, in four times the time.
_KINDS: Final = (
    *("plain", "retried", "spawning", "singleton", "unrepeatable", "committing", "waiting", "unique", "replacing"),
)
#: Of tasks that follow each other, only what they add. `make sweep` has all of their cases, in twenty times the time.
_FLOWS: Final = (
    *("--kinds", "followed", "chain_failing", "grouped", "--points", "flow:"),
    *("--faults", "killed", "SQS unavailable", "frozen past the lease"),
)
#: They wait for their processes and databases half of the time, so two would leave a part of two cores unused.
_AT_A_TIME: Final = 3
#: Of a simulation that failed, so many lines are printed again: its seeds, what it found, or how it ended.
_LAST_LINES: Final = 20
COMMANDS: Final[tuple[tuple[str, ...], ...]] = (
    ("tests.simulation", "sweep", "--kinds", *_KINDS),
    # `make protocols` has all of them, in four times the time.
    ("tests.simulation.protocols", "--seeds=5", "--first-seed=11", "--every=4", "--jobs=3"),
    ("tests.simulation", "sweep", *_FLOWS),
    ("tests.simulation", "sweep", *_OUTBOX),
    ("tests.simulation", "sweep", "--kinds", "large", "--points", "arguments:", "retry:"),
    ("tests.simulation", "chaos", "--seeds", "6"),
    ("tests.simulation", "chaos", "--seeds", "2", "--kinds", "djangos", "plain"),
    ("tests.simulation", "chaos", "--seeds", "2", "--kinds", "brief", "plain", "--partitioned=yes"),
    ("tests.simulation", "chaos", "--seeds", "3", "--outbox=yes"),
    ("tests.simulation", "chaos", "--seeds", "2", "--database=mariadb"),
    ("tests.simulation", "crashes", "--seeds", "2", "--durable-claims=no"),
    ("tests.simulation", "ticks", "--seeds", "2"),
    ("tests.simulation", "ticks", "--seeds", "2", "--outbox=yes"),
    ("tests.simulation", "ticks", "--seeds", "1", "--database=mariadb"),
)


def run(command: tuple[str, ...]) -> tuple[int, float, str]:
    """Run one simulation, and return its exit code, its duration in seconds and what it printed."""
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", *command], check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return ran.returncode, time.monotonic() - began, ran.stdout


def main() -> int:
    failed = []
    with ThreadPoolExecutor(max_workers=_AT_A_TIME) as pool:
        for command, (code, seconds, output) in zip(COMMANDS, pool.map(run, COMMANDS), strict=True):
            print(f"\n$ python -m {' '.join(command)}\n{output}{'FAILED' if code else 'passed'} in {seconds:.0f} s.")
            if code:
                failed.append((command, output))
    # Again at the end, because a reader of a long log may have only its end.
    for command, output in failed:
        print(f"\nFAILED: python -m {' '.join(command)}")
        print("\n".join(f"FAILED: {line}" for line in output.splitlines()[-_LAST_LINES:]))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
