"""Tasks, records and deliveries for tests of workers that die."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from django.db import connections
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import LeaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.visibility import lost_after
from tests.app.models import Effect

ON_DEFAULT: Final = pytest.mark.django_db(transaction=True)
EVERYWHERE: Final = pytest.mark.databases(transaction=True)
#: Databases that lock rows, and that can skip locked rows.
WITH_ROW_LOCKS: Final = pytest.mark.databases("postgres", "mariadb", transaction=True)

LONG: Final = timedelta(seconds=lost_after() + 60)


@lambda_task(queue="other")
def leave_effect(*, name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)


@lambda_task(on_crash="fail")
def never_twice(*, name: str) -> None:
    leave_effect(name=name)


@lambda_task(sensitive=["name"])
def secretive(*, name: str) -> None:
    leave_effect(name=name)


@lambda_task(expires_in=3600)
def perishable(*, name: str) -> None:
    leave_effect(name=name)


@lambda_task
def die(*, how: str) -> None:
    """Kill the process in the middle of the task."""
    leave_effect(name="died")
    match how:
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            ctypes.string_at(0)
        case "os._exit":
            os._exit(3)


def lost_record(task: Any = leave_effect, *, ago: timedelta = LONG, **fields: Any) -> str:
    """Create the record of a worker that died, whose lease ended `ago`."""
    message_id = fields.pop("id", None) or ids.new_message_id()
    values: dict[str, Any] = {
        "task_name": task if isinstance(task, str) else task.name,
        "kwargs": {"name": "a"},
        "queue": "default",
        "root_id": message_id,
        "claim": ids.new_message_id(),
        "start_time": LeaseNow() - ago - timedelta(seconds=300),
        "lease_until": LeaseNow() - ago,
    }
    records().create(id=message_id, **values | fields)
    return message_id


def new_id(*, ago: timedelta) -> str:
    """Return an id that a producer created `ago`."""
    moment = int((time.time() - ago.total_seconds()) * 1000)
    return str(UUID(int=moment << 80 | UUID(ids.new_message_id()).int & (2**80 - 1)))


def records() -> Any:
    return TaskRecord.objects.using(get_store().database)


def record_of(message_id: str) -> TaskRecord:
    return records().get(pk=message_id)


def expire_lease(message_id: str | None = None, *, ago: timedelta = LONG) -> None:
    """Let leases expire by changing them, because tests cannot set the database's clock."""
    chosen = records().filter(status="RUNNING")
    (chosen.filter(pk=message_id) if message_id else chosen).update(lease_until=LeaseNow() - ago)


def effects() -> list[str]:
    return list(Effect.objects.using(get_store().database).order_by("pk").values_list("name", flat=True))


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def deliver(*jobs: Job) -> None:
    """Deliver the messages to the real handler, each in a separate invocation."""
    for job in jobs:
        assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}


def job_of(task: Any, message_id: str, **kwargs: Any) -> Job:
    """Return the message of an invocation."""
    message = Invocation(task_name=task.name, kwargs=kwargs)
    return Job(message, message_id, root_id=message_id, queue="default")


def in_another_worker(work: Callable[[], Any]) -> Any:
    """Do `work` in a thread with its own connections, and return its result."""
    answers: list[Any] = []
    errors: list[BaseException] = []

    def main() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]
    return answers[0]


@contextmanager
def stored_in(alias: str) -> Iterator[None]:
    store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": alias}}
    with override_settings(LAMBDA_TASKS_STORE=store):
        yield
