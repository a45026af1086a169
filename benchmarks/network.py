"""How long does a task take if the database is a millisecond away?

On one machine, a request to the database takes some microseconds, and the CPU decides. Between an AWS Lambda function
and its database it takes a millisecond or so, and the number of requests decides. A relay between the worker and
PostgreSQL waits for half of that in each direction, and counts the requests. A task that does nothing runs in the
handler, in batches of ten and with its record, and is compared with loops that only write to the database.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from benchmarks.floors import DRIVER, MINIMAL, ORM, create_minimal_table, driver_loop, minimal_loop, orm_loop
from benchmarks.harness import Sample, in_turn, microseconds, timed
from benchmarks.report import Report, Table, main

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

OURS = "handler()"
BATCH = 10


class Relay:
    """A TCP relay to a PostgreSQL server that holds all data for a time, and counts what clients send.

    Clients of PostgreSQL wait for each answer, so what they send without waiting is one request.
    """

    def __init__(self, address: str, *, seconds: float) -> None:
        self.requests = 0
        self._address = address
        self._seconds = seconds
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = _connected(self._address)
            threading.Thread(target=self._forward, args=(client, server, 1), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, 0), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, requests: int) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self.requests += requests
                time.sleep(self._seconds)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def _connected(address: str) -> socket.socket:
    if address.startswith("/"):
        server = socket.socket(socket.AF_UNIX)
        server.connect(address)
        return server
    host, port = address.rsplit(":", 1)
    server = socket.create_connection((host, int(port)))
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def _through_relay(connection: BaseDatabaseWrapper, *, seconds: float) -> Relay:
    """Have Django's connection go through a relay from now on."""
    connection.close()
    settings = connection.settings_dict
    host, port = settings["HOST"] or "/var/run/postgresql", settings["PORT"] or 5432
    relay = Relay(f"{host}/.s.PGSQL.{port}" if host.startswith("/") else f"{host}:{port}", seconds=seconds)
    settings["HOST"], settings["PORT"] = "127.0.0.1", relay.port
    return relay


def measure(options: argparse.Namespace) -> Report:
    os.environ["BENCH_DATABASE"] = "postgres"
    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
    from benchmarks.databases import migrated

    with migrated():
        from django.db import connection

        create_minimal_table()
        address = {name: connection.settings_dict[name] for name in ("HOST", "PORT")}
        try:
            return _measure(options)
        finally:
            connection.close()
            connection.settings_dict.update(address)


def _measure(options: argparse.Namespace) -> Report:
    from django.db import connection

    from benchmarks import servers, tasks
    from benchmarks.events import events_of
    from lambda_tasks.handler import handler
    from lambda_tasks.models import TaskRecord

    n = options.tasks
    # Each message is new, because the handler recognises messages that it has run before.
    rounds = iter([events_of(tasks.nothing, messages=n, size=BATCH) for _ in range(options.rounds + 1)])

    def ours() -> None:
        for event in next(rounds):
            assert handler(event, None) == {"batchItemFailures": []}

    relay = _through_relay(connection, seconds=options.milliseconds / 2_000)
    requests: dict[str, float] = {}

    def counting(name: str, loop: Callable[[], object]) -> Callable[[], Sample]:
        def contender() -> Sample:
            connection.ensure_connection()
            before = relay.requests
            sample = timed(loop, units=n)()
            requests[name] = (relay.requests - before) / n
            return sample

        return contender

    loops: dict[str, Callable[[], object]] = {
        ORM: lambda: orm_loop(n),
        MINIMAL: lambda: minimal_loop(n),
        OURS: ours,
        DRIVER: lambda: driver_loop(n),
    }
    contenders = {name: counting(name, loop) for name, loop in loops.items()}
    measured = in_turn(contenders, rounds=options.rounds, reset=TaskRecord.objects.all().delete)
    return Report(
        title="A database that is a millisecond away",
        question=__doc__ or "",
        method=[
            f"{n:,} tasks in each of {options.rounds} rounds, after one warm-up round; the contenders take turns.",
            f"The relay holds each request and each answer for {options.milliseconds / 2:g} ms.",
            *servers.machine(),
        ],
        tables=[
            Table(
                "Per task, medians; ratio to the ORM with the documented columns only as median (quartiles).",
                ("", "requests", "wall, µs", "wall ratio"),
                [
                    (
                        name,
                        f"{requests[name]:.1f}",
                        microseconds(measured.wall(name).median),
                        str(measured.wall_ratio(name, MINIMAL)),
                    )
                    for name in contenders
                ],
            )
        ],
        remarks=["The handler also checks its connection, with one request for each batch."],
    )


if __name__ == "__main__":
    main(measure, rounds=5, tasks=200, milliseconds=1.0)
