"""huey, with queue and results in Redis, and with both in PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from benchmarks.peers.addresses import postgres, redis_url
from benchmarks.peers.peer import Keys, Peer, Rows

REDIS: Final = Peer(
    name="huey, Redis",
    tasks="huey",
    packages=("huey",),
    apps=("huey.contrib.djhuey",),
    # The package creates its tables when it is imported.
    migrates=False,
    settings={
        "HUEY": {"name": "bench", "immediate": False, "store_none": True, "connection": {"url": redis_url()}},
    },
    worker=("-m", "benchmarks.peers.tasks.huey"),
    done=Keys(("HLEN", "huey.results.bench")),
    ways={"on_commit": "`on_commit_task`: a round trip to Redis for each after COMMIT"},
    fill="on_commit",
    stores="Redis: the return value or error, pickled, until it is read; no time, no arguments",
    crash="at most once: taken off the queue before the task runs",
    atomic="no: two servers",
    why="a few commands to Redis, which does not wait for the disk here; no database query",
)
POSTGRES: Final = replace(
    REDIS,
    name="huey, PostgreSQL",
    settings={
        "HUEY": {
            "name": "bench",
            "huey_class": "huey.PostgresHuey",
            "immediate": False,
            "store_none": True,
            "connection": postgres(),
        },
    },
    done=Rows("SELECT count(*) FROM huey_kv WHERE queue = 'bench'"),
    ways={"on_commit": "`on_commit_task`: INSERT and NOTIFY for each after COMMIT, on a separate connection"},
    stores="PostgreSQL: the return value or error, pickled, until it is read; no time, no arguments",
    atomic="no: another connection, after the task",
    why=(
        "DELETE from the queue, SELECT and DELETE of a possible revocation, INSERT of the result, each in its own "
        "transaction: the driver without an ORM, with prepared statements; two of them wait for the disk"
    ),
)
PEERS: Final = (REDIS, POSTGRES)
