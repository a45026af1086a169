"""The handle that `execute_on_commit()` returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from django.db import connections

from lambda_tasks.outcomes import Prevented, TooLate
from lambda_tasks.strategies import get_backend, get_store


@dataclass(frozen=True, slots=True)
class TaskHandle:
    """A reference to an invocation, with its id and its status."""

    message_id: str
    #: The alias of the database with whose commit the message is sent.
    database: str = "default"
    #: Whether the call has created the invocation. False if a task with `unique` returned that of an earlier call.
    created: bool = field(default=True, compare=False)

    @property
    def status(self) -> str | None:
        """The current status of the invocation. Reading it takes one to three queries.

        It is the status of the record (`RUNNING`, `SUCCESS`, `FAILED`, `RETRYING`) once a worker has claimed the
        invocation. Before that, with the outbox, it is `WAITING` until the message is sent, or `DEAD` if the queue has
        rejected it. It is None if there is no record and no message in the outbox: the message is in the queue, or the
        transaction has not committed or was rolled back, or the record was deleted by the cleanup.
        """
        store = get_store()
        # A third query, since the message may be sent and claimed between the first two.
        return (
            store.status(self.message_id)
            or get_backend().status(self.message_id, database=self.database)
            or store.status(self.message_id)
        )

    def cancel(self) -> bool:
        """Cancel the invocation and its retries. Return False if it has already ended.

        If it waits, for a worker, its lock or a retry, it never runs: its record becomes FAILED with the reason
        `cancelled`, and its message is deleted from the outbox. If a worker runs it, `current_task().cancelled` becomes
        true there, and no further attempt runs; a task that returns in spite of that is a SUCCESS.

        In a transaction on the database of the records, cancelling is a part of it, and is rolled back with it.
        """
        cancelled = cancel(self.message_id)
        connection = connections[self.database]
        if cancelled and connection.in_atomic_block and get_backend().keeps:
            # Its own transaction may have enqueued it, and then stores its message before COMMIT.
            connection.on_commit(Withdrawn(self.message_id))
        return cancelled


def cancel(message_id: str, *, database: str | None = None) -> bool:
    """Cancel the invocation, whose record is in `database`, by default in that of the store.

    Raise ValueError for an id that is not a UUID.
    """
    try:
        message_id = str(UUID(message_id))
    except ValueError:
        raise ValueError(
            f"The id of a task must be a UUID, as in handle.message_id and TaskRecord.pk, not {message_id!r}."
        ) from None
    backend = get_backend()
    result = get_store().cancel(message_id, backend.find(message_id), database=database)
    if isinstance(result, Prevented):
        backend.discard(result.message_id)
    return not isinstance(result, TooLate)


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """An `on_commit` callback that does nothing.

    While it waits with a transaction's other callbacks, the transaction has cancelled the task that it has enqueued.
    Django drops it if the savepoint in which the task was cancelled is rolled back.
    """

    message_id: str

    def __call__(self) -> None:
        return
