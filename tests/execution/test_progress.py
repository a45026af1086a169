"""Tasks report their progress, which others see while the task runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections, transaction
from django.test.utils import CaptureQueriesContext

from lambda_tasks import current_task, lambda_task
from lambda_tasks.backends.memory import event_record
from lambda_tasks.database import aside
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.execution import progress
from lambda_tasks.execution.pipeline import prepare
from lambda_tasks.execution.strangers import watch_of_caller
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Run
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.models import TaskProgress, TaskRecord
from lambda_tasks.outcomes import ReportedProgress
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_store
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.testing import TaskQueue
from lambda_tasks.testing.contracts.crowd import AT_ONCE
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.faults.workers import backend, deliver, expire_lease, in_another_worker, job_of, stored_in

EVERYWHERE: Final = pytest.mark.databases(transaction=True)
ON_SERVERS: Final = pytest.mark.databases("postgres", "mariadb", transaction=True)
ON_SQLITE: Final = pytest.mark.databases("sqlite", transaction=True)

#: What the next task does.
actions: list[Callable[[], Any]] = []


class Again(Exception):
    pass


def act() -> Any:
    return actions.pop(0)()


@lambda_task(retry_on=(Again,))
def work() -> Any:
    return act()


@lambda_task(atomic=False, retry_on=(Again,))
def commit_as_it_goes() -> Any:
    return act()


@lambda_task(sensitive=("token",), atomic=False)
def confidential(*, token: str) -> None:
    report(1, note=f"with {token}")


@lambda_task(atomic=False)
async def coroutine() -> None:
    task = current_task()
    assert task is not None
    await task.aprogress(1, 2)
    await sync_to_async(next_second)()
    task.progress(2, 2)


class Clock:
    now = 100.0


def next_second() -> None:
    Clock.now += 1


def current_run() -> Run:
    watch = watch_of_caller()
    assert watch is not None
    return watch.run


def report(*args: Any, **kwargs: Any) -> None:
    task = current_task()
    assert task is not None
    task.progress(*args, **kwargs)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    actions.clear()
    progress._reports.clear()
    monkeypatch.setattr(progress, "monotonic", lambda: Clock.now)


@pytest.fixture
def store(database: str) -> Iterator[str]:
    with stored_in(database):
        yield database
    backend().jobs.clear()


def task_on(database: str) -> Any:
    """Return a task whose reports are stored in the database: SQLite stores those of tasks without a transaction."""
    return commit_as_it_goes if connections[database].vendor == "sqlite" else work


def run(action: Callable[[], Any], database: str, task: Any = None) -> TaskHandle[Any]:
    actions.append(action)
    handle: TaskHandle[Any] = (task or task_on(database)).using(database=database).execute_on_commit()
    deliver(*backend().take())
    return handle


def seen() -> ReportedProgress | None:
    """Return the progress of the running task as another session sees it."""
    task = current_task()
    assert task is not None
    found: ReportedProgress | None = in_another_worker(lambda: TaskHandle.from_id(task.message_id).progress)
    return found


@EVERYWHERE
class TestReports:
    def test_others_see_the_progress_of_a_running_task(self, store: str) -> None:
        found = []

        def act() -> None:
            found.append(seen())
            report(1, 4, "reading")
            found.append(seen())
            next_second()
            report(2, 4, note="writing")
            found.append(seen())

        handle = run(act, store)
        assert handle.wait() == "SUCCESS"
        assert found == [None, ReportedProgress(1, 4, "reading"), ReportedProgress(2, 4, "writing")]
        assert handle.progress == found[-1]
        assert handle.progress is not None
        assert isinstance(handle.progress.updated, datetime)
        assert handle.progress.fraction == 0.5

    def test_failed_task_keeps_its_progress(self, store: str) -> None:
        def act() -> None:
            report(3, 4)
            raise ValueError

        handle = run(act, store)
        assert handle.wait() == "FAILED"
        assert handle.progress == ReportedProgress(3, 4)

    def test_at_most_one_report_a_second_is_stored(self, store: str) -> None:
        found = []

        def act() -> None:
            for number in range(5):
                report(number, 100)
                found.append(seen())
                Clock.now += 0.4

        run(act, store)
        assert [each and each.done for each in found] == [0, 0, 0, 3, 3]

    def test_complete_report_is_always_stored_once(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        stored = []
        write = ORMStore.write_progress
        monkeypatch.setattr(ORMStore, "write_progress", lambda *args: (stored.append(args[2].done), write(*args))[1])

        def act() -> None:
            for number in (0, 9, 10, 10, 10):
                report(number, 10)

        assert run(act, store).progress == ReportedProgress(10, 10)
        assert stored == [0, 10]

    def test_retry_starts_without_progress(self, store: str) -> None:
        def fail() -> None:
            report(1, 2)
            raise Again

        handle = run(fail, store)
        assert handle.progress == ReportedProgress(1, 2)
        actions.append(lambda: None)
        deliver(*backend().take())
        assert handle.wait() == "SUCCESS"
        assert handle.progress is None

    def test_unknown_total_has_no_fraction(self, store: str) -> None:
        handle = run(lambda: report(7), store)
        assert handle.progress == ReportedProgress(7, None)
        assert handle.progress is not None
        assert handle.progress.fraction is None

    def test_long_note_is_cut_off(self, store: str) -> None:
        handle = run(lambda: report(1, note="ü\x00\ud800" + "x" * 300), store)
        assert handle.progress is not None
        assert len(handle.progress.note) == 255
        assert handle.progress.note.startswith(r"ü\x00\ud800x")

    def test_task_without_record_has_none(self, store: str) -> None:
        assert TaskHandle.from_id("018f0000-0000-7000-8000-000000000000").progress is None

    def test_cleanup_deletes_the_progress_with_its_record(self, store: str) -> None:
        old, young = run(lambda: report(1), store), run(lambda: report(2), store)
        TaskRecord.objects.using(store).filter(pk=old.message_id).update(start_time=DatabaseNow() - timedelta(days=8))
        assert cleanup_task_records() == 1
        assert [str(pk) for pk in TaskProgress.objects.using(store).values_list("pk", flat=True)] == [young.message_id]


class TestFraction:
    @pytest.mark.parametrize(
        ("done", "total", "fraction"), [(0, 4, 0.0), (1, 4, 0.25), (5, 4, 1.0), (0, 0, 1.0), (3, None, None)]
    )
    def test_fraction_is_between_0_and_1(self, done: int, total: int | None, fraction: float | None) -> None:
        assert ReportedProgress(done, total).fraction == fraction


@ON_SERVERS
class TestTransaction:
    def test_report_survives_the_rollback_of_its_task(self, store: str) -> None:
        def act() -> None:
            Effect.objects.using(store).create(name="a")
            report(1, 2)
            assert connections[store].in_atomic_block
            raise ValueError

        handle = run(act, store)
        assert handle.progress == ReportedProgress(1, 2)
        assert not Effect.objects.using(store).exists()

    def test_report_uses_a_connection_of_its_own(self, store: str) -> None:
        def act() -> list[dict[str, str]]:
            with CaptureQueriesContext(connections[store]) as queries:
                report(1, 2)
            return list(queries)

        actions.append(act)
        handle = work.using(database=store).execute_on_commit()
        deliver(*backend().take())
        assert handle.result() == []

    def test_locked_record_does_not_hold_the_task_up(self, store: str) -> None:
        def act() -> None:
            list(TaskRecord.objects.using(store).select_for_update())
            report(1, 2)

        handle = run(act, store)
        assert handle.wait() == "SUCCESS"
        assert handle.progress is None

    def test_no_connection_stays_open(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        threads = []
        start = aside.AsideThread.start
        monkeypatch.setattr(aside.AsideThread, "start", lambda thread: (threads.append(thread), start(thread)))
        run(lambda: report(1), store)
        assert [thread.is_alive() for thread in threads] == [False]


@ON_SQLITE
class TestSQLite:
    def test_report_in_a_transaction_is_not_stored(self, store: str) -> None:
        def act() -> None:
            Effect.objects.using(store).create(name="a")
            report(1, 2)

        handle = run(act, store, work)
        assert handle.wait() == "SUCCESS"
        assert handle.progress is None

    def test_report_between_query_and_write_is_not_stored(self, store: str) -> None:
        """Another connection that writes after the query would make the write fail."""

        def act() -> None:
            assert not Effect.objects.using(store).exists()
            report(1, 2)
            Effect.objects.using(store).create(name="a")

        handle = run(act, store, work)
        assert handle.wait() == "SUCCESS"
        assert handle.progress is None

    @pytest.mark.parametrize("mode", ["DEFERRED", "IMMEDIATE"])
    def test_other_writer_does_not_hold_the_task_up(
        self, store: str, mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connections.settings[store]["OPTIONS"], "transaction_mode", mode)

        def act() -> None:
            with transaction.atomic(using=store):
                Effect.objects.using(store).create(name="a")
                began = time.monotonic()
                report(1, 2)
                assert time.monotonic() - began < AT_ONCE
            report(2, 3)
            next_second()
            report(2, 2)

        handle = run(act, store)
        assert handle.progress == ReportedProgress(2, 2)
        assert "progress" not in caplog.text


@EVERYWHERE
class TestFence:
    def test_overtaken_run_does_not_overwrite_the_progress(self, store: str) -> None:
        handle: TaskHandle[Any] = task_on(store).using(database=store).execute_on_commit()
        [job] = backend().take()
        old: list[Run] = []

        def first() -> None:
            old.append(current_run())
            report(8, 10)
            in_another_worker(expire_lease)
            actions.append(second)
            in_another_worker(lambda: deliver(job))

        def second() -> None:
            report(1, 10)
            assert get_store().write_progress(old[0], ReportedProgress(9, 10)) is False

        actions.append(first)
        handler({"Records": [event_record(job)]}, None)
        assert handle.progress == ReportedProgress(1, 10)

    def test_ended_run_stores_nothing(self, store: str) -> None:
        runs: list[Run] = []
        handle = run(lambda: runs.append(current_run()), store)
        assert get_store().write_progress(runs[0], ReportedProgress(1)) is False
        assert handle.progress is None


@EVERYWHERE
class TestErrors:
    @pytest.fixture(autouse=True)
    def _broken(self, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
        self.attempts = 0
        self.error: Exception = DatabaseError("hunter2 is out of order")

        def fail(*_: Any) -> bool:
            self.attempts += 1
            raise self.error

        monkeypatch.setattr(ORMStore, "write_progress", fail)

    def test_error_does_not_fail_the_task(self, store: str, caplog: pytest.LogCaptureFixture) -> None:
        def act() -> None:
            for number in range(100):
                report(number)
                next_second()

        with caplog.at_level(logging.WARNING):
            assert run(act, store).wait() == "SUCCESS"
        [line] = [each for each in caplog.records if "progress" in each.getMessage()]
        assert line.levelname == "WARNING"
        assert "DatabaseError: hunter2 is out of order" in line.getMessage()
        assert self.attempts == 4  # one in thirty seconds

    def test_warning_has_no_sensitive_argument(self, store: str, caplog: pytest.LogCaptureFixture) -> None:
        confidential.using(database=store).execute_on_commit(token="hunter2")
        deliver(*backend().take())
        assert "could not be stored" in caplog.text
        assert "hunter2" not in caplog.text

    def test_soft_limit_reaches_the_task(self, store: str) -> None:
        self.error = SoftTimeLimitExceeded("too long")

        def act() -> None:
            report(1)

        handle = run(act, store)
        assert handle.wait() == "FAILED"
        assert TaskRecord.objects.using(store).get(pk=handle.message_id).reason == "soft_timeout"


@EVERYWHERE
def test_note_has_no_sensitive_argument(database: str) -> None:
    with stored_in(database):
        handle = confidential.using(database=database).execute_on_commit(token="hunter2")
        deliver(*backend().take())
        assert handle.progress is not None
        assert "hunter2" not in handle.progress.note
        assert handle.progress.note.startswith("with ")


class TestArguments:
    @pytest.mark.parametrize("arguments", [(1.5,), ("1",), (True,), (1, 2.0), (None,), (1, 2, 3), (1, 2, None)])
    @pytest.mark.django_db
    def test_other_types_raise_type_error(self, arguments: Any) -> None:
        self.raises(TypeError, arguments)

    @pytest.mark.parametrize("arguments", [(-1,), (1, -2), (2**63,)])
    @pytest.mark.django_db
    def test_numbers_out_of_range_raise_value_error(self, arguments: Any) -> None:
        self.raises(ValueError, arguments)

    def raises(self, kind: type[Exception], arguments: Any) -> None:
        errors: list[BaseException] = []

        def act() -> None:
            try:
                report(*arguments)
            except Exception as error:
                errors.append(error)

        actions.append(act)
        deliver(job_of(work, "018f0000-0000-7000-8000-000000000000"))
        assert [type(error) for error in errors] == [kind]


@EVERYWHERE
class TestCoroutines:
    def test_coroutine_reports(self, store: str) -> None:
        handle = coroutine.using(database=store).execute_on_commit()
        deliver(*backend().take())
        assert handle.wait() == "SUCCESS"
        assert handle.progress == ReportedProgress(2, 2)


@pytest.mark.django_db
def test_progress_in_a_test_case_is_visible(lambda_tasks_queue: TaskQueue) -> None:
    actions.append(lambda: report(1, 2))
    with lambda_tasks_queue.commit():
        handle = work.execute_on_commit()
    lambda_tasks_queue.run_until_idle()
    assert handle.progress == ReportedProgress(1, 2)


@pytest.mark.django_db
def test_failed_statement_leaves_the_test_case_usable(
    lambda_tasks_queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1 FROM nowhere")
        return True

    monkeypatch.setattr(ORMStore, "write_progress", fail)
    actions.append(lambda: report(1, 2))
    with lambda_tasks_queue.commit():
        handle = work.execute_on_commit()
    lambda_tasks_queue.run_until_idle()
    assert handle.wait() == "SUCCESS"


@EVERYWHERE
@pytest.mark.parametrize("atomic", [True, False])
def test_eager_task_reports(database: str, settings: Any, atomic: bool) -> None:
    settings.LAMBDA_TASKS_EAGER = True
    with stored_in(database):
        actions.append(lambda: report(1, 2))
        task: Any = work if atomic else commit_as_it_goes
        handle = task.using(database=database).execute_on_commit()
        stored = not atomic or connections[database].vendor != "sqlite"
        assert handle.progress == (ReportedProgress(1, 2) if stored else None)


def test_store_without_progress_opens_no_connection(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.LAMBDA_TASKS_STORE = "lambda_tasks.stores.null.NullStore"
    started: list[object] = []

    def start(thread: object) -> None:
        started.append(thread)

    monkeypatch.setattr(aside.AsideThread, "start", start)
    prepared = prepare(Invocation(work.name, {}), message_id=new_message_id(), task=work)
    progress.report(prepared, 1, 2, "")
    assert started == []
