"""A lock in a Django cache, which uses the cache's own `lock()`, its Redis client, or `add()`."""

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

from lambda_tasks.database.private_names import redis_client_of, table_of
from lambda_tasks.locks.advisory import try_advisory_lock
from lambda_tasks.locks.base import BaseLock
from lambda_tasks.locks.redis import acquire_key, release_key
from lambda_tasks.recording.described import described
from lambda_tasks.settings import app_settings

#: Caches that other processes do not see, or that store nothing. A lock in them would exclude no other worker.
_NOT_SHARED: Final = (
    "django.core.cache.backends.locmem.LocMemCache",
    "django.core.cache.backends.filebased.FileBasedCache",
    "django.core.cache.backends.dummy.DummyCache",
)

#: Seconds by which an entry may expire too early, because the database cache truncates fractions.
_ROUNDING: Final = 1


class CacheLock(BaseLock):
    """A lock in a Django cache that all workers share. This is the default.

    Options:

    - `cache`: an alias in CACHES. The default is LAMBDA_TASKS_SINGLETON_CACHE.
    - `fail_open=True`: run tasks without the lock if the cache is unavailable.
    - `in_transaction=False`: acquire no second lock in the task's transaction (PostgreSQL only), which still holds if
      the cache loses the first one.

    With django-redis, the cache's own `lock()` is used, and with Django's RedisCache, its Redis client. In other
    caches, the lock is an entry that `add()` creates. Such caches cannot delete an entry on the condition that it
    still belongs to the holder, so a holder whose timeout has expired does not delete the entry.
    """

    def __init__(self, *, cache: str | None = None, fail_open: bool = False, in_transaction: bool = True) -> None:
        self.fail_open = fail_open
        self._alias = cache
        self._in_transaction = in_transaction
        # For release(), what acquire() got: redis-py's lock, or the time when the entry expires.
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
        from redis.exceptions import LockError  # a cache with locks has already imported redis

        if (lock := self._held.pop((key, token), None)) is not None:
            try:
                lock.release()
            except LockError:
                return  # it has expired, or another token holds it

    def check(self) -> list[CheckMessage]:
        config = django_settings.CACHES.get(self.alias)
        if config is None:
            return [
                Error(
                    f"The lock of singleton tasks uses the cache {described(self.alias)}, which is not in CACHES.",
                    hint="Add it to CACHES, or name another cache in LAMBDA_TASKS_SINGLETON_CACHE.",
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
    from redis.exceptions import LockError  # a cache with locks has already imported redis

    lock.local.token = token.encode()
    try:
        return bool(lock.owned() and lock.reacquire())
    except LockError:
        return False  # another token has acquired it in between


def _forget_expired_row(cache: DatabaseCache, key: str) -> None:
    """Delete the expired row of a holder that died, so that only one worker can insert a new row.

    Django's `add()` overwrites an expired row, even if two workers do so at the same time.
    """
    database = connections[router.db_for_write(cache.cache_model_class)]
    now = database.ops.adapt_datetimefield_value(timezone.now().replace(microsecond=0))
    table = database.ops.quote_name(table_of(cache))
    with database.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {table} WHERE cache_key = %s AND expires < %s",
            [cache.make_and_validate_key(key), now],
        )


def _redis_of(cache: RedisCache, key: str) -> tuple[Any, str]:
    """Return the client and the full key of Django's RedisCache, which has no `lock()` method."""
    return redis_client_of(cache, key), cache.make_and_validate_key(key)
