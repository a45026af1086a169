"""The queue of a test: raised errors, assertions, deliveries, crashes and passing time."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase

from lambda_tasks import Every, failpoints
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import TaskCancelled, TaskCrashedError
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.models import TaskRecord
from lambda_tasks.plugins import manager
from lambda_tasks.testing import TaskQueue, collect_tasks
from tests.app.models import Effect

COMMITTING = pytest.mark.django_db(transaction=True)

ran: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    ran.clear()


class OutOfStock(Exception):
    pass


@lambda_task
def note(*, name: str) -> None:
    ran.append(name)
    Effect.objects.create(name=name)


@lambda_task
def fail(*, name: str) -> None:
    ran.append(name)
    raise OutOfStock(name)


@lambda_task(retry_on=[OutOfStock], retry_delay=60, max_retries=3)
def fail_once() -> None:
    ran.append("try")
    if len(ran) == 1:
        raise OutOfStock


@lambda_task(ignore_errors=[OutOfStock])
def fail_and_ignore() -> None:
    raise OutOfStock


@lambda_task
def give_up() -> None:
    raise TaskCancelled


@lambda_task
def send_child(*, name: str) -> None:
    Effect.objects.create(name=f"parent of {name}")
    note.execute_on_commit(name=name)


@lambda_task(singleton=True)
def alone() -> None:
    ran.append("alone")


@lambda_task(expires_in=3600)
def soon() -> None:
    ran.append("soon")


@lambda_task(sensitive=["password"])
def plan(*, day: date, days: int = 1, password: str = "") -> None: ...


def effects() -> list[str]:
    return list(Effect.objects.order_by("pk").values_list("name", flat=True))


@COMMITTING
class TestErrors:
    def test_first_error_is_raised_itself(self, lambda_tasks_queue: TaskQueue) -> None:
        handle = fail.execute_on_commit(name="a")
        fail.execute_on_commit(name="b")
        note.execute_on_commit(name="c")
        with pytest.raises(OutOfStock, match="a") as caught:
            lambda_tasks_queue.run_until_idle()
        assert ran == ["a", "b", "c"]
        assert caught.value.__notes__ == [  # type: ignore[attr-defined]  # not known to Python 3.10
            f"Raised by the task {fail.name} [{handle.message_id}]."
        ]
        assert caught.traceback[-1].name == "fail"

    def test_error_can_be_left_in_its_record(self, lambda_tasks_queue: TaskQueue) -> None:
        fail.execute_on_commit(name="a")
        assert lambda_tasks_queue.run_until_idle(raise_errors=False) == 1
        assert "OutOfStock" in (TaskRecord.objects.get().traceback or "")

    def test_error_is_raised_once(self, lambda_tasks_queue: TaskQueue) -> None:
        fail.execute_on_commit(name="a")
        with pytest.raises(OutOfStock):
            lambda_tasks_queue.run_until_idle()
        assert lambda_tasks_queue.run_until_idle() == 0

    @pytest.mark.parametrize("task", [fail_once, fail_and_ignore, give_up], ids=lambda task: task.function.__name__)
    def test_handled_error_is_not_raised(self, task: Any, lambda_tasks_queue: TaskQueue) -> None:
        task.execute_on_commit()
        assert lambda_tasks_queue.run_until_idle() >= 1

    def test_unacknowledged_batch_has_the_error_as_cause(self, lambda_tasks_queue: TaskQueue) -> None:
        fail.execute_on_commit(name="a")
        note.execute_on_commit(name="b")
        object.__setattr__(lambda_tasks_queue.jobs[1].message, "task_name", "tests.nowhere.task")
        with pytest.raises(AssertionError, match=r"tests\.nowhere") as caught:
            lambda_tasks_queue.run_until_idle()
        assert isinstance(caught.value.__cause__, OutOfStock)

    def test_listener_leaves_with_the_batch(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        lambda_tasks_queue.run_until_idle()
        assert not [name for name, _ in manager.list_name_plugin() if "Errors" in str(name)]
        assert len(manager.get_plugins()) == 1


@COMMITTING
class TestAssertions:
    def test_enqueued_job_is_returned(self, lambda_tasks_queue: TaskQueue) -> None:
        plan.execute_on_commit(day=date(2026, 1, 1))
        plan.execute_on_commit(day=date(2026, 1, 2), days=3)
        first, second = lambda_tasks_queue.jobs
        assert lambda_tasks_queue.assert_enqueued(plan) == first
        assert lambda_tasks_queue.assert_enqueued(plan, day=date(2026, 1, 2)) == second
        assert lambda_tasks_queue.assert_enqueued(plan, day="2026-01-02", days=3) == second
        assert lambda_tasks_queue.assert_enqueued(plan, days=1) == first

    def test_message_shows_enqueued_jobs(self, lambda_tasks_queue: TaskQueue) -> None:
        plan.using(queue="other", delay=60).execute_on_commit(day=date(2026, 1, 1), password="hunter22")
        with pytest.raises(AssertionError) as caught:
            lambda_tasks_queue.assert_enqueued(plan, day=date(2026, 1, 2), password="sesame11")
        text = str(caught.value)
        assert f"{plan.name}(day=datetime.date(2026, 1, 2), password=" in text.splitlines()[0]
        assert f"  {plan.name}(day='2026-01-01', " in text
        assert "(queue other, delayed by 60 s)" in text
        assert "hunter22" not in text
        assert "sesame11" not in text
        assert "queue.commit()" not in text

    def test_message_explains_calls_without_a_commit(self, lambda_tasks_queue: TaskQueue) -> None:
        with transaction.atomic():
            note.execute_on_commit(name="waiting")
            with pytest.raises(AssertionError) as caught:
                lambda_tasks_queue.assert_enqueued(note)
        text = str(caught.value)
        assert "No job is enqueued." in text
        assert f"wait for the commit of their transaction:\n  {note.name}(name='waiting')" in text
        assert "with queue.commit():" in text
        lambda_tasks_queue.assert_enqueued(note)

    def test_message_names_jobs_that_have_run(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="done")
        lambda_tasks_queue.run_until_idle()
        with pytest.raises(AssertionError, match=r"already run:\n  .*name='done'"):
            lambda_tasks_queue.assert_enqueued(note)

    def test_unwanted_job_is_shown(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        lambda_tasks_queue.assert_not_enqueued(note, name="b")
        lambda_tasks_queue.assert_not_enqueued(plan)
        with pytest.raises(AssertionError, match=r"note\(name='a'\)"):
            lambda_tasks_queue.assert_not_enqueued(note, name="a")

    def test_unknown_argument_is_refused(self, lambda_tasks_queue: TaskQueue) -> None:
        for check in (lambda_tasks_queue.assert_enqueued, lambda_tasks_queue.assert_not_enqueued):
            with pytest.raises(TypeError, match=r"'nmae'.*Its parameters: name"):
                check(note, nmae="a")

    def test_long_list_is_shortened(self, lambda_tasks_queue: TaskQueue) -> None:
        for number in range(25):
            note.execute_on_commit(name=str(number))
        with pytest.raises(AssertionError, match="and 5 more"):
            lambda_tasks_queue.assert_enqueued(fail)


@COMMITTING
class TestRedelivery:
    def test_redelivered_jobs_have_no_effect(self, lambda_tasks_queue: TaskQueue) -> None:
        send_child.execute_on_commit(name="a")
        assert lambda_tasks_queue.run_until_idle() == 2
        assert len(lambda_tasks_queue.redeliver()) == 2
        assert lambda_tasks_queue.run_until_idle() == 2
        assert effects() == ["parent of a", "a"]
        assert TaskRecord.objects.count() == 2

    def test_one_job_is_redelivered_repeatedly(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        note.execute_on_commit(name="b")
        first, _ = lambda_tasks_queue.jobs
        lambda_tasks_queue.run_until_idle()
        for _ in range(2):
            assert lambda_tasks_queue.redeliver(first) == [first]
            lambda_tasks_queue.assert_enqueued(note, name="a")
            assert lambda_tasks_queue.run_until_idle() == 1
        assert effects() == ["a", "b"]

    def test_job_that_was_not_acknowledged_is_refused(self, lambda_tasks_queue: TaskQueue) -> None:
        with pytest.raises(ValueError, match="No job was acknowledged"):
            lambda_tasks_queue.redeliver()
        note.execute_on_commit(name="a")
        with pytest.raises(ValueError, match=r"note\(name='a'\)"):
            lambda_tasks_queue.redeliver(*lambda_tasks_queue.jobs)

    def test_batch_has_each_message_once(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        [job] = lambda_tasks_queue.jobs
        lambda_tasks_queue._backend.jobs.append(job)
        assert lambda_tasks_queue.run() == []
        assert lambda_tasks_queue.jobs == [job]
        assert lambda_tasks_queue.run_until_idle() == 1
        assert effects() == ["a"]


#: The points that a worker reaches with a task that sends another one.
OF_A_WORKER = (
    *("batch:start", "batch:next", "claim:before", "claim:after", "task:before_begin", "task:enter"),
    *("enqueue:before_commit", "task:leave", "finish:before_commit", "finish:after_commit", "batch:before_return"),
)


@COMMITTING
class TestCrashes:
    @pytest.mark.parametrize("point", OF_A_WORKER)
    def test_crashed_work_is_done_once(self, point: str, lambda_tasks_queue: TaskQueue) -> None:
        send_child.execute_on_commit(name="a")
        lambda_tasks_queue.crash_at(point)
        assert lambda_tasks_queue.run_until_idle() == 2
        assert effects() == ["parent of a", "a"]
        assert set(TaskRecord.objects.values_list("status", flat=True)) == {"SUCCESS"}

    def test_crash_rolls_back_and_acknowledges_nothing(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        note.execute_on_commit(name="b")
        lambda_tasks_queue.crash_at("task:leave")
        assert [job.message.kwargs["name"] for job in lambda_tasks_queue.run()] == ["a", "b"]
        assert effects() == []
        assert TaskRecord.objects.get().status == "RUNNING"
        assert ran == ["a"]

    def test_lease_of_the_dead_worker_holds(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        lambda_tasks_queue.crash_at("task:enter")
        lambda_tasks_queue.run()
        with pytest.raises(AssertionError, match=r"call advance\(\) first"):
            lambda_tasks_queue.run_until_idle()
        lambda_tasks_queue.advance(600)
        lambda_tasks_queue.run_until_idle()
        assert TaskRecord.objects.get().takeovers == 1

    def test_too_many_crashes_fail_the_task(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        for _ in range(4):
            lambda_tasks_queue.crash_at("task:leave")
        with pytest.raises(TaskCrashedError):
            lambda_tasks_queue.run_until_idle()
        assert effects() == []

    def test_lock_of_the_dead_worker_stays(self, lambda_tasks_queue: TaskQueue, lambda_tasks_fake_lock: None) -> None:
        alone.execute_on_commit()
        lambda_tasks_queue.crash_at("task:leave")
        lambda_tasks_queue.run()
        lambda_tasks_queue.clear()
        alone.execute_on_commit()
        lambda_tasks_queue.run()
        assert TaskRecord.objects.get(status="RETRYING").reason == "lock"

    def test_plugins_do_not_see_the_crash(self, lambda_tasks_queue: TaskQueue, settings: Any) -> None:
        seen: list[object] = []

        class Plugin:
            @hookimpl
            def lambda_task_classify(self, run: Run, error: BaseException) -> None:
                seen.append(error)

            @hookimpl
            def lambda_task_finished(self, run: Run, outcome: object) -> None:
                seen.append(outcome)

        settings.LAMBDA_TASKS_PLUGINS = [Plugin]
        note.execute_on_commit(name="a")
        lambda_tasks_queue.crash_at("task:leave")
        lambda_tasks_queue.run()
        assert seen == []

    def test_statements_of_the_dead_worker_are_refused(self, lambda_tasks_queue: TaskQueue) -> None:
        @lambda_task(atomic=False)  # so that a statement would open a new connection, and be committed
        def write_at_the_end() -> None:
            try:
                note.execute_on_commit(name="a")
            finally:
                Effect.objects.create(name="written by a dead process")

        write_at_the_end.execute_on_commit()
        lambda_tasks_queue.crash_at("enqueue:after_commit")
        lambda_tasks_queue.run()
        assert effects() == []
        assert TaskRecord.objects.get().status == "RUNNING"

    def test_unreached_point_fails_the_test(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        lambda_tasks_queue.crash_at("retry:between")
        with pytest.raises(AssertionError, match="No worker reached 'retry:between'"):
            lambda_tasks_queue.run_until_idle()
        assert effects() == ["a"]

    def test_unknown_point_is_refused(self, lambda_tasks_queue: TaskQueue) -> None:
        with pytest.raises(ValueError, match=r"not 'task:leaves'\. Did you mean 'task:leave'"):
            lambda_tasks_queue.crash_at("task:leaves")

    def test_process_of_the_test_survives(self, lambda_tasks_queue: TaskQueue) -> None:
        before = failpoints.reached
        note.execute_on_commit(name="a")
        lambda_tasks_queue.crash_at("finish:before_commit")
        lambda_tasks_queue.run()
        assert failpoints.reached is before
        assert connection.execute_wrappers == []
        assert not connection.in_atomic_block
        Effect.objects.create(name="later")


@COMMITTING
class TestTime:
    def test_due_jobs_wait_for_their_delay(self, lambda_tasks_queue: TaskQueue) -> None:
        note.using(delay=60).execute_on_commit(name="later")
        note.execute_on_commit(name="now")
        assert lambda_tasks_queue.run_due() == 1
        lambda_tasks_queue.advance(59)
        assert lambda_tasks_queue.run_due() == 0
        lambda_tasks_queue.advance(timedelta(seconds=1))
        assert lambda_tasks_queue.run_due() == 1
        assert ran == ["now", "later"]

    def test_delay_begins_with_the_call(self, lambda_tasks_queue: TaskQueue) -> None:
        note.using(delay=60).execute_on_commit(name="a")
        lambda_tasks_queue.advance(60)
        note.using(delay=60).execute_on_commit(name="b")
        assert lambda_tasks_queue.run_due() == 1
        assert ran == ["a"]

    def test_retry_waits_for_its_delay(self, lambda_tasks_queue: TaskQueue) -> None:
        fail_once.execute_on_commit()
        assert lambda_tasks_queue.run_due() == 1
        lambda_tasks_queue.advance(120)
        assert lambda_tasks_queue.run_due() == 1

    def test_message_expires(self, lambda_tasks_queue: TaskQueue) -> None:
        soon.execute_on_commit()
        lambda_tasks_queue.advance(3601)
        lambda_tasks_queue.run_until_idle(raise_errors=False)
        assert ran == []
        assert TaskRecord.objects.get().reason == "expired"

    def test_records_age(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        lambda_tasks_queue.run_until_idle()
        before = TaskRecord.objects.get()
        lambda_tasks_queue.advance(86_400)
        after = TaskRecord.objects.get()
        assert before.start_time
        assert after.start_time
        assert before.end_time
        assert after.end_time
        assert before.start_time - after.start_time == timedelta(days=1)
        assert before.end_time - after.end_time == timedelta(days=1)

    def test_periodic_task_starts_when_it_is_due(self, lambda_tasks_queue: TaskQueue) -> None:
        @lambda_task(schedule=Every(hours=1))
        def hourly() -> None:
            ran.append("hourly")

        assert lambda_tasks_queue.tick() == 0
        lambda_tasks_queue.advance(3600)
        assert lambda_tasks_queue.tick() == 1
        assert lambda_tasks_queue.tick() == 0
        lambda_tasks_queue.advance(3600)
        assert lambda_tasks_queue.tick() == 1
        assert lambda_tasks_queue.run_until_idle() == 2
        assert ran == ["hourly", "hourly"]

    def test_schedule_begins_with_the_queue(self, lambda_tasks_queue: TaskQueue) -> None:
        @lambda_task(schedule=Every(hours=1))
        def hourly() -> None: ...

        lambda_tasks_queue.advance(3600)
        assert lambda_tasks_queue.tick() == 1

    @pytest.mark.parametrize("seconds", [-1, 31_536_001, float("nan")])
    def test_invalid_time_is_refused(self, seconds: float, lambda_tasks_queue: TaskQueue) -> None:
        with pytest.raises(ValueError, match="seconds must be from 0"):
            lambda_tasks_queue.advance(seconds)


class TestInsideATransaction(TestCase):
    """The queue in Django's `TestCase`, whose transaction is rolled back."""

    def setUp(self) -> None:
        collected = collect_tasks()
        self.queue = collected.__enter__()
        self.addCleanup(collected.__exit__, None, None, None)

    def test_error_is_raised(self) -> None:
        with self.queue.commit():
            fail.execute_on_commit(name="a")
        with pytest.raises(OutOfStock):
            self.queue.run_until_idle()

    def test_call_without_commit_is_explained(self) -> None:
        note.execute_on_commit(name="a")
        with pytest.raises(AssertionError, match=r"(?s)wait for the commit.*with queue.commit"):
            self.queue.assert_enqueued(note)

    def test_crashed_work_is_done_once(self) -> None:
        for point in OF_A_WORKER:
            with self.subTest(point), transaction.atomic():
                Effect.objects.all().delete()
                TaskRecord.objects.all().delete()
                with self.queue.commit():
                    send_child.execute_on_commit(name=point)
                self.queue.crash_at(point)
                assert self.queue.run_until_idle() == 2
                assert effects() == [f"parent of {point}", point]

    def test_redelivered_job_has_no_effect(self) -> None:
        with self.queue.commit():
            note.execute_on_commit(name="a")
        self.queue.run_until_idle()
        self.queue.redeliver()
        self.queue.run_until_idle()
        assert effects() == ["a"]

    def test_expired_lease_is_taken_over(self) -> None:
        with self.queue.commit():
            note.execute_on_commit(name="a")
        self.queue.crash_at("task:leave")
        self.queue.run()
        assert effects() == []
        self.queue.advance(600)
        self.queue.run_until_idle()
        assert effects() == ["a"]


class TestCommitting(TransactionTestCase):
    """The queue in Django's `TransactionTestCase`."""

    def test_crashed_work_is_done_once(self) -> None:
        with collect_tasks() as queue:
            send_child.execute_on_commit(name="a")
            queue.crash_at("finish:before_commit")
            assert queue.run_until_idle() == 2
        assert effects() == ["parent of a", "a"]
