"""The body of a message, read by whichever way is the cheaper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambda_tasks.plain import Invocation

if TYPE_CHECKING:
    from lambda_tasks.messages import SQSLambdaTaskMessage


def read_message(body: str) -> Invocation | SQSLambdaTaskMessage:
    """Read the body of a message, most of them without pydantic; raises `InvalidMessage`."""
    if (invocation := Invocation.plain(body)) is not None:
        return invocation
    from lambda_tasks.messages import SQSLambdaTaskMessage

    return SQSLambdaTaskMessage.from_body(body)
