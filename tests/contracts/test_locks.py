"""Run the contract of locks against every lock of the library, and test the details of each."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import fakeredis
import pytest
import redis
from django.core.cache import caches
from django.db import connection

from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import LockError, LockUnavailable
from lambda_tasks.execution import pipeline
from lambda_tasks.locks.base import BaseLock
from lambda_tasks.locks.cache import CacheLock
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.locks.redis import RedisLock
from lambda_tasks.outcomes import Ignored, Outcome, Retry, Skipped, Succeeded
from lambda_tasks.strategies import get_lock
from lambda_tasks.testing.contracts import LockContract
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation

# Newer versions of fakeredis have renamed the class, and deprecate the old name.
FakeConnection = getattr(fakeredis, "FakeRedisConnection", None) or fakeredis.FakeConnection
FAKE_REDIS = {"BACKEND": "lambda_tasks.locks.redis.RedisLock", "OPTIONS": {"client": "fakeredis.FakeRedis"}}


@pytest.fixture
def closed_port() -> int:
    """Return a port of this machine on which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yield a port that accepts connections but never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# Locks in one process


class Clock:
    """A clock that advances only when it is set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class TestMemoryLock(LockContract):
    clock: Clock

    @pytest.fixture
    def lock(self) -> MemoryLock:
        self.clock = Clock()
        return MemoryLock(clock=self.clock)

    def seconds_left(self, lock: Any, key: str) -> float:
        begin = self.clock.now
        # The lock is free exactly when its time has expired, and not before.
        seconds = next(s for s in range(1_000) if self._is_free_at(lock, key, begin + s))
        self.clock.now = begin
        return seconds

    def _is_free_at(self, lock: MemoryLock, key: str, moment: float) -> bool:
        self.clock.now = moment
        if free := lock.acquire(key, token="probe", timeout=0):
            lock.release(key, token="probe")
        return free

    def expire(self, lock: BaseLock, key: str) -> None:
        self.clock.now += 60


# Locks in Redis


class RedisContract(LockContract):
    """The contract for locks with a key in Redis. Subclasses define the client and the key."""

    def client(self, lock: Any) -> Any:
        raise NotImplementedError

    def real_key(self, lock: Any, key: str) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _clear(self, lock: BaseLock, key: str) -> Iterator[None]:
        yield
        client = self.client(lock)
        for left in client.scan_iter(f"*{key}*"):
            client.delete(left)

    def seconds_left(self, lock: BaseLock, key: str) -> float:
        return float(self.client(lock).pttl(self.real_key(lock, key))) / 1000

    def expire(self, lock: BaseLock, key: str) -> None:
        assert self.client(lock).pexpireat(self.real_key(lock, key), 1), "there was no such key"

    def test_redis_key_is_the_documented_one(self, lock: BaseLock, key: str) -> None:
        lock.acquire(key, token="a", timeout=60)
        [found] = self.client(lock).scan_iter(f"*{key}")
        assert found.decode() == self.real_key(lock, key)
        assert self.client(lock).get(found) == b"a"

    def test_release_checks_and_deletes_atomically(self, lock: BaseLock, key: str) -> None:
        """It sends everything to Redis in one transaction or script, so that it cannot delete the next holder's key."""
        lock.acquire(key, token="a", timeout=60)
        assert self.client(lock).set(self.real_key(lock, key), "b", px=60_000)
        lock.release(key, token="a")
        assert self.client(lock).get(self.real_key(lock, key)) == b"b"


class TestRedisLock(RedisContract):
    @pytest.fixture
    def lock(self, redis_url: str) -> RedisLock:
        return RedisLock(url=redis_url)

    def elsewhere(self, lock: Any) -> BaseLock:
        return RedisLock(client=redis.Redis(connection_pool=lock.client.connection_pool))

    def unreachable(self) -> BaseLock:
        return RedisLock(url=f"redis://127.0.0.1:{self.closed_port}/0")

    @pytest.fixture(autouse=True)
    def _closed_port(self, closed_port: int) -> None:
        self.closed_port = closed_port

    def client(self, lock: Any) -> Any:
        return lock.client

    def real_key(self, lock: Any, key: str) -> str:
        return key

    def test_redis_expires_the_key(self, lock: BaseLock, key: str) -> None:
        begin = time.monotonic()
        assert lock.acquire(key, token="a", timeout=0.05)
        while not lock.acquire(key, token="b", timeout=60):
            assert time.monotonic() - begin < 5
        assert time.monotonic() - begin >= 0.049

    def test_silent_server_raises_after_the_socket_timeout(self, silent_port: int, key: str) -> None:
        lock = RedisLock(url=f"redis://127.0.0.1:{silent_port}/0", socket_timeout=0.2)
        begin = time.monotonic()
        with pytest.raises(redis.RedisError):
            lock.acquire(key, token="a", timeout=60)
        assert time.monotonic() - begin < 3


