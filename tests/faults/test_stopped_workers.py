"""Workers that are stopped or killed while they run a task: the task takes effect once, and its message comes back.

The worker, its processes, SQS (moto's server) and PostgreSQL are real, and separate from the test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from django.db import connections
from moto.sqs.models import sqs_backends

from lambda_tasks.models import TaskRecord
from tests.faults.stopped_tasks import met
from tests.faults.workers import expire_lease, record_of, stored_in

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.once,
    pytest.mark.django_db(databases=["default", "postgres"], transaction=True),
    pytest.mark.usefixtures("postgres", "sqs", "_records_on_postgres"),
]

PATIENCE: Final = 30  # seconds: only a failing test waits this long
ROOT: Final = Path(__file__).parents[2]

#: A worker without a heartbeat, which the command does not offer.
WITHOUT_HEARTBEAT: Final = """
import os, django
django.setup()
from lambda_tasks.local.worker import LocalWorker
LocalWorker({"default": os.environ["SOAK_QUEUE"]}, report=lambda event: print(event, flush=True)).run()
"""
COMMAND: Final = ["-m", "django", "lambda_tasks", "worker", "--one-by-one"]


@pytest.fixture
def _records_on_postgres(settings: Any, sqs: Any) -> Iterator[None]:
    with stored_in("postgres"):
        yield


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


@pytest.fixture
def environment(sqs: Any, tmp_path: Path) -> dict[str, str]:
    """Return the environment of workers whose only database is the test's on PostgreSQL."""
    settings = connections["postgres"].settings_dict
    database = {key: settings[key] for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")}
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.faults.soak_settings",
        "SOAK_DATABASE": json.dumps(database),
        "SOAK_QUEUE": sqs.queues["default"],
        "SOAK_DIARY": str(tmp_path / "diary"),
        "AWS_DEFAULT_REGION": sqs.client.meta.region_name,
        "PYTHONPATH": str(ROOT),
    }


@contextmanager
def worker(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *(arguments or COMMAND)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        with process:
            yield process
            process.kill()
    finally:
        watchdog.cancel()
        process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} is not in {lines}")


def accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    assert connection.recv(4) == b"here"
    return connection


def send(listener: socket.socket, name: str = "work") -> str:
    return met.execute_on_commit(name=name, port=listener.getsockname()[1]).message_id


def messages() -> list[Any]:
    return list(sqs_backends["123456789012"][os.environ["AWS_DEFAULT_REGION"]].queues["default"]._messages)


def end_visibility_timeouts() -> None:
    """Let time pass in SQS: all messages are visible again."""
    for message in messages():
        message.change_visibility(0)


def effects() -> list[str]:
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT name FROM app_effect ORDER BY id")
        return [name for (name,) in cursor.fetchall()]


def finish(environment: dict[str, str], listener: socket.socket) -> None:
    """Run what is left with another worker, which gets its message again."""
    with worker(environment) as another:
        with accept(listener) as connection:
            connection.sendall(b"!")
        read_until(another, "1 message done")
        another.terminate()
        assert another.wait(PATIENCE) == 0


@pytest.mark.parametrize("arguments", [COMMAND, ["-c", WITHOUT_HEARTBEAT]], ids=["heartbeat", "no heartbeat"])
def test_killed_worker_is_replaced(environment: dict[str, str], listener: socket.socket, arguments: list[str]) -> None:
    message_id = send(listener)
    with worker(environment, *arguments) as first, accept(listener) as connection:
        first.send_signal(signal.SIGKILL)
        first.wait(PATIENCE)
        assert connection.recv(1) == b""  # its process ends with it
    assert record_of(message_id).status == "RUNNING"

    end_visibility_timeouts()
    expire_lease(message_id)
    finish(environment, listener)

    record = record_of(message_id)
    assert (record.status, record.takeovers) == ("SUCCESS", 1)
    assert effects() == ["work"]
    assert messages() == []


def test_message_visible_too_early_is_not_run_twice(environment: dict[str, str], listener: socket.socket) -> None:
    """The heartbeats of the first worker fail, and its message becomes visible: the claim protects the task."""
    message_id = send(listener)
    with worker(environment) as first, accept(listener) as connection, worker(environment) as second:
        read_until(second, "ready, process")
        end_visibility_timeouts()
        read_until(second, "stays on the queue")
        connection.sendall(b"!")
        read_until(first, "1 message done")

    assert record_of(message_id).status == "SUCCESS"
    assert record_of(message_id).takeovers == 0
    assert effects() == ["work"]


def test_sigterm_lets_the_running_task_end(environment: dict[str, str], listener: socket.socket) -> None:
    send(listener, "running")
    waiting = send(listener, "waiting")
    with worker(environment) as first:
        with accept(listener) as connection:
            first.terminate()
            read_until(first, "Stopping after the running batches")
            connection.sendall(b"!")
        read_until(first, "1 message done")
        assert first.wait(PATIENCE) == 0

    assert effects() == ["running"]
    assert not TaskRecord.objects.using("postgres").filter(pk=waiting).exists()
    [message] = messages()
    assert message.visible
    finish(environment, listener)
    assert effects() == ["running", "waiting"]


def test_unfinished_task_is_handed_back(environment: dict[str, str], listener: socket.socket) -> None:
    message_id = send(listener)
    with worker(environment, *COMMAND, "--drain=0.2") as first, accept(listener) as connection:
        first.terminate()
        assert connection.recv(1) == b""
        read_until(first, "handed back to the queue")
        assert first.wait(PATIENCE) == 3

    [message] = messages()
    assert message.visible
    assert effects() == []
    expire_lease(message_id)
    finish(environment, listener)
    assert effects() == ["work"]
    assert record_of(message_id).status == "SUCCESS"
