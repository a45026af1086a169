"""`async def` tasks run in the task's transaction and under its limits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.coroutines import run_coroutine
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import HardTimeLimitExceeded, SoftTimeLimitExceeded, TimeLimits
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed, Succeeded
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect


@lambda_task
async def leave_effect(*, name: str, fail: bool = False) -> str:
    await Effect.objects.acreate(name=name)
    await asyncio.sleep(0)
    if fail:
        raise ValueError(name)
    return f"left {name}"


def run(task: Any, **kwargs: Any) -> Any:
    return execute(Invocation(task_name=task.name, kwargs=kwargs), message_id=ids.new_message_id())


def limited(function: Any, soft: float = 0.3, hard: float = 30.0) -> Any:
    with TimeLimits(soft, hard) as limits, limits.armed():
        return run_coroutine(function, {})


@pytest.mark.django_db(transaction=True)
class TestInTheTransaction:
    def test_writes_and_success_are_committed_together(self) -> None:
        assert run(leave_effect, name="a") == Succeeded("left a")
        assert Effect.objects.get().name == "a"
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_error_rolls_the_writes_back(self) -> None:
        assert isinstance(run(leave_effect, name="a", fail=True), Failed)
        assert not Effect.objects.exists()
        assert "raise ValueError(name)" in TaskRecord.objects.get().traceback

    def test_direct_call_returns_a_coroutine(self) -> None:
        async def calling() -> str:
            return await leave_effect(name="direct")

        assert run_coroutine(calling, {}) == "left direct"


class TestUnderLimits:
    def test_soft_limit_is_raised_at_the_await(self) -> None:
        async def tidy() -> str:
            try:
                await asyncio.sleep(30)
            except SoftTimeLimitExceeded:
                await asyncio.sleep(0)
                return "tidied up"
            return "never"

        assert limited(tidy) == "tidied up"

    def test_soft_limit_passes_through_asyncio_timeouts(self) -> None:
        async def nested() -> None:
            await asyncio.wait_for(asyncio.sleep(30), timeout=20)

        with pytest.raises(SoftTimeLimitExceeded):
            limited(nested)

    def test_hard_limit_ends_a_coroutine_swallowing_exceptions(self) -> None:
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
            limited(stubborn, 0.3, 0.4)
        assert ended.is_set(), "the coroutine still runs"

    def test_synchronous_work_is_interrupted(self) -> None:
        async def wait_in_thread() -> str:
            try:
                await sync_to_async(threading.Event().wait)(30)
            except SoftTimeLimitExceeded:
                return "interrupted"
            return "never"

        assert limited(wait_in_thread) == "interrupted"

    def test_error_is_raised_unchanged(self) -> None:
        async def fail() -> None:
            await asyncio.sleep(0)
            raise KeyError("a")

        with pytest.raises(KeyError):
            limited(fail)

    def test_own_cancellation_stays_a_cancellation(self) -> None:
        async def cancel_itself() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(30)

        with pytest.raises(asyncio.CancelledError):
            limited(cancel_itself, 20, 30)


@pytest.mark.django_db(transaction=True)
class TestAsyncCallers:
    """The documentation says what a coroutine that enqueues a task has to do."""

    @pytest.fixture(autouse=True)
    def jobs(self) -> list[Job]:
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        backend.jobs.clear()
        return backend.jobs

    def test_call_in_a_coroutine_is_refused(self, jobs: list[Job]) -> None:
        async def view() -> None:
            leave_effect.execute_on_commit(name="a")

        with pytest.raises(SynchronousOnlyOperation):
            async_to_sync(view)()
        assert jobs == []

    def test_call_in_an_async_task_is_refused(self, jobs: list[Job]) -> None:
        @lambda_task
        async def enqueue() -> None:
            leave_effect.execute_on_commit(name="a")

        outcome = run(enqueue)
        assert isinstance(outcome.error, SynchronousOnlyOperation)
        assert jobs == []

    @pytest.mark.parametrize("commits", [True, False])
    def test_sync_to_async_keeps_the_transaction(self, commits: bool, jobs: list[Job]) -> None:
        @sync_to_async
        def sign_up() -> None:
            with transaction.atomic():
                leave_effect.execute_on_commit(name="a")
                assert jobs == []
                transaction.set_rollback(not commits)

        async def view() -> None:
            await sign_up()

        async_to_sync(view)()
        assert len(jobs) == commits

    @pytest.mark.parametrize("fail", [True, False])
    def test_sync_to_async_joins_the_tasks_transaction(self, fail: bool, jobs: list[Job]) -> None:
        @lambda_task
        async def enqueue() -> None:
            await sync_to_async(leave_effect.execute_on_commit)(name="a")
            assert jobs == []
            if fail:
                raise ValueError("rolls back")

        run(enqueue)
        assert len(jobs) == (not fail)
