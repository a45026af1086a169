"""Chains and groups: each member counts once, and the last one sends what follows."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connections, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from lambda_tasks import ERROR, FLOW_ID, RESULT, TASK_ID, FlowHandle, chain, group
from lambda_tasks.backends.base import Taken, Unsent
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.exceptions import InvalidArguments, UnknownDatabase
from lambda_tasks.flows.handles import Counts
from lambda_tasks.handles import Polling
from lambda_tasks.models import OutboxMessage, TaskFlow, TaskFlowMember, TaskRecord
from lambda_tasks.operations.reaping import reap
from lambda_tasks.strategies import get_store
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.testing.contracts import together
from tests.faults.workers import LONG, deliver
from tests.flows.shop import (
    actions,
    add,
    fail,
    flow_rows,
    member_rows,
    notes,
    queue,
    report,
    run_all,
    run_next,
    shop_on,
    single,
    summarize,
    work,
)

EVERYWHERE = pytest.mark.databases(transaction=True)


def three_steps(**options: Any) -> FlowHandle:
    return chain(
        add.invocation(number=1),
        add.invocation(number=10, to=RESULT),
        add.invocation(number=100, to=RESULT),
        **options,
    ).execute_on_commit()


def three_members(**options: Any) -> FlowHandle:
    return group(
        [work.invocation(name=name) for name in "abc"],
        then=report.invocation(text="then"),
        on_failure=report.invocation(text="on_failure"),
        **options,
    ).execute_on_commit()


@EVERYWHERE
class TestChains:
    def test_steps_run_one_after_the_other(self, shop: str) -> None:
        handle = three_steps()
        assert (handle.status, handle.counts) == ("RUNNING", Counts(total=3, pending=3))
        assert len(run_next(10)) == 1
        assert handle.counts == Counts(total=3, pending=2, succeeded=1)
        run_all()
        assert notes() == ["1 + 0", "10 + 1", "100 + 11"]
        assert (handle.status, handle.counts) == ("SUCCESS", Counts(total=3, succeeded=3))
        assert handle.results() == [1, 11, 111]
        assert [task.result(0) for task in handle.tasks()] == [1, 11, 111]

    def test_failed_step_ends_the_chain(self, shop: str) -> None:
        actions["b"] = fail
        handle = chain(
            work.invocation(name="a"),
            work.invocation(name="b"),
            work.invocation(name="c"),
            on_failure=report.invocation(text="failed", error=ERROR, task_id=TASK_ID),
        ).execute_on_commit()
        run_all()
        assert notes() == ["a", "failed: ValueError: the warehouse is closed"]
        assert (handle.status, handle.counts) == ("FAILED", Counts(total=3, succeeded=1, failed=1, skipped=1))
        [failed] = handle.tasks("FAILED")
        assert TaskRecord.objects.using(shop).get(task_name=report.name).kwargs["task_id"] == failed.message_id

    def test_unfitting_result_ends_the_chain(self, shop: str) -> None:
        handle = chain(
            work.invocation(name="a"),
            add.invocation(number=1, to=RESULT),
            on_failure=report.invocation(text="failed"),
        ).execute_on_commit()
        run_all()
        assert notes() == ["a", "failed"]
        assert (handle.status, handle.counts) == ("FAILED", Counts(total=2, succeeded=1, failed=1))

    def test_steps_have_followers_of_their_own(self, shop: str) -> None:
        followed = add.using(on_success=report.invocation(text="own", value=RESULT))
        handle = chain(followed.invocation(number=1), followed.invocation(number=2, to=RESULT)).execute_on_commit()
        run_all()
        assert sorted(notes()) == ["1 + 0", "2 + 1", "own: value 1", "own: value 3"]
        assert [row.kind for row in flow_rows()] == ["chain"]
        assert handle.status == "SUCCESS"

    def test_redelivered_step_counts_once(self, shop: str) -> None:
        handle = three_steps()
        first = run_next()
        deliver(*first)
        second = run_next()
        deliver(*first, *second)
        run_all()
        assert notes() == ["1 + 0", "10 + 1", "100 + 11"]
        assert handle.counts == Counts(total=3, succeeded=3)

    def test_cancelled_chain_stops(self, shop: str) -> None:
        handle = three_steps(on_failure=report.invocation(text="failed", error=ERROR))
        run_next()
        assert handle.cancel()
        assert not handle.cancel()
        run_all()
        assert notes()[0] == "1 + 0"
        assert notes()[1].startswith("failed: TaskCancelled: cancelled")
        assert len(notes()) == 2
        assert (handle.status, handle.counts) == ("FAILED", Counts(total=3, succeeded=1, failed=1, skipped=1))

    def test_chain_that_is_cancelled_by_its_step_stops(self, shop: str) -> None:
        handle = chain(
            work.invocation(name="a"), work.invocation(name="b"), on_failure=report.invocation(text="failed")
        ).execute_on_commit()
        actions["a"] = handle.cancel
        run_all()
        assert notes() == ["a", "failed"]
        assert handle.counts == Counts(total=2, succeeded=1, skipped=1)
        assert handle.status == "FAILED"


@EVERYWHERE
class TestGroups:
    def test_last_member_sends_then(self, shop: str) -> None:
        handle = three_members()
        run_next(2)
        assert (handle.status, handle.counts) == ("RUNNING", Counts(total=3, pending=1, succeeded=2))
        run_all()
        assert sorted(notes()) == ["a", "b", "c", "then"]
        assert (handle.status, handle.counts) == ("SUCCESS", Counts(total=3, succeeded=3))

    def test_failed_member_fails_the_group(self, shop: str) -> None:
        actions["b"] = fail
        handle = three_members()
        run_all()
        assert sorted(notes()) == ["a", "c", "on_failure"]
        assert (handle.status, handle.counts) == ("FAILED", Counts(total=3, succeeded=2, failed=1))
        assert len(handle.tasks("FAILED")) == 1

    def test_redelivered_members_count_once(self, shop: str) -> None:
        handle = three_members()
        ran = run_next(3)
        deliver(*ran)
        run_all()
        deliver(*ran)
        run_all()
        assert sorted(notes()) == ["a", "b", "c", "then"]
        assert handle.counts == Counts(total=3, succeeded=3)

    def test_then_reads_the_results(self, shop: str) -> None:
        group(
            [add.invocation(number=number) for number in (3, 1, 2)], then=summarize.invocation(group_id=FLOW_ID)
        ).execute_on_commit()
        run_all()
        assert notes()[-1] == "results [3, 1, 2]"

    def test_members_have_followers_of_their_own(self, shop: str) -> None:
        own = work.using(on_success=report.invocation(text="own"))
        group([own.invocation(name="a")], then=report.invocation(text="then")).execute_on_commit()
        run_all()
        assert sorted(notes()) == ["a", "own", "then"]

    def test_empty_group_has_succeeded(self, shop: str) -> None:
        handle = group([], then=report.invocation(text="then")).execute_on_commit()
        run_all()
        reap()
        run_all()
        assert (notes(), handle.status) == (["then"], "SUCCESS")

    def test_cancelled_group_has_failed(self, shop: str) -> None:
        handle = three_members()
        run_next()
        assert handle.cancel()
        run_all()
        assert sorted(notes()) == ["a", "on_failure"]
        assert (handle.status, handle.counts) == ("FAILED", Counts(total=3, succeeded=1, failed=2))

    def test_rolled_back_group_does_not_exist(self, shop: str) -> None:
        with pytest.raises(KeyError), transaction.atomic(using=shop):
            handle = three_members(database=shop)
            raise KeyError
        assert (handle.status, handle.counts) == (None, Counts(total=0))
        assert (queue(), member_rows()) == ([], [])

    def test_lost_last_step_is_recovered(self, shop: str) -> None:
        """The worker of the last member dies after its COMMIT, and its message does not come back."""
        three_members()
        queue().clear()
        OutboxMessage.objects.all().delete()
        for member in member_rows():
            _end_without_its_flow(member, shop)
        reap()
        run_all()
        assert notes() == ["then"]

    def test_counted_group_is_ended_by_the_next_maintenance(self, shop: str) -> None:
        """The worker of the last member dies after its COMMIT, before it has looked whether it was the last."""
        handle = three_members()
        queue().clear()
        OutboxMessage.objects.all().delete()
        TaskFlowMember.objects.using(shop).update(status="SUCCESS")
        reap()
        assert (handle.status, queue()) == ("RUNNING", [])  # the worker may still be busy
        TaskFlow.objects.using(shop).update(created_at=F("created_at") - LONG)
        reap()
        run_all()
        assert (handle.status, notes(), flow_rows()[0].owed) == ("SUCCESS", ["then"], None)


def _end_without_its_flow(member: TaskFlowMember, database: str) -> None:
    """Record the end of a member as a worker of an earlier version does it, long ago."""
    ago = timedelta(seconds=LONG.total_seconds())
    TaskRecord.objects.using(database).create(id=member.pk, root_id=member.pk, status="SUCCESS", task_name=work.name)
    TaskRecord.objects.using(database).update(end_time=_now(database) - ago)
    TaskFlow.objects.using(database).filter(pk=member.flow_id).update(created_at=F("created_at") - ago)


def _now(database: str) -> Any:
    from lambda_tasks.database.clock import DatabaseNow

    return DatabaseNow()


@pytest.mark.databases("postgres", "mariadb", transaction=True)
class TestTogether:
    def test_members_that_end_together_send_then_once(self, shop: str) -> None:
        handle = three_members()
        jobs = list(queue())
        queue().clear()
        together(len(jobs), lambda number: deliver(jobs[number]))
        run_all()
        assert sorted(notes()) == ["a", "b", "c", "then"]
        assert handle.status == "SUCCESS"


@pytest.mark.databases(transaction=True)
class TestOutages:
    def test_member_that_is_not_sent_has_failed(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with shop_on(database, "direct"):
            with monkeypatch.context() as patch:
                patch.setattr(MemoryBackend, "send", _only_the_first)
                with pytest.raises(ConnectionError):
                    three_members()
            run_all()
            assert notes() == ["a", "on_failure"]
            [flow] = flow_rows()
            assert FlowHandle.from_id(flow.pk).counts == Counts(total=3, succeeded=1, failed=2)


def _only_the_first(self: MemoryBackend, jobs: Any) -> Iterator[Any]:
    first, *others = jobs
    if "name" in first.message.kwargs and first.message.kwargs["name"] == "a":
        self.jobs.append(first)
        yield Taken(first)
    else:
        others = jobs
    for job in others:
        yield Unsent(job, ConnectionError("the queue is unavailable"))


@pytest.mark.django_db(transaction=True)
class TestHandles:
    @pytest.fixture(autouse=True)
    def _shop(self) -> Iterator[None]:
        with shop_on("default", "direct"):
            yield

    def test_handle_is_found_by_its_id(self) -> None:
        handle = three_members()
        assert FlowHandle.from_id(handle.flow_id) == handle == pickle.loads(pickle.dumps(handle))
        with pytest.raises(ValueError, match="must be a UUID"):
            FlowHandle.from_id("17")

    def test_call_is_not_a_flow(self) -> None:
        handle = work.using(on_success=report.invocation()).execute_on_commit(name="a")
        assert FlowHandle.from_id(handle.message_id).status is None
        assert not FlowHandle.from_id(handle.message_id).cancel()

    def test_wait_returns_the_status(self) -> None:
        handle = three_members()
        poll = Polling(sleep=lambda seconds: run_all())
        assert handle.wait(poll=poll) == "SUCCESS"

    def test_wait_ends_with_its_timeout(self) -> None:
        handle = three_members()
        with pytest.raises(TimeoutError, match="has not ended within 0 s; its status is RUNNING"):
            handle.wait(0)

    def test_coroutines_await_flows(self) -> None:
        async def main() -> None:
            handle = await group([work.invocation(name="a")]).aexecute_on_commit()
            assert await handle.astatus() == "RUNNING"
            assert await handle.acounts() == Counts(total=1, pending=1)
            assert len(await handle.atasks()) == 1
            assert await handle.acancel()
            assert await handle.await_() == "FAILED"
            assert await handle.aresults() == [None]

        async_to_sync(main)()

    def test_results_of_retries_are_found(self) -> None:
        from tests.flows.shop import Again

        def again() -> None:
            raise Again

        actions["a"] = again
        handle = group([work.invocation(name="a"), work.invocation(name="b")]).execute_on_commit()
        run_all()
        assert handle.results() == ["a is done", "b is done"]


@pytest.mark.django_db(transaction=True)
class TestRefusals:
    def test_members_must_be_invocations(self) -> None:
        with pytest.raises(TypeError, match=r"The tasks of group\(\) must be an invocation"):
            group([work])  # type: ignore[list-item]
        with pytest.raises(TypeError, match=r"The first task of chain\(\) must be an invocation"):
            chain(work)  # type: ignore[arg-type]
        with pytest.raises(InvalidArguments, match="A chain must have at least one task"):
            chain()

    def test_placeholders_need_a_place(self) -> None:
        with pytest.raises(InvalidArguments, match=r"has no value in the first task of chain\(\)"):
            chain(add.invocation(number=RESULT))
        with pytest.raises(InvalidArguments, match="has no value in then"):
            group([work.invocation(name="a")], then=report.invocation(value=RESULT))

    def test_unique_task_is_not_a_member(self) -> None:
        with pytest.raises(TypeError, match="cannot be a member of a chain"):
            chain(single.invocation())
        with pytest.raises(TypeError, match="cannot be a member of a group"):
            group([single.invocation()])

    def test_other_database_is_refused(self) -> None:
        other = next(alias for alias in connections if alias != get_store().database)
        with pytest.raises(UnknownDatabase, match="A group must be sent with a transaction on 'default'"):
            group([], database=other).execute_on_commit()
        with pytest.raises(UnknownDatabase, match="A chain must be sent with a transaction on 'default'"):
            chain(work.invocation(name="a"), database=other).execute_on_commit()


@pytest.mark.django_db(transaction=True)
class TestCleanup:
    def test_old_flows_are_deleted(self) -> None:
        with shop_on("default", "direct"):
            three_members()
            running = three_steps()
            ran = len(member_rows())
            TaskFlow.objects.update(created_at=F("created_at") - timedelta(days=8))
            TaskFlow.objects.filter(kind="group").update(ended_at=F("created_at"))
            cleanup_task_records(retention_days=7)
            assert [str(row.pk) for row in flow_rows()] == [running.flow_id]
            assert (ran, len(member_rows())) == (6, 3)


@pytest.mark.django_db(transaction=True)
class TestCost:
    def test_member_of_a_group_costs_three_statements(self) -> None:
        with shop_on("default", "direct"):
            work.execute_on_commit(name="x")
            run_all()
            plain = self._statements(lambda: work.execute_on_commit(name="y"))
            member = self._statements(lambda: group([work.invocation(name=name) for name in "ab"]).execute_on_commit())
            assert member - plain == 3  # its own row, the question whether it was the last, and its debts

    @staticmethod
    def _statements(send: Any) -> int:
        queue().clear()
        send()
        connection = connections[get_store().database]
        with CaptureQueriesContext(connection) as captured:
            run_next()
        queue().clear()
        return len(captured)
