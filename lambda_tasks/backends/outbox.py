"""Messages are rows of the caller's transaction, and are sent from there: a commit means that the task runs."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.core.checks import CheckMessage
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DurationField, Q
from django.db.models.functions import Cast

from lambda_tasks import identity
from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.backends.relay import DEAD, WAITING, Relay, Relayed
from lambda_tasks.exceptions import InvalidSetting, UnknownDatabase
from lambda_tasks.jobs import Job
from lambda_tasks.models import DatabaseNow, OutboxMessage
from lambda_tasks.settings import MAX_KEPT_DELAY, PREFIX, strategy
from lambda_tasks.statements import Insertion, Slot, Statements, insertion_of_many
from lambda_tasks.strategies import get_store, instance
from lambda_tasks.timeouts import SoftTimeLimitExceeded

logger = logging.getLogger("lambda_tasks.outbox")

#: Rows, and characters of messages, of one INSERT: MariaDB hangs up over a statement of 16 MiB.
_MAX_ROWS: Final = 500
_MAX_CHARACTERS: Final = 4 * 1024 * 1024

_FIELDS: Final = {field.name: field for field in OutboxMessage._meta.concrete_fields}


class OutboxBackend(BaseBackend):
    """Keeps messages in a table of the caller's database until another transport has taken them.

    Options: `transport`, that other one, as LAMBDA_TASKS_BACKEND names one; `databases`, the aliases that
    have the table, by default the one that Django's routers choose for `OutboxMessage`. The database of
    the records is always one of them, since retries are kept with them.
    """

    keeps = True
    max_delay = MAX_KEPT_DELAY

    def __init__(
        self, *, transport: Any = "lambda_tasks.backends.sqs.SQSBackend", databases: Sequence[str] | None = None
    ) -> None:
        if databases is not None and (isinstance(databases, str) or not databases):
            raise TypeError(f"databases is {databases!r}; give a list of aliases in DATABASES")
        try:
            path, options = strategy(transport, "transport")
        except ValueError as error:
            raise TypeError(str(error)) from None  # an option that is refused, as any other
        behind = instance(f"{PREFIX}BACKEND", path, options)
        if not isinstance(behind, BaseBackend) or behind.keeps:
            raise TypeError(f"transport is {path!r}; name a transport that is no outbox itself")
        self.transport: BaseBackend = behind
        self.leaves_process = behind.leaves_process
        self._databases = databases
        self._relay = Relay(behind)
        self._statements = Statements()

    @property
    def databases(self) -> list[str]:
        """The aliases of the databases that have an outbox."""
        chosen = self._databases or [router.db_for_write(OutboxMessage)]
        return list(dict.fromkeys([*chosen, get_store().database]))

    def validate(self, job: Job) -> None:
        """Refuse what the transport refuses, and databases that have no outbox."""
        if job.database not in self.databases:
            raise UnknownDatabase(
                f"{job.task_name} would be kept in {job.database!r}, which has no outbox (there are: "
                f"{', '.join(self.databases)}). Add it to the option `databases` of OutboxBackend, and migrate it; "
                f'or say using(database="{self.databases[0]}") if the message is to leave with that one\'s commit.'
            )
        self.transport.validate(job)

    def keep(self, jobs: Sequence[Job], *, using: str) -> None:
        connection = connections[using]
        inserting = self._statements.of(_inserting, connection)
        # Who reaps twice in one transaction has one invocation sent again twice; no INSERT takes a row twice.
        by_id = {job.message_id: job for job in jobs}
        for rows in _chunks([self._row(job) for job in by_id.values()], connection):
            inserting.run(connection, rows)

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        """Send what is due of `jobs`, which are kept, and raise nothing: what cannot be sent now is sent later."""
        by_database: dict[str, list[Job]] = defaultdict(list)
        for job in jobs:
            if job.delay <= self.transport.max_delay:
                by_database[job.database].append(job)
        for database, due in by_database.items():
            try:
                for job in self._relay.send(due, using=database):
                    taken(job)
            except SoftTimeLimitExceeded:
                raise
            except Exception:
                logger.exception("%d messages stay in the outbox of %r for a relay to send.", len(due), database)

    def relay(self, *, seconds: float = float("inf"), limit: float = float("inf")) -> Relayed:
        """Send what is due and was not sent, the longest due first, each once; return how many.

        Ends early after so many `seconds`, or after `limit` messages. Any number may run side by side. A
        queue that takes nothing is left alone until the next time. What a database raises is raised
        after the others were done.
        """
        return self._relay.run(self.databases, seconds=seconds, limit=limit)

    def send_now(self, message_ids: Iterable[UUID | str], *, using: str) -> Relayed:
        """Send these messages of the outbox of `using` now, whether they are delayed, put off or dead."""
        keys = list(dict.fromkeys(str(UUID(str(key))) for key in message_ids))
        messages = OutboxMessage.objects.using(using).filter(pk__in=keys)
        later = Q(due_at=None) | Q(due_at__gt=DatabaseNow(), holder=None) | Q(run_at__gt=DatabaseNow(), holder=None)
        messages.filter(later).update(due_at=DatabaseNow(), run_at=None, holder=None)
        return self._relay.these(keys, using=using)

    def status(self, message_id: str, *, database: str) -> str | None:
        messages = OutboxMessage.objects.using(database).filter(pk=message_id)
        for due_at in messages.values_list("due_at", flat=True):
            return DEAD if due_at is None else WAITING
        return None

    def postpone(self, records: Sequence[tuple[Mapping[str, Any], float]]) -> None:
        self.transport.postpone(records)

    def check(self) -> list[CheckMessage]:
        for database in self.databases:
            if database not in connections.settings:
                if database == get_store().database:
                    continue  # the store says so
                raise InvalidSetting(
                    f"LAMBDA_TASKS_BACKEND gives the outbox database {database!r}, which is not in DATABASES "
                    f"({', '.join(sorted(connections.settings))}); correct the alias, or add the database."
                )
            if not router.allow_migrate_model(database, OutboxMessage):
                raise InvalidSetting(
                    f"The outbox is to be kept in {database!r}, where DATABASE_ROUTERS do not allow its table; let "
                    "allow_migrate() say True of the app lambda_tasks there, or name others in the option `databases`."
                )
        return self.transport.check()

    def _row(self, job: Job) -> dict[str, Any]:
        if job.first_sent is None and job.task is not None and job.task.expires_in is not None:
            # Its time in the outbox counts too; SQS knows only when it came to the queue.
            # Ids never go back in time, also where the clock has: the earlier of the two is the truth.
            now = time.time()
            job = replace(job, first_sent=min(identity.made_at(job.root_id) or now, now))
        return {
            "id": job.message_id,
            "task_name": job.task_name,
            "queue": job.queue,
            "body": job.body,
            "attributes": job.message_attributes(),
            "run_in": timedelta(seconds=job.delay) if job.delay else None,
            "due_in": timedelta(seconds=max(job.delay - self.transport.max_delay, 0)),
        }


def _inserting(connection: BaseDatabaseWrapper) -> Insertion:
    """Write the INSERT of messages.

    A retry may have been kept before, when only the answer to its COMMIT was lost: it begins anew.
    """
    columns = {name: Slot(name, _FIELDS[name]) for name in ("id", "task_name", "queue", "body", "attributes")}
    times = {
        "created_at": DatabaseNow(),
        # Cast, since it may be NULL, whose type no database guesses.
        "run_at": DatabaseNow() + Cast(Slot("run_in", DurationField()), DurationField()),
        "due_at": DatabaseNow() + Slot("due_in", DurationField()),
    }
    anew = ("task_name", "queue", "body", "attributes", "run_at", "due_at", "attempts", "error", "holder")
    return insertion_of_many(OutboxMessage(**columns, **times), connection, anew=anew)


def _chunks(rows: Sequence[dict[str, Any]], connection: BaseDatabaseWrapper) -> Iterator[list[dict[str, Any]]]:
    most = min(_MAX_ROWS, connection.ops.bulk_batch_size(list(_FIELDS.values()), rows) or _MAX_ROWS)
    chunk: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        own_size = len(row["body"]) + sum(map(len, row["attributes"].values()))
        if chunk and (len(chunk) == most or size + own_size > _MAX_CHARACTERS):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += own_size
    if chunk:
        yield chunk
