"""The tasks that are measured."""

from __future__ import annotations

from lambda_tasks.decorators import lambda_task
from lambda_tasks.logging import current_message_id


@lambda_task
def nothing() -> None:
    """Do nothing: what is left is what the library costs."""


@lambda_task
def greet(*, user_id: int, greeting: str) -> None:
    """Take what a task usually takes: a key, and a word."""


#: The message ids of `note` that this process has run.
ran: list[str] = []


@lambda_task
def note() -> None:
    """Note that it was run, which costs nothing to speak of."""
    ran.append(current_message_id() or "")
