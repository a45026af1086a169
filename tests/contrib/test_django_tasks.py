"""Django's tasks on this library: from `enqueue()` through the real handler to a result that any process can read."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import django
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.test import TestCase
from django.utils import timezone

from lambda_tasks import Every, plugins, registry
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.contrib.django_tasks import LambdaTasksBackend, lambda_options
from lambda_tasks.contrib.django_tasks.adapters import DjangoTask
from lambda_tasks.contrib.django_tasks.compat import (
    InvalidTask,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from lambda_tasks.contrib.django_tasks.values import class_path
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import DuplicateTask, InvalidArguments, UnknownQueue
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.models import EnqueuedTask, OutboxMessage, TaskRecord
from lambda_tasks.operations.rerunning import run_again
from lambda_tasks.operations.schedules import run_now
from lambda_tasks.strategies import get_backend
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.testing import TaskQueue, collect_tasks
from tests.app import django_tasks as examples
from tests.app.models import Effect
from tests.courier import COURIER, use_outbox

BACKEND = "lambda_tasks.contrib.django_tasks.LambdaTasksBackend"
READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
FAILED, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])


ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = {
    "shop/__init__.py": "",
    "shop/settings.py": """
SECRET_KEY = "only for this test"
USE_TZ = True
INSTALLED_APPS = ["lambda_tasks", "shop"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}}
LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"}
LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.memory.MemoryBackend"
TASKS = {
    "default": {"BACKEND": "lambda_tasks.contrib.django_tasks.LambdaTasksBackend"},
    "immediate": {"BACKEND": "MODULE.backends.immediate.ImmediateBackend"},
}
""",
    "shop/apps.py": """
from django.apps import AppConfig
from MODULE import task

@task(backend="OWN_BACKEND")
def early(): ...

class ShopConfig(AppConfig):
    name = "shop"
""",
    "shop/greetings.py": """
from MODULE import task

@task(backend="OWN_BACKEND")
def greet(name):
    return f"hello {name}"
""",
    "enqueue.py": """
import django
django.setup()
import json
from django.core.management import call_command
from lambda_tasks.backends.memory import event_record
from lambda_tasks.strategies import get_backend
from shop.greetings import greet
call_command("migrate", verbosity=0)
greet.using(backend="default").enqueue("ada")
print(json.dumps(event_record(get_backend().jobs[0])))
""",
    "work.py": """
import json, sys
from lambda_tasks.handler import handler
print(handler({"Records": [json.loads(sys.argv[1])]}, None)["batchItemFailures"])
""",
    "read.py": """
