"""Run thousands of tasks through the real runtime client while workers are killed, and check for losses.

    python -m tests.faults.soak [--tasks 10000] [--workers 2] [--seed N] [--kill-every SECONDS]

Everything except the cloud is real: PostgreSQL, an SQS server over HTTP (moto's), and local workers with
`awslambdaric` in separate processes. Orders are enqueued in transactions of random sizes, some of which are rolled
back. Workers, or only their runtimes, are killed with SIGKILL at random moments, and restarted. One more worker,
the witness, is never killed, and its memory is measured. When all activity has ended, records and effects are
compared with the orders. The exit status is 1 if a check fails.

The times of the kills depend on the machine, so a seed does not reproduce a run exactly. It reproduces the orders
and the victims. The soak test runs only on Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg

from tests import services
from tests.services import Missing, Server

ROOT: Final = Path(__file__).parents[2]

#: The visibility timeout in seconds: longer than most leases here, shorter than those of slow tasks.
VISIBILITY_TIMEOUT: Final = 5
#: The timeout of an invocation in seconds.
FUNCTION_TIMEOUT: Final = 30
#: The maximum number of waiting orders, because moto reads its whole queue for each request.
MAX_WAITING: Final = 200
#: The maximum number of orders in a transaction.
MAX_TRANSACTION: Final = 25
#: Seconds between two checks, and between two lines of output.
TICK: Final = 0.1
LINE_EVERY: Final = 10.0
#: MiB by which the mean of a process's last third of samples may exceed the mean of its first third.
FLAT: Final = 8.0
#: The minimum number of tasks to check memory, because shorter runs are only warming up.
TASKS_FOR_MEMORY: Final = 2_000
#: The frequency of each kind of order.
KINDS: Final = {"plain": 780, "at_second_attempt": 80, "failing": 50, "leading": 60, "slow": 29, "endless": 1}
#: The share of transactions that are rolled back, and of those that lose a savepoint.
ROLLED_BACK: Final = 0.1
LOSES_SAVEPOINT: Final = 0.1
#: The probability, at each check, of a kill of a runtime that has not run anything yet.
STRIKES_EARLY: Final = 0.005

#: A worker that ends with this process, even if this process is killed.
WORKER: Final = """
import sys
from lambda_tasks.local.launch import die_with
die_with(int(sys.argv[1]))
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", "lambda_tasks", "worker", *sys.argv[2:]])
"""


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201, it is a command


# Orders


@dataclass(frozen=True, slots=True)
class Order:
    """An enqueued task: its number, its kind, and the id of its invocation."""

    number: int
    kind: str
    message_id: UUID


class _Regretted(Exception):
    """Roll back a transaction or a savepoint."""


@dataclass
class Customer:
    """A customer who enqueues orders, and remembers which of them were committed."""

    chance: random.Random
    numbers: Iterator[int] = field(default_factory=itertools.count)
    committed: list[Order] = field(default_factory=list)
    rolled_back: list[Order] = field(default_factory=list)

    def enqueue(self, at_most: int) -> None:
        """Enqueue up to `at_most` orders, in one transaction that may be rolled back."""
        from django.db import transaction

        orders: list[Order] = []
        withdrawn: list[Order] = []
        try:
            with transaction.atomic():
                for _ in range(self.chance.randint(1, min(at_most, MAX_TRANSACTION))):
                    orders.append(self._order())
                if self.chance.random() < LOSES_SAVEPOINT:
                    with suppress(_Regretted), transaction.atomic():
                        withdrawn.append(self._order())
                        raise _Regretted
                if self.chance.random() < ROLLED_BACK:
                    raise _Regretted
        except _Regretted:
            self.rolled_back += orders
        else:
            self.committed += orders
        self.rolled_back += withdrawn

    def _order(self) -> Order:
        from tests.faults import soak_tasks

        [kind] = self.chance.choices(list(KINDS), weights=list(KINDS.values()))
        number = next(self.numbers)
        handle = getattr(soak_tasks, kind).execute_on_commit(order=number)
        return Order(number, kind, UUID(handle.message_id))


# Workers


@dataclass
class Worker:
    """Run `manage.py lambda_tasks worker` with one runtime, and restart it whenever it has ended."""

    name: str
    folder: Path
    batch_size: int = 10
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def keep_running(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        options = ["--function-timeout", str(FUNCTION_TIMEOUT), "--batch-size", str(self.batch_size)]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WORKER, str(os.getpid()), *options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.starts += 1

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    @property
    def runtime_pid(self) -> int | None:
        """The process id of the worker's `awslambdaric`, or None."""
        if self.pid is None:
            return None
        with suppress(OSError, ValueError):
            for thread in Path(f"/proc/{self.pid}/task").iterdir():
                for child in (thread / "children").read_text().split():
                    if b"awslambdaric" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return int(child)
        return None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def resident_mib(pid: int) -> float | None:
    """Return the resident memory of a process, or None if it has ended."""
    with suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return None


