"""The cost of imports: a process loads boto3, redis and pydantic only when it uses them.

Processes of a small project report after each step which heavy modules are loaded. Modules that Django loads by
itself for such a project do not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

import pytest

#: Modules that cost a process milliseconds or megabytes, including some in the library.
HEAVY: Final = (
    *("boto3", "botocore", "redis", "awslambdaric", "pluggy", "rich"),
    *("aws_lambda_powertools", "prometheus_client", "opentelemetry", "sentry_sdk"),
    *("pydantic", "pydantic_core", "typing_extensions", "annotated_types"),
    *("django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.postgres"),
    *("django.core.cache", "django.core.management", "django.core.serializers", "django.template", "django.test"),
    *("asyncio", "concurrent.futures", "ctypes", "email", "http.client", "importlib.metadata"),
    *("multiprocessing", "ssl", "unittest", "urllib.request", "xml", "zipfile"),
    # Each of their dataclasses compiles its methods again in every process.
    *("lambda_tasks.jobs", "lambda_tasks.outcomes", "lambda_tasks.wire.deliveries", "lambda_tasks.secret_loader"),
    *(
        "lambda_tasks.admin",
        "lambda_tasks.contrib.celery",
        "lambda_tasks.contrib.django_tasks",
        "lambda_tasks.contrib.context",
        "lambda_tasks.contrib.emf",
        "lambda_tasks.contrib.health",
        "lambda_tasks.contrib.flushing",
        "lambda_tasks.contrib.opentelemetry",
        "lambda_tasks.contrib.prometheus",
        "lambda_tasks.contrib.sentry",
        "lambda_tasks.contrib.signals",
        "lambda_tasks.operations.doctor",
        "lambda_tasks.local",
        "lambda_tasks.operations.reaping",
        "lambda_tasks.testing",
    ),
    *("lambda_tasks.backends.outbox", "lambda_tasks.backends.relay"),
    *("lambda_tasks.backends.sqs", "lambda_tasks.backends.sqs_messages", "lambda_tasks.wire.queue_urls"),
    "lambda_tasks.sending.results",
    *("lambda_tasks.awaiting.ends", "lambda_tasks.awaiting.polling"),
    *("lambda_tasks.definition.returns", "lambda_tasks.execution.progress", "lambda_tasks.database.aside"),
    *("lambda_tasks.definition.schedules", "lambda_tasks.operations.schedules", "cronsim"),
)

FILES: Final = {
    "shop/__init__.py": "",
    "shop/settings.py": """
        import os

        OURS = ["lambda_tasks"] if "ENDPOINT" in os.environ else []
        NAMES = ["admin", "auth", "contenttypes", "sessions", "messages"] if "ADMIN" in os.environ else []
        INSTALLED_APPS = [*OURS, "shop", *(f"django.contrib.{name}" for name in NAMES)]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
        SECRET_KEY = "only for this test"
        USE_TZ = True
        LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default"}
        LAMBDA_TASKS_BACKEND = {
            "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
            "OPTIONS": {"endpoint_url": os.environ.get("ENDPOINT")},
        }
        LAMBDA_TASKS_OUTBOX = "OUTBOX" in os.environ
    """,
    "shop/models.py": """
        from django.db import models

        class Order(models.Model):
            number = models.PositiveIntegerField()
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

        from lambda_tasks import lambda_task
        from lambda_tasks.logging import task_logger
        from lambda_tasks.tasks import cleanup_task_records
        from lambda_tasks.timeouts import SoftTimeLimitExceeded

        @lambda_task(retry_on=(OSError,))
        def send(*, key: UUID, since: datetime | None = None) -> str:
            task_logger.info("sending")
            return str(key)

        @lambda_task
        def add(*, numbers: list[int]) -> int:
            return sum(numbers)

        @lambda_task(singleton=True)
        def alone() -> None: ...

        @lambda_task
        def fail() -> None:
            raise LookupError
    """,
    "plain_tasks.py": """
        from lambda_tasks import lambda_task

        @lambda_task(retry_on=(OSError,))
        def add(*, numbers: list[int]) -> int:
            return sum(numbers)
    """,
    "steps.py": """
        import json, os, sys

        os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
        HEAVY = json.loads(sys.argv[1])

        def say(step):
            print(json.dumps([step, [name for name in HEAVY if name in sys.modules]]))

        def say_ours(step):
            print(json.dumps([step, sorted(name for name in sys.modules if name.startswith("lambda_tasks"))]))

        def say_made(step):
            print(json.dumps([step, sorted(made())]))

        def made():
            import enum, re

            for name, module in list(sys.modules.items()):
                for key, value in list(vars(module).items()) if name.startswith("lambda_tasks") else ():
                    own = getattr(value, "__module__", name) == name
                    if isinstance(value, re.Pattern):
                        yield f"pattern {name}.{key}"
                    elif own and isinstance(value, type) and issubclass(value, enum.Enum):
                        yield f"enum {name}.{key}"
                    elif own and isinstance(value, type) and "__dataclass_params__" in vars(value):
                        yield f"dataclass {name}.{key}"
    """,
    "start.py": """
        from steps import say_made, say_ours

        import django
        django.setup()
        say_ours("set up")

        import plain_tasks
        say_ours("tasks decorated")
        say_made("made")
    """,
    "first_message.py": """
        import json, uuid
        from steps import say_made, say_ours

        import lambda_tasks.handler
        body = json.dumps({"task_name": "shop.tasks.add", "kwargs": {"numbers": [1]}})
        event = {"Records": [{"messageId": str(uuid.uuid4()), "body": body, "attributes": {}}]}
        assert lambda_tasks.handler.handler(event, None) == {"batchItemFailures": []}
        say_ours("message run")
        say_made("made")
    """,
    "django_alone.py": """
        from steps import say

        import django
        django.setup()
        say("set up")

        from shop.models import Order
        Order.objects.create(number=7)
        say("database used")
    """,
    "web_process.py": """
        from steps import say

        import django
        django.setup()
        say("set up")

        import plain_tasks
        say("tasks decorated")

        import lambda_tasks.models
        import shop.tasks
        say("tasks imported")

        from lambda_tasks.models import TaskRecord
        list(TaskRecord.objects.filter(status=TaskRecord.TaskStatus.FAILED))
        say("records read")

        assert shop.tasks.add(numbers=[1, 2]) == 3
        say("task called")

        from django.db import transaction
        with transaction.atomic():
            shop.tasks.add.execute_on_commit(numbers=[1, 2])
            transaction.set_rollback(True)
        say("task enqueued")

        # As override_settings does it, which brings Django's test client along.
        from django.conf import settings
        from django.core.signals import setting_changed

        def set_eager(value):
            settings.LAMBDA_TASKS_EAGER = value
            setting_changed.send(None, setting="LAMBDA_TASKS_EAGER", value=value, enter=True)

        set_eager(True)
        handle = shop.tasks.add.execute_on_commit(numbers=[1, 2])
        set_eager(False)
        assert TaskRecord.objects.get(pk=handle.message_id).result == 3
        say("ran eagerly")
        TaskRecord.objects.all().delete()

        shop.tasks.add.execute_on_commit(numbers=[1, 2])
        say("task sent")
    """,
    "worker.py": """
        import uuid
        from steps import say

        def event(name, **kwargs):
            body = json.dumps({"task_name": f"shop.tasks.{name}", "kwargs": kwargs})
            attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": "1790000000000"}
            return {"Records": [{"messageId": str(uuid.uuid4()), "body": body, "attributes": attributes}]}

        import json
        import lambda_tasks.handler
        say("handler imported")

        lambda_tasks.handler.boot()
        say("booted")

        def run(name, **kwargs):
            assert lambda_tasks.handler.handler(event(name, **kwargs), None) == {"batchItemFailures": []}

        run("add", numbers=[1, 2])
        say("message run")

        run("send", key=str(uuid.uuid4()))
        say("message with a UUID run")

        run("alone")
        say("singleton run")

        run("fail")
        say("failure recorded")

        from lambda_tasks.models import TaskRecord
        assert TaskRecord.objects.filter(status="SUCCESS").count() == 3
        TaskRecord.objects.all().delete()

        assert "lost" in lambda_tasks.handler.handler({"lambda_tasks": "maintenance"}, None)
        say("maintenance done")
    """,
}


class _Queue(BaseHTTPRequestHandler):
    """Accepts any message."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"MessageId": "11111111-1111-4111-8111-111111111111"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def queue() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Queue) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Project:
    """A project in its own directory; each of its programs is a process."""

    def __init__(self, directory: Path, queue: str) -> None:
        self.directory = directory
        self.queue = queue
        for name, text in FILES.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(textwrap.dedent(text))
        self._run("-m", "django", "migrate", "--run-syncdb", "--skip-checks", "--verbosity=0")
        self._django = self._loaded("django_alone.py", ENDPOINT=None)

    def ours(self, program: str, **environment: str) -> dict[str, list[str]]:
        """Run a program and return the library's own modules after each step, and what it has made."""
        return self._loaded(program, **environment)

    def added(self, program: str, **environment: str) -> dict[str, list[str]]:
        """Run a program and return, for each step, the modules that it loads in addition to Django with a database."""
        return {
            step: [name for name in names if name not in self._django["database used"]]
            for step, names in self._loaded(program, **environment).items()
        }

    def _loaded(self, program: str, **environment: str | None) -> dict[str, list[str]]:
        said = self._run(program, json.dumps(HEAVY), **environment)
        return dict(map(json.loads, said.splitlines()))

    def _run(self, *command: str, **environment: str | None) -> str:
        own = {
            "PYTHONPATH": os.pathsep.join([str(self.directory), str(Path(__file__).parents[2])]),
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "ENDPOINT": self.queue,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            **environment,
        }
        given = {**os.environ, **own}
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=self.directory,
            env={name: value for name, value in given.items() if value is not None},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, queue: str) -> Project:
    return Project(tmp_path_factory.mktemp("project"), queue)