import django, sys
django.setup()
from MODULE import default_task_backend
result = default_task_backend.get_result(sys.argv[1])
print(result.status, result.return_value)
""",
}


def run_program(name: str, folder: Path, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, name, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _backend(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": []}}


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    with collect_tasks() as collected:
        yield collected


def again(result: Any) -> Any:
    """Return the result as another process reads it."""
    return task_backends["default"].get_result(result.id)


class TestEnqueueing:
    def test_result_is_ready_in_the_transaction(self, queue: TaskQueue) -> None:
        with transaction.atomic():
            result = examples.add.enqueue(2, second=3)
            assert (again(result).status, queue.jobs) == (READY, [])
        assert again(result) == result
        assert (result.args, result.kwargs, result.attempts) == ([2], {"second": 3}, 0)
        assert queue.task_names == ["tests.app.django_tasks.add"]

    def test_rollback_leaves_no_result_and_no_message(self, queue: TaskQueue) -> None:
        with pytest.raises(LookupError, match="undo"), transaction.atomic():
            result = examples.add.enqueue(2)
            raise LookupError("undo")
        with pytest.raises(TaskResultDoesNotExist):
            result.refresh()
        assert queue.jobs == []

    def test_arguments_are_checked_at_the_call(self, queue: TaskQueue) -> None:
        with pytest.raises(InvalidArguments, match="missing a required argument: 'first'"):
            examples.add.enqueue()
        with pytest.raises(TypeError, match="Unsupported type"):
            examples.add.enqueue(timezone.now())
        with pytest.raises(InvalidArguments, match="keys are not strings"):
            examples.add.enqueue({1: 2})
        with pytest.raises(InvalidArguments, match="NaN"):
            examples.add.enqueue(float("nan"))
        assert not EnqueuedTask.objects.exists()

    def test_keyword_named_like_another_parameter_is_refused(self, queue: TaskQueue) -> None:
        with pytest.raises(InvalidArguments, match="must not be called with a keyword 'first'"):
            examples.collect.enqueue(1, first=2)

    def test_call_in_a_coroutine_names_the_other_one(self) -> None:
        async def enqueue() -> None:
            examples.add.enqueue(1)

        with pytest.raises(SynchronousOnlyOperation, match=r"await aenqueue\(…\)"):
            asyncio.run(enqueue())

    def test_unknown_queue_raises_in_the_transaction(self) -> None:
        with pytest.raises(UnknownQueue):
            examples.add.using(queue_name="missing").enqueue(1)
        assert not EnqueuedTask.objects.exists()

    def test_queue_name_is_mapped(self, settings: Any, queue: TaskQueue) -> None:
        options = {"queues": {"urgent": "other"}}
        settings.TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": ["urgent", "other"], "OPTIONS": options}}
        result = examples.add.using(queue_name="urgent").enqueue(1)
        assert [job.queue for job in queue.jobs] == ["other"]
        assert again(result).task.queue_name == "urgent"

    def test_refused_message_leaves_no_result(self, sqs: Any, settings: Any) -> None:
        sqs.client.delete_queue(QueueUrl=sqs.queues["default"])
        with pytest.raises(Exception, match="does not exist"):
            examples.add.enqueue(1)
        assert not EnqueuedTask.objects.exists()

    def test_call_and_kept_message_commit_together(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": f"{__name__}.FullOutbox", "OPTIONS": {"transport": COURIER}}
        with pytest.raises(OSError, match="disk"):
            examples.add.enqueue(1)
        assert not EnqueuedTask.objects.exists()

    def test_kept_message_keeps_its_result(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": f"{__name__}.BrokenRelay", "OPTIONS": {"transport": COURIER}}
        with pytest.raises(ConnectionError):
            examples.add.enqueue(1)
        assert (EnqueuedTask.objects.count(), OutboxMessage.objects.count()) == (1, 1)

    def test_other_database_writes_the_call_after_commit(self, queue: TaskQueue) -> None:
        with transaction.atomic(using="sqlite"):
            result = examples.add.enqueue(1)
            assert not EnqueuedTask.objects.exists()
        assert (again(result).status, len(queue.jobs)) == (READY, 1)


class FullOutbox(OutboxBackend):
    """An outbox whose table cannot take a row."""

    def keep(self, jobs: Any, *, using: str) -> None:
        raise OSError("no space on the disk")


class BrokenRelay(OutboxBackend):
    """An outbox whose relay fails after the commit."""

    def send(self, jobs: Any) -> Any:
        raise ConnectionError("the database is gone")


class TestDelays:
    def test_run_after_becomes_the_delay_of_the_message(self, queue: TaskQueue) -> None:
        result = examples.add.using(run_after=timezone.now() + timedelta(seconds=600)).enqueue(1)
        assert 590 <= queue.jobs[0].delay <= 600
        assert again(result).task.run_after == result.task.run_after

    def test_past_time_sends_immediately(self, queue: TaskQueue) -> None:
        examples.add.using(run_after=timezone.now() - timedelta(days=1)).enqueue(1)
        assert queue.jobs[0].delay == 0

    def test_long_delay_needs_the_outbox(self, settings: Any) -> None:
        tomorrow = examples.add.using(run_after=timezone.now() + timedelta(days=1))
        with pytest.raises(InvalidArguments, match="LAMBDA_TASKS_OUTBOX"):
            tomorrow.enqueue(1)
        courier = use_outbox(settings)
        result = tomorrow.enqueue(1)
        assert OutboxMessage.objects.get().run_at is not None
        assert (courier.jobs, again(result).status) == ([], READY)


class TestRunning:
    def test_result_has_the_time_of_its_own_call(self, queue: TaskQueue) -> None:
        delayed = examples.first_delayed.using(run_after=timezone.now() + timedelta(minutes=10)).enqueue()
        result = examples.first_delayed.enqueue()
        assert again(result) == result
        assert again(delayed).task.run_after == delayed.task.run_after

    def test_return_value_is_read_by_another_process(self, queue: TaskQueue) -> None:
        result = examples.add.enqueue(2, second=3)
        queue.run_until_idle()
        result.refresh()
        assert (result.status, result.return_value, result.attempts) == (SUCCESSFUL, 5, 1)
        assert result.enqueued_at <= result.started_at <= result.finished_at
        assert again(result) == result

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [((1,), {}), ((1, 2, 3), {"last": 4, "more": [5]}), (([],), {"rest_of_it": {"a": None}})],
    )
    def test_arguments_of_any_form_arrive(self, queue: TaskQueue, args: Any, kwargs: Any) -> None:
        result = examples.collect.enqueue(*args, **kwargs)
        queue.run_until_idle()
        others = {name: value for name, value in kwargs.items() if name != "last"}
        read = again(result)
        assert read.return_value == [args[0], list(args[1:]), kwargs.get("last"), others]
        assert (read.args, read.kwargs) == (list(args), kwargs)

    def test_unknown_arguments_setting_keeps_variadic_ones(self, settings: Any, queue: TaskQueue) -> None:
        settings.LAMBDA_TASKS_UNKNOWN_ARGUMENTS = "drop"
        result = examples.collect.enqueue(1, 2, more=3)
        queue.run_until_idle()
        assert again(result).return_value == [1, [2], None, {"more": 3}]

    def test_coroutine_runs_in_the_transaction(self, queue: TaskQueue) -> None:
        result = examples.add_async.enqueue(2)
        queue.run_until_idle()
        assert again(result).return_value == 3
        assert Effect.objects.get().name == "async 2"

    def test_coroutines_enqueue_and_refresh(self, queue: TaskQueue) -> None:
        async def enqueue() -> Any:
            result = await examples.add.aenqueue(2)
            await sync_to_async(queue.run_until_idle)()
            await result.arefresh()
            return result

        assert async_to_sync(enqueue)().return_value == 3

    def test_error_has_its_class_and_traceback(self, queue: TaskQueue) -> None:
        result = examples.fail.enqueue("none left")
        queue.run_until_idle(raise_errors=False)
        result.refresh()
        assert (result.status, result.attempts, Effect.objects.count()) == (FAILED, 1, 0)
        [error] = result.errors
        assert error.exception_class is examples.OutOfStock
        assert error.traceback.endswith("tests.app.django_tasks.OutOfStock: none left\n")
        assert "lambda_tasks/contrib" not in error.traceback

    def test_each_attempt_has_its_error(self, queue: TaskQueue) -> None:
        result = examples.fail_and_retry.enqueue("none left")
        queue.run(1)
        assert (again(result).status, again(result).attempts) == (READY, 1)
        queue.run_until_idle(raise_errors=False)
        result.refresh()
        assert (result.status, result.attempts, len(result.errors)) == (FAILED, 3, 3)
        assert len(set(result.worker_ids)) == 3
        assert result.last_attempted_at >= result.started_at

    def test_context_counts_attempts_and_knows_errors(self, queue: TaskQueue) -> None:
        result = examples.attempt_until.enqueue(3)
        queue.run_until_idle()
        path = "tests.app.django_tasks.OutOfStock"
        assert again(result).return_value == [result.id, 3, [path, path], [3]]

    def test_coroutine_gets_its_context(self, queue: TaskQueue) -> None:
        result = examples.context_of_coroutine.enqueue()
        queue.run_until_idle()
        assert again(result).return_value == result.id

    def test_request_to_run_later_leaves_no_error(self, queue: TaskQueue) -> None:
        result = examples.ask_for_later.enqueue()
        queue.run(1)
        assert (again(result).status, again(result).errors) == (READY, [])
        queue.clear()

    def test_running_task_is_running_to_others(self, queue: TaskQueue) -> None:
        statuses = []
        task_started.connect(receiver := lambda task_result, **_: statuses.append(again(task_result).status))
        try:
            examples.add.enqueue(1)
            queue.run_until_idle()
        finally:
            task_started.disconnect(receiver)
        assert statuses == [RUNNING]

    def test_sensitive_arguments_are_masked(self, queue: TaskQueue, caplog: pytest.LogCaptureFixture) -> None:
        result = examples.secret.enqueue("hunter2-long-token")
        assert "hunter2" not in json.dumps(EnqueuedTask.objects.get().kwargs)
        queue.run_until_idle(raise_errors=False)
        assert "hunter2" not in f"{again(result)}{caplog.text}"

    def test_cancelled_call_has_failed(self, queue: TaskQueue) -> None:
        result = examples.add.enqueue(1)
        assert TaskHandle.from_id(result.id).cancel()
        assert (again(result).status, again(result).attempts, again(result).started_at) == (FAILED, 0, None)

    def test_durable_queue_and_handler(self, sqs: Any) -> None:
        result = examples.add.enqueue(2, second=3)
        [message] = sqs.receive()
        assert json.loads(message["Body"]) == {
            "task_name": "tests.app.django_tasks.add",
            "kwargs": {"first": 2, "second": 3, "*": {"positional": 1}},
        }
        event = {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": {
                name: {"stringValue": value["StringValue"], "dataType": "String"}
                for name, value in message["MessageAttributes"].items()
            },
            "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:default",
            "awsRegion": "eu-west-1",
        }
        assert handler({"Records": [event]}, None) == {"batchItemFailures": []}
        assert handler({"Records": [event]}, None) == {"batchItemFailures": []}, "delivered twice"
        result.refresh()
        assert (result.status, result.return_value, result.attempts) == (SUCCESSFUL, 5, 1)


class TestInATestCase(TestCase):
    """Django's TestCase never commits; the queue of the test helpers does as if."""

    def test_task_runs_after_the_commit_of_the_queue(self) -> None:
        with collect_tasks() as queue:
            with queue.commit():
                result = examples.add.enqueue(2)
                assert queue.jobs == []
            queue.run_until_idle()
        assert again(result).return_value == 3


