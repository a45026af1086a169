"""Check that a lock server that is unavailable, silent or loses locks changes no outcome and causes no overlap."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import connections, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from lambda_tasks import failpoints
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import LockError
from lambda_tasks.execution import locking
from lambda_tasks.foundation.forks import random
from lambda_tasks.handler import handler
from lambda_tasks.locks.advisory import advisory_key, try_advisory_lock
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend, get_lock, get_store
from lambda_tasks.testing.contracts import InThread
from lambda_tasks.wire import ids
from tests import services
from tests.app.models import Effect
from tests.faults.proxy import PATIENCE, Proxy, Strike, proxy_to

pytestmark = pytest.mark.thorough

#: The socket timeout for a silent server in these tests, in seconds.
IMPATIENCE = 0.2

#: An additional action of a task, by the name that it is called with, executed once.
meanwhile: dict[str, Callable[[], object]] = {}


class RetryRequested(Exception):
    """An error for which a task is retried."""


@lambda_task(singleton=True, ignore_errors=(LockError,), retry_on=(RetryRequested,))
def alone(*, name: str, end: str = "well") -> None:
    effects().create(name=name)
    meanwhile.pop(name, lambda: None)()
    if end == "failing":
        raise ValueError(name)
    if end == "retrying":
        raise RetryRequested(name)


@lambda_task(singleton=True)
def alone_in_the_end(*, name: str) -> None:
    alone(name=name)


def effects() -> Any:
    return Effect.objects.using(get_store().database)


def records() -> Any:
    return TaskRecord.objects.using(get_store().database)


def names() -> list[str]:
    return sorted(effects().values_list("name", flat=True))


def statuses() -> list[str]:
    return sorted(records().values_list("status", flat=True))


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


@pytest.fixture(autouse=True)
def _empty_backend() -> None:
    """Drop jobs that an earlier test has left, such as a retry."""
    if isinstance(get_backend(), MemoryBackend):
        backend().take()


def message_of(task: Any, /, **kwargs: Any) -> dict[str, Any]:
    """Return the message of an invocation as it appears in an event."""
    task.execute_on_commit(**kwargs)
    [job] = backend().take()
    return event_record(job)


def deliver(*messages: dict[str, Any]) -> list[str]:
    """Deliver the messages to the handler, and return the ids of those that stay on the queue."""
    response = handler({"Records": list(messages)}, None)
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def retry_message() -> dict[str, Any]:
    [retry] = backend().take()
    return event_record(retry)


def expire_leases() -> None:
    records().filter(status="RUNNING").update(lease_until=DatabaseNow() - timedelta(seconds=1))


def key_of(task: Any) -> str:
    return f"lambda_tasks.singleton_lock.{task.name}"


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    meanwhile.clear()
    yield
    backend().jobs.clear()


# The three clients of Redis, through a proxy or with a private server


def lock_settings(kind: str, url: str, **options: Any) -> dict[str, Any]:
    """Return the settings of a lock of this kind on the Redis at `url`."""
    if kind == "RedisLock":
        options |= {"url": url, "socket_timeout": IMPATIENCE}
        return {"LAMBDA_TASKS_LOCK": {"BACKEND": "lambda_tasks.locks.redis.RedisLock", "OPTIONS": options}}
    engine, client = {
        "django-redis": (
            "django_redis.cache.RedisCache",
            {"SOCKET_TIMEOUT": IMPATIENCE, "SOCKET_CONNECT_TIMEOUT": IMPATIENCE},
        ),
        "RedisCache": (
            "django.core.cache.backends.redis.RedisCache",
            {"socket_timeout": IMPATIENCE, "socket_connect_timeout": IMPATIENCE},
        ),
    }[kind]
    return {
        "CACHES": {
            "default": {
                "BACKEND": engine,
                "LOCATION": url,
                "OPTIONS": client,
                "KEY_PREFIX": Path(os.environ["TEST_RUN"]).name,
            }
        },
        "LAMBDA_TASKS_LOCK": {"BACKEND": "lambda_tasks.locks.cache.CacheLock", "OPTIONS": options},
    }


KINDS = ["RedisLock", "django-redis", "RedisCache"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def proxy(redis_server: services.Server) -> Iterator[Proxy]:
    with proxy_to(redis_server) as proxy:
        yield proxy


@pytest.fixture
def own_redis() -> Iterator[redis.Redis]:
    """Yield a client of a private Redis, which the test may empty and shut down."""
    for binaries in services.KINDS[1].binaries():
        url = binaries.start()
        break
    else:
        pytest.skip("there is no Redis to start")
    with redis.Redis.from_url(url) as client:
        yield client
        with suppress(redis.ConnectionError):  # the test may have shut it down
            client.shutdown(nosave=True)


def url_of(client: redis.Redis) -> str:
    return f"unix://{client.connection_pool.connection_kwargs['path']}?db=0"


def url_behind(proxy: Proxy) -> str:
    return f"redis://{proxy.host}:{proxy.port}/{services.redis_database_number()}"


# Unavailable when the lock is acquired


@pytest.mark.django_db(transaction=True)
class TestUnavailableLock:
    @pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.become_unavailable, Proxy.stop_answering])
    def test_task_is_retried_and_not_failed_or_ignored(
        self, proxy: Proxy, kind: str, fault: Callable[[Proxy], None]
    ) -> None:
        with override_settings(**lock_settings(kind, url_behind(proxy))):
            message = message_of(alone, name="a")
            fault(proxy)
            assert deliver(message) == []
            assert (names(), statuses()) == ([], ["RETRYING"])
            assert "LockUnavailable" in records().get().traceback

            proxy.pass_through()
            assert deliver(retry_message()) == []
            assert (names(), statuses()) == (["a"], ["RETRYING", "SUCCESS"])

    def test_pauses_grow_during_an_outage(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(random, "uniform", lambda low, high: high)
        delays = []
        with override_settings(**lock_settings("RedisLock", url_behind(proxy))):
            message = message_of(alone, name="a")
            proxy.refuse()
            for _ in range(10):
                assert deliver(message) == []
                [retry] = backend().take()
                delays.append(retry.delay)
                message = event_record(retry)
        assert delays == [5, 10, 20, 40, 80, 160, 320, 640, 900, 900]

    def test_lost_answer_is_not_mistaken_for_contention(self, proxy: Proxy, kind: str) -> None:
        with override_settings(**lock_settings(kind, url_behind(proxy))):
            deliver(message_of(alone, name="first"))
            proxy.strike(Strike.LOSE_ANSWER)
            deliver(message_of(alone, name="a"))
            assert "LockError" not in str(list(records().values_list("traceback", flat=True)))
            for job in backend().take():  # redis-py before version 6 does not repeat the request
                deliver(event_record(job))
        assert names() == ["a", "first"]

    def test_closed_connection_is_replaced(self, own_redis: redis.Redis, kind: str) -> None:
        with override_settings(**lock_settings(kind, url_of(own_redis))):
            deliver(message_of(alone, name="a"))
            killed = own_redis.client_kill_filter(_type="normal", skipme=True)
            # Django's RedisCache does not keep connections between messages.
            assert killed > 0 or kind == "RedisCache"
            assert deliver(message_of(alone, name="b")) == []
        assert (names(), statuses()) == (["a", "b"], ["SUCCESS", "SUCCESS"])

    @pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.stop_answering])
    def test_fail_open_task_runs_with_a_warning(
        self, proxy: Proxy, kind: str, fault: Callable[[Proxy], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        with override_settings(**lock_settings(kind, url_behind(proxy), fail_open=True)):
            message = message_of(alone, name="a")
            fault(proxy)
            with caplog.at_level(logging.WARNING, logger="lambda_tasks"):
                assert deliver(message) == []
        assert (names(), statuses()) == (["a"], ["SUCCESS"])
        assert "runs without it" in caplog.text

    def test_fail_open_task_waits_for_another_holder(self, proxy: Proxy) -> None:
        with override_settings(**lock_settings("RedisLock", url_behind(proxy), fail_open=True)):
            assert get_lock().acquire(key_of(alone_in_the_end), token="another", timeout=60)
            try:
                assert deliver(message_of(alone_in_the_end, name="a")) == []
            finally:
                get_lock().release(key_of(alone_in_the_end), token="another")
        assert (names(), statuses()) == ([], ["RETRYING"])


# Lost while the task runs

ENDS = {"well": "SUCCESS", "failing": "FAILED", "retrying": "RETRYING"}


@pytest.mark.django_db(transaction=True)
class TestLockLostWhileRunning:
    """The outcome of each run is unchanged."""

    def run(self, fault: Callable[[], object], *, ends: Iterable[str] = ENDS) -> None:
        for end in ends:
            records().all().delete()
            effects().all().delete()
            meanwhile["a"] = fault
            assert deliver(message_of(alone, name="a", end=end)) == []
            assert statuses() == [ENDS[end]]
            assert names() == (["a"] if end == "well" else [])
            assert len(backend().take()) == (1 if end == "retrying" else 0)

    @pytest.mark.parametrize("fault", [Proxy.cut, Proxy.become_unavailable, Proxy.stop_answering])
    @pytest.mark.parametrize("end", ENDS)
    def test_unreachable_redis_changes_nothing(
        self, proxy: Proxy, kind: str, end: str, fault: Callable[[Proxy], None]
    ) -> None:
        with override_settings(**lock_settings(kind, url_behind(proxy))):
            self.run(lambda: fault(proxy), ends=[end])
        proxy.pass_through()
        with redis.Redis.from_url(url_behind(proxy)) as client:
            # Delete the locks that could not be released, but not those of other programs on this server.
            for key in client.scan_iter(f"*lambda_tasks.singleton_lock.{__name__}.*"):
                client.delete(key)

    def test_redis_shutdown_changes_nothing(self, own_redis: redis.Redis, kind: str) -> None:
        with override_settings(**lock_settings(kind, url_of(own_redis))):
            self.run(partial(own_redis.shutdown, nosave=True), ends=["well"])

    def test_flushed_redis_changes_nothing(self, own_redis: redis.Redis, kind: str) -> None:
        with override_settings(**lock_settings(kind, url_of(own_redis))):
            self.run(own_redis.flushall)

    def test_lock_that_changed_hands_stays_with_its_holder(self, own_redis: redis.Redis, kind: str) -> None:
        def fail_over() -> None:
            own_redis.flushall()
            assert get_lock().acquire(key_of(alone), token="another", timeout=60)

        with override_settings(**lock_settings(kind, url_of(own_redis))):
            for end in ENDS:
                own_redis.flushall()
                self.run(fail_over, ends=[end])
                assert not get_lock().acquire(key_of(alone), token="a third", timeout=60)

    def test_lock_that_expires_before_the_end_changes_nothing(
        self, own_redis: redis.Redis, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def reached(point: str) -> None:
            if point in ("finish:before_commit", "lock:before_release"):
                for key in own_redis.scan_iter("*"):
                    own_redis.pexpire(key, 0)

        monkeypatch.setattr(failpoints, "reached", reached)
        with override_settings(**lock_settings(kind, url_of(own_redis))):
            self.run(lambda: None)


@pytest.mark.django_db(transaction=True)
def test_overtaken_worker_leaves_the_lock_to_its_takeover(
    own_redis: redis.Redis, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulate_takeover() -> None:
        """Let time pass, and let another worker take over the invocation and its lock."""
        monkeypatch.setattr(locking, "monotonic", lambda: float("inf"))
        own_redis.flushall()
        record = records().get()
        records().update(claim=ids.new_message_id())
        assert get_lock().acquire(key_of(alone), token=str(record.root_id), timeout=60)

    with override_settings(**lock_settings(kind, url_of(own_redis))):
        meanwhile["a"] = simulate_takeover
        message = message_of(alone, name="a")
        assert deliver(message) == [message["messageId"]]
        assert not get_lock().acquire(key_of(alone), token="another", timeout=60)


# The lock in the transaction


@pytest.mark.databases("postgres", transaction=True)
class TestLockInTransaction:
    """The first run is in its transaction, and Redis has lost its lock."""

    @pytest.fixture(autouse=True)
    def _on_postgres(self, database: str, settings: Any) -> Iterator[None]:
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
        self.inside = threading.Semaphore(0)
        self.end = threading.Event()
        yield
        self.end.set()

    def stay(self) -> None:
        self.inside.release()
        assert self.end.wait(PATIENCE)

    def start(self, message: dict[str, Any], name: str = "a") -> InThread[list[str]]:
        """Deliver `message` in another worker, and return when its task is in its transaction."""
        meanwhile[name] = self.stay
        first = InThread(lambda: deliver(message)).start()
        assert self.inside.acquire(timeout=PATIENCE)
        return first

    @pytest.mark.parametrize("in_transaction", [True, False])
    def test_second_task_does_not_overlap(self, own_redis: redis.Redis, kind: str, in_transaction: bool) -> None:
        overlaps = []
        options = {} if in_transaction else {"in_transaction": False}
        with override_settings(**lock_settings(kind, url_of(own_redis), **options)):
            first = self.start(message_of(alone_in_the_end, name="a"))
            own_redis.flushall()
            meanwhile["b"] = lambda: overlaps.append(not self.end.is_set())
            assert deliver(message_of(alone_in_the_end, name="b")) == []
            self.end.set()
            assert first.answer() == []
            if in_transaction:
                assert (overlaps, names()) == ([], ["a"])
                deliver(retry_message())
                assert overlaps == [False]
            else:
                assert overlaps == [True]
        assert names() == ["a", "b"]

    def test_second_task_that_ignores_contention_is_dropped(self, own_redis: redis.Redis) -> None:
        with override_settings(**lock_settings("RedisLock", url_of(own_redis))):
            first = self.start(message_of(alone, name="a"))
            own_redis.flushall()
            assert deliver(message_of(alone, name="b")) == []
            self.end.set()
            first.answer()
        assert (names(), statuses()) == (["a"], ["SUCCESS", "SUCCESS"])

    def test_second_fail_open_task_does_not_overlap(self, proxy: Proxy) -> None:
        """Redis is unavailable to both."""
        with override_settings(**lock_settings("RedisLock", url_behind(proxy), fail_open=True)):
            messages = [message_of(alone_in_the_end, name=name) for name in "ab"]
            proxy.become_unavailable()
            first = self.start(messages[0])
            assert deliver(messages[1]) == []
            assert statuses() == ["RETRYING", "RUNNING"]
            self.end.set()
            assert first.answer() == []
            deliver(retry_message())
        assert names() == ["a", "b"]

    @pytest.mark.parametrize("given_back", [False, True], ids=["taken over", "given back"])
    def test_takeover_blocked_by_its_old_transaction_is_retried(self, own_redis: redis.Redis, given_back: bool) -> None:
        """It is not contention that the task may ignore."""
        with override_settings(**lock_settings("RedisLock", url_of(own_redis))):
            message = message_of(alone, name="a")
            first = self.start(message)
            expire_leases()
            if given_back:  # by a worker whose connection ended, but not its session on the server
                records().update(claim=None)
                own_redis.flushall()
            assert deliver(message) == []
            assert statuses() == ["RETRYING"]

            # The retry is not ignored either. It is another invocation, without a record to take over.
            assert deliver(retry_message()) == []
            assert statuses() == ["RETRYING", "RETRYING"]

            self.end.set()
            assert first.answer() == [message["messageId"]]
            assert names() == []
            assert deliver(retry_message(), message) == []
        assert (names(), statuses()) == (["a"], ["RETRYING", "RETRYING", "SUCCESS"])

    def test_end_of_the_session_releases_the_lock(self, own_redis: redis.Redis, database: str) -> None:
        def end_session() -> None:
            with connections[database].cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        with override_settings(**lock_settings("RedisLock", url_of(own_redis))):
            message = message_of(alone, name="a")
            meanwhile["a"] = end_session
            assert deliver(message) == [message["messageId"]]
            assert deliver(message) == []
        assert (names(), statuses()) == (["a"], ["SUCCESS"])

    def test_two_tasks_do_not_exclude_each_other(self, own_redis: redis.Redis) -> None:
        with override_settings(**lock_settings("RedisLock", url_of(own_redis))):
            first = self.start(message_of(alone, name="a"))
            assert deliver(message_of(alone_in_the_end, name="b")) == []
            assert names() == ["b"]
            self.end.set()
            first.answer()
        assert names() == ["a", "b"]


@pytest.mark.databases("sqlite", "postgres", "mariadb", transaction=True)
class TestAdvisoryLock:
    def test_transaction_holds_the_lock_until_it_ends(self, database: str) -> None:
        if database != "postgres":
            pytest.skip("no other database has such locks")

        def taken() -> bool:
            with transaction.atomic(using=database):
                return try_advisory_lock("a key", database=database)

        for ending in ("commit", "rollback", "end of the session"):
            with transaction.atomic(using=database):
                assert try_advisory_lock("a key", database=database)
                assert try_advisory_lock("a key", database=database)
                assert InThread(taken).start().answer() is False
                assert InThread(partial(try_advisory_lock, "another", database=database)).start().answer() is True
                if ending == "end of the session":
                    connections[database].close()
                transaction.set_rollback(ending == "rollback", using=database)
            assert InThread(taken).start().answer() is True

    def test_databases_without_advisory_locks_are_not_asked(self, database: str) -> None:
        if database == "postgres":
            pytest.skip("it has them")
        with transaction.atomic(using=database), CaptureQueriesContext(connections[database]) as queries:
            assert InThread(partial(try_advisory_lock, "a key", database=database)).start().answer()
            assert try_advisory_lock("a key", database=database)
        assert len(queries) == 0

    def test_lock_key_is_stable_across_versions(self, database: str) -> None:
        assert advisory_key("lambda_tasks.singleton_lock.shop.tasks.recount_stock") == 7684811595352237510


# Killed while it holds the lock

KILLED_IN_ITS_TASK = """
import json, os, signal, sys
import django
django.setup()
from lambda_tasks import failpoints
from lambda_tasks.handler import handler
from lambda_tasks.locks.advisory import advisory_key, try_advisory_lock
import tests.faults.test_singleton_faults

def reached(point):
    if point == "task:enter":
        os.kill(os.getpid(), signal.SIGKILL)

failpoints.reached = reached
handler({"Records": [json.load(sys.stdin)]}, None)
"""


@pytest.mark.django_db(transaction=True)
def test_killed_workers_lock_admits_only_its_own_invocation(
    redis_server: services.Server,
) -> None:
    message, another = message_of(alone_in_the_end, name="a"), message_of(alone_in_the_end, name="b")
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings"}
    child = subprocess.run(
        [sys.executable, "-c", KILLED_IN_ITS_TASK],
        input=json.dumps(message),
        text=True,
        env=environment,
        timeout=60,
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert statuses() == ["RUNNING"]

    assert deliver(another) == []
    assert statuses() == ["RETRYING", "RUNNING"]
    expire_leases()
    assert deliver(message) == []
    assert names() == ["a"]
    assert deliver(retry_message()) == []
    assert names() == ["a", "b"]
