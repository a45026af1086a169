"""What importing costs: a process pays for boto3, redis and pydantic when it uses them, and not before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAVY = ("boto3", "botocore", "redis", "pydantic", "pydantic_core", "typing_extensions", "awslambdaric")

FILES = {
    "shop/__init__.py": "",
    "shop/settings.py": """
        INSTALLED_APPS = ["lambda_tasks", "shop"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        SECRET_KEY = "only for this test"
        USE_TZ = True
        LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default"}
        LAMBDA_TASKS_PLUGINS = ["shop.plugins"]
    """,
    "shop/plugins.py": """
        from lambda_tasks.hookspecs import hookimpl

        @hookimpl
        def lambda_task_finished(run, outcome): ...
    """,
    "shop/tasks.py": """
        from __future__ import annotations

        from datetime import datetime
        from uuid import UUID

        from lambda_tasks.decorators import lambda_task
        from lambda_tasks.logging import task_logger
        from lambda_tasks.tasks import cleanup_task_records
        from lambda_tasks.timeouts import SoftTimeLimitExceeded

        @lambda_task(retry_on=(OSError,), singleton=True)
        def send(*, key: UUID, since: datetime | None = None) -> str:
            task_logger.info("sending")
            return str(key)

        @lambda_task
        def add(*, numbers: list[int]) -> int:
            return sum(numbers)

        @lambda_task
        async def receive(*, keys: list[UUID]) -> None: ...
    """,
    # Says after each stage what of the heavy modules is loaded.
    "program.py": """
        import json, os, sys

        os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
        heavy = json.loads(sys.argv[1])

        def say(stage):
            print(json.dumps([stage, [name for name in heavy if name in sys.modules]]))

        import django
        django.setup()
        say("set up")

        import lambda_tasks.models
        say("models")

        import shop.tasks
        say("tasks")

        from lambda_tasks.models import TaskRecord
        from django.core.management import call_command
        call_command("migrate", verbosity=0, skip_checks=True)
        list(TaskRecord.objects.filter(status=TaskRecord.TaskStatus.FAILED))
        say("records read")

        from django.db import transaction
        from django.test import override_settings

        assert shop.tasks.add(numbers=[1, 2]) == 3
        say("called")

        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = shop.tasks.add.execute_on_commit(numbers=[1, 2])
        assert TaskRecord.objects.get(pk=handle.message_id).result == 3
        say("ran eagerly")

        with transaction.atomic():
            shop.tasks.send.execute_on_commit(key=__import__("uuid").uuid4())
            say("enqueued")
            transaction.set_rollback(True)

        import lambda_tasks.handler
        say("handler")
    """,
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What a process of a small project has loaded, after each stage of its life."""
    project = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(textwrap.dedent(text))
    ran = subprocess.run(
        [sys.executable, "program.py", json.dumps(HEAVY)],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return dict(map(json.loads, ran.stdout.splitlines()))


@pytest.mark.parametrize("stage", ["set up", "models", "tasks", "records read", "called"])
def test_a_process_that_sends_nothing_loads_none_of_it(loaded: dict[str, list[str]], stage: str) -> None:
    assert loaded[stage] == []


def test_the_first_eager_task_loads_pydantic_and_neither_boto3_nor_redis(loaded: dict[str, list[str]]) -> None:
    assert loaded["ran eagerly"] == ["pydantic", "pydantic_core", "typing_extensions"]


def test_boto3_is_loaded_when_something_is_sent_and_not_when_it_is_enqueued(loaded: dict[str, list[str]]) -> None:
    assert loaded["enqueued"] == ["pydantic", "pydantic_core", "typing_extensions"]


def test_the_handler_itself_loads_none_of_it(loaded: dict[str, list[str]]) -> None:
    assert loaded["handler"] == loaded["enqueued"]
