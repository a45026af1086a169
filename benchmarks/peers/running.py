"""Run a peer's producer and worker in separate processes, and measure them from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import redis

from benchmarks.harness import Sample
from benchmarks.peers.addresses import postgres, redis_url
from benchmarks.peers.peer import Keys, Peer, Rows

#: Tasks that a worker runs before the clock starts, so that it is imported, connected and warm.
LEAD_IN: Final = 100
#: Seconds that a producer or a worker may take.
PATIENCE: Final = 180.0
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A producer or a worker failed. The message contains the end of its output."""


@dataclass(frozen=True, slots=True)
class Writes:
    """PostgreSQL's counts for each task."""

    commits: float
    inserted: float
    updated: float
    deleted: float


def enqueuing(peer: Peer, way: str, n: int, *, environment: Mapping[str, str]) -> Sample:
    """Enqueue `n` tasks, after some warm-up tasks."""
    return Sample(**_produce(peer, way, str(n), "50", environment=environment))


def executing(peer: Peer, n: int, *, environment: Mapping[str, str]) -> tuple[Sample, Writes]:
    """Run `n` waiting tasks in a new worker, after `LEAD_IN` others."""
    total = LEAD_IN + n
    _produce(peer, peer.fill, str(total), environment=environment)
    before = _written()
    with _worker(peer, total, environment) as process, counter(peer) as done:
        first = _reach(LEAD_IN, total, done, process)
        last = _reach(total, total, done, process)
    after = _written()
    units = last.done - first.done
    if not units:
        raise Failed(f"{total} tasks were finished before the first sample. Use more tasks.")
    writes = Writes(*((now - then) / total for now, then in zip(after, before, strict=True)))
    return Sample((last.wall - first.wall) / units, (last.cpu - first.cpu) / units), writes


def reset() -> None:
    """Empty the tables of all peers, and the Redis database."""
    with psycopg.connect(**postgres()) as connection:
        tables = connection.execute(
            "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' AND tablename !~ '^django_m'"
        ).fetchall()
        connection.execute(f"TRUNCATE {', '.join(name for (name,) in tables)} CASCADE".encode())
    with redis.Redis.from_url(redis_url()) as client:
        client.flushdb()


@contextmanager
def counter(peer: Peer) -> Iterator[Callable[[], int]]:
    """Yield a function that counts the peer's results."""
    match peer.done:
        case Rows(query):
            # Use one transaction, so that PostgreSQL counts only the worker's commits.
            with psycopg.connect(**postgres()) as connection:
                yield lambda: int(connection.execute(query).fetchone()[0])  # type: ignore[index]
        case Keys(command):
            with redis.Redis.from_url(redis_url()) as client:
                yield lambda: int(client.execute_command(*command))


@dataclass(frozen=True, slots=True)
class _Seen:
    done: int
    wall: float
    cpu: float


def _reach(goal: int, total: int, done: Callable[[], int], process: _Process) -> _Seen:
    """Wait until `goal` results exist. Check more often as the goal approaches, to disturb the worker little."""
    started = time.monotonic()
    previous, moment = done(), time.perf_counter()
    while True:
        seen = _Seen(done(), time.perf_counter(), process.cpu())
        if seen.done >= goal:
            return seen
        if process.poll() is not None or time.monotonic() - started > PATIENCE:
            raise Failed(f"{seen.done} of {total} tasks were done; {process.last_words()}")
        each = (seen.wall - moment) / max(seen.done - previous, 1)
        previous, moment = seen.done, seen.wall
        time.sleep(min(max(each * (goal - seen.done) / 4, 0.002), 0.05))


class _Process(subprocess.Popen[bytes]):
    """A worker with its child processes."""

    log: Path

    def cpu(self) -> float:
        """Return the CPU seconds of the whole process tree, including children that have ended."""
        return sum(_cpu_of(pid) for pid in self.tree())

    def tree(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.pid]
        for pid in found:
            found += children.get(pid, [])
        return found

    def last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-4:])

    def end(self) -> None:
        tree = self.tree()
        assert self.stdin is not None
        self.stdin.close()
        if self.poll() is None:
            self.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.wait(10)
        # Kill children that outlive their parent, if their process id was not reused.
        for pid in tree:
            with suppress(ProcessLookupError):
                if os.getsid(pid) == self.pid:
                    os.kill(pid, signal.SIGKILL)
        self.wait(10)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat that follow the name: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _cpu_of(pid: int) -> float:
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) * _TICK if fields else 0.0


@contextmanager
def _worker(peer: Peer, total: int, environment: Mapping[str, str]) -> Iterator[_Process]:
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = _Process(
                [sys.executable, *(part.format(tasks=total) for part in peer.worker)],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.log = log
        try:
            yield process
        finally:
            process.end()


def _produce(peer: Peer, *arguments: str, environment: Mapping[str, str]) -> dict[str, float]:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.enqueue", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if ended.returncode:
        raise Failed(" | ".join(ended.stderr.splitlines()[-4:]))
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _written() -> tuple[int, int, int, int]:
    """Return PostgreSQL's counts for the database, which include a session only after it has ended."""
    server = {**postgres(), "dbname": "postgres"}
    query = "SELECT xact_commit, tup_inserted, tup_updated, tup_deleted FROM pg_stat_database WHERE datname = %s"
    with psycopg.connect(**server) as connection:
        row = connection.execute(query, [postgres()["dbname"]]).fetchone()
    assert row is not None
    return row
