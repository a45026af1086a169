"""What `execute_on_commit()` gives back."""

from __future__ import annotations

from dataclasses import dataclass

from lambda_tasks.strategies import get_backend, get_store


@dataclass(frozen=True, slots=True)
class TaskHandle:
    """Enough to find the record of an invocation later, and to ask how it stands."""

    message_id: str
    #: The alias of the database with whose COMMIT the message leaves.
    database: str = "default"

    @property
    def status(self) -> str | None:
        """How the invocation stands by now: one query, or up to three.

        The status of its record (`RUNNING`, `SUCCESS`, `FAILED`, `RETRYING`), if a worker has begun it.
        Before that, with the outbox: `WAITING` to be sent, or `DEAD` if the queue has refused it. None
        where nobody knows of it: on its way in the queue, not committed, rolled back, or cleaned up.
        """
        store = get_store()
        # In between it may be sent, and begun.
        return (
            store.status(self.message_id)
            or get_backend().status(self.message_id, database=self.database)
            or store.status(self.message_id)
        )
