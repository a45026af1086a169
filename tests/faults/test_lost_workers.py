"""Recovery of lost tasks: each is run elsewhere or fails, and no record stays RUNNING."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.test import override_settings

from lambda_tasks import failpoints, tasks
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import Redeliver, TaskLostError
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations import forgetting
from lambda_tasks.operations import reaping as lost
from lambda_tasks.operations.reaping import Reaped, reap
from lambda_tasks.outcomes import Failed
from lambda_tasks.recording.masking import MASK
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.tasks import cleanup_task_records, reap_lost_tasks
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.visibility import lost_after
from tests.app.models import Effect
from tests.faults.workers import (
    EVERYWHERE,
    LONG,
    ON_DEFAULT,
    WITH_ROW_LOCKS,
    backend,
    deliver,
    effects,
    expire_lease,
    in_another_worker,
    job_of,
    leave_effect,
    lost_record,
    never_twice,
    new_id,
    perishable,
    record_of,
    records,
    secretive,
)

pytestmark = pytest.mark.usefixtures("empty_queue")


def _nested(levels: int) -> Any:
    return [_nested(levels - 1)] if levels else 1


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestResending:
    def test_lost_invocation_is_resent_under_its_id(self) -> None:
        root = ids.new_message_id()
        message_id = ids.retry_id(root, 2)
        lost_record(id=message_id, n_retries=2, root_id=root, queue="other", kwargs={"name": "läuft"})

        assert reap() == Reaped(sent_again=1)

        [job] = backend().take()
        assert (job.message_id, job.root_id, job.queue, job.delay) == (message_id, root, "other", 0)
        assert job.message == Invocation(task_name=leave_effect.name, kwargs={"name": "läuft"}, n_retries=2)
        deliver(job)
        record = record_of(message_id)
        assert (record.status, record.takeovers, record.n_retries, record.root_id) == ("SUCCESS", 1, 2, UUID(root))
        assert effects() == ["läuft"]

    def test_released_invocation_without_a_message_is_resent(self) -> None:
        """For example, a failure could not be recorded until the message went to the dead-letter queue."""
        message_id = lost_record(claim=None)
        assert reap() == Reaped(sent_again=1)
        deliver(*backend().take())
        assert record_of(message_id).status == "SUCCESS"

    def test_late_first_message_does_not_run_twice(self) -> None:
        message_id = lost_record()
        reap()
        deliver(job_of(leave_effect, message_id, name="a"), *backend().take())
        assert effects() == ["a"]

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"ago": -timedelta(seconds=60)}, id="its lease is alive"),
            pytest.param({"ago": timedelta(seconds=lost_after() - 60)}, id="its lease was over just now"),
            *({"status": status} for status in ("SUCCESS", "FAILED", "RETRYING")),
        ],
    )
    def test_other_records_are_left_alone(self, fields: dict[str, Any]) -> None:
        lost_record(**fields)
        before = list(records().values())
        with transaction.atomic(using=get_store().database):
            assert get_store().lost(older_than=lost_after(), limit=10) == []
        assert reap() == Reaped()
        assert list(records().values()) == before
        assert backend().jobs == []

    def test_resent_invocation_is_left_until_lost_again(self) -> None:
        message_id = lost_record()
        assert reap().sent_again == 1
        assert reap() == Reaped()
        expire_lease(message_id)
        assert reap().sent_again == 1
        assert record_of(message_id).takeovers == 2

    def test_reaping_is_not_limited_to_one_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lost, "BATCH_SIZE", 3)
        ids = {lost_record() for _ in range(7)}
        assert reap() == Reaped(sent_again=7)
        assert sorted(job.message_id for job in backend().jobs) == sorted(ids)


@ON_DEFAULT
class TestQueueAndAge:
    @pytest.mark.parametrize(
        ("recorded", "queue"),
        [
            ("default", "default"),
            pytest.param("closed", "other", id="a queue that there is no more: to the task's"),
            pytest.param("", "other", id="a record of an earlier version: to the task's"),
        ],
    )
    def test_invocation_returns_to_its_queue(self, recorded: str, queue: str) -> None:
        lost_record(leave_effect, queue=recorded)
        reap()
        assert backend().take()[0].queue == queue

    @pytest.mark.parametrize("root", [None, str(uuid4())], ids=["ours", "a schedule's"])
    def test_age_counts_from_when_it_was_first_sent(self, root: str | None) -> None:
        message_id = lost_record(perishable, root_id=root or new_id(ago=LONG))
        reap()
        deliver(*backend().take())
        assert "TaskExpiredError: expired" in (record_of(message_id).traceback or "")
        assert effects() == []

    def test_claim_records_the_queue(self) -> None:
        handle = leave_effect.using(queue="default").execute_on_commit(name="a")
        deliver(*backend().take())
        assert record_of(handle.message_id).queue == "default"

    def test_takeover_records_the_queue_of_its_delivery(self) -> None:
        message_id = lost_record(queue="")
        deliver(job_of(leave_effect, message_id, name="a"))
        assert record_of(message_id).queue == "default"


class Listener:
    """A plugin that records how runs ended, and whether that was in a transaction."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any, bool]] = []

    @hookimpl
    def lambda_task_finished(self, run: Any, outcome: Any) -> None:
        self.heard.append((run.message_id, outcome, connections[run.database].in_atomic_block))


