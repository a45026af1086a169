"""What a task or its handle does not give."""

from __future__ import annotations

from collections.abc import Sequence

from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.outcomes import Retry


@lambda_task
def total(*, prices: list[int]) -> int:
    return sum(prices)


@lambda_task
async def later(*, number: int) -> int:
    return number


text: str = total(prices=[1])  # error: assignment
number: int = later(number=1)  # error: assignment
result: int = total.execute_on_commit(prices=[1])  # error: assignment
handle = total.execute_on_commit(prices=[1])
handle.result.bit_length()  # error: attr-defined
handle.message_id = "another"  # error: misc
total.delay_seconds.bit_length()  # error: attr-defined
total.apply_async(prices=[1])  # error: attr-defined
other: LambdaTaskWrapper[[], int] = total  # error: assignment
Retry(ValueError(), delay="5")  # error: arg-type


class Forgetful(BaseBackend):
    def send(self, jobs: Sequence[Job]) -> None: ...  # error: override