@pytest.fixture(scope="module")
def in_web_process(project: Project) -> dict[str, list[str]]:
    return project.added("web_process.py")


@pytest.fixture(scope="module")
def in_web_process_with_outbox(project: Project) -> dict[str, list[str]]:
    return project.added("web_process.py", OUTBOX="on")


@pytest.fixture(scope="module")
def in_worker(project: Project) -> dict[str, list[str]]:
    return project.added("worker.py")


@pytest.fixture(scope="module")
def in_worker_with_outbox(project: Project) -> dict[str, list[str]]:
    return project.added("worker.py", OUTBOX="on")


PYDANTIC: Final = {"pydantic", "pydantic_core", "typing_extensions", "annotated_types"}
#: With these modules, pydantic searches all installed packages for its plugins.
PLUGIN_SEARCH: Final = {"importlib.metadata", "zipfile"}
#: The path to or from the transport.
PIPELINE: Final = {"pluggy", "lambda_tasks.jobs", "lambda_tasks.outcomes"}
SENDING: Final = {
    *("lambda_tasks.backends.sqs", "lambda_tasks.backends.sqs_messages", "lambda_tasks.wire.queue_urls"),
    "lambda_tasks.sending.results",
}
OUTBOX: Final = {"lambda_tasks.backends.outbox", "lambda_tasks.backends.relay"}
WORKER: Final = PIPELINE | {"lambda_tasks.wire.deliveries", "lambda_tasks.secret_loader"}


