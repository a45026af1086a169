"""Measure how long a process takes to start with the library: `python -m benchmarks.cold_start`.

The measured programs are in `benchmarks/cold`. To measure another version of the library, put it first in
PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from benchmarks import servers
from benchmarks.cold.peak import peak_memory
from benchmarks.harness import Measured, Sample, in_turn, milliseconds
from benchmarks.instructions import VALGRIND, instructions_in
from benchmarks.report import Bars, Report, Table, main
from lambda_tasks.local.runtime import Function, Runtime
from lambda_tasks.local.runtime_api import Answered

PROGRAMS: Final = Path(__file__).parent / "cold"
ROOT: Final = PROGRAMS.parents[1]

#: The environment of a measured process.
Environment = Mapping[str, str]
#: The programs of a process without the library and of one with it, with their arguments and environments.
Commands = tuple[tuple[Sequence[str], Environment], tuple[Sequence[str], Environment]]
#: A process without the library, and one with it.
Pair = tuple[Callable[[], Sample], Callable[[], Sample]]

SETUP_GOAL: Final = 1.03
FIRST_GOAL: Final = 1.15

ABOUT_THE_COLLECTOR: Final = (
    "A full run of Python's garbage collector costs tens of milliseconds, and happens when a quarter more objects "
    "exist than after the previous run, so a few modules decide whether it is measured. The rows without a collector "
    "show the cost of the imports themselves."
)


def measure(options: argparse.Namespace) -> Report:
    with databases() as (postgres, sqlite), tempfile.TemporaryDirectory() as bytecode:
        bare, web = project("bare", sqlite, bytecode), project("web", sqlite, bytecode)
        on_postgres, web_on_postgres = project("bare", postgres, bytecode), project("web", postgres, bytecode)
        web_processes = {
            "bare": set_up(bare),
            "with Django's own apps": set_up(web),
            "bare, no garbage collector": set_up(without_collector(bare)),
            "with Django's own apps, no garbage collector": set_up(without_collector(web)),
        }
        first_events = {
            "bare, SQLite": first_event(bare),
            "bare, PostgreSQL": first_event(on_postgres),
            "with Django's own apps, PostgreSQL": first_event(web_on_postgres),
        }
        in_lambda = {
            "bare, PostgreSQL": through_runtime(on_postgres),
            "with Django's own apps, PostgreSQL": through_runtime(web_on_postgres),
        }
        setups = measured(web_processes, options.rounds)
        firsts = measured(first_events, options.rounds)
        answers = measured(in_lambda, options.rounds)
        counted = {
            "`django.setup()` and tasks, bare": set_up_commands(bare),
            "`django.setup()` and tasks, with Django's own apps": set_up_commands(web),
            "first event, bare, SQLite": first_event_commands(bare),
            "first event, bare, PostgreSQL": first_event_commands(on_postgres),
            "first event, with Django's own apps, PostgreSQL": first_event_commands(web_on_postgres),
        }
        # Every import compiles, which takes seconds for each process, so there are fewer rounds.
        compiled_events = {"bare, PostgreSQL": first_event(without_bytecode(on_postgres))}
        compiled = measured(compiled_events, max(options.rounds // 5, 2))
        return Report(
            title="Cold start",
            question=(
                "How much does the library add to the start of a web process that imports tasks and sends none, and of "
                "a Lambda container up to its first result?"
            ),
            method=[
                *servers.machine(),
                f"{options.rounds} rounds; in each round, every contender is a new process, and they take turns",
                "Unless stated otherwise, bytecode is on the disk, as in installations with pip and in Lambda's images",
                "The project's 20 tasks have arguments of several types; without the library, they are plain functions",
                "Memory is the peak resident memory (VmHWM)",
                "Times depend on the load of the machine; instructions do not",
            ],
            tables=[
                pairs_table(
                    "`django.setup()` and the import of 20 tasks, without the start of Python; "
                    f"the goal is a ratio of {SETUP_GOAL}",
                    "without",
                    setups,
                ),
                pairs_table(
                    "Import of the handler and first event with one message, without the start of Python, against "
                    f"`django.setup()` and one ORM `INSERT`; the goal is a ratio of {FIRST_GOAL}",
                    "floor",
                    firsts,
                ),
                pairs_table(
                    "From the start of the process to its first answer, in awslambdaric, against a handler that calls "
                    "`django.setup()` and inserts one row",
                    "floor",
                    answers,
                ),
                pairs_table("The second table, without bytecode on the disk", "floor", compiled),
                instructions_table(counted),
                imports_table(on_postgres),
            ],
            plots=[
                Bars(
                    "cold-start",
                    "First event with one message: CPU",
                    "times the floor",
                    [(name, *astuple(firsts.cpu_ratio(name, floor_of(name)))) for name in first_events],
                    mark=FIRST_GOAL,
                )
            ],
            remarks=[ABOUT_THE_COLLECTOR],
        )


# The processes


def project(kind: str, database: Mapping[str, Any], bytecode: str) -> Environment:
    """Return the environment of a process of the project `kind`: bare, or with Django's own apps."""
    given = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    return {
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "COLD_PROJECT": kind,
        "COLD_DATABASE": json.dumps(database),
        "PYTHONPATH": os.pathsep.join([str(PROGRAMS), *given, str(ROOT)]),
        "PYTHONPYCACHEPREFIX": bytecode,
        "PYTHONDONTWRITEBYTECODE": "",
    }


