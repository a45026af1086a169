"""Environments that are prepared before their first message, with the real runtime client."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from django.db import connections

from lambda_tasks.environments import preparing, snapshots
from tests.environments.project import Project, event
from tests.environments.runtime_api import PATIENCE, RuntimeApi

pytestmark = pytest.mark.once

RUNTIME: Final = "awslambdaric"
#: A value that is nowhere else, and does not appear here in one piece.
SECRET: Final = "-".join(["not", "for", "snapshots", "5e1f0c"])
ARN: Final = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-AbCdEf"


@pytest.fixture
def api() -> Iterator[RuntimeApi]:
    with RuntimeApi() as api:
        yield api


@pytest.fixture
def project(tmp_path: Path, database: str) -> Project:
    return Project(tmp_path, database)


def open_files(pid: int) -> list[str]:
    return [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]


class TestInAdvance:
    """Provisioned concurrency, and Managed Instances with Lambda's own client."""

    @pytest.mark.databases(transaction=True)
    @pytest.mark.parametrize("kind", ["provisioned-concurrency", "lambda-managed-instances"])
    def test_boot_precedes_the_first_message(self, api: RuntimeApi, project: Project, kind: str) -> None:
        with project.running(api, RUNTIME, AWS_LAMBDA_INITIALIZATION_TYPE=kind) as process:
            api.wait_until(lambda: api.idle == 1)
            assert project.boots() == [(process.pid, False)]
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
            assert api.invoke(event("describe")).response == {"batchItemFailures": []}
            assert any(file.startswith(name) for file in open_files(process.pid)), (
                "the file is not seen when it is open"
            )
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
    @pytest.mark.parametrize("module", ["handler", "hasty"])
    def test_snapshot_contains_no_secret(
        self, api: RuntimeApi, project: Project, secrets_manager: str, module: str
    ) -> None:
        """The memory of the process is searched for it, also if the project has fetched it on import."""
        variables = {
            "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start",
            "LAMBDA_TASKS_SECRET_DJANGO_KEY": f"{ARN}:key:AWSCURRENT:{'1' * 32}",
            "AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets_manager,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        seen: list[Any] = []
        with project.running(api, RUNTIME, f"shop.{module}.handler", **variables) as process:
            api.on_snapshot = lambda: seen.extend([project.boots(), "boto3" in files_of_modules(process.pid)])
            invocation = api.invoke(event("describe"))
            assert invocation.response == {"batchItemFailures": []}
            assert SECRET.encode() in memory_of(process.pid), "the secret is not seen when it is there"
        assert seen[0] == []
        assert len(project.boots()) == 1

    def test_missing_package_is_reported(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(snapshots.sys.modules, "snapshot_restore_py", None)
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