class Diary:
    """The events that the workers have recorded, each for one invocation in one runtime."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.events: list[tuple[str, UUID]] = []
        #: The number of deliveries that each process has claimed or skipped.
        self.deliveries: Counter[int] = Counter()

    def read_on(self) -> None:
        if not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._offset)
            lines = file.readlines()
            self._offset = file.tell()
        for event, message_id, pid in (line.split() for line in lines):
            self.events.append((event, UUID(message_id)))
            self.deliveries[int(pid)] += event != "finished"


@dataclass
class Memory:
    """Samples of the witness's processes in MiB, in the order in which tasks ended."""

    samples: dict[tuple[str, int], list[float]] = field(default_factory=lambda: defaultdict(list))

    def sample(self, witness: Worker) -> None:
        for role, pid in (("worker", witness.pid), ("runtime", witness.runtime_pid)):
            mib = resident_mib(pid) if pid is not None else None
            if pid is not None and mib is not None:
                self.samples[role, pid].append(mib)

    def lives(self, role: str) -> int:
        """Return the number of processes that the witness had in a role: one, unless it died by itself."""
        return sum(which == role for which, _ in self.samples)

    def thirds(self, role: str) -> tuple[float, float] | None:
        """Return the means of the first and the last third of the process that lived longest."""
        lives = [samples for (which, _), samples in self.samples.items() if which == role]
        longest = max(lives, key=len, default=[])
        third = len(longest) // 3
        return (statistics.mean(longest[:third]), statistics.mean(longest[-third:])) if third else None


# Results


@dataclass
class Verdict:
    """The violations, described under the headings of the table."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    disagreeing: list[str] = field(default_factory=list)
    growing: list[str] = field(default_factory=list)
    #: Not a violation: see `Audit._check_follow_up`.
    unsent: int = 0

    @property
    def violations(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.stuck, *self.disagreeing, *self.growing]


class Audit:
    """Compare orders with records and effects."""

    def __init__(self, customer: Customer, diary: list[tuple[str, UUID]]) -> None:
        from lambda_tasks.models import TaskRecord
        from tests.app.models import Effect

        self.customer = customer
        self.effects = Counter(Effect.objects.values_list("name", flat=True))
        self.records = {record.pk: record for record in TaskRecord.objects.all()}
        self.finished = {message_id for event, message_id in diary if event == "finished"}
        self.verdict = Verdict()
        self._explained_effects: set[str] = set()
        self._explained_records: set[UUID] = set()

    def run(self) -> Verdict:
        follow_ups = {
            record.kwargs["order"]: record for record in self.records.values() if _kind(record) == "follow_up"
        }
        for order in self.customer.committed:
            self._check_order(order)
            if order.kind == "leading":
                self._check_follow_up(order, follow_ups.get(order.number))
        for name in self.effects.keys() - self._explained_effects:
            self.verdict.disagreeing.append(f"{name!r} is an effect without a committed order")
        for pk in self.records.keys() - self._explained_records:
            self.verdict.disagreeing.append(f"{self.records[pk]} is a record without a committed order")
        for record in self.records.values():
            if record.status == "RUNNING":
                self.verdict.stuck.append(f"{record} is still RUNNING")
        return self.verdict

    def _check_order(self, order: Order) -> None:
        from tests.faults.soak_tasks import effect_of

        what = f"order {order.number} ({order.kind}, {order.message_id})"
        statuses = {
            "at_second_attempt": ["RETRYING", "SUCCESS"],
            "failing": ["FAILED"],
            "endless": ["FAILED"],
        }.get(order.kind, ["SUCCESS"])
        self._check_chain(what, order.message_id, statuses)
        self._check_effect(what, effect_of(order.number), expected=int(statuses[-1] == "SUCCESS"))

    def _check_follow_up(self, order: Order, record: Any) -> None:
        from tests.faults.soak_tasks import effect_of_follow_up

        what = f"the follow-up of order {order.number}"
        leader = self.records.get(order.message_id)
        if leader is None or leader.status != "SUCCESS":
            return  # the order itself is reported
        if record is None and order.message_id not in self.finished:
            # The worker died between the task's COMMIT and the sending of the tasks that it enqueued.
            # This is documented: only the outbox prevents it.
            self.verdict.unsent += 1
            self._check_effect(what, effect_of_follow_up(order.number), expected=0)
            return
        if record is None:
            self.verdict.lost.append(f"{what} has no record, although {order.message_id} was finished")
        else:
            self._check_chain(what, record.pk, ["SUCCESS"])
        self._check_effect(what, effect_of_follow_up(order.number), expected=1)

    def _check_chain(self, what: str, root: UUID, statuses: list[str]) -> None:
        """Check that the chain of retries has no gap, and that each record has the expected status."""
        from lambda_tasks.wire.ids import retry_id

        for n_retries, expected in enumerate(statuses):
            pk = UUID(retry_id(str(root), n_retries)) if n_retries else root
            self._explained_records.add(pk)
            record = self.records.get(pk)
            if record is None:
                self.verdict.disagreeing.append(f"{what} has no record of its retry {n_retries}")
            elif (record.status, record.n_retries, record.root_id) != (expected, n_retries, root):
                self.verdict.disagreeing.append(f"{what}: {record} should be {expected} as its retry {n_retries}")

    def _check_effect(self, what: str, name: str, *, expected: int) -> None:
        self._explained_effects.add(name)
        found = self.effects[name]
        if found > max(expected, 1):
            self.verdict.doubled.append(f"{what} took effect {found} times")
        elif found < expected:
            self.verdict.lost.append(f"{what} took no effect")
        elif found > expected:
            self.verdict.disagreeing.append(f"{what} took effect but must not")


def _kind(record: Any) -> str:
    return str(record.task_name).rpartition(".")[2]


# The run


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of the command line."""

    tasks: int
    workers: int
    seed: int
    kill_every: float
    least_kills: int
    #: Seconds without progress after which remaining tasks count as stuck.
    patience: float


