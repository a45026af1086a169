"""Each tick runs once if processes die or fail while they start periodic tasks, or do so at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from django.db import OperationalError, connections, transaction

from lambda_tasks import maintenance
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.database.clock import epoch_now
from lambda_tasks.definition.schedules import Every
from lambda_tasks.failpoints import POINTS
from lambda_tasks.logging import current_message_id
from lambda_tasks.operations import schedules
from lambda_tasks.operations.reaping import reap
from lambda_tasks.operations.schedules import Fired, fire_due, pause
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.testing.contracts import together
from tests.app.models import Effect
from tests.faults.test_outbox_faults import (
    at_point,
    end_own_session,
    frozen_at,
    killed_at,
    make_all_due,
    run_all,
    sent,
    sent_ids,
)
from tests.faults.workers import EVERYWHERE, LONG, WITH_ROW_LOCKS, effects, in_another_worker, lost_record
from tests.schedules import MINUTE, START, last_ticks, own_tasks, periodic, rows
from tests.simulation.invocations import Process
from tests.simulation.transport import FileBackend

pytestmark = [pytest.mark.usefixtures("store", "queue"), pytest.mark.once]

#: The failpoints of a process that starts periodic tasks.
OF_SCHEDULE: Final = tuple(point for point in POINTS if point.startswith("schedule:"))
KEY: Final = f"{__name__}.count:five"


def count(*, name: str = "tick") -> None:
    Effect.objects.using(get_store().database).create(name=f"{name} {current_message_id()}")


def other() -> None: ...


@pytest.fixture(params=["outbox", "direct"])
def queue(request: pytest.FixtureRequest, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use a file as the queue, with and without the outbox. Only the tests relay."""
    settings.LAMBDA_TASKS_OUTBOX = request.param == "outbox"
    settings.LAMBDA_TASKS_BACKEND = "tests.simulation.transport.FileBackend"
    monkeypatch.setattr(FileBackend, "file", tmp_path / "queue.jsonl", raising=False)
    monkeypatch.setattr(FileBackend, "next_failure", None)
    monkeypatch.setattr(FileBackend, "unavailable", False)
    monkeypatch.setattr(maintenance, "relay_now_and_then", lambda deadline: None)
    mode: str = request.param
    return mode


@pytest.fixture(autouse=True)
def _every_five_minutes(store: str) -> Iterator[None]:
    """A task that makes up for up to three missed ticks, and has run until `START`."""
    with own_tasks():
        periodic(count, Every(minutes=5, missed=3, name="five"))
        fire_due(START)
        yield


def fire(minutes: float) -> Fired:
    return fire_due(START + minutes * MINUTE)


def relay_all() -> None:
    """Send the messages in the outbox, if there is one, even those that a dead process holds."""
    backend = get_backend()
    if isinstance(backend, OutboxBackend):
        make_all_due()
        backend.relay()


def run_everything() -> list[str]:
    """Send and run all messages, and return the ids of the ticks that took effect, each as often as it did."""
    relay_all()
    run_all()
    return sorted(name.split()[1] for name in effects())


@EVERYWHERE
class TestCrashes:
    @pytest.mark.parametrize("point", [*OF_SCHEDULE, "send:before", "send:after"])
    def test_killed_process_loses_and_doubles_no_tick(self, point: str) -> None:
        killed_at(point, lambda: fire(12).total)
        fire(12)
        ran = run_everything()
        assert len(ran) == len(set(ran)) == 2
        assert set(sent_ids()) == set(ran)
        assert last_ticks() == {KEY: 10 * MINUTE}
        assert fire(12) == Fired()

    @pytest.mark.parametrize("point", ["enqueue:before_commit", "outbox:before_insert", "outbox:after_insert"])
    def test_killed_process_keeps_no_tick_before_commit(self, queue: str, point: str) -> None:
        if queue == "direct":
            pytest.skip("reached only with the outbox")
        killed_at(point, lambda: fire(12).total)
        assert (last_ticks(), sent_ids()) == ({KEY: 0}, [])
        assert fire(12).sent == 2
        assert len(run_everything()) == 2

    def test_rejected_message_is_sent_by_the_next_attempt(self, queue: str) -> None:
        FileBackend.unavailable = True
        fired = fire(7)
        assert (fired.sent, fired.failed) == ((1, 0) if queue == "outbox" else (0, 1))
        FileBackend.unavailable = False
        fire(8)
        assert len(run_everything()) == 1
        assert last_ticks() == {KEY: 5 * MINUTE}

    def test_lost_answer_resends_under_the_same_id(self, queue: str) -> None:
        FileBackend.next_failure = "after"
        fire(7)
        fire(8)
        assert len(run_everything()) == 1
        assert Counter(sent_ids()).most_common(1)[0][1] == 2


