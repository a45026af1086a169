"""The outbox of the settings, for the operations that relay it or must not delete the records of its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lambda_tasks.strategies import get_backend, sends_directly

if TYPE_CHECKING:
    from lambda_tasks.backends.outbox import OutboxBackend


def outbox() -> OutboxBackend | None:
    """Return the configured outbox, or None."""
    if sends_directly():
        return None
    backend = get_backend()
    # Checks for methods and not for a class, so that projects can write an outbox from scratch.
    return cast("OutboxBackend", backend) if backend.keeps and hasattr(backend, "relay") else None


def databases_of_outboxes() -> set[str]:
    """Return the aliases of the databases that have an outbox."""
    kept = outbox()
    return set() if kept is None else set(kept.databases)