class TestEagerMode:
    def test_result_is_finished_when_enqueue_returns(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        result = examples.add.enqueue(2)
        assert (result.status, result.return_value) == (SUCCESSFUL, 3)

    def test_task_waits_for_the_commit(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        with transaction.atomic():
            result = examples.add.enqueue(2)
            assert result.status == READY
        result.refresh()
        assert result.return_value == 3


class TestWorkers:
    def forget(self, *names: str) -> None:
        for name in names:
            registry._tasks.pop(f"tests.app.django_tasks.{name}", None)

    def test_task_of_another_backend_is_found(self, settings: Any, queue: TaskQueue) -> None:
        """A worker imports a module whose own backend registers nothing."""
        result = examples.add.enqueue(1)
        self.forget("add")
        queue.run_until_idle()
        assert again(result).return_value == 2

    def test_plain_function_is_not_found(self, queue: TaskQueue) -> None:
        examples.add.enqueue(1)
        body = {"task_name": "tests.app.django_tasks.Task", "kwargs": {}}
        event = event_record(queue.jobs[0]) | {"body": json.dumps(body)}
        assert len(handler({"Records": [event]}, None)["batchItemFailures"]) == 1
        queue.clear()

    def test_alias_of_the_backend_travels(self, settings: Any, queue: TaskQueue) -> None:
        settings.TASKS = {
            "default": {"BACKEND": "lambda_tasks.contrib.django_tasks.LambdaTasksBackend"},
            "second": {"BACKEND": "tests.contrib.test_django_tasks.SecondBackend"},
        }
        senders = []
        task_finished.connect(receiver := lambda sender, **_: senders.append(sender))
        try:
            result = examples.add.using(backend="second").enqueue(1)
            queue.run_until_idle()
        finally:
            task_finished.disconnect(receiver)
        assert senders == [SecondBackend]
        EnqueuedTask.objects.all().delete()
        assert again(result).backend == "second"

    @pytest.mark.parametrize("own_backend", ["default", "immediate"])
    def test_processes_share_results(self, tmp_path: Path, own_backend: str) -> None:
        """The module of the task is imported while Django loads the apps, or by the worker for the message."""
        module = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
        for name, text in PROJECT.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text.replace("MODULE", module).replace("OWN_BACKEND", own_backend))
        environment = {
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
        }
        message = json.loads(run_program("enqueue.py", tmp_path, environment))
        assert run_program("work.py", tmp_path, environment, json.dumps(message)) == "[]\n"
        result_id = message["messageId"]
        assert run_program("read.py", tmp_path, environment, result_id) == "SUCCESSFUL hello ada\n"

    def test_missing_package_is_named(self) -> None:
        program = (
            "import sys; sys.modules.update({'django.tasks': None, 'django_tasks': None})\n"
            "import lambda_tasks.contrib.django_tasks"
        )
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "ImproperlyConfigured: lambda_tasks.contrib.django_tasks needs Django 6.0 or later" in done.stderr

    def test_plugin_stays_when_the_setting_changes(self, settings: Any) -> None:
        task_backends["default"]
        settings.LAMBDA_TASKS_PLUGINS = []
        plugins.hooks()
        assert plugins.manager.has_plugin("lambda_tasks.contrib.django_tasks.hooks")


class SecondBackend(LambdaTasksBackend):
    """A subclass, which is the sender of the signals of its tasks."""


class TestOptions:
    def test_locks_work_by_name(self) -> None:
        adapter = adapter_of("exclusive")
        assert (adapter.singleton, adapter.on_contention) == ("key", "skip")

    def test_duplicate_call_gets_the_first_result(self, queue: TaskQueue) -> None:
        first, second = examples.once.enqueue("a", "one"), examples.once.enqueue(key="a", note="two")
        assert (second.id, second.args, len(queue.jobs)) == (first.id, ["a", "one"], 1)
        assert examples.once.enqueue("b").id != first.id
        queue.run_until_idle()

    def test_call_has_its_message_group(self, queue: TaskQueue) -> None:
        examples.of_tenant.enqueue("tenant-7")
        assert [job.group for job in queue.jobs] == ["tenant-7"]
        queue.clear()

    def test_kept_call_gets_the_new_arguments(self, settings: Any) -> None:
        use_outbox(settings)
        later = examples.latest.using(run_after=timezone.now() + timedelta(days=1))
        first, second = later.enqueue("a", "one"), later.enqueue("a", "two")
        assert (first.id, again(first).args) == (second.id, ["a", "two"])

    def test_duplicate_can_raise(self, queue: TaskQueue) -> None:
        @lambda_options(unique=True, on_duplicate="raise")
        def single() -> None: ...

        single.__qualname__ = "single"
        task = examples.task(single)
        task.enqueue()
        with pytest.raises(DuplicateTask):
            task.enqueue()
        queue.clear()

    def test_defaults_of_the_backend_apply(self, settings: Any) -> None:
        defaults = {"max_retries": 7, "retry_on": [OSError], "hard_timeout": 60, "soft_timeout": 50}
        settings.TASKS = {"default": {"BACKEND": BACKEND, "OPTIONS": {"defaults": defaults}}}
        TestWorkers().forget("add", "fail_and_retry")
        examples.add.get_backend().validate_task(examples.add)
        examples.add.get_backend().validate_task(examples.fail_and_retry)
        plain, own = adapter_of("add"), adapter_of("fail_and_retry")
        assert (plain.max_retries, plain.retry_on, plain.hard_timeout) == (7, (OSError,), 60)
        assert (own.max_retries, own.retry_on, own.hard_timeout) == (2, (examples.OutOfStock,), 60)
        TestWorkers().forget("add", "fail_and_retry")

    def test_options_above_the_task_apply(self) -> None:
        def local() -> None: ...

        local.__qualname__ = "local"
        lambda_options(hard_timeout=77, soft_timeout=5)(examples.task(local))
        adapter = registry.known_task(f"{__name__}.local")
        assert adapter is not None
        assert adapter.hard_timeout == 77

    def test_queue_is_refused(self) -> None:
        with pytest.raises(TypeError, match="queue_name of @task"):
            lambda_options(queue="other")

    def test_other_objects_are_refused(self) -> None:
        with pytest.raises(TypeError, match="decorates functions"):
            lambda_options(delay=1)(len)

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(TypeError, match="Unknown options"):
            lambda_options(retries=1)  # type: ignore[call-arg]

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"queue": {}}, "only the keys queues and defaults"),
            ({"queues": ["a"]}, "queues in OPTIONS of 'default' in TASKS must be a dict"),
            ({"defaults": {"retries": 3}}, "invalid defaults: Unknown options"),
            ({"defaults": {"queue": "other"}}, "Use queue_name of @task"),
        ],
    )
    def test_invalid_options_of_the_backend_are_refused(self, settings: Any, options: Any, problem: str) -> None:
        settings.TASKS = {"default": {"BACKEND": BACKEND, "OPTIONS": options}}
        with pytest.raises(InvalidTaskBackend, match=problem):
            examples.add.enqueue(1)

    def test_priority_is_refused(self) -> None:
        with pytest.raises(InvalidTask, match="does not support setting priority"):
            examples.add.using(priority=1)

    def test_schedule_sends_the_task(self, settings: Any, queue: TaskQueue) -> None:
        settings.TASKS = {"default": {"BACKEND": f"{__name__}.SecondBackend"}, "other": {"BACKEND": BACKEND}}

        def regular() -> str:
            return "done"

        regular.__qualname__ = "regular"
        examples.task(backend="other")(lambda_options(schedule=Every(minutes=5))(regular))
        [handle] = run_now(f"{__name__}.regular")
        queue.run_until_idle()
        result = task_backends["other"].get_result(handle.message_id)
        result.refresh()
        assert (result.backend, result.return_value) == ("other", "done")


