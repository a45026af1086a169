"""The lock is kept in a Django cache: by its own `lock()`, by its Redis, or by `add()`."""

from __future__ import annotations

import time
from typing import Any, Final

from django.conf import settings as django_settings
from django.core.cache import caches
from django.core.cache.backends.db import DatabaseCache
from django.core.cache.backends.redis import RedisCache
from django.core.checks import CheckMessage, Error, Warning
from django.db import connections, router
from django.utils import timezone

from lambda_tasks.locks.advisory import try_advisory_lock
from lambda_tasks.locks.base import BaseLock
from lambda_tasks.locks.redis import acquire_key, release_key
from lambda_tasks.settings import app_settings

#: Caches that no other process sees, or that keep nothing: a lock in them excludes nobody.
_NOT_SHARED: Final = (
    "django.core.cache.backends.locmem.LocMemCache",
    "django.core.cache.backends.filebased.FileBasedCache",
    "django.core.cache.backends.dummy.DummyCache",
)

#: Seconds by which an entry may end too early: the database cache cuts off fractions.
_ROUNDING: Final = 1


class CacheLock(BaseLock):
    """Locks by a Django cache that all workers share: the documented default.

    Options: `cache`, an alias in CACHES, by default LAMBDA_TASKS_SINGLETON_CACHE; `fail_open=True` to run
    without the lock where the cache cannot be asked; `in_transaction=False` for no second lock in the
    task's transaction (PostgreSQL only), which holds where the cache loses its own.

    With django-redis the cache's own `lock()` is used, with Django's RedisCache its Redis. In any
    other cache the lock is an entry made by `add()`; such caches cannot delete an entry only if it is
    still theirs, so a holder whose time is over leaves the entry alone and lets it expire.
    """

    def __init__(self, *, cache: str | None = None, fail_open: bool = False, in_transaction: bool = True) -> None:
        self.fail_open = fail_open
        self._alias = cache
        self._in_transaction = in_transaction
        # What release() must know of acquire(): redis-py's lock, or until when an entry is ours.
        self._held: dict[tuple[str, str], Any] = {}

    @property
    def alias(self) -> str:
        return self._alias or app_settings.singleton_cache

    def ensure_configured(self) -> None:
        caches[self.alias]

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        cache = caches[self.alias]
        if hasattr(cache, "lock"):
            return self._acquire_own_lock(cache, key, token, timeout)
        if isinstance(cache, RedisCache):
            return acquire_key(*_redis_of(cache, key), token=token, timeout=timeout)
        if isinstance(cache, DatabaseCache):
            _forget_expired_row(cache, key)
        lifetime = timeout + _ROUNDING
        if cache.add(key, token, lifetime) or (cache.get(key) == token and cache.touch(key, lifetime)):
            self._held[key, token] = time.monotonic() + timeout
            return True
        return False

    def release(self, key: str, *, token: str) -> None:
        cache = caches[self.alias]
        if hasattr(cache, "lock"):
            self._release_own_lock(key, token)
        elif isinstance(cache, RedisCache):
            release_key(*_redis_of(cache, key), token=token)
        else:
            until = self._held.pop((key, token), None)
            if until is not None and time.monotonic() < until and cache.get(key) == token:
                cache.delete(key)

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        return not self._in_transaction or try_advisory_lock(key, database=database)

    def _acquire_own_lock(self, cache: Any, key: str, token: str, timeout: float) -> bool:
        lock = cache.lock(key, timeout=timeout, blocking_timeout=0, thread_local=False)
        if not (lock.acquire(token=token) or _reacquired(lock, token)):
            return False
        self._held[key, token] = lock
        return True

    def _release_own_lock(self, key: str, token: str) -> None:
        from redis.exceptions import LockError  # loaded already by the cache that has locks

        if (lock := self._held.pop((key, token), None)) is not None:
            try:
                lock.release()
            except LockError:
                return  # it has expired, or is another's by now

    def check(self) -> list[CheckMessage]:
        config = django_settings.CACHES.get(self.alias)
        if config is None:
            return [
                Error(
                    f"The lock of singleton tasks uses the cache {self.alias!r}, which is not in CACHES.",
                    hint="Add it there, or name another one in LAMBDA_TASKS_SINGLETON_CACHE.",
                    id="lambda_tasks.E006",
                )
            ]
        if config.get("BACKEND") in _NOT_SHARED:
            return [
                Warning(
                    f"The lock of singleton tasks uses the cache {self.alias!r}, which workers do not share: "
                    f"{config['BACKEND']}.",
                    hint="Use a Redis, Memcached or database cache, or set LAMBDA_TASKS_LOCK.",
                    id="lambda_tasks.W001",
                )
            ]
        return []


def _reacquired(lock: Any, token: str) -> bool:
    from redis.exceptions import LockError  # loaded already by the cache that has locks

    lock.local.token = token.encode()
    try:
        return bool(lock.owned() and lock.reacquire())
    except LockError:
        return False  # it changed hands in between


def _forget_expired_row(cache: DatabaseCache, key: str) -> None:
    """Delete the row of a holder that died: into an empty place only one can insert.

    Django's `add()` overwrites an expired row, whoever else does so at the same moment.
    """
    database = connections[router.db_for_write(cache.cache_model_class)]
    now = database.ops.adapt_datetimefield_value(timezone.now().replace(microsecond=0))
    table = database.ops.quote_name(cache._table)  # type: ignore[attr-defined]
    with database.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {table} WHERE cache_key = %s AND expires < %s",
            [cache.make_and_validate_key(key), now],
        )


def _redis_of(cache: RedisCache, key: str) -> tuple[Any, str]:
    """Return the client and the full key that Django's RedisCache uses: it has no lock of its own."""
    return cache._cache.get_client(key, write=True), cache.make_and_validate_key(key)
