"""Promises that no other module tests: a new project, and the documented use of each option.

`docs/promises.md` lists every promise with its test; other modules test the promises about their subjects.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from botocore.exceptions import ClientError
from django.core.cache import caches
from django.db import transaction
from django.test import override_settings
from redis.exceptions import LockError as RedisLockError

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.foundation.forks import random
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage, SQSLambdaTaskMessage, TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Skipped, Succeeded
from lambda_tasks.strategies import get_backend
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.conftest import Sqs


def run(task: Any, n_retries: int = 0, /, **kwargs: Any) -> Outcome | Skipped:
    message = Invocation(task_name=task.name, kwargs=kwargs, n_retries=n_retries)
    return execute(message, message_id=ids.new_message_id())


@pytest.fixture
def queue() -> list[Job]:
    """Return the sent jobs; the list is empty at first."""
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    backend.jobs.clear()
    return backend.jobs


# A new project, in separate processes

PROJECT: Final = {
    "shop/__init__.py": "",
    "shop/settings.py": """
        import os

        SECRET_KEY = os.environ.get("SHOP_KEY", "only for this test")
        USE_TZ = True
        INSTALLED_APPS = ["lambda_tasks", "shop"]
        DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
        LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"}
    """,
    "shop/tasks.py": """
        from django.conf import settings
        from lambda_tasks.decorators import lambda_task


        @lambda_task
        def tell_key(*, length: int) -> str:
            return settings.SECRET_KEY[:length]
    """,
}

#: Calls the handler twice, like a warm container, and prints whether the settings were imported before.
CONTAINER: Final = """
    import json, sys
    from lambda_tasks.handler import handler

    body = '{"task_name": "shop.tasks.tell_key", "kwargs": {"length": 7}}'
    for number in (1, 2):
        before = "shop.settings" in sys.modules
        try:
            answer = handler({"Records": [{"messageId": f"message {number}", "body": body}]}, None)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps([before, answer]))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a Django project that installs the library, with an empty database."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


@pytest.fixture
def migrated(project: Path) -> Iterator[Path]:
    in_project(project, "-m", "django", "migrate", "lambda_tasks")
    yield project
    (project / "shop.sqlite3").unlink()


