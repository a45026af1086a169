"""The guarantees of a run: writes and SUCCESS commit together, and every outcome is recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models.functions import Now
from django.test import override_settings
from django.utils import timezone

from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import (
    InvalidMessage,
    LockError,
    MaxRetriesExceededError,
    MessageTooLarge,
    Redeliver,
    TaskCrashedError,
    UnknownTask,
)
from lambda_tasks.execution.pipeline import clamped, execute
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.logging import current_message_id
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Retry, Skipped, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_lock, get_store
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded
from lambda_tasks.wire import ids
from tests.app.models import Effect
from tests.commits import replace_next_commit

pytestmark = pytest.mark.django_db(transaction=True)


class Refused(Exception):
    pass


class Missing(Exception):
    pass


@lambda_task
def leave_effect(*, name: str) -> str:
    Effect.objects.create(name=name)
    return f"left {name}"


@lambda_task
def leave_effect_and_fail(*, name: str) -> None:
    Effect.objects.create(name=name)
    raise Refused(name)


@lambda_task(ignore_errors=[Missing])
def leave_effect_and_miss(*, name: str) -> None:
    Effect.objects.create(name=name)
    raise Missing(name)


@lambda_task(retry_on=[Refused], retry_delay=7)
def leave_effect_and_retry(*, name: str) -> None:
    Effect.objects.create(name=name)
    raise Refused(name)


@lambda_task(singleton=True)
def alone(*, name: str) -> None:
    Effect.objects.create(name=name)


@lambda_task(singleton=True, ignore_errors=[LockError])
def alone_or_not_at_all() -> None:
    pass


@lambda_task(on_crash="fail")
def never_twice(*, name: str) -> None:
    Effect.objects.create(name=name)


def message(task: Any, n_retries: int = 0, /, **kwargs: Any) -> SQSLambdaTaskMessage:
    return SQSLambdaTaskMessage(task_name=task.name, kwargs=kwargs, n_retries=n_retries)


def run(task: Any, n_retries: int = 0, /, *, message_id: str | None = None, **kwargs: Any) -> Any:
    return execute(message(task, n_retries, **kwargs), message_id=message_id or ids.new_message_id())


def effects() -> list[str]:
    return list(Effect.objects.order_by("pk").values_list("name", flat=True))


def sent() -> list[Any]:
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    return backend.jobs


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    sent().clear()


class TestOutcomes:
    def test_success_is_recorded_with_its_result(self) -> None:
        message_id = ids.new_message_id()

        assert run(leave_effect, message_id=message_id, name="a") == Succeeded("left a")

        record = TaskRecord.objects.get(pk=message_id)
        assert (record.status, record.result, record.traceback) == ("SUCCESS", "left a", None)
        assert (record.task_name, record.kwargs) == (leave_effect.name, {"name": "a"})
        assert record.start_time <= record.end_time
        assert effects() == ["a"]

    def test_error_fails_the_task_and_rolls_back(self) -> None:
        outcome = run(leave_effect_and_fail, name="a")

        assert isinstance(outcome, Failed)
        record = TaskRecord.objects.get()
        assert (record.status, record.result) == ("FAILED", None)
        assert record.traceback.endswith("tests.execution.test_executor.Refused: a\n")
        assert "executor.py" not in record.traceback.replace("test_executor.py", "")
        assert effects() == []

    def test_ignored_error_is_success_without_writes(self) -> None:
        assert isinstance(run(leave_effect_and_miss, name="a"), Ignored)

        record = TaskRecord.objects.get()
        assert (record.status, record.result) == ("SUCCESS", None)
        assert "Missing: a" in record.traceback
        assert effects() == []

    def test_retry_is_an_invocation_with_derived_id(self) -> None:
        message_id = ids.new_message_id()
        outcome = run(leave_effect_and_retry, 3, message_id=message_id, name="a")

        assert isinstance(outcome, Retry)
        record = TaskRecord.objects.get()
        assert (record.status, record.n_retries) == ("RETRYING", 3)
        assert "Refused: a" in record.traceback
        [job] = sent()
        assert job.message == message(leave_effect_and_retry, 4, name="a")
        assert job.message_id == ids.retry_id(message_id, 4)
        assert job.root_id == message_id
        assert 8 <= job.delay <= 12
        assert effects() == []

    def test_chain_of_retries_keeps_its_root(self) -> None:
        root = ids.new_message_id()
        run(leave_effect_and_retry, message_id=root, name="a")
        job = sent().pop()
        execute(job.message, message_id=job.message_id, root_id=job.root_id)

        assert set(TaskRecord.objects.values_list("root_id", flat=True)) == {UUID(root)}
        assert sent().pop().message_id == ids.retry_id(root, 2)

    @override_settings(LAMBDA_TASKS_MAX_RETRIES=2)
    def test_exhausted_retries_fail_and_raise(self) -> None:
        with pytest.raises(MaxRetriesExceededError, match="LAMBDA_TASKS_MAX_RETRIES is 2") as raised:
            message(leave_effect_and_retry, 2, name="a").execute_immediately()

        assert isinstance(raised.value.__cause__, Refused)
        record = TaskRecord.objects.get()
        assert record.status == "FAILED"
        assert "Refused: a" in record.traceback
        assert "MaxRetriesExceededError" in record.traceback
        assert sent() == []

    def test_non_json_result_fails_and_rolls_back(self) -> None:
        @lambda_task(retry_on=[Exception])
        def give(*, name: str) -> object:
            Effect.objects.create(name=name)
            return {"value": object()}

        assert isinstance(run(give, name="a"), Failed)
        assert "cannot be stored as JSON" in TaskRecord.objects.get().traceback
        assert effects() == []

    def test_sys_exit_fails_only_the_task(self) -> None:
        @lambda_task
        def leave() -> None:
            raise SystemExit(3)

        assert isinstance(run(leave), Failed)
        assert "SystemExit: 3" in TaskRecord.objects.get().traceback

    def test_keyboard_interrupt_is_recorded_and_raised(self) -> None:
        @lambda_task
        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(interrupted)
        assert TaskRecord.objects.get().status == "FAILED"

    def test_unstorable_traceback_is_made_storable(self) -> None:
        @lambda_task
        def shout() -> None:
            raise Refused("nul \x00, lone \ud800, " + "long " * 100_000)

        run(shout)
        traceback = TaskRecord.objects.get().traceback
        assert r"nul \x00, lone \ud800" in traceback
        assert "characters left out" in traceback
        assert len(traceback) < 101_000

    def test_unprintable_error_is_recorded(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise ValueError

        @lambda_task
        def sulk() -> None:
            raise Mute

        run(sulk)
        assert "Mute" in TaskRecord.objects.get().traceback


class TestBeforeTheRecord:
    def test_unknown_task_is_refused(self) -> None:
        with pytest.raises(UnknownTask, match=r"tests\.execution\.test_executor\.nothing"):
            SQSLambdaTaskMessage(task_name="tests.execution.test_executor.nothing").execute_immediately()
        assert not TaskRecord.objects.exists()

    def test_message_cannot_import_foreign_modules(self) -> None:
        import sys

        sys.modules.pop("this", None)
        with pytest.raises(UnknownTask, match="LAMBDA_TASKS_MODULES"):
            SQSLambdaTaskMessage(task_name="this.zen").execute_immediately()
        assert "this" not in sys.modules

    def test_invalid_arguments_are_refused(self) -> None:
        with pytest.raises(InvalidMessage, match="name"):
            message(leave_effect, name=1).execute_immediately()
        assert not TaskRecord.objects.exists()


class TestIdentity:
    def test_log_record_and_run_share_an_id(self) -> None:
        seen = []

        @lambda_task
        def look() -> None:
            seen.append(current_message_id())

        message_id = ids.new_message_id()
        run(look, message_id=message_id)
        assert seen == [message_id]
        assert current_message_id() is None

    def test_ids_grow_in_the_order_of_calls(self) -> None:
        made = [ids.new_message_id() for _ in range(2_000)]
        assert made == sorted(made)
        assert len(set(made)) == len(made)
        assert all(
            UUID(message_id).version == 7 and UUID(message_id).variant == UUID(made[0]).variant for message_id in made
        )

    def test_foreign_id_has_one_form(self) -> None:
        assert ids.canonical_id("059F36B4-87A3-44AB-83D2-661975830A7D") == "059f36b4-87a3-44ab-83d2-661975830a7d"
        assert ids.canonical_id("msg-1") == ids.canonical_id("msg-1") != ids.canonical_id("msg-2")


class TestClaim:
    def test_copy_of_a_finished_invocation_is_skipped(self) -> None:
        message_id = ids.new_message_id()
        run(leave_effect, message_id=message_id, name="a")

        assert run(leave_effect, message_id=message_id, name="a") == Skipped("finished")
        assert effects() == ["a"]

    @pytest.mark.parametrize("task", [leave_effect_and_fail, leave_effect_and_retry])
    def test_copy_of_an_unsuccessful_invocation_is_skipped(self, task: Any) -> None:
        message_id = ids.new_message_id()
        run(task, message_id=message_id, name="a")
        sent().clear()

        assert run(task, message_id=message_id, name="a") == Skipped("finished")
        assert sent() == []

    def test_copy_of_a_running_invocation_is_kept(self) -> None:
        message_id = ids.new_message_id()
        copies = []

        @lambda_task
        def deliver_again() -> None:
            try:
                run(deliver_again, message_id=message_id)
            except Redeliver as redeliver:
                copies.append(redeliver.visible_in)

        assert isinstance(run(deliver_again, message_id=message_id), Succeeded)
        [visible_in] = copies
        assert 290 < visible_in <= 310

    def test_run_of_a_dead_worker_is_taken_over(self) -> None:
        message_id = dead_run(leave_effect, name="a")

        assert isinstance(run(leave_effect, message_id=message_id, name="a"), Succeeded)
        record = TaskRecord.objects.get()
        assert (record.status, record.takeovers) == ("SUCCESS", 1)

    def test_one_death_too_many_fails_the_task(self) -> None:
        message_id = dead_run(leave_effect, name="a")
        TaskRecord.objects.update(takeovers=3)

        outcome = run(leave_effect, message_id=message_id, name="a")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, TaskCrashedError)
        record = TaskRecord.objects.get()
        assert record.status == "FAILED"
        assert "crashed: 4 workers died" in record.traceback
        assert effects() == []

    def test_unrepeatable_work_fails_at_first_death(self) -> None:
        message_id = dead_run(never_twice, name="a")

        assert isinstance(run(never_twice, message_id=message_id, name="a"), Failed)
        assert "on_crash='fail'" in TaskRecord.objects.get().traceback
        assert effects() == []

    def test_worker_without_its_lease_commits_nothing(self) -> None:
        """A container that was frozen past its lease resumes after another one has done the work."""
        message_id = ids.new_message_id()

        def take_over() -> None:
            TaskRecord.objects.filter(pk=message_id).update(lease_until=Now() - timedelta(seconds=1))
            run(sleep_past_the_lease, message_id=message_id)

        workers = iter(["the sleeper's", "the other's"])

        @lambda_task
        def sleep_past_the_lease() -> None:
            worker = next(workers)
            if worker == "the sleeper's":
                in_another_worker(take_over)
            Effect.objects.create(name=worker)

        with pytest.raises(Redeliver, match="taken over"):
            run(sleep_past_the_lease, message_id=message_id)
        assert effects() == ["the other's"]
        assert TaskRecord.objects.get().status == "SUCCESS"

    @pytest.mark.parametrize("task", [leave_effect_and_fail, leave_effect_and_retry, leave_effect])
    def test_deletion_of_a_running_record_rolls_back(self, task: Any) -> None:
        @lambda_task(retry_on=[Refused])
        def deleted(*, name: str) -> None:
            in_another_worker(TaskRecord.objects.all().delete)
            task(name=name)

        with pytest.raises(Redeliver):
            run(deleted, name="a")
        assert effects() == []
        assert not TaskRecord.objects.exists()


class TestAtomicity:
    def test_success_is_written_inside_the_tasks_transaction(self) -> None:
        """Other sessions never see the work without its SUCCESS, or SUCCESS without the work."""
        seen = []

        def look() -> None:
            seen.append((Effect.objects.count(), TaskRecord.objects.get().status))

        class LookingStore(ORMStore):
            def record(self, run: Any, outcome: Any) -> None:
                super().record(run, outcome)
                in_another_worker(look)

        with swapped_store(LookingStore()):
            run(leave_effect, name="a")
        assert seen == [(0, "RUNNING")]

    def test_constraint_failure_at_commit_fails_the_task(self) -> None:
        class RefusingStore(ORMStore):
            def record(self, run: Any, outcome: Any) -> None:
                super().record(run, outcome)
                if isinstance(outcome, Succeeded):
                    raise Refused("at commit")

        with swapped_store(RefusingStore()):
            assert isinstance(run(leave_effect, name="a"), Failed)
        assert effects() == []
        assert TaskRecord.objects.get().status == "FAILED"

    def test_error_after_commit_changes_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        @lambda_task
        def call_back(*, name: str) -> str:
            Effect.objects.create(name=name)
            transaction.on_commit(lambda: 1 / 0)
            return "done"

        assert run(call_back, name="a") == Succeeded("done")
        assert TaskRecord.objects.get().status == "SUCCESS"
        assert "ZeroDivisionError" in caplog.text

    def test_record_settles_a_lost_commit_response(self) -> None:
        lose_commit_response(commit_first=True)

        assert isinstance(run(leave_effect, name="a"), Succeeded)
        assert TaskRecord.objects.get().status == "SUCCESS"
        assert effects() == ["a"]

    def test_message_runs_again_after_a_lost_commit(self) -> None:
        message_id = ids.new_message_id()
        lose_commit_response(commit_first=False)
        with pytest.raises(Redeliver, match="lost its database connection"):
            run(leave_effect, message_id=message_id, name="a")
        assert effects() == []

        assert isinstance(run(leave_effect, message_id=message_id, name="a"), Succeeded)
        assert effects() == ["a"]
        assert TaskRecord.objects.get().takeovers == 0

    def test_terminated_session_is_not_the_tasks_failure(self) -> None:
        if connection.vendor != "postgresql":
            pytest.skip("the session is ended by pg_terminate_backend, which is PostgreSQL's")
        message_id = ids.new_message_id()

        @lambda_task
        def cut_off(*, name: str) -> None:
            Effect.objects.create(name=name)
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(Redeliver, match="lost its database connection"):
            run(cut_off, message_id=message_id, name="a")
        assert TaskRecord.objects.get().claim is None
        assert effects() == []

    def test_hidden_connection_loss_is_not_the_failure(self) -> None:
        if connection.vendor != "postgresql":
            pytest.skip("the session is ended by pg_terminate_backend, which is PostgreSQL's")

        @lambda_task
        def translate_errors() -> None:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            except OperationalError:
                raise Refused from None

        with pytest.raises(Redeliver, match="lost its database connection"):
            run(translate_errors)

    def test_database_error_on_healthy_connection_is_failure(self) -> None:
        @lambda_task
        def ask_wrongly() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT nothing FROM nowhere")

        assert isinstance(run(ask_wrongly), Failed)


class TestRetries:
    def test_retry_is_sent_before_it_is_recorded(self) -> None:
        seen = []

        class WatchingBackend(MemoryBackend):
            def send(self, jobs: Any) -> Any:
                seen.append(TaskRecord.objects.get().status)
                return super().send(jobs)

        with swapped_backend(WatchingBackend()):
            run(leave_effect_and_retry, name="a")
        assert seen == ["RUNNING"]
        assert TaskRecord.objects.get().status == "RETRYING"

    def test_unsendable_retry_is_redelivered(self) -> None:
        message_id = ids.new_message_id()

        class BrokenBackend(BaseBackend):
            def send(self, jobs: Any) -> Any:
                raise ConnectionError("no queue")

        with swapped_backend(BrokenBackend()), pytest.raises(Redeliver, match="could not be sent"):
            run(leave_effect_and_retry, message_id=message_id, name="a")
        record = TaskRecord.objects.get()
        assert (record.status, record.claim) == ("RUNNING", None)

        assert isinstance(run(leave_effect_and_retry, message_id=message_id, name="a"), Retry)
        assert TaskRecord.objects.get().takeovers == 0

    def test_retry_that_no_queue_accepts_is_failure(self) -> None:
        class NarrowBackend(MemoryBackend):
            def validate(self, job: Any) -> None:
                raise MessageTooLarge("one byte too many")

        with swapped_backend(NarrowBackend()):
            outcome = run(leave_effect_and_retry, name="a")
        assert isinstance(outcome, Failed)
        record = TaskRecord.objects.get()
        assert (record.status, effects()) == ("FAILED", [])
        assert "one byte too many" in (record.traceback or "")

    def test_delay_has_jitter_and_a_limit(self) -> None:
        @lambda_task(retry_on=[Refused], retry_delay=899)
        def late() -> None:
            raise Refused

        delays = {run(late).delay for _ in range(20)}
        assert delays == {900}

    def test_time_limit_must_be_listed_for_retry(self) -> None:
        @lambda_task(retry_on=[Exception])
        def slow() -> None:
            raise SoftTimeLimitExceeded

        @lambda_task(retry_on=[SoftTimeLimitExceeded])
        def slow_and_patient() -> None:
            raise SoftTimeLimitExceeded

        assert isinstance(run(slow), Failed)
        assert isinstance(run(slow_and_patient), Retry)


class TestSingleton:
    @pytest.fixture(autouse=True)
    def _lock(self) -> Any:
        with override_settings(LAMBDA_TASKS_LOCK="lambda_tasks.locks.memory.MemoryLock"):
            yield

    def test_contention_is_a_retry(self) -> None:
        get_lock().acquire(f"lambda_tasks.singleton_lock.{alone.name}", token="another", timeout=60)

        outcome = run(alone, name="a")
        assert isinstance(outcome, Retry)
        assert isinstance(outcome.error, LockError)
        assert TaskRecord.objects.get().status == "RETRYING"
        assert "is held by another invocation" in TaskRecord.objects.get().traceback
        assert effects() == []

    @override_settings(LAMBDA_TASKS_MAX_RETRIES=0)
    def test_contention_at_the_last_retry_fails(self) -> None:
        get_lock().acquire(f"lambda_tasks.singleton_lock.{alone.name}", token="another", timeout=60)

        outcome = run(alone, name="a")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, MaxRetriesExceededError)

    def test_contention_may_be_ignored(self) -> None:
        get_lock().acquire(f"lambda_tasks.singleton_lock.{alone_or_not_at_all.name}", token="another", timeout=60)
        assert isinstance(run(alone_or_not_at_all), Ignored)

    def test_redis_lock_error_ignores_contention_too(self) -> None:
        import redis.exceptions

        @lambda_task(singleton=True, ignore_errors=[redis.exceptions.LockError])
        def polite() -> None:
            pass

        get_lock().acquire(f"lambda_tasks.singleton_lock.{polite.name}", token="another", timeout=60)
        assert isinstance(run(polite), Ignored)

    def test_lock_encloses_the_commit_within_the_claim(self) -> None:
        events = []

        class WatchedLock(MemoryLock):
            def acquire(self, key: str, *, token: str, timeout: float) -> bool:
                assert timeout == 300
                assert key == f"lambda_tasks.singleton_lock.{alone.name}"
                events.append(("acquire", TaskRecord.objects.get().status, connection.in_atomic_block))
                return super().acquire(key, token=token, timeout=timeout)

            def release(self, key: str, *, token: str) -> None:
                events.append(("release", TaskRecord.objects.get().status, connection.in_atomic_block))
                super().release(key, token=token)

        with swapped_lock(WatchedLock()):
            run(alone, name="a")
        assert events == [("acquire", "RUNNING", False), ("release", "SUCCESS", False)]

    def test_error_on_release_changes_nothing(self) -> None:
        class StickyLock(MemoryLock):
            def release(self, key: str, *, token: str) -> None:
                raise ConnectionError("Redis is gone")

        @lambda_task(singleton=True, retry_on=[Refused])
        def refuse() -> None:
            raise Refused

        with swapped_lock(StickyLock()):
            assert isinstance(run(alone, name="a"), Succeeded)
            assert isinstance(run(refuse), Retry)
        assert effects() == ["a"]

    def test_unavailable_lock_server_causes_a_retry(self) -> None:
        class AbsentLock(MemoryLock):
            def acquire(self, key: str, *, token: str, timeout: float) -> bool:
                raise ConnectionError("no Redis")

        with swapped_lock(AbsentLock()):
            assert isinstance(run(alone, name="a"), Retry)
            # This is not contention: a task that ignores contention must not lose work because Redis is unavailable.
            assert isinstance(run(alone_or_not_at_all), Retry)
        assert effects() == []

    def test_lock_outage_does_not_count_as_retries(self) -> None:
        @lambda_task(singleton=True, retry_on=[Refused], retry_delay=1, retry_backoff=True, max_retries=1)
        def alone_and_once_more() -> None:
            raise Refused

        class AbsentLock(MemoryLock):
            def acquire(self, key: str, *, token: str, timeout: float) -> bool:
                raise ConnectionError("no Redis")

        with swapped_lock(AbsentLock()):
            waiting = run(alone_and_once_more, 5)
        assert isinstance(waiting, Retry)
        assert waiting.delay > 32  # the pauses grow as with any task
        assert isinstance(run(alone_and_once_more, 5), Failed)

    def test_lock_is_free_after_every_outcome(self) -> None:
        @lambda_task(singleton=True)
        def end(*, how: str) -> None:
            if how == "error":
                raise Refused

        for how in ("well", "error", "well"):
            assert not isinstance(run(end, how=how), Retry)


class TestLimits:
    def test_limits_end_before_the_invocation(self) -> None:
        import time

        soft, hard = clamped(270, 300, time.monotonic() + 60)
        assert 54 < hard <= 56
        assert soft < hard

    def test_limits_that_fit_are_unchanged(self) -> None:
        import time

        assert clamped(270, 300, time.monotonic() + 900) == (270, 300)
        assert clamped(270, 300, None) == (270, 300)

    def test_limits_stay_ordered_without_remaining_time(self) -> None:
        soft, hard = clamped(270, 300, 0.0)
        assert 0 < soft < hard

    def test_slow_task_fails_and_rolls_back(self) -> None:
        @lambda_task(soft_timeout=1, hard_timeout=2)
        def linger(*, name: str) -> None:
            Effect.objects.create(name=name)
            threading.Event().wait(60)

        outcome = run(linger, name="a")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, SoftTimeLimitExceeded)
        assert effects() == []

    def test_alarm_never_interrupts_commit(self) -> None:
        """Both limits expire while the record is written: the task has finished, and remains successful."""

        class SlowStore(ORMStore):
            def record(self, run: Any, outcome: Any) -> None:
                wait = threading.Event().wait
                wait(max(0.0, run.hard_timeout + 0.2 - run.duration))
                super().record(run, outcome)

        @lambda_task(soft_timeout=1, hard_timeout=2)
        def quick(*, name: str) -> None:
            Effect.objects.create(name=name)

        with swapped_store(SlowStore()):
            assert isinstance(run(quick, name="a"), Succeeded)
        assert effects() == ["a"]
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_swallowed_hard_limit_still_fails_the_task(self) -> None:
        @lambda_task(soft_timeout=1, hard_timeout=2)
        def stubborn(*, name: str) -> str:
            Effect.objects.create(name=name)
            try:
                while True:
                    try:
                        threading.Event().wait(60)
                    except Exception:
                        continue
            except BaseException:
                return "as if nothing had happened"

        outcome = run(stubborn, name="a")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, HardTimeLimitExceeded)
        assert effects() == []


def dead_run(task: Any, **kwargs: Any) -> str:
    """Create the record of a worker that died while it ran `task` and whose lease has expired."""
    message_id = ids.new_message_id()
    TaskRecord.objects.create(
        id=message_id,
        task_name=task.name,
        kwargs=kwargs,
        start_time=Now(),
        root_id=message_id,
        claim=ids.new_message_id(),
        lease_until=Now() - timedelta(seconds=1),
    )
    return message_id


def in_another_worker(work: Any) -> None:
    """Run `work` in a thread with its own connections."""
    errors: list[BaseException] = []

    def main() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def lose_commit_response(*, commit_first: bool) -> None:
    """Cut the connection at the next COMMIT: after the server receives it, or before."""

    def cut(commit: Callable[[], object]) -> None:
        if commit_first:
            commit()
        connection.connection.close()
        raise OperationalError("server closed the connection unexpectedly")

    replace_next_commit(cut)


@contextmanager
def swapped_store(store: Any) -> Any:
    with _swapped("STORE", lambda: store):
        assert get_store() is store
        yield


@contextmanager
def swapped_lock(lock: Any) -> Any:
    with _swapped("LOCK", lambda: lock):
        yield


@contextmanager
def swapped_backend(backend: Any) -> Any:
    with _swapped("BACKEND", lambda: backend):
        yield


@contextmanager
def _swapped(setting: str, make: Any) -> Any:
    """Select a strategy that the test creates by its dotted path, as a project would."""
    global made_by_test
    made_by_test = make
    with override_settings(**{f"LAMBDA_TASKS_{setting}": f"{__name__}.made_by_test"}):
        yield


made_by_test: Any = None


@lambda_task
def wait_for_a_lock() -> None:
    raise OperationalError(1205, "Lock wait timeout exceeded; try restarting transaction")


class TestTakenOverLocks:
    """The transaction of a frozen worker stays open, and may hold the rows that the next worker needs."""

    def test_lock_timeout_fails_the_first_run(self) -> None:
        assert isinstance(run(wait_for_a_lock), Failed)

    def test_lock_timeout_after_a_takeover_returns_the_message(self) -> None:
        long_ago = timezone.now() - timedelta(days=1)
        message_id = ids.new_message_id()
        TaskRecord.objects.create(
            id=message_id,
            root_id=message_id,
            task_name=wait_for_a_lock.name,
            kwargs={},
            status="RUNNING",
            claim=ids.new_message_id(),
            start_time=long_ago,
            lease_until=long_ago,
        )
        with pytest.raises(Redeliver):
            run(wait_for_a_lock, message_id=message_id)
        record = TaskRecord.objects.get()
        assert (record.status, record.takeovers) == ("RUNNING", 2)
