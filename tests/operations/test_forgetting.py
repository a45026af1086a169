"""Tasks with `record="failures"` remember a success for a while, so that its message runs once, and then forget it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import pytest
from django.test import override_settings

from lambda_tasks import registry
from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.current import current_task
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.models import TaskProgress, TaskReason, TaskRecord, TaskStatus
from lambda_tasks.operations import forgetting
from lambda_tasks.operations.forgetting import forget
from lambda_tasks.strategies import get_store
from lambda_tasks.testing import TaskQueue
from lambda_tasks.wire.ids import new_message_id
from tests.app.models import Effect
from tests.faults.workers import job_of, stored_in
from tests.operations.test_builtin_tasks import message_of

EVERYWHERE: Final = pytest.mark.databases(transaction=True)
pytestmark = pytest.mark.django_db(transaction=True)

DAY: Final = 86_400


@pytest.fixture
def queue(lambda_tasks_queue: TaskQueue) -> TaskQueue:
    return lambda_tasks_queue


class Again(Exception):
    pass


class Unimportant(Exception):
    pass


@lambda_task(record="failures", retry_on=(Again,), ignore_errors=(Unimportant,))
def brief(*, name: str, error: str = "") -> tuple[str, int]:
    Effect.objects.using(get_store().database).create(name=name)
    task = current_task()
    assert task is not None
    if error == "ignored":
        raise Unimportant
    if error == "retried" and task.attempt == 1:
        raise Again
    if error == "failed":
        raise ValueError(name)
    return name, task.attempt


@lambda_task(record="failures", atomic=False)  # SQLite stores no progress from inside a transaction
def reporting() -> None:
    task = current_task()
    assert task is not None
    task.progress(1, 2)


@lambda_task(record="failures", unique="name", unique_for=2 * DAY)
def once(*, name: str) -> None:
    Effect.objects.create(name=name)


@lambda_task
def usual() -> None: ...


@lambda_task(record="all")
def always() -> None: ...


def statuses() -> list[tuple[str, str]]:
    return sorted(TaskRecord.objects.values_list("status", "reason"))


class TestMarks:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            ("", [("SUCCESS", "not_kept")]),
            ("ignored", [("SUCCESS", "ignored")]),
            ("failed", [("FAILED", "error")]),
            ("retried", [("RETRYING", "error"), ("SUCCESS", "")]),
        ],
    )
    def test_only_an_uneventful_success_is_marked(
        self, queue: TaskQueue, error: str, expected: list[tuple[str, str]]
    ) -> None:
        brief.execute_on_commit(name="a", error=error)
        queue.run_until_idle(raise_errors=False)
        assert statuses() == expected

    @pytest.mark.parametrize(("setting", "expected"), [("all", ""), ("failures", "not_kept")])
    def test_setting_is_the_default(self, queue: TaskQueue, settings: Any, setting: str, expected: str) -> None:
        settings.LAMBDA_TASKS_RECORD = setting
        usual.execute_on_commit()
        always.execute_on_commit()
        queue.run_until_idle()
        assert dict(TaskRecord.objects.values_list("task_name", "reason")) == {usual.name: expected, always.name: ""}

    def test_success_after_a_crash_is_kept(self, queue: TaskQueue) -> None:
        queue.crash_at("task:leave")
        brief.execute_on_commit(name="a")
        queue.run_until_idle()
        assert (statuses(), TaskRecord.objects.get().takeovers) == ([("SUCCESS", "")], 1)

    def test_followed_success_is_kept(self, queue: TaskQueue) -> None:
        brief.using(on_success=usual.invocation()).execute_on_commit(name="a")
        queue.run_until_idle()
        assert dict(TaskRecord.objects.values_list("task_name", "reason"))[brief.name] == ""

    @pytest.mark.parametrize(("forget_after", "expected"), [(DAY, ""), (2 * DAY, "not_kept")])
    def test_success_outlives_its_unique_key(
        self, queue: TaskQueue, settings: Any, forget_after: int, expected: str
    ) -> None:
        settings.LAMBDA_TASKS_FORGET_AFTER = forget_after
        once.execute_on_commit(name="a")
        queue.run_until_idle()
        assert statuses() == [("SUCCESS", expected)]


class TestForgetting:
    @EVERYWHERE
    def test_success_is_forgotten_after_its_time(self, queue: TaskQueue, database: str) -> None:
        with stored_in(database):
            records = TaskRecord.objects.using(database)
            for error in ("", "failed", "ignored"):
                brief.execute_on_commit(name="a", error=error)
            queue.run_until_idle(raise_errors=False)
            queue.advance(DAY - 60)
            assert (forget(), records.count()) == (0, 3)
            queue.advance(120)
            assert (forget(), forget()) == (1, 0)
            left = {(record.status, record.reason) for record in records.all()}
            assert left == {(TaskStatus.FAILED, TaskReason.ERROR), (TaskStatus.SUCCESS, TaskReason.IGNORED)}

    def test_time_counts_from_the_end(self, queue: TaskQueue) -> None:
        brief.execute_on_commit(name="a")
        queue.run_until_idle()
        TaskRecord.objects.update(start_time=TaskRecord.objects.get().start_time - timedelta(days=2))
        assert forget() == 0

    def test_batches_follow_each_other(self, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(forgetting, "BATCH_SIZE", 2)
        for _ in range(5):
            brief.execute_on_commit(name="a")
        queue.run_until_idle()
        queue.advance(DAY + 1)
        assert forget(seconds=0) == 2
        assert forget() == 3

    def test_progress_is_deleted_as_well(self, queue: TaskQueue) -> None:
        reporting.execute_on_commit()
        queue.run_until_idle()
        assert TaskProgress.objects.count() == 1
        queue.advance(DAY + 1)
        assert (forget(), TaskProgress.objects.count()) == (1, 0)

    def test_record_with_a_message_in_the_outbox_stays(self, queue: TaskQueue) -> None:
        brief.execute_on_commit(name="a")
        queue.run_until_idle()
        queue.advance(DAY + 1)
        message_of(TaskRecord.objects.get()).save(force_insert=True)
        assert forget() == 0

    @override_settings(LAMBDA_TASKS_STORE="lambda_tasks.stores.null.NullStore")
    def test_store_without_records_forgets_nothing(self) -> None:
        assert forget() == 0


class TestMaintenance:
    def test_maintenance_forgets_and_counts(self, queue: TaskQueue) -> None:
        brief.execute_on_commit(name="a")
        queue.run_until_idle()
        queue.advance(DAY + 1)
        assert handler({"lambda_tasks": "maintenance"}, None)["forgotten"] == 1
        assert not TaskRecord.objects.exists()

    @pytest.mark.parametrize(("setting", "left"), [("all", 1), ("failures", 0)])
    def test_projects_without_the_option_forget_nothing(
        self, queue: TaskQueue, settings: Any, monkeypatch: pytest.MonkeyPatch, setting: str, left: int
    ) -> None:
        brief.execute_on_commit(name="a")
        queue.run_until_idle()
        queue.advance(DAY + 1)
        settings.LAMBDA_TASKS_RECORD = setting
        monkeypatch.setattr(registry, "_tasks", {usual.name: usual})
        assert ("forgotten" in handler({"lambda_tasks": "maintenance"}, None)) is (not left)
        assert TaskRecord.objects.count() == left


class TestRepetitions:
    """The message of a success comes again."""

    def deliver_again(self, message: dict[str, Any]) -> None:
        assert handler({"Records": [message]}, None) == {"batchItemFailures": []}

    @EVERYWHERE
    @pytest.mark.parametrize("passed", [0, DAY - 60])
    def test_remembered_success_does_not_run_again(self, queue: TaskQueue, database: str, passed: float) -> None:
        with stored_in(database):
            job = job_of(brief, new_message_id(), name="a")
            message = event_record(job)
            self.deliver_again(message)
            queue.advance(passed)
            forget()
            self.deliver_again(message)
            assert Effect.objects.using(database).count() == 1

    def test_worker_dies_after_its_commit(self, queue: TaskQueue) -> None:
        queue.crash_at("finish:after_commit")
        brief.execute_on_commit(name="a")
        queue.run_until_idle()
        assert (Effect.objects.count(), statuses()) == (1, [("SUCCESS", "not_kept")])

    def test_copy_after_the_time_is_new_work(self, queue: TaskQueue) -> None:
        message = event_record(job_of(brief, new_message_id(), name="a"))
        self.deliver_again(message)
        queue.advance(DAY + 1)
        assert forget() == 1
        self.deliver_again(message)
        assert Effect.objects.count() == 2


class TestHandles:
    @pytest.fixture
    def handle(self, queue: TaskQueue) -> TaskHandle[tuple[str, int]]:
        handle = brief.execute_on_commit(name="a")
        queue.run_until_idle()
        return handle

    def test_result_is_returned_while_it_is_remembered(self, handle: TaskHandle[tuple[str, int]]) -> None:
        assert (handle.status, handle.wait(), handle.result()) == ("SUCCESS", "SUCCESS", ("a", 1))

    @pytest.mark.parametrize("wait", [TaskHandle.result, TaskHandle.wait])
    def test_forgotten_success_is_mentioned(
        self, handle: TaskHandle[tuple[str, int]], queue: TaskQueue, wait: Callable[..., Any]
    ) -> None:
        queue.advance(DAY + 1)
        forget()
        later: TaskHandle[tuple[str, int]] = TaskHandle.from_id(handle.message_id, brief)
        assert (later.status, later.progress) == (None, None)
        told = "brief has record='failures': it may have succeeded more than 24 h ago"
        with pytest.raises(TimeoutError, match=told):
            wait(later, timeout=0)

    def test_other_tasks_are_not_said_to_be_forgotten(self) -> None:
        unknown = TaskHandle.from_id("018f0000-0000-7000-8000-000000000000", usual)
        with pytest.raises(TimeoutError, match=r"or its record was deleted\.$"):
            unknown.wait(timeout=0)