@WITH_ROW_LOCKS
class TestSessions:
    @pytest.mark.parametrize("point", ["schedule:due", "schedule:sent"])
    def test_lost_session_loses_and_doubles_no_tick(self, point: str) -> None:
        with at_point(point, end_own_session):
            assert fire(12) == Fired(failed=1)
        assert last_ticks() == {KEY: 0}
        fire(12)
        ran = run_everything()
        assert len(ran) == len(set(ran)) == 2

    @pytest.mark.parametrize("point", ["schedule:due", "schedule:sent"])
    def test_frozen_process_blocks_no_other_schedule(self, point: str) -> None:
        """Its own ticks wait until its session ends. Others are fired, and no process waits for its lock."""

        other_key = f"{periodic(other, Every(minutes=1, name='one')).name}:one"
        fire_due(START)
        with frozen_at(point, lambda: fire(5).total):
            assert fire(7).sent == 1
            assert last_ticks() == {KEY: 0, other_key: 7 * MINUTE}
        fire(7)
        assert len(run_everything()) == 1


class TestCrowds:
    @EVERYWHERE
    def test_threads_send_each_tick_once(self) -> None:
        for minutes in (6, 13, 21):
            together(6, lambda _, minutes=minutes: _or_locked(lambda: fire(minutes)))  # type: ignore[misc]
        fire(21)
        ran = run_everything()
        assert len(ran) == len(set(ran)) == 4
        assert set(sent_ids()) == set(ran)

    @WITH_ROW_LOCKS
    def test_processes_send_each_tick_once(self) -> None:
        for minutes, ticks in ((6, 1), (13, 1), (21, 2)):
            crowd = [Process(lambda minutes=minutes: fire(minutes).sent) for _ in range(6)]  # type: ignore[misc]
            for process in crowd:
                process.run()
            assert [process.state for process in crowd] == ["answered"] * 6, [process.error for process in crowd]
            assert sum(process.answer for process in crowd) == ticks
        ran = run_everything()
        assert len(ran) == len(set(ran)) == 4
        assert sorted(sent_ids()) == ran

    @EVERYWHERE
    def test_processes_with_different_clocks_run_each_tick_once(self) -> None:
        together(6, lambda number: _or_locked(lambda: fire(5 + number)))
        fire(11)
        ran = run_everything()
        assert len(ran) == len(set(ran)) == 2
        assert last_ticks() == {KEY: 10 * MINUTE}

    @EVERYWHERE
    def test_new_schedule_is_created_once(self) -> None:
        rows().all().delete()
        together(6, lambda _: _or_locked(lambda: fire(1)))
        assert last_ticks() == {KEY: MINUTE}


def _or_locked(work: Callable[[], Fired]) -> Fired | None:
    """Do `work`. SQLite raises an error instead of waiting for another writer."""
    try:
        return work()
    except OperationalError:
        if connections[get_store().database].vendor != "sqlite":
            raise
        return None


@contextmanager
def before_firing(action: Callable[[], object]) -> Iterator[None]:
    """Execute `action` once, after the states were read, and before the first schedule is fired."""
    original = schedules._fire_alone

    with pytest.MonkeyPatch.context() as patch:

        def late(*given: Any) -> None:
            patch.setattr(schedules, "_fire_alone", original)
            action()
            original(*given)

        patch.setattr(schedules, "_fire_alone", late)
        yield


@EVERYWHERE
class TestInterleavings:
    def test_outdated_state_moves_nothing_back(self) -> None:
        """A process that read the state before another one fired sends nothing, and does not move the time back."""
        if not connections[get_store().database].features.has_select_for_update_skip_locked:
            pytest.skip("SQLite has one writer at a time")
        states: list[Fired] = []
        with before_firing(lambda: states.append(in_another_worker(lambda: fire(10)))):
            assert fire(7) == Fired()
        assert states == [Fired(sent=2)]
        assert last_ticks() == {KEY: 10 * MINUTE}
        assert len(run_everything()) == 2

    def test_pause_between_reading_and_firing_is_respected(self) -> None:
        with before_firing(lambda: pause(KEY, START)):
            assert fire(7) == Fired()
        assert run_everything() == []

    def test_rolled_back_caller_repeats_its_ticks(self) -> None:
        with pytest.raises(RuntimeError), transaction.atomic(using=get_store().database):
            fire(7)
            raise RuntimeError
        fire(7)
        assert len(run_everything()) == 1


@EVERYWHERE
def test_lost_tick_keeps_its_scheduled_time(queue: str) -> None:
    """The record of a lost task does not contain the time, but its id proves it."""
    [entry] = schedules.entries().values()
    tick = START + 5 * MINUTE
    tick_id = entry.job(tick, get_store().database).message_id
    assert schedules.scheduled_time(entry.task, tick_id, tick + 3600.5) == tick
    assert schedules.scheduled_time(entry.task, tick_id, tick - 86_400.0) is None
    [recent] = entry.schedule.latest(0, epoch_now(get_store().database) - int(LONG.total_seconds()) - 3600, 1)
    lost_id = lost_record(entry.task, id=entry.job(recent, get_store().database).message_id, kwargs={})
    assert reap().sent_again == 1
    relay_all()
    assert sent_ids() == [lost_id]
    attributes = sent()[0]["attributes"]
    assert attributes["lambda_tasks.scheduled_for"] == str(recent)
    assert "lambda_tasks.first_sent" in attributes  # its id does not tell when it was made