class TestResults:
    @pytest.mark.parametrize("result_id", ["123", "", "0190f5a0-0000-7000-8000-000000000000"])
    def test_unknown_id_does_not_exist(self, result_id: str) -> None:
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(result_id)

    def test_lambda_task_has_another_kind_of_result(self, queue: TaskQueue) -> None:
        handle = plain.execute_on_commit()
        queue.run_until_idle()
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(handle.message_id)

    def test_record_alone_is_enough(self, queue: TaskQueue) -> None:
        result = examples.add.enqueue(2, second=3)
        queue.run_until_idle()
        EnqueuedTask.objects.all().delete()
        assert (again(result).args, again(result).kwargs, again(result).return_value) == ([2], {"second": 3}, 5)

    def test_handle_reads_the_same_invocation(self, queue: TaskQueue) -> None:
        result = examples.add.enqueue(2)
        queue.run_until_idle()
        assert TaskHandle.from_id(result.id).result(timeout=0) == 3

    def test_queue_that_the_settings_have_lost_hides_nothing(self, settings: Any, queue: TaskQueue) -> None:
        result = examples.add.using(queue_name="other").enqueue(1)
        settings.TASKS = {"default": {"BACKEND": BACKEND}}
        assert again(result).status == READY

    def test_record_can_be_run_again(self, queue: TaskQueue) -> None:
        first = examples.add.enqueue(2, second=3)
        queue.run_until_idle()
        handle = run_again(TaskRecord.objects.get(pk=first.id))
        queue.run_until_idle()
        second = task_backends["default"].get_result(handle.message_id)
        assert (second.status, second.args, second.return_value) == (SUCCESSFUL, [2], 5)

    def test_cleanup_deletes_calls_with_their_records(self, queue: TaskQueue) -> None:
        result = examples.add.enqueue(2)
        waiting = examples.add.using(run_after=timezone.now() + timedelta(seconds=600)).enqueue(3)
        queue.run_until_idle()
        long_ago = timezone.now() - timedelta(days=30)
        TaskRecord.objects.filter(pk=result.id).update(start_time=long_ago)
        cleanup_task_records(retention_days=7)
        with pytest.raises(TaskResultDoesNotExist):
            again(result)
        EnqueuedTask.objects.update(enqueued_at=long_ago)
        cleanup_task_records(retention_days=7)
        assert [str(row.pk) for row in EnqueuedTask.objects.all()] == [waiting.id]
        EnqueuedTask.objects.update(run_after=long_ago)
        cleanup_task_records(retention_days=7)
        assert not EnqueuedTask.objects.exists()


