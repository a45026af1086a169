"""The measured tasks."""

from __future__ import annotations

from lambda_tasks.decorators import lambda_task
from lambda_tasks.logging import current_message_id


@lambda_task
def nothing() -> None:
    """Do nothing, so that only the library's cost is measured."""


@lambda_task
def greet(*, user_id: int, greeting: str) -> None:
    """Accept typical arguments: a key and a short string."""


#: The message ids of `note` that this process has run.
ran: list[str] = []


@lambda_task
def note() -> None:
    """Record that the task has run, at negligible cost."""
    ran.append(current_message_id() or "")