class Soak:
    """One run, from the first order to the table."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        # Use two generators, so that the orders do not depend on the times of the kills.
        self.customer = Customer(random.Random(f"orders {plan.seed}"))
        self.chance = random.Random(f"kills {plan.seed}")
        self.workers = [Worker(f"worker-{number + 1}", folder) for number in range(plan.workers)]
        # Small batches, so that workers that are killed do most of the work.
        self.witness = Worker("witness", folder, batch_size=1)
        self.memory = Memory()
        self.diary = Diary(folder / "diary")
        self.kills: Counter[str] = Counter()
        self.began = time.monotonic()
        self._next_strike = self.began + self._pause()
        self._settled_at_strike = 0

    def run(self, is_idle: Callable[[], bool]) -> bool:
        """Enqueue everything while workers die, and wait for the end of all activity. Return False if it never ends."""
        next_line = progress_at = time.monotonic()
        settled = sampled = -1
        with self._working():
            while True:
                before, settled = settled, self._settled()
                now = time.monotonic()
                if settled != before:
                    progress_at = now
                if settled - sampled >= max(self.plan.tasks // 60, 1):
                    sampled = settled
                    self.memory.sample(self.witness)
                if now >= next_line:
                    next_line = now + LINE_EVERY
                    say(self._line(settled))
                for worker in (self.witness, *self.workers):
                    worker.keep_running()
                self._enqueue(settled)
                self._strike_if_due(now, settled)
                if self._all_ordered() and settled >= len(self.customer.committed) and self._at_rest(is_idle):
                    return True
                if now - progress_at > self.plan.patience:
                    return False
                time.sleep(TICK)

    @contextmanager
    def _working(self) -> Iterator[None]:
        try:
            yield
        finally:
            for worker in (self.witness, *self.workers):
                worker.kill()

    def _all_ordered(self) -> bool:
        return len(self.customer.committed) >= self.plan.tasks and self.kills.total() >= self.plan.least_kills

    def _enqueue(self, settled: int) -> None:
        # The last orders wait for the kills, so that a short run has enough of them.
        parts = self.plan.least_kills + 1
        allowed = min(self.plan.tasks * (self.kills.total() + 1) // parts, self.plan.tasks)
        while (missing := allowed - len(self.customer.committed)) > 0:
            if len(self.customer.committed) - settled >= MAX_WAITING:
                return
            self.customer.enqueue(missing)

    def _strike_if_due(self, now: float, settled: int) -> None:
        """Kill a random runtime or worker, unless only the last orders are left."""
        # If no task has ended since the last kill, the workers are still starting.
        if now < self._next_strike or settled <= self._settled_at_strike or self._all_ordered():
            return
        victim = self.chance.choice(self.workers)
        wants_runtime = self.chance.random() < 0.6
        runtime = victim.runtime_pid
        self.diary.read_on()
        if runtime is None or (not self.diary.deliveries[runtime] and self.chance.random() > STRIKES_EARLY):
            return  # it has nothing to lose yet
        self._next_strike = now + self._pause()
        self._settled_at_strike = settled
        if wants_runtime:
            with suppress(ProcessLookupError):
                os.kill(runtime, signal.SIGKILL)
                self.kills["runtimes"] += 1
        else:
            victim.kill()
            self.kills["workers"] += 1

    def _pause(self) -> float:
        return self.chance.uniform(0.2, 1.8) * self.plan.kill_every

    def _settled(self) -> int:
        """Return the number of orders that have ended, without their follow-ups."""
        from lambda_tasks.models import TaskRecord

        ended = TaskRecord.objects.filter(status__in=("SUCCESS", "FAILED"))
        return int(ended.exclude(task_name__endswith=".follow_up").count())

    def _at_rest(self, is_idle: Callable[[], bool]) -> bool:
        from lambda_tasks.models import TaskRecord

        return is_idle() and not TaskRecord.objects.filter(status="RUNNING").exists() and is_idle()

    def _line(self, settled: int) -> str:
        seconds = time.monotonic() - self.began
        ordered = len(self.customer.committed)
        return f"{seconds:6.0f} s  {ordered} ordered, {settled} settled, {self.kills.total()} kills"

    def audit(self, *, rested: bool, left: str) -> tuple[Verdict, list[tuple[str, str]]]:
        """Return the violations and the rows of the table."""
        self.diary.read_on()
        audit = Audit(self.customer, self.diary.events)
        verdict = audit.run()
        if not rested:
            verdict.stuck.append(f"there was no progress for {self.plan.patience:g} s: {left}")
        events = Counter(event for event, _ in self.diary.events)
        records = audit.records.values()
        rows = [
            ("orders", f"{len(self.customer.committed)}"),
            ("rolled back", f"{len(self.customer.rolled_back)}"),
            ("follow-ups", f"{sum(_kind(record) == 'follow_up' for record in records)}"),
            ("claimed deliveries", f"{sum(events.values()) - events['finished']}"),
            ("  by the witness", f"{self._of_witness()}"),
            ("  run", f"{events['started']}"),
            ("  already finished", f"{events['skipped:finished']}"),
            ("  running elsewhere", f"{events['skipped:running']}"),
            (
                "kills",
                f"{self.kills.total()}: {self.kills['runtimes']} runtimes, {self.kills['workers']} workers",
            ),
            ("starts", f"{sum(w.starts for w in self.workers)} of workers, {self.witness.starts} of the witness"),
            ("takeovers", f"{sum(record.takeovers for record in records)}"),
            ("retries", f"{sum(record.n_retries > 0 for record in records)}"),
            ("unsent follow-ups", f"{verdict.unsent} (killed between COMMIT and send: needs the outbox)"),
            ("lost", f"{len(verdict.lost)}"),
            ("doubled", f"{len(verdict.doubled)}"),
            ("stuck", f"{len(verdict.stuck)}"),
            ("disagreeing", f"{len(verdict.disagreeing)}"),
        ]
        for role in ("worker", "runtime"):
            rows.append((f"RSS of the {role}", self._judge_memory(role, verdict)))
        rows.append(("seconds", f"{time.monotonic() - self.began:.0f}"))
        return verdict, rows

    def _of_witness(self) -> int:
        pids = {pid for role, pid in self.memory.samples if role == "runtime"}
        return sum(self.diary.deliveries[pid] for pid in pids)

    def _judge_memory(self, role: str, verdict: Verdict) -> str:
        thirds = self.memory.thirds(role)
        if thirds is None or self.plan.tasks < TASKS_FOR_MEMORY:
            return f"not checked with fewer than {TASKS_FOR_MEMORY} tasks"
        first, last = thirds
        if last - first > FLAT:
            verdict.growing.append(f"the {role} grew from {first:.1f} to {last:.1f} MiB; {FLAT:g} MiB are allowed")
        lives = self.memory.lives(role)
        return f"{first:.1f} MiB in the first third, {last:.1f} MiB in the last (the longest of {lives} lives)"


# Servers


@contextmanager
def own_database(server: Server) -> Iterator[dict[str, Any]]:
    """Create a database on the server, yield its entry for DATABASES, and drop it at the end."""
    name = f"soak_{os.getpid()}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        try:
            yield services.django_database(server, name=name)
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def sqs_server() -> Iterator[str]:
    """Start an SQS server in a separate process, and yield its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.soak_sqs"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdin, process.stdout:
            address = process.stdout.readline().strip()
            if not address:
                raise SystemExit("The SQS server did not start. Check that moto, flask and flask-cors are installed.")
            yield address
    finally:
        process.kill()
        process.wait()


