"""The results of tasks have the type of their return annotation."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from typing_extensions import assert_type

from lambda_tasks import TaskFailed, current_task, lambda_task
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.handles import Polling, TaskHandle
from lambda_tasks.outcomes import ReportedProgress


@lambda_task
def total(*, prices: list[int]) -> int:
    task = current_task()
    if task is not None:
        task.progress(1)
        task.progress(2, len(prices), note="adding")
    return sum(prices)


@lambda_task(queue="other")
async def find(*, name: str) -> dict[str, UUID]:
    task = current_task()
    if task is not None:
        await task.aprogress(1, total=2)
    return {}


@lambda_task()
def nothing() -> None: ...


handle = total.execute_on_commit(prices=[1])
assert_type(handle, TaskHandle[int])
assert_type(handle.result(), int)
assert_type(handle.result(10), int)
assert_type(handle.result(timeout=timedelta(minutes=1), poll=Polling(longest=2)), int)
assert_type(handle.result(timeout=None), int)
assert_type(handle.wait(5), str)
assert_type(handle.status, str | None)
assert_type(handle.progress, ReportedProgress | None)
assert_type(find.execute_on_commit(name="a").result(), dict[str, UUID])
assert_type(nothing.execute_on_commit(), TaskHandle[None])
assert_type(total.execute_now(prices=[1]).result(), int)
assert_type(find.execute_now(name="a"), TaskHandle[dict[str, UUID]])
assert_type(total.using(delay=1).execute_on_commit(prices=[1]).result(), int)

assert_type(TaskHandle.from_id("…", total), TaskHandle[int])
assert_type(TaskHandle.from_id(UUID(int=1), find).result(), dict[str, UUID])
assert_type(TaskHandle.from_id("…", database="other").result(), Any)


async def view() -> None:
    sent = await total.aexecute_on_commit(prices=[1])
    assert_type(sent, TaskHandle[int])
    assert_type(await sent.aresult(timeout=1), int)
    assert_type(await (await find.aexecute_on_commit(name="a")).aresult(), dict[str, UUID])
    assert_type(await (await total.aexecute_now(prices=[1])).await_(), str)
    assert_type(await sent.astatus(), str | None)
    assert_type(await sent.aprogress(), ReportedProgress | None)
    assert_type(await sent.acancel(), bool)


def describe(done: ReportedProgress) -> str:
    assert_type(done.total, int | None)
    assert_type(done.fraction, float | None)
    return f"{done.done} {done.note} {done.updated}"


with suppress(TaskFailed):
    handle.result()


def why(error: TaskFailed) -> str:
    assert_type(error.reason, str)
    return error.traceback


def keep(untyped: TaskHandle) -> TaskHandle:
    """A handle without a type, as in annotations for earlier versions."""
    return untyped


keep(handle)
wider: TaskHandle[int | str] = handle


def send_any(task: LambdaTaskWrapper[..., Any]) -> TaskHandle:
    return task.execute_on_commit(prices=[1])


def send_some(task: LambdaTaskWrapper[..., Coroutine[Any, Any, int]]) -> TaskHandle[int]:
    return task.execute_on_commit(prices=[1])