class TestRedisLockOnFakeRedis(RedisContract):
    @pytest.fixture
    def lock(self) -> RedisLock:
        client = fakeredis.FakeRedis(server=fakeredis.FakeServer())
        # The first connection creates fakeredis's database, and two first ones at the same time create two.
        client.ping()
        return RedisLock(client=client)

    def elsewhere(self, lock: Any) -> BaseLock:
        return RedisLock(client=lambda: fakeredis.FakeRedis(connection_pool=lock.client.connection_pool))

    def unreachable(self) -> BaseLock:
        server = fakeredis.FakeServer()
        server.connected = False
        return RedisLock(client=fakeredis.FakeRedis(server=server))

    def client(self, lock: Any) -> Any:
        return lock.client

    def real_key(self, lock: Any, key: str) -> str:
        return key


class InterferingClient(fakeredis.FakeRedis):
    """A client whose key changes right after it was read."""

    def happen(self, key: str) -> None:
        """Let the holder's time expire, and give the lock to another holder."""
        another = fakeredis.FakeRedis(connection_pool=self.connection_pool)
        another.delete(key)
        another.set(key, "b", px=60_000)

    def get(self, name: Any) -> Any:
        value = super().get(name)
        self.happen(name)
        return value

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        pipe = super().pipeline(transaction, shard_hint)
        read, happen = pipe.get, self.happen

        def get(name: Any) -> Any:
            value = read(name)
            happen(name)
            return value

        pipe.get = get
        return pipe


def test_release_leaves_a_lock_that_changed_hands() -> None:
    server = fakeredis.FakeServer()
    assert RedisLock(client=fakeredis.FakeRedis(server=server)).acquire("key", token="a", timeout=60)
    RedisLock(client=InterferingClient(server=server)).release("key", token="a")
    assert fakeredis.FakeRedis(server=server).get("key") == b"b"


def test_reacquiring_a_lock_that_changed_hands_is_refused() -> None:
    server = fakeredis.FakeServer()
    assert RedisLock(client=fakeredis.FakeRedis(server=server)).acquire("key", token="a", timeout=60)
    assert RedisLock(client=InterferingClient(server=server)).acquire("key", token="a", timeout=900) is False
    assert fakeredis.FakeRedis(server=server).pttl("key") <= 60_000


# Locks in a cache with Redis behind it


class RedisCacheContract(RedisContract):
    """The contract for `CacheLock` on a cache with Redis behind it, given by `location` and `options`."""

    backend = ""
    location = ""
    options: dict[str, Any] = {}  # noqa: RUF012, none of the tests writes to it

    @pytest.fixture
    def lock(self, settings: Any, request: pytest.FixtureRequest, closed_port: int) -> CacheLock:
        location = self.location or request.getfixturevalue("redis_url")
        cache = {"BACKEND": self.backend, "LOCATION": location, "OPTIONS": self.options, "KEY_PREFIX": "shop"}
        away = {"BACKEND": self.backend, "LOCATION": f"redis://127.0.0.1:{closed_port}/0"}
        settings.CACHES = {"default": {"BACKEND": "nowhere.Cache"}, "locks": cache, "away": away}
        settings.LAMBDA_TASKS_SINGLETON_CACHE = "locks"
        return CacheLock()

    def elsewhere(self, lock: BaseLock) -> BaseLock:
        return CacheLock(cache="locks")

    def unreachable(self) -> BaseLock:
        return CacheLock(cache="away")

    def real_key(self, lock: Any, key: str) -> str:
        return str(caches[lock.alias].make_key(key))


class TestCacheLockWithDjangoRedis(RedisCacheContract):
    backend = "django_redis.cache.RedisCache"

    def client(self, lock: Any) -> Any:
        return caches[lock.alias].client.get_client(write=True)


class TestCacheLockWithDjangoRedisOnFakeRedis(TestCacheLockWithDjangoRedis):
    location = "redis://django-redis-on-fakeredis:6379/0"
    options = {"CONNECTION_POOL_KWARGS": {"connection_class": FakeConnection}}  # noqa: RUF012


class TestCacheLockWithDjangosRedisCache(RedisCacheContract):
    backend = "django.core.cache.backends.redis.RedisCache"

    def client(self, lock: Any) -> Any:
        return caches[lock.alias]._cache.get_client(None, write=True)


class TestCacheLockWithDjangosRedisCacheOnFakeRedis(TestCacheLockWithDjangosRedisCache):
    location = "redis://redis-cache-on-fakeredis:6379/0"
    options = {"connection_class": FakeConnection}  # noqa: RUF012


# Locks in other caches


class TestCacheLockWithLocalMemory(LockContract):
    """Run the contract between threads. It shows the same for every cache whose `add()` is atomic."""

    @pytest.fixture
    def lock(self, settings: Any) -> CacheLock:
        settings.CACHES = {
            "locks": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "LOCATION": "locks in memory"}
        }
        caches["locks"].clear()
        return CacheLock(cache="locks")

    def elsewhere(self, lock: BaseLock) -> BaseLock:
        return CacheLock(cache="locks")

    def seconds_left(self, lock: BaseLock, key: str) -> float:
        until: float = caches["locks"]._expire_info[caches["locks"].make_key(key)]
        return until - time.time()

    def expire(self, lock: BaseLock, key: str) -> None:
        caches["locks"]._expire_info[caches["locks"].make_key(key)] = time.time() - 1


