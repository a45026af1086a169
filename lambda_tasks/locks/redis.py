"""A lock that is a key in Redis. redis-py is imported on first use."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from django.utils.module_loading import import_string

from lambda_tasks.locks.advisory import try_advisory_lock
from lambda_tasks.locks.base import BaseLock
from lambda_tasks.recording.described import described

_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_DOTTED_PATH: Final = re.compile(r"\w+(\.\w+)+")


class RedisLock(BaseLock):
    """A lock in Redis that does not use Django's cache.

    Options:

    - `url`: an address in the format of redis-py's `from_url`.
    - `client`, instead of `url`: a client, a callable that returns one, or the dotted path of either (in tests:
      `{"client": "fakeredis.FakeRedis"}`).
    - `socket_timeout`: seconds for connecting and for each response.
    - `fail_open=True`: run tasks without the lock if Redis is unavailable.
    - `in_transaction=False`: acquire no second lock in the task's transaction (PostgreSQL only), which still holds if
      Redis loses the first one.
    - `prefix`: a string in front of each key. Projects that share a Redis server and have tasks with the same name
      need different prefixes.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        client: Any | Callable[[], Any] | str | None = None,
        socket_timeout: float = 2,
        fail_open: bool = False,
        in_transaction: bool = True,
        prefix: str = "",
    ) -> None:
        if (url is None) == (client is None):
            raise TypeError("exactly one of url and client must be set")
        # The values are not shown, because they may contain a password.
        if url is not None and not str(url).startswith(_SCHEMES):
            raise TypeError(f"url must be a string that begins with {' or '.join(_SCHEMES)}")
        if isinstance(client, str) and _DOTTED_PATH.fullmatch(client) is None:
            raise TypeError("client must be a redis-py client or its dotted path. Use url for an address")
        if type(prefix) is not str:
            raise TypeError(f"prefix must be a string, not {described(prefix)}")
        self._prefix = prefix
        self.fail_open = fail_open
        self._url = url
        self._in_transaction = in_transaction
        self._given = client
        self._socket_timeout = socket_timeout

    @cached_property
    def client(self) -> Any:
        """The redis-py client, created once. Its connections are pooled, and threads can share it."""
        if self._url is not None:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry

            return redis.Redis.from_url(
                self._url,
                socket_timeout=self._socket_timeout,
                socket_connect_timeout=self._socket_timeout,
                # Retry once, because a connection may have died during a freeze. The task's retries wait longer.
                retry=Retry(NoBackoff(), 1),
            )
        given = import_string(self._given) if isinstance(self._given, str) else self._given
        # Clients are not callable in any version of redis-py, but their factories are.
        return given() if callable(given) else given

    def acquire(self, key: str, *, token: str, timeout: float) -> bool:
        return acquire_key(self.client, self._prefix + key, token=token, timeout=timeout)

    def release(self, key: str, *, token: str) -> None:
        release_key(self.client, self._prefix + key, token=token)

    def hold_in_transaction(self, key: str, *, database: str) -> bool:
        return not self._in_transaction or try_advisory_lock(key, database=database)


def acquire_key(client: Any, key: str, *, token: str, timeout: float) -> bool:
    """Set `key` to `token` for `timeout` seconds, unless it contains another token."""
    milliseconds = int(timeout * 1000)
    if client.set(key, token, nx=True, px=milliseconds):
        return True
    return _change_if_held(client, key, token, lambda pipe: pipe.pexpire(key, milliseconds))


def release_key(client: Any, key: str, *, token: str) -> None:
    """Delete `key` if it contains `token`."""
    _change_if_held(client, key, token, lambda pipe: pipe.delete(key))


def _change_if_held(client: Any, key: str, token: str, change: Callable[[Any], object]) -> bool:
    """Run `change` if `key` contains `token`, and do nothing if the token changes in between.

    This uses WATCH instead of a script, so that it also works with a plain fakeredis (without Lua).
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
