"""Tasks that an unsuccessful task had enqueued are dropped with its transaction, and its log and record name them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.db import OperationalError, transaction
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Outcome, Skipped
from lambda_tasks.recording.tracebacks import dropped_text
from lambda_tasks.sending.outgoing import NotedNames
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation

pytestmark = pytest.mark.django_db(transaction=True)

SENTENCE = "not sent, because the transaction was rolled back: "


@lambda_task
def release(*, order: str) -> None: ...


@lambda_task
def notify(*, order: str) -> None: ...


def enqueue_both() -> None:
    release.execute_on_commit(order="hunter2")
    notify.execute_on_commit(order="hunter2")
    release.execute_on_commit(order="hunter2")


@lambda_task(retry_on=(ConnectionError,), ignore_errors=(KeyError,))
def ship(*, error: str) -> object:
    enqueue_both()
    if error == "ValueError":
        raise ValueError("the carrier refuses")
    if error == "KeyError":
        raise KeyError("address")
    if error == "ConnectionError":
        raise ConnectionError("the carrier does not answer")
    return object() if error == "result" else None


@lambda_task
def fail() -> None:
    raise ValueError("nothing was enqueued")


@lambda_task
def fail_in_savepoint() -> None:
    with transaction.atomic():
        release.execute_on_commit(order="hunter2")
        raise ValueError("rolls back to the savepoint, and then everything")


@lambda_task
def drop_in_savepoint() -> None:
    try:
        with transaction.atomic():
            release.execute_on_commit(order="hunter2")
            raise ValueError("rolls back to the savepoint")
    except ValueError:
        notify.execute_on_commit(order="hunter2")


conflicts: list[bool] = []


@lambda_task
def conflict_and_fail() -> None:
    release.execute_on_commit(order="hunter2")
    if not conflicts:
        conflicts.append(True)
        raise OperationalError("database is locked")
    raise ValueError("after the conflict")


@pytest.fixture(autouse=True)
def _clear() -> None:
    jobs().clear()
    conflicts.clear()


def jobs() -> list[Any]:
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    return backend.jobs


def run(task: Any, **kwargs: Any) -> Outcome | Skipped:
    return execute(Invocation(task.name, kwargs), message_id=new_message_id())


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    messages = [(record.levelno, record.getMessage()) for record in caplog.records]
    return [(level, message) for level, message in messages if SENTENCE in message]


class TestUnsuccessfulTask:
    @pytest.mark.parametrize(
        ("error", "status", "level"),
        [
            ("ValueError", "FAILED", logging.WARNING),
            ("result", "FAILED", logging.WARNING),
            ("KeyError", "SUCCESS", logging.WARNING),
            ("ConnectionError", "RETRYING", logging.INFO),
        ],
    )
    def test_log_and_record_name_the_dropped_tasks(
        self, error: str, status: str, level: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        run(ship, error=error)
        expected = f"3 enqueued tasks were {SENTENCE}{release.name} (2), {notify.name}."

        record = TaskRecord.objects.get()
        assert record.status == status
        assert record.traceback is not None
        assert record.traceback.endswith(f"\n\n{expected}\n")
        [(logged_at, message)] = said(caplog)
        assert logged_at == level
        assert message.endswith(f"{ship.name}: {expected}")
        assert "hunter2" not in record.traceback + caplog.text

    def test_savepoint_of_the_error_is_included(self) -> None:
        run(fail_in_savepoint)
        assert f"1 enqueued task was {SENTENCE}{release.name}." in str(TaskRecord.objects.get().traceback)

    def test_only_the_last_attempt_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A conflict with another transaction has the task run again."""
        monkeypatch.setattr("lambda_tasks.execution.pipeline.is_conflict", lambda error: True)
        run(conflict_and_fail)
        assert conflicts == [True]
        assert f"1 enqueued task was {SENTENCE}{release.name}." in str(TaskRecord.objects.get().traceback)

    def test_task_that_enqueued_nothing_has_no_sentence(self, caplog: pytest.LogCaptureFixture) -> None:
        run(fail)
        assert SENTENCE not in str(TaskRecord.objects.get().traceback)
        assert said(caplog) == []

    @pytest.mark.databases("sqlite", transaction=True)
    def test_sent_tasks_are_not_named(self, database: str) -> None:
        """Without a transaction on their database, they are sent at the call; otherwise after its commit."""

        @lambda_task
        def send_and_fail() -> None:
            release.using(database=database).execute_on_commit(order="a")
            with transaction.atomic(using=database):
                release.using(database=database).execute_on_commit(order="b")
            notify.execute_on_commit(order="c")
            raise ValueError("after both were sent")

        run(send_and_fail)
        assert len(jobs()) == 2
        assert f"1 enqueued task was {SENTENCE}{notify.name}." in str(TaskRecord.objects.get().traceback)


class TestSuccessfulTask:
    @pytest.mark.parametrize("task", [ship, drop_in_savepoint])
    def test_success_names_no_tasks(self, task: Any, caplog: pytest.LogCaptureFixture) -> None:
        run(task, **({"error": ""} if task is ship else {}))
        assert TaskRecord.objects.get().status == "SUCCESS"
        assert said(caplog) == []


class TestNesting:
    def test_inner_run_belongs_to_the_outer_one(self) -> None:
        """The inner run's tasks wait for the outer transaction."""

        @lambda_task
        def outer() -> None:
            run(ship, error="")
            raise ValueError("rolls everything back")

        run(outer)
        assert f"3 enqueued tasks were {SENTENCE}" in str(TaskRecord.objects.get(task_name=outer.name).traceback)

    def test_eager_task_names_its_dropped_tasks(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            ship.execute_on_commit(error="ValueError")
        assert SENTENCE in str(TaskRecord.objects.get().traceback)

    def test_outer_block_is_restored(self) -> None:
        names: dict[str, str] = {}
        with transaction.atomic(), NotedNames(names):
            with NotedNames({}):
                pass
            release.execute_on_commit(order="a")
            assert list(names.values()) == [release.name]
            transaction.set_rollback(True)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["a.b"], "1 enqueued task was not sent, because the transaction was rolled back: a.b."),
        (
            ["a.b", "a.c", "a.c"],
            "3 enqueued tasks were not sent, because the transaction was rolled back: a.c (2), a.b.",
        ),
        ([f"a.b{i}" for i in range(12)], ", a.b9 and 2 other names."),
        (["a.b"] * 5_000, "5000 enqueued tasks were not sent, because the transaction was rolled back: a.b (5000)."),
    ],
)
def test_sentence_counts_each_name(names: list[str], sentence: str) -> None:
    assert dropped_text(names).endswith(sentence)
