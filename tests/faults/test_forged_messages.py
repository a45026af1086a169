"""Test messages with the ids of other invocations: they stay on the queue and change no record."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.locking import LOCK_KEY
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.strategies import get_lock
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.faults.workers import EVERYWHERE, ON_DEFAULT, backend, effects, leave_effect, lost_record, record_of, records

pytestmark = pytest.mark.usefixtures("empty_queue")

OLD_NAME = "tests.faults.test_forged_messages.before"
ran: list[str] = []


@lambda_task
def harmless(*, name: str = "") -> None:
    ran.append(f"harmless {name}")


@lambda_task(aliases=[OLD_NAME])
def moved(*, name: str) -> None:
    ran.append(f"moved {name}")


@lambda_task(singleton=True)
def alone(*, name: str) -> None:
    ran.append(f"alone {name}")


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


def send(
    task: Any, message_id: str, *, root_id: str | None = None, n_retries: int = 0, name: str = "a", as_name: str = ""
) -> bool:
    """Deliver a message to the handler, and return whether it was acknowledged."""
    message = Invocation(task_name=as_name or task.name, kwargs={"name": name}, n_retries=n_retries)
    record = event_record(Job(message, message_id, root_id=root_id or message_id))
    return handler({"Records": [record]}, None) == {"batchItemFailures": []}


def warnings_in(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestForgedRetries:
    def test_retry_without_the_derived_id_ends_no_record(self, caplog: pytest.LogCaptureFixture) -> None:
        dead = lost_record()
        assert not send(leave_effect, ids.new_message_id(), root_id=dead, n_retries=1)
        assert record_of(dead).status == "RUNNING"
        assert records().count() == 1
        [warning] = warnings_in(caplog)
        assert warning.endswith(f"it claims to be retry 1 of {dead}, but its id is not the id of that retry.")
        assert send(leave_effect, dead)
        assert (record_of(dead).status, effects()) == ("SUCCESS", ["a"])

    @pytest.mark.parametrize(("task", "name"), [(harmless, "a"), (leave_effect, "b")], ids=["task", "arguments"])
    def test_retry_of_other_work_ends_no_record(self, task: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
        dead = lost_record()
        assert not send(task, ids.retry_id(dead, 1), root_id=dead, n_retries=1, name=name)
        assert record_of(dead).status == "RUNNING"
        assert records().count() == 1
        [warning] = warnings_in(caplog)
        assert "stays on the queue" in warning
        assert "the record of the invocation that it claims to retry" in warning

    def test_retry_of_a_waiting_invocation_leaves_no_record(self) -> None:
        """Its id is not the derived id."""
        waiting = ids.new_message_id()
        assert not send(harmless, ids.new_message_id(), root_id=waiting, n_retries=1)
        assert not records().exists()
        assert send(leave_effect, waiting)
        assert effects() == ["a"]


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestReusedIds:
    @pytest.mark.parametrize("status", ["RUNNING", "SUCCESS", "FAILED", "RETRYING"])
    @pytest.mark.parametrize("ago", [timedelta(minutes=-5), timedelta(hours=5)], ids=["alive", "over"])
    @pytest.mark.parametrize(("task", "name"), [(harmless, "a"), (leave_effect, "b")], ids=["task", "arguments"])
    def test_second_invocation_is_neither_run_nor_acknowledged(
        self, status: str, ago: timedelta, task: Any, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = lost_record(status=status, ago=ago)
        before = list(records().values())
        assert not send(task, first, name=name)
        assert list(records().values()) == before
        assert (ran, effects()) == ([], [])
        [warning] = warnings_in(caplog)
        assert "the record of its id" in warning

    def test_warning_quotes_no_argument(self, caplog: pytest.LogCaptureFixture) -> None:
        first = lost_record(kwargs={"name": "of the record"})
        assert not send(leave_effect, first, name="of the message")
        assert "has different arguments" in caplog.text
        assert "of the record" not in caplog.text
        assert "of the message" not in caplog.text


@ON_DEFAULT
class TestMatchingMessages:
    def test_renamed_task_takes_over_its_own_record(self) -> None:
        for recorded, sent in ((OLD_NAME, moved.name), (moved.name, OLD_NAME)):
            dead = lost_record(recorded)
            assert send(moved, dead, as_name=sent)
            assert record_of(dead).status == "SUCCESS"
        assert ran == ["moved a"] * 2

    def test_messages_of_older_versions_run(self) -> None:
        """They have a number of retries, and the id of SQS instead of their own."""
        for n_retries in (0, 1, 5):
            message = Invocation(task_name=harmless.name, kwargs={}, n_retries=n_retries)
            record = event_record(Job(message, ids.new_message_id(), root_id=""))
            assert handler({"Records": [record | {"messageAttributes": {}}]}, None) == {"batchItemFailures": []}
        assert ran == ["harmless "] * 3

    def test_record_without_arguments_fits_required_arguments(self) -> None:
        """Only a fixture or another version of the library writes such a record."""
        dead = lost_record(kwargs={})
        assert send(leave_effect, dead)
        assert record_of(dead).status == "SUCCESS"

    def test_record_without_arguments_misfits_task_without_required_arguments(self) -> None:
        dead = lost_record(harmless, kwargs={})
        assert not send(harmless, dead)


@ON_DEFAULT
class TestEveryStore:
    """Invalid ids are rejected before the store is called."""

    @pytest.fixture(autouse=True)
    def _null_store(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = "lambda_tasks.stores.null.NullStore"

    def test_retry_without_the_derived_id_is_not_run(self) -> None:
        root = ids.new_message_id()
        assert not send(harmless, ids.new_message_id(), root_id=root, n_retries=1)
        assert ran == []
        assert send(harmless, ids.retry_id(root, 1), root_id=root, n_retries=1)
        assert ran == ["harmless a"]

    def test_plugins_are_notified_of_the_skipped_delivery(self, settings: Any) -> None:
        told = []

        class Listener:
            @hookimpl
            def lambda_task_skipped(self, message_id: str, reason: str) -> None:
                told.append((message_id, reason))

        settings.LAMBDA_TASKS_PLUGINS = [Listener()]
        message_id = ids.new_message_id()
        send(harmless, message_id, root_id=ids.new_message_id(), n_retries=1)
        assert told == [(message_id, "mismatch")]

    def test_first_invocation_cannot_enter_another_chains_lock(self, settings: Any) -> None:
        """The retries of a chain may acquire its lock again, and a message can name any chain."""
        settings.LAMBDA_TASKS_LOCK = "lambda_tasks.locks.memory.MemoryLock"
        holder = ids.new_message_id()
        key = LOCK_KEY.format(task_name=alone.name)
        assert get_lock().acquire(key, token=holder, timeout=60)
        assert send(alone, ids.new_message_id(), root_id=holder)  # and is retried
        assert ran == []
        assert len(backend().take()) == 1