@lambda_task
def plain() -> None: ...


def adapter_of(name: str) -> DjangoTask:
    task = getattr(examples, name)
    task.get_backend().validate_task(task)
    adapter = registry.known_task(f"tests.app.django_tasks.{name}")
    assert isinstance(adapter, DjangoTask)
    return adapter


class TestSignals:
    @pytest.fixture
    def seen(self) -> Iterator[list[Any]]:
        seen: list[Any] = []

        def receive(signal: Any, sender: Any, task_result: Any, **_: Any) -> None:
            seen.append((names[signal], sender, task_result.status, task_result.attempts, sys.exc_info()[0]))

        names = {task_enqueued: "enqueued", task_started: "started", task_finished: "finished"}
        for signal in names:
            signal.connect(receive)
        yield seen
        for signal in names:
            signal.disconnect(receive)

    def test_signals_of_a_success(self, queue: TaskQueue, seen: list[Any]) -> None:
        examples.add.enqueue(1)
        queue.run_until_idle()
        assert seen == [
            ("enqueued", LambdaTasksBackend, READY, 0, None),
            ("started", LambdaTasksBackend, RUNNING, 1, None),
            ("finished", LambdaTasksBackend, SUCCESSFUL, 1, None),
        ]

    def test_task_is_finished_after_its_last_attempt(self, queue: TaskQueue, seen: list[Any]) -> None:
        examples.fail_and_retry.enqueue("x")
        queue.run_until_idle(raise_errors=False)
        started = [("started", LambdaTasksBackend, RUNNING, attempt, None) for attempt in (1, 2, 3)]
        assert seen[1:-1] == started
        assert seen[-1][:4] == ("finished", LambdaTasksBackend, FAILED, 3)
        assert seen[-1][4] is not None

    def test_failure_is_one_error_in_djangos_log(self, queue: TaskQueue, caplog: pytest.LogCaptureFixture) -> None:
        examples.fail.enqueue("none left")
        queue.run_until_idle(raise_errors=False)
        names = ("django.tasks", "django_tasks")
        [line] = [each for each in caplog.records if each.name in names and each.levelname == "ERROR"]
        assert line.exc_info is not None
        assert line.exc_info[0] is examples.OutOfStock

    def test_plain_tasks_send_no_signals(self, queue: TaskQueue, seen: list[Any]) -> None:
        plain.execute_on_commit()
        queue.run_until_idle()
        assert seen == []


