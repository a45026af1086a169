"""Running a record again: the same work under a new id, linked both ways, and what cannot be run again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from lambda_tasks import registry
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.schedules import Every
from lambda_tasks.exceptions import CannotRunAgain
from lambda_tasks.models import OutboxMessage, TaskRecord, TaskRerun, TaskStatus, UniqueKey
from lambda_tasks.operations.rerunning import problem_of, rerun_of, reruns, run_again
from lambda_tasks.operations.schedules import fire_due
from lambda_tasks.recording.masking import MASK
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.tasks import MAX_RETENTION_DAYS, cleanup_task_records
from lambda_tasks.testing import TaskQueue, collect_tasks
from lambda_tasks.wire.ids import new_message_id
from tests.courier import OUTBOX, rows, use_outbox
from tests.faults.workers import stored_in
from tests.schedules import own_tasks

pytestmark = pytest.mark.django_db(transaction=True)

EVERYWHERE: Final = pytest.mark.databases(transaction=True)
ran: list[int] = []


@lambda_task
def count(*, number: int) -> int:
    ran.append(number)
    return number


@lambda_task(sensitive=("token",))
def call(*, token: str) -> None: ...


@lambda_task(unique=("number",))
def only(*, number: int) -> None: ...


@lambda_task(unique=True, on_duplicate="raise")
def alone(*, number: int) -> None: ...


@lambda_task(unique=("number",), on_duplicate="replace")
def newest(*, number: int, word: str) -> None: ...


class Closed(MemoryBackend):
    """A queue that accepts nothing."""

    leaves_process = True

    def send(self, jobs: Any) -> Any:
        raise ConnectionError("the queue is closed")


@pytest.fixture(autouse=True)
def _nothing_has_run() -> Iterator[None]:
    ran.clear()
    yield
    ran.clear()


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    with collect_tasks() as collected:
        yield collected


def ended(task: LambdaTaskWrapper[Any, Any] = count, **fields: Any) -> TaskRecord:
    values: dict[str, Any] = {"status": TaskStatus.FAILED, "kwargs": {"number": 7}, "queue": "other"}
    return TaskRecord.objects.using(get_store().database).create(
        id=new_message_id(), task_name=task.name, **values | fields
    )


class TestNewInvocation:
    def test_task_runs_again_under_a_new_id(self, queue: TaskQueue) -> None:
        record = ended(n_retries=3, root_id=uuid4())
        handle = run_again(record)
        (job,) = queue.jobs
        assert (job.message.kwargs, job.message.n_retries, job.queue) == ({"number": 7}, 0, "other")
        assert handle.message_id == job.message_id == job.root_id != str(record.pk)
        assert queue.run_until_idle() == 1
        assert ran == [7]
        assert handle.result(0) == 7

    def test_links_lead_in_both_directions(self, queue: TaskQueue) -> None:
        record = ended()
        first, second = run_again(record, username="ada"), run_again(record)
        queue.run_until_idle()
        assert [str(row.pk) for row in reruns(record)] == [second.message_id, first.message_id]
        row = rerun_of(TaskRecord.objects.get(pk=first.message_id))
        assert row is not None
        assert (row.original_id, row.username) == (UUID(str(record.pk)), "ada")
        assert timezone.now() - row.rerun_at < timedelta(minutes=1)
        assert rerun_of(record) is None

    def test_retry_of_a_rerun_has_its_link(self, queue: TaskQueue) -> None:
        record = ended()
        handle = run_again(record)
        retry = ended(root_id=UUID(handle.message_id), n_retries=1)
        row = rerun_of(retry)
        assert row is not None
        assert row.original_id == UUID(str(record.pk))

    def test_long_username_is_cut_off(self, queue: TaskQueue) -> None:
        record = ended()
        run_again(record, username="a" * 300)
        assert len(reruns(record).get().username) == 255

    def test_queue_without_an_url_is_replaced(self, queue: TaskQueue) -> None:
        run_again(ended(queue="gone"))
        assert [job.queue for job in queue.jobs] == ["default"]

    def test_scheduled_time_is_kept(self) -> None:
        def report() -> None: ...

        with own_tasks() as made, collect_tasks() as queue:
            made(report, schedule=Every(minutes=1))
            fire_due()
            fire_due(now=timezone.now() + timedelta(minutes=2))
            scheduled_for = queue.jobs[0].scheduled_for
            queue.run_until_idle()
            run_again(TaskRecord.objects.latest())
            assert scheduled_for is not None
            assert [job.scheduled_for for job in queue.jobs] == [scheduled_for]


class TestTransaction:
    def test_rollback_takes_back_the_message_and_the_row(self, queue: TaskQueue) -> None:
        with transaction.atomic():
            run_again(ended())
            transaction.set_rollback(True)
        assert queue.jobs == []
        assert not TaskRerun.objects.exists()

    @EVERYWHERE
    def test_outbox_keeps_message_and_row_together(self, database: str, settings: Any) -> None:
        courier = use_outbox(settings, database)
        with stored_in(database):
            record = ended()
            with transaction.atomic(using=database):
                handle = run_again(record)
                transaction.set_rollback(True, using=database)
            assert (list(reruns(record)), rows(database), courier.jobs) == ([], [], [])
            courier.fails.add(7)
            handle = run_again(record)
            assert [str(row.pk) for row in reruns(record)] == [str(row.pk) for row in rows(database)]
            assert rows(database)[0].pk == UUID(handle.message_id)

    @pytest.mark.parametrize("task", [count, only])
    def test_refused_message_leaves_no_row(self, task: LambdaTaskWrapper[Any, Any]) -> None:
        record = ended(task)
        with (
            override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.Closed", LAMBDA_TASKS_EAGER=False),
            pytest.raises(ConnectionError),
        ):
            run_again(record)
        assert not TaskRerun.objects.exists()
        assert not UniqueKey.objects.exists()


class TestRefusals:
    @pytest.mark.parametrize("status", [TaskStatus.RUNNING, TaskStatus.RETRYING])
    def test_record_that_has_not_ended(self, queue: TaskQueue, status: TaskStatus) -> None:
        record = ended(status=status)
        with pytest.raises(CannotRunAgain, match="has not ended"):
            run_again(record)
        assert "has not ended" in (problem_of(record) or "")
        assert queue.jobs == []

    def test_unknown_task(self, queue: TaskQueue) -> None:
        record = ended()
        TaskRecord.objects.filter(pk=record.pk).update(task_name="shop.tasks.gone")
        record.refresh_from_db()
        with pytest.raises(CannotRunAgain, match="shop"):
            run_again(record)

    def test_module_that_cannot_be_imported(self, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
        def find(task_name: str) -> None:
            raise SyntaxError("invalid syntax")

        monkeypatch.setattr(registry, "find_task", find)
        with pytest.raises(CannotRunAgain, match="SyntaxError: invalid syntax"):
            run_again(ended())

    @pytest.mark.parametrize("kwargs", [{"number": "7"}, {"figure": 7}, ["number", 7]])
    def test_arguments_that_no_longer_fit(self, queue: TaskQueue, kwargs: Any) -> None:
        with pytest.raises(CannotRunAgain, match="Call the task with the arguments that it takes now"):
            run_again(ended(kwargs=kwargs))

    def test_masked_arguments(self, queue: TaskQueue) -> None:
        with pytest.raises(CannotRunAgain, match="masks sensitive arguments: token"):
            run_again(ended(call, kwargs={"token": MASK}))

    def test_arguments_that_were_sensitive_before(self, queue: TaskQueue) -> None:
        with pytest.raises(CannotRunAgain, match="masks sensitive arguments: number"):
            run_again(ended(kwargs={"number": MASK}))

    @pytest.mark.parametrize("task", [only, alone])
    def test_unique_task_whose_key_is_held(self, queue: TaskQueue, task: LambdaTaskWrapper[Any, Any]) -> None:
        record = ended(task)
        run_again(record)
        (waiting,) = queue.jobs
        with pytest.raises(CannotRunAgain, match=waiting.message_id):
            run_again(record)
        assert queue.jobs == [waiting]
        assert reruns(record).count() == 1

    def test_waiting_call_keeps_its_arguments(self) -> None:
        outbox = {"BACKEND": OUTBOX, "OPTIONS": {"transport": "lambda_tasks.backends.memory.MemoryBackend"}}
        with override_settings(LAMBDA_TASKS_BACKEND=outbox, LAMBDA_TASKS_EAGER=False):
            handle = newest.using(delay=100_000).execute_on_commit(number=7, word="new")
            with pytest.raises(CannotRunAgain, match=handle.message_id):
                run_again(ended(newest, kwargs={"number": 7, "word": "old"}))
            kept = get_backend().find(handle.message_id)
            assert kept is not None
            assert kept.message.kwargs["word"] == "new"


class TestMaskedArguments:
    def test_message_in_the_outbox_still_has_them(self) -> None:
        outbox = {"BACKEND": OUTBOX, "OPTIONS": {"transport": "lambda_tasks.backends.memory.MemoryBackend"}}
        with override_settings(LAMBDA_TASKS_BACKEND=outbox, LAMBDA_TASKS_EAGER=False):
            handle = call.using(delay=100_000).execute_on_commit(token="a secret")
            record = ended(call, kwargs={"token": MASK})
            OutboxMessage.objects.filter(pk=handle.message_id).update(id=record.pk)
            again = run_again(record)
            assert [job.message.kwargs for job in get_backend().direct.jobs] == [{"token": "a secret"}]  # type: ignore[attr-defined]  # of MemoryBackend
            assert again.message_id != str(record.pk)


class TestCleanup:
    @EVERYWHERE
    def test_row_is_deleted_with_its_record(self, database: str) -> None:
        with stored_in(database):
            old, young = (ended(start_time=timezone.now() - timedelta(days=days)) for days in (8, 1))
            rerun = TaskRerun.objects.using(database)
            for record in (old, young):
                rerun.create(pk=record.pk, original_id=uuid4(), rerun_at=timezone.now())
            cleanup_task_records()
            assert [row.pk for row in rerun.all()] == [UUID(str(young.pk))]

    def test_row_without_a_record_is_deleted_later(self) -> None:
        for days in (6 + MAX_RETENTION_DAYS, 8 + MAX_RETENTION_DAYS):
            at = timezone.now() - timedelta(days=days)
            TaskRerun.objects.create(pk=uuid4(), original_id=uuid4(), rerun_at=at)
        cleanup_task_records()
        assert TaskRerun.objects.count() == 1
