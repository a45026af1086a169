"""Where the servers of this comparison are, in the words of each client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from benchmarks import servers

#: Number of the Redis database; not 0, which is where others keep things.
REDIS_DATABASE: Final = int(os.environ.get("BENCH_REDIS_DATABASE", "9"))


def redis_url() -> str:
    """Return the URL for redis-py."""
    url = urlsplit(servers.address("Redis"))
    if url.scheme == "unix":
        return url._replace(query=f"db={REDIS_DATABASE}").geturl()
    return url._replace(path=f"/{REDIS_DATABASE}").geturl()


def redis_durability() -> str:
    """Say what of Redis reaches the disk, and when."""
    with redis.Redis.from_url(redis_url()) as client:
        asked = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "save")}
    append = f"appended ({asked['appendfsync']})" if asked["appendonly"] == "yes" else "not appended to a file"
    return f"Redis: what it is told is {append}, and saved {asked['save'] or 'never'}"


@contextmanager
def empty_redis() -> Iterator[None]:
    """Make sure that nobody keeps anything in the Redis database, and empty it in the end."""
    with redis.Redis.from_url(redis_url()) as client:
        if client.dbsize():
            raise SystemExit(f"Redis database {REDIS_DATABASE} is not empty; set BENCH_REDIS_DATABASE to another one.")
        try:
            yield
        finally:
            client.flushdb()


def kombu_url() -> str:
    """Return the URL for celery, which has a spelling of its own for sockets."""
    url = urlsplit(servers.address("Redis"))
    return f"redis+socket://{url.path}?virtual_host={REDIS_DATABASE}" if url.scheme == "unix" else redis_url()


def postgres() -> dict[str, Any]:
    """Return the arguments of `psycopg.connect` for the database of the settings."""
    from benchmarks.settings import DATABASES

    entry = DATABASES["default"]
    wanted = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD", "dbname": "NAME"}
    return {name: entry[key] for name, key in wanted.items() if entry[key]}
