"""Every documented import path works, and refers to the same object everywhere."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

import lambda_tasks

#: Module, name, and the type of the object.
PATHS: list[tuple[str, str, type]] = [
    ("lambda_tasks", "lambda_task", object),
    ("lambda_tasks", "current_task", object),
    ("lambda_tasks", "RetryPolicy", type),
    ("lambda_tasks", "RetryLater", type),
    ("lambda_tasks", "TaskCancelled", type),
    ("lambda_tasks", "Cron", type),
    ("lambda_tasks", "Every", type),
    ("lambda_tasks.decorators", "lambda_task", object),
    ("lambda_tasks.decorators", "LambdaTaskWrapper", type),
    ("lambda_tasks.models", "TaskRecord", type),
    ("lambda_tasks.models", "TaskStatus", type),
    ("lambda_tasks.models", "SQSLambdaTask", type),
    ("lambda_tasks.models", "SQSLambdaTaskMessage", type),
    ("lambda_tasks.models", "MaxRetriesExceededError", type),
    ("lambda_tasks.timeouts", "SoftTimeLimitExceeded", type),
    ("lambda_tasks.timeouts", "HardTimeLimitExceeded", type),
    ("lambda_tasks.timeouts", "TimeoutContext", type),
    ("lambda_tasks.logging", "task_logger", object),
    ("lambda_tasks.handler", "handler", object),
    ("lambda_tasks.tasks", "cleanup_task_records", object),
    ("lambda_tasks.secret_loader", "resolve_secrets_into_env", object),
    ("lambda_tasks.settings", "LambdaTasksSettings", type),
    ("lambda_tasks.hookspecs", "hookimpl", object),
]


def resolved(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("module", "name", "kind"), PATHS, ids=lambda value: value if isinstance(value, str) else "")
def test_name_can_be_imported(module: str, name: str, kind: type) -> None:
    assert isinstance(resolved(module, name), kind)


@pytest.mark.parametrize(("module", "name", "kind"), PATHS, ids=lambda value: value if isinstance(value, str) else "")
def test_star_import_includes_the_name(module: str, name: str, kind: type) -> None:
    """Editors use the same list of names."""
    namespace: dict[str, Any] = {}
    exec(f"from {module} import *", namespace)
    assert namespace[name] is resolved(module, name)


@pytest.mark.parametrize("module", sorted({module for module, _, _ in PATHS} - {"lambda_tasks.models"}))
def test_module_can_be_imported_first(module: str) -> None:
    """Each module works before Django is set up, and in any order of imports; only models need the apps."""
    program = f"import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; import {module}"
    if module == "lambda_tasks.tasks":  # imports a model
        program = program.replace("; import", "; import django; django.setup(); import")
    ran = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


class TestSameObject:
    def test_status_is_on_the_record_and_module(self) -> None:
        from lambda_tasks.models import TaskRecord, TaskStatus

        assert TaskRecord.TaskStatus is TaskStatus
        assert list(TaskStatus) == ["RUNNING", "SUCCESS", "FAILED", "RETRYING"]

    def test_models_reexports_messages_and_the_error(self) -> None:
        from lambda_tasks import exceptions, messages, models

        assert models.SQSLambdaTask is messages.SQSLambdaTask
        assert models.SQSLambdaTaskMessage is messages.SQSLambdaTaskMessage
        assert models.MaxRetriesExceededError is exceptions.MaxRetriesExceededError

    def test_built_in_task_is_a_task(self) -> None:
        from lambda_tasks.decorators import LambdaTaskWrapper
        from lambda_tasks.tasks import cleanup_task_records

        assert isinstance(cleanup_task_records, LambdaTaskWrapper)

    def test_unknown_name_is_an_attribute_error(self) -> None:
        from lambda_tasks import models

        with pytest.raises(AttributeError, match=r"module 'lambda_tasks.models' has no attribute 'Nothing'"):
            _ = models.Nothing
        with pytest.raises(ImportError, match="Nothing"):
            exec("from lambda_tasks.models import Nothing")

    def test_package_exports_the_objects_of_its_modules(self) -> None:
        for name, module in lambda_tasks._MODULES.items():
            assert getattr(lambda_tasks, name) is resolved(module, name)
        assert set(lambda_tasks.__all__) == set(lambda_tasks._MODULES) <= set(dir(lambda_tasks))

    def test_unknown_name_of_the_package_is_refused(self) -> None:
        with pytest.raises(AttributeError, match="module 'lambda_tasks' has no attribute 'lambda_tsk'"):
            _ = lambda_tasks.lambda_tsk
        with pytest.raises(ImportError, match="lambda_tsk"):
            exec("from lambda_tasks import lambda_tsk")

    def test_import_of_the_package_loads_nothing_else(self) -> None:
        """Django imports it before the settings are ready."""
        program = (
            "import sys, lambda_tasks; print([m for m in sys.modules if m.startswith(('django', 'lambda_tasks.'))])"
        )
        ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
        assert ran.stdout == "[]\n"

    def test_tasks_can_be_defined_before_the_setup(self) -> None:
        """The settings need not even be named, as with `lambda_tasks.decorators`."""
        program = (
            "import os\n"
            "os.environ.pop('DJANGO_SETTINGS_MODULE', None)\n"
            "from lambda_tasks import lambda_task\n"
            "@lambda_task\n"
            "def send() -> str: return 'sent'\n"
            "print(send())"
        )
        ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
        assert ran.stdout == "sent\n"

    def test_package_has_its_version(self) -> None:
        from importlib.metadata import version

        assert lambda_tasks.__version__ == version("django-lambda-tasks")
