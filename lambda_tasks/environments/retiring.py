"""Ask for a new process between two invocations. Only `lambda_tasks.instances` replaces one that ends."""

from __future__ import annotations

#: Why this process should be replaced after its invocation; empty if it should go on.
_reason = ""


def retire(reason: str) -> None:
    """Ask for the end of this process when its invocation is answered, and for another process in its place."""
    global _reason
    _reason = reason


def reason() -> str:
    """Return why this process should be replaced, or an empty string."""
    return _reason