@pytest.mark.parametrize("step", ["set up", "tasks decorated", "tasks imported", "records read", "task called"])
def test_process_that_sends_nothing_adds_no_modules(in_web_process: dict[str, list[str]], step: str) -> None:
    assert in_web_process[step] == []


@pytest.mark.parametrize("step", ["set up", "tasks decorated", "tasks imported", "records read", "task called"])
def test_outbox_process_that_sends_nothing_adds_none(
    in_web_process_with_outbox: dict[str, list[str]], step: str
) -> None:
    assert in_web_process_with_outbox[step] == []


def test_enqueueing_to_the_outbox_delays_boto3(
    in_web_process_with_outbox: dict[str, list[str]],
) -> None:
    for step in ("task enqueued", "ran eagerly"):
        assert set(in_web_process_with_outbox[step]) - PLUGIN_SEARCH == PIPELINE | PYDANTIC | SENDING | OUTBOX
    assert {"boto3", "botocore"} <= set(in_web_process_with_outbox["task sent"])


def test_enqueueing_loads_pydantic_but_not_boto3(in_web_process: dict[str, list[str]]) -> None:
    # It does not load redis either.
    assert set(in_web_process["task enqueued"]) - PLUGIN_SEARCH == PIPELINE | PYDANTIC | SENDING


