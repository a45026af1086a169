"""procrastinate: queue and record are tables and functions of PostgreSQL."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.peer import Peer, Rows

POSTGRES: Final = Peer(
    name="procrastinate",
    tasks="procrastinate",
    packages=("procrastinate",),
    apps=("procrastinate.contrib.django",),
    settings={
        "PROCRASTINATE_AUTODISCOVER_MODULE_NAME": "nowhere",
        "PROCRASTINATE_IMPORT_PATHS": ["benchmarks.peers.tasks.procrastinate"],
    },
    worker=("-m", "django", "procrastinate", "worker", "--concurrency", "1"),
    done=Rows("SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"),
    ways={
        "one_by_one": "`defer()` for each: a call of a PostgreSQL function, in the transaction",
        "in_bulk": "`batch_defer()` for all: one call",
    },
    fill="in_bulk",
    stores="PostgreSQL: name, arguments, status, attempts, and a row for each event; no return value; until deleted",
    crash="at most once by default: 'doing' is committed before; your own periodic task can retry stalled jobs",
    atomic="no: another connection, after the task",
    why=(
        "one PostgreSQL function to fetch and one to finish, each in a transaction of an asynchronous connection that "
        "is checked before; triggers write the events, so that the server does work that other libraries do in Python"
    ),
)
PEERS: Final = (POSTGRES,)
