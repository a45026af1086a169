"""The mark in a message of an invocation that others follow, so that the end of all other tasks asks no table.

A mark consists of words: `call` if the call named invocations that follow it, and `chain:ID` or `group:ID` for a member
of a chain or a group.
"""

from __future__ import annotations

from typing import Final

from lambda_tasks.wire import ids

CALL: Final = "call"
CHAIN: Final = "chain"
GROUP: Final = "group"


def mark(*, call: bool, kind: str = "", flow_id: str = "") -> str:
    """Return the mark of an invocation."""
    return " ".join([CALL] * call + [f"{kind}:{flow_id}"] * bool(kind))


def is_call(text: str) -> bool:
    """Return whether the call named invocations that follow it."""
    return CALL in text.split()


def flow_of(text: str, kind: str) -> str | None:
    """Return the id of the chain or the group, depending on `kind`, of which it is a member; None if it is not."""
    for word in text.split():
        name, _, flow_id = word.partition(":")
        if name == kind and flow_id:
            return ids.canonical_id(flow_id)  # another program may have written it
    return None