def without_bytecode(environment: Environment) -> Environment:
    return environment | {"PYTHONPYCACHEPREFIX": os.devnull, "PYTHONDONTWRITEBYTECODE": "1"}


def without_collector(environment: Environment) -> Environment:
    return environment | {"COLD_COLLECTOR": "off"}


def with_tasks(environment: Environment, answer: str) -> Environment:
    return environment | {"COLD_TASKS": answer}


def set_up_commands(environment: Environment) -> Commands:
    return (
        (["set_up.py", "shop.functions"], with_tasks(environment, "no")),
        (["set_up.py", "shop.tasks"], with_tasks(environment, "yes")),
    )


def first_event_commands(environment: Environment) -> Commands:
    """Return the commands with a new message, which no earlier process has run."""
    return (
        (["first_event.py", "shop.floor", json.dumps(event())], with_tasks(environment, "no")),
        (["first_event.py", "lambda_tasks.handler", json.dumps(event())], with_tasks(environment, "yes")),
    )


def set_up(environment: Environment) -> Pair:
    return lambda: run(*set_up_commands(environment)[0]), lambda: run(*set_up_commands(environment)[1])


def first_event(environment: Environment) -> Pair:
    return lambda: run(*first_event_commands(environment)[0]), lambda: run(*first_event_commands(environment)[1])


def through_runtime(environment: Environment) -> Pair:
    return (
        lambda: answered("shop.floor.handler", with_tasks(environment, "no")),
        lambda: answered("lambda_tasks.handler.handler", with_tasks(environment, "yes")),
    )


def run(program: Sequence[str], environment: Environment) -> Sample:
    """Run a program of `benchmarks/cold` and return the time and memory that it reports."""
    command = [sys.executable, str(PROGRAMS / program[0]), *program[1:]]
    ended = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{program[0]} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    said = json.loads(ended.stdout)
    return Sample(said["wall"], said["cpu"], said["peak_memory"])


