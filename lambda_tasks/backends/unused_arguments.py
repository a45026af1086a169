"""Delete stored arguments that no message refers to."""

from __future__ import annotations

from contextlib import suppress
from typing import Final
from uuid import UUID

from django.db import router

from lambda_tasks.backends.batches import messages_in
from lambda_tasks.backends.places import databases_with_arguments
from lambda_tasks.database.clock import from_now
from lambda_tasks.database.dividing import oldest_first
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.models import OutboxMessage, StoredArguments
from lambda_tasks.wire.invocation import Invocation

#: Days for which unused arguments are kept. SQS keeps a message for at most 14 days, its dead letter queue included,
#: and as long again after it was sent back.
KEPT_DAYS: Final = 28
#: The number of rows per DELETE. Each may have megabytes.
_BATCH_SIZE: Final = 100
_DAY: Final = 86_400


def delete_unused(retention_days: int) -> None:
    """Delete arguments that were not used for `retention_days`, and at least `KEPT_DAYS`, days.

    Those of messages in an outbox are kept, however old they are.
    """
    for database in databases_with_arguments():
        if router.allow_migrate_model(database, StoredArguments):
            _delete_unused_in(database, max(retention_days, KEPT_DAYS))


def _delete_unused_in(database: str, days: int) -> None:
    unused = StoredArguments.objects.using(database).filter(used_at__lt=from_now(-days * _DAY))
    if not unused.exists():
        return
    waiting, spared = _waiting(), set[UUID]()
    for keys in oldest_first(unused, "used_at", _BATCH_SIZE, spared):
        spared.update(waiting.intersection(keys))
        # A worker may have used one of them meanwhile.
        if not unused.filter(pk__in=set(keys) - spared).delete()[0] and spared.isdisjoint(keys):
            break  # another process has deleted them, but this transaction's snapshot still contains them


def _waiting() -> set[UUID]:
    """Return the keys of the arguments of all messages that are in an outbox."""
    keys: set[UUID] = set()
    for database in databases_with_arguments():
        if router.allow_migrate_model(database, OutboxMessage):
            bodies = messages_in(database).filter(body__contains='"stored":').values_list("body", flat=True)
            for body in bodies.iterator(chunk_size=_BATCH_SIZE):
                with suppress(InvalidMessage):
                    stored = Invocation.of_body(body).stored
                    keys.update([UUID(stored.key)] if stored is not None else [])
    return keys
