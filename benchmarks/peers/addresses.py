"""Addresses of the servers of this comparison, in the format of each client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from benchmarks import servers

#: The number of the Redis database; not 0, because other programs use it.
REDIS_DATABASE: Final = int(os.environ.get("BENCH_REDIS_DATABASE", "9"))


def redis_url() -> str:
    """Return the URL for redis-py."""
    url = urlsplit(servers.address("Redis"))
    if url.scheme == "unix":
        return url._replace(query=f"db={REDIS_DATABASE}").geturl()
    return url._replace(path=f"/{REDIS_DATABASE}").geturl()


def redis_durability() -> str:
    """Describe which Redis writes reach the disk, and when."""
    with redis.Redis.from_url(redis_url()) as client:
        asked = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "save")}
    append = f"appended ({asked['appendfsync']})" if asked["appendonly"] == "yes" else "not appended to a file"
    return f"Redis: writes are {append}, and snapshots are saved {asked['save'] or 'never'}"


@contextmanager
def empty_redis() -> Iterator[None]:
    """Check that the Redis database is empty, and empty it again at the end."""
    with redis.Redis.from_url(redis_url()) as client:
        if client.dbsize():
            raise SystemExit(
                f"Redis database {REDIS_DATABASE} must be empty. Set BENCH_REDIS_DATABASE to another number."
            )
        try:
            yield
        finally:
            client.flushdb()


def kombu_url() -> str:
    """Return the URL for celery, which has its own format for sockets."""
    url = urlsplit(servers.address("Redis"))
    return f"redis+socket://{url.path}?virtual_host={REDIS_DATABASE}" if url.scheme == "unix" else redis_url()


def postgres() -> dict[str, Any]:
    """Return the arguments of `psycopg.connect` for the database of the settings."""
    from benchmarks.settings import DATABASES

    entry = DATABASES["default"]
    wanted = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
    return {name: entry[key] for name, key in wanted.items() if entry[key]}
