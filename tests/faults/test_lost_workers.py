"""Workers that end without a word: what they leave is run elsewhere or fails, and no record stays RUNNING."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.db.migrations.executor import MigrationExecutor
from django.test import override_settings

from lambda_tasks import identity, lost, points, tasks
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import Redeliver, TaskLostError
from lambda_tasks.executor import execute
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.lost import Reaped, reap
from lambda_tasks.masking import MASK
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import DatabaseNow, TaskRecord
from lambda_tasks.outcomes import Failed
from lambda_tasks.settings import LOST_AFTER
from lambda_tasks.strategies import get_store
from lambda_tasks.tasks import cleanup_task_records, reap_lost_tasks
from tests.app.models import Effect
from tests.faults.workers import (
    EVERYWHERE,
    LONG,
    ON_DEFAULT,
    WITH_ROW_LOCKS,
    backend,
    deliver,
    effects,
    end_lease,
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


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestSentAgain:
    def test_an_invocation_that_nobody_runs_is_sent_again_under_its_own_id_and_run(self) -> None:
        root = identity.new_message_id()
        message_id = lost_record(n_retries=2, root_id=root, queue="other", kwargs={"name": "läuft"})

        assert reap() == Reaped(sent_again=1)

        [job] = backend().take()
        assert (job.message_id, job.root_id, job.queue, job.delay) == (message_id, root, "other", 0)
        assert job.message == SQSLambdaTaskMessage(task_name=leave_effect.name, kwargs={"name": "läuft"}, n_retries=2)
        deliver(job)
        record = record_of(message_id)
        assert (record.status, record.takeovers, record.n_retries, record.root_id) == ("SUCCESS", 1, 2, UUID(root))
        assert effects() == ["läuft"]

    def test_so_is_one_whose_claim_was_given_back_and_whose_message_is_gone(self) -> None:
        """As when the end of a failed task could not be written, until the message went to the dead letter queue."""
        message_id = lost_record(claim=None)
        assert reap() == Reaped(sent_again=1)
        deliver(*backend().take())
        assert record_of(message_id).status == "SUCCESS"

    def test_its_first_message_may_turn_up_all_the_same_and_it_runs_once(self) -> None:
        message_id = lost_record()
        reap()
        deliver(job_of(leave_effect, message_id, name="a"), *backend().take())
        assert effects() == ["a"]

    @pytest.mark.parametrize(
        "fields",
        [
            pytest.param({"ago": -timedelta(seconds=60)}, id="its lease is alive"),
            pytest.param({"ago": timedelta(seconds=LOST_AFTER - 60)}, id="its lease was over just now"),
            *({"status": status} for status in ("SUCCESS", "FAILED", "RETRYING")),
        ],
    )
    def test_nothing_else_is_touched(self, fields: dict[str, Any]) -> None:
        lost_record(**fields)
        before = list(records().values())
        assert reap() == Reaped()
        assert list(records().values()) == before
        assert backend().jobs == []

    def test_what_was_sent_again_is_left_in_peace_until_it_is_lost_once_more(self) -> None:
        message_id = lost_record()
        assert reap().sent_again == 1
        assert reap() == Reaped()
        end_lease(message_id)
        assert reap().sent_again == 1
        assert record_of(message_id).takeovers == 2

    def test_a_batch_is_no_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lost, "BATCH_SIZE", 3)
        ids = {lost_record() for _ in range(7)}
        assert reap() == Reaped(sent_again=7)
        assert sorted(job.message_id for job in backend().jobs) == sorted(ids)


@ON_DEFAULT
class TestWhereTo:
    @pytest.mark.parametrize(
        ("recorded", "queue"),
        [
            ("default", "default"),
            pytest.param("closed", "other", id="a queue that there is no more: to the task's"),
            pytest.param("", "other", id="a record of an earlier version: to the task's"),
        ],
    )
    def test_it_goes_back_to_its_queue(self, recorded: str, queue: str) -> None:
        lost_record(leave_effect, queue=recorded)
        reap()
        assert backend().take()[0].queue == queue

    @pytest.mark.parametrize("root", [None, str(uuid4())], ids=["ours", "a schedule's"])
    def test_its_age_goes_on_from_when_it_was_first_sent(self, root: str | None) -> None:
        message_id = lost_record(perishable, root_id=root or new_id(ago=LONG))
        reap()
        deliver(*backend().take())
        assert "TaskExpiredError: expired" in (record_of(message_id).traceback or "")
        assert effects() == []

    def test_a_claim_notes_the_queue(self) -> None:
        handle = leave_effect.using(queue="default").execute_on_commit(name="a")
        deliver(*backend().take())
        assert record_of(handle.message_id).queue == "default"

    def test_a_takeover_notes_the_queue_of_the_delivery_that_made_it(self) -> None:
        message_id = lost_record(queue="")
        deliver(job_of(leave_effect, message_id, name="a"))
        assert record_of(message_id).queue == "default"


class Listener:
    """A plugin that notes how runs ended, and whether that was in a transaction."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any, bool]] = []

    @hookimpl
    def lambda_task_finished(self, run: Any, outcome: Any) -> None:
        self.heard.append((run.message_id, outcome, connections[run.database].in_atomic_block))


