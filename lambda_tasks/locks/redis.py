"""The lock is a key in Redis. redis-py is imported when the lock is first needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.utils.module_loading import import_string

from lambda_tasks.locks.advisory import try_advisory_lock
from lambda_tasks.locks.base import BaseLock


class RedisLock(BaseLock):
    """Locks by a Redis server of its own, without Django's cache.

    Options: `url`, as redis-py's `from_url` takes it; or `client`, a client, something callable that
    returns one, or the dotted path of that (in tests: `{"client": "fakeredis.FakeRedis"}`);
    `socket_timeout` in seconds, for connecting and for each answer; `fail_open=True` to run without the
    lock where Redis cannot be asked; `in_transaction=False` for no second lock in the task's transaction
    (PostgreSQL only), which holds where Redis loses its own.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        client: Any | Callable[[], Any] | str | None = None,
        socket_timeout: float = 2,
        fail_open: bool = False,
        in_transaction: bool = True,
    ) -> None:
        if (url is None) == (client is None):
            raise TypeError("give either url or client")
        self.fail_open = fail_open
        self._url = url
        self._in_transaction = in_transaction
        self._given = client
        self._socket_timeout = socket_timeout

    @cached_property
    def client(self) -> Any:
        """The redis-py client: made once, its connections pooled and safe to share between threads."""
        if self._url is not None:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            return redis.Redis.from_url(
                self._url,
                socket_timeout=self._socket_timeout,
                socket_connect_timeout=self._socket_timeout,
                # Once more, as a connection may have died over a freeze; who waits longer is the task's retry.
                retry=Retry(NoBackoff(), 1),
            )
        given = import_string(self._given) if isinstance(self._given, str) else self._given
        # A client is callable in no version of redis-py; what makes one is.
        return given() if callable(given) else given

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        return acquire_key(self.client, key, token=token, timeout=timeout)

    def release(self, key: str, *, token: str) -> None:
        release_key(self.client, key, token=token)

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        return not self._in_transaction or try_advisory_lock(key, database=database)


def acquire_key(client: Any, key: str, *, token: str, timeout: float) -> bool:
    """Set `key` to `token` for `timeout` seconds unless it holds another one."""
    milliseconds = int(timeout * 1000)
    if client.set(key, token, nx=True, px=milliseconds):
        return True
    return _change_if_held(client, key, token, lambda pipe: pipe.pexpire(key, milliseconds))


def release_key(client: Any, key: str, *, token: str) -> None:
    """Delete `key` if it holds `token`."""
    _change_if_held(client, key, token, lambda pipe: pipe.delete(key))


def _change_if_held(client: Any, key: str, token: str, change: Callable[[Any], object]) -> bool:
    """Do `change` if `key` holds `token`; one that changes hands in between is left alone.

    With WATCH and not with a script, so that a plain fakeredis (without Lua) can stand in.
    """
    from redis.exceptions import WatchError

    with client.pipeline() as pipe:
        try:
            pipe.watch(key)
            if not _holds(pipe, key, token):
                return False
            pipe.multi()
            change(pipe)
            return all(pipe.execute())
        except WatchError:
            return False


def _holds(client: Any, key: str, token: str) -> bool:
    value = client.get(key)
    return (value.decode() if isinstance(value, bytes) else value) == token
