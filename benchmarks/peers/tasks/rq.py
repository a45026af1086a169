"""rq. As a program, its worker, which imports the modules of jobs before it forks, as rq's documentation advises."""

from __future__ import annotations

import sys
from functools import partial

import django
import rq
from django.db import transaction
from redis import Redis

from benchmarks.peers.addresses import redis_url


def greet(user_id: int, greeting: str) -> None:
    pass


def queue() -> rq.Queue:
    return rq.Queue(connection=Redis.from_url(redis_url()))


@transaction.atomic
def one_by_one(n: int) -> None:
    default = queue()
    for _ in range(n):
        transaction.on_commit(partial(default.enqueue, greet, user_id=7, greeting="hello"))


@transaction.atomic
def in_bulk(n: int) -> None:
    jobs = [rq.Queue.prepare_data(greet, kwargs={"user_id": 7, "greeting": "hello"}) for _ in range(n)]
    transaction.on_commit(partial(queue().enqueue_many, jobs))


if __name__ == "__main__":
    django.setup()
    import benchmarks.peers.tasks.rq  # noqa: F401, PLW0406

    default = queue()
    worker = {"Worker": rq.Worker, "SimpleWorker": rq.SimpleWorker}[sys.argv[1]]
    worker([default], connection=default.connection).work(logging_level="WARNING")
