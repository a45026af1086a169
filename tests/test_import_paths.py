"""Every documented import path works, and means the same thing everywhere."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

import lambda_tasks

#: Module, name, and the kind of thing that it is.
PATHS: list[tuple[str, str, type]] = [
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
def test_it_can_be_imported(module: str, name: str, kind: type) -> None:
    assert isinstance(resolved(module, name), kind)


@pytest.mark.parametrize(("module", "name", "kind"), PATHS, ids=lambda value: value if isinstance(value, str) else "")
def test_it_is_shown_where_the_module_lists_its_names(module: str, name: str, kind: type) -> None:
    """By `from … import *`, and in editors."""
    namespace: dict[str, Any] = {}
    exec(f"from {module} import *", namespace)
    assert namespace[name] is resolved(module, name)


@pytest.mark.parametrize("module", sorted({module for module, _, _ in PATHS} - {"lambda_tasks.models"}))
def test_it_can_be_the_first_module_that_a_process_imports(module: str) -> None:
    """Before Django is set up: no order of imports is asked of anyone. Only models need the apps."""
    program = f"import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; import {module}"
    if module == "lambda_tasks.tasks":  # works on a model
        program = program.replace("; import", "; import django; django.setup(); import")
    ran = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


class TestTheSameThing:
    def test_the_status_is_on_the_record_and_beside_it(self) -> None:
        from lambda_tasks.models import TaskRecord, TaskStatus

        assert TaskRecord.TaskStatus is TaskStatus
        assert list(TaskStatus) == ["RUNNING", "SUCCESS", "FAILED", "RETRYING"]

    def test_messages_and_the_error_are_those_of_their_own_modules(self) -> None:
        from lambda_tasks import exceptions, messages, models

        assert models.SQSLambdaTask is messages.SQSLambdaTask
        assert models.SQSLambdaTaskMessage is messages.SQSLambdaTaskMessage
        assert models.MaxRetriesExceededError is exceptions.MaxRetriesExceededError

    def test_the_built_in_task_is_a_task(self) -> None:
        from lambda_tasks.decorators import LambdaTaskWrapper
        from lambda_tasks.tasks import cleanup_task_records

        assert isinstance(cleanup_task_records, LambdaTaskWrapper)

    def test_a_name_that_is_not_there_is_an_attribute_error(self) -> None:
        from lambda_tasks import models

        with pytest.raises(AttributeError, match=r"module 'lambda_tasks.models' has no attribute 'Nothing'"):
            _ = models.Nothing
        with pytest.raises(ImportError, match="Nothing"):
            exec("from lambda_tasks.models import Nothing")

    def test_the_package_says_its_version(self) -> None:
        from importlib.metadata import version

        assert lambda_tasks.__version__ == version("django-lambda-tasks")
