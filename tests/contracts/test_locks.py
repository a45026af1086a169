"""The contract of locks over every lock that comes with the library, and what is particular to each."""

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

from lambda_tasks import executor
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import LockError, LockUnavailable
from lambda_tasks.identity import new_message_id
from lambda_tasks.locks.base import BaseLock
from lambda_tasks.locks.cache import CacheLock
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.locks.redis import RedisLock
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.outcomes import Ignored, Outcome, Retry, Skipped, Succeeded
from lambda_tasks.strategies import get_lock
from lambda_tasks.testing.contracts import LockContract

# Newer versions of fakeredis have another name for it, and deprecate the old one.
FakeConnection = getattr(fakeredis, "FakeRedisConnection", None) or fakeredis.FakeConnection
FAKE_REDIS = {"BACKEND": "lambda_tasks.locks.redis.RedisLock", "OPTIONS": {"client": "fakeredis.FakeRedis"}}


@pytest.fixture
def closed_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections, and then never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# In one process


class Clock:
    """Time that passes when it is told to."""

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
        # It is free for another one at the moment its time is over, and not before.
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


# In Redis


class RedisContract(LockContract):
    """The contract for locks whose key stands in Redis; a subclass says which client and key that is."""

    def client(self, lock: Any) -> Any:
        raise NotImplementedError

    def real_key(self, lock: Any, key: str) -> str:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _leave_nothing(self, lock: BaseLock, key: str) -> Iterator[None]:
        yield
        client = self.client(lock)
        for left in client.scan_iter(f"*{key}*"):
            client.delete(left)

    def seconds_left(self, lock: BaseLock, key: str) -> float:
        return float(self.client(lock).pttl(self.real_key(lock, key))) / 1000

    def expire(self, lock: BaseLock, key: str) -> None:
        assert self.client(lock).pexpireat(self.real_key(lock, key), 1), "there was no such key"

    def test_the_key_in_redis_is_the_documented_one(self, lock: BaseLock, key: str) -> None:
        lock.acquire(key, token="a", timeout=60)
        [found] = self.client(lock).scan_iter(f"*{key}")
        assert found.decode() == self.real_key(lock, key)
        assert self.client(lock).get(found) == b"a"

    def test_a_late_release_between_look_and_deletion_leaves_the_next_holder_alone(
        self, lock: BaseLock, key: str
    ) -> None:
        """Everything that a release asks of Redis it asks in one transaction, or script."""
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

    def test_redis_itself_ends_it_when_its_time_is_over(self, lock: BaseLock, key: str) -> None:
        begin = time.monotonic()
        assert lock.acquire(key, token="a", timeout=0.05)
        while not lock.acquire(key, token="b", timeout=60):
            assert time.monotonic() - begin < 5
        assert time.monotonic() - begin >= 0.049

    def test_a_server_that_says_nothing_raises_after_the_socket_timeout(self, silent_port: int, key: str) -> None:
        lock = RedisLock(url=f"redis://127.0.0.1:{silent_port}/0", socket_timeout=0.2)
        begin = time.monotonic()
        with pytest.raises(redis.RedisError):
            lock.acquire(key, token="a", timeout=60)
        assert time.monotonic() - begin < 3


class TestRedisLockOnFakeRedis(RedisContract):
    @pytest.fixture
    def lock(self) -> RedisLock:
        return RedisLock(client=fakeredis.FakeRedis(server=fakeredis.FakeServer()))

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


class Interfered(fakeredis.FakeRedis):
    """A client on whose key something happens right after it has read it."""

    def happen(self, key: str) -> None:
        """The time of the holder is over, and another one comes."""
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


def test_a_lock_that_changes_hands_while_it_is_released_is_left_to_the_next_holder() -> None:
    server = fakeredis.FakeServer()
    assert RedisLock(client=fakeredis.FakeRedis(server=server)).acquire("key", token="a", timeout=60)
    RedisLock(client=Interfered(server=server)).release("key", token="a")
    assert fakeredis.FakeRedis(server=server).get("key") == b"b"


