"""django-lambda-tasks itself, and the floor: the same rows, written by a loop."""

from __future__ import annotations

import os
from typing import Final

from benchmarks.peers.peer import Peer, Rows

_RECORDS: Final = Rows("SELECT count(*) FROM lambda_tasks_taskrecord WHERE status = 'SUCCESS'")
_ENQUEUED: Final = {"on_commit": "`execute_on_commit()` for each; ten to an HTTP request at COMMIT"}
#: The address of the stand-in for SQS, which the benchmark passes to its child processes.
_QUEUE: Final = {"LAMBDA_TASKS_QUEUES": {"default": os.environ.get("BENCH_QUEUE_URL", "http://127.0.0.1:1/1/none")}}

FLOOR: Final = Peer(
    name="bare ORM loop",
    tasks="floor",
    worker=("-m", "benchmarks.peers.tasks.floor", "{tasks}"),
    done=_RECORDS,
    ways={"one_by_one": "an ORM INSERT for each, in the transaction"},
    fill="nothing",
    stores="a row with the same columns as this library",
    crash="the row stays RUNNING forever",
    atomic="the task writes nothing else",
)
HANDLER: Final = Peer(
    name="lambda_tasks, handler()",
    tasks="lambda_tasks",
    settings=_QUEUE,
    worker=("-m", "benchmarks.peers.tasks.lambda_tasks", "{tasks}"),
    done=_RECORDS,
    ways=_ENQUEUED,
    fill="nothing",
    stores="PostgreSQL: name, arguments, status, times, retries, result (JSON), traceback; kept until cleaned up",
    crash=(
        "at least once: the message is deleted after its batch; a claim identifies the dead worker, and "
        "another worker takes over"
    ),
    atomic="yes: SUCCESS is in the task's transaction",
    why="INSERT, BEGIN, UPDATE, COMMIT: two commits that wait for the disk, and no query before them",
)
WORKER: Final = Peer(
    name="lambda_tasks, local worker",
    tasks="lambda_tasks",
    settings=_QUEUE,
    worker=("-m", "django", "lambda_tasks", "worker"),
    done=_RECORDS,
    ways={},
    fill="on_commit",
    stores=HANDLER.stores,
    crash=HANDLER.crash,
    atomic=HANDLER.atomic,
    why="the same, with two processes, and HTTP between them and to the queue, which AWS does itself",
)
PEERS: Final = (FLOOR, HANDLER, WORKER)