class TestGivenUp:
    @EVERYWHERE
    @pytest.mark.usefixtures("store")
    def test_unrepeatable_task_fails(self) -> None:
        message_id = lost_record(never_twice)

        assert reap() == Reaped(failed=1)

        record = record_of(message_id)
        assert record.status == "FAILED"
        assert record.traceback == (
            "lambda_tasks.exceptions.TaskLostError: lost: its worker died, "
            "and on_crash='fail' forbids another attempt.\n"
        )
        assert record.start_time < record.end_time
        assert backend().jobs == []
        # If its message arrives after all, it is acknowledged and not run.
        deliver(job_of(never_twice, message_id, name="a"))
        assert effects() == []

    @ON_DEFAULT
    @pytest.mark.parametrize(
        ("task", "fields", "reason"),
        [
            ("tests.faults.workers.nobody", {}, r"its task is now unknown\. .*does not contain a task"),
            ("gone.tasks.nobody", {}, r"its task is now unknown\. .*must not import"),
            (
                leave_effect,
                {"kwargs": {"name": MASK}},
                "its record lacks the sensitive arguments to send it again: name",
            ),
            (secretive, {}, "its record lacks the sensitive arguments to send it again: name"),
            (leave_effect, {"takeovers": 3}, r"it was taken over or lost 4 times \(LAMBDA_TASKS_MAX_TAKEOVERS is 3\)"),
        ],
    )
    def test_unsendable_invocation_fails(self, task: Any, fields: dict[str, Any], reason: str) -> None:
        lost_record(task, **fields)
        assert reap() == Reaped(failed=1)
        record = records().get()
        assert (record.status, record.result) == ("FAILED", None)
        assert re.search(rf"TaskLostError: lost: .*{reason}", record.traceback)
        assert backend().jobs == []

    @EVERYWHERE
    @pytest.mark.usefixtures("store")
    def test_invocation_lost_too_often_fails(self) -> None:
        message_id = lost_record()
        for _ in range(3):
            assert reap() == Reaped(sent_again=1)
            backend().jobs.clear()
            expire_lease(message_id)
        assert reap() == Reaped(failed=1)
        assert "lost: it was taken over or lost 4 times" in (record_of(message_id).traceback or "")
        assert reap() == Reaped()

    @ON_DEFAULT
    def test_plugins_are_notified_after_the_commit(self, caplog: pytest.LogCaptureFixture) -> None:
        message_id = lost_record(never_twice)
        listener = Listener()
        with override_settings(LAMBDA_TASKS_PLUGINS=[listener]):
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                assert reap().failed == 1
                raise ZeroDivisionError
            assert listener.heard == []
            assert record_of(message_id).status == "RUNNING"
            reap()
        [(heard, outcome, in_transaction)] = listener.heard
        assert (heard, in_transaction) == (message_id, False)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, TaskLostError)
        [line] = {record.getMessage() for record in caplog.records if record.levelname == "ERROR"}
        assert line.startswith(f"[{message_id}] {never_twice.name} is lost and is recorded as FAILED: its worker died")


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestRaces:
    def seen(self) -> Any:
        with transaction.atomic(using=get_store().database):
            [seen] = get_store().lost(older_than=lost_after(), limit=10)
        return seen

    def both_verbs(self, seen: Any) -> tuple[bool, bool]:
        store = get_store()
        return (
            store.offer(seen, older_than=lost_after()),
            store.give_up(seen, Failed(TaskLostError("lost")), older_than=lost_after()),
        )

    def test_takeover_by_a_worker_wins(self) -> None:
        def look_and_lose() -> None:
            assert self.both_verbs(seen) == (False, False)

        @lambda_task
        def meet() -> None:
            in_another_worker(look_and_lose)

        message_id = lost_record(meet, kwargs={})
        seen = self.seen()
        execute(Invocation(task_name=meet.name), message_id=message_id)
        assert (record_of(message_id).status, record_of(message_id).takeovers) == ("SUCCESS", 1)

    def test_takeover_that_died_has_a_new_lease(self) -> None:
        message_id = lost_record()
        seen = self.seen()
        records().filter(pk=message_id).update(claim=ids.new_message_id())
        assert self.both_verbs(seen) == (False, False)

    def test_ended_invocation_is_not_ended_again(self) -> None:
        lost_record()
        seen = self.seen()
        records().update(status="SUCCESS")
        assert self.both_verbs(seen) == (False, False)
        assert records().get().status == "SUCCESS"

    @pytest.mark.parametrize("claim", [ids.new_message_id(), None], ids=["claimed", "given back"])
    def test_one_of_two_reapers_wins(self, claim: str | None) -> None:
        lost_record(claim=claim)
        first, second = self.seen(), self.seen()
        assert get_store().offer(first, older_than=0)
        assert not get_store().offer(second, older_than=0)
        assert records().get().takeovers == 1

    def test_thawed_worker_commits_nothing(self) -> None:
        """Another worker has run its task, which was sent again."""
        message_id = ids.new_message_id()

        def reap_and_run() -> None:
            expire_lease(message_id)
            assert reap() == Reaped(sent_again=1)
            deliver(*backend().take())

        to_happen = [reap_and_run]

        @lambda_task
        def freeze(*, name: str) -> None:
            if to_happen:
                in_another_worker(to_happen.pop())
                name = "the frozen one's"
            leave_effect(name=name)

        with pytest.raises(Redeliver, match="taken over"):
            execute(Invocation(task_name=freeze.name, kwargs={"name": "a"}), message_id=message_id)
        assert effects() == ["a"]
        assert record_of(message_id).status == "SUCCESS"

    def test_thawed_worker_cannot_end_a_lost_invocation(self) -> None:
        message_id = ids.new_message_id()

        def reap_it() -> None:
            expire_lease(message_id)
            assert reap() == Reaped(failed=1)

        @lambda_task(on_crash="fail")
        def freeze() -> None:
            in_another_worker(reap_it)
            leave_effect(name="the frozen one's")

        with pytest.raises(Redeliver, match="taken over"):
            execute(Invocation(task_name=freeze.name), message_id=message_id)
        assert effects() == []
        assert record_of(message_id).status == "FAILED"


