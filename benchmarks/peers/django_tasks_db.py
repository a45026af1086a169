"""django-tasks-db: Django's own tasks, with the database as queue and record."""

from __future__ import annotations

from typing import Final

import django

from benchmarks.peers.peer import Peer, Rows

#: Before Django 6, Django's tasks are a separate package.
_BACKPORT: Final = () if django.VERSION >= (6, 0) else ("django-tasks",)

DATABASE: Final = Peer(
    name="django-tasks-db",
    tasks="django_tasks_db",
    packages=("django-tasks-db", *_BACKPORT),
    apps=("django_tasks_db",) if django.VERSION >= (6, 0) else ("django_tasks", "django_tasks_db"),
    settings={"TASKS": {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}},
    worker=("-m", "django", "db_worker", "--verbosity", "0", "--no-startup-delay"),
    done=Rows("SELECT count(*) FROM django_tasks_database_dbtaskresult WHERE status = 'SUCCESSFUL'"),
    ways={"one_by_one": "`enqueue()` for each: an INSERT in the transaction"},
    stores="PostgreSQL: path, arguments, status, times, worker, result (JSON), traceback; kept until pruned",
    crash="at most once: RUNNING is committed before the task runs, and no worker looks for it again",
    atomic="no: the result is written after the task, by a separate UPDATE",
    why="BEGIN, SELECT FOR UPDATE SKIP LOCKED, UPDATE, COMMIT, then an UPDATE: the ORM compiles each of them each time",
)
PEERS: Final = (DATABASE,)
