"""django-lambda-tasks itself, and the floor: the same rows, written by a loop."""

from __future__ import annotations

import os
from typing import Final

from benchmarks.peers.peer import Peer, Rows

_RECORDS: Final = Rows("SELECT count(*) FROM lambda_tasks_taskrecord WHERE status = 'SUCCESS'")
_ENQUEUED: Final = {"on_commit": "`execute_on_commit()` for each; ten to an HTTP request at COMMIT"}
#: Where the stand-in for SQS is; the benchmark says so to its children.
_QUEUE: Final = {"LAMBDA_TASKS_QUEUES": {"default": os.environ.get("BENCH_QUEUE_URL", "http://127.0.0.1:1/1/none")}}

FLOOR: Final = Peer(
    name="bare ORM loop",
    tasks="floor",
    worker=("-m", "benchmarks.peers.tasks.floor", "{tasks}"),
    done=_RECORDS,
    ways={"one_by_one": "an ORM INSERT for each, in the transaction"},
    fill="nothing",
    stores="a row of the same columns as ours",
    crash="the row says RUNNING for ever",
    atomic="nothing else is written",
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
    crash="at least once: the message is deleted after its batch; a claim tells who died, and another worker goes on",
    atomic="yes: SUCCESS is in the task's transaction",
    why="INSERT, BEGIN, UPDATE, COMMIT: two commits that wait for the disk, nothing before them that reads",
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
    why="the same, with two processes and HTTP between them and to the queue, as AWS has it on its side",
)
PEERS: Final = (FLOOR, HANDLER, WORKER)
