"""Test tasks that write on another connection, from a thread or a coroutine under asyncio.run()."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections
from django.db.backends.signals import connection_created

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution import strangers
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect

# On SQLite, only one connection can write, so the thread and the task would wait for each other.
pytestmark = [pytest.mark.databases("postgres", "mariadb", transaction=True)]

SENTENCE = "opens a connection to database"


def write(alias: str) -> None:
    try:
        Effect.objects.using(alias).create(name="by another thread")
    finally:
        connections[alias].close()


def in_threads(alias: str) -> None:
    for _ in range(2):
        thread = threading.Thread(target=write, args=(alias,), name="stranger")
        thread.start()
        thread.join()


def under_asyncio_run(alias: str) -> None:
    asyncio.run(sync_to_async(write)(alias))


WAYS: dict[str, Callable[[str], None]] = {"threads": in_threads, "asyncio.run": under_asyncio_run}


@lambda_task
def write_elsewhere(*, way: str, alias: str) -> None:
    WAYS[way](alias)
    raise ValueError("x")


@lambda_task
async def write_in_coroutine(*, alias: str) -> None:
    await Effect.objects.using(alias).acreate(name="in the transaction")
    raise ValueError("x")


@lambda_task
def open_another_here() -> None:
    """Open a second connection in the task's own thread, on purpose."""
    another = connections[os.environ["STRANGERS_DATABASE"]].copy()
    another.ensure_connection()
    another.close()


@pytest.fixture(autouse=True)
def _records(database: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    monkeypatch.setenv("STRANGERS_DATABASE", database)
    yield
    connections[database].close()


def warnings(caplog: pytest.LogCaptureFixture, task: Any, **kwargs: Any) -> list[str]:
    """Run the task and return the warnings about other threads."""
    message_id = ids.new_message_id()
    job = Job(Invocation(task_name=task.name, kwargs=kwargs), message_id, root_id=message_id)
    assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}
    found = [record for record in caplog.records if SENTENCE in record.getMessage()]
    assert all(record.levelname == "WARNING" and message_id in record.getMessage() for record in found)
    return [record.getMessage() for record in found]


@pytest.mark.parametrize("way", WAYS)
def test_write_of_another_thread_is_reported_once(database: str, caplog: pytest.LogCaptureFixture, way: str) -> None:
    [warning] = warnings(caplog, write_elsewhere, way=way, alias=database)
    assert f"database {database!r} while {write_elsewhere.name} runs" in warning
    assert Effect.objects.using(database).exists()  # although the task failed


def test_another_database_is_not_reported(database: str, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, write_elsewhere, way="threads", alias="default") == []


def test_coroutine_task_writes_in_its_transaction(database: str, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, write_in_coroutine, alias=database) == []
    assert not Effect.objects.using(database).exists()


def test_task_with_its_own_connection_is_not_reported(database: str, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, open_another_here) == []


def test_thread_between_tasks_is_not_reported(database: str, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings(caplog, open_another_here) == []
    in_threads(database)
    assert [record for record in caplog.records if SENTENCE in record.getMessage()] == []


def test_receiver_is_connected_once(database: str) -> None:
    handler({"Records": []}, None)
    before = len(connection_created.receivers)
    strangers.start_watching()
    assert len(connection_created.receivers) == before
