"""The libraries in the comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.peers import celery, django_tasks_db, dramatiq, huey, ours, procrastinate, rq

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer

FLOOR: Final = ours.FLOOR
OURS: Final = ours.HANDLER
#: In the order of the tables.
PEERS: Final[tuple[Peer, ...]] = (
    *ours.PEERS,
    *celery.PEERS,
    *django_tasks_db.PEERS,
    *dramatiq.PEERS,
    *huey.PEERS,
    *procrastinate.PEERS,
    *rq.PEERS,
)


def named(name: str) -> Peer:
    return next(peer for peer in PEERS if peer.name == name)
