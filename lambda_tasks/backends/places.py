"""The places for arguments that are too large for a message. This one is the database of the caller's transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Final

from django.db import connections

from lambda_tasks.database.clock import DatabaseNow, from_now
from lambda_tasks.database.errors import on_sound_connection
from lambda_tasks.exceptions import ArgumentsMissing, UnknownDatabase
from lambda_tasks.jobs import Job
from lambda_tasks.models import StoredArguments
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import in_ascii
from lambda_tasks.wire.stored import DATABASE, Stored

#: Stored arguments are marked as used again if that was done more than so many seconds ago.
RENEWED_AFTER: Final = 86_400


class Place(ABC):
    """Where arguments are stored, each under a key of its own. They are never changed."""

    @abstractmethod
    def refuse(self, job: Job) -> None:
        """Raise an error if the arguments of `job` cannot be stored here."""

    @abstractmethod
    def store(self, text: str, job: Job) -> Stored:
        """Store `text`, the arguments of `job`, and return the reference to it."""

    @abstractmethod
    def fetch(self, stored: Stored) -> str:
        """Return the stored text, and mark it as used. Raise `ArgumentsMissing` if it does not exist."""

    def renew(self, stored: Stored, *, delay: int) -> None:
        """Mark the text as used by a message that is delivered in `delay` seconds."""
        return


class DatabasePlace(Place):
    """A table in the caller's database. A rollback of the transaction leaves nothing there."""

    def refuse(self, job: Job) -> None:
        if job.database not in (known := databases_with_arguments()):
            raise UnknownDatabase(
                f"The arguments of {job.task_name} are too large for a message, and database {job.database!r} does not "
                f"store such arguments; databases that do: {', '.join(known)}. Pass using(database={known[0]!r}) to "
                "send the message with that database's commit, or store large arguments in S3."
            )

    def store(self, text: str, job: Job) -> Stored:
        # The table of an older MySQL database may have a charset that lacks some characters.
        text = in_ascii(text) if connections[job.database].vendor == "mysql" else text
        stored = Stored.of(text, place=f"{DATABASE}{job.database}", key=new_message_id())
        rows = StoredArguments.objects.using(job.database)
        rows.create(id=stored.key, content=text, used_at=from_now(job.delay))
        return stored

    def fetch(self, stored: Stored) -> str:
        alias = _alias(stored)
        if alias not in connections.settings:
            raise ArgumentsMissing(
                f"The arguments are stored in database {alias!r}, which is not in DATABASES of this worker "
                f"({', '.join(sorted(connections.settings))}). Give the worker the same databases as the sender."
            )
        rows = StoredArguments.objects.using(alias).filter(pk=stored.key).annotate(now=DatabaseNow())
        # The first query of a message: the connection may have died unnoticed.
        found = on_sound_connection(alias, lambda: list(rows.values_list("content", "used_at", "now")))
        for content, used_at, now in found:
            if now - used_at > timedelta(seconds=RENEWED_AFTER):
                self.renew(stored, delay=0)
            return str(content)
        raise ArgumentsMissing(f"The arguments are missing: {stored} does not exist. The cleanup has deleted it.")

    def renew(self, stored: Stored, *, delay: int) -> None:
        rows = StoredArguments.objects.using(_alias(stored)).filter(pk=stored.key)
        # At most once a day, and never back to an earlier time.
        rows.filter(used_at__lt=from_now(delay - RENEWED_AFTER)).update(used_at=from_now(delay))


def databases_with_arguments() -> list[str]:
    """Return the aliases of the databases that store arguments: those of the records and of the outbox."""
    outboxes: list[str] = getattr(get_backend(), "databases", [])
    return list(dict.fromkeys([get_store().database, *outboxes]))


def _alias(stored: Stored) -> str:
    return stored.place.removeprefix(DATABASE)
