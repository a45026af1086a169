"""rq, with queue and results in Redis; also with its worker that does not fork for each job."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from benchmarks.peers.peer import Keys, Peer

FORKING: Final = Peer(
    name="rq",
    tasks="rq",
    packages=("rq",),
    worker=("-m", "benchmarks.peers.tasks.rq", "Worker"),
    done=Keys(("ZCARD", "rq:finished:default")),
    ways={
        "one_by_one": "`enqueue()` for each: several commands to Redis each, after COMMIT",
        "in_bulk": "`enqueue_many()` for all, after COMMIT",
    },
    fill="in_bulk",
    stores="Redis: call, status, times, result or traceback; 500 s",
    crash=(
        "at most once: taken off the queue before; the tasks of a dead worker are detected later and counted as failed"
    ),
    atomic="no: two servers",
    why="a process is forked for every job; no database query",
)
SIMPLE: Final = replace(
    FORKING,
    name="rq, SimpleWorker",
    worker=("-m", "benchmarks.peers.tasks.rq", "SimpleWorker"),
    ways={},
    why="many commands to Redis, in several pipelines; no database query",
)
PEERS: Final = (FORKING, SIMPLE)