class TestGivenUp:
    @EVERYWHERE
    @pytest.mark.usefixtures("store")
    def test_work_that_must_never_repeat_fails(self) -> None:
        message_id = lost_record(never_twice)

        assert reap() == Reaped(failed=1)

        record = record_of(message_id)
        assert record.status == "FAILED"
        assert record.traceback == (
            "lambda_tasks.exceptions.TaskLostError: lost: its worker ended without a word, "
            "and on_crash='fail' forbids another try.\n"
        )
        assert record.start_time < record.end_time
        assert backend().jobs == []
        # Its message, should it turn up, is acknowledged and not run.
        deliver(job_of(never_twice, message_id, name="a"))
        assert effects() == []

    @ON_DEFAULT
    @pytest.mark.parametrize(
        ("task", "fields", "reason"),
        [
            ("tests.faults.workers.nobody", {}, r"the task is unknown by now\. .*has no task"),
            ("gone.tasks.nobody", {}, r"the task is unknown by now\. .*may not be imported"),
            (leave_effect, {"kwargs": {"name": MASK}}, "the record does not hold name to send it again"),
            (secretive, {}, "the record does not hold name to send it again"),
            (leave_effect, {"takeovers": 3}, r"it was given up 4 times \(LAMBDA_TASKS_MAX_TAKEOVERS is 3\)"),
        ],
    )
    def test_so_does_what_cannot_be_sent_again(self, task: Any, fields: dict[str, Any], reason: str) -> None:
        lost_record(task, **fields)
        assert reap() == Reaped(failed=1)
        record = records().get()
        assert (record.status, record.result) == ("FAILED", None)
        assert re.search(rf"TaskLostError: lost: .*{reason}", record.traceback)
        assert backend().jobs == []

    @EVERYWHERE
    @pytest.mark.usefixtures("store")
    def test_nothing_stays_running_whose_messages_get_lost_again_and_again(self) -> None:
        message_id = lost_record()
        for _ in range(3):
            assert reap() == Reaped(sent_again=1)
            backend().jobs.clear()
            end_lease(message_id)
        assert reap() == Reaped(failed=1)
        assert "lost: it was given up 4 times" in (record_of(message_id).traceback or "")
        assert reap() == Reaped()

    @ON_DEFAULT
    def test_plugins_hear_of_it_when_it_is_committed(self, caplog: pytest.LogCaptureFixture) -> None:
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
        assert line.startswith(f"[{message_id}] {never_twice.name} is lost and failed: its worker ended")


