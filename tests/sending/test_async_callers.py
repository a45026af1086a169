"""Coroutines send tasks, wait for them and cancel them, on each transport."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, Final

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction
from django.http import HttpRequest, JsonResponse
from django.test import AsyncRequestFactory

from lambda_tasks import TaskFailed, lambda_task
from lambda_tasks.exceptions import InvalidArguments, ResultUnavailable
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.handles import TaskHandle
from lambda_tasks.models import OutboxMessage, SQSLambdaTask
from lambda_tasks.outcomes import Succeeded
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation
from tests.clocks import Clock
from tests.conftest import Sqs
from tests.courier import note, outbox, use_outbox
from tests.faults.workers import backend, deliver

pytestmark = pytest.mark.django_db(transaction=True)

EAGER: Final = "lambda_tasks.backends.eager.EagerBackend"


class Rollback(Exception):
    pass


@lambda_task
def double(*, number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return 2 * number


@lambda_task
async def double_asynchronously(*, number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


@pytest.fixture(autouse=True)
def _empty_queue() -> None:
    getattr(backend(), "jobs", []).clear()


def work() -> None:
    deliver(*backend().take())


def served(view: Any) -> Any:
    """Return what an async view does, which Django's handler calls in an event loop."""

    async def respond(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"value": await view()})

    async def serve() -> Any:
        return json.loads((await respond(AsyncRequestFactory().get("/"))).content)["value"]

    return async_to_sync(serve)()


class TestTransports:
    def test_eager_task_has_ended_after_the_call(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = EAGER

        async def view() -> list[Any]:
            first = await double.aexecute_on_commit(number=1)
            second = await double_asynchronously.aexecute_on_commit(number=2)
            return [await first.aresult(0), await second.aresult(0), await first.astatus()]

        assert served(view) == [2, 4, "SUCCESS"]

    def test_message_in_memory_is_run_later(self) -> None:
        async def view() -> list[Any]:
            handle = await double.aexecute_on_commit(number=1)
            return [await handle.astatus(), await handle.aresult(poll=Clock(work).polling()), await handle.await_()]

        assert served(view) == ["SENT", 2, "SUCCESS"]

    def test_sqs_receives_the_message(self, sqs: Sqs) -> None:
        async def view() -> list[Any]:
            handle = await double.aexecute_on_commit(number=1)
            await double.aexecute_now(number=2)
            return [await handle.astatus()]

        assert served(view) == ["SENT"]
        assert sorted(body["kwargs"]["number"] for body in sqs.bodies()) == [1, 2]

    def test_outbox_keeps_the_message(self, settings: Any) -> None:
        courier = use_outbox(settings, "default")
        courier.fails = {1}

        async def view() -> list[Any]:
            handle = await note.aexecute_on_commit(number=1)
            return [await handle.astatus(), await handle.acancel(), await handle.astatus()]

        assert served(view) == ["WAITING", True, "FAILED"]
        assert not OutboxMessage.objects.exists()

    def test_stored_invocation_is_sent(self) -> None:
        async def view() -> Any:
            handle = await SQSLambdaTask.model_validate(double.serialize(number=1)).aexecute_on_commit()
            return await handle.aresult(poll=Clock(work).polling())

        assert served(view) == 2

    def test_outbox_sends_the_message(self, settings: Any) -> None:
        courier = use_outbox(settings, "default")
        served(lambda: _sent(1))
        assert courier.sent == [1]
        assert outbox().relay().sent == 0


async def _sent(number: int) -> None:
    await note.aexecute_on_commit(number=number)


class TestErrors:
    def test_failure_is_raised(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = EAGER

        async def view() -> None:
            with pytest.raises(TaskFailed, match="ValueError: negative"):
                await (await double.aexecute_on_commit(number=-1)).aresult()

        served(view)

    def test_timeout_is_raised(self) -> None:
        async def view() -> None:
            handle = await double.aexecute_on_commit(number=1)
            clock = Clock()
            with pytest.raises(TimeoutError, match="its status is SENT"):
                await handle.aresult(3, poll=clock.polling())
            assert sum(clock.sleeps) == pytest.approx(3)

        served(view)

    def test_real_clock_is_the_default(self) -> None:
        async def view() -> None:
            with pytest.raises(TimeoutError):
                await TaskHandle.from_id(new_message_id()).await_(0.01)

        served(view)

    def test_invalid_arguments_are_refused_at_the_await(self) -> None:
        async def view() -> None:
            with pytest.raises(InvalidArguments):
                await double.aexecute_on_commit(number="1")  # type: ignore[arg-type]

        served(view)

    @pytest.mark.parametrize(
        ("call", "instead"),
        [
            (lambda handle: double.execute_on_commit(number=1), "double.aexecute_on_commit"),
            (lambda handle: double.execute_now(number=1), "double.aexecute_now"),
            (lambda handle: handle.status, "handle.astatus"),
            (lambda handle: handle.progress, "handle.aprogress"),
            (lambda handle: handle.result(), "handle.aresult"),
            (lambda handle: handle.wait(), "handle.await_"),
            (lambda handle: handle.cancel(), "handle.acancel"),
        ],
        ids=["execute_on_commit", "execute_now", "status", "progress", "result", "wait", "cancel"],
    )
    def test_synchronous_call_names_the_asynchronous_one(self, call: Any, instead: str) -> None:
        async def view() -> None:
            with pytest.raises(
                SynchronousOnlyOperation, match=rf"cannot be called in a coroutine\. Use: await {instead}"
            ):
                call(TaskHandle.from_id(new_message_id()))

        served(view)
        assert backend().jobs == []

    def test_setting_of_django_allows_synchronous_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

        async def view() -> Any:
            try:
                return TaskHandle.from_id(new_message_id()).status
            finally:
                connections.close_all()  # those of the event loop's thread

        assert served(view) is None


class TestTransactions:
    @pytest.mark.parametrize("rolls_back", [True, False])
    def test_call_in_an_async_task_joins_its_transaction(self, rolls_back: bool) -> None:
        @lambda_task(ignore_errors=(Rollback,))
        async def enqueue() -> str | None:
            handle = await double.aexecute_on_commit(number=1)
            assert await handle.astatus() == "PENDING"
            with pytest.raises(ResultUnavailable, match="open transaction"):
                await handle.aresult()
            if rolls_back:
                raise Rollback
            return handle.message_id

        execute(Invocation(enqueue.name, {}), message_id=new_message_id(), task=enqueue)
        assert len(backend().jobs) == (not rolls_back)

    def test_call_now_ignores_the_tasks_transaction(self) -> None:
        @lambda_task(ignore_errors=(Rollback,))
        async def enqueue() -> None:
            await double.aexecute_now(number=1)
            raise Rollback

        execute(Invocation(enqueue.name, {}), message_id=new_message_id(), task=enqueue)
        assert len(backend().jobs) == 1

    def test_call_in_a_synchronous_block_rolls_back(self) -> None:
        @sync_to_async
        def sign_up() -> None:
            with suppress(Rollback), transaction.atomic():
                double.execute_on_commit(number=1)
                raise Rollback

        served(sign_up)
        assert backend().jobs == []

    def test_async_test_sees_the_result(self) -> None:
        outcome = execute(Invocation(waits.name, {}), message_id=new_message_id(), task=waits)
        assert outcome == Succeeded(2)


@lambda_task(atomic=False)
async def waits() -> int:
    handle = await double.aexecute_on_commit(number=1)
    return await handle.aresult(poll=Clock(work).polling())
