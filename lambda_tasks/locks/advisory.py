"""PostgreSQL's advisory lock, which lasts as long as a transaction and does not depend on another server."""

from __future__ import annotations

import hashlib

from django.db import connections


def try_advisory_lock(key: str, *, database: str) -> bool:
    """Acquire the lock `key` until the open transaction on `database` ends, without waiting.

    Return False if another transaction holds the lock. Only COMMIT, ROLLBACK or the end of the connection releases it.
    On databases other than PostgreSQL, which do not have such locks, return True without a query.
    """
    connection = connections[database]
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [advisory_key(key)])
        (taken,) = cursor.fetchone()
    return bool(taken)


def advisory_key(key: str) -> int:
    """Return the 64-bit number for `key`, because PostgreSQL's advisory locks have numbers instead of names."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)
