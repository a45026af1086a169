"""Invocations, chains and groups with the wrong arguments."""

from __future__ import annotations

from lambda_tasks import FlowHandle, chain, group, lambda_task


@lambda_task
def total(*, prices: list[int]) -> int:
    return sum(prices)


total.invocation()  # error: call-arg
total.invocation(prices=["1"])  # error: list-item
total.using(on_success=total)  # error: arg-type
total.invocation(prices=[]).result()  # error: attr-defined
chain(total)  # error: arg-type
chain([total.invocation(prices=[])])  # error: arg-type
group(total.invocation(prices=[]))  # error: arg-type
group([], then=total)  # error: arg-type
FlowHandle.from_id(7)  # error: arg-type
text: str = chain(total.invocation(prices=[])).execute_on_commit().counts.total  # error: assignment
