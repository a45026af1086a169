"""What is repeated, or happens at the same time, changes nothing: one test for each protection of flows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from django.db import transaction
from django.db.models import F

from lambda_tasks import RESULT, FlowHandle, chain, failpoints, group
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskFlow, TaskRecord
from lambda_tasks.operations.reaping import reap
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.testing.contracts import InThread
from lambda_tasks.wire import marks
from tests.faults.workers import LONG, deliver
from tests.flows.shop import (
    TRANSPORTS,
    actions,
    add,
    decorated,
    flow_rows,
    member_rows,
    notes,
    queue,
    report,
    run_all,
    run_next,
    shop_on,
    work,
)

#: Seconds for which a thread that must wait gets the chance to go on, and those that any thread may take.
A_MOMENT: Final = 0.3
PATIENCE: Final = 30.0


@pytest.fixture(params=TRANSPORTS)
def shop(db: None, request: pytest.FixtureRequest, transactional_db: None) -> Iterator[str]:
    with shop_on("default", request.param):
        yield "default"


def ends() -> list[Any]:
    return [row.ended_at for row in flow_rows()]


class TestRedeliveries:
    def test_decorated_task_is_followed_once(self, shop: str) -> None:
        decorated.execute_on_commit(name="a")
        [job] = run_next()
        run_all()
        deliver(job)
        run_all()
        assert notes() == ["a", "decorated success: value a"]

    def test_ended_chain_does_not_end_again(self, shop: str) -> None:
        chain(work.invocation(name="a"), add.invocation(number=1, to=0)).execute_on_commit()
        jobs = [*run_next(), *run_next()]
        [ended_at] = ends()
        deliver(*jobs)
        assert ends() == [ended_at]
        run_all()
        assert notes() == ["a", "1 + 0"]

    def test_ended_group_does_not_end_again(self, shop: str) -> None:
        group([work.invocation(name="a")], then=report.invocation(text="then")).execute_on_commit()
        jobs = run_next()
        [ended_at] = ends()
        deliver(*jobs)
        assert ends() == [ended_at]
        run_all()
        assert notes() == ["a", "then"]

    def test_failure_of_a_counted_member_changes_nothing(self, shop: str) -> None:
        """Its record was edited by hand, and says something else when its message is redelivered."""
        handle = group([work.invocation(name="a"), work.invocation(name="b")]).execute_on_commit()
        jobs = run_next()
        TaskRecord.objects.update(status="FAILED")
        deliver(*jobs)
        assert handle.counts.succeeded == 1


class TestDebts:
    @pytest.fixture
    def direct(self, transactional_db: None) -> Iterator[None]:
        with shop_on("default", "direct"):
            yield

    def test_group_owes_what_could_not_be_sent(self, direct: None, monkeypatch: pytest.MonkeyPatch) -> None:
        handle = group([work.invocation(name="a")], then=report.invocation(text="then")).execute_on_commit()
        [job] = queue()
        queue().clear()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBackend, "send", _unavailable)
            handler({"Records": [event_record(job)]}, None)
        assert handle.status == "SUCCESS"
        assert len(flow_rows()[0].owed) == 1
        deliver(job)
        assert flow_rows()[0].owed is None
        run_all()
        assert notes() == ["a", "then"]

    def test_cleanup_spares_flows_that_owe(self, direct: None) -> None:
        for _ in range(2):
            group([], then=report.invocation(text="then")).execute_on_commit()
        first = flow_rows()[0]
        TaskFlow.objects.filter(pk=first.pk).update(owed=[], owed_since=F("created_at"), debt=first.pk)
        TaskFlow.objects.update(ended_at=F("created_at") - timedelta(days=8))
        cleanup_task_records(retention_days=7)
        assert [row.pk for row in flow_rows()] == [first.pk]


def _unavailable(self: Any, jobs: Any) -> Any:
    raise ConnectionError("the queue is unavailable")


class TestRecovery:
    def test_young_debts_are_left_to_the_worker(self, shop: str) -> None:
        handle = group([work.invocation(name="a")], then=report.invocation(text="then")).execute_on_commit()
        queue().clear()
        TaskFlow.objects.update(owed=[], owed_since=F("created_at"), debt=handle.flow_id)
        reap()
        assert flow_rows()[0].owed == []
        _age()
        reap()
        assert flow_rows()[0].owed is None

    def test_step_ended_by_a_dead_worker_is_followed(self, shop: str) -> None:
        """The worker is one of an earlier version, which ends tasks without their flows."""
        chain(work.invocation(name="a"), work.invocation(name="b")).execute_on_commit()
        [first] = queue()
        queue().clear()
        TaskRecord.objects.create(
            id=first.message_id, root_id=first.message_id, status="SUCCESS", task_name=work.name, end_time=None
        )
        _age()
        reap()
        run_all()
        assert notes() == ["b"]

    def test_unrecoverable_flow_does_not_stop_others(self, shop: str, caplog: pytest.LogCaptureFixture) -> None:
        debts = {"owed_since": F("created_at"), "ended_at": F("created_at")}
        for _ in range(2):
            group([], then=report.invocation(text="then")).execute_on_commit()
        run_all()
        [first, second] = flow_rows()
        TaskFlow.objects.filter(pk=first.pk).update(owed=["unreadable"], debt=first.pk, **debts)
        TaskFlow.objects.filter(pk=second.pk).update(owed=[], debt=second.pk, **debts)
        _age()
        reap()
        assert [row.owed for row in flow_rows()] == [["unreadable"], None]
        assert "cannot be sent now. The next maintenance tries again" in caplog.text


def _age() -> None:
    TaskFlow.objects.update(created_at=F("created_at") - LONG, owed_since=F("owed_since") - LONG)
    for flow in flow_rows():
        TaskRecord.objects.update(end_time=flow.created_at)


class TestCancelling:
    def test_transaction_that_cancels_its_own_call_is_followed(self, shop: str) -> None:
        with transaction.atomic():
            handle = work.using(on_failure=report.invocation(text="failed")).execute_on_commit(name="a")
            handle.cancel()
        run_all()
        assert notes() == ["failed"]

    def test_followers_of_cancelled_members_are_sent(self, shop: str) -> None:
        own = work.using(on_failure=report.invocation(text="own"))
        handle = group(
            [own.invocation(name=name) for name in "ab"], on_failure=report.invocation(text="all")
        ).execute_on_commit()
        jobs = list(queue())
        queue().clear()
        assert handle.cancel()
        run_all()
        assert sorted(notes()) == ["all", "own", "own"]
        deliver(*jobs)
        run_all()
        assert sorted(notes()) == ["all", "own", "own"]


@pytest.mark.databases("postgres", transaction=True)
class TestLocks:
    @pytest.fixture(params=TRANSPORTS)
    def server(self, database: str, request: pytest.FixtureRequest) -> Iterator[str]:
        with shop_on(database, request.param):
            yield database

    def test_chain_that_is_being_cancelled_does_not_advance(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        handle = chain(
            work.invocation(name="a"), work.invocation(name="b"), on_failure=report.invocation(text="failed")
        ).execute_on_commit()
        [job] = queue()
        queue().clear()
        ending, ended = threading.Event(), threading.Event()
        entered, cancelled = threading.Event(), threading.Event()
        actions["a"] = _both(entered.set, lambda: cancelled.wait(PATIENCE))
        monkeypatch.setattr(failpoints, "reached", _signals({"flow:before_end": ending, "flow:after_end": ended}))
        worker = InThread(lambda: deliver(job)).start()
        assert entered.wait(PATIENCE)
        with transaction.atomic(using=server):
            assert handle.cancel()
            cancelled.set()
            assert ending.wait(PATIENCE)
            assert not ended.wait(A_MOMENT)  # it waits for the row of the chain
        worker.wait(PATIENCE)
        run_all()
        assert notes() == ["a", "failed"]
        assert [row.status for row in member_rows()] == ["SUCCESS", "SKIPPED"]


def _both(*actions: Callable[[], object]) -> Callable[[], object]:
    return lambda: [action() for action in actions][-1]


def _signals(events: dict[str, threading.Event]) -> Callable[[str], None]:
    def reached(point: str) -> None:
        if point in events:
            events[point].set()

    return reached


class TestMarks:
    def test_mark_names_the_flow(self) -> None:
        flow_id = "01a229ea-12ee-70c9-84be-6d46ed920299"
        mark = marks.mark(call=True, kind=marks.GROUP, flow_id=flow_id)
        assert marks.is_call(mark)
        assert marks.flow_of(mark, marks.GROUP) == flow_id
        assert marks.flow_of(mark, marks.CHAIN) is None

    @pytest.mark.parametrize("mark", ["", "chain:", "chain", "call", "chained:17", "group:17 call"])
    def test_mark_without_a_chain_names_none(self, mark: str) -> None:
        assert marks.flow_of(mark, marks.CHAIN) is None

    @pytest.mark.parametrize("mark", ["chain:17", "group:17", "call", "17"])
    def test_mark_of_another_program_is_harmless(self, shop: str, mark: str) -> None:
        work.execute_on_commit(name="a")
        [job] = queue()
        queue()[:] = [replace(job, flow=mark)]
        run_all()
        assert notes() == ["a"]
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_flow_id_is_passed_on(self, shop: str) -> None:
        handle = chain(add.invocation(number=1), add.invocation(number=2, to=RESULT)).execute_on_commit()
        run_all()
        assert FlowHandle.from_id(handle.flow_id).status == "SUCCESS"
        assert notes() == ["1 + 0", "2 + 1"]
