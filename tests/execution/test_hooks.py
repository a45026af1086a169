"""Every hook: when it is called, its context, and the effects of its result and of its exceptions."""

from __future__ import annotations

import functools
import inspect
import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connection
from django.db.models.functions import Now
from django.db.transaction import atomic
from django.test import override_settings

import lambda_tasks
from lambda_tasks import handler as handler_module
from lambda_tasks import registry
from lambda_tasks.backends import base
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import (
    InvalidEvent,
    LockError,
    MaxRetriesExceededError,
    Redeliver,
    TaskCrashedError,
    UnknownQueue,
    UnknownTask,
)
from lambda_tasks.execution.locking import LOCK_KEY
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import LISTENERS, QUESTIONS, Hooks, hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.models import OutboxMessage, SQSLambdaTaskMessage, TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, Succeeded
from lambda_tasks.plugins import hooks
from lambda_tasks.strategies import get_lock
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE
from tests.app.models import Effect

runs_tasks = pytest.mark.django_db(transaction=True)

HOOKS = [name for name in vars(Hooks) if name.startswith("lambda_task_")]
PAGE = Path(lambda_tasks.__file__).parent.parent / "docs/reference/hooks.md"


class Refused(Exception):
    pass


class Missing(Exception):
    pass


@lambda_task
def leave_effect(*, name: str) -> str:
    Effect.objects.create(name=name)
    return f"left {name}"


@lambda_task(retry_on=[Refused], ignore_errors=[Missing], retry_delay=7)
def leave_effect_and_raise(*, error: str) -> None:
    Effect.objects.create(name=error)
    raise {"Refused": Refused, "Missing": Missing, "ValueError": ValueError}[error](error)


@lambda_task(singleton=True)
def alone() -> None: ...


# Helpers: plugins come from the setting, and messages go through the handler.


def use_plugins(*plugins: Any) -> override_settings:
    return override_settings(LAMBDA_TASKS_PLUGINS=list(plugins))


def plugin(*implementations: Callable[..., Any], **options: bool) -> Any:
    """Return a plugin with these functions as its hooks, each under its own name."""

    class Plugin:
        def __init__(self) -> None:
            for implementation in implementations:
                setattr(self, implementation.__name__, hookimpl(**options)(implementation))

    return Plugin()


class KeptQueue(MemoryBackend):
    """Keeps its jobs when another setting changes, which replaces the instance."""

    kept: Final[list[Job]] = []

    def __init__(self) -> None:
        self.jobs = self.kept


class FullQueue(MemoryBackend):
    """Accepts no job."""

    def send(self, jobs: Any) -> Any:
        raise ConnectionError


class PickyQueue(MemoryBackend):
    """Refuses every job permanently."""

    def send(self, jobs: Any) -> Any:
        return [base.Refused(job, ValueError("not this one")) for job in jobs]


def behind_outbox(transport: type[MemoryBackend]) -> override_settings:
    return override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.{transport.__name__}", LAMBDA_TASKS_OUTBOX=True)


queue = KeptQueue.kept


@pytest.fixture(autouse=True)
def _kept_queue() -> Iterator[None]:
    queue.clear()
    handler_module.boot()  # otherwise the first test would see the boot
    with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.KeptQueue"):
        yield


def record_of(task: LambdaTaskWrapper[..., Any], /, **arguments: Any) -> dict[str, Any]:
    """Send the task and return its record as Lambda would deliver it."""
    task.execute_on_commit(**arguments)
    return event_record(queue.pop())


def handle(*records: Mapping[str, Any]) -> list[str]:
    """Pass records to the handler and return the ids of those that stay on the queue."""
    return [failure["itemIdentifier"] for failure in handler({"Records": list(records)}, None)["batchItemFailures"]]


def run(task: LambdaTaskWrapper[..., Any], /, **arguments: Any) -> TaskRecord:
    """Send the task, run it, and return its record."""
    record = record_of(task, **arguments)
    assert handle(record) == []
    return TaskRecord.objects.get(pk=record["messageId"])


def effects() -> list[str]:
    return list(Effect.objects.order_by("pk").values_list("name", flat=True))


def claimed_elsewhere(record: Mapping[str, Any], *, lease: float) -> None:
    """Imitate another worker that runs the message."""
    TaskRecord.objects.create(
        id=record["messageId"],
        task_name=leave_effect.name,
        claim=ids.new_message_id(),
        start_time=Now(),
        lease_until=Now() + timedelta(seconds=lease),
    )


