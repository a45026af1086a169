"""Keep messages as rows of the caller's transaction, and send them after its commit."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.core.checks import CheckMessage
from django.db import connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DurationField, Q
from django.db.models.functions import Cast

from lambda_tasks.backends.base import BaseBackend, Kept, SendResult, Taken
from lambda_tasks.backends.batches import messages_in
from lambda_tasks.backends.relay import DEAD, WAITING, Relay, Relayed
from lambda_tasks.backends.rows import job_of
from lambda_tasks.database.clock import DatabaseNow, FromNow
from lambda_tasks.database.dividing import divided
from lambda_tasks.database.slots import Slot
from lambda_tasks.database.statements import Insertion, OrmInsertion, Statements, insertion_of_many
from lambda_tasks.exceptions import InvalidMessage, InvalidSetting, UnknownDatabase
from lambda_tasks.foundation.parts import parts_of
from lambda_tasks.jobs import Job, carries_first_sent
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.models import OutboxMessage
from lambda_tasks.recording.described import described
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.settings import MAX_KEPT_DELAY, PREFIX, strategy, whole_number
from lambda_tasks.strategies import get_store, instance
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import GROUP_ATTRIBUTE, inherited
from lambda_tasks.wire.invocation import in_ascii
from lambda_tasks.wire.stored import Stored

logger = get_logger("lambda_tasks.outbox")

#: The most rows, and bytes of messages, of one INSERT. MariaDB closes the connection at 16 MiB.
_MAX_ROWS: Final = 500
_MAX_BYTES: Final = 4 * 1024 * 1024
#: The least value of `max_statement_bytes`: the SQL around a row takes up to a third of it.
_LEAST_STATEMENT: Final = 2_048
#: The most bytes of the other columns of a row, and of the quotes around values.
_OTHER_COLUMNS: Final = 192

_FIELDS: Final = {field.name: field for field in OutboxMessage._meta.concrete_fields}


class OutboxBackend(BaseBackend):
    """Keeps messages in a table of the caller's database until another transport has accepted them.

    Options: `transport`, the other transport, in the format of LAMBDA_TASKS_BACKEND; `databases`, the aliases
    that have the table, by default the one that Django's routers choose for `OutboxMessage`. The database of
    the records is always included, since retries are kept with records; `max_statement_bytes`, the most bytes of
    an INSERT of several messages, by default without a limit of its own.
    """

    keeps = True
    max_delay = MAX_KEPT_DELAY

    def __init__(
        self,
        *,
        transport: Any = "lambda_tasks.backends.sqs.SQSBackend",
        databases: Sequence[str] | None = None,
        max_statement_bytes: int | None = None,
    ) -> None:
        if databases is not None and (
            isinstance(databases, str) or not databases or not all(isinstance(alias, str) for alias in databases)
        ):
            raise TypeError(f"databases must be a list of aliases in DATABASES, not {described(databases)}")
        try:
            path, options = strategy(transport, "transport")
            if max_statement_bytes is not None:
                whole_number(_LEAST_STATEMENT)(max_statement_bytes, "max_statement_bytes")
        except ValueError as error:
            raise TypeError(str(error)) from None  # like any other invalid option
        behind = instance(f"{PREFIX}BACKEND", path, options)
        if not isinstance(behind, BaseBackend) or behind.keeps:
            raise TypeError(f"transport must be a transport other than an outbox, not {described(path)}")
        self.transport: BaseBackend = behind
        self.leaves_process = behind.leaves_process
        self.stows = behind.stows
        self._databases = databases
        self._max_statement_bytes = max_statement_bytes
        self._relay = Relay(behind)
        self._statements = Statements()

    @property
    def databases(self) -> list[str]:
        """The aliases of the databases that have an outbox."""
        chosen = self._databases or [router.db_for_write(OutboxMessage)]
        return list(dict.fromkeys([*chosen, get_store().database]))

    @property
    def direct(self) -> BaseBackend:
        return self.transport

    def validate(self, job: Job) -> None:
        """Refuse databases that have no outbox, and everything that the transport refuses."""
        # A retry is kept with its record, even if a router has changed since the task ran.
        if job.message.n_retries == 0 and job.database not in self.databases:
            raise UnknownDatabase(
                f"Database {job.database!r} has no outbox for {job.task_name}; databases with one: "
                f"{', '.join(self.databases)}. Add it to the option `databases` of OutboxBackend, and migrate it; "
                f'or pass using(database="{self.databases[0]}") to send the message with that database\'s commit.'
            )
        self.transport.validate(job)

    def stow(self, job: Job) -> Job:
        return self.transport.stow(job)

    def fetch(self, stored: Stored) -> str:
        return self.transport.fetch(stored)

    def keep(self, jobs: Sequence[Job], *, using: str) -> None:
        connection = connections[using]
        inserting = self._statements.of(_inserting, connection)
        # Reaping twice in one transaction sends an invocation twice, and an INSERT accepts a key once.
        by_id = {job.message_id: job for job in jobs}
        rows = [self._row(job, connection) for job in by_id.values()]
        if self._max_statement_bytes is None or not isinstance(inserting, Insertion):
            chunks = _chunks(rows, connection)
        else:
            chunks = _statements(rows, connection, inserting, self._max_statement_bytes)
        for chunk in chunks:
            inserting.run(connection, chunk)

    def send(self, jobs: Sequence[Job]) -> Iterator[SendResult]:
        """Send the jobs that are due. All jobs are kept, and the others are sent later."""
        by_database: dict[str, list[Job]] = defaultdict(list)
        left = {job.message_id: job for job in jobs}
        for job in jobs:
            if not job.delay or job.delay <= self.transport.longest_delay(job.queue):
                by_database[job.database].append(job)
        for database, due in by_database.items():
            try:
                for job in self._relay.send(due, using=database):
                    left.pop(job.message_id, None)
                    yield Taken(job)
            except SoftTimeLimitExceeded:
                raise
            except Exception:
                logger.exception(
                    "The outbox of %r keeps its due messages (%d) for a relay to send.", database, len(due)
                )
        yield from map(Kept, left.values())

    def relay(self, *, seconds: float = float("inf"), limit: float = float("inf")) -> Relayed:
        """Send due messages, each once and the longest due first, and return how many.

        Ends early after `seconds`, or after `limit` messages. Any number of relays may run in parallel. A queue
        that accepts no message is skipped until the next call. An error of one database is raised after the other
        databases are done.
        """
        return self._relay.run(self.databases, seconds=seconds, limit=limit)

    def send_now(self, message_ids: Iterable[UUID | str], *, using: str) -> Relayed:
        """Send these messages of the outbox in `using` now, even if they are delayed, waiting for a retry, or dead."""
        keys = list(dict.fromkeys(str(UUID(str(key))) for key in message_ids))
        later = Q(due_at=None) | Q(due_at__gt=DatabaseNow(), holder=None) | Q(run_at__gt=DatabaseNow(), holder=None)
        messages = OutboxMessage.objects.using(using).filter(later)
        for some in divided(keys):
            messages.filter(pk__in=some).update(due_at=DatabaseNow(), run_at=None, holder=None)
        return self._relay.these(keys, using=using)

    def status(self, message_id: str, *, database: str) -> str | None:
        messages = OutboxMessage.objects.using(database).filter(pk=message_id)
        for due_at in messages.values_list("due_at", flat=True):
            return DEAD if due_at is None else WAITING
        return None

    def find(self, message_id: str) -> Job | None:
        for database in self.databases:
            for message in messages_in(database).filter(pk=message_id).annotate(now=DatabaseNow()):
                with suppress(InvalidMessage):  # another program wrote the row: it has no task to tell of
                    job = job_of(message, now=message.now, max_delay=self.max_delay, database=database)
                    return job if job.message.stored is None else self._with_arguments(job)
        return None

    def _with_arguments(self, job: Job) -> Job:
        assert job.message.stored is not None
        return replace(job, message=job.message.with_stored(self.fetch(job.message.stored)))

    def discard(self, message_id: str) -> None:
        for database in self.databases:
            message = messages_in(database).filter(pk=message_id, holder=None)
            if not connections[database].features.has_select_for_update_skip_locked:
                message.delete()
                continue
            # A relay that is sending the message has locked it, and deletes it afterwards. Do not wait for SQS.
            with transaction.atomic(using=database):
                if message.exists() and list(message.select_for_update(skip_locked=True).values_list("pk")):
                    message.delete()

    def expedite(self, message_id: str) -> None:
        for database in self.databases:
            kept = messages_in(database).filter(pk=message_id, holder=None, due_at__gt=DatabaseNow())
            kept.update(due_at=DatabaseNow(), run_at=None)

    def rewrite(self, job: Job, *, message_id: str, using: str) -> bool:
        messages = OutboxMessage.objects.using(using)
        if connections[using].features.has_select_for_update_skip_locked:
            messages = messages.select_for_update(skip_locked=True)  # a relay that sends the message has locked it
        # A message that is not due yet was never sent. One that is due may be on its queue: a relay that dies after it
        # has sent a message leaves no trace.
        unsent = messages.filter(pk=message_id, due_at__gt=DatabaseNow(), attempts=0, holder=None)
        found = unsent.values_list("pk", "attributes").first()
        if found is None:
            return False
        job = self.stow(job) if self.stows else job
        # The context and the group belong to the arguments.
        kept = {name: value for name, value in found[1].items() if name != GROUP_ATTRIBUTE}
        group = {} if job.group is None else {GROUP_ATTRIBUTE: job.group}
        attributes = {**kept, **inherited(job.attributes), **group}
        return bool(unsent.update(task_name=job.task_name, body=job.body, attributes=attributes))

    def kept(self, message_ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for database in self.databases:
            keys = OutboxMessage.objects.using(database).values_list("pk", flat=True)
            found.update(str(pk) for some in divided(message_ids) for pk in keys.filter(pk__in=some))
        return found

    def postpone(self, records: Sequence[tuple[Mapping[str, Any], float]]) -> None:
        self.transport.postpone(records)

    def check(self) -> list[CheckMessage]:
        for database in self.databases:
            if database not in connections.settings:
                if database == get_store().database:
                    continue  # the store reports it
                raise InvalidSetting(
                    f"LAMBDA_TASKS_BACKEND gives the outbox database {database!r}, which is not in DATABASES "
                    f"({', '.join(sorted(connections.settings))}); correct the alias, or add the database."
                )
            if not router.allow_migrate_model(database, OutboxMessage):
                raise InvalidSetting(
                    f"DATABASE_ROUTERS do not allow the outbox table in {database!r}; return True from "
                    "allow_migrate() for the app lambda_tasks there, or name other databases in the option `databases`."
                )
        return self.transport.check()

    def _row(self, job: Job, connection: BaseDatabaseWrapper) -> dict[str, Any]:
        if job.first_sent is None and job.task is not None and carries_first_sent(job.task, job.root_id):
            # The time in the outbox counts too, and SQS knows only when the message reached the queue.
            # Ids never go back in time, even if the clock does: the earlier time is the right one.
            now = time.time()
            job = replace(job, first_sent=min(ids.made_at(job.root_id) or now, now))
        return {
            "id": job.message_id,
            "task_name": job.task_name,
            "queue": job.queue,
            # The table of an older MySQL database may have a charset that lacks some characters.
            "body": in_ascii(job.body) if connection.vendor == "mysql" else job.body,
            "attributes": job.message_attributes(),
            "run_in": timedelta(seconds=job.delay) if job.delay else None,
            "due_in": timedelta(seconds=job.delay and max(job.delay - self.transport.longest_delay(job.queue), 0)),
        }


def _inserting(connection: BaseDatabaseWrapper) -> Insertion | OrmInsertion:
    """Write the INSERT of messages.

    A retry may already be kept, if only the answer to its COMMIT was lost: its row is replaced.
    """
    columns = {name: Slot(name, _FIELDS[name]) for name in ("id", "task_name", "queue", "body", "attributes")}
    times = {
        "created_at": DatabaseNow(),
        # Cast, because databases cannot infer the type of NULL.
        "run_at": FromNow(Cast(Slot("run_in", DurationField()), DurationField())),
        "due_at": FromNow(Slot("due_in", DurationField())),
    }
    anew = ("task_name", "queue", "body", "attributes", "run_at", "due_at", "attempts", "error", "holder")
    return insertion_of_many(OutboxMessage(**columns, **times), connection, anew=anew)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _size(row: Mapping[str, Any]) -> int:
    return _bytes(row["body"]) + sum(map(_bytes, row["attributes"].values()))


def _statements(
    rows: Sequence[dict[str, Any]], connection: BaseDatabaseWrapper, insertion: Insertion, most_bytes: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield rows whose INSERT has at most `most_bytes` if the driver writes the values into the SQL."""
    escaped = "'\\\"" if connection.vendor == "mysql" else "'\\"

    def size(row: Mapping[str, Any]) -> int:
        values = (row["task_name"], row["queue"], row["body"], json.dumps(row["attributes"]))
        literals = sum(_bytes(text) + sum(map(text.count, escaped)) for text in values)
        return len(insertion.row) + _OTHER_COLUMNS + literals

    return _chunks(rows, connection, most_bytes - len(insertion.head) - len(insertion.tail), size)


def _chunks(
    rows: Sequence[dict[str, Any]],
    connection: BaseDatabaseWrapper,
    most_bytes: int = _MAX_BYTES,
    size_of: Callable[[Mapping[str, Any]], int] = _size,
) -> Iterator[list[dict[str, Any]]]:
    most = min(_MAX_ROWS, connection.ops.bulk_batch_size(list(_FIELDS.values()), rows) or _MAX_ROWS)
    return parts_of(rows, size_of, most_size=most_bytes, most_items=most)