def in_project(project: Path, *arguments: str, **variables: str) -> list[str]:
    """Run Python in the folder of the project and return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "shop.settings", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def rows(project: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(project / "shop.sqlite3")) as database:
        return database.execute(query).fetchall()


class TestNewProject:
    def test_package_has_the_documented_requirements(self) -> None:
        required = importlib.metadata.requires("django-lambda-tasks") or []
        names = {re.split(r"[^\w-]", requirement)[0] for requirement in required if "extra ==" not in requirement}
        assert names >= {"awslambdaric", "boto3", "django", "pydantic", "redis"}
        assert importlib.metadata.metadata("django-lambda-tasks")["Requires-Python"] == ">=3.10"

    def test_one_migration_creates_the_table(self, migrated: Path) -> None:
        assert rows(migrated, "SELECT count(*) FROM lambda_tasks_taskrecord") == [(0,)]

    def test_handler_needs_only_settings_and_importable_tasks(self, migrated: Path) -> None:
        lines = in_project(migrated, "-c", textwrap.dedent(CONTAINER))

        # Importing the handler does not set Django up: the first event does.
        assert [json.loads(line) for line in lines] == [
            [False, {"batchItemFailures": []}],
            [True, {"batchItemFailures": []}],
        ]
        assert rows(migrated, "SELECT status, result FROM lambda_tasks_taskrecord") == [("SUCCESS", '"only fo"')] * 2

    def test_secrets_are_loaded_before_the_settings(self, migrated: Path, sqs: Sqs) -> None:
        secret = boto3.client("secretsmanager", endpoint_url=sqs.endpoint).create_secret(
            Name=f"shop/{ids.new_message_id()}", SecretString=json.dumps({"key": "from AWS"})
        )
        reference = f"{secret['ARN']}:key:AWSCURRENT:{secret['VersionId']}"

        lines = in_project(migrated, "-c", textwrap.dedent(CONTAINER), LAMBDA_TASKS_SECRET_SHOP_KEY=reference)

        assert [json.loads(line)[0] for line in lines] == [False, True]
        assert rows(migrated, "SELECT result FROM lambda_tasks_taskrecord") == [('"from AW"',)] * 2

    def test_malformed_reference_prevents_django_from_starting(self, migrated: Path) -> None:
        lines = in_project(migrated, "-c", textwrap.dedent(CONTAINER), LAMBDA_TASKS_SECRET_SHOP_KEY="shop/prod:key")

        for line in lines:
            settings_were_read, answer = json.loads(line)
            assert not settings_were_read
            assert answer.startswith("ValueError: LAMBDA_TASKS_SECRET_SHOP_KEY must have 10 segments")
        assert rows(migrated, "SELECT count(*) FROM lambda_tasks_taskrecord") == [(0,)]


# Queues


@lambda_task
def welcome(*, user_id: int, template: str) -> str:
    return "sent"


@lambda_task(queue="other")
def resize(*, file_id: int) -> None: ...


class CrmBusy(Exception):
    pass


@lambda_task(retry_on=(CrmBusy, ConnectionError), retry_delay=30)
def export(*, error: str) -> None:
    raise {"busy": CrmBusy, "lost": ConnectionError, "broken": BrokenPipeError, "other": KeyError}[error](error)


@pytest.mark.django_db(transaction=True)
class TestOnSqs:
    def test_message_leaves_after_commit_for_its_queue(self, sqs: Sqs) -> None:
        with transaction.atomic():
            welcome.execute_on_commit(user_id=42, template="first")
            resize.execute_on_commit(file_id=7)
            assert sqs.depth()["visible"] == sqs.depth("other")["visible"] == 0

        assert sqs.bodies() == [{"task_name": welcome.name, "kwargs": {"user_id": 42, "template": "first"}}]
        assert sqs.bodies("other") == [{"task_name": resize.name, "kwargs": {"file_id": 7}}]

    def test_retry_waits_on_the_queue(self, sqs: Sqs) -> None:
        assert isinstance(run(export, error="busy"), Retry)
        assert sqs.depth() == {"visible": 0, "delayed": 1, "in_flight": 0}

    def test_sqs_error_reaches_the_committing_code(self, sqs: Sqs) -> None:
        sqs.client.delete_queue(QueueUrl=sqs.queues["default"])

        with pytest.raises(ClientError, match="does not exist"):
            welcome.execute_on_commit(user_id=42, template="first")
        # SQS refuses only after the commit, when the writes of the transaction are permanent.
        with pytest.raises(ClientError, match="does not exist"):
            self.write_and_send()
        assert Effect.objects.exists()

    @transaction.atomic
    def write_and_send(self) -> None:
        Effect.objects.create(name="a")
        welcome.execute_on_commit(user_id=42, template="first")


# Records


@pytest.mark.django_db(transaction=True)
class TestRecords:
    def test_record_of_a_running_task_is_running(self) -> None:
        seen: list[TaskRecord] = []

        @lambda_task
        def look() -> None:
            seen.append(TaskRecord.objects.get())

        run(look)
        [record] = seen
        assert record.status == TaskRecord.TaskStatus.RUNNING == "RUNNING"
        assert record.start_time is not None
        assert (record.end_time, record.result, record.traceback) == (None, None, None)

    def test_records_are_found_by_status_and_id(self) -> None:
        run(welcome, user_id=1, template="first")
        run(export, error="other")

        failed = TaskRecord.objects.get(status=TaskRecord.TaskStatus.FAILED)
        assert failed.task_name == export.name
        assert TaskRecord.objects.get(pk=str(failed.pk)) == failed
        assert failed.end_time is not None
        assert failed.end_time >= failed.start_time


# Time limits


tidied: list[str] = []


@lambda_task(soft_timeout=1, hard_timeout=30)
def build_report(*, month: str, hand_in: bool) -> str:
    try:
        threading.Event().wait(60)
    except SoftTimeLimitExceeded:
        tidied.append(month)
        if not hand_in:
            raise
    return "what there was"


@pytest.mark.django_db(transaction=True)
class TestTimeLimits:
    @pytest.fixture(autouse=True)
    def _clean(self) -> None:
        tidied.clear()

    def test_task_may_clean_up_at_soft_limit(self) -> None:
        """A task that raises afterwards has failed."""
        outcome = run(build_report, month="May", hand_in=False)

        assert tidied == ["May"]
        assert isinstance(outcome, Failed)
        record = TaskRecord.objects.get()
        assert record.status == "FAILED"
        assert "SoftTimeLimitExceeded" in record.traceback

    def test_task_returning_after_its_soft_limit_succeeds(self) -> None:
        assert run(build_report, month="May", hand_in=True) == Succeeded("what there was")
        assert tidied == ["May"]


# Misconfigured workers


@lambda_task(singleton=True)
def recount() -> None: ...


@pytest.mark.django_db(transaction=True)
class TestMisconfiguration:
    """The message stays on the queue without a record until the settings are repaired."""

    @pytest.mark.parametrize(
        "setting",
        [
            {"LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT": 901},
            {"LAMBDA_TASKS_DEFAULT_SOFT_TIMEOUT": 300},
            {"LAMBDA_TASKS_STORE": "shop.nowhere.Store"},
            {"LAMBDA_TASKS_LOCK": "shop.nowhere.Lock"},
            {"LAMBDA_TASKS_SINGLETON_CACHE": "nowhere"},
            {"LAMBDA_TASKS_MAX_RETRIES": "many"},
            {"LAMBDA_TASKS_MAX_TAKEOVERS": -1},
        ],
        ids=str,
    )
    def test_invalid_setting_keeps_the_messages(self, setting: dict[str, Any]) -> None:
        with override_settings(**setting):
            assert self.kept(recount) == ["message"]
        assert not TaskRecord.objects.exists()

    def kept(self, task: Any) -> list[str]:
        record = {"messageId": "message", "body": Invocation(task_name=task.name).to_body()}
        response = handler({"Records": [record]}, None)
        return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


class TestDeployingPage:
    PAGE: Final = Path(__file__).parents[2] / "docs/howto/deploying.md"

    def test_queues_are_standard_queues(self) -> None:
        text = self.PAGE.read_text()
        assert "standard queues, not FIFO" in text
        assert not re.search(r"FifoQueue|\.fifo\b", text)

    def test_page_compares_receive_counts(self) -> None:
        _, _, rest = self.PAGE.read_text().partition("### maxReceiveCount")
        section, _, _ = rest.partition("\n### ")
        assert "`maxReceiveCount: 1`" in section
        assert "Use at least 5" in section
        assert "dead letter queue" in section


# Ignored errors and retried errors


@lambda_task(ignore_errors=(LookupError,))
def look_up(*, error: str) -> None:
    raise {"listed": LookupError, "subclass": KeyError, "other": ValueError}[error]("gone")


@lambda_task(ignore_errors=(ConnectionResetError,), retry_on=(ConnectionError,))
def ask(*, error: str) -> None:
    raise {"ignored": ConnectionResetError, "retried": ConnectionRefusedError}[error]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("queue")
class TestErrors:
    @pytest.mark.parametrize(("error", "status"), [("listed", "SUCCESS"), ("subclass", "SUCCESS"), ("other", "FAILED")])
    def test_listed_types_and_their_subclasses_are_ignored(self, error: str, status: str) -> None:
        run(look_up, error=error)
        record = TaskRecord.objects.get()
        assert (record.status, record.result) == (status, None)
        assert "gone" in record.traceback

    @pytest.mark.parametrize(
        ("error", "status"), [("busy", "RETRYING"), ("lost", "RETRYING"), ("broken", "RETRYING"), ("other", "FAILED")]
    )
    def test_listed_types_and_their_subclasses_are_retried(self, error: str, status: str, queue: list[Job]) -> None:
        run(export, error=error)
        assert TaskRecord.objects.get().status == status
        assert [job.message.n_retries for job in queue] == ([1] if status == "RETRYING" else [])

    def test_ignore_errors_takes_precedence(self, queue: list[Job]) -> None:
        run(ask, error="ignored")
        assert TaskRecord.objects.get().status == "SUCCESS"
        assert queue == []

        run(ask, error="retried")
        assert len(queue) == 1

    def test_system_exit_may_be_listed(self, queue: list[Job]) -> None:
        @lambda_task(ignore_errors=(SystemExit,))
        def leave() -> None:
            sys.exit("enough")

        @lambda_task(retry_on=(SystemExit,))
        def leave_and_come_back() -> None:
            sys.exit("for now")

        run(leave)
        assert TaskRecord.objects.get().status == "SUCCESS"
        run(leave_and_come_back)
        assert [job.task_name for job in queue] == [leave_and_come_back.name]

    @pytest.mark.parametrize("ignored", [Exception, SoftTimeLimitExceeded])
    def test_time_limit_can_be_ignored(self, ignored: type[Exception]) -> None:
        @lambda_task(ignore_errors=(ignored,))
        def slow_and_harmless() -> None:
            raise SoftTimeLimitExceeded

        assert isinstance(run(slow_and_harmless), Ignored)

    def test_options_come_from_the_worker(self) -> None:
        """The message does not contain them."""

        def version(**options: Any) -> Any:
            @lambda_task(**options)
            def publish() -> None:
                raise CrmBusy

            return publish

        body = json.dumps(version(retry_on=(CrmBusy,)).serialize()["message"])
        message = SQSLambdaTaskMessage.from_body(body)
        assert isinstance(message.execute_immediately(), Retry)

        version(ignore_errors=(CrmBusy,))
        assert isinstance(message.execute_immediately(), Ignored)

    def test_message_of_a_retry_has_no_options(self, queue: list[Job]) -> None:
        run(export, error="busy")
        assert json.loads(queue[0].message.to_body()) == {
            "task_name": export.name,
            "kwargs": {"error": "busy"},
            "n_retries": 1,
        }

    @pytest.mark.parametrize(
        ("retry_delay", "drawn", "delay"),
        [
            (0, 1.0, 1),
            (0, 5.0, 5),
            (0, 3.4, 3),
            (0, 3.6, 4),
            (30, 1.0, 31),
            (30, 5.0, 35),
            (896, 5.0, 900),
            (900, 1.0, 900),
        ],
    )
    def test_delay_is_retry_delay_plus_jitter(
        self, retry_delay: int, drawn: float, delay: int, queue: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The sum is rounded, and limited to the longest delay that SQS supports."""
        limits = []

        def uniform(low: float, high: float) -> float:
            limits.append((low, high))
            return drawn

        @lambda_task(retry_on=(CrmBusy,), retry_delay=retry_delay)
        def export_later() -> None:
            raise CrmBusy

        monkeypatch.setattr(random, "uniform", uniform)
        run(export_later)

        assert limits == [(1, 5)]
        assert [job.delay for job in queue] == [delay]

    @pytest.mark.parametrize(("drawn", "delay"), [(1.0, 5_001), (4.6, 5_005)])
    def test_delay_beyond_the_sqs_limit_needs_outbox(
        self, drawn: float, delay: int, queue: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def export_much_later() -> None:
            raise CrmBusy

        monkeypatch.setattr(random, "uniform", lambda low, high: drawn)
        with pytest.raises(
            ValueError, match=r"retry_delay must be a whole number of seconds from 0 to 900, .* not 5000"
        ):
            lambda_task(retry_on=(CrmBusy,), retry_delay=5_000)(export_much_later)
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            outcome = run(lambda_task(retry_on=(CrmBusy,), retry_delay=5_000)(export_much_later))
        assert isinstance(outcome, Retry)
        assert outcome.delay == delay
        message = OutboxMessage.objects.get()
        assert message.run_at is not None
        assert message.due_at is not None
        assert (message.run_at - message.created_at).total_seconds() == pytest.approx(delay, abs=0.01)
        assert (message.run_at - message.due_at).total_seconds() == pytest.approx(900, abs=0.01)
        assert queue == []

    def test_last_retry_is_number_2880_by_default(self, queue: list[Job]) -> None:
        assert isinstance(run(export, 2879, error="busy"), Retry)
        assert queue.pop().message.n_retries == 2880

        outcome = run(export, 2880, error="busy")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, MaxRetriesExceededError)
        assert queue == []