@WITH_ROW_LOCKS
class TestConcurrency:
    def test_two_reapers_settle_each_invocation_once(self, store: str) -> None:
        ids = sorted(lost_record() for _ in range(40))
        together = threading.Barrier(2, timeout=20)

        def work() -> Reaped:
            together.wait()
            return reap()

        results: list[Reaped] = []
        threads = [threading.Thread(target=lambda: results.append(in_another_worker(work))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sum(result.sent_again for result in results) == len(ids)
        assert sorted(job.message_id for job in backend().jobs) == ids
        assert set(records().values_list("takeovers", flat=True)) == {1}

    def test_reaper_and_workers_share_lost_invocations(self, store: str) -> None:
        """Each invocation goes to the first; none is run twice or left."""
        ids = [lost_record(kwargs={"name": str(number)}) for number in range(20)]
        together = threading.Barrier(2, timeout=20)
        handed_back: list[Job] = []

        def take_over() -> None:
            together.wait()
            for number, message_id in reversed(list(enumerate(ids))):
                job = job_of(leave_effect, message_id, name=str(number))
                if handler({"Records": [event_record(job)]}, None)["batchItemFailures"]:
                    handed_back.append(job)

        def work() -> Reaped:
            together.wait()
            return reap()

        worker = threading.Thread(target=lambda: in_another_worker(take_over))
        worker.start()
        in_another_worker(work)
        worker.join(60)
        assert not worker.is_alive()
        deliver(*backend().take(), *handed_back)
        assert sorted(effects(), key=int) == [str(number) for number in range(20)]
        assert set(records().values_list("status", flat=True)) == {"SUCCESS"}

    def test_worker_frozen_before_commit_does_not_block_reaper(self, store: str) -> None:
        frozen, dead = lost_record(), lost_record()
        holds, done = threading.Event(), threading.Event()

        def freeze() -> None:
            with transaction.atomic(using=store):
                records().filter(pk=frozen).update(status="SUCCESS")
                holds.set()
                assert done.wait(60)
                transaction.set_rollback(True, using=store)

        thread = threading.Thread(target=lambda: in_another_worker(freeze))
        thread.start()
        try:
            assert holds.wait(20)
            limit_lock_waits(store)
            assert reap() == Reaped(sent_again=1)
        finally:
            done.set()
            thread.join(30)
            connections[store].close()
        assert [job.message_id for job in backend().take()] == [dead]
        assert reap() == Reaped(sent_again=1)
        assert [job.message_id for job in backend().take()] == [frozen]


def limit_lock_waits(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        if connections[alias].vendor == "postgresql":
            cursor.execute("SET lock_timeout = '2s'")
        else:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 2")


class RefusingBackend(MemoryBackend):
    """An unavailable queue."""

    def send(self, jobs: Sequence[Job]) -> Any:
        raise ConnectionError("SQS is away")


@ON_DEFAULT
class TestErrors:
    def test_reaper_that_dies_after_its_commit_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        message_id = lost_record()

        def strike(point: str) -> None:
            if point == "enqueue:after_commit":
                raise SystemExit

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(failpoints, "reached", strike)
            reap()
        assert backend().jobs == []
        assert record_of(message_id).status == "RUNNING"

        expire_lease(message_id)
        assert reap() == Reaped(sent_again=1)
        deliver(*backend().take())
        assert record_of(message_id).status == "SUCCESS"

    def test_reaper_that_dies_before_its_commit_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lost_record()
        before = list(records().values())

        def strike(point: str) -> None:
            if point == "enqueue:before_commit":
                raise SystemExit

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(failpoints, "reached", strike)
            reap()
        assert list(records().values()) == before
        assert backend().jobs == []
        assert reap() == Reaped(sent_again=1)

    def test_unsent_invocation_is_found_again(self) -> None:
        message_id = lost_record()
        away = override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.RefusingBackend")
        with away, pytest.raises(ConnectionError, match="SQS is away"):
            reap()
        assert record_of(message_id).status == "RUNNING"
        expire_lease(message_id)
        assert reap() == Reaped(sent_again=1)

    def test_task_logs_the_error_of_the_queue(self, caplog: pytest.LogCaptureFixture) -> None:
        message_id = lost_record()
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.RefusingBackend"):
            SQSLambdaTaskMessage(task_name=reap_lost_tasks.name).execute_immediately()
        assert "SQS is away" in caplog.text
        expire_lease(message_id)
        assert reap() == Reaped(sent_again=1)

    def test_invocation_refused_by_a_plugin_fails_eventually(self, caplog: pytest.LogCaptureFixture) -> None:
        """It does not keep others from being sent."""

        class Refuse:
            @hookimpl
            def lambda_task_sending(self, job: Any) -> None:
                if job.message_id == refused:
                    Effect.objects.create(name="x" * 1000)  # a query that the database rejects
                    raise ValueError("not this one")

        refused, other = lost_record(), lost_record()
        with override_settings(LAMBDA_TASKS_PLUGINS=[Refuse()]):
            assert reap() == Reaped(sent_again=1, unsent=1)
            assert [job.message_id for job in backend().take()] == [other]
            assert f"[{refused}] {leave_effect.name} is lost and cannot be sent again now" in caplog.text
            deliver_later = [record_of(refused).status]
            for _ in range(3):
                expire_lease(refused)
                reap()
        assert deliver_later == ["RUNNING"]
        assert record_of(refused).status == "FAILED"

    def test_broken_module_does_not_block_other_invocations(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
    ) -> None:
        (tmp_path / "broken_module.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        settings.LAMBDA_TASKS_MODULES = ["broken_module"]
        lost_record("broken_module.task")
        lost_record()
        assert reap() == Reaped(sent_again=1, unsent=1)

    def test_negative_age_is_refused(self) -> None:
        with pytest.raises(ValueError, match="older_than must be 0 or more seconds, not -1"):
            reap(older_than=-1)

    def test_null_store_has_no_lost_invocations(self) -> None:
        lost_record()
        with override_settings(LAMBDA_TASKS_STORE="lambda_tasks.stores.null.NullStore"):
            assert reap() == Reaped()


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestOddRecords:
    """Records from other versions of the library, fixtures and manual edits."""

    @pytest.mark.parametrize("kwargs", [[1], "text", 7, True, [], {"a": _nested(30)}], ids=repr)
    def test_record_with_unusable_arguments_fails_alone(self, kwargs: Any) -> None:
        first, odd, last = lost_record(), lost_record(kwargs=kwargs), lost_record()
        told: list[Any] = []

        class Listener:
            @hookimpl
            def lambda_task_finished(self, run: Any, outcome: Any) -> None:
                told.append((run.message_id, type(outcome.error)))

        with override_settings(LAMBDA_TASKS_PLUGINS=[Listener()]):
            assert reap() == Reaped(sent_again=2, failed=1)
        assert [job.message_id for job in backend().take()] == [first, last]
        assert record_of(odd).status == "FAILED"
        assert "no message can be created from its record" in (record_of(odd).traceback or "")
        assert told == [(odd, TaskLostError)]

    @pytest.mark.parametrize("name", ["", "no dots", "a.b\nc", "x" * 255])
    def test_record_with_an_unusable_name_fails_alone(self, name: str) -> None:
        odd, other = lost_record(name), lost_record()
        reaped = reap()
        assert (reaped.sent_again, reaped.failed + reaped.unsent) == (1, 1)
        assert [job.message_id for job in backend().take()] == [other]
        assert record_of(odd).status == "FAILED"

    def test_error_in_one_record_does_not_block_others(self, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
        first, odd, last = lost_record(), lost_record(), lost_record()
        reason = lost._reason_to_give_up

        def stumble(seen: Any, task: Any, trouble: Any) -> str | None:
            if seen.message_id == odd:
                Effect.objects.using(get_store().database).create(pk="no number")
            return reason(seen, task, trouble)

        monkeypatch.setattr(lost, "_reason_to_give_up", stumble)
        assert reap() == Reaped(sent_again=2, unsent=1)
        assert [job.message_id for job in backend().take()] == [first, last]
        assert (record_of(odd).status, record_of(odd).takeovers) == ("RUNNING", 0)
        assert f"[{odd}] {leave_effect.name} is lost and cannot be recovered now" in caplog.text

    def test_time_limit_ends_reaping(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lost_record()

        def strike(*_: object) -> None:
            raise SoftTimeLimitExceeded

        monkeypatch.setattr(lost, "_reason_to_give_up", strike)
        with pytest.raises(SoftTimeLimitExceeded):
            reap()

    @pytest.mark.parametrize("claim", [None, ids.new_message_id()], ids=["unclaimed", "claimed"])
    def test_record_without_a_lease_is_taken_over(self, claim: str | None) -> None:
        message_id = lost_record(lease_until=None, claim=claim)
        deliver(job_of(leave_effect, message_id, name="a"))
        assert record_of(message_id).status == "SUCCESS"
        assert effects() == ["a"]

    @pytest.mark.parametrize("claim", [None, ids.new_message_id()], ids=["unclaimed", "claimed"])
    @pytest.mark.parametrize("fields", [{}, {"start_time": None}], ids=["begun", "with no times"])
    def test_record_without_a_lease_ages_from_its_start(self, fields: Any, claim: str | None) -> None:
        message_id = lost_record(lease_until=None, claim=claim, **fields)
        assert reap() == Reaped(sent_again=1)
        deliver(*backend().take())
        assert record_of(message_id).status == "SUCCESS"

    def test_recent_record_without_a_lease_is_not_lost(self) -> None:
        """During a deployment, a worker of a version without leases may be running it."""
        lost_record(lease_until=None, start_time=DatabaseNow())
        assert reap() == Reaped()

    def test_unusable_record_without_a_lease_is_given_up(self) -> None:
        message_id = lost_record(never_twice, lease_until=None)
        assert reap() == Reaped(failed=1)
        assert record_of(message_id).status == "FAILED"


class Clock:
    """A clock that advances by `step` seconds on each reading."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self._step = step

    def __call__(self) -> float:
        self.now += self._step
        return self.now


@ON_DEFAULT
class TestTask:
    def run(self, task: Any, **kwargs: Any) -> TaskRecord:
        message_id = ids.new_message_id()
        SQSLambdaTaskMessage(task_name=task.name, kwargs=kwargs).execute_immediately(message_id)
        return record_of(message_id)

    def test_invocations_are_sent_after_the_commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[int] = []
        reached = {"finish:before_commit": lambda: sent.append(len(backend().jobs))}
        monkeypatch.setattr(failpoints, "reached", lambda point: reached.get(point, lambda: None)())
        lost_record()
        lost_record(never_twice)
        record = self.run(reap_lost_tasks)
        assert (record.status, record.result) == ("SUCCESS", {"sent_again": 1, "failed": 1, "unsent": 0})
        assert sent == [0]
        assert len(backend().jobs) == 1

    def test_older_than_sets_the_age(self) -> None:
        lost_record(ago=timedelta(seconds=90))
        assert self.run(reap_lost_tasks, older_than=120).result["sent_again"] == 0
        assert self.run(reap_lost_tasks, older_than=60).result["sent_again"] == 1

    def test_documented_name_is_stable(self) -> None:
        """Schedules outside the project refer to it."""
        assert reap_lost_tasks.serialize(older_than=7200)["message"] == {
            "task_name": "lambda_tasks.tasks.reap_lost_tasks",
            "kwargs": {"older_than": 7200},
        }

    def test_reaping_stops_long_before_the_time_limit(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(5):
            lost_record()
        # Half of the soft timeout is 135 s: two tasks are settled, and the third reading of the clock is the last.
        monkeypatch.setattr(lost, "monotonic", Clock(50))
        assert self.run(reap_lost_tasks).result["sent_again"] == 2
        assert "2 lost tasks recovered. There are more; the next run continues." in caplog.text
        monkeypatch.setattr(lost, "monotonic", Clock(0))
        assert self.run(reap_lost_tasks).result["sent_again"] == 3

    def test_reaping_is_limited_to_sendable_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The messages must be sent in the time that is left after the commit."""
        monkeypatch.setattr(tasks, "MAX_REAPED", 2)
        for _ in range(3):
            lost_record()
        assert self.run(reap_lost_tasks).result["sent_again"] == 2
        assert self.run(reap_lost_tasks).result["sent_again"] == 1

    def test_large_cleanup_stops_before_the_time_limit(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What it has deleted by then stays deleted."""
        for _ in range(25):
            lost_record(status="SUCCESS", start_time=DatabaseNow() - timedelta(days=8))
        monkeypatch.setattr(forgetting, "BATCH_SIZE", 10)
        clock = Clock(100)
        monkeypatch.setattr(tasks, "monotonic", clock)
        monkeypatch.setattr(forgetting, "monotonic", clock)
        assert self.run(cleanup_task_records).result == 20
        assert "20 records deleted. The time is used up; the next run continues." in caplog.text
        assert self.run(cleanup_task_records).result == 5

    def test_cleanup_called_directly_has_no_time_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(25):
            lost_record(status="SUCCESS", start_time=DatabaseNow() - timedelta(days=8))
        monkeypatch.setattr(forgetting, "BATCH_SIZE", 10)
        clock = Clock(1000)
        monkeypatch.setattr(tasks, "monotonic", clock)
        monkeypatch.setattr(forgetting, "monotonic", clock)
        assert cleanup_task_records() == 25


@ON_DEFAULT
class TestCommand:
    def test_lost_invocations_are_settled_and_counted(self, capsys: pytest.CaptureFixture[str]) -> None:
        lost_record()
        lost_record(never_twice)
        call_command("lambda_tasks", "reap")
        assert capsys.readouterr().out == "1 sent again, 1 failed.\n"
        assert len(backend().jobs) == 1

    def test_older_than_sets_the_age(self, capsys: pytest.CaptureFixture[str]) -> None:
        lost_record(ago=timedelta(seconds=90))
        call_command("lambda_tasks", "reap", "--older-than=120")
        call_command("lambda_tasks", "reap", "--older-than=60")
        assert capsys.readouterr().out == "0 sent again, 0 failed.\n1 sent again, 0 failed.\n"

    @pytest.mark.parametrize("age", ["-1", "soon"])
    def test_invalid_age_is_refused(self, age: str) -> None:
        with pytest.raises(CommandError, match="older"):
            call_command("lambda_tasks", "reap", f"--older-than={age}")

    def test_unsent_invocations_make_the_command_fail(self) -> None:
        class Refuse:
            @hookimpl
            def lambda_task_sending(self, job: Any) -> None:
                raise ValueError("not today")

        lost_record()
        with (
            override_settings(LAMBDA_TASKS_PLUGINS=[Refuse()]),
            pytest.raises(CommandError, match=r"1 could not be sent\. The records stay RUNNING"),
        ):
            call_command("lambda_tasks", "reap")


@EVERYWHERE
def test_previous_version_can_claim_during_a_deployment(store: str) -> None:
    """The table is migrated first, and the INSERT of the old code contains no queue."""
    before = MigrationExecutor(connections[store]).loader.project_state([("lambda_tasks", "0001_initial")])
    old_record = before.apps.get_model("lambda_tasks", "TaskRecord")
    message_id = ids.new_message_id()
    old_record.objects.using(store).create(id=message_id, task_name=leave_effect.name)
    assert record_of(message_id).queue == ""


class Refusing(MemoryBackend):
    """A queue that is unavailable while `away` is set."""

    away = True

    def send(self, jobs: Sequence[Job]) -> Any:
        if self.away:
            raise ConnectionError("nobody answers")
        return super().send(jobs)


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestQueueOutages:
    """A message that no queue accepted does not count, so that hourly runs during an outage do not use up takeovers."""

    @staticmethod
    def reap_hourly(*, outbox: bool) -> None:
        for _ in range(6):
            with suppress(ConnectionError):
                reap()
            TaskRecord.objects.using(get_store().database).filter(status="RUNNING").update(
                lease_until=DatabaseNow() - LONG
            )

    @pytest.mark.parametrize("outbox", [False, True], ids=["directly", "outbox"])
    def test_reaping_uses_up_no_takeovers(self, outbox: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        message_id = lost_record()
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.Refusing", LAMBDA_TASKS_OUTBOX=outbox):
            self.reap_hourly(outbox=outbox)
            record = record_of(message_id)
            assert (record.status, record.takeovers) == ("RUNNING", int(outbox))

            monkeypatch.setattr(Refusing, "away", False)
            if outbox:
                send_waiting_messages()
            else:
                assert reap() == Reaped(sent_again=1)
            transport: Any = get_backend()
            deliver(*getattr(transport, "transport", transport).take())
        assert record_of(message_id).status == "SUCCESS"

    def test_message_in_the_outbox_is_left_alone(self) -> None:
        """It was reaped often before, so only its row in the outbox keeps it from being given up."""
        message_id = lost_record(takeovers=2)
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.Refusing", LAMBDA_TASKS_OUTBOX=True):
            self.reap_hourly(outbox=True)
        record = record_of(message_id)
        assert (record.status, record.takeovers) == ("RUNNING", 3)

    def test_broken_module_uses_up_no_takeovers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
    ) -> None:
        """As during a faulty deployment."""
        (tmp_path / "broken_for_hours.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        settings.LAMBDA_TASKS_MODULES = ["broken_for_hours"]
        message_id = lost_record("broken_for_hours.task")
        self.reap_hourly(outbox=False)
        assert (record_of(message_id).status, record_of(message_id).takeovers) == ("RUNNING", 0)

    def test_sent_message_counts_as_a_takeover(self) -> None:
        message_id = lost_record()
        for takeovers in (1, 2, 3):
            assert reap() == Reaped(sent_again=1)
            assert record_of(message_id).takeovers == takeovers
            expire_lease(message_id)
        assert reap() == Reaped(failed=1)


def send_waiting_messages() -> None:
    backend: Any = get_backend()
    messages = OutboxMessage.objects.using(get_store().database)
    messages.update(due_at=DatabaseNow() - LONG)
    assert backend.relay().sent == 1