def create_queue(address: str) -> str:
    import boto3

    client = boto3.client("sqs", endpoint_url=address)
    url: str = client.create_queue(QueueName="soak", Attributes={"VisibilityTimeout": str(VISIBILITY_TIMEOUT)})[
        "QueueUrl"
    ]
    return url


def soak(plan: Plan, *, keep: Path | None) -> int:
    """Run the plan, print the table, and return the exit status."""
    say(f"Seed {plan.seed}: {plan.tasks} tasks, {plan.workers} workers, a kill about every {plan.kill_every:g} s.")
    [postgres] = [kind.find(start=True) for kind in services.KINDS if kind.name == "PostgreSQL"]
    if isinstance(postgres, Missing):
        raise SystemExit(str(postgres))
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        database = stack.enter_context(own_database(postgres))
        _set_environment(folder, database)
        os.environ["AWS_ENDPOINT_URL_SQS"] = address = stack.enter_context(sqs_server())
        os.environ["SOAK_QUEUE"] = url = create_queue(address)
        _set_up_django(stack)

        from lambda_tasks.local.event_source import open_sources

        [source] = open_sources({"default": url}, batch_size=10, batching_window_seconds=0, wait_seconds=1)
        run = Soak(plan, folder)
        rested = run.run(source.is_idle)
        left = "the queue is empty" if source.is_idle() else "the queue has messages"
        verdict, rows = run.audit(rested=rested, left=left)
    for name, value in rows:
        say(f"{name:22} {value}")
    for violation in verdict.violations[:50]:
        say(f"WRONG: {violation}.")
    say(f"Seed {plan.seed}: {'WRONG' if verdict.violations else 'nothing lost, nothing doubled'}.")
    return 1 if verdict.violations else 0


