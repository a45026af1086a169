"""Servers for the benchmarks: those in the environment, or else servers that are started for this run."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from tests import services
from tests.services import Missing, Server


@cache
def find() -> dict[str, Server | Missing]:
    return services.find_all(start=True)


def address(name: str) -> str:
    """Return the URL of the server `name` (PostgreSQL, Redis, MariaDB); raise SystemExit if it is missing."""
    server = find()[name]
    if isinstance(server, Missing):
        raise SystemExit(str(server))
    return server.url


def durability() -> str:
    """Describe whether COMMIT waits for the disk on the PostgreSQL server."""
    with psycopg.connect(address("PostgreSQL")) as connection:
        row = connection.execute("SELECT current_setting('fsync'), current_setting('synchronous_commit')").fetchone()
    assert row is not None
    return f"fsync is {row[0]}, synchronous_commit is {row[1]}"


def machine() -> list[str]:
    """Describe this machine, and the versions of the software on it."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor() or "unknown",
    )
    packages = ("django", "boto3", "pydantic", "psycopg", "redis", "pluggy")
    return [
        f"{os.cpu_count()} processors ({model}), {platform.system()}",
        f"Python {sys.version.split()[0]}; {', '.join(f'{name} {version(name)}' for name in packages)}",
        "; ".join(str(server).partition(" from ")[0] for server in find().values() if isinstance(server, Server)),
        f"PostgreSQL: {durability()}",
    ]


def django_database(kind: str, name: str) -> dict[str, Any]:
    """Return the entry of DATABASES for `name` on PostgreSQL or MariaDB, with the server's own durability."""
    entry = services.django_database(find_server(kind), name=name)
    if kind == "PostgreSQL":
        entry["OPTIONS"] = {}
    return entry


def find_server(kind: str) -> Server:
    server = find()[kind]
    if isinstance(server, Missing):
        raise SystemExit(str(server))
    return server
