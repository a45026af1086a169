"""Refuse synchronous calls in coroutines with the name of the call to await instead."""

from __future__ import annotations

import os
from asyncio import get_running_loop

from django.core.exceptions import SynchronousOnlyOperation


def in_coroutine() -> bool:
    """Return whether the calling code runs in an event loop, where Django refuses queries."""
    try:
        get_running_loop()
    except RuntimeError:
        return False
    return True


def refuse_coroutine(name: str, instead: str) -> None:
    """Raise `SynchronousOnlyOperation` in a coroutine, unless DJANGO_ALLOW_ASYNC_UNSAFE is set as for Django."""
    if in_coroutine() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise synchronous_only(name, instead)


def synchronous_only(name: str, instead: str) -> SynchronousOnlyOperation:
    """Return the error for a call of `name` in a coroutine."""
    return SynchronousOnlyOperation(f"{name} cannot be called in a coroutine. Use: await {instead}.")