@pytest.mark.django_db(transaction=True)
class TestCacheLockWithDatabaseCache(LockContract):
    @pytest.fixture
    def lock(self) -> Iterator[CacheLock]:
        yield CacheLock(cache="database")
        caches["database"].clear()

    def elsewhere(self, lock: BaseLock) -> BaseLock:
        return CacheLock(cache="database")

    def expires(self, key: str) -> datetime:
        with connection.cursor() as cursor:
            cursor.execute("SELECT expires FROM cache_table WHERE cache_key = %s", [caches["database"].make_key(key)])
            [until] = cursor.fetchone()
        until = datetime.fromisoformat(until) if isinstance(until, str) else until
        return until.replace(tzinfo=timezone.utc)

    def seconds_left(self, lock: BaseLock, key: str) -> float:
        return (self.expires(key) - datetime.now(timezone.utc)).total_seconds()

    def expire(self, lock: BaseLock, key: str) -> None:
        past = connection.ops.adapt_datetimefield_value(datetime.now(timezone.utc) - timedelta(seconds=5))
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE cache_table SET expires = %s WHERE cache_key = %s", [past, caches["database"].make_key(key)]
            )
            assert cursor.rowcount == 1

    def test_lock_expires_after_its_timeout(self, lock: BaseLock, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Use a time with a large fraction, which the cache's whole seconds must not round down."""
        now = int(time.time()) + 0.9
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now)
            assert lock.acquire(key, token="a", timeout=60)
        assert now + 60 <= self.expires(key).timestamp() < now + 65


# Locks that settings select


@lambda_task(singleton=True)
def alone() -> list[str]:
    """Return the keys of all locks that exist while the task runs."""
    client = get_lock().client  # type: ignore[attr-defined]
    return [key.decode() for key in client.scan_iter("*")]


@lambda_task(singleton=True, ignore_errors=(LockError,))
def alone_or_not_at_all() -> None: ...


def run(task: Any) -> Outcome | Skipped:
    message = Invocation(task_name=task.name)
    return pipeline.execute(message, message_id=new_message_id(), limited=False)


KEY = f"lambda_tasks.singleton_lock.{alone.name}"


@pytest.mark.django_db
def test_setting_selects_a_lock_on_fakeredis(settings: Any) -> None:
    settings.LAMBDA_TASKS_LOCK = FAKE_REDIS
    lock = get_lock()
    assert isinstance(lock, RedisLock)
    assert isinstance(lock.client, fakeredis.FakeRedis)
    assert run(alone) == Succeeded([KEY])
    assert list(lock.client.scan_iter("*")) == []


@pytest.mark.django_db
def test_singleton_task_is_retried_during_contention(settings: Any) -> None:
    settings.LAMBDA_TASKS_LOCK = FAKE_REDIS
    assert get_lock().acquire(KEY, token="another run", timeout=60)
    outcome = run(alone)
    assert isinstance(outcome, Retry)
    assert isinstance(outcome.error, LockError)
    get_lock().release(KEY, token="another run")
    assert isinstance(run(alone), Succeeded)


@pytest.mark.django_db
def test_singleton_task_that_ignores_contention_is_dropped(settings: Any) -> None:
    settings.LAMBDA_TASKS_LOCK = FAKE_REDIS
    assert get_lock().acquire(f"lambda_tasks.singleton_lock.{alone_or_not_at_all.name}", token="other", timeout=60)
    assert isinstance(run(alone_or_not_at_all), Ignored)


@pytest.mark.django_db
def test_singleton_task_is_retried_if_redis_is_unavailable(
    settings: Any, closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings.LAMBDA_TASKS_LOCK = {
        "BACKEND": "lambda_tasks.locks.redis.RedisLock",
        "OPTIONS": {"url": f"redis://127.0.0.1:{closed_port}/0"},
    }
    outcome = run(alone)
    assert isinstance(outcome, Retry)
    assert isinstance(outcome.error, LockUnavailable)
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{alone.name} is retried in {outcome.delay} s, and was not run: The lock" in line
    assert f"127.0.0.1:{closed_port}" in line


@pytest.mark.parametrize("options", [{}, {"url": "redis://127.0.0.1/0", "client": "fakeredis.FakeRedis"}])
def test_redis_lock_requires_a_url_or_a_client(options: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="exactly one of url and client"):
        RedisLock(**options)


fake_client = fakeredis.FakeRedis()


def make_client() -> fakeredis.FakeRedis:
    return fake_client


@pytest.mark.parametrize("client", [fake_client, make_client, f"{__name__}.fake_client", f"{__name__}.make_client"])
def test_client_may_be_an_instance_factory_or_path(client: Any) -> None:
    assert RedisLock(client=client).client is fake_client
