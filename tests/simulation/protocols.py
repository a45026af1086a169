"""Run the simulation with the real protocol, and with one protection removed at a time.

    python -m tests.simulation.protocols --seeds 6

Each protection is removed in a copy of the project. The run fails if the simulation does not detect a missing
protection, because its worlds are then too easy. The worlds of a protocol end with the first one that detects it,
unless `--all` is given.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from tests.mutations import Mutation, copy_with
from tests.simulation.faults import FROZEN
from tests.simulation.report import Report

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Options(TypedDict, total=False):
    """Optional attributes of a `Protocol`."""

    outbox: bool
    points: tuple[str, ...]
    often: tuple[str, ...]
    worlds: str


@dataclass(frozen=True, slots=True)
class Protocol:
    """The protocol, optionally with a mutation, and the worlds that show the difference."""

    name: str
    mutation: Mutation | None = None
    kind: str | None = None
    faults: tuple[str, ...] = ()
    outbox: bool = False
    #: The failpoints at which faults strike; all if there are none.
    points: tuple[str, ...] = ()
    #: The events that happen more often.
    often: tuple[str, ...] = ()
    #: "chaos" or "ticks".
    worlds: str = "chaos"


def without(
    name: str, file: str, text: str, instead: str, kind: str | None, *faults: str, **options: Unpack[Options]
) -> Protocol:
    return Protocol(name, Mutation(name, file, text, instead), kind, faults, **options)


REAL: Final = Protocol("the unmodified protocol")

PROTOCOLS: Final = (
    without(
        "SUCCESS is written after the transaction",
        "execution/pipeline.py",
        '        end_transaction(attempt, alone=alone)\n    failpoints.reached("finish:after_commit")\n',
        '        failpoints.reached("finish:before_commit")\n'
        '    failpoints.reached("finish:after_commit")\n'
        "    get_store().record(run, attempt.success)\n",
        "plain",
        "killed",
    ),
    without(
        "a retry is recorded before it is sent",
        "execution/settling.py",
        "            if refusal := send_retry(attempt, retry):\n"
        "                outcome, kept = Failed(refusal), None\n",
        "            get_store().record(run, outcome)\n"
        "            send_retry(attempt, retry)\n"
        "            return outcome\n",
        "retried",
        "killed",
        "send rejected",
    ),
    without(
        "the fence is missing",
        "stores/rows.py",
        "filter(NOT_ENDED, pk=message_id, claim=claim)\n",
        "filter(pk=message_id)\n",
        "plain",
        FROZEN,
    ),
    without(
        "the fence of the request that also commits is missing",
        "stores/committing.py",
        "concat('{_CLAIM_LOST}')",
        "'1'",
        "plain",
        FROZEN,
    ),
    without(
        "a RUNNING record is acknowledged",
        "execution/claiming.py",
        'raise Redeliver(f"{run.task_name} is running in another worker", visible_in=seconds, exact=not locked)',
        'return Skipped("running")',
        "plain",
        "killed",
    ),
    without(
        "an error while releasing the lock changes the outcome",
        "execution/locking.py",
        '        sentence = "The lock %r could not be released; it expires by itself."\n',
        "        raise\n",
        "singleton_retried",
        "Redis unavailable",
    ),
    without(
        "an alarm can fire during COMMIT",
        "limits/alarms.py",
        "        limits._armed = False\n        limits._owner = None\n",
        "        limits._owner = None\n",
        "plain",
        "limit exceeded",
    ),
    without(
        "a retry does not end the invocation that sent it",
        "stores/orm.py",
        "            if refused := self._end_predecessor(run):\n                return refused\n",
        "",
        "moody",
        "killed",
    ),
    without(
        "an on_commit error counts as the task's failure",
        "execution/pipeline.py",
        "        if not attempt.committed:\n",
        "        if True:\n",
        "callback",
    ),
    without(
        "an outcome that cannot be recorded counts as a failure",
        "execution/errors.py",
        "    elif refused_by_database(attempt, error, limits):\n",
        "    elif False:\n",
        "plain",
        "records locked",
        "server read-only",
    ),
    without(
        "tasks are dropped if the answer to COMMIT is lost",
        "execution/errors.py",
        "    send_what_followed(attempt)\n",
        "",
        "spawning",
        "answer to COMMIT lost",
    ),
    without(
        "messages are not compared with records",
        "fitting.py",
        "    names = (run.task_name, run.task.name, *run.task.aliases)\n",
        "    return None\n    names = (run.task_name, run.task.name, *run.task.aliases)\n",
        "moody",
    ),
    without(
        "a message is stored in the outbox after COMMIT",
        "sending/outgoing.py",
        "        before_commit(connection, _keep_leaving)\n",
        "        pass\n",
        "plain",
        "killed",
        outbox=True,
    ),
    without(
        "RETRYING and the retry's row use two transactions",
        "execution/settling.py",
        "    with transaction.atomic(using=run.database):\n        get_store().record(run, outcome)  # first",
        "    get_store().record(run, outcome)\n    with transaction.atomic(using=run.database):\n        pass  # first",
        "retried",
        "killed",
        outbox=True,
    ),
    without(
        "a task that was cancelled before a takeover runs",
        "execution/claiming.py",
        "    if not requested:\n",
        "    if True:\n",
        "plain",
        "killed",
        points=("task:enter",),
        often=("cancel",),
    ),
    without(
        "cancelling counts a task as new that is claimed",
        "stores/cancelling.py",
        "            raise  # not a duplicate: the database refuses the row itself\n        return False\n",
        "            raise  # not a duplicate: the database refuses the row itself\n        return True\n",
        "plain",
        FROZEN,
        points=("cancel:before_write",),
        often=("cancel",),
    ),
    without(
        "cancelling counts a task as waiting that is claimed",
        "stores/cancelling.py",
        "    return bool(updated)\n",
        "    return True\n",
        "waiting",
        FROZEN,
        "killed",
        FROZEN,
        points=("cancel:before_write", "shop:inside"),
        often=("cancel",),
    ),
    without(
        "a unique key is free while its task runs",
        "sending/unique.py",
        '    return State.STARTED if progress.status == "RUNNING" else State.ENDED\n',
        "    return State.ENDED\n",
        "unique",
        FROZEN,
        points=("shop:inside",),
    ),
    without(
        "unique keys are not compared",
        "sending/unique.py",
        "        if holder is None:\n",
        "        if True:\n",
        "unique",
        FROZEN,
        points=("shop:inside",),
    ),
    without(
        "a replaced call runs as well",
        "sending/unique.py",
        "    get_store().replace(holder.message_id, task_name=job.task_name, queue=job.queue)\n",
        "",
        "replacing",
        "killed",
        points=("claim:before",),
    ),
    without(
        "a message that may have been sent is rewritten",
        "backends/outbox.py",
        "due_at__gt=DatabaseNow(), attempts=0, holder=None",
        "holder=None",
        "postponed",
        "killed",
        outbox=True,
        points=("relay:sent",),
        often=("relay", "pass_time"),
    ),
    without(
        "waiting for a lock uses up retries",
        "execution/waiting.py",
        '    if run.task.on_contention == "retry" or not run.limited or not get_store().waits:\n',
        "    if True:\n",
        "waiting",
        FROZEN,
        points=("shop:inside",),
    ),
    without(
        "the maximum wait for a lock is ignored",
        "execution/waiting.py",
        "    if left <= 0:\n",
        "    if False:\n",
        "impatient",
        "killed",
    ),
    without(
        "a task that waits forgets since when",
        "stores/keyed.py",
        'Coalesce("waiting_since", DatabaseNow())',
        "DatabaseNow()",
        "impatient",
        "killed",
    ),
    without(
        "a run releases the lock that another run holds",
        "locks/redis.py",
        "    _change_if_held(client, key, token, lambda pipe: pipe.delete(key))\n",
        "    client.delete(key)\n",
        "limited",
        FROZEN,
        points=("lock:before_release", "shop:inside"),
    ),
    without(
        "the transaction does not hold the lock",
        "execution/locking.py",
        "    for key in attempt.lock_keys:\n",
        "    for key in ():\n",
        "waiting",
        FROZEN,
        "locks lost",
        points=("shop:inside", "claim:after"),
    ),
    without(
        "the retries that a policy allows are not counted",
        "execution/errors.py",
        "    if own is not None and (own >= limit or own_error):\n",
        "    if False:\n",
        "exhausted",
        "killed",
    ),
    without(
        "a task without a transaction is repeated after a crash",
        "execution/claiming.py",
        '    if run.task.on_crash == "fail":\n',
        "    if False:\n",
        "committing_once",
        "killed",
        points=("shop:inside", "task:leave"),
    ),
    without(
        "a schedule moves on before it sends its ticks",
        "operations/schedules.py",
        '            return None\n        failpoints.reached("schedule:due")\n'
        '        sent = _send_accepted(jobs)\n        failpoints.reached("schedule:sent")\n    return sent\n',
        '            return None\n    failpoints.reached("schedule:due")\n'
        '    sent = _send_accepted(jobs)\n    failpoints.reached("schedule:sent")\n    return sent\n',
        None,
        "killed",
        points=("schedule:due",),
        worlds="ticks",
    ),
    without(
        "a schedule moves on from a tick that it does not compare",
        "operations/schedules.py",
        "filter(pk=state.pk, last_tick=state.last_tick, paused=False)",
        "filter(pk=state.pk, paused=False)",
        None,
        FROZEN,
        points=("schedule:due", "schedule:moved"),
        worlds="ticks",
    ),
    without(
        "the id of a tick is random",
        "operations/schedules.py",
        "tick_id = ids.tick_id(self.task.name, self.schedule.label, tick)",
        "tick_id = ids.new_message_id()",
        None,
        "killed",
        points=("schedule:sent",),
        worlds="ticks",
    ),
    without(
        "the id of a follower is random",
        "flows/due.py",
        'ids.follow_up_id(ended_id, f"{place} {number}")',
        "ids.new_message_id()",
        "followed",
        "killed",
        points=("batch:before_return",),
    ),
    without(
        "what a task owes is not noted in its transaction",
        "flows/ending.py",
        "    if not get_backend().keeps and owed:\n",
        "    if False:\n",
        "followed",
        "killed",
        points=("enqueue:after_commit", "send:before"),
    ),
    without(
        "a redelivered message overwrites what a call owes",
        "flows/rows.py",
        "(flow.filter(ended_at=None) if unended else flow)",
        "flow",
        "followed",
        "killed",
        points=("flow:after_commit",),
    ),
    without(
        "a message is acknowledged before its followers are sent",
        "execution/pipeline.py",
        "        if attempt.run.is_followed and not isinstance(outcome, Retry):\n",
        "        if False:\n",
        "grouped",
        "killed",
        points=("batch:start",),
    ),
    without(
        "a later debt is forgotten with an earlier one",
        "flows/rows.py",
        "filter(pk=row.pk, debt=row.debt)",
        "filter(pk=row.pk)",
        "chain_failing",
        FROZEN,
        "killed",
        points=("flow:sent", "flow:after_commit"),
        often=("thaw",),
    ),
    without(
        "a chain is not locked while it advances or is cancelled",
        "flows/rows.py",
        "flows(database).select_for_update().filter(pk=flow_id)",
        "flows(database).filter(pk=flow_id)",
        "chained",
        FROZEN,
        outbox=True,
        points=("flow:after_end",),
        often=("cancel", "relay"),
    ),
    without(
        "successes are forgotten as soon as they are committed",
        "operations/forgetting.py",
        "    ended_before = from_now(-app_settings.forget_after)\n",
        "    ended_before = from_now(0)\n",
        "brief",
        "killed",
        points=("batch:before_return",),
        often=("relay", "deliver_again"),
    ),
    without(
        "the maintenance recovers no flows",
        "operations/reaping.py",
        "            recovery.recover(store.database, seconds=deadline - monotonic())\n",
        "",
        "grouped",
        "killed",
        points=("flow:after_commit", "flow:last_member"),
        often=("drop",),
    ),
    without(
        "large arguments are stored after COMMIT",
        "backends/places.py",
        "        rows.create(id=stored.key, content=text, used_at=from_now(job.delay))\n",
        "        from django.db import transaction\n"
        "        create = lambda: rows.create(id=stored.key, content=text, used_at=from_now(job.delay))\n"
        "        transaction.on_commit(create, using=job.database)\n",
        "large",
        "killed",
        "answer to COMMIT lost",
        outbox=True,
    ),
    without(
        "large arguments are deleted when a worker has read them",
        "execution/fetching.py",
        "    complete = message.with_stored(get_backend().fetch(message.stored))\n",
        "    complete = message.with_stored(get_backend().fetch(message.stored))\n"
        "    from lambda_tasks.models import StoredArguments\n"
        "    StoredArguments.objects.filter(pk=message.stored.key).delete()\n",
        "large",
        "killed",
        points=("task:enter",),
    ),
)


#: Without a protection, the worlds end with the first one that notices. On a busy machine, that may be a late one.
_MORE_SEEDS: Final = 4


def main() -> int:
    """Print the figures of each protocol. Return 1 if a missing protection is not detected."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.protocols", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", help="only protocols whose name contains one of these")
    parser.add_argument("--seeds", type=int, default=6, help="the number of random worlds of the protocol (6)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th protocol (1)")
    parser.add_argument("--jobs", type=int, default=2, help="the number of protocols at the same time (2)")
    parser.add_argument("--all", action="store_true", help="run all worlds of each protocol")
    options = parser.parse_args()
    chosen = [
        protocol for protocol in PROTOCOLS if not options.words or any(word in protocol.name for word in options.words)
    ]
    chosen = chosen[:: options.every]
    print(f"{'':54}{'orders':>8}{'faults':>8}{'lost':>6}{'doubled':>9}{'stuck':>7}{'other':>7}")
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        broken, *found = [report.sentences for report in pool.map(partial(_simulate, options=options), [REAL, *chosen])]
    unnoticed = [protocol.name for protocol, sentences in zip(chosen, found, strict=True) if not sentences]
    for sentence in broken[:20]:
        print(f"\nIn the unmodified protocol: {sentence}")
    for name in unnoticed:
        print(f"\nNot detected: {name}")
    return 1 if broken or unnoticed else 0


def _simulate(protocol: Protocol, options: argparse.Namespace) -> Report:
    """Run the worlds, print their figures, and return the report."""
    with copy_with(protocol.mutation) as copy:
        file = Path(copy, "report.json")
        command = [sys.executable, "-m", "tests.simulation", protocol.worlds, "--report", str(file)]
        first_only = not options.all and protocol is not REAL
        seeds = _MORE_SEEDS * options.seeds if first_only else options.seeds
        command += ["--seeds", str(seeds), "--first-seed", str(options.first_seed)]
        command += ["--outbox", "yes" if protocol.outbox else "no"]
        command += ["--kinds", protocol.kind] if protocol.kind else []
        command += ["--faults", *protocol.faults] if protocol.faults else []
        command += ["--points", *protocol.points] if protocol.points else []
        command += ["--often", *protocol.often] if protocol.often else []
        command += ["--stop"] if first_only else []
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
