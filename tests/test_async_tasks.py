"""`async def` tasks: in the task's transaction, and under its limits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import sync_to_async

from lambda_tasks import identity
from lambda_tasks.coroutines import run_coroutine
from lambda_tasks.decorators import lambda_task
from lambda_tasks.executor import execute
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed, Succeeded
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded, TimeLimits
from tests.app.models import Effect


@lambda_task
async def leave_effect(*, name: str, fail: bool = False) -> str:
    await Effect.objects.acreate(name=name)
    await asyncio.sleep(0)
    if fail:
        raise ValueError(name)
    return f"left {name}"


def run(task: Any, **kwargs: Any) -> Any:
    return execute(SQSLambdaTaskMessage(task_name=task.name, kwargs=kwargs), message_id=identity.new_message_id())


def limited(function: Any, soft: float = 0.05, hard: float = 30.0) -> Any:
    with TimeLimits(soft, hard) as limits, limits.armed():
        return run_coroutine(function, {})


@pytest.mark.django_db(transaction=True)
class TestInTheTransaction:
    def test_writes_and_success_are_committed_together(self) -> None:
        assert run(leave_effect, name="a") == Succeeded("left a")
        assert Effect.objects.get().name == "a"
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_an_error_rolls_the_writes_back(self) -> None:
        assert isinstance(run(leave_effect, name="a", fail=True), Failed)
        assert not Effect.objects.exists()
        assert "raise ValueError(name)" in TaskRecord.objects.get().traceback

    def test_calling_the_task_gives_a_coroutine_as_the_function_does(self) -> None:
        async def calling() -> str:
            return await leave_effect(name="direct")

        assert run_coroutine(calling, {}) == "left direct"


class TestUnderLimits:
    def test_the_soft_limit_is_raised_at_the_await(self) -> None:
        async def tidy() -> str:
            try:
                await asyncio.sleep(30)
            except SoftTimeLimitExceeded:
                await asyncio.sleep(0)
                return "tidied up"
            return "never"

        assert limited(tidy) == "tidied up"

    def test_the_soft_limit_passes_through_asyncios_own_timeouts(self) -> None:
        async def nested() -> None:
            await asyncio.wait_for(asyncio.sleep(30), timeout=20)

        with pytest.raises(SoftTimeLimitExceeded):
            limited(nested)

    def test_the_hard_limit_ends_a_coroutine_that_swallows_exceptions(self) -> None:
        ended = threading.Event()

        async def stubborn() -> None:
            try:
                while True:
                    try:
                        await asyncio.sleep(30)
                    except Exception:
                        continue
            finally:
                ended.set()

        with pytest.raises(HardTimeLimitExceeded):
            limited(stubborn, 0.05, 0.1)
        assert ended.is_set(), "the coroutine still runs behind everybody's back"

    def test_synchronous_work_of_a_coroutine_is_interrupted_where_it_is(self) -> None:
        async def wait_in_thread() -> str:
            try:
                await sync_to_async(threading.Event().wait)(30)
            except SoftTimeLimitExceeded:
                return "interrupted"
            return "never"

        assert limited(wait_in_thread) == "interrupted"

    def test_the_error_of_a_coroutine_comes_out_as_it_is(self) -> None:
        async def fail() -> None:
            await asyncio.sleep(0)
            raise KeyError("a")

        with pytest.raises(KeyError):
            limited(fail)

    def test_a_cancellation_of_its_own_stays_one(self) -> None:
        async def cancel_itself() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(30)

        with pytest.raises(asyncio.CancelledError):
            limited(cancel_itself, 20, 30)
