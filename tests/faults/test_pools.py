"""Test Django's pool of PostgreSQL connections: sessions end when they must, and dead ones cost no receives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connections
from psycopg_pool import ConnectionPool

from lambda_tasks.backends.memory import event_record
from lambda_tasks.database.errors import end_session, on_sound_connection, pool_of
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

pytestmark = [pytest.mark.databases("postgres", transaction=True)]

LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711"
#: The size of the pool, whose connections are all open.
SIZE = 4


def ask(sql: str) -> Any:
    with connections["postgres"].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


@lambda_task
def lock_the_session_and_fail() -> None:
    ask("SELECT count(pg_advisory_lock(4711))")
    raise RuntimeError("x")


@lambda_task
def count_locks() -> int:
    return int(ask(LOCKS))


@pytest.fixture
def pool(database: str, settings: Any, monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[ConnectionPool[Any]]:
    """Configure a pool for the database, with all connections open."""
    connection = connections[database]
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    options: dict[str, Any] = {"min_size": SIZE, "max_size": SIZE, **getattr(request, "param", {})}
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "pool", options)
    pool: ConnectionPool[Any] = connection.pool
    pool.open(wait=True)
    yield pool
    connection.close()
    connection.close_pool()


def message(task: Any) -> dict[str, Any]:
    message_id = ids.new_message_id()
    return event_record(Job(Invocation(task_name=task.name, kwargs={}), message_id, root_id=message_id))


def kill_all(database: str) -> None:
    """End every session of the pool on the server, as a failover does."""
    at = connections[database].get_connection_params()
    keys = ("dbname", "user", "password", "host", "port")
    with psycopg.connect(**{key: at[key] for key in keys if key in at}, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


class TestSessions:
    @pytest.mark.parametrize(
        "pool", [{"min_size": 1, "max_size": 1}, {"min_size": 1, "max_size": 1, "close_returns": True}], indirect=True
    )
    def test_failed_task_leaves_no_session_lock(self, database: str, pool: Any) -> None:
        last = message(count_locks)
        assert handler({"Records": [message(lock_the_session_and_fail), last]}, None) == {"batchItemFailures": []}
        assert TaskRecord.objects.using(database).get(pk=last["messageId"]).result == 0

    def test_ended_session_is_gone_in_the_server(self, database: str, pool: Any) -> None:
        connection = connections[database]
        pid = ask("SELECT pg_backend_pid()")
        end_session(connection)
        pool.wait()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            assert cursor.fetchone()[0] != pid

    def test_closing_a_closed_connection_does_nothing(self, database: str, pool: Any) -> None:
        connections[database].close()
        end_session(connections[database])
        assert connections[database].connection is None


class TestDeadConnections:
    def test_failover_costs_no_receives(self, database: str, pool: Any) -> None:
        assert handler({"Records": [message(count_locks)]}, None) == {"batchItemFailures": []}
        kill_all(database)
        for _ in range(SIZE):
            assert handler({"Records": [message(count_locks) for _ in range(3)]}, None) == {"batchItemFailures": []}

    @pytest.mark.parametrize("pool", [{"min_size": 1, "max_size": 1, "timeout": 0.1}], indirect=True)
    def test_exhausted_pool_is_tried_once(self, database: str, pool: Any) -> None:
        asked: list[str] = []

        def look() -> Any:
            asked.append("once")
            return ask("SELECT 1")

        with pool.connection(), pytest.raises(OperationalError):
            on_sound_connection(database, look)
        assert asked == ["once"]

    def test_older_psycopg_pool_checks_its_connections(
        self, database: str, pool: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(ConnectionPool, "drain")
        kill_all(database)
        assert on_sound_connection(database, lambda: ask("SELECT 1")) == 1

    def test_maintenance_replaces_dead_connections(self, database: str, pool: Any) -> None:
        kill_all(database)
        handler({"lambda_tasks": "maintenance"}, None)
        assert ask("SELECT 1") == 1


def test_django_keeps_open_pools_where_the_library_looks(database: str, pool: Any) -> None:
    """Django has no public API that returns the pool without opening it."""
    assert pool_of(connections[database]) is pool is connections[database].pool
    assert pool_of(connections["sqlite"]) is None