class Witness:
    """Implements every hook: notes its name, whether a transaction is open, and its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool, dict[str, Any]]] = []
        for name in HOOKS:
            parameters = [
                parameter for parameter in inspect.signature(getattr(Hooks, name)).parameters if parameter != "self"
            ]
            # pluggy inspects the names of arguments, so each hook needs a function.
            namespace: dict[str, Any] = {"note": functools.partial(self.note, name)}
            exec(f"def {name}({', '.join(parameters)}): note(**locals())", namespace)
            setattr(self, name, hookimpl(namespace[name]))

    def note(self, name: str, **details: Any) -> None:
        self.calls.append((name, connection.in_atomic_block, details))

    @property
    def names(self) -> list[str]:
        return [name.removeprefix("lambda_task_") for name, _, _ in self.calls]

    def arguments_of(self, name: str) -> list[dict[str, Any]]:
        return [details for called, _, details in self.calls if called == name]

    def was_in_transaction(self, name: str) -> list[bool]:
        return [in_transaction for called, in_transaction, _ in self.calls if called == name]


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    with use_plugins(witness):
        yield witness


# All hooks


class TestAllHooks:
    def test_each_hook_has_its_test_class(self) -> None:
        classes = {
            name for name, value in globals().items() if inspect.isclass(value) and name.startswith("TestLambda")
        }
        assert classes == {"Test" + name.title().replace("_", "") for name in HOOKS}

    def test_page_has_each_hook_in_order(self) -> None:
        assert re.findall(r"^## `(lambda_task_\w+)\(", PAGE.read_text(), re.MULTILINE) == HOOKS

    @pytest.mark.parametrize("name", HOOKS)
    def test_section_names_arguments_and_answers_four_questions(self, name: str) -> None:
        [section] = re.findall(rf"^## `{name}(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        parameters = ", ".join(list(inspect.signature(getattr(Hooks, name)).parameters)[1:])
        assert section.startswith(f"({parameters})`")
        for question in ("When", "Inside", "Return", "Raising"):
            assert f"| {question} |" in section

    @pytest.mark.parametrize("name", HOOKS)
    def test_docstring_answers_the_four_questions(self, name: str) -> None:
        text = inspect.getdoc(getattr(Hooks, name)) or ""
        assert re.findall(r"^(\w+):", text, re.MULTILINE) == ["When", "Inside", "Return", "Raising"]

    def test_listeners_and_questions_are_hooks(self) -> None:
        assert set(HOOKS) > LISTENERS | QUESTIONS
        for name in LISTENERS:
            assert "Return: nothing." in str(getattr(Hooks, name).__doc__)
            assert "Raising: is logged." in str(getattr(Hooks, name).__doc__)


@runs_tasks
class TestOrderOfHooks:
    """From the call in a view to the response of the handler."""

    def test_successful_run(self, witness: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(handler_module, "_booted", False)
        with atomic():
            leave_effect.execute_on_commit(name="a")
            assert witness.names == ["sending"]
        handle(event_record(queue.pop()))
        assert witness.names == [
            "sending",
            "sent",
            "boot",
            "resolve",
            "started",
            "call",
            "finished",
            "batch_finished",
        ]

    def test_retried_run(self, witness: Witness) -> None:
        handle(record_of(leave_effect_and_raise, error="Refused"))
        assert witness.names == [
            *("sending", "sent"),
            *("resolve", "started", "call", "classify", "retry_delay", "sending", "sent", "finished"),
            "batch_finished",
        ]

    @pytest.mark.parametrize("error", ["Missing", "ValueError"])
    def test_ignored_and_failed_run(self, witness: Witness, error: str) -> None:
        handle(record_of(leave_effect_and_raise, error=error))
        assert witness.names == [
            *("sending", "sent"),
            *("resolve", "started", "call", "classify", "finished"),
            "batch_finished",
        ]

    def test_batch_with_a_copy(self, witness: Witness) -> None:
        record = record_of(leave_effect, name="a")
        handle(record, record | {"messageId": "a copy"})
        assert witness.names == [
            *("sending", "sent"),
            *("resolve", "started", "call", "finished"),
            *("resolve", "skipped"),
            "batch_finished",
        ]

    def test_eager_run(self, witness: Witness) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            leave_effect.execute_on_commit(name="a")
        assert witness.names == ["sending", "sent", "started", "call", "finished"]

    def test_message_that_is_executed_immediately(self, witness: Witness) -> None:
        SQSLambdaTaskMessage(task_name=leave_effect.name, kwargs={"name": "a"}).execute_immediately()
        assert witness.names == ["resolve", "started", "call", "finished"]

    def test_only_sending_and_call_are_in_transaction(self, witness: Witness) -> None:
        with atomic():
            leave_effect.execute_on_commit(name="a")
        handle(event_record(queue.pop()))
        handle(record_of(leave_effect_and_raise, error="Refused"))  # sent without a transaction
        inside = {name for name, in_transaction, _ in witness.calls if in_transaction}
        assert inside == {"lambda_task_sending", "lambda_task_call"}
        assert witness.was_in_transaction("lambda_task_sending") == [True, False, False]


@pytest.mark.parametrize("name", sorted(LISTENERS))
class TestListeners:
    @runs_tasks
    def test_exception_is_logged_without_affecting_others(self, name: str, caplog: pytest.LogCaptureFixture) -> None:
        witness = Witness()
        with use_plugins(Raising(name), witness):
            with behind_outbox(FullQueue):
                leave_effect.execute_on_commit(name="kept")
            record = record_of(leave_effect, name="a")
            assert handle(record) == []
            assert handle(record | {"messageId": "a copy"}) == []
            kept = record_of(leave_effect_and_raise, error="Refused")
            with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.FullQueue"):
                assert handle(kept) == [kept["messageId"]]

        assert witness.arguments_of(name)
        logged = [entry for entry in caplog.records if entry.name == "lambda_tasks.plugins"]
        assert len(logged) == len(witness.arguments_of(name))
        for entry in logged:
            assert re.fullmatch(f"Plugin .* raised an exception in {name}. The invocation continues.", entry.message)
            assert entry.levelno == logging.ERROR
            assert entry.exc_info is not None
            assert entry.exc_info[0] is Refused
        assert effects() == ["a"]
        assert TaskRecord.objects.get(pk=record["messageId"]).status == "SUCCESS"

    @pytest.mark.parametrize("options", [{"wrapper": True}, {"hookwrapper": True}], ids=str)
    def test_wrapper_around_a_listener_is_refused(self, name: str, options: dict[str, bool]) -> None:
        def wrapper() -> Generator[None]:
            yield

        wrapper.__name__ = name
        with (
            use_plugins(plugin(wrapper, **options)),
            pytest.raises(
                ImproperlyConfigured, match=f"must not wrap {name}, since there is nothing to wrap. .* lambda_task_call"
            ),
        ):
            hooks()


class Raising(Witness):
    """A plugin with one hook, which raises."""

    def __init__(self, name: str) -> None:
        super().__init__()
        for other in set(HOOKS) - {name}:
            delattr(self, other)

    def note(self, name: str, **details: Any) -> None:
        raise Refused(name)


# Each hook, in the order of an invocation


@runs_tasks
class TestLambdaTaskBoot:
    @pytest.fixture(autouse=True)
    def _new_container(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(handler_module, "_booted", False)

    def test_boot_is_first_and_once_per_container(self, witness: Witness) -> None:
        record = record_of(leave_effect, name="a")
        witness.calls.clear()
        handle(record)
        handle(record)
        assert witness.names.count("boot") == 1
        assert witness.names[0] == "boot"
        assert witness.was_in_transaction("lambda_task_boot") == [False]

    def test_django_is_set_up_before(self) -> None:
        ready = []

        def lambda_task_boot() -> None:
            ready.append(apps.ready and Effect.objects.count() == 0)

        with use_plugins(plugin(lambda_task_boot)):
            handle()
        assert ready == [True]

    def test_failed_boot_is_repeated_by_next_invocation(self) -> None:
        boots = []

        def lambda_task_boot() -> None:
            boots.append(1)
            if len(boots) == 1:
                raise Refused("not yet")

        record = record_of(leave_effect, name="a")
        with use_plugins(plugin(lambda_task_boot)):
            with pytest.raises(Refused, match="not yet"):
                handle(record)
            assert not TaskRecord.objects.exists()
            assert handle(record) == []
            assert handle(record) == []
        assert len(boots) == 2
        assert effects() == ["a"]


@runs_tasks
class TestLambdaTaskSending:
    def test_hook_is_called_in_the_callers_transaction(self, witness: Witness) -> None:
        with atomic():
            handle = leave_effect.execute_on_commit(name="a")
            [arguments] = witness.arguments_of("lambda_task_sending")
            assert queue == []
        job = arguments["job"]
        assert isinstance(job, Job)
        assert (job.message_id, job.task_name, job.task) == (handle.message_id, leave_effect.name, leave_effect)
        assert witness.was_in_transaction("lambda_task_sending") == [True]

    def test_writes_are_rolled_back_with_the_caller(self) -> None:
        def lambda_task_sending(job: Job) -> None:
            Effect.objects.create(name=job.message_id)

        with use_plugins(plugin(lambda_task_sending)):
            with atomic():
                leave_effect.execute_on_commit(name="a")
                connection.set_rollback(True)
            assert effects() == []
            leave_effect.execute_on_commit(name="a")
            assert len(effects()) == 1

    def test_added_attributes_travel_with_the_message(self) -> None:
        def lambda_task_sending(job: Job) -> None:
            job.attributes["traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

        with use_plugins(plugin(lambda_task_sending)):
            record = record_of(leave_effect, name="a")
        assert record["messageAttributes"]["traceparent"]["stringValue"].startswith("00-0af7")

    def test_hook_cannot_replace_the_ids(self) -> None:
        def lambda_task_sending(job: Job) -> None:
            job.attributes[MESSAGE_ID_ATTRIBUTE] = "mine"

        with use_plugins(plugin(lambda_task_sending)):
            handle = leave_effect.execute_on_commit(name="a")
        record = event_record(queue.pop())
        assert record["messageAttributes"][MESSAGE_ID_ATTRIBUTE]["stringValue"] == handle.message_id

    def test_added_attributes_are_validated(self, settings: Any) -> None:
        def lambda_task_sending(job: Job) -> None:
            job.attributes["no name for SQS"] = "a"

        settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
        with use_plugins(plugin(lambda_task_sending)), pytest.raises(ValueError, match="has a name that SQS rejects"):
            leave_effect.execute_on_commit(name="a")

    def test_hook_precedes_the_check_of_the_queue(self, witness: Witness) -> None:
        with pytest.raises(UnknownQueue):
            leave_effect.using(queue="gone").execute_on_commit(name="a")
        assert witness.names == ["sending"]

    def test_exception_refuses_the_job(self) -> None:
        def lambda_task_sending(job: Job) -> None:
            raise Refused(job.task_name)

        with use_plugins(plugin(lambda_task_sending)), atomic():
            with pytest.raises(Refused, match="leave_effect"):
                leave_effect.execute_on_commit(name="a")
            Effect.objects.create(name="the caller goes on")
        assert queue == []
        assert effects() == ["the caller goes on"]

    def test_hook_of_a_retry_has_no_transaction(self, witness: Witness) -> None:
        record = record_of(leave_effect_and_raise, error="Refused")
        handle(record)
        job = witness.arguments_of("lambda_task_sending")[-1]["job"]
        assert (job.message.n_retries, job.root_id) == (1, record["messageId"])
        assert witness.was_in_transaction("lambda_task_sending")[-1] is False

    def test_refused_retry_leaves_its_message_on_queue(self) -> None:
        refuses = True

        def lambda_task_sending(job: Job) -> None:
            if refuses and job.message.n_retries:
                raise Refused

        with use_plugins(plugin(lambda_task_sending)):
            record = record_of(leave_effect_and_raise, error="Refused")
            assert handle(record) == [record["messageId"]]
            assert TaskRecord.objects.get().status == "RUNNING"
            assert queue == []

            refuses = False
            assert handle(record) == []
        assert TaskRecord.objects.get().status == "RETRYING"
        assert [job.message.n_retries for job in queue] == [1]


@runs_tasks
class TestLambdaTaskSent:
    def test_hook_is_called_after_the_commit(self, witness: Witness) -> None:
        with atomic():
            leave_effect.execute_on_commit(name="a")
            leave_effect.execute_on_commit(name="b")
            assert witness.arguments_of("lambda_task_sent") == []
        jobs = [arguments["job"] for arguments in witness.arguments_of("lambda_task_sent")]
        assert jobs == queue
        assert witness.was_in_transaction("lambda_task_sent") == [False, False]

    def test_hook_is_not_called_after_a_rollback(self, witness: Witness) -> None:
        with atomic():
            leave_effect.execute_on_commit(name="a")
            connection.set_rollback(True)
        assert witness.arguments_of("lambda_task_sent") == []

    def test_hook_is_not_called_for_refused_jobs(self, witness: Witness) -> None:
        with (
            override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.FullQueue"),
            pytest.raises(ConnectionError),
        ):
            leave_effect.execute_on_commit(name="a")
        assert witness.names == ["sending"]

    def test_hook_precedes_the_record_of_a_retry(self) -> None:
        statuses = []

        def lambda_task_sent(job: Job) -> None:
            statuses.extend(TaskRecord.objects.values_list("status", flat=True))

        with use_plugins(plugin(lambda_task_sent)):
            handle(record_of(leave_effect_and_raise, error="Refused"))
        assert statuses == ["RUNNING"]

    def test_eager_mode_calls_it_on_queueing(self, witness: Witness) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True), atomic():
            leave_effect.execute_on_commit(name="a")
            leave_effect.execute_on_commit(name="b")
        assert witness.names[:5] == ["sending", "sending", "sent", "sent", "started"]


@runs_tasks
class TestLambdaTaskUnsent:
    @pytest.mark.parametrize(
        ("transport", "error", "dead"), [(FullQueue, ConnectionError, False), (PickyQueue, ValueError, True)]
    )
    def test_hook_receives_message_error_and_finality(
        self, witness: Witness, transport: type[MemoryBackend], error: type[Exception], dead: bool
    ) -> None:
        with behind_outbox(transport), atomic():
            handles = [leave_effect.using(queue="other").execute_on_commit(name=name) for name in "ab"]
            assert witness.arguments_of("lambda_task_unsent") == []
        arguments = witness.arguments_of("lambda_task_unsent")
        assert [details["message_id"] for details in arguments] == [handle.message_id for handle in handles]
        for details in arguments:
            assert (details["task_name"], details["queue"]) == (leave_effect.name, "other")
            assert type(details["error"]) is error
            assert details["dead"] is dead

    def test_hook_is_called_after_the_write_committed(self) -> None:
        seen = []

        def lambda_task_unsent(message_id: str) -> None:
            seen.append((connection.in_atomic_block, OutboxMessage.objects.get(pk=message_id).attempts))

        with use_plugins(plugin(lambda_task_unsent)), behind_outbox(FullQueue), atomic():
            leave_effect.execute_on_commit(name="a")
        assert seen == [(False, 1)]

    def test_hook_is_called_for_each_relay_attempt(self, witness: Witness) -> None:
        with behind_outbox(FullQueue):
            leave_effect.execute_on_commit(name="a")
            for _ in range(2):
                OutboxMessage.objects.update(due_at=Now())
                handler({"lambda_tasks": "maintenance"}, None)
        assert len(witness.arguments_of("lambda_task_unsent")) == 3
        assert witness.was_in_transaction("lambda_task_unsent") == [False] * 3

    def test_hook_requires_a_failure_and_an_outbox(self, witness: Witness) -> None:
        with override_settings(LAMBDA_TASKS_OUTBOX=True):
            leave_effect.execute_on_commit(name="a")
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.FullQueue"), pytest.raises(ConnectionError):
            leave_effect.execute_on_commit(name="b")
        assert witness.names == ["sending", "sent", "sending"]


@runs_tasks
class TestLambdaTaskResolve:
    @staticmethod
    def renamed(message_name: str = "shop.old.leave_effect") -> dict[str, Any]:
        record = record_of(leave_effect, name="a")
        return record | {"body": record["body"].replace(leave_effect.name, message_name)}

    def test_hook_can_replace_the_registrys_task(self) -> None:
        def lambda_task_resolve(task_name: str) -> Any:
            return leave_effect if task_name == "shop.old.leave_effect" else None

        with use_plugins(plugin(lambda_task_resolve)):
            assert handle(self.renamed(), record_of(leave_effect, name="b")) == []
        assert effects() == ["a", "b"]
        assert set(TaskRecord.objects.values_list("task_name", flat=True)) == {
            "shop.old.leave_effect",
            leave_effect.name,
        }

    def test_first_result_wins(self) -> None:
        def answering(task: Any) -> Any:
            def lambda_task_resolve(task_name: str) -> Any:
                return task

            return plugin(lambda_task_resolve)

        with use_plugins(answering(None), answering(leave_effect), answering(alone)):
            handle(self.renamed())
        assert effects() == ["a"]

    def test_hook_is_called_first(self) -> None:
        records = []

        def lambda_task_resolve(task_name: str) -> None:
            records.append(TaskRecord.objects.count())

        with use_plugins(plugin(lambda_task_resolve)):
            handle(record_of(leave_effect, name="a"))
        assert records == [0]

    def test_malformed_message_does_not_call_the_hook(self, witness: Witness) -> None:
        handle(record_of(leave_effect, name="a") | {"body": "{}"})
        assert witness.arguments_of("lambda_task_resolve") == []

    def test_exception_returns_the_message_without_a_record(self) -> None:
        def lambda_task_resolve(task_name: str) -> None:
            raise Refused

        record = record_of(leave_effect, name="a")
        with use_plugins(plugin(lambda_task_resolve)):
            assert handle(record) == [record["messageId"]]
        assert not TaskRecord.objects.exists()
        assert handle(record) == []

    def test_task_is_unknown_without_a_result(self) -> None:
        with pytest.raises(UnknownTask):
            hooks().lambda_task_resolve(task_name="shop.old.leave_effect")


@runs_tasks
class TestLambdaTaskSkipped:
    def test_copy_of_finished_work_is_acknowledged(self, witness: Witness) -> None:
        record = record_of(leave_effect, name="a")
        handle(record)
        assert handle(record | {"messageId": "a copy"}) == []
        assert witness.arguments_of("lambda_task_skipped") == [
            {"message_id": record["messageId"], "reason": "finished"}
        ]

    def test_copy_of_running_work_stays_on_queue(self, witness: Witness) -> None:
        record = record_of(leave_effect, name="a")
        claimed_elsewhere(record, lease=60)
        assert handle(record) == [record["messageId"]]
        assert witness.arguments_of("lambda_task_skipped") == [{"message_id": record["messageId"], "reason": "running"}]
        assert witness.was_in_transaction("lambda_task_skipped") == [False]

    def test_hook_replaces_started_and_finished(self, witness: Witness) -> None:
        record = record_of(leave_effect, name="a")
        claimed_elsewhere(record, lease=60)
        handle(record)
        assert witness.names == ["sending", "sent", "resolve", "skipped", "batch_finished"]


@runs_tasks
class TestLambdaTaskStarted:
    def test_record_is_already_running(self) -> None:
        seen = []

        def lambda_task_started(run: Run) -> None:
            seen.append((run.message_id, *TaskRecord.objects.values_list("pk", "status").get()))

        with use_plugins(plugin(lambda_task_started)):
            record = record_of(leave_effect, name="a")
            handle(record)
        [(message_id, primary_key, status)] = seen
        assert message_id == str(primary_key) == record["messageId"]
        assert status == "RUNNING"

    def test_lock_is_not_taken_yet(self) -> None:
        taken = []

        def lambda_task_started(run: Run) -> None:
            key = LOCK_KEY.format(task_name=run.task_name)
            taken.append(get_lock().acquire(key, token="ours", timeout=5))
            get_lock().release(key, token="ours")

        with (
            override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock"),
            use_plugins(plugin(lambda_task_started)),
        ):
            assert run(alone).status == "SUCCESS"
        assert taken == [True]

    def test_hook_receives_the_run(self, witness: Witness) -> None:
        handle(record_of(leave_effect.using(delay=5), name="a"))
        run = witness.arguments_of("lambda_task_started")[0]["run"]
        assert isinstance(run, Run)
        assert (run.task.function, run.arguments, run.n_retries) == (leave_effect.function, {"name": "a"}, 0)
        assert (run.soft_timeout, run.hard_timeout) == (270, 300)
        assert witness.was_in_transaction("lambda_task_started") == [False]


@runs_tasks
class TestLambdaTaskCall:
    def test_wrapper_sees_the_run_and_result(self) -> None:
        seen = []

        def lambda_task_call(run: Run) -> Generator[None, object, object]:
            result = yield
            seen.append((run.task_name, result))
            return result

        with use_plugins(plugin(lambda_task_call, wrapper=True)):
            assert run(leave_effect, name="a").result == "left a"
        assert seen == [(leave_effect.name, "left a")]

    def test_wrapper_can_replace_the_result(self) -> None:
        def lambda_task_call(run: Run) -> Generator[None, str, str]:
            return (yield).upper()

        with use_plugins(plugin(lambda_task_call, wrapper=True)):
            assert run(leave_effect, name="a").result == "LEFT A"

    def test_first_listed_plugin_is_outermost(self) -> None:
        def wrapping(letter: str) -> Any:
            def lambda_task_call(run: Run) -> Generator[None, str, str]:
                return f"{letter}({(yield)})"

            return plugin(lambda_task_call, wrapper=True)

        with use_plugins(wrapping("a"), wrapping("b"), wrapping("c")):
            assert run(leave_effect, name="x").result == "a(b(c(left x)))"

    def test_writes_of_a_wrapper_commit_with_task(self) -> None:
        def lambda_task_call(run: Run) -> Generator[None, object, object]:
            Effect.objects.create(name="before")
            try:
                return (yield)
            finally:
                Effect.objects.create(name="after")

        with use_plugins(plugin(lambda_task_call, wrapper=True)):
            assert run(leave_effect, name="a").status == "SUCCESS"
            assert effects() == ["before", "a", "after"]
            assert run(leave_effect_and_raise, error="ValueError").status == "FAILED"
            assert effects() == ["before", "a", "after"]

    def test_call_has_transaction_time_limits_and_lock(self) -> None:
        seen = []

        def lambda_task_call(run: Run) -> Generator[None, object, object]:
            left, _ = signal.getitimer(signal.ITIMER_REAL)
            free = get_lock().acquire(LOCK_KEY.format(task_name=run.task_name), token="another", timeout=5)
            seen.append((connection.in_atomic_block, 0 < left <= run.soft_timeout, free))
            return (yield)

        with (
            override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock"),
            use_plugins(plugin(lambda_task_call, wrapper=True)),
        ):
            assert run(alone).status == "SUCCESS"
        assert seen == [(True, True, False)]

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize(
        ("error", "status"), [(Refused, "RETRYING"), (Missing, "SUCCESS"), (ValueError, "FAILED")], ids=str
    )
    def test_exception_counts_as_the_tasks_own(self, when: str, error: type[Exception], status: str) -> None:
        @lambda_task(retry_on=[Refused], ignore_errors=[Missing])
        def quiet() -> None:
            Effect.objects.create(name="a")

        def lambda_task_call(run: Run) -> Generator[None, object, object]:
            if when == "before":
                raise error
            yield
            raise error

        with use_plugins(plugin(lambda_task_call, wrapper=True)):
            record = run(quiet)
        assert record.status == status
        assert error.__name__ in str(record.traceback)
        assert effects() == []

    def test_wrapper_can_turn_error_into_result(self) -> None:
        def lambda_task_call(run: Run) -> Generator[None, object, object]:
            try:
                return (yield)
            except Refused:
                return "never mind"

        with use_plugins(plugin(lambda_task_call, wrapper=True)):
            record = run(leave_effect_and_raise, error="Refused")
        assert (record.status, record.result, effects()) == ("SUCCESS", "never mind", ["Refused"])

    def test_plain_implementation_replaces_the_function(self) -> None:
        """It replaces the function only if it returns a result."""

        def lambda_task_call(run: Run) -> object:
            return "rehearsed" if run.arguments["name"] == "a" else None

        with use_plugins(plugin(lambda_task_call)):
            assert run(leave_effect, name="a").result == "rehearsed"
            assert run(leave_effect, name="b").result == "left b"
        assert effects() == ["b"]

    def test_context_of_a_wrapper_reaches_the_task(self) -> None:
        """The context is reset after the task."""
        tenant: ContextVar[str] = ContextVar("tenant", default="nobody")

        @lambda_task
        def whose() -> str:
            return tenant.get()

        def lambda_task_call(run: Run) -> Generator[None, object, object]:
            tenant.set("Ada")
            return (yield)

        with use_plugins(plugin(lambda_task_call, wrapper=True)):
            assert run(whose).result == "Ada"
        assert tenant.get() == "nobody"
        assert run(whose).result == "nobody"

    def test_async_tasks_are_wrapped(self) -> None:
        @lambda_task
        async def number() -> int:
            return 42

        def lambda_task_call(run: Run) -> Generator[None, int, int]:
            return (yield) + 1

        with use_plugins(plugin(lambda_task_call, wrapper=True)):
            assert run(number).result == 43


def classifying(answer: Callable[[BaseException], Any]) -> Any:
    def lambda_task_classify(run: Run, error: BaseException) -> Any:
        return answer(error)

    return plugin(lambda_task_classify)


def raise_refused(_: BaseException) -> Any:
    raise Refused("in the plugin")


@runs_tasks
class TestLambdaTaskClassify:
    @pytest.mark.parametrize(
        ("answer", "status"),
        [
            (Ignored, "SUCCESS"),
            (Failed, "FAILED"),
            (Retry, "RETRYING"),
            (lambda error: Failed(LookupError("said otherwise")), "FAILED"),
        ],
    )
    def test_result_decides(self, answer: Callable[[BaseException], Outcome], status: str) -> None:
        with use_plugins(classifying(answer)):
            for error in ("ValueError", "Refused", "Missing"):
                assert run(leave_effect_and_raise, error=error).status == status
        assert effects() == []

    def test_returned_error_is_recorded(self) -> None:
        with use_plugins(classifying(lambda error: Failed(LookupError("said otherwise")))):
            assert "LookupError: said otherwise" in str(run(leave_effect_and_raise, error="Missing").traceback)

    def test_hook_can_choose_the_retry_delay(self, witness: Witness) -> None:
        with use_plugins(classifying(lambda error: Retry(error, delay=60)), witness):
            run(leave_effect_and_raise, error="ValueError")
        assert [job.delay for job in queue] == [60]
        assert witness.arguments_of("lambda_task_retry_delay") == []

    def test_options_decide_without_a_usable_result(self) -> None:
        unusable: list[Callable[[BaseException], Any]] = [
            lambda error: None,
            raise_refused,
            lambda error: Succeeded(),
            lambda error: True,
            lambda error: "retry",
            lambda error: Retry,
            lambda error: error,
        ]
        for answer in unusable:
            with use_plugins(classifying(answer)):
                statuses = [
                    run(leave_effect_and_raise, error=error).status for error in ("ValueError", "Refused", "Missing")
                ]
            assert statuses == ["FAILED", "RETRYING", "SUCCESS"]

    def test_exception_is_logged_and_next_plugin_called(self, caplog: pytest.LogCaptureFixture) -> None:
        with use_plugins(classifying(raise_refused), classifying(lambda error: "nonsense"), classifying(Ignored)):
            assert run(leave_effect_and_raise, error="ValueError").status == "SUCCESS"
        raised, nonsensical = (entry.getMessage() for entry in caplog.records if entry.name == "lambda_tasks.plugins")
        assert re.fullmatch("Plugin .* raised an exception in lambda_task_classify. The next plugin is called.", raised)
        assert re.fullmatch(
            "Plugin .* returned an invalid value from lambda_task_classify: 'nonsense'. The next .*", nonsensical
        )

    def test_transaction_is_rolled_back_before(self) -> None:
        seen = []

        def answer(error: BaseException) -> None:
            seen.append((type(error), connection.in_atomic_block, effects()))

        with use_plugins(classifying(answer)):
            run(leave_effect_and_raise, error="Refused")
        assert seen == [(Refused, False, [])]

    def test_hook_classifies_a_held_lock(self) -> None:
        with (
            override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock"),
            use_plugins(classifying(lambda error: Ignored(error) if isinstance(error, LockError) else None)),
        ):
            get_lock().acquire(LOCK_KEY.format(task_name=alone.name), token="another", timeout=5)
            assert run(alone).status == "SUCCESS"
        assert queue == []

    def test_hook_classifies_a_failed_commit(self) -> None:
        asked = []

        @lambda_task
        def leave_dangling() -> None:
            # COMMIT checks it: foreign keys are deferred, except on MariaDB.
            Permission.objects.create(name="a", codename="a", content_type_id=999_999)

        with use_plugins(classifying(lambda error: asked.append(type(error)))):
            assert run(leave_dangling).status == "FAILED"
        assert asked == [IntegrityError]

    def test_success_is_not_classified(self, witness: Witness) -> None:
        run(leave_effect, name="a")
        assert witness.arguments_of("lambda_task_classify") == []

    def test_hook_cannot_retry_indefinitely(self) -> None:
        with use_plugins(classifying(Retry)), override_settings(LAMBDA_TASKS_MAX_RETRIES=0):
            record = run(leave_effect_and_raise, error="ValueError")
        assert record.status == "FAILED"
        assert MaxRetriesExceededError.__name__ in str(record.traceback)

    @pytest.mark.parametrize("options", [{"wrapper": True}, {"hookwrapper": True}], ids=str)
    def test_wrapper_is_refused(self, options: dict[str, bool]) -> None:
        def lambda_task_classify(run: Run) -> Generator[None, Outcome, Outcome]:
            return (yield)

        with (
            use_plugins(plugin(lambda_task_classify, **options)),
            pytest.raises(ImproperlyConfigured, match="must not wrap lambda_task_cl"),
        ):
            hooks()


def delaying(answer: Callable[[], Any]) -> Any:
    def lambda_task_retry_delay(run: Run, error: BaseException) -> Any:
        return answer()

    return plugin(lambda_task_retry_delay)


@runs_tasks
class TestLambdaTaskRetryDelay:
    def test_result_is_clamped_to_the_sqs_limits(self, witness: Witness) -> None:
        for answer, delay in ((0, 0), (60, 60), (900, 900), (901, 900), (10**6, 900), (-5, 0)):
            with use_plugins(delaying(lambda answer=answer: answer), witness):
                run(leave_effect_and_raise, error="Refused")
            assert queue.pop().delay == delay
            outcome = witness.arguments_of("lambda_task_finished")[-1]["outcome"]
            assert isinstance(outcome, Retry)
            assert outcome.delay == delay

    def test_options_and_jitter_decide_without_usable_result(self) -> None:
        for answer in (None, "60", 1.5, (), [60]):
            with use_plugins(delaying(lambda answer=answer: answer)):
                run(leave_effect_and_raise, error="Refused")
            assert 7 + 1 <= queue.pop().delay <= 7 + 5

    def test_exception_is_logged_and_next_plugin_called(self, caplog: pytest.LogCaptureFixture) -> None:
        def raising() -> None:
            raise Refused

        with use_plugins(delaying(raising), delaying(lambda: 33)):
            run(leave_effect_and_raise, error="Refused")
        assert [job.delay for job in queue] == [33]
        assert "raised an exception in lambda_task_retry_delay. The next plugin is called" in caplog.text

    def test_hook_receives_run_and_error_without_transaction(self, witness: Witness) -> None:
        run(leave_effect_and_raise, error="Refused")
        [arguments] = witness.arguments_of("lambda_task_retry_delay")
        assert isinstance(arguments["run"], Run)
        assert isinstance(arguments["error"], Refused)
        assert witness.was_in_transaction("lambda_task_retry_delay") == [False]

    def test_hook_is_called_for_a_held_lock(self) -> None:
        with (
            override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock"),
            use_plugins(delaying(lambda: 44)),
        ):
            get_lock().acquire(LOCK_KEY.format(task_name=alone.name), token="another", timeout=5)
            assert run(alone).status == "RETRYING"
        assert [job.delay for job in queue] == [44]

    def test_hook_is_called_only_for_retries(self, witness: Witness) -> None:
        run(leave_effect_and_raise, error="ValueError")
        run(leave_effect_and_raise, error="Missing")
        run(leave_effect, name="a")
        assert witness.arguments_of("lambda_task_retry_delay") == []


@runs_tasks
class TestLambdaTaskFinished:
    @pytest.mark.parametrize(
        ("task", "arguments", "outcome", "status"),
        [
            (leave_effect, {"name": "a"}, Succeeded, "SUCCESS"),
            (leave_effect_and_raise, {"error": "Missing"}, Ignored, "SUCCESS"),
            (leave_effect_and_raise, {"error": "Refused"}, Retry, "RETRYING"),
            (leave_effect_and_raise, {"error": "ValueError"}, Failed, "FAILED"),
        ],
        ids=["success", "ignored", "retry", "failure"],
    )
    def test_outcome_is_recorded_and_retry_sent_before(
        self, task: Any, arguments: dict[str, str], outcome: type[Outcome], status: str
    ) -> None:
        seen = []

        def lambda_task_finished(run: Run, outcome: Outcome) -> None:
            in_transaction = connection.in_atomic_block
            seen.append((type(outcome), TaskRecord.objects.get(pk=run.message_id).status, in_transaction))
            assert len(queue) == isinstance(outcome, Retry)

        with use_plugins(plugin(lambda_task_finished)):
            run(task, **arguments)
        assert seen == [(outcome, status, False)]

    def test_outcome_has_the_result_or_error(self, witness: Witness) -> None:
        run(leave_effect, name="a")
        run(leave_effect_and_raise, error="ValueError")
        succeeded, failed = (arguments["outcome"] for arguments in witness.arguments_of("lambda_task_finished"))
        assert succeeded == Succeeded("left a")
        assert isinstance(failed.error, ValueError)

    def test_hook_is_called_after_too_many_crashes(self, witness: Witness) -> None:
        record = record_of(leave_effect, name="a")
        claimed_elsewhere(record, lease=-1)
        with override_settings(LAMBDA_TASKS_MAX_TAKEOVERS=0):
            assert handle(record) == []
        [arguments] = witness.arguments_of("lambda_task_finished")
        assert isinstance(arguments["outcome"].error, TaskCrashedError)
        assert witness.arguments_of("lambda_task_started") == []

    def test_hook_is_not_called_for_kept_messages(self, witness: Witness) -> None:
        record = record_of(leave_effect_and_raise, error="Refused")
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.FullQueue"):
            assert handle(record) == [record["messageId"]]
        assert witness.arguments_of("lambda_task_finished") == []


@runs_tasks
class TestLambdaTaskReturned:
    def test_hook_is_called_for_kept_messages(self, witness: Witness) -> None:
        record = record_of(leave_effect_and_raise, error="Refused")
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.FullQueue"):
            assert handle(record) == [record["messageId"]]
        [arguments] = witness.arguments_of("lambda_task_returned")
        assert (arguments["run"].message_id, type(arguments["error"])) == (record["messageId"], Redeliver)
        assert witness.names[-2:] == ["returned", "batch_finished"]
        assert witness.was_in_transaction("lambda_task_returned") == [False]

    def test_hook_is_not_called_without_a_claim(self, witness: Witness) -> None:
        record = record_of(leave_effect, name="a")
        claimed_elsewhere(record, lease=60)
        assert handle(record) == [record["messageId"]]
        assert witness.arguments_of("lambda_task_returned") == []


@runs_tasks
class TestLambdaTaskBatchFinished:
    def test_hook_receives_the_event_and_response(self, witness: Witness) -> None:
        event = {"Records": [record_of(leave_effect, name="a"), record_of(leave_effect, name="b") | {"body": "{"}]}
        response = handler(event, None)
        assert witness.arguments_of("lambda_task_batch_finished") == [
            {"event": event, "response": response, "deadline": None}
        ]
        assert len(response["batchItemFailures"]) == 1
        assert witness.was_in_transaction("lambda_task_batch_finished") == [False]

    @pytest.mark.parametrize("event", [{"Records": []}, {"lambda_tasks": "ping"}])
    def test_hook_receives_the_deadline(
        self, witness: Witness, event: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deadline = time.monotonic() + 900
        monkeypatch.setattr(handler_module, "deadline_of", lambda context: deadline)
        handler(event, None)
        assert [each["deadline"] for each in witness.arguments_of("lambda_task_batch_finished")] == [deadline]

    def test_hook_is_called_after_each_invocation(self, witness: Witness) -> None:
        handle()
        handle(record_of(leave_effect, name="a"), record_of(leave_effect, name="b"))
        assert witness.names.count("batch_finished") == 2
        assert witness.names[-1] == "batch_finished"

    def test_invalid_event_does_not_call_the_hook(self, witness: Witness) -> None:
        with pytest.raises(InvalidEvent):
            handler({"detail": {}}, None)
        assert witness.arguments_of("lambda_task_batch_finished") == []


# Selection of plugins

called: list[str] = []


@hookimpl
def lambda_task_batch_finished(event: Mapping[str, Any], response: Mapping[str, Any]) -> None:
    """Make this module a plugin."""
    called.append("module")


class Listening:
    def __init__(self, name: str = "class") -> None:
        self.name = name

    @hookimpl
    def lambda_task_batch_finished(self) -> None:
        called.append(self.name)


listening = Listening("object")


class NeedsArguments(Listening):
    def __init__(self, name: str) -> None:
        super().__init__(name)


class Misspelt:
    @hookimpl
    def lambda_task_stated(self, run: Run) -> None: ...


class WrongArgument:
    @hookimpl
    def lambda_task_started(self, job: Job) -> None: ...


class Unmarked:
    def lambda_task_started(self, run: Run) -> None: ...


class TestLoading:
    @pytest.mark.parametrize(
        ("chosen", "name"),
        [
            (__name__, "module"),
            (f"{__name__}.listening", "object"),
            (f"{__name__}.Listening", "class"),
            (sys.modules[__name__], "module"),
            (listening, "object"),
            (Listening, "class"),
        ],
        ids=["path of a module", "path of an object", "path of a class", "module", "object", "class"],
    )
    def test_plugin_is_a_module_object_or_class(self, chosen: Any, name: str) -> None:
        called.clear()
        with use_plugins(chosen):
            handle()
        handle()
        assert called == [name]

    def test_plugins_are_called_in_listed_order(self) -> None:
        called.clear()
        with use_plugins(*map(Listening, "abc")):
            handle()
        assert called == ["a", "b", "c"]

    def test_implementation_can_be_first_or_last(self) -> None:
        def last() -> None:
            called.append("last")

        def first() -> None:
            called.append("first")

        last.__name__ = first.__name__ = "lambda_task_batch_finished"
        called.clear()
        with use_plugins(plugin(last, trylast=True), Listening("middle"), plugin(first, tryfirst=True)):
            handle()
        assert called == ["first", "middle", "last"]

    def test_implementation_may_omit_arguments(self) -> None:
        sizes = []

        def lambda_task_batch_finished(response: Mapping[str, Any]) -> None:
            sizes.append(len(response["batchItemFailures"]))

        with use_plugins(plugin(lambda_task_batch_finished)):
            handle()
        assert sizes == [0]

    @pytest.mark.parametrize(
        ("chosen", "sentence"),
        [
            (
                Misspelt(),
                "implements a hook that does not exist: .*lambda_task_stated.* The hooks are: .*lambda_task_started",
            ),
            (Misspelt, "implements a hook that does not exist: .*lambda_task_stated"),
            (f"{__name__}.Misspelt", "implements a hook that does not exist: .*lambda_task_stated"),
            (WrongArgument(), "(?s)cannot be used: .*'job'"),
            (Unmarked(), "cannot be used: it does not implement a hook; mark its functions with @hookimpl"),
            ("shop.plugins", "contains 'shop.plugins', which cannot be used: No module named 'shop'"),
            (f"{__name__}.Nothing", "which cannot be used: .*Nothing"),
            (
                "lambda_tasks.settings",
                "contains 'lambda_tasks.settings', which cannot be used: it does not implement a hook",
            ),
            ("lambda_tasks.contrib.emf", "a hook; name its class, as in lambda_tasks.contrib.emf.EmfMetrics"),
            (NeedsArguments, "which cannot be used: .*missing 1 required positional argument: 'name'"),
            (42, "contains 42, which cannot be used: it does not implement a hook"),
        ],
        ids=lambda value: str(value).partition(" object at ")[0],
    )
    def test_invalid_plugin_is_an_error_at_startup(self, chosen: Any, sentence: str) -> None:
        with use_plugins(chosen), pytest.raises(ImproperlyConfigured, match=sentence):
            apps.get_app_config("lambda_tasks").ready()

    def test_repeated_plugin_is_an_error(self) -> None:
        with use_plugins(listening, listening), pytest.raises(ImproperlyConfigured, match="which cannot be used"):
            hooks()

    def test_failed_startup_registers_no_plugin(self) -> None:
        with use_plugins(Listening("a"), Misspelt()):
            for _ in range(2):  # the same error, not one about a repeated registration
                with pytest.raises(ImproperlyConfigured, match="implements a hook that does not exist"):
                    hooks()
        called.clear()
        with use_plugins(Listening("a"), Misspelt()), pytest.raises(ImproperlyConfigured):
            hooks()
        with use_plugins(Listening("b")):
            handle()
        assert called == ["b"]

    def test_default_plugin_answers_without_plugins(self) -> None:
        with use_plugins():
            assert hooks().lambda_task_resolve(task_name=leave_effect.name) is registry.known_task(leave_effect.name)
