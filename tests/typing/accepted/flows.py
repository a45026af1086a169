"""Invocations have the type of the result, and placeholders take the place of every argument."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from typing_extensions import assert_type

from lambda_tasks import ERROR, FLOW_ID, RESULT, TASK_ID, FlowHandle, TaskInvocation, chain, group, lambda_task
from lambda_tasks.handles import TaskHandle


@lambda_task
def warn(*, task_id: UUID, error: str) -> None: ...


@lambda_task(on_failure=warn.invocation(task_id=TASK_ID, error=ERROR))
def total(*, prices: list[int]) -> int:
    return sum(prices)


@lambda_task(on_success=[total.invocation(prices=RESULT)])
async def find(*, name: str) -> list[int]:
    return []


@lambda_task
def finish(*, group_id: UUID) -> None: ...


invocation = total.invocation(prices=[1])
assert_type(invocation, TaskInvocation[int])
assert_type(invocation.execute_on_commit(), TaskHandle[int])
assert_type(find.invocation(name="a"), TaskInvocation[list[int]])
assert_type(invocation.serialize(), dict[str, Any])
assert_type(TaskInvocation.deserialize({}), TaskInvocation[Any])
total.using(on_success=[invocation], on_failure=warn.invocation(task_id=TASK_ID, error=ERROR)).invocation(prices=[])

assert_type(chain(find.invocation(name="a"), total.invocation(prices=RESULT)).execute_on_commit(), FlowHandle)
members = [find.invocation(name=name) for name in "ab"]
handle = group(members, then=finish.invocation(group_id=FLOW_ID), on_failure=[invocation]).execute_on_commit()
assert_type(handle.status, str | None)
assert_type(handle.counts.failed, int)
assert_type(handle.tasks(), list[TaskHandle[Any]])
assert_type(FlowHandle.from_id(handle.flow_id).wait(10), str)


async def view() -> None:
    assert_type(await chain(invocation).aexecute_on_commit(), FlowHandle)
    assert_type(await invocation.aexecute_on_commit(), TaskHandle[int])
    assert_type(await handle.astatus(), str | None)
