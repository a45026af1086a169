"""Invocations that follow a task: they are sent with the record of its end, once, whatever is repeated."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connections, transaction
from django.db.models import F

from lambda_tasks import ERROR, FLOW_ID, RESULT, TASK_ID, TaskInvocation, lambda_task
from lambda_tasks.exceptions import InvalidArguments, UnknownDatabase
from lambda_tasks.models import OutboxMessage, TaskFlow, TaskRecord
from lambda_tasks.operations.reaping import reap
from lambda_tasks.strategies import get_backend, get_store, longest_delay
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.wire import ids
from tests.courier import outbox
from tests.faults.workers import LONG, deliver, expire_lease
from tests.flows.shop import (
    Again,
    actions,
    add,
    decorated,
    fail,
    flow_rows,
    note,
    notes,
    queue,
    report,
    run_all,
    run_next,
    shop_on,
    single,
    work,
)

EVERYWHERE = pytest.mark.databases(transaction=True)


def follow(task: Any, **options: Any) -> Any:
    """Return the task with `report` after its success and its failure."""
    return task.using(
        on_success=report.invocation(text="success", value=RESULT, task_id=TASK_ID),
        on_failure=report.invocation(text="failure", error=ERROR, task_id=TASK_ID),
        **options,
    )


@EVERYWHERE
class TestEnds:
    def test_success_is_followed(self, shop: str) -> None:
        handle = follow(work).execute_on_commit(name="a")
        [first] = run_next()
        [second] = queue()
        assert second.message.kwargs["task_id"] == handle.message_id == first.message_id
        run_all()
        assert notes() == ["a", "success: value a is done"]
        assert flow_rows() == []

    def test_failure_is_followed(self, shop: str) -> None:
        actions["a"] = fail
        follow(work).execute_on_commit(name="a")
        run_all()
        assert notes() == ["failure: ValueError: the warehouse is closed"]
        assert flow_rows() == []

    def test_retry_is_not_an_end(self, shop: str) -> None:
        def again() -> None:
            raise Again

        actions["a"] = again
        handle = follow(work).execute_on_commit(name="a")
        run_all()
        assert notes() == ["a", "success: value a is done"]
        last = TaskRecord.objects.using(shop).get(task_name=report.name)
        assert last.kwargs["task_id"] == handle.message_id

    def test_decorator_names_followers(self, shop: str) -> None:
        decorated.execute_on_commit(name="a")
        actions["b"] = fail
        decorated.execute_on_commit(name="b")
        run_all()
        assert sorted(notes()) == [
            "a",
            "decorated failure: ValueError: the warehouse is closed",
            "decorated success: value a",
        ]
        assert flow_rows() == []

    def test_call_and_decorator_are_both_followed(self, shop: str) -> None:
        follow(decorated).execute_on_commit(name="a")
        run_all()
        assert sorted(notes()) == ["a", "decorated success: value a", "success: value a"]

    def test_followers_are_followed(self, shop: str) -> None:
        last = report.invocation(text="last", value=RESULT)
        second = add.using(on_success=last).invocation(number=5, to=RESULT)
        add.using(on_success=second).execute_on_commit(number=1)
        run_all()
        assert notes() == ["1 + 0", "5 + 1", "last: value 6"]
        assert flow_rows() == []

    def test_expired_task_has_failed(self, shop: str) -> None:
        perishable.using(on_failure=report.invocation(text="failure", error=ERROR)).execute_on_commit()
        [job] = queue()
        job = replace(job, first_sent=1.0)
        queue()[:] = [job]
        run_all()
        assert notes()[0].startswith("failure: TaskExpiredError: expired")

    def test_lost_task_has_failed(self, shop: str) -> None:
        handle = follow(fragile).execute_on_commit(name="a")
        [job] = queue()
        queue().clear()
        get_store().claim(_run_of(job))
        expire_lease(handle.message_id)
        assert reap().failed == 1
        run_all()
        assert notes()[0].startswith("failure: TaskLostError: lost")

    def test_lost_task_that_is_sent_again_is_followed(self, shop: str) -> None:
        handle = follow(work).execute_on_commit(name="a")
        [job] = queue()
        queue().clear()
        get_store().claim(_run_of(job))
        expire_lease(handle.message_id)
        assert reap().sent_again == 1
        run_all()
        assert notes() == ["a", "success: value a is done"]

    def test_cancelled_task_has_failed(self, shop: str) -> None:
        handle = follow(work).execute_on_commit(name="a")
        assert handle.cancel()
        run_all()
        assert notes() == ["failure: TaskCancelled: cancelled: the task was cancelled before it started."]
        assert flow_rows() == []

    def test_replaced_call_is_not_followed(self, shop: str) -> None:
        latest.execute_on_commit(name="a")
        jobs = list(queue())
        latest.execute_on_commit(name="b")
        jobs += [job for job in queue() if job not in jobs]
        queue()[:] = jobs
        run_all()
        assert notes() == ["b", "followed: value b"]

    def test_cancelled_task_does_not_wait_for_its_delay(self, shop: str) -> None:
        handle = decorated.using(delay=900_000 if longest_delay() > 900 else 900).execute_on_commit(name="a")
        assert handle.cancel()
        if get_backend().keeps:
            outbox().relay()
        run_all()
        assert notes() == ["decorated failure: TaskCancelled: cancelled: the task was cancelled before it started."]

    def test_ignored_error_is_a_success(self, shop: str) -> None:
        ignoring.using(on_success=report.invocation(text="success")).execute_on_commit()
        run_all()
        assert notes() == ["success"]

    def test_task_without_transaction_is_followed(self, shop: str) -> None:
        committing.using(on_success=report.invocation(text="success")).execute_on_commit()
        run_all()
        assert notes() == ["success"]


@lambda_task(unique=True, on_duplicate="replace", on_success=report.invocation(text="followed", value=RESULT))
def latest(*, name: str) -> str:
    note(name)
    return name


@lambda_task(expires_in=60)
def perishable() -> None: ...


@lambda_task(on_crash="fail")
def fragile(*, name: str) -> None: ...


@lambda_task(ignore_errors=(ValueError,))
def ignoring() -> None:
    fail()


@lambda_task(atomic=False)
def committing() -> None: ...


def _run_of(job: Any) -> Any:
    from lambda_tasks.execution.pipeline import prepare

    return prepare(job.message, message_id=job.message_id, task=job.task, flow=job.flow)


@EVERYWHERE
class TestOnce:
    def test_redelivery_sends_nothing_twice(self, shop: str) -> None:
        follow(work).execute_on_commit(name="a")
        [job] = run_next()
        run_all()
        deliver(job)
        run_all()
        assert notes() == ["a", "success: value a is done"]

    def test_rolled_back_call_leaves_no_row(self, shop: str) -> None:
        with pytest.raises(KeyError), transaction.atomic(using=shop):
            follow(work, database=shop).execute_on_commit(name="a")
            raise KeyError
        assert (queue(), flow_rows()) == ([], [])

    def test_dropped_queue_message_is_recovered(self, shop: str) -> None:
        """The worker that ends the task can send nothing, and its message does not come back."""
        handle = follow(work).execute_on_commit(name="a")
        handle.cancel()
        queue().clear()
        OutboxMessage.objects.all().delete()
        _age(shop)
        reap()
        run_all()
        assert notes()[0].startswith("failure: TaskCancelled: cancelled")


def _age(database: str) -> None:
    TaskFlow.objects.using(database).update(created_at=F("created_at") - LONG, owed_since=F("owed_since") - LONG)
    TaskRecord.objects.using(database).update(end_time=F("end_time") - LONG)


@EVERYWHERE
class TestDebts:
    @pytest.fixture
    def direct(self, database: str) -> Iterator[str]:
        with shop_on(database, "direct"):
            yield database

    def test_message_stays_until_followers_are_sent(self, direct: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from lambda_tasks.backends.memory import MemoryBackend, event_record
        from lambda_tasks.handler import handler

        handle = follow(work).execute_on_commit(name="a")
        [job] = queue()
        queue().clear()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBackend, "send", _unavailable)
            kept = handler({"Records": [event_record(job)]}, None)["batchItemFailures"]
        assert [each["itemIdentifier"] for each in kept] == [handle.message_id]
        assert handle.status == "SUCCESS"
        [row] = flow_rows()
        assert row.owed is not None
        deliver(job)
        run_all()
        assert notes() == ["a", "success: value a is done"]
        assert flow_rows() == []

    def test_redelivery_keeps_the_debts_of_a_call(self, direct: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The decorator has followers too, which the redelivered message finds again without the row of the call."""
        from lambda_tasks.backends.memory import MemoryBackend, event_record
        from lambda_tasks.handler import handler

        follow(decorated).execute_on_commit(name="a")
        [job] = queue()
        queue().clear()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBackend, "send", _unavailable)
            handler({"Records": [event_record(job)]}, None)
        deliver(job)
        run_all()
        assert sorted(notes()) == ["a", "decorated success: value a", "success: value a"]
        assert flow_rows() == []

    def test_maintenance_pays_debts(self, direct: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from lambda_tasks.backends.memory import MemoryBackend, event_record
        from lambda_tasks.handler import handler

        follow(work).execute_on_commit(name="a")
        [job] = queue()
        queue().clear()
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBackend, "send", _unavailable)
            handler({"Records": [event_record(job)]}, None)
        reap()
        assert queue() == []  # its worker may still be busy
        _age(direct)
        reap()
        run_all()
        assert notes() == ["a", "success: value a is done"]
        assert flow_rows() == []

    def test_call_that_may_be_sent_keeps_its_row(self, direct: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The queue may have accepted the message although its answer was lost."""
        from lambda_tasks.backends.memory import MemoryBackend

        with monkeypatch.context() as patch:
            patch.setattr(MemoryBackend, "send", _unavailable)
            with pytest.raises(ConnectionError):
                follow(work).execute_on_commit(name="a")
        [row] = flow_rows()
        cleanup_task_records(retention_days=7)
        assert flow_rows() == [row]
        TaskFlow.objects.using(direct).update(created_at=F("created_at") - timedelta(days=15))
        cleanup_task_records(retention_days=7)
        assert flow_rows() == []


def _unavailable(self: Any, jobs: Any) -> Any:
    raise ConnectionError("the queue is unavailable")


@EVERYWHERE
class TestArguments:
    def test_result_that_does_not_fit_fails_the_follower(self, shop: str) -> None:
        broken = add.using(on_failure=report.invocation(text="failure", error=ERROR)).invocation(number=1, to=RESULT)
        work.using(on_success=broken).execute_on_commit(name="a")
        run_all()
        first, second = notes()
        assert first == "a"
        assert second.startswith("failure: InvalidMessage: The arguments in the message do not match")
        record = TaskRecord.objects.using(shop).get(task_name=add.name)
        assert (record.status, record.reason) == ("FAILED", "error")
        assert flow_rows() == []

    def test_result_is_told_as_json(self, shop: str) -> None:
        actions["a"] = lambda: {"id": UUID(int=1)}
        work.using(on_success=report.invocation(value=RESULT)).execute_on_commit(name="a")
        run_all()
        assert notes()[1] == f": value {{'id': '{UUID(int=1)}'}}"


@pytest.mark.django_db(transaction=True)
class TestRefusals:
    def test_placeholder_needs_a_place(self) -> None:
        with pytest.raises(InvalidArguments, match=r"Argument error of .* is ERROR, which has no value in on_success"):
            work.using(on_success=report.invocation(error=ERROR))
        with pytest.raises(InvalidArguments, match="is RESULT, which has no value in on_failure"):
            work.using(on_failure=report.invocation(value=RESULT))
        with pytest.raises(InvalidArguments, match="Placeholders with a value there: RESULT, TASK_ID"):
            work.using(on_success=report.invocation(task_id=FLOW_ID))

    def test_placeholder_is_not_sent(self) -> None:
        with pytest.raises(InvalidArguments, match="has no value unless the invocation follows another one"):
            add.invocation(number=RESULT).execute_on_commit()

    def test_task_is_not_an_invocation(self) -> None:
        with pytest.raises(TypeError, match=r"on_success must .* not the task .*: call its invocation\(…\)"):
            work.using(on_success=report)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="on_failure must be an invocation"):
            lambda_task(on_failure=3)(fail)  # type: ignore[call-overload]
        with pytest.raises(TypeError, match="not 'report'"):
            work.using(on_success=["report"])  # type: ignore[list-item]

    def test_argument_must_exist(self) -> None:
        with pytest.raises(InvalidArguments, match="nothing is not a parameter"):
            add.invocation(number=RESULT, nothing=RESULT)
        with pytest.raises(InvalidArguments, match="number is missing"):
            add.invocation(to=RESULT)
        with pytest.raises(InvalidArguments, match="number must be a valid integer"):
            add.invocation(number="1", to=RESULT)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="takes only keyword arguments"):
            add.invocation(1)  # type: ignore[call-arg, misc]

    def test_unique_task_is_followed_by_its_decorator_only(self) -> None:
        with pytest.raises(TypeError, match="Give these options to the decorator"):
            single.using(on_success=report.invocation()).execute_on_commit()

    def test_call_sent_now_is_not_followed(self) -> None:
        with pytest.raises(TypeError, match="which execute_now\\(\\) cannot note"):
            work.using(on_success=report.invocation()).execute_now(name="a")

    def test_other_database_is_refused(self) -> None:
        other = next(alias for alias in connections if alias != get_store().database)
        with pytest.raises(UnknownDatabase, match="must be sent with a transaction on 'default'"):
            work.using(on_success=report.invocation(), database=other).execute_on_commit(name="a")


class TestValues:
    def test_invocation_travels_as_json(self) -> None:
        invocation = follow(add, delay=5, queue="other").invocation(number=1, to=RESULT)
        data = json.loads(json.dumps(invocation.serialize()))
        assert TaskInvocation.deserialize(data) == invocation
        assert invocation.queue == "other"

    def test_copies_are_equal(self) -> None:
        invocation = follow(add).invocation(number=1)
        assert pickle.loads(pickle.dumps(invocation)) == invocation
        assert copy.deepcopy(invocation) == invocation
        task = pickle.loads(pickle.dumps(follow(add)))
        assert task.invocation(number=1) == invocation

    def test_plain_invocation_has_the_documented_shape(self) -> None:
        assert add.invocation(number=1).serialize() == {
            "task_name": add.name,
            "kwargs": {"number": 1},
            "queue": "default",
        }

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            ([], "must be a JSON object, not list"),
            ({}, "task_name: is missing"),
            ({"task_name": "a.b", "queue": ""}, "must have the name of a queue"),
            ({"task_name": "a.b", "delay": -1}, "must have a delay from 0 to"),
            ({"task_name": "a.b", "takes": {"x": "future"}}, "has takes that are not an object of"),
            ({"task_name": "a.b", "colour": 1}, "has unknown fields: 'colour'"),
            ({"task_name": "a.b", "on_success": {}}, "must have a list in on_success, not dict"),
            ({"task_name": "a.b", "on_failure": [{}]}, "The invocation, in on_failure, is invalid"),
        ],
    )
    def test_other_json_is_refused(self, data: Any, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            TaskInvocation.deserialize(data)

    def test_sensitive_values_are_not_shown(self) -> None:
        assert "secret" not in repr(work.invocation(name="secret"))

    def test_follow_up_id_differs_by_place(self) -> None:
        root = ids.new_message_id()
        assert ids.follow_up_id(root, "on_success 0") == ids.follow_up_id(root, "on_success 0")
        assert len({ids.follow_up_id(root, f"on_success {number}") for number in range(3)}) == 3


@pytest.mark.django_db(transaction=True)
class TestSending:
    def test_invocation_is_sent_on_commit(self) -> None:
        with shop_on("default", "direct"):
            invocation = TaskInvocation.deserialize(work.invocation(name="a").serialize())
            first, second = invocation.execute_on_commit(), invocation.execute_on_commit()
            assert first.message_id != second.message_id
            run_all()
            assert notes() == ["a", "a"]

    def test_plain_task_writes_no_row(self) -> None:
        with shop_on("default", "direct"):
            work.execute_on_commit(name="a")
            assert not queue()[0].flow
            run_all()
            assert flow_rows() == []
