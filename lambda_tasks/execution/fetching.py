"""Read arguments that are stored outside of their message, or encrypted in it, before anything is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambda_tasks import failpoints
from lambda_tasks.strategies import get_backend, get_store

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task
    from lambda_tasks.wire.invocation import Invocation


def fetched(message: Invocation) -> Invocation:
    """Return `message`, which refers to stored arguments, with these arguments.

    Raise `ArgumentsMissing` if they do not exist, `InvalidMessage` if they are not arguments, and any other exception
    if they cannot be read now.
    """
    assert message.stored is not None
    complete = message.with_stored(get_backend().fetch(message.stored))
    failpoints.reached("arguments:fetched")
    return complete


def readable(message: Invocation, task: Task) -> Invocation:
    """Return `message` with its sensitive arguments decrypted, or raise `ArgumentsUnreadable`."""
    from lambda_tasks.wire.encryption import decrypted  # few tasks have such arguments

    return decrypted(message, task.sensitive)


def has_ended(message_id: str) -> bool:
    """Return whether an earlier delivery has ended the invocation, whose stored arguments are deleted since."""
    return get_store().status(message_id) not in (None, "RUNNING")