def answered(handler: str, environment: Environment) -> Sample:
    """Start a container, pass it an event, and wait for the response."""
    output: list[str] = []
    runtime = Runtime(Function(handler, 60, environment=environment), on_output=output.append)
    before, started = _cpu_of_children(), time.perf_counter()
    try:
        process = runtime.start()
        result = runtime.invoke(event())
        wall, memory = time.perf_counter() - started, peak_memory(process)
    finally:
        runtime.close()
    if not (isinstance(result, Answered) and json.loads(result.body) == {"batchItemFailures": []}):
        raise RuntimeError(f"{handler} answered {result}: {output}")
    return Sample(wall, _cpu_of_children() - before, memory)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def event() -> dict[str, Any]:
    """Return an event as SQS makes it, with one new message."""
    arguments = {"order_id": 7, "email": "ada@example.com"}
    return {
        "Records": [
            {
                "messageId": str(uuid.uuid4()),
                "receiptHandle": "handle",
                "body": json.dumps({"task_name": "shop.tasks.send_receipt", "kwargs": arguments}),
                "attributes": {
                    "ApproximateReceiveCount": "1",
                    "SentTimestamp": str(time.time_ns() // 1_000_000),
                    "SenderId": "sender",
                    "ApproximateFirstReceiveTimestamp": str(time.time_ns() // 1_000_000),
                },
                "messageAttributes": {
                    "lambda_tasks.message_id": {"stringValue": str(uuid.uuid4()), "dataType": "String"},
                },
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:default",
                "awsRegion": "eu-west-1",
            }
        ]
    }


@contextmanager
def databases() -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Create a PostgreSQL database and an SQLite database with the project's tables."""
    name = f"lambda_tasks_bench_{os.getpid()}"
    postgres = servers.django_database("PostgreSQL", name)
    with tempfile.TemporaryDirectory() as directory:
        sqlite = {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": f"{directory}/{name}.sqlite3",
            "OPTIONS": {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
        }
        with psycopg.connect(servers.address("PostgreSQL"), autocommit=True) as server:
            server.execute(f"CREATE DATABASE {name}")
            try:
                for database in (postgres, sqlite):
                    migrate(project("web", database, directory))
                yield postgres, sqlite
            finally:
                server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def migrate(environment: Environment) -> None:
    command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--skip-checks", "--verbosity=0"]
    subprocess.run(command, env={**os.environ, **with_tasks(environment, "yes")}, check=True)


# The tables


def measured(pairs: Mapping[str, Pair], rounds: int) -> Measured:
    """Measure both processes of every pair; `floor_of` names the first."""
    contenders = {}
    for name, (floor, ours) in pairs.items():
        contenders |= {floor_of(name): floor, name: ours}
    return in_turn(contenders, rounds=rounds)


def floor_of(name: str) -> str:
    return f"{name}: floor"


def pairs_table(caption: str, floor_name: str, found: Measured) -> Table:
    names = [name for name in found.samples if floor_of(name) in found.samples]
    return Table(
        caption,
        ["project", f"{floor_name}: CPU, ms", "ours: CPU, ms", "CPU ratio", "wall ratio", "memory ratio", "ours: MiB"],
        [
            [
                name,
                milliseconds(found.cpu(floor_of(name)).median),
                milliseconds(found.cpu(name).median),
                str(found.cpu_ratio(name, floor_of(name))),
                str(found.wall_ratio(name, floor_of(name))),
                str(found.memory_ratio(name, floor_of(name))),
                f"{found.peak_memory(name).median / 1024:.0f}",
            ]
            for name in names
        ],
    )


def astuple(spread: Any) -> tuple[float, float, float]:
    return spread.median, spread.low, spread.high


def instructions_table(commands: Mapping[str, Commands]) -> Table:
    """Count the instructions of the same processes, which repeat within half a percent, as times do not."""
    start = instructions(["-c", "pass"], {})
    rows = []
    for name, pair in commands.items():
        floor, ours = (
            (instructions([str(PROGRAMS / program[0]), *program[1:]], environment) - start) / 1_000_000
            for program, environment in pair
        )
        rows.append([name, f"{floor:,.0f}", f"{ours:,.0f}", f"{ours - floor:,.0f}", f"{ours / floor:.3f}"])
    return Table(
        "Millions of instructions of the processes above, as valgrind counts them, without the start of Python",
        ["process", "without or floor", "ours", "difference", "ratio"],
        rows,
    )


def instructions(arguments: Sequence[str], environment: Environment) -> int:
    with tempfile.NamedTemporaryFile("r") as log:
        subprocess.run(
            [*VALGRIND, f"--log-file={log.name}", sys.executable, *arguments],
            env={**os.environ, **environment, "COLD_COLLECTOR": "off", "PYTHONHASHSEED": "0"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return instructions_in(Path(log.name))


def imports_table(environment: Environment) -> Table:
    """List the packages that only the first event imports, and not the floor, with their cost."""
    floor = _imported("shop.floor", with_tasks(environment, "no"))
    ours = _imported("lambda_tasks.handler", with_tasks(environment, "yes"))
    packages: dict[str, list[float]] = defaultdict(list)
    for module in ours.keys() - floor.keys():
        package = module.partition(".")[0]
        packages["Python's own" if package in sys.stdlib_module_names else package].append(ours[module])
    rows = sorted(packages.items(), key=lambda item: -sum(item[1]))
    return Table(
        "What the first event imports beyond the floor (`python -X importtime`, which adds its own cost; one process)",
        ["package", "modules", "ms"],
        [[package, str(len(times)), milliseconds(sum(times))] for package, times in rows],
    )


def _imported(handler: str, environment: Environment) -> dict[str, float]:
    """Return the modules that the first event imports, with the seconds of each without its own imports."""
    command = [sys.executable, "-X", "importtime", str(PROGRAMS / "first_event.py"), handler, json.dumps(event())]
    ended = subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
    found = {}
    for line in ended.stderr.splitlines():
        if line.startswith("import time:") and "|" in line:
            own, _, module = line.removeprefix("import time:").split("|")
            if own.strip().isdigit():
                found[module.strip()] = int(own) / 1e6
    return found


if __name__ == "__main__":
    main(measure, rounds=9)
