"""celery with Redis as its broker and django-celery-results: by its defaults, and set to promise and keep more."""

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
    crash="at most once: acknowledged when the task starts; what was only prefetched comes again after an hour",
    atomic="no: the result is written after the task, in a transaction of its own",
    why=(
        "a new database connection for every task, whatever CONN_MAX_AGE says; then SELECT, BEGIN, INSERT, COMMIT; "
        "and two processes that hand over each task"
    ),
)
LATE: Final = replace(
    CELERY,
    name="celery, acks_late and connection kept",
    settings={
        **_SETTINGS,
        "CELERY_TASK_ACKS_LATE": True,
        "CELERY_TASK_REJECT_ON_WORKER_LOST": True,
        # Without it every task has a database connection of its own, whatever CONN_MAX_AGE says.
        "CELERY_DB_REUSE_MAX": 500,
    },
    ways={},
    crash="at least once: Redis gives it to another worker after an hour (visibility_timeout); it runs again",
    why="SELECT, BEGIN, INSERT, COMMIT: one commit that waits for the disk, where a claim makes it two",
)
PEERS: Final = (CELERY, LATE)