def test_eager_task_loads_no_more_than_enqueueing(in_web_process: dict[str, list[str]]) -> None:
    assert set(in_web_process["ran eagerly"]) - PLUGIN_SEARCH == PIPELINE | PYDANTIC | SENDING


def test_boto3_is_loaded_at_the_first_send(in_web_process: dict[str, list[str]]) -> None:
    added = set(in_web_process["task sent"]) - set(in_web_process["ran eagerly"])
    assert {"boto3", "botocore"} <= added
    # The modules that boto3 imports from the standard library do not count.
    assert added - {"boto3", "botocore"} <= set(HEAVY) & set(sys.stdlib_module_names) | {"urllib.request"}


@pytest.mark.parametrize("step", ["handler imported", "booted"])
def test_idle_worker_does_not_load_pydantic(in_worker: dict[str, list[str]], step: str) -> None:
    assert set(in_worker[step]) == WORKER


def test_plain_arguments_run_without_pydantic(in_worker: dict[str, list[str]]) -> None:
    assert set(in_worker["message run"]) == WORKER


def test_uuid_argument_loads_pydantic_but_not_boto3(in_worker: dict[str, list[str]]) -> None:
    # It does not load redis either.
    assert set(in_worker["message with a UUID run"]) - PLUGIN_SEARCH == WORKER | PYDANTIC


def test_singleton_without_redis_loads_no_more(in_worker: dict[str, list[str]]) -> None:
    assert in_worker["singleton run"] == in_worker["message with a UUID run"]


def test_error_of_a_task_loads_no_more(in_worker: dict[str, list[str]]) -> None:
    assert in_worker["failure recorded"] == in_worker["singleton run"]


def test_maintenance_loads_reaping_but_no_outbox(
    in_worker: dict[str, list[str]],
) -> None:
    added = set(in_worker["maintenance done"]) - set(in_worker["failure recorded"])
    assert added == {"lambda_tasks.operations.reaping"} | SENDING


@pytest.mark.parametrize("step", ["handler imported", "booted"])
def test_cold_start_does_not_load_the_outbox(in_worker_with_outbox: dict[str, list[str]], step: str) -> None:
    assert set(in_worker_with_outbox[step]) == WORKER


def test_idle_outbox_worker_does_not_load_boto3(
    in_worker_with_outbox: dict[str, list[str]],
) -> None:
    assert set(in_worker_with_outbox["message run"]) == WORKER | SENDING | OUTBOX
    assert set(in_worker_with_outbox["maintenance done"]) - PLUGIN_SEARCH == (
        WORKER | PYDANTIC | SENDING | OUTBOX | {"lambda_tasks.operations.reaping"}
    )