class TestChecks:
    def messages(self) -> list[Any]:
        return [(message.id, message.msg) for message in task_backends["default"].check()]

    def test_valid_backend_has_no_messages(self) -> None:
        assert self.messages() == []

    def test_queue_without_address_is_an_error(self, settings: Any) -> None:
        settings.TASKS = {"default": {"BACKEND": BACKEND, "QUEUES": ["default", "urgent"]}}
        [(check_id, message)] = self.messages()
        assert check_id == "lambda_tasks.E040"
        assert message.startswith("Queue 'urgent' of 'default' in TASKS is 'urgent' in LAMBDA_TASKS_QUEUES")

    def test_store_without_records_is_a_warning(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = "lambda_tasks.stores.null.NullStore"
        assert [check_id for check_id, _ in self.messages()] == ["lambda_tasks.W040"]


CHAINED = """Traceback (most recent call last):
  File
KeyError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File
a.b.C: x

1 enqueued task was not sent
"""


@pytest.mark.parametrize(
    ("traceback", "path"),
    [
        ('Traceback (most recent call last):\n  File "a"\n    x\nValueError: bad\n', "builtins.ValueError"),
        ("shop.errors.Rejected: no\n  File\nKeyError: x", "shop.errors.Rejected"),
        ("shop.errors.Rejected\n", "shop.errors.Rejected"),
        (CHAINED, "a.b.C"),
        ("tests.f.<locals>.Odd: x", "tests.f.<locals>.Odd"),
        ("The worker sent a retry and did not record the error.", "builtins.Exception"),
        ("", "builtins.Exception"),
    ],
)
def test_class_is_read_from_a_traceback(traceback: str, path: str) -> None:
    assert class_path(traceback) == path


def test_memory_transport_is_used() -> None:
    assert isinstance(get_backend(), MemoryBackend)