def _set_environment(folder: Path, database: dict[str, Any]) -> None:
    """Set the environment of this process and its child processes."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        os.environ.pop(name, None)
    os.environ.update(
        DJANGO_SETTINGS_MODULE="tests.faults.soak_settings",
        SOAK_DATABASE=json.dumps(database),
        SOAK_DIARY=str(folder / "diary"),
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="eu-west-1",
        AWS_REGION="eu-west-1",
        AWS_CONFIG_FILE=os.devnull,
        AWS_SHARED_CREDENTIALS_FILE=os.devnull,
        AWS_EC2_METADATA_DISABLED="true",
        NO_PROXY="127.0.0.1,localhost",
        no_proxy="127.0.0.1,localhost",
    )


def _set_up_django(stack: ExitStack) -> None:
    import django
    from django.core.management import call_command
    from django.db import connections

    django.setup()
    stack.callback(connections.close_all)
    call_command("migrate", run_syncdb=True, verbosity=0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000, metavar="N", help="orders to commit (default: 10000)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers that are killed (default: 2)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the orders and the victims (default: random)")
    parser.add_argument("--kill-every", type=float, default=2.0, metavar="SECONDS", help="on average (default: 2)")
    parser.add_argument("--least-kills", type=int, default=2, metavar="N", help="minimum number of kills (default: 2)")
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="SECONDS", help="maximum time without progress (default: 60)"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="folder for the workers' output")
    options = parser.parse_args()
    if options.tasks < 2 * options.least_kills:
        parser.error(
            f"--tasks must be at least {2 * options.least_kills} with {options.least_kills} kills, not {options.tasks}."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the database is dropped
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    plan = Plan(options.tasks, options.workers, seed, options.kill_every, options.least_kills, options.patience)
    return soak(plan, keep=options.keep)


if __name__ == "__main__":
    raise SystemExit(main())