ADVICE: Final = (
    "Every process pays for a module that it imports. If this one needs it before it sends, runs or shows anything, "
    "measure its share with `python -m benchmarks cold-start` and add it to the list; otherwise, import it in the "
    "function that uses it."
)
SET_UP: Final = {
    *("lambda_tasks", "lambda_tasks.apps", "lambda_tasks.exceptions", "lambda_tasks.models"),
    *("lambda_tasks.foundation", "lambda_tasks.foundation.frozen"),
    *("lambda_tasks.recording", "lambda_tasks.recording.described", "lambda_tasks.recording.statuses"),
    *("lambda_tasks.settings", "lambda_tasks.settings.values"),
}
DECORATED: Final = SET_UP | {
    *("lambda_tasks.decorators", "lambda_tasks.registry", "lambda_tasks.definition", "lambda_tasks.definition.keys"),
    *("lambda_tasks.definition.atomicity", "lambda_tasks.definition.options", "lambda_tasks.definition.signatures"),
    "lambda_tasks.definition.task",
}
#: The declarations of the admin's pages.
ADMIN: Final = {
    *(
        "lambda_tasks.admin",
        "lambda_tasks.admin.actions",
        "lambda_tasks.admin.confirming",
        "lambda_tasks.admin.filters",
    ),
    *(
        "lambda_tasks.admin.flows",
        "lambda_tasks.admin.later",
        "lambda_tasks.admin.listing",
        "lambda_tasks.admin.outbox",
    ),
    *("lambda_tasks.admin.overview", "lambda_tasks.admin.records", "lambda_tasks.admin.schedules"),
    *("lambda_tasks.recording.lines", "lambda_tasks.recording.storable", "lambda_tasks.registry"),
    *("lambda_tasks.database", "lambda_tasks.database.dividing", "lambda_tasks.foundation.parts"),
}
#: The number of the library's modules that a worker imports for a plain message and its record.
MOST_OF_WORKER: Final = 96
#: Classes whose methods Python writes in every process. A dataclass or a pattern would take up to a millisecond each.
ENUMS: Final = {
    *("enum lambda_tasks.models.FlowKind", "enum lambda_tasks.models.MemberStatus"),
    *("enum lambda_tasks.recording.statuses.TaskReason", "enum lambda_tasks.recording.statuses.TaskStatus"),
}


def assert_nothing_new(found: list[str], known: set[str]) -> None:
    """Compare both ways, so that a list does not name what is no longer imported."""
    assert set(found) == known, ADVICE


@pytest.fixture(scope="module")
def at_start(project: Project) -> dict[str, list[str]]:
    return project.ours("start.py")


@pytest.fixture(scope="module")
def at_start_with_admin(project: Project) -> dict[str, list[str]]:
    return project.ours("start.py", ADMIN="on")


@pytest.fixture(scope="module")
def at_first_message(project: Project) -> dict[str, list[str]]:
    return project.ours("first_message.py")


@pytest.mark.parametrize(("step", "known"), [("set up", SET_UP), ("tasks decorated", DECORATED)])
def test_start_imports_only_named_modules(at_start: dict[str, list[str]], step: str, known: set[str]) -> None:
    assert_nothing_new(at_start[step], known)


@pytest.mark.parametrize(("step", "known"), [("set up", SET_UP | ADMIN), ("tasks decorated", DECORATED | ADMIN)])
def test_admin_adds_only_its_declarations(
    at_start_with_admin: dict[str, list[str]], step: str, known: set[str]
) -> None:
    assert_nothing_new(at_start_with_admin[step], known)


def test_first_message_imports_few_modules(at_first_message: dict[str, list[str]]) -> None:
    assert len(at_first_message["message run"]) <= MOST_OF_WORKER, ADVICE


def test_start_makes_no_dataclasses_and_patterns(
    at_start: dict[str, list[str]], at_start_with_admin: dict[str, list[str]], at_first_message: dict[str, list[str]]
) -> None:
    assert set(at_start["made"]) == ENUMS
    assert set(at_start_with_admin["made"]) == ENUMS | {"enum lambda_tasks.admin.outbox.State"}
    of_each_message = {"enum lambda_tasks.execution.attempt.Stage", "pattern lambda_tasks.recording.uuids._CANONICAL"}
    assert set(at_first_message["made"]) == ENUMS | of_each_message
