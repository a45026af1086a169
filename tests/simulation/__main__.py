"""The command: `python -m tests.simulation sweep`, `chaos`, `crashes` and `ticks`; see `--help`."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.services import OwnPostgres
from tests.simulation.faults import FAULTS, FROZEN
from tests.simulation.report import OF_SCHEDULES, Report

#: Settings of a server that will crash: COMMIT waits for the disk as in production, and only commits write the log
#: to the disk.
SETTINGS_OF_CRASHES: Final = {
    "synchronous_commit": "on",
    "fsync": "on",
    "wal_writer_delay": "10s",
    "bgwriter_lru_maxpages": "0",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


def main() -> int:
    """Run the simulation. Return 1 if an invariant was violated."""
    options = _parser().parse_args()
    if options.what == "crashes" and options.database != "postgres":
        raise SystemExit("crashes requires PostgreSQL. Omit --database.")
    if options.what != "sweep" and options.first_seed is None:
        options.first_seed = secrets.randbelow(1_000_000)
    started = time.monotonic()
    if options.report:
        options.report.write_text(_run_here(options).to_json())
        return 0
    report = _run_in_parts(options) if options.jobs > 1 else _run_here(options)
    print("\n".join(report.lines()))
    if options.what != "sweep":
        print(f"  seeds {options.first_seed} to {options.first_seed + options.seeds - 1}", end=", ")
    outbox = ", with the outbox" if options.outbox == "yes" else ""
    print(f"  {time.monotonic() - started:.0f} s on {options.database}{outbox}")
    for sentence in report.sentences[:20]:
        print(f"\n{sentence}")
    meant = {"sweep": options.points, "ticks": options.points or [OF_SCHEDULES]}.get(options.what)
    if meant is not None and (
        missed := report.never_killed(meant, outbox=options.outbox == "yes", kinds=options.kinds)
    ):
        print(f"\nNo process was killed at: {', '.join(missed)}")
        return 1
    return 1 if report.sentences else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=sys.modules["tests.simulation"].__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("sweep", "chaos", "crashes", "ticks"))
    parser.add_argument("--seeds", type=int, default=24, help="the number of random worlds (24)")
    parser.add_argument("--first-seed", type=int, help="the first world's seed; random, and printed, by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel processes (one for each core)")
    parser.add_argument("--database", choices=("postgres", "mariadb"), default="postgres")
    parser.add_argument("--durable-claims", choices=("yes", "no"), default="yes", help="the store's option (yes)")
    parser.add_argument(
        "--partitioned", choices=("yes", "no"), default="no", help="partition the table of records (no)"
    )
    parser.add_argument("--outbox", choices=("yes", "no"), default=os.environ.get("SIMULATION_OUTBOX", "no"))
    parser.add_argument(
        "--points", nargs="+", default=[], help="only these failpoints; for sweep, those that begin with these prefixes"
    )
    parser.add_argument("--kinds", nargs="+", default=[], help="only tasks of these kinds, as in shop/tasks.py")
    parser.add_argument("--faults", nargs="+", default=[], choices=[*FAULTS, FROZEN], help="only these faults")
    parser.add_argument("--often", nargs="+", default=[], help="events of random worlds to repeat, such as cancel")
    parser.add_argument("--stop", action="store_true", help="end with the first world that violates an invariant")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no world of chaos after so many seconds"
    )
    parser.add_argument("--verbose", action="store_true", help="show the log of the workers")
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    return parser


def _run_here(options: argparse.Namespace) -> Report:
    """Run one part in this process, in a separate database."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.simulation.settings"
    os.environ["SIMULATION_DATABASE"] = options.database
    os.environ["SIMULATION_DURABLE_CLAIMS"] = options.durable_claims
    os.environ["SIMULATION_OUTBOX"] = options.outbox
    server = _server_to_crash() if options.what == "crashes" else None
    import django

    django.setup()
    logging.disable(logging.NOTSET if options.verbose else logging.CRITICAL)
    from django.db import connection

    from tests.simulation.chaos import Choice, chaos
    from tests.simulation.crashes import crashes
    from tests.simulation.sweep import sweep
    from tests.simulation.transport import locks
    from tests.simulation.world import warm_up

    warm_up()
    connection.creation.create_test_db(verbosity=0, autoclobber=True)
    if options.partitioned == "yes":
        from lambda_tasks.operations.partitioning.converting import convert

        convert(connection)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.what == "sweep":
                chosen = {"kinds": options.kinds, "prefixes": options.points, "faults": options.faults}
                return sweep(Path(folder), **chosen, part=options.part, parts=options.parts)
            seeds = range(options.first_seed, options.first_seed + options.seeds)[options.part :: options.parts]
            choice = Choice(
                kinds=options.kinds,
                faults=options.faults,
                points=options.points,
                often=options.often,
                stop=options.stop,
                seconds=options.seconds,
            )
            if options.what == "ticks":
                from tests.simulation.ticks import ticks  # defines tasks with schedules

                return ticks(Path(folder), seeds, choice, part=options.part, parts=options.parts)
            if server is not None:
                durable = options.durable_claims == "yes"
                part = {"part": options.part, "parts": options.parts}
                return crashes(Path(folder), server, seeds, durable_claims=durable, **part)
            return chaos(Path(folder), seeds, choice)
    finally:
        locks().lose_all()
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)


def _server_to_crash() -> OwnPostgres:
    """Start a private server for this process, and let the settings use it."""
    from tests import services

    server = services.own_postgres(SETTINGS_OF_CRASHES)
    if isinstance(server, services.Missing):
        raise SystemExit(f"The simulation requires this server. {server}")
    server.start()
    os.environ["DATABASE_URL"] = server.url
    os.environ["SIMULATION_COMMITS"] = "on"
    return server


def _run_in_parts(options: argparse.Namespace) -> Report:
    """Run the parts in parallel processes, and merge their reports."""
    from tests import services

    services.find_all(start=True)  # once for all parts, which read the addresses from the environment
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.simulation.settings"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.simulation", options.what, "--database", options.database]
        command += ["--durable-claims", options.durable_claims, "--outbox", options.outbox]
        command += ["--partitioned", options.partitioned]
        command += ["--kinds", *options.kinds] if options.kinds else []
        command += ["--points", *options.points] if options.points else []
        command += ["--faults", *options.faults] if options.faults else []
        if options.what != "sweep":
            command += ["--seeds", str(options.seeds), "--first-seed", str(options.first_seed)]
            command += ["--often", *options.often] if options.often else []
            command += ["--stop"] if options.stop else []
            command += ["--seconds", str(options.seconds)]
        if options.verbose:
            command += ["--verbose"]
        files = [Path(folder) / f"{part}.json" for part in range(options.jobs)]
        parts = [
            subprocess.Popen([*command, "--part", str(part), "--parts", str(options.jobs), "--report", str(file)])
            for part, file in enumerate(files)
        ]
        statuses = [part.wait() for part in parts]
        if any(statuses):
            raise SystemExit("A part of the run failed. Its error is above.")

        report = Report()
        for file in files:
            report.merge(Report.from_json(file.read_text()))
        return report


if __name__ == "__main__":
    sys.exit(main())
