"""dramatiq with Redis as its broker, and django-dramatiq, which keeps a row of each message."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.addresses import redis_url
from benchmarks.peers.peer import Peer, Rows

ADMIN: Final = Peer(
    name="dramatiq",
    tasks="dramatiq",
    packages=("dramatiq", "django-dramatiq"),
    apps=("django_dramatiq",),
    settings={
        "DRAMATIQ_BROKER": {
            "BROKER": "dramatiq.brokers.redis.RedisBroker",
            "OPTIONS": {"url": redis_url()},
            # The defaults of django-dramatiq, without the metrics.
            "MIDDLEWARE": [
                "dramatiq.middleware.AgeLimit",
                "dramatiq.middleware.TimeLimit",
                "dramatiq.middleware.Callbacks",
                "dramatiq.middleware.Retries",
                "django_dramatiq.middleware.AdminMiddleware",
                "django_dramatiq.middleware.DbConnectionsMiddleware",
            ],
        }
    },
    worker=(
        *("-m", "dramatiq", "--processes", "1", "--threads", "1"),
        *("django_dramatiq.setup", "benchmarks.peers.tasks.dramatiq"),
    ),
    done=Rows("SELECT count(*) FROM django_dramatiq_task WHERE status = 'done'"),
    ways={"on_commit": "`transaction.on_commit(greet.send)` for each; Redis, then SELECT and INSERT in a transaction"},
    fill="on_commit",
    stores="PostgreSQL: the message, status, times, traceback; no return value (Redis, if configured); until deleted",
    crash=(
        "at least once: acknowledged after the task; others take over from a worker that sends no heartbeat "
        "for a minute"
    ),
    atomic="no: the row is written after the task, in a separate transaction",
    why="BEGIN, SELECT FOR UPDATE, UPDATE of the whole row and COMMIT by the ORM, both before and after the task",
)
PEERS: Final = (ADMIN,)