@EVERYWHERE
@pytest.mark.usefixtures("store")
class TestAtTheSameMoment:
    def seen(self) -> Any:
        with transaction.atomic(using=get_store().database):
            [seen] = get_store().lost(older_than=LOST_AFTER, limit=10)
        return seen

    def both_verbs(self, seen: Any) -> tuple[bool, bool]:
        store = get_store()
        return (
            store.offer(seen, older_than=LOST_AFTER),
            store.give_up(seen, Failed(TaskLostError("lost")), older_than=LOST_AFTER),
        )

    def test_a_worker_that_takes_it_over_wins(self) -> None:
        message_id = lost_record()
        seen = self.seen()

        def look_and_lose() -> None:
            assert self.both_verbs(seen) == (False, False)

        @lambda_task
        def meet() -> None:
            in_another_worker(look_and_lose)

        execute(SQSLambdaTaskMessage(task_name=meet.name), message_id=message_id)
        assert (record_of(message_id).status, record_of(message_id).takeovers) == ("SUCCESS", 1)

    def test_of_a_worker_that_has_taken_it_over_and_died_the_lease_counts_anew(self) -> None:
        message_id = lost_record()
        seen = self.seen()
        records().filter(pk=message_id).update(claim=identity.new_message_id())
        assert self.both_verbs(seen) == (False, False)

    def test_an_ended_one_is_not_ended_again(self) -> None:
        lost_record()
        seen = self.seen()
        records().update(status="SUCCESS")
        assert self.both_verbs(seen) == (False, False)
        assert records().get().status == "SUCCESS"

    @pytest.mark.parametrize("claim", [identity.new_message_id(), None])
    def test_of_two_reapers_that_have_seen_the_same_one_wins(self, claim: str | None) -> None:
        lost_record(claim=claim)
        first, second = self.seen(), self.seen()
        assert get_store().offer(first, older_than=0)
        assert not get_store().offer(second, older_than=0)
        assert records().get().takeovers == 1

    def test_a_worker_that_was_only_frozen_commits_nothing(self) -> None:
        """It wakes up when its task was sent again, and done by another worker."""
        message_id = identity.new_message_id()

        def reap_and_run() -> None:
            end_lease(message_id)
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
            execute(SQSLambdaTaskMessage(task_name=freeze.name, kwargs={"name": "a"}), message_id=message_id)
        assert effects() == ["a"]
        assert record_of(message_id).status == "SUCCESS"

    def test_a_worker_that_was_only_frozen_cannot_end_what_is_failed_as_lost(self) -> None:
        message_id = identity.new_message_id()

        def reap_it() -> None:
            end_lease(message_id)
            assert reap() == Reaped(failed=1)

        @lambda_task(on_crash="fail")
        def freeze() -> None:
            in_another_worker(reap_it)
            leave_effect(name="the frozen one's")

        with pytest.raises(Redeliver, match="taken over"):
            execute(SQSLambdaTaskMessage(task_name=freeze.name), message_id=message_id)
        assert effects() == []
        assert record_of(message_id).status == "FAILED"


@WITH_ROW_LOCKS
class TestSideBySide:
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

    def test_a_reaper_and_workers_that_take_over_share_what_is_lost(self, store: str) -> None:
        """Whoever comes first has it; nothing is run twice, and nothing is left."""
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

    def test_a_worker_that_froze_before_its_commit_does_not_hold_the_reaper_up(self, store: str) -> None:
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
            wait_for_locks_at_most_two_seconds(store)
            assert reap() == Reaped(sent_again=1)
        finally:
            done.set()
            thread.join(30)
            connections[store].close()
        assert [job.message_id for job in backend().take()] == [dead]
        assert reap() == Reaped(sent_again=1)
        assert [job.message_id for job in backend().take()] == [frozen]


