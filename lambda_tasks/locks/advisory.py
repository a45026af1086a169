"""PostgreSQL's own lock for the length of a transaction: no other server's failure ends it early."""

from __future__ import annotations

import hashlib

from django.db import connections


def try_advisory_lock(key: str, *, database: str) -> bool:
    """Take the lock `key` until the open transaction on `database` ends, without waiting.

    Returns False if another transaction holds it. COMMIT, ROLLBACK and the end of the connection give
    it back: nothing else can, and nothing has to. True without asking on a database that has no such
    locks, which are all but PostgreSQL.
    """
    connection = connections[database]
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [advisory_key(key)])
        (taken,) = cursor.fetchone()
    return bool(taken)


def advisory_key(key: str) -> int:
    """Return the 64 bit number that stands for `key`: PostgreSQL's advisory locks have no names."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)