# Calling a task as a function


@pytest.mark.django_db(transaction=True)
def test_direct_call_sends_and_records_nothing(queue: list[Job]) -> None:
    assert welcome(user_id=1, template="first") == "sent"
    with pytest.raises(CrmBusy):
        export(error="busy")
    assert queue == []
    assert not TaskRecord.objects.exists()


# Singleton tasks with only a Redis cache in the settings


counted: list[float] = []


@lambda_task(singleton=True, hard_timeout=280)
def count_stock(*, warehouse_id: int) -> None:
    counted.append(caches["default"].ttl(KEY))  # type: ignore[attr-defined]


@lambda_task(singleton=True, ignore_errors=(RedisLockError,))
def count_stock_or_not() -> None:
    counted.append(0)


KEY: Final = f"lambda_tasks.singleton_lock.{__name__}.count_stock"


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("redis_server", "queue")
class TestSingleton:
    @pytest.fixture(autouse=True)
    def _clean(self) -> None:
        counted.clear()

    def test_lock_is_held_for_the_hard_limit(self) -> None:
        """It is in the default cache."""
        assert isinstance(run(count_stock, warehouse_id=1), Succeeded)

        [seconds] = counted
        assert 270 < seconds <= 280
        assert KEY not in caches["default"]

    def test_run_without_the_lock_is_retried(self, queue: list[Job]) -> None:
        lock = caches["default"].lock(KEY, timeout=60)  # type: ignore[attr-defined]
        assert lock.acquire()
        try:
            # The arguments do not matter: the lock belongs to the task.
            outcome = run(count_stock, warehouse_id=2)
        finally:
            lock.release()

        assert isinstance(outcome, Retry)
        assert 1 <= outcome.delay <= 5
        assert [job.message.n_retries for job in queue] == [1]
        record = TaskRecord.objects.get()
        assert record.status == "RETRYING"
        assert "LockError" in record.traceback
        assert counted == []

        assert isinstance(run(count_stock, 1, warehouse_id=2), Succeeded)

    def test_ignored_contention_is_a_success(self, queue: list[Job]) -> None:
        """The record shows the lock error."""
        with caches["default"].lock(f"lambda_tasks.singleton_lock.{count_stock_or_not.name}", timeout=60):  # type: ignore[attr-defined]
            run(count_stock_or_not)

        record = TaskRecord.objects.get()
        assert (record.status, record.result) == ("SUCCESS", None)
        assert "LockError" in record.traceback
        assert counted == queue == []
