"""The rows of messages that are sent together: they are locked, read, deleted or postponed in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID, uuid4

from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Lookup, QuerySet
from django.db.models.functions import Coalesce
from django.db.models.lookups import LessThanOrEqual

from lambda_tasks.backends.base import BaseBackend, Refused, SendResult, Taken, Unsent
from lambda_tasks.backends.rows import job_of
from lambda_tasks.database.clock import DatabaseNow, from_now
from lambda_tasks.database.errors import is_conflict
from lambda_tasks.database.private_names import isolation_level
from lambda_tasks.database.slots import Slot
from lambda_tasks.database.statements import OrmCall, Statement, Statements, deletion, selection, with_text
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage, MessageTooLarge
from lambda_tasks.foundation.forks import random
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.models import OutboxMessage
from lambda_tasks.recording.masking import WITHHELD, Needles, TooMuch
from lambda_tasks.recording.storable import storable

#: Seconds until a message is sent again: at first, and at most. The pause doubles in between.
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
#: Seconds for which a sender reserves its messages on databases that cannot skip locked rows.
HOLD: Final = 60.0
#: Characters of an error that are stored.
_MAX_ERROR: Final = 2_000


@dataclass(frozen=True, slots=True)
class Row:
    """A message without its body."""

    task_name: str
    queue: str
    #: The number of failed attempts.
    attempts: int = 0
    #: Arguments that must not appear in its error.
    hidden: tuple[object, ...] = ()


@dataclass(slots=True)
class Sending:
    """Messages that only this process is sending. Each ends as taken, failed or dead."""

    rows: dict[str, Row]
    taken: dict[str, Job] = field(default_factory=dict)
    #: Messages that are sent again later, with the errors.
    failed: dict[str, Exception] = field(default_factory=dict)
    #: Messages that can never be sent, with the reasons.
    dead: dict[str, Exception] = field(default_factory=dict)

    def end(self, result: SendResult) -> None:
        """Note the result of one message."""
        match result:
            case Taken(job):
                self.taken[job.message_id] = job
            case Unsent(job, error):
                self.failed[job.message_id] = error
            case Refused(job, error):
                self.dead[job.message_id] = error

    def silent_queues(self) -> set[str]:
        """Return the queues that neither took nor refused a message."""
        heard = {self.rows[key].queue for key in (*self.taken, *self.dead)}
        return {self.rows[key].queue for key in self.failed} - heard


@dataclass(frozen=True, slots=True)
class Held:
    """The keys of reserved messages, and the token of their sender if the rows are not locked."""

    keys: set[str]
    holder: UUID | None = None

    def rows(self, keys: Sequence[str], database: str) -> QuerySet[OutboxMessage]:
        """Return those of the rows that are still reserved.

        A worker that has received the message meanwhile may have kept the invocation again, to be sent later.
        """
        reserved = {} if self.holder is None else {"holder": self.holder}
        rows: QuerySet[OutboxMessage] = messages_in(database).filter(pk__in=keys, **reserved)
        return rows


class Overtaken(Exception):
    """Another relay deleted a message at the same time, which a strict isolation level reports as a conflict."""


class Rows:
    """Reserves, reads and settles messages for `transport`."""

    def __init__(self, transport: BaseBackend) -> None:
        self._transport = transport
        self._statements = Statements()

    @contextmanager
    def held(self, keys: Sequence[str], database: str) -> Iterator[Held]:
        """Keep other relays from sending the messages, and yield those that are reserved.

        The rows are locked in a transaction. Databases that cannot skip locked rows postpone them for a minute instead.
        """
        connection = connections[database]
        # A transport that runs tasks in this process must not run them inside this transaction.
        if self._transport.leaves_process and connection.features.has_select_for_update_skip_locked:
            _lock_no_gaps(connection)
            with transaction.atomic(using=database):
                yield Held(self._locked(keys, connection))
        else:
            holder = uuid4()
            due = messages_in(database).filter(_due(), pk__in=keys)
            due.update(holder=holder, due_at=from_now(HOLD))
            reserved = messages_in(database).filter(pk__in=keys, holder=holder)
            yield Held({str(key) for key in reserved.values_list("pk", flat=True)}, holder)

    def _locked(self, keys: Sequence[str], connection: BaseDatabaseWrapper) -> set[str]:
        locking = self._statements.of(_Locking(len(keys)), connection)
        try:
            return {str(UUID(str(key))) for (key,) in locking.rows(connection, _numbered(keys))}
        except OperationalError as error:
            if is_conflict(error):
                raise Overtaken from error
            raise

    def read(self, keys: Sequence[str], database: str) -> tuple[Sending, list[Job]]:
        batch, jobs = Sending({}), []
        messages = {
            str(message.pk): message
            for message in messages_in(database).filter(pk__in=keys).annotate(now=DatabaseNow())
        }
        for key in keys:
            if (message := messages.get(key)) is None:
                continue  # deleted in the meantime, because it is not locked
            batch.rows[key] = Row(message.task_name, message.queue, message.attempts)
            try:
                job = job_of(message, now=message.now, max_delay=self._transport.max_delay, database=database)
                batch.rows[key] = replace(batch.rows[key], hidden=_hidden(job))
                self._transport.validate(job)  # the settings may have changed
                jobs.append(job if job.message.stored is None else self._transport.stow(job))
            except (InvalidMessage, InvalidArguments, MessageTooLarge) as error:
                batch.dead[key] = error
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                batch.failed[key] = error
        return batch, jobs

    def _delete(self, keys: Sequence[str], database: str, held: Held) -> None:
        if held.holder is not None:
            held.rows(keys, database).delete()
            return
        # For several keys in a small table, MySQL and MariaDB read all rows and wait for rows that others have locked.
        # A DELETE accepts no index hint.
        step = 1 if connections[database].vendor == "mysql" else len(keys)
        for start in range(0, len(keys), step):
            some = keys[start : start + step]
            self._statements.run(_Deleting(len(some)), _numbered(some), connections[database])

    def settle(self, batch: Sending, database: str, held: Held) -> None:
        """Delete the sent messages, and store the errors of the others."""
        if batch.taken:
            self._delete(list(batch.taken), database, held)
        for (attempts, error), keys in grouped(batch.failed, batch.rows).items():
            pause = min(FIRST_PAUSE * 2 ** min(attempts, 10), LONGEST_PAUSE)
            held.rows(keys, database).update(
                due_at=from_now(random.uniform(0.5, 1) * pause), attempts=attempts + 1, error=error, holder=None
            )
        for (attempts, error), keys in grouped(batch.dead, batch.rows).items():
            held.rows(keys, database).update(due_at=None, attempts=attempts + 1, error=error, holder=None)


def known_jobs(held: Held, known: Mapping[str, Job]) -> tuple[Sending, list[Job]]:
    """Return a batch of those jobs of `known` that are reserved, without reading their rows."""
    jobs = [job for key, job in known.items() if key in held.keys]
    return Sending({job.message_id: Row(job.task_name, job.queue, hidden=_hidden(job)) for job in jobs}), jobs


def _hidden(job: Job) -> tuple[object, ...]:
    """Return the sensitive arguments of `job`, or all arguments if this process does not know the task."""
    arguments = job.message.kwargs
    names = arguments if job.task is None else job.task.sensitive
    return tuple(arguments[name] for name in names if name in arguments)


def grouped(errors: Mapping[str, Exception], rows: Mapping[str, Row]) -> dict[tuple[int, str], list[str]]:
    """Return the keys of the messages by their attempts and the text of their error."""
    alike: dict[tuple[int, str], list[str]] = defaultdict(list)
    for key, error in errors.items():
        alike[rows[key].attempts, error_text(error, rows[key].hidden)].append(key)
    return alike


def error_text(error: Exception, hidden: Sequence[object]) -> str:
    """Return the text of `error` as it is stored, without the values in `hidden`."""
    text = type(error).__name__
    with suppress(Exception):  # a custom error may have no text
        text = f"{text}: {error}"
    if not hidden:
        return storable(text, max_length=_MAX_ERROR)
    # Before the text is shortened, which may cut a value in two, and after: it may already have been shortened.
    try:
        needles = Needles(hidden)
        return needles.without_pieces(storable(needles.scrubbed(text), max_length=_MAX_ERROR))
    except TooMuch:
        return f"{type(error).__name__}: {WITHHELD}"


# The two statements of a batch that is sent after its commit are compiled once for each number of messages.


@dataclass(frozen=True, slots=True)
class _Locking:
    """Compiles the SELECT that locks those of `n` messages that are due and not locked."""

    n: int

    def __call__(self, connection: BaseDatabaseWrapper) -> Statement | OrmCall:
        due = _of_slots(self.n, connection).filter(_due())
        locking = selection(due.select_for_update(skip_locked=True).values("pk"), connection)
        if connection.vendor != "mysql":
            return locking
        # In a small table, it would use the index on `due_at` and lock every due message.
        table = connection.ops.quote_name(OutboxMessage._meta.db_table)
        return with_text(
            locking, "the SELECT that locks messages", f"FROM {table}", f"FROM {table} FORCE INDEX (PRIMARY)"
        )


@dataclass(frozen=True, slots=True)
class _Deleting:
    """Compiles the DELETE of `n` messages."""

    n: int

    def __call__(self, connection: BaseDatabaseWrapper) -> Statement | OrmCall:
        return deletion(_of_slots(self.n, connection), connection)


def _lock_no_gaps(connection: BaseDatabaseWrapper) -> None:
    """Make the next transaction lock rows only.

    At stricter isolation levels, InnoDB also locks the gaps between rows, which blocks the INSERT of other messages.
    """
    if connection.vendor != "mysql" or connection.in_atomic_block or not connection.get_autocommit():
        return
    if isolation_level(connection) != "read committed":
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _due() -> Lookup[bool]:
    """Return the condition that a message with a known key is due, in a form that no index supports.

    If PostgreSQL's statistics contain no due message, it would choose the index on `due_at`, and read an entry for
    each message that was sent since the oldest snapshot.
    """
    return LessThanOrEqual(Coalesce("due_at", "due_at"), from_now(0))


def _of_slots(n: int, connection: BaseDatabaseWrapper) -> QuerySet[OutboxMessage]:
    key = OutboxMessage._meta.pk
    chosen: QuerySet[OutboxMessage] = messages_in(connection.alias).filter(
        pk__in=[Slot(str(number), key) for number in range(n)]
    )
    return chosen


def _numbered(keys: Sequence[str]) -> dict[str, str]:
    return {str(number): key for number, key in enumerate(keys)}


def messages_in(database: str) -> QuerySet[OutboxMessage]:
    """Return the outbox of a database."""
    messages: QuerySet[OutboxMessage] = OutboxMessage.objects.using(database)
    return messages