def wait_for_locks_at_most_two_seconds(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        if connections[alias].vendor == "postgresql":
            cursor.execute("SET lock_timeout = '2s'")
        else:
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 2")


class RefusingBackend(MemoryBackend):
    """A queue that is away."""

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        raise ConnectionError("SQS is away")


@ON_DEFAULT
class TestTrouble:
    def test_a_reaper_that_dies_between_its_commit_and_the_queue_loses_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message_id = lost_record()

        def strike(point: str) -> None:
            if point == "enqueue:after_commit":
                raise SystemExit

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(points, "reached", strike)
            reap()
        assert backend().jobs == []
        assert record_of(message_id).status == "RUNNING"

        end_lease(message_id)
        assert reap() == Reaped(sent_again=1)
        deliver(*backend().take())
        assert record_of(message_id).status == "SUCCESS"

    def test_a_reaper_that_dies_before_its_commit_has_done_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lost_record()
        before = list(records().values())

        def strike(point: str) -> None:
            if point == "enqueue:before_commit":
                raise SystemExit

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(points, "reached", strike)
            reap()
        assert list(records().values()) == before
        assert backend().jobs == []
        assert reap() == Reaped(sent_again=1)

    def test_what_the_queue_does_not_take_is_found_again(self) -> None:
        message_id = lost_record()
        away = override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.RefusingBackend")
        with away, pytest.raises(ConnectionError, match="SQS is away"):
            reap()
        assert record_of(message_id).status == "RUNNING"
        end_lease(message_id)
        assert reap() == Reaped(sent_again=1)

    def test_the_task_says_in_the_log_that_the_queue_did_not_take_it(self, caplog: pytest.LogCaptureFixture) -> None:
        message_id = lost_record()
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.RefusingBackend"):
            SQSLambdaTaskMessage(task_name=reap_lost_tasks.name).execute_immediately()
        assert "SQS is away" in caplog.text
        end_lease(message_id)
        assert reap() == Reaped(sent_again=1)

    def test_one_that_a_plugin_refuses_keeps_no_other_and_fails_in_the_end(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Refuse:
            @hookimpl
            def lambda_task_sending(self, job: Any) -> None:
                if job.message_id == refused:
                    Effect.objects.create(name="x" * 1000)  # a query that the database refuses
                    raise ValueError("not this one")

        refused, other = lost_record(), lost_record()
        with override_settings(LAMBDA_TASKS_PLUGINS=[Refuse()]):
            assert reap() == Reaped(sent_again=1, unsent=1)
            assert [job.message_id for job in backend().take()] == [other]
            assert f"[{refused}] {leave_effect.name} is lost and cannot be sent again now" in caplog.text
            deliver_later = [record_of(refused).status]
            for _ in range(3):
                end_lease(refused)
                reap()
        assert deliver_later == ["RUNNING"]
        assert record_of(refused).status == "FAILED"

    def test_a_module_that_cannot_be_imported_keeps_no_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
    ) -> None:
        (tmp_path / "broken_module.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        settings.LAMBDA_TASKS_MODULES = ["broken_module"]
        lost_record("broken_module.task")
        lost_record()
        assert reap() == Reaped(sent_again=1, unsent=1)

    def test_a_negative_age_is_refused(self) -> None:
        with pytest.raises(ValueError, match="older_than is -1; give 0 or more seconds"):
            reap(older_than=-1)

    def test_a_store_that_knows_no_lost_invocations_has_none(self) -> None:
        lost_record()
        with override_settings(LAMBDA_TASKS_STORE="lambda_tasks.stores.null.NullStore"):
            assert reap() == Reaped()


class Clock:
    """A clock that goes on by so many seconds at each look."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self._step = step

    def __call__(self) -> float:
        self.now += self._step
        return self.now


@ON_DEFAULT
class TestTask:
    def run(self, task: Any, **kwargs: Any) -> TaskRecord:
        message_id = identity.new_message_id()
        SQSLambdaTaskMessage(task_name=task.name, kwargs=kwargs).execute_immediately(message_id)
        return record_of(message_id)

    def test_it_sends_after_its_commit_and_returns_the_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[int] = []
        reached = {"finish:before_commit": lambda: sent.append(len(backend().jobs))}
        monkeypatch.setattr(points, "reached", lambda point: reached.get(point, lambda: None)())
        lost_record()
        lost_record(never_twice)
        record = self.run(reap_lost_tasks)
        assert (record.status, record.result) == ("SUCCESS", {"sent_again": 1, "failed": 1, "unsent": 0})
        assert sent == [0]
        assert len(backend().jobs) == 1

    def test_it_takes_the_age_that_it_is_given(self) -> None:
        lost_record(ago=timedelta(seconds=90))
        assert self.run(reap_lost_tasks, older_than=120).result["sent_again"] == 0
        assert self.run(reap_lost_tasks, older_than=60).result["sent_again"] == 1

    def test_its_documented_name_is_stable(self) -> None:
        """Schedules outside of the project name it."""
        assert reap_lost_tasks.serialize(older_than=7200)["message"] == {
            "task_name": "lambda_tasks.tasks.reap_lost_tasks",
            "kwargs": {"older_than": 7200},
        }

    def test_it_ends_long_before_its_time_limit_and_leaves_the_rest(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(5):
            lost_record()
        # Half of the soft timeout is 135 s: two are settled, and the third look at the clock is the last.
        monkeypatch.setattr(lost, "monotonic", Clock(50))
        assert self.run(reap_lost_tasks).result["sent_again"] == 2
        assert "2 lost tasks settled; there are more, the next run goes on." in caplog.text
        monkeypatch.setattr(lost, "monotonic", Clock(0))
        assert self.run(reap_lost_tasks).result["sent_again"] == 3

    def test_it_settles_no_more_than_can_be_sent_after_its_commit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "MAX_REAPED", 2)
        for _ in range(3):
            lost_record()
        assert self.run(reap_lost_tasks).result["sent_again"] == 2
        assert self.run(reap_lost_tasks).result["sent_again"] == 1

    def test_a_large_cleanup_ends_long_before_its_time_limit_and_keeps_what_it_did(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(25):
            lost_record(status="SUCCESS", start_time=DatabaseNow() - timedelta(days=8))
        monkeypatch.setattr(tasks, "BATCH_SIZE", 10)
        monkeypatch.setattr(tasks, "monotonic", Clock(100))
        assert self.run(cleanup_task_records).result == 20
        assert "20 records deleted; the time is over, the next run goes on." in caplog.text
        assert self.run(cleanup_task_records).result == 5

    def test_a_cleanup_that_is_called_has_all_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(25):
            lost_record(status="SUCCESS", start_time=DatabaseNow() - timedelta(days=8))
        monkeypatch.setattr(tasks, "BATCH_SIZE", 10)
        monkeypatch.setattr(tasks, "monotonic", Clock(1000))
        assert cleanup_task_records() == 25


@ON_DEFAULT
class TestCommand:
    def test_it_settles_what_is_lost_and_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        lost_record()
        lost_record(never_twice)
        call_command("lambda_tasks", "reap")
        assert capsys.readouterr().out == "1 sent again, 1 failed.\n"
        assert len(backend().jobs) == 1

    def test_it_takes_the_age_that_it_is_given(self, capsys: pytest.CaptureFixture[str]) -> None:
        lost_record(ago=timedelta(seconds=90))
        call_command("lambda_tasks", "reap", "--older-than=120")
        call_command("lambda_tasks", "reap", "--older-than=60")
        assert capsys.readouterr().out == "0 sent again, 0 failed.\n1 sent again, 0 failed.\n"

    @pytest.mark.parametrize("age", ["-1", "soon"])
    def test_an_age_that_makes_no_sense_is_refused(self, age: str) -> None:
        with pytest.raises(CommandError, match="older"):
            call_command("lambda_tasks", "reap", f"--older-than={age}")

    def test_what_cannot_be_sent_makes_it_fail(self) -> None:
        class Refuse:
            @hookimpl
            def lambda_task_sending(self, job: Any) -> None:
                raise ValueError("not today")

        lost_record()
        with (
            override_settings(LAMBDA_TASKS_PLUGINS=[Refuse()]),
            pytest.raises(CommandError, match="1 could not be sent and stay RUNNING for now"),
        ):
            call_command("lambda_tasks", "reap")


@EVERYWHERE
def test_a_worker_of_the_version_before_can_claim_while_a_deploy_is_under_way(store: str) -> None:
    """The table is migrated first: the INSERT of the old code names no queue."""
    before = MigrationExecutor(connections[store]).loader.project_state([("lambda_tasks", "0001_initial")])
    old_record = before.apps.get_model("lambda_tasks", "TaskRecord")
    message_id = identity.new_message_id()
    old_record.objects.using(store).create(id=message_id, task_name=leave_effect.name)
    assert record_of(message_id).queue == ""
