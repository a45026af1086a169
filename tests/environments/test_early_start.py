"""Environments that are prepared before their first message, with the real runtime client."""

from __future__ import annotations

import ast
import json
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from django.core.cache import caches
from django.db import connections

import lambda_tasks
from lambda_tasks import strategies
from lambda_tasks.awaiting.polling import Polling
from lambda_tasks.database.errors import pool_of
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.environments import preparing, snapshots
from lambda_tasks.execution.backoff import foreign_pause, handed_back_pause, outage_pause
from lambda_tasks.execution.waiting import next_wait
from lambda_tasks.wire import ids
from tests.environments.project import Project, event, result_of
from tests.environments.runtime_api import PATIENCE, RuntimeApi

pytestmark = pytest.mark.once

RUNTIME: Final = "awslambdaric"
#: A value that is nowhere else in the process.
SECRET: Final = "not-for-snapshots-5e1f0c"
ARN: Final = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-AbCdEf"


def open_files(pid: int) -> list[str]:
    return [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]


class TestInAdvance:
    """Provisioned concurrency, and Managed Instances with Lambda's own client."""

    @pytest.mark.databases("sqlite", transaction=True)
    @pytest.mark.parametrize("kind", ["provisioned-concurrency", "lambda-managed-instances"])
    def test_boot_precedes_the_first_message(self, api: RuntimeApi, project: Project, kind: str) -> None:
        with project.running(api, RUNTIME, AWS_LAMBDA_INITIALIZATION_TYPE=kind) as process:
            api.wait_until(lambda: api.idle == 1)
            assert project.boots() == [process.pid]
            assert api.invoke(event("describe")).response == {"batchItemFailures": []}
            assert len(project.boots()) == 1

    @pytest.mark.databases("sqlite", transaction=True)
    @pytest.mark.parametrize("kind", [{}, {"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"}])
    def test_other_functions_boot_in_the_first_invocation(
        self, api: RuntimeApi, project: Project, kind: dict[str, str]
    ) -> None:
        with project.running(api, RUNTIME, **kind):
            api.wait_until(lambda: api.idle == 1)
            assert project.boots() == []
            assert api.invoke(event("describe")).response == {"batchItemFailures": []}
            assert len(project.boots()) == 1

    @pytest.mark.databases("sqlite", transaction=True)
    def test_failed_boot_is_reported_as_such(self, api: RuntimeApi, project: Project) -> None:
        variables = {"AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency", "LOGGING": "{"}
        with project.running(api, RUNTIME, **variables) as process:
            assert process.wait(PATIENCE) == 1
        assert [error["errorType"] for error in api.init_errors] == ["JSONDecodeError"]

    @pytest.mark.databases("sqlite", transaction=True)
    def test_settings_that_come_later_delay_the_boot(self, api: RuntimeApi, project: Project) -> None:
        del project.variables["DJANGO_SETTINGS_MODULE"]
        kind = {"AWS_LAMBDA_INITIALIZATION_TYPE": "provisioned-concurrency"}
        with project.running(api, RUNTIME, "shop.late.handler", **kind):
            api.wait_until(lambda: api.idle == 1)
            assert project.boots() == []
            assert api.invoke(event("describe")).response == {"batchItemFailures": []}
        assert "Set it in the configuration of the function." in project.output()

    def test_django_is_not_set_up_within_its_setup(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An app may import the handler while Django is being set up."""
        monkeypatch.setattr(preparing.apps, "ready", False)
        preparing.begin(lambda: pytest.fail("it booted"))


class TestSnapshot:
    """SnapStart: what is in the snapshot, and what happens after a restore."""

    @pytest.mark.databases("sqlite", transaction=True)
    def test_snapshot_is_booted_and_has_no_connection(self, api: RuntimeApi, project: Project, database: str) -> None:
        name = str(connections[database].settings_dict["NAME"])
        seen: list[Any] = []
        with project.running(api, RUNTIME, AWS_LAMBDA_INITIALIZATION_TYPE="snap-start") as process:
            api.on_snapshot = lambda: seen.extend([project.boots(), open_files(process.pid)])
            invocation = api.invoke(event("describe"))
            in_task = result_of(invocation, database)["files"]
        assert [file for file in in_task if file.startswith(name)] != []
        boots, files = seen
        assert len(boots) == 1  # its plugin opened a connection
        assert [file for file in files if file.startswith(name)] == []
        assert project.boots() == boots

    @pytest.mark.databases("sqlite", transaction=True)
    def test_failed_boot_fails_the_snapshot(self, api: RuntimeApi, project: Project) -> None:
        with project.running(api, RUNTIME, AWS_LAMBDA_INITIALIZATION_TYPE="snap-start", LOGGING="{") as process:
            assert process.wait(PATIENCE) == 64
        assert [error["errorType"] for error in api.init_errors] == ["JSONDecodeError"]
        assert "/2018-06-01/runtime/restore/next" not in api.requests

    @pytest.mark.databases("sqlite", transaction=True)
    def test_snapshot_contains_no_secret(self, api: RuntimeApi, project: Project, secrets_manager: str) -> None:
        """The memory of the process is searched for the secret."""
        variables = {
            "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
            "LAMBDA_TASKS_SECRET_DJANGO_KEY": f"{ARN}:key:AWSCURRENT:{'1' * 32}",
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets_manager,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        seen: list[Any] = []
        with project.running(api, RUNTIME, **variables) as process:
            api.on_snapshot = lambda: seen.extend([project.boots(), memory_contains(process.pid, SECRET)])
            assert api.invoke(event("describe")).response == {"batchItemFailures": []}
            assert memory_contains(process.pid, SECRET), "the secret is not found where it is"
        assert seen == [[], False]
        assert len(project.boots()) == 1

    def test_missing_package_is_reported(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "snapshot_restore_py", None)
        snapshots.register(lambda: pytest.fail("it booted"))
        assert "Use Lambda's own runtime for Python 3.12 or newer" in caplog.text

    def test_restored_environments_draw_different_numbers(self) -> None:
        drawn = set()
        state = random.getstate()
        for _ in range(3):
            random.setstate(state)
            snapshots.after_restore()
            drawn.add(random.random())
        assert len(drawn) == 3


class TestRelease:
    """What copies of a process must not share."""

    @pytest.mark.databases("postgres", "mariadb", transaction=True)
    def test_database_session_ends(self, database: str) -> None:
        connection = connections[database]
        connection.ensure_connection()
        preparing.release()
        assert connection.connection is None

    @pytest.mark.databases("postgres", transaction=True)
    def test_pool_is_closed(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        connection = connections[database]
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 0)
        monkeypatch.setitem(connection.settings_dict["OPTIONS"], "pool", {"min_size": 1, "max_size": 2})
        connection.ensure_connection()
        pool = pool_of(connection)
        assert pool is not None
        preparing.release()
        assert pool.closed
        assert pool_of(connection) is None

    @pytest.mark.django_db
    def test_strategies_and_caches_are_created_again(self, redis_server: object) -> None:
        before = [*strategies_in_use(), caches["default"]]
        preparing.release()
        after = [*strategies_in_use(), caches["default"]]
        assert [old is new for old, new in zip(before, after, strict=True)] == [False] * 4

    @pytest.mark.django_db
    def test_credentials_of_aws_are_forgotten(self) -> None:
        import boto3

        boto3.setup_default_session(aws_access_key_id="old", aws_secret_access_key="old")
        preparing.release()
        assert boto3.DEFAULT_SESSION is None


DRAWN: Final[dict[str, Callable[[], object]]] = {
    "outage": lambda: outage_pause(1),
    "foreign": lambda: foreign_pause(1),
    "handed back": lambda: handed_back_pause(1),
    "lock": lambda: [next_wait(600, 10_000) for _ in range(20)],
    "polling": lambda: next(Polling().pauses(None)),
    "retry": lambda: RetryPolicy(on=(OSError,), delay=900, backoff=True).random_delay(5),
    "message id": lambda: ids.new_message_id()[-12:],
}


@pytest.mark.parametrize("name", DRAWN)
def test_snapshot_cannot_repeat_jitter_or_ids(name: str) -> None:
    """Two restored environments continue with the same state of the module `random`."""
    draw, state, drawn = DRAWN[name], random.getstate(), []
    for _ in range(5):
        random.setstate(state)
        drawn.append(str(draw()))
    assert len(set(drawn)) > 1


def test_package_does_not_use_the_module_random() -> None:
    package = Path(lambda_tasks.__file__).parent
    users = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names)
    }
    assert users == {"environments/snapshots.py"}  # seeds it for the project's code


def strategies_in_use() -> list[object]:
    return [strategies.get_store(), strategies.get_lock(), strategies.get_backend()]


def memory_contains(pid: int, text: str) -> bool:
    """Search the private memory of a child process."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end, access = re.match(r"(\w+)-(\w+) (\S+)", line).groups()  # type: ignore[union-attr]
            if not access.startswith("rw"):
                continue
            memory.seek(int(start, 16))
            with suppress(OSError):
                if text.encode() in memory.read(int(end, 16) - int(start, 16)):
                    return True
    return False


class _Secrets(BaseHTTPRequestHandler):
    """Answers each request with the secret."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"ARN": ARN, "Name": "shop", "SecretString": json.dumps({"key": SECRET})}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def secrets_manager() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Secrets) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
