"""Messages import only ordinary modules, and only within time limits."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks import registry
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition import importable
from lambda_tasks.exceptions import Redeliver, UnknownTask
from lambda_tasks.execution import resolving
from lambda_tasks.handler import handler
from lambda_tasks.operations.checks import check_tasks

TASK = "from lambda_tasks.decorators import lambda_task\n@lambda_task\ndef run() -> None: ...\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    package = tmp_path / "imported_shop"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    settings.LAMBDA_TASKS_MODULES = ["imported_shop"]
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "imported_shop"]:
        del sys.modules[name]
    for name in [name for name in registry._tasks if name.startswith("imported_shop.")]:
        del registry._tasks[name]


@pytest.mark.parametrize(
    "below",
    [
        *("management.commands.wipe", "migrations.0001_initial", "migrations.initial", "tests", "tests.factories"),
        *("test_mail", "mail_test", "mail_tests", "conftest", "settings", "settings_local", "local_settings"),
        *("wsgi", "asgi", "manage", "scripts.wipe", "script", "bin.wipe", "__main__", "__init__", "a.tests.b"),
        *("Management.commands.wipe", "SETTINGS", "a..b", "../b", "a-b", "a b", "ﬁle", "", "0a"),
    ],
)
def test_reserved_module_is_refused(below: str) -> None:
    with override_settings(LAMBDA_TASKS_MODULES=["imported_shop"]):
        assert not importable.allows(f"imported_shop.{below}")


@pytest.mark.parametrize(
    "below", ["tasks", "services.mail", "_private", "admin", "urls", "manager", "latest", "testing", "größe"]
)
def test_ordinary_module_is_allowed(below: str) -> None:
    with override_settings(LAMBDA_TASKS_MODULES=["imported_shop"]):
        assert importable.allows(f"imported_shop.{below}")


def test_listed_module_is_allowed_despite_its_name() -> None:
    with override_settings(LAMBDA_TASKS_MODULES=["imported_shop.scripts.orders"]):
        assert importable.allows("imported_shop.scripts.orders")
        assert not importable.allows("imported_shop.scripts.wipe")


@pytest.mark.parametrize("name", ["ROOT_URLCONF", "WSGI_APPLICATION", "ASGI_APPLICATION"])
def test_configuration_is_refused_under_any_name(name: str) -> None:
    value = "tests.app.entry" if name == "ROOT_URLCONF" else "tests.app.entry.application"
    assert importable.allows("tests.app.entry")
    with override_settings(**{name: value}):
        assert not importable.allows("tests.app.entry")
        assert not importable.allows("tests.app.entry.below")
    assert not importable.allows("tests.settings")


def test_closed_list_refuses_other_modules() -> None:
    with override_settings(LAMBDA_TASKS_IMPORTS="tasks", LAMBDA_TASKS_MODULES=["imported_shop.jobs"]):
        assert not importable.allows("tests.app.mail")
        assert importable.allows("imported_shop.jobs")
        with pytest.raises(UnknownTask, match='LAMBDA_TASKS_IMPORTS is "tasks"'):
            registry.find_task("tests.app.mail.send")


def test_refusal_names_the_remedy(shop: Path) -> None:
    (shop / "manage.py").write_text(TASK)
    with pytest.raises(UnknownTask, match=r"LAMBDA_TASKS_MODULES"):
        registry.find_task("imported_shop.manage.run")
    assert "imported_shop.manage" not in sys.modules


def test_slow_import_is_bounded(shop: Path) -> None:
    """The module blocks after it has defined its task."""
    (shop / "slow.py").write_text(TASK + "import threading\nthreading.Event().wait(60)\n")
    with pytest.raises(Redeliver, match="time limit") as caught:
        resolving.resolve("imported_shop.slow.run", time.monotonic())
    assert caught.value.visible_in
    assert "imported_shop.slow" not in sys.modules
    assert registry.known_task("imported_shop.slow.run") is None


def test_import_that_swallows_the_soft_limit_is_bounded(shop: Path) -> None:
    lines = "import threading\nwhile True:\n    try:\n        threading.Event().wait(60)\n    except Exception: pass\n"
    (shop / "stubborn.py").write_text(lines)
    with pytest.raises(Redeliver, match="time limit"):
        resolving.resolve("imported_shop.stubborn.run", time.monotonic())


def test_failed_import_registers_no_task(shop: Path) -> None:
    (shop / "broken.py").write_text(TASK + "raise RuntimeError\n")
    for _ in range(2):
        with pytest.raises(RuntimeError):
            registry.find_task("imported_shop.broken.run")


def test_check_reports_a_task_in_a_reserved_module(monkeypatch: pytest.MonkeyPatch) -> None:
    @lambda_task
    def lost() -> None: ...

    monkeypatch.setattr(registry, "_tasks", {lost.name: lost})
    assert check_tasks() == []
    lost.function.__qualname__ = "lost"
    lost.function.__module__ = "tests.app.management.commands.wipe"
    assert [message.id for message in check_tasks()] == ["lambda_tasks.W026"]
    with override_settings(LAMBDA_TASKS_MODULES=["tests.app.management.commands.wipe"]):
        assert check_tasks() == []


@pytest.mark.django_db(transaction=True)
def test_message_with_hanging_import_stays_on_queue(shop: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shop / "hung.py").write_text("import threading\nthreading.Event().wait(60)\n")

    class Context:
        def get_remaining_time_in_millis(self) -> int:
            return 100

    record = {"messageId": "hung", "body": '{"task_name": "imported_shop.hung.run"}', "attributes": {}}
    assert handler({"Records": [record]}, Context()) == {"batchItemFailures": [{"itemIdentifier": "hung"}]}
    assert "exceeded its time limit" in caplog.text
