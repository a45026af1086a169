"""The protocol without one of its protections: what the simulation finds, beside what it finds in the real one.

    python -m tests.simulation.protocols --seeds 6

Each protection is taken out in a copy of the project. A protocol that loses, doubles or leaves nothing
in these worlds although a protection is missing means that the worlds are too kind: that is a failure.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.mutations import Mutation, copy_with
from tests.simulation.faults import FROZEN
from tests.simulation.report import Report


@dataclass(frozen=True, slots=True)
class Protocol:
    """The real one with a mutation, or as it is; and the kind of task and the faults that show the difference."""

    name: str
    mutation: Mutation | None = None
    kind: str | None = None
    faults: tuple[str, ...] = ()
    outbox: bool = False


def without(name: str, file: str, text: str, instead: str, kind: str, *faults: str, outbox: bool = False) -> Protocol:
    return Protocol(name, Mutation(name, file, text, instead), kind, faults, outbox)


REAL: Final = Protocol("the protocol as it is")

PROTOCOLS: Final = (
    without(
        "SUCCESS is written after the transaction",
        "executor.py",
        "        get_store().record(run, run.success)  # commits or rolls back with the work\n"
        '        points.reached("finish:before_commit")\n'
        '    points.reached("finish:after_commit")\n',
        '        points.reached("finish:before_commit")\n'
        '    points.reached("finish:after_commit")\n'
        "    get_store().record(run, run.success)\n",
        "plain",
        "killed",
    ),
    without(
        "a retry is recorded before it is sent",
        "executor.py",
        "            if refusal := send_retry(run, retry):\n                outcome, kept = Failed(refusal), None\n",
        "            get_store().record(run, outcome)\n"
        "            send_retry(run, retry)\n"
        "            return outcome\n",
        "retried",
        "killed",
        "send refused",
    ),
    without(
        "no fence",
        "stores/orm.py",
        "filter(pk=message_id, claim=claim, status=TaskStatus.RUNNING)\n",
        "filter(pk=message_id)\n",
        "plain",
        FROZEN,
    ),
    without(
        "a RUNNING record is acknowledged",
        "executor.py",
        'raise Redeliver(f"{run.task_name} is running in another worker", visible_in=seconds)',
        'return Skipped("running")',
        "plain",
        "killed",
    ),
    without(
        "an error on release of the lock changes the outcome",
        "singletons.py",
        '        sentence = "The lock %r could not be released; it ends by itself."\n',
        "        raise\n",
        "singleton_retried",
        "Redis away",
    ),
    without(
        "an alarm may strike in COMMIT",
        "timeouts.py",
        "        limits._armed = False\n        limits._owner = None\n",
        "        limits._owner = None\n",
        "plain",
        "limit over",
    ),
    without(
        "a retry does not end the invocation that has sent it",
        "stores/orm.py",
        "            if refused := self._end_predecessor(run):\n                return refused\n",
        "",
        "moody",
        "killed",
    ),
    without(
        "an error of on_commit is taken for a failure",
        "executor.py",
        "        if not run.committed:\n",
        "        if True:\n",
        "callback",
    ),
    without(
        "a message goes into the outbox after COMMIT",
        "outgoing.py",
        "        before_commit(connection, _keep_departures)\n",
        "        pass\n",
        "plain",
        "killed",
        outbox=True,
    ),
    without(
        "RETRYING and the retry's row are two transactions",
        "executor.py",
        "    with transaction.atomic(using=run.database):\n        get_store().record(run, outcome)  # first",
        "    get_store().record(run, outcome)\n    with transaction.atomic(using=run.database):\n        pass  # first",
        "retried",
        "killed",
        outbox=True,
    ),
)


def main() -> int:
    """Print one line for the real protocol and one for each that lacks something; 1 if one of those is clean."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.protocols", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", help="only protocols whose name contains one of these")
    parser.add_argument("--seeds", type=int, default=6, help="how many random worlds each (6)")
    parser.add_argument("--first-seed", type=int, default=1)
    options = parser.parse_args()
    chosen = [
        protocol for protocol in PROTOCOLS if not options.words or any(word in protocol.name for word in options.words)
    ]
    print(f"{'':54}{'orders':>8}{'faults':>8}{'lost':>6}{'doubled':>9}{'stuck':>7}{'other':>7}")
    broken = _simulate(REAL, options).sentences
    unnoticed = [protocol.name for protocol in chosen if not _simulate(protocol, options).sentences]
    for sentence in broken[:20]:
        print(f"\nIn the real one: {sentence}")
    for name in unnoticed:
        print(f"\nGREEN: {name}")
    return 1 if broken or unnoticed else 0


def _simulate(protocol: Protocol, options: argparse.Namespace) -> Report:
    """Run the worlds, print their figures, and return what was found."""
    with copy_with(protocol.mutation) as copy:
        file = Path(copy, "report.json")
        command = [sys.executable, "-m", "tests.simulation", "chaos", "--report", str(file)]
        command += ["--seeds", str(options.seeds), "--first-seed", str(options.first_seed)]
        command += ["--outbox", "yes" if protocol.outbox else "no"]
        command += ["--kinds", protocol.kind] if protocol.kind else []
        command += ["--faults", *protocol.faults] if protocol.faults else []
        subprocess.run(command, cwd=copy, check=True, stderr=subprocess.DEVNULL)
        report = Report.from_json(file.read_text())
    found = report.violations
    other = found.total() - found["lost"] - found["doubled"] - found["stuck"]
    print(
        f"{protocol.name:54}{report.sums['orders committed']:8}{report.sums['faults']:8}"
        f"{found['lost']:6}{found['doubled']:9}{found['stuck']:7}{other:7}",
        flush=True,
    )
    return report


if __name__ == "__main__":
    sys.exit(main())
