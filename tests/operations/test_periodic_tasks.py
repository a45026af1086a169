"""Periodic tasks: which ticks are sent, by which processes, and how operators see and control schedules."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from threading import Event as ThreadEvent
from typing import Any, Final

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.checks import CheckMessage
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from lambda_tasks import maintenance, registry
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.schedules import Cron, Every
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.local import progress
from lambda_tasks.local.ticking import Ticker
from lambda_tasks.maintenance import tick_until_stopped
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations import schedules
from lambda_tasks.operations.checks import check_tasks
from lambda_tasks.operations.schedules import Fired, fire_due, list_schedules, pause, resume, run_now
from lambda_tasks.strategies import get_backend
from lambda_tasks.testing import collect_tasks
from lambda_tasks.wire.ids import tick_id
from tests.app.models import Effect
from tests.courier import OUTBOX, outbox
from tests.schedules import HOUR, MINUTE, START, last_ticks, own_tasks, periodic, rows

pytestmark = pytest.mark.django_db(transaction=True)

REPORT: Final = f"{__name__}.report"
KEY: Final = f"{REPORT}:five"


class Busy(Exception):
    pass


def report(*, days: int = 1) -> None:
    Effect.objects.create(name=f"report of {days}")


def busy() -> None:
    raise Busy


class Queue(MemoryBackend):
    """A queue that another process reads, and that refuses messages while it is `closed`."""

    leaves_process = True
    closed = False

    def send(self, jobs: Any) -> Any:
        if self.closed:
            raise ConnectionError("the queue is closed")
        return super().send(jobs)


class RecordingPlugin:
    def __init__(self) -> None:
        self.runs: list[Run] = []

    @hookimpl
    def lambda_task_finished(self, run: Run) -> None:
        self.runs.append(run)


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(maintenance, "_relayed_at", time.monotonic() + HOUR)  # only some tests fire at the end of runs
    with own_tasks():
        yield


@pytest.fixture(autouse=True)
def queue(settings: Any) -> Queue:
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.Queue"
    chosen = get_backend()
    assert isinstance(chosen, Queue)
    return chosen


@pytest.fixture
def plugin(settings: Any) -> RecordingPlugin:
    plugin = RecordingPlugin()
    settings.LAMBDA_TASKS_PLUGINS = [plugin]
    return plugin


@pytest.fixture
def every_five_minutes() -> Any:
    task = periodic(report, Every(minutes=5, name="five"))
    fire_due(START + 1)
    return task


@pytest.fixture
def fires_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next invocation start periodic tasks at its end."""
    monkeypatch.setattr(maintenance, "_relayed_at", None)


def sent_for(queue: MemoryBackend) -> list[float]:
    """Return the scheduled times of the messages on the queue, in minutes after `START`."""
    return [((job.scheduled_for or 0) - START) / MINUTE for job in queue.jobs]


def run(*jobs: Job) -> None:
    assert handler({"Records": [event_record(job) for job in jobs]}, None) == {"batchItemFailures": []}


def record_due_now() -> None:
    """Let a tick be due by the database's clock."""
    rows().update(last_tick=0)


