"""celery with Redis as its broker and django-celery-results: with its defaults, and with stronger guarantees."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from benchmarks.peers.addresses import kombu_url
from benchmarks.peers.peer import Peer, Rows

_SETTINGS: Final = {
    "CELERY_BROKER_URL": kombu_url(),
    "CELERY_RESULT_BACKEND": "django-db",
    "CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP": True,
}
CELERY: Final = Peer(
    name="celery",
    tasks="celery",
    packages=("celery", "django-celery-results"),
    apps=("django_celery_results",),
    settings=_SETTINGS,
    worker=("-m", "celery", "--app", "benchmarks.peers.tasks.celery", "worker", "--concurrency", "1"),
    done=Rows("SELECT count(*) FROM django_celery_results_taskresult WHERE status = 'SUCCESS'"),
    ways={"on_commit": "`delay_on_commit()` for each; a round trip to Redis for each after COMMIT"},
    fill="on_commit",
    stores="PostgreSQL: id, status, times, worker, result or traceback; arguments only if `result_extended`; one day",
    crash=(
        "at most once: acknowledged when the task starts; messages that were only prefetched are delivered "
        "again after an hour"
    ),
    atomic="no: the result is written after the task, in a separate transaction",
    why=(
        "a new database connection for every task, regardless of CONN_MAX_AGE; then SELECT, BEGIN, INSERT, COMMIT; "
        "and two processes that pass each task on"
    ),
)
LATE: Final = replace(
    CELERY,
    name="celery, acks_late and connection kept",
    settings={
        **_SETTINGS,
        "CELERY_TASK_ACKS_LATE": True,
        "CELERY_TASK_REJECT_ON_WORKER_LOST": True,
        # Without it, every task opens a new database connection, regardless of CONN_MAX_AGE.
        "CELERY_DB_REUSE_MAX": 500,
    },
    ways={},
    crash="at least once: Redis delivers it to another worker after an hour (visibility_timeout), which runs it again",
    why="SELECT, BEGIN, INSERT, COMMIT: one commit that waits for the disk, instead of two with a claim",
)
PEERS: Final = (CELERY, LATE)
