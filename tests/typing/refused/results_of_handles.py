"""Results, progress and asynchronous calls with the wrong type."""

from __future__ import annotations

from lambda_tasks import current_task, lambda_task
from lambda_tasks.handles import Polling, TaskHandle


@lambda_task
def total(*, prices: list[int]) -> int:
    return sum(prices)


@lambda_task
async def later(*, number: int) -> int:
    return number


handle = total.execute_on_commit(prices=[1])
text: str = handle.result()  # error: assignment
narrower: TaskHandle[bool] = handle  # error: assignment
later.execute_on_commit(number=1).result().send(None)  # error: attr-defined
total.execute_now(prices=["1"])  # error: list-item
total.aexecute_on_commit()  # error: call-arg, unused-coroutine
handle.result("10")  # error: arg-type
handle.result(10, 20)  # error: arg-type, call-arg
handle.result(poll=0.5)  # error: arg-type
Polling(first="0.1")  # error: arg-type
handle.progress = None  # error: misc
TaskHandle.from_id(7, total)  # error: call-overload
wrong: TaskHandle[str] = TaskHandle.from_id("…", total)  # error: arg-type


async def view() -> tuple[int, str]:
    return later.aexecute_on_commit(number=1), await handle.aresult()  # error: return-value


task = current_task()
if task is not None:
    task.progress(0.5)  # error: arg-type
    task.progress(1, 2, 3)  # error: arg-type
