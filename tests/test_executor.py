"""What one run promises: its writes and its SUCCESS together, and every way to end recorded."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.models.functions import Now
from django.test import override_settings

from lambda_tasks import identity
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
from lambda_tasks.executor import clamped, execute
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.logging import current_message_id
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed, Ignored, Retry, Skipped, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_lock, get_store
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded
from tests.app.models import Effect

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
    return execute(message(task, n_retries, **kwargs), message_id=message_id or identity.new_message_id())


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
        message_id = identity.new_message_id()

        assert run(leave_effect, message_id=message_id, name="a") == Succeeded("left a")

        record = TaskRecord.objects.get(pk=message_id)
        assert (record.status, record.result, record.traceback) == ("SUCCESS", "left a", None)
        assert (record.task_name, record.kwargs) == (leave_effect.name, {"name": "a"})
        assert record.start_time <= record.end_time
        assert effects() == ["a"]

    def test_an_error_fails_the_task_and_rolls_its_writes_back(self) -> None:
        outcome = run(leave_effect_and_fail, name="a")

        assert isinstance(outcome, Failed)
        record = TaskRecord.objects.get()
        assert (record.status, record.result) == ("FAILED", None)
        assert record.traceback.endswith("tests.test_executor.Refused: a\n")
        assert "executor.py" not in record.traceback.replace("test_executor.py", "")
        assert effects() == []

    def test_an_ignored_error_is_a_success_with_a_traceback_and_without_writes(self) -> None:
        assert isinstance(run(leave_effect_and_miss, name="a"), Ignored)

        record = TaskRecord.objects.get()
        assert (record.status, record.result) == ("SUCCESS", None)
        assert "Missing: a" in record.traceback
        assert effects() == []

    def test_a_retry_is_a_new_invocation_with_a_derived_id(self) -> None:
        message_id = identity.new_message_id()
        outcome = run(leave_effect_and_retry, 3, message_id=message_id, name="a")

        assert isinstance(outcome, Retry)
        record = TaskRecord.objects.get()
        assert (record.status, record.n_retries) == ("RETRYING", 3)
        assert "Refused: a" in record.traceback
        [job] = sent()
        assert job.message == message(leave_effect_and_retry, 4, name="a")
        assert job.message_id == identity.retry_id(message_id, 4)
        assert job.root_id == message_id
        assert 8 <= job.delay <= 12
        assert effects() == []

    def test_a_chain_of_retries_keeps_its_root(self) -> None:
        root = identity.new_message_id()
        run(leave_effect_and_retry, message_id=root, name="a")
        job = sent().pop()
        execute(job.message, message_id=job.message_id, root_id=job.root_id)

        assert set(TaskRecord.objects.values_list("root_id", flat=True)) == {UUID(root)}
        assert sent().pop().message_id == identity.retry_id(root, 2)

    @override_settings(LAMBDA_TASKS_MAX_RETRIES=2)
    def test_exhausted_retries_fail_and_raise_out_of_execute_immediately(self) -> None:
        with pytest.raises(MaxRetriesExceededError, match="LAMBDA_TASKS_MAX_RETRIES is 2") as raised:
            message(leave_effect_and_retry, 2, name="a").execute_immediately()

        assert isinstance(raised.value.__cause__, Refused)
        record = TaskRecord.objects.get()
        assert record.status == "FAILED"
        assert "Refused: a" in record.traceback
        assert "MaxRetriesExceededError" in record.traceback
        assert sent() == []

    def test_a_result_that_is_no_json_rolls_back_and_fails_with_the_reason(self) -> None:
        @lambda_task(retry_on=[Exception])
        def give(*, name: str) -> object:
            Effect.objects.create(name=name)
            return {"value": object()}

        assert isinstance(run(give, name="a"), Failed)
        assert "cannot be stored as JSON" in TaskRecord.objects.get().traceback
        assert effects() == []

    def test_sys_exit_fails_the_task_and_not_the_worker(self) -> None:
        @lambda_task
        def leave() -> None:
            raise SystemExit(3)

        assert isinstance(run(leave), Failed)
        assert "SystemExit: 3" in TaskRecord.objects.get().traceback

    def test_ctrl_c_is_recorded_and_passed_on(self) -> None:
        @lambda_task
        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(interrupted)
        assert TaskRecord.objects.get().status == "FAILED"

    def test_a_traceback_that_no_database_stores_is_made_storable(self) -> None:
        @lambda_task
        def shout() -> None:
            raise Refused("nul \x00, lone \ud800, " + "long " * 100_000)

        run(shout)
        traceback = TaskRecord.objects.get().traceback
        assert r"nul \x00, lone \ud800" in traceback
        assert "characters left out" in traceback
        assert len(traceback) < 101_000

    def test_an_error_that_cannot_be_printed_is_recorded(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise ValueError

        @lambda_task
        def sulk() -> None:
            raise Mute

        run(sulk)
        assert "Mute" in TaskRecord.objects.get().traceback


class TestBeforeAnythingIsRecorded:
    def test_an_unknown_task_is_refused(self) -> None:
        with pytest.raises(UnknownTask, match=r"tests\.test_executor\.nothing"):
            SQSLambdaTaskMessage(task_name="tests.test_executor.nothing").execute_immediately()
        assert not TaskRecord.objects.exists()

    def test_a_message_cannot_make_the_worker_import_what_is_not_the_projects(self) -> None:
        import sys

        sys.modules.pop("this", None)
        with pytest.raises(UnknownTask, match="LAMBDA_TASKS_MODULES"):
            SQSLambdaTaskMessage(task_name="this.zen").execute_immediately()
        assert "this" not in sys.modules

    def test_arguments_that_do_not_fit_are_refused(self) -> None:
        with pytest.raises(InvalidMessage, match="name"):
            message(leave_effect, name=1).execute_immediately()
        assert not TaskRecord.objects.exists()


class TestIdentity:
    def test_the_log_the_record_and_the_run_have_one_id(self) -> None:
        seen = []

        @lambda_task
        def look() -> None:
            seen.append(current_message_id())

        message_id = identity.new_message_id()
        run(look, message_id=message_id)
        assert seen == [message_id]
        assert current_message_id() is None

    def test_ids_grow_in_the_order_of_the_calls(self) -> None:
        ids = [identity.new_message_id() for _ in range(2_000)]
        assert ids == sorted(ids)
        assert len(set(ids)) == len(ids)
        assert all(
            UUID(message_id).version == 7 and UUID(message_id).variant == UUID(ids[0]).variant for message_id in ids
        )

    def test_a_foreign_id_has_one_form(self) -> None:
        assert identity.canonical_id("059F36B4-87A3-44AB-83D2-661975830A7D") == "059f36b4-87a3-44ab-83d2-661975830a7d"
        assert identity.canonical_id("msg-1") == identity.canonical_id("msg-1") != identity.canonical_id("msg-2")


class TestClaim:
    def test_a_copy_of_a_finished_invocation_is_skipped(self) -> None:
        message_id = identity.new_message_id()
        run(leave_effect, message_id=message_id, name="a")

        assert run(leave_effect, message_id=message_id, name="a") == Skipped("finished")
        assert effects() == ["a"]

    @pytest.mark.parametrize("task", [leave_effect_and_fail, leave_effect_and_retry])
    def test_a_copy_of_a_failed_or_retried_invocation_is_skipped(self, task: Any) -> None:
        message_id = identity.new_message_id()
        run(task, message_id=message_id, name="a")
        sent().clear()

        assert run(task, message_id=message_id, name="a") == Skipped("finished")
        assert sent() == []

    def test_a_copy_of_a_running_invocation_is_not_acknowledged(self) -> None:
        message_id = identity.new_message_id()
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

    def test_the_run_of_a_worker_that_died_is_taken_over(self) -> None:
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

    def test_work_that_must_never_repeat_fails_at_the_first_death(self) -> None:
        message_id = dead_run(never_twice, name="a")

        assert isinstance(run(never_twice, message_id=message_id, name="a"), Failed)
        assert "on_crash='fail'" in TaskRecord.objects.get().traceback
        assert effects() == []

    def test_a_worker_that_lost_its_lease_commits_nothing(self) -> None:
        """A container that was frozen past its lease wakes up when another one has done the work."""
        message_id = identity.new_message_id()

        def take_over() -> None:
            TaskRecord.objects.filter(pk=message_id).update(lease_until=Now() - timedelta(seconds=1))
            run(leave_effect, message_id=message_id, name="the other's")

        @lambda_task
        def sleep_past_the_lease() -> None:
            in_another_worker(take_over)
            Effect.objects.create(name="the sleeper's")

        with pytest.raises(Redeliver, match="taken over"):
            run(sleep_past_the_lease, message_id=message_id)
        assert effects() == ["the other's"]
        assert TaskRecord.objects.get().status == "SUCCESS"

    @pytest.mark.parametrize("task", [leave_effect_and_fail, leave_effect_and_retry, leave_effect])
    def test_a_record_that_is_deleted_while_running_takes_the_work_back(self, task: Any) -> None:
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
        """Nobody may ever see the work without its SUCCESS, or the other way round."""
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

    def test_a_deferred_constraint_that_fails_at_commit_fails_the_task(self) -> None:
        class RefusingStore(ORMStore):
            def record(self, run: Any, outcome: Any) -> None:
                super().record(run, outcome)
                if isinstance(outcome, Succeeded):
                    raise Refused("at commit")

        with swapped_store(RefusingStore()):
            assert isinstance(run(leave_effect, name="a"), Failed)
        assert effects() == []
        assert TaskRecord.objects.get().status == "FAILED"

    def test_an_error_after_commit_changes_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        @lambda_task
        def call_back(*, name: str) -> str:
            Effect.objects.create(name=name)
            transaction.on_commit(lambda: 1 / 0)
            return "done"

        assert run(call_back, name="a") == Succeeded("done")
        assert TaskRecord.objects.get().status == "SUCCESS"
        assert "ZeroDivisionError" in caplog.text

    def test_if_the_answer_to_commit_is_lost_the_record_says_what_happened(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lose_answers(monkeypatch, commit_first=True)

        assert isinstance(run(leave_effect, name="a"), Succeeded)
        assert TaskRecord.objects.get().status == "SUCCESS"
        assert effects() == ["a"]

    def test_if_the_commit_itself_is_lost_the_message_goes_back_and_is_run_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message_id = identity.new_message_id()
        with monkeypatch.context() as patch:
            lose_answers(patch, commit_first=False)
            with pytest.raises(Redeliver, match="database went away"):
                run(leave_effect, message_id=message_id, name="a")
        assert effects() == []

        assert isinstance(run(leave_effect, message_id=message_id, name="a"), Succeeded)
        assert effects() == ["a"]
        assert TaskRecord.objects.get().takeovers == 0

    def test_a_session_that_the_server_ends_is_not_the_tasks_failure(self) -> None:
        if connection.vendor != "postgresql":
            pytest.skip("the session is ended by pg_terminate_backend, which is PostgreSQL's")
        message_id = identity.new_message_id()

        @lambda_task
        def cut_off(*, name: str) -> None:
            Effect.objects.create(name=name)
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(Redeliver, match="database went away"):
            run(cut_off, message_id=message_id, name="a")
        assert TaskRecord.objects.get().claim is None
        assert effects() == []

    def test_an_error_that_hides_a_lost_connection_is_not_the_tasks_failure_either(self) -> None:
        if connection.vendor != "postgresql":
            pytest.skip("the session is ended by pg_terminate_backend, which is PostgreSQL's")

        @lambda_task
        def translate_errors() -> None:
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            except OperationalError:
                raise Refused from None

        with pytest.raises(Redeliver, match="database went away"):
            run(translate_errors)

    def test_a_database_error_on_a_sound_connection_is_the_tasks_failure(self) -> None:
        @lambda_task
        def ask_wrongly() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT nothing FROM nowhere")

        assert isinstance(run(ask_wrongly), Failed)


class TestRetries:
    def test_a_retry_is_sent_first_and_recorded_second(self) -> None:
        seen = []

        class WatchingBackend(MemoryBackend):
            def send(self, jobs: Any, *, taken: Any) -> None:
                seen.append(TaskRecord.objects.get().status)
                super().send(jobs, taken=taken)

        with swapped_backend(WatchingBackend()):
            run(leave_effect_and_retry, name="a")
        assert seen == ["RUNNING"]
        assert TaskRecord.objects.get().status == "RETRYING"

    def test_a_retry_that_cannot_be_sent_is_redelivered(self) -> None:
        message_id = identity.new_message_id()

        class BrokenBackend(BaseBackend):
            def send(self, jobs: Any, *, taken: Any) -> None:
                raise ConnectionError("no queue")

        with swapped_backend(BrokenBackend()), pytest.raises(Redeliver, match="could not be sent"):
            run(leave_effect_and_retry, message_id=message_id, name="a")
        record = TaskRecord.objects.get()
        assert (record.status, record.claim) == ("RUNNING", None)

        assert isinstance(run(leave_effect_and_retry, message_id=message_id, name="a"), Retry)
        assert TaskRecord.objects.get().takeovers == 0

    def test_a_retry_that_no_queue_will_ever_take_is_a_failure(self) -> None:
        class NarrowBackend(MemoryBackend):
            def validate(self, job: Any) -> None:
                raise MessageTooLarge("one byte too many")

        with swapped_backend(NarrowBackend()):
            outcome = run(leave_effect_and_retry, name="a")
        assert isinstance(outcome, Failed)
        record = TaskRecord.objects.get()
        assert (record.status, effects()) == ("FAILED", [])
        assert "one byte too many" in (record.traceback or "")

    def test_the_delay_has_jitter_and_is_capped(self) -> None:
        @lambda_task(retry_on=[Refused], retry_delay=899)
        def late() -> None:
            raise Refused

        delays = {run(late).delay for _ in range(20)}
        assert delays == {900}

    def test_a_time_limit_is_retried_only_where_it_is_named(self) -> None:
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

    def test_redis_own_lock_error_may_be_named_to_ignore_contention(self) -> None:
        import redis.exceptions

        @lambda_task(singleton=True, ignore_errors=[redis.exceptions.LockError])
        def polite() -> None:
            pass

        get_lock().acquire(f"lambda_tasks.singleton_lock.{polite.name}", token="another", timeout=60)
        assert isinstance(run(polite), Ignored)

    def test_the_lock_goes_around_the_commit_and_inside_the_claim(self) -> None:
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

    def test_an_error_on_release_changes_nothing(self) -> None:
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

    def test_a_lock_whose_server_is_away_is_tried_again_later(self) -> None:
        class AbsentLock(MemoryLock):
            def acquire(self, key: str, *, token: str, timeout: float) -> bool:
                raise ConnectionError("no Redis")

        with swapped_lock(AbsentLock()):
            assert isinstance(run(alone, name="a"), Retry)
            # It is no contention: who ignores that must not lose work because Redis is away.
            assert isinstance(run(alone_or_not_at_all), Retry)
        assert effects() == []

    def test_how_long_its_server_is_away_does_not_count_against_the_tasks_own_retries(self) -> None:
        @lambda_task(singleton=True, retry_on=[Refused], retry_delay=1, retry_backoff=True, max_retries=1)
        def alone_and_once_more() -> None:
            raise Refused

        class AbsentLock(MemoryLock):
            def acquire(self, key: str, *, token: str, timeout: float) -> bool:
                raise ConnectionError("no Redis")

        with swapped_lock(AbsentLock()):
            waiting = run(alone_and_once_more, 5)
        assert isinstance(waiting, Retry)
        assert waiting.delay > 32  # and the pauses grow as with any task
        assert isinstance(run(alone_and_once_more, 5), Failed)

    def test_the_lock_is_free_after_every_ending(self) -> None:
        @lambda_task(singleton=True)
        def end(*, how: str) -> None:
            if how == "error":
                raise Refused

        for how in ("well", "error", "well"):
            assert not isinstance(run(end, how=how), Retry)


class TestLimits:
    def test_limits_end_before_the_invocation_does(self) -> None:
        import time

        soft, hard = clamped(270, 300, time.monotonic() + 60)
        assert 54 < hard <= 56
        assert soft < hard

    def test_limits_that_fit_stay_as_they_are(self) -> None:
        import time

        assert clamped(270, 300, time.monotonic() + 900) == (270, 300)
        assert clamped(270, 300, None) == (270, 300)

    def test_an_invocation_without_time_still_has_limits_in_order(self) -> None:
        soft, hard = clamped(270, 300, 0.0)
        assert 0 < soft < hard

    def test_a_task_that_takes_too_long_is_failed_and_rolled_back(self) -> None:
        @lambda_task(soft_timeout=1, hard_timeout=2)
        def linger(*, name: str) -> None:
            Effect.objects.create(name=name)
            threading.Event().wait(60)

        outcome = run(linger, name="a")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, SoftTimeLimitExceeded)
        assert effects() == []

    def test_an_alarm_never_strikes_in_commit(self) -> None:
        """Both limits run out while the record is written: the task is done, and stays done."""

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

    def test_a_hard_limit_that_the_task_swallows_fails_it_all_the_same(self) -> None:
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
    """Leave the record of a worker that died while it ran `task`, its lease over."""
    message_id = identity.new_message_id()
    TaskRecord.objects.create(
        id=message_id,
        task_name=task.name,
        kwargs=kwargs,
        start_time=Now(),
        root_id=message_id,
        claim=identity.new_message_id(),
        lease_until=Now() - timedelta(seconds=1),
    )
    return message_id


def in_another_worker(work: Any) -> None:
    """Do `work` in a thread with connections of its own."""
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


def lose_answers(patch: pytest.MonkeyPatch, *, commit_first: bool) -> None:
    """Cut the connection at the next COMMIT: after the server has it, or before."""
    commit = connection._commit

    def cut() -> None:
        patch.undo()
        if commit_first:
            commit()
        connection.connection.close()
        raise OperationalError("server closed the connection unexpectedly")

    patch.setattr(connection, "_commit", cut)


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
    """Choose a strategy made in the test by its dotted path, as a project would."""
    global made_by_test
    made_by_test = make
    with override_settings(**{f"LAMBDA_TASKS_{setting}": f"{__name__}.made_by_test"}):
        yield


made_by_test: Any = None