class TestTicks:
    def test_new_schedule_starts_with_its_next_tick(self, queue: Queue) -> None:
        periodic(report, Every(minutes=5, name="five"))
        assert fire_due(START + 7 * MINUTE) == Fired()
        assert fire_due(START + 9 * MINUTE) == Fired()
        assert last_ticks() == {KEY: 7 * MINUTE}
        assert fire_due(START + 10 * MINUTE) == Fired(sent=1)
        assert sent_for(queue) == [10]

    def test_schedules_start_in_the_order_of_registration(self, queue: Queue) -> None:
        """The database returns their rows in another order: by key, or as it finds them."""
        periodic(report, Every(minutes=5))
        fire_due(START)
        periodic(busy, Every(minutes=5))
        fire_due(START)
        report_task, busy_task = registry._tasks.pop(REPORT), registry._tasks[f"{__name__}.busy"]
        registry._tasks[REPORT] = report_task  # registered last, but stored first
        fire_due(START + 5 * MINUTE)
        assert [job.task_name for job in queue.jobs] == [busy_task.name, report_task.name]

    def test_tick_is_sent_once_with_derived_id(self, queue: Queue, every_five_minutes: Any) -> None:
        assert [fire_due(START + minutes * MINUTE).sent for minutes in (4, 5, 6, 9)] == [0, 1, 0, 0]
        [job] = queue.jobs
        expected = tick_id(REPORT, "five", START + 5 * MINUTE)
        assert (job.message_id, job.root_id, job.queue, job.delay) == (expected, expected, "default", 0)
        assert job.message_attributes()["lambda_tasks.scheduled_for"] == str(START + 5 * MINUTE)

    def test_ids_differ_by_task_schedule_and_time(self) -> None:
        ids = {tick_id(*each) for each in (("a.b", "x", 1), ("a.c", "x", 1), ("a.b", "y", 1), ("a.b", "x", 2))}
        assert len(ids) == 4

    def test_task_knows_its_scheduled_time(
        self, queue: Queue, plugin: RecordingPlugin, every_five_minutes: Any
    ) -> None:
        fire_due(START + 5 * MINUTE)
        run(*queue.take())
        assert [effect.name for effect in Effect.objects.all()] == ["report of 1"]
        assert [each.scheduled_for for each in plugin.runs] == [START + 5 * MINUTE]
        assert plugin.runs[0].attributes == {}

    def test_retry_keeps_the_scheduled_time(self, queue: Queue, plugin: RecordingPlugin) -> None:
        periodic(busy, Every(minutes=5), retry_on=(Busy,))
        fire_due(START)
        fire_due(START + 5 * MINUTE)
        for seconds in (0, 900):
            [job] = queue.take()
            record = event_record(job)
            record["attributes"]["SentTimestamp"] = str((START + seconds) * 1000)
            assert handler({"Records": [record]}, None) == {"batchItemFailures": []}
        assert [each.scheduled_for for each in plugin.runs] == [START + 5 * MINUTE] * 2
        assert [each.first_sent for each in plugin.runs] == [START] * 2  # its id does not tell when it was made
        assert [each.n_retries for each in plugin.runs] == [0, 1]

    def test_ordinary_call_has_no_scheduled_time(
        self, queue: Queue, plugin: RecordingPlugin, every_five_minutes: Any
    ) -> None:
        every_five_minutes.execute_on_commit()
        [job] = queue.take()
        assert "lambda_tasks.scheduled_for" not in job.message_attributes()
        run(job)
        assert plugin.runs[0].scheduled_for is None

    def test_several_schedules_with_their_own_arguments(self, queue: Queue) -> None:
        cron = Cron("0 * * * *", timezone="UTC", kwargs={"days": 7}, queue="other")
        periodic(report, [Every(minutes=30, kwargs={"days": 2}), cron])
        fire_due(START)
        assert fire_due(START + 60 * MINUTE).sent == 2
        sent = sorted((job.message.kwargs["days"], job.queue) for job in queue.jobs)
        assert sent == [(2, "default"), (7, "other")]

    def test_delay_of_the_task_does_not_apply(self, queue: Queue) -> None:
        periodic(report, Every(minutes=5), delay=60)
        fire_due(START)
        fire_due(START + 5 * MINUTE)
        assert [job.delay for job in queue.jobs] == [0]

    def test_times_may_be_datetimes(self, queue: Queue, every_five_minutes: Any) -> None:
        assert fire_due(datetime(2026, 1, 1, 0, 5, tzinfo=timezone.utc)).sent == 1

    def test_database_tells_the_time(self, queue: Queue) -> None:
        periodic(report, Every(minutes=5, name="five"))
        assert fire_due() == Fired()
        assert abs(rows().get().last_tick - time.time()) < HOUR
        rows().update(last_tick=START)
        assert fire_due().sent == 1
        [job] = queue.jobs
        assert job.scheduled_for is not None
        assert abs(job.scheduled_for - time.time()) < HOUR

    def test_failing_schedule_does_not_affect_others(
        self, queue: Queue, every_five_minutes: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        def wrong(*, days: int) -> None: ...

        periodic(wrong, Every(minutes=5, kwargs={"days": "x"}, name="bad"))
        fire_due(START)
        assert fire_due(START + 5 * MINUTE) == Fired(sent=1, failed=1)
        assert "bad is due and could not be sent" in caplog.text
        assert sent_for(queue) == [5]

    def test_unsent_tick_is_sent_by_the_next_attempt(self, queue: Queue, every_five_minutes: Any) -> None:
        queue.closed = True
        assert fire_due(START + 5 * MINUTE) == Fired(failed=1)
        assert last_ticks() == {KEY: 1}
        queue.closed = False
        assert fire_due(START + 6 * MINUTE) == Fired(sent=1)
        assert sent_for(queue) == [5]

    def test_removed_schedule_is_harmless(self, queue: Queue, every_five_minutes: Any) -> None:
        rows().create(key="shop.tasks.gone:0 3 * * *", task_name="shop.tasks.gone", last_tick=0)
        assert fire_due(START + 5 * MINUTE) == Fired(sent=1)

    def test_changed_expression_of_a_name_continues(self, queue: Queue, every_five_minutes: Any) -> None:
        periodic(report, Every(minutes=2, name="five"))
        fire_due(START + 3 * MINUTE)
        assert sent_for(queue) == [2]

    def test_time_limit_leaves_ticks_to_next_call(self, queue: Queue, every_five_minutes: Any) -> None:
        assert fire_due(START + 5 * MINUTE, seconds=-1) == Fired()
        assert fire_due(START + 5 * MINUTE) == Fired(sent=1)


class TestMissedTicks:
    @pytest.mark.parametrize(
        ("missed", "late", "expected"),
        [
            ("once", 3 * HOUR, [180]),
            ("once", 3 * HOUR + 59 * MINUTE, [180]),
            ("skip", 3 * HOUR, [180]),
            ("skip", 3 * HOUR + 10 * MINUTE, [180]),
            ("skip", 3 * HOUR + 11 * MINUTE, []),
            (2, 3 * HOUR, [120, 180]),
            (9, 3 * HOUR, [60, 120, 180]),
            (9, HOUR, [60]),
        ],
    )
    def test_choice(self, queue: Queue, missed: Any, late: int, expected: list[int]) -> None:
        periodic(report, Every(hours=1, missed=missed, name="five"))
        fire_due(START)
        assert fire_due(START + late).sent == len(expected)
        assert sent_for(queue) == expected
        assert last_ticks() == {KEY: late // HOUR * HOUR}
        assert fire_due(START + late) == Fired()

    def test_omitted_ticks_are_logged(
        self, queue: Queue, every_five_minutes: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "lambda_tasks.schedules"):
            fire_due(START + 12 * MINUTE)
        assert "five has missed earlier times, and omits them (missed='once')" in caplog.text


class TestCost:
    def test_no_query_without_schedules(self, django_assert_num_queries: Any) -> None:
        lambda_task(report)
        with django_assert_num_queries(0):
            assert fire_due() == Fired()
            assert list_schedules() == []

    @pytest.mark.usefixtures("fires_at_the_end")
    def test_invocation_without_schedules_has_no_additional_query(self, queue: Queue) -> None:
        lambda_task(report)
        with CaptureQueriesContext(connection) as queries:
            handler({"Records": []}, None)
        assert [query["sql"] for query in queries] == []

    def test_one_query_if_nothing_is_due(self, every_five_minutes: Any, django_assert_num_queries: Any) -> None:
        periodic(busy, Every(minutes=5))
        fire_due(START)
        with django_assert_num_queries(1):
            fire_due(START + MINUTE)
        with django_assert_num_queries(1):
            rows_at = rows()
            rows_at.update(last_tick=2**33)
        with django_assert_num_queries(1):
            fire_due()


class TestProcesses:
    """Which processes start periodic tasks."""

    def test_maintenance_event_fires(self, queue: Queue, every_five_minutes: Any) -> None:
        record_due_now()
        assert handler(maintenance.MAINTENANCE_EVENT, None)["schedules"] == {"sent": 1, "failed": 0}
        assert len(queue.jobs) == 1
        assert handler(maintenance.MAINTENANCE_EVENT, None)["schedules"] == {"sent": 0, "failed": 0}

    def test_maintenance_event_without_schedules_does_not_report_them(self) -> None:
        assert set(handler(maintenance.MAINTENANCE_EVENT, None)) == {"lost"}

    @pytest.mark.usefixtures("fires_at_the_end")
    def test_invocation_fires_at_its_end_every_thirty_seconds(
        self, queue: Queue, every_five_minutes: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [100.0]
        monkeypatch.setattr(maintenance, "monotonic", lambda: now[0])
        for seconds, sent in ((0, 1), (29.9, 0), (0.1, 1)):
            now[0] += seconds
            record_due_now()
            handler({"Records": []}, None)
            assert len(queue.take()) == sent

    @pytest.mark.usefixtures("fires_at_the_end")
    def test_invocation_imports_no_other_tasks(self, monkeypatch: pytest.MonkeyPatch, every_five_minutes: Any) -> None:
        discovered: list[None] = []
        monkeypatch.setattr("lambda_tasks.registry._import_tasks_of_apps", lambda: discovered.append(None))
        handler({"Records": []}, None)
        assert discovered == []
        handler(maintenance.MAINTENANCE_EVENT, None)
        assert discovered != []

    @pytest.mark.usefixtures("fires_at_the_end")
    def test_invocation_in_a_test_does_not_fire(self, every_five_minutes: Any) -> None:
        """The result of a test must not depend on the time of day."""
        record_due_now()
        with collect_tasks() as tasks:
            every_five_minutes.execute_on_commit()
            assert tasks.run_until_idle() == 1
        assert rows().get().last_tick == 0

    @pytest.mark.usefixtures("fires_at_the_end")
    def test_failure_in_an_invocation_is_logged(
        self, every_five_minutes: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: Any) -> None:
            raise OperationalError("the database is away")

        monkeypatch.setattr(schedules, "_read", fail)
        assert handler({"Records": []}, None) == {"batchItemFailures": []}
        assert "Periodic tasks were not started." in caplog.text

    def test_relay_fires_before_it_relays(self, queue: Queue, every_five_minutes: Any, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        record_due_now()
        call_command("lambda_tasks", "relay", "--once")
        assert rows().get().last_tick > START
        assert not OutboxMessage.objects.exists()

    def test_tick_command(self, queue: Queue, every_five_minutes: Any, capsys: pytest.CaptureFixture[str]) -> None:
        record_due_now()
        call_command("lambda_tasks", "tick")
        call_command("lambda_tasks", "tick")
        assert capsys.readouterr().out == "1 started.\n0 started.\n"
        queue.closed = True
        record_due_now()
        with pytest.raises(CommandError, match="could not be sent"):
            call_command("lambda_tasks", "tick")
        assert capsys.readouterr().out == "0 started, 1 schedule failed.\n"

    def test_repeated_tick_survives_errors_until_stopped(
        self, queue: Queue, every_five_minutes: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reported: list[str] = []
        rounds = iter([OperationalError("the database is away"), None])
        original = fire_due

        def fire(*given: Any, **options: Any) -> Fired:
            if error := next(rounds):
                raise error
            record_due_now()
            return original(*given, **options)

        def wait(stop: Any, seconds: float) -> None:
            assert seconds == 5
            if reported[-1].startswith("1 started"):
                stop.ask()

        monkeypatch.setattr(schedules, "fire_due", fire)
        monkeypatch.setattr(maintenance._Stop, "wait", wait)
        tick_until_stopped(5, report=reported.append)
        assert reported == [
            "Starting periodic tasks every 5 s. Stop with SIGTERM or Ctrl-C.",
            "1 started.",
            "Stopped.",
        ]

    @pytest.mark.parametrize("interval", [0, -1, 86_401])
    def test_impossible_interval_is_refused(self, interval: float) -> None:
        with pytest.raises(CommandError, match=r"^--interval must be more than 0"):
            call_command("lambda_tasks", "tick", f"--interval={interval}")

    def test_eager_mode_runs_ticks_in_process(
        self, plugin: RecordingPlugin, every_five_minutes: Any, settings: Any
    ) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        assert fire_due(START + 5 * MINUTE) == Fired(sent=1)
        assert [effect.name for effect in Effect.objects.all()] == ["report of 1"]
        assert plugin.runs[0].scheduled_for == START + 5 * MINUTE
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_testing_queue_collects_ticks(self, plugin: RecordingPlugin, every_five_minutes: Any) -> None:
        with collect_tasks() as tasks:
            fire_due(START + 5 * MINUTE)
            assert tasks.task_names == [REPORT]
            assert tasks.run_until_idle() == 1
        assert plugin.runs[0].scheduled_for == START + 5 * MINUTE


class Looks:
    """An event that ends the ticker after some looks."""

    def __init__(self, count: int) -> None:
        self.left = count

    def wait(self, seconds: float) -> bool:
        assert seconds == 1
        self.left -= 1
        return self.left < 0


class TestLocalWorker:
    def test_ticker_looks_before_and_during_the_block(
        self, queue: Queue, every_five_minutes: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[Fired] = []
        monkeypatch.setattr(schedules, "fire_due", lambda: looks.append(Fired(sent=1)) or looks[-1])
        reported: list[progress.Event] = []
        ticker = Ticker(1, stopping=ThreadEvent(), report=reported.append)
        ticker._tick()
        ticker._run(1, Looks(2))  # type: ignore[arg-type]
        assert reported == [progress.Ticked(1, 0)] * 3
        assert str(reported[0]) == "schedules: 1 periodic task started"
        assert str(progress.Ticked(0, 2)) == (
            "schedules: 0 periodic tasks started, 2 schedules failed and will be tried again"
        )

    def test_ticker_reports_errors_and_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise OperationalError("the database is away")

        monkeypatch.setattr(schedules, "fire_due", fail)
        reported: list[progress.Event] = []
        Ticker(1, stopping=ThreadEvent(), report=reported.append)._run(1, Looks(2))  # type: ignore[arg-type]
        assert [str(event) for event in reported] == [
            "schedules: Periodic tasks were not started, trying again: the database is away"
        ] * 2

    def test_stopping_worker_fires_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(schedules, "fire_due", lambda: pytest.fail("a stopping worker fired"))
        stopping = ThreadEvent()
        stopping.set()
        Ticker(1, stopping=stopping, report=lambda event: None)._run(1, Looks(2))  # type: ignore[arg-type]

    def test_block_ends_the_thread(self, queue: Queue, every_five_minutes: Any) -> None:
        record_due_now()
        with Ticker(3600, stopping=ThreadEvent(), report=lambda event: None).running():
            assert len(queue.jobs) == 1

    @pytest.mark.parametrize("with_schedule", [True, False])
    def test_command_looks_only_if_there_are_schedules(
        self, monkeypatch: pytest.MonkeyPatch, with_schedule: bool
    ) -> None:
        chosen: list[Any] = []

        class Worker:
            was_killed = False

            def problems(self) -> list[str]:
                return []

            def __init__(self, *_: Any, tick_every: float | None, **options: Any) -> None:
                chosen.append(tick_every)

            def run(self, *, until_idle: bool) -> None: ...

        monkeypatch.setattr("lambda_tasks.local.worker.LocalWorker", Worker)
        if with_schedule:
            periodic(report, Every(minutes=5))
        call_command("lambda_tasks", "worker")
        assert chosen == [1.0 if with_schedule else None]

    def test_impossible_interval_is_refused(self) -> None:
        with pytest.raises(ValueError, match="tick_every must be more than 0 seconds, or None, not 0"):
            Ticker(0, stopping=ThreadEvent(), report=lambda event: None)


@pytest.fixture(params=["without the outbox", "with the outbox"])
def transport(request: pytest.FixtureRequest, settings: Any, queue: Queue) -> Any:
    """Return the queue, maybe behind an outbox."""
    if request.param == "without the outbox":
        return queue
    settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": {"transport": f"{__name__}.Queue"}}
    return outbox().transport


class TestUnique:
    @pytest.mark.parametrize("on_duplicate", ["return", "raise"])
    def test_tick_is_omitted_while_another_waits(self, transport: Queue, on_duplicate: Any) -> None:
        periodic(report, Every(minutes=5, name="five", missed=2), unique=True, on_duplicate=on_duplicate)
        fire_due(START)
        assert fire_due(START + 10 * MINUTE) == Fired(sent=1)
        assert fire_due(START + 15 * MINUTE) == Fired()
        assert (sent_for(transport), last_ticks()) == ([5], {KEY: 15 * MINUTE})
        run(*transport.take())
        assert fire_due(START + 20 * MINUTE) == Fired(sent=1)

    def test_call_waits_for_the_tick(self, transport: Queue) -> None:
        task = periodic(report, Every(minutes=5, name="five"), unique=True)
        fire_due(START)
        fire_due(START + 5 * MINUTE)
        handle = task.execute_on_commit()
        assert (handle.created, handle.message_id) == (False, transport.jobs[0].message_id)

    def test_tick_replaces_a_waiting_one(self, transport: Queue) -> None:
        periodic(report, Every(minutes=5, name="five"), unique=True, on_duplicate="replace")
        fire_due(START)
        assert [fire_due(START + minutes * MINUTE).sent for minutes in (5, 10)] == [1, 1]
        run(*transport.take())
        assert Effect.objects.count() == 1
        assert sorted(TaskRecord.objects.values_list("reason", flat=True)) == ["", "replaced"]

    def test_unsent_tick_holds_no_key(self, queue: Queue) -> None:
        task = periodic(report, Every(minutes=5, name="five"), unique=True)
        fire_due(START)
        queue.closed = True
        assert fire_due(START + 5 * MINUTE) == Fired(failed=1)
        queue.closed = False
        assert fire_due(START + 5 * MINUTE) == Fired(sent=1)
        assert not task.execute_on_commit().created

    def test_tick_in_this_process_runs(self) -> None:
        periodic(report, Every(minutes=5), unique=True)
        fire_due(START)
        with override_settings(LAMBDA_TASKS_EAGER=True):
            assert [fire_due(START + minutes * MINUTE).sent for minutes in (5, 10)] == [1, 1]
        assert Effect.objects.count() == 2

    @pytest.mark.parametrize("on_duplicate", ["return", "raise"])
    def test_command_names_the_earlier_call(
        self, queue: Queue, on_duplicate: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        task = periodic(report, Every(minutes=5, name="five"), unique=True, on_duplicate=on_duplicate)
        earlier = task.execute_on_commit()
        if on_duplicate == "return":
            call_command("lambda_tasks", "schedules", "--run", KEY)
            assert capsys.readouterr().out == f"Waits or runs already: {earlier.message_id}\n"
        else:
            with pytest.raises(CommandError, match=earlier.message_id):
                call_command("lambda_tasks", "schedules", "--run", KEY)


class TestControl:
    def test_paused_schedule_omits_its_ticks(self, queue: Queue, every_five_minutes: Any) -> None:
        assert pause(KEY, START) == [KEY]
        assert fire_due(START + 12 * MINUTE) == Fired()
        assert resume(REPORT, START + 12 * MINUTE) == [KEY]
        assert fire_due(START + 14 * MINUTE) == Fired()
        assert fire_due(START + 15 * MINUTE) == Fired(sent=1)
        assert sent_for(queue) == [15]

    def test_new_schedule_can_be_paused(self, queue: Queue) -> None:
        periodic(report, Every(minutes=5, name="five"))
        pause(KEY, START)
        assert fire_due(START + 5 * MINUTE) == Fired()
        assert rows().get().paused

    def test_resuming_a_running_schedule_changes_nothing(self, queue: Queue, every_five_minutes: Any) -> None:
        resume(KEY, START + 7 * MINUTE)
        assert fire_due(START + 8 * MINUTE) == Fired(sent=1)

    def test_run_now_is_additional(self, queue: Queue) -> None:
        periodic(report, Every(minutes=5, kwargs={"days": 7}, queue="other", name="five"))
        fire_due(START)
        [handle] = run_now(KEY, START + 61)
        [job] = queue.take()
        assert (job.message_id, job.message.kwargs, job.queue) == (handle.message_id, {"days": 7}, "other")
        assert job.scheduled_for == START + 61
        assert last_ticks() == {KEY: 0}
        assert fire_due(START + 5 * MINUTE).sent == 1

    @pytest.mark.parametrize("action", [pause, resume, run_now])
    def test_unknown_key_is_refused(self, every_five_minutes: Any, action: Any) -> None:
        with pytest.raises(ValueError, match=rf"\('{KEY}'\), not 'shop\.tasks\.gone'"):
            action("shop.tasks.gone")

    def test_list_has_last_and_next_runs(self, queue: Queue, every_five_minutes: Any) -> None:
        periodic(busy, Cron("0 3 * * *", timezone="Europe/Berlin"))
        [new, old] = list_schedules(START + MINUTE)
        assert (new.last, new.next, new.description) == (None, START + 2 * HOUR, "0 3 * * * Europe/Berlin")
        assert (old.last, old.next, old.last_status) == (None, START + 5 * MINUTE, None)
        fire_due(START + 6 * MINUTE)
        run(*queue.take())
        [_, old] = list_schedules(START + 6 * MINUTE)
        assert (old.last, old.last_status, old.next) == (START + 5 * MINUTE, "SUCCESS", START + 10 * MINUTE)
        pause(KEY, START)
        [_, old] = list_schedules(START + 6 * MINUTE)
        assert (old.paused, old.next) == (True, None)


class TestCommand:
    def test_table(self, queue: Queue, every_five_minutes: Any, capsys: pytest.CaptureFixture[str]) -> None:
        fire_due(START + 5 * MINUTE)
        run(*queue.take())
        call_command("lambda_tasks", "schedules")
        assert capsys.readouterr().out.splitlines() == [
            f"{'schedule':{len(KEY)}}  last run              status   next run",
            f"{KEY}  2026-01-01T00:05:00Z  SUCCESS  2026-01-01T00:10:00Z",
        ]

    def test_json(self, every_five_minutes: Any, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("lambda_tasks", "schedules", "--format", "json")
        assert json.loads(capsys.readouterr().out) == [
            {
                "key": KEY,
                "task": REPORT,
                "schedule": "every 0:05:00",
                "queue": "default",
                "paused": False,
                "last_run": None,
                "last_status": None,
                "next_run": "2026-01-01T00:05:00Z",
            }
        ]

    def test_pause_resume_and_run(
        self, queue: Queue, every_five_minutes: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        call_command("lambda_tasks", "schedules", "--pause", REPORT)
        call_command("lambda_tasks", "schedules")
        call_command("lambda_tasks", "schedules", "--resume", KEY)
        call_command("lambda_tasks", "schedules", "--run", KEY)
        lines = capsys.readouterr().out.splitlines()
        assert (lines[0], lines[3]) == (f"Paused: {KEY}", f"Resumed: {KEY}")
        assert lines[2].endswith("  paused")
        assert lines[4] == f"Sent: {queue.jobs[0].message_id}"

    def test_empty_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        call_command("lambda_tasks", "schedules")
        assert capsys.readouterr().out == "No task has a schedule.\n"

    def test_unknown_key_is_an_error_of_the_command(self) -> None:
        with pytest.raises(CommandError, match="there are none"):
            call_command("lambda_tasks", "schedules", "--pause", "shop.tasks.gone")


class TestAdmin:
    LIST: Final = reverse("admin:lambda_tasks_taskschedule_changelist")

    @pytest.fixture
    def staff(self, client: Client) -> Client:
        client.force_login(User.objects.create_superuser("root"))
        return client

    def act(self, staff: Client, action: str) -> list[str]:
        response = staff.post(self.LIST, {"action": action, "_selected_action": [KEY]}, follow=True)
        return [str(message) for message in response.context["messages"]]

    def test_list_shows_last_and_next_runs(self, staff: Client, queue: Queue, every_five_minutes: Any) -> None:
        rows().create(key="shop.tasks.gone:x", task_name="shop.tasks.gone", last_tick=START)
        assert "2026-01-01 00:05:00" in staff.get(self.LIST).content.decode()
        fire_due(START + 5 * MINUTE)
        page = staff.get(self.LIST).content.decode()
        assert "2026-01-01 00:05:00" in page
        assert "2026-01-01 00:10:00" in page
        assert "never: no task has this schedule" in page

    def test_actions(self, staff: Client, queue: Queue, every_five_minutes: Any) -> None:
        assert self.act(staff, "pause") == ["1 schedule: paused."]
        assert rows().get().paused
        assert self.act(staff, "resume") == ["1 schedule: resumed."]
        assert not rows().get().paused
        assert self.act(staff, "run_now") == ["1 schedule: run now."]
        assert [job.task_name for job in queue.jobs] == [REPORT]
        queue.closed = True
        assert self.act(staff, "run_now") == [f"{KEY}: the queue is closed"]

    def test_actions_have_log_entries(self, staff: Client, queue: Queue, every_five_minutes: Any) -> None:
        self.act(staff, "pause")
        queue.closed = True
        self.act(staff, "run_now")
        assert [(entry.object_id, entry.get_change_message()) for entry in LogEntry.objects.all()] == [(KEY, "paused")]

    def test_duplicate_of_a_unique_task_is_reported(self, staff: Client, queue: Queue) -> None:
        task = periodic(report, Every(minutes=5, name="five"), unique=True)
        fire_due(START)
        task.execute_on_commit()
        assert self.act(staff, "run_now") == [f"{KEY}: an earlier run or call of the unique task waits or runs already"]
        assert len(queue.jobs) == 1

    def test_viewers_cannot_act_or_change(self, client: Client, every_five_minutes: Any) -> None:
        viewer = User.objects.create_user("viewer", is_staff=True)
        viewer.user_permissions.add(Permission.objects.get(codename="view_taskschedule"))
        client.force_login(viewer)
        client.post(self.LIST, {"action": "pause", "_selected_action": [KEY]})
        assert not rows().get().paused
        url = reverse("admin:lambda_tasks_taskschedule_change", args=[rows().get().pk])
        assert client.get(url).status_code == 200

    def test_schedules_are_not_added_or_edited(self, staff: Client, every_five_minutes: Any) -> None:
        assert staff.get(reverse("admin:lambda_tasks_taskschedule_add")).status_code == 403
        url = reverse("admin:lambda_tasks_taskschedule_change", args=[rows().get().pk])
        staff.post(url, {"paused": "on"})
        assert not rows().get().paused
        page = staff.get(url).content.decode()
        assert 'name="_save"' not in page
        assert 'name="_continue"' not in page

    def test_schedule_that_runs_has_no_red_cross(self, staff: Client, every_five_minutes: Any) -> None:
        pages = [self.LIST, reverse("admin:lambda_tasks_taskschedule_change", args=[KEY])]
        texts = [staff.get(page).content.decode() for page in pages]
        assert [("icon-no" in text, ">No<" in text) for text in texts] == [(False, True), (False, True)]


class TestChecks:
    def messages(self) -> dict[str, CheckMessage]:
        # W026 is about the name of this module.
        return {str(message.id): message for message in check_tasks() if message.id != "lambda_tasks.W026"}

    def test_schedule_with_invalid_arguments_is_reported(self) -> None:
        periodic(report, Every(minutes=5, kwargs={"days": "x"}))
        found = self.messages()["lambda_tasks.E010"]
        assert "the schedule 'every 0:05:00' cannot send its task. Invalid arguments" in found.msg

    def test_unknown_queue_is_reported(self) -> None:
        periodic(report, Every(minutes=5, queue="fast"))
        assert "Queue 'fast' is not in LAMBDA_TASKS_QUEUES" in self.messages()["lambda_tasks.E010"].msg

    def test_task_that_no_app_imports_is_reported(self) -> None:
        periodic(report, Every(minutes=5))
        found = self.messages()
        assert set(found) == {"lambda_tasks.W027"}
        assert f"no `tasks` module of an installed app imports {__name__}" in found["lambda_tasks.W027"].msg

    def test_task_of_an_imported_module_is_fine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tests.app import tasks

        periodic(report, Every(minutes=5))
        monkeypatch.setattr(tasks, "report", report, raising=False)
        assert self.messages() == {}

    def test_task_in_module_of_app_is_fine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(report, "__module__", "tests.app.tasks")
        periodic(report, Every(minutes=5))
        assert self.messages() == {}

    def test_tasks_without_schedules_are_not_looked_at(self) -> None:
        lambda_task(report)
        with override_settings(LAMBDA_TASKS_QUEUES={"default": "https://sqs.eu-west-1.amazonaws.com/1/default"}):
            assert self.messages() == {}
