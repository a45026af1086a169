"""The project's tasks."""

from lambda_tasks.decorators import lambda_task


@lambda_task
def total(*, prices: list[int]) -> int:
    return sum(prices)


@lambda_task(sensitive=["token"])
def count_letters(*, token: str) -> int:
    return len(token)


@lambda_task
def fail() -> None:
    raise LookupError("no such order")