def test_a_lock_that_changes_hands_while_it_is_taken_again_is_refused() -> None:
    server = fakeredis.FakeServer()
    assert RedisLock(client=fakeredis.FakeRedis(server=server)).acquire("key", token="a", timeout=60)
    assert RedisLock(client=Interfered(server=server)).acquire("key", token="a", timeout=900) is False
    assert fakeredis.FakeRedis(server=server).pttl("key") <= 60_000


# In a cache that has Redis behind it


class RedisCacheContract(RedisContract):
    """The contract for `CacheLock` on a cache with Redis behind it; `location` and `options` say which."""

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


# In any other cache


class TestCacheLockWithLocalMemory(LockContract):
    """Excludes threads only; what it shows holds for every cache whose `add()` is atomic."""

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
class TestCacheLockWithADatabaseCache(LockContract):
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

    def test_it_ends_by_itself_but_not_before_its_time(
        self, lock: BaseLock, key: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the contract has it, but at a time whose fraction would matter."""
        now = int(time.time()) + 0.9
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now)
            assert lock.acquire(key, token="a", timeout=60)
        assert now + 60 <= self.expires(key).timestamp() < now + 65


# Chosen by the settings


@lambda_task(singleton=True)
def alone() -> list[str]:
    """Return who is seen to hold the task's lock while it runs."""
    client = get_lock().client  # type: ignore[attr-defined]
    return [key.decode() for key in client.scan_iter("*")]


@lambda_task(singleton=True, ignore_errors=(LockError,))
def alone_or_not_at_all() -> None: ...


def run(task: Any) -> Outcome | Skipped:
    message = SQSLambdaTaskMessage(task_name=task.name)
    return executor.execute(message, message_id=new_message_id(), limited=False)


KEY = f"lambda_tasks.singleton_lock.{alone.name}"


@pytest.mark.django_db
def test_a_setting_alone_swaps_the_lock_for_one_on_fakeredis(settings: Any) -> None:
    settings.LAMBDA_TASKS_LOCK = FAKE_REDIS
    lock = get_lock()
    assert isinstance(lock, RedisLock)
    assert isinstance(lock.client, fakeredis.FakeRedis)
    assert run(alone) == Succeeded([KEY])
    assert list(lock.client.scan_iter("*")) == []


@pytest.mark.django_db
def test_a_singleton_task_is_retried_while_another_run_holds_its_lock(settings: Any) -> None:
    settings.LAMBDA_TASKS_LOCK = FAKE_REDIS
    assert get_lock().acquire(KEY, token="another run", timeout=60)
    outcome = run(alone)
    assert isinstance(outcome, Retry)
    assert isinstance(outcome.error, LockError)
    get_lock().release(KEY, token="another run")
    assert isinstance(run(alone), Succeeded)


@pytest.mark.django_db
def test_a_singleton_task_that_ignores_lock_errors_is_dropped(settings: Any) -> None:
    settings.LAMBDA_TASKS_LOCK = FAKE_REDIS
    assert get_lock().acquire(f"lambda_tasks.singleton_lock.{alone_or_not_at_all.name}", token="other", timeout=60)
    assert isinstance(run(alone_or_not_at_all), Ignored)


@pytest.mark.django_db
def test_a_singleton_task_is_retried_while_the_locks_server_is_away(settings: Any, closed_port: int) -> None:
    settings.LAMBDA_TASKS_LOCK = {
        "BACKEND": "lambda_tasks.locks.redis.RedisLock",
        "OPTIONS": {"url": f"redis://127.0.0.1:{closed_port}/0"},
    }
    outcome = run(alone)
    assert isinstance(outcome, Retry)
    assert isinstance(outcome.error, LockUnavailable)


@pytest.mark.parametrize("options", [{}, {"url": "redis://127.0.0.1/0", "client": "fakeredis.FakeRedis"}])
def test_a_redis_lock_wants_a_url_or_a_client(options: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="either url or client"):
        RedisLock(**options)


fake_client = fakeredis.FakeRedis()


def make_client() -> fakeredis.FakeRedis:
    return fake_client


@pytest.mark.parametrize("client", [fake_client, make_client, f"{__name__}.fake_client", f"{__name__}.make_client"])
def test_a_client_can_be_given_itself_by_what_makes_it_or_by_the_path_of_either(client: Any) -> None:
    assert RedisLock(client=client).client is fake_client
