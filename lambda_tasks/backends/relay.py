"""How messages leave the outbox: after the commit that brought them, and later, it is the same way.

They are locked, sent and deleted, in one transaction. Whoever dies in between frees the locks, and what was sent
already is sent again under the same id, and runs once.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import ceil
from time import monotonic
from typing import Final
from uuid import UUID, uuid4

from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DurationField, Expression, QuerySet, Value
from django.db.models.functions import Length

from lambda_tasks import points, registry
from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.databases import is_conflict
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage, MessageTooLarge
from lambda_tasks.jobs import Job
from lambda_tasks.masking import scrubbed, without_pieces
from lambda_tasks.models import DatabaseNow, OutboxMessage
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.reading import read_message
from lambda_tasks.statements import Slot, Statement, Statements, deletion, selection
from lambda_tasks.storable import storable
from lambda_tasks.timeouts import SoftTimeLimitExceeded

logger = logging.getLogger("lambda_tasks.outbox")

#: How a message stands that is in the outbox, as `TaskHandle.status` says it.
WAITING: Final = "WAITING"
DEAD: Final = "DEAD"

#: Messages that are locked, sent and deleted together: ten requests to SQS, side by side. A relay that dies has
#: sent no more than these for nothing.
BATCH_SIZE: Final = 100
#: How often a batch is begun anew that others were faster with.
_TRIES: Final = 3
#: Seconds after which a message is tried again: the first time, and at most. They double in between.
FIRST_PAUSE: Final = 5.0
LONGEST_PAUSE: Final = 300.0
#: Seconds for which a sender has its messages to itself on databases that cannot skip what is locked.
HOLD: Final = 60.0
#: Characters of the bodies that a relay has in memory at once, unless one alone has more.
_MAX_CHARACTERS: Final = 8 * 1024 * 1024
#: Characters of an error that are kept.
_MAX_ERROR: Final = 2_000


@dataclass(slots=True)
class Relayed:
    """How many messages were sent; failed, and are tried again; were refused by the queue, and are dead."""

    sent: int = 0
    failed: int = 0
    dead: int = 0
    #: False if time or limit were used up before all that was due was tried.
    complete: bool = True

    @property
    def total(self) -> int:
        return self.sent + self.failed + self.dead

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.failed} to be tried again, {self.dead} dead."


@dataclass(frozen=True, slots=True)
class _Row:
    """What is known of a message without reading it."""

    task_name: str
    queue: str
    #: How often it could not be sent.
    attempts: int = 0
    #: Arguments that no text about it may quote.
    hidden: tuple[object, ...] = ()


@dataclass(slots=True)
class _Batch:
    """Messages that nobody else is sending, each of which ends as taken, failed or dead."""

    rows: dict[str, _Row]
    taken: dict[str, Job] = field(default_factory=dict)
    #: Those that are tried again, with what went wrong.
    failed: dict[str, Exception] = field(default_factory=dict)
    #: Those that can never be sent, with the reason.
    dead: dict[str, Exception] = field(default_factory=dict)

    # What a transport says of messages that it was not given is not listened to.

    def take(self, job: Job) -> None:
        if job.message_id in self.rows:
            self.taken[job.message_id] = job

    def fail(self, job: Job, error: Exception) -> None:
        if job.message_id in self.rows:
            self.failed[job.message_id] = error

    def refuse(self, job: Job, error: Exception) -> None:
        if job.message_id in self.rows:
            self.dead[job.message_id] = error

    def silent_queues(self) -> set[str]:
        """Return the queues that took nothing, and refused nothing."""
        heard = {self.rows[key].queue for key in (*self.taken, *self.dead)}
        return {self.rows[key].queue for key in self.failed} - heard


class Relay:
    """Sends messages of the outbox by `transport`."""

    def __init__(self, transport: BaseBackend) -> None:
        self._transport = transport
        self._statements = Statements()

    def send(self, jobs: Sequence[Job], *, using: str) -> Iterator[Job]:
        """Send `jobs`, which are kept in `using` and due, and yield those that are taken.

        Those that somebody else is sending are left to them. After a batch of which nothing was taken no
        other is tried: the caller waits, and a relay does not mind.
        """
        for start in range(0, len(jobs), BATCH_SIZE):
            known = {job.message_id: job for job in jobs[start : start + BATCH_SIZE]}
            batch = self._pass_on(list(known), using, known)
            yield from batch.taken.values()
            if batch.failed and not batch.taken:
                return

    def these(self, keys: Sequence[str], *, using: str) -> Relayed:
        """Send those of the messages `keys` that are due."""
        relayed = Relayed()
        for start in range(0, len(keys), BATCH_SIZE):
            self._count(relayed, self._pass_on(keys[start : start + BATCH_SIZE], using))
        return relayed

    def run(self, databases: Sequence[str], *, seconds: float, limit: float) -> Relayed:
        """Send what is due in `databases`; as `OutboxBackend.relay()` says."""
        deadline = monotonic() + seconds
        relayed = Relayed()
        troubles: list[Exception] = []
        for database in databases:
            try:
                self._run_in(database, deadline, limit, relayed)
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                troubles.append(error)
        for trouble in troubles[1:]:
            logger.error("The outbox of another database could not be relayed.", exc_info=trouble)
        if troubles:
            raise troubles[0]
        return relayed

    def _run_in(self, database: str, deadline: float, limit: float, relayed: Relayed) -> None:
        begun: datetime | None = None
        seen: set[UUID] = set()
        away: set[str] = set()
        while True:
            # What fails in here is due later than this has begun, and is left to the next time.
            due = _messages(database).filter(due_at__lte=begun or from_now(0)).exclude(queue__in=away)
            # Not locked here: InnoDB locks what it reads on the way, and the place of rows to come.
            first = due.annotate(now=DatabaseNow(), size=Length("body")).order_by("due_at", "id")
            found = list(first.values_list("pk", "size", "now")[: BATCH_SIZE + len(seen)])
            # What somebody else is sending is still due, but was seen.
            seen &= {key for key, _, _ in found}
            keys = _first_few({key: size for key, size, _ in found if key not in seen})
            if not keys:
                return
            if monotonic() >= deadline or relayed.total >= limit:
                relayed.complete = False
                return
            begun = begun or found[0][2]
            keys = keys[: int(min(limit - relayed.total, BATCH_SIZE))]
            batch = self._pass_on([str(key) for key in keys], database)
            self._count(relayed, batch)
            away |= batch.silent_queues()
            seen.update(key for key in keys if str(key) not in batch.rows)

    def _count(self, relayed: Relayed, batch: _Batch) -> None:
        sent_hook = hooks().lambda_task_sent
        for job in batch.taken.values():
            notify(sent_hook, job=job)
        relayed.sent += len(batch.taken)
        relayed.failed += len(batch.failed)
        relayed.dead += len(batch.dead)

    def _pass_on(self, keys: Sequence[str], database: str, known: Mapping[str, Job] | None = None) -> _Batch:
        """Send those of the messages `keys` that are due and that nobody else is sending.

        Those that are `known` are not read again.
        """
        for _ in range(_TRIES):
            with suppress(_Overtaken):
                return self._try_to_pass_on(keys, database, known)
        return _Batch({})  # left to those who overtake us

    def _try_to_pass_on(self, keys: Sequence[str], database: str, known: Mapping[str, Job] | None) -> _Batch:
        with self._held(keys, database) as held:
            batch, jobs = (
                self._read([key for key in keys if key in held], database) if known is None else _known(held, known)
            )
            points.reached("relay:held")
            if jobs:
                self._send(jobs, batch)
            points.reached("relay:sent")
            self._settle(batch, database)
            points.reached("relay:settled")
        _tell(batch, database)
        return batch

    def _send(self, jobs: Sequence[Job], batch: _Batch) -> None:
        error: Exception = RuntimeError("The transport has not said what became of it.")
        try:
            self._transport.send_each(jobs, taken=batch.take, failed=batch.fail, refused=batch.refuse)
        except SoftTimeLimitExceeded:
            raise
        except Exception as raised:
            error = raised
        # A transport that breaks its word must not keep others' messages, nor have what it took sent again.
        for job in jobs:
            if not any(job.message_id in ends for ends in (batch.taken, batch.failed, batch.dead)):
                batch.fail(job, error)

    @contextmanager
    def _held(self, keys: Sequence[str], database: str) -> Iterator[set[str]]:
        """Keep others from sending the messages, and give those of which that is sure.

        They are locked in a transaction; on some databases they are put off for a minute instead.
        """
        connection = connections[database]
        # A transport that runs tasks in this process must not do so inside of our transaction.
        if self._transport.leaves_process and connection.features.has_select_for_update_skip_locked:
            _lock_no_gaps(connection)
            with transaction.atomic(using=database):
                yield self._locked(keys, connection)
        else:
            holder = uuid4()
            due = _messages(database).filter(pk__in=keys, due_at__lte=from_now(0))
            due.update(holder=holder, due_at=from_now(HOLD))
            yield {
                str(key) for key in _messages(database).filter(pk__in=keys, holder=holder).values_list("pk", flat=True)
            }

    def _locked(self, keys: Sequence[str], connection: BaseDatabaseWrapper) -> set[str]:
        locking = self._statements.of(_Locking(len(keys)), connection)
        try:
            return {str(UUID(str(key))) for (key,) in locking.rows(connection, _numbered(keys))}
        except OperationalError as error:
            if is_conflict(error):
                raise _Overtaken from error
            raise

    def _read(self, keys: Sequence[str], database: str) -> tuple[_Batch, list[Job]]:
        batch, jobs = _Batch({}), []
        messages = {
            str(message.pk): message for message in _messages(database).filter(pk__in=keys).annotate(now=DatabaseNow())
        }
        for key in keys:
            if (message := messages.get(key)) is None:
                continue  # discarded just now, where it is not locked
            batch.rows[key] = _Row(message.task_name, message.queue, message.attempts)
            try:
                job = self._job(message, message.now, database)
                batch.rows[key] = replace(batch.rows[key], hidden=_hidden(job))
                self._transport.validate(job)  # the settings may be other ones by now
                jobs.append(job)
            except (InvalidMessage, InvalidArguments, MessageTooLarge) as error:
                batch.dead[key] = error
            except Exception as error:
                batch.failed[key] = error
        return batch, jobs

    def _job(self, message: OutboxMessage, now: datetime, database: str) -> Job:
        left = 0.0 if message.run_at is None else (message.run_at - now).total_seconds()
        return Job.of_sent(
            read_message(message.body),
            message.body,
            message.attributes,
            message_id=str(message.pk),
            queue=message.queue,
            delay=min(max(ceil(left), 0), self._transport.max_delay),
            task=registry.known_task(message.task_name),
            database=database,
        )

    def _delete(self, keys: Sequence[str], database: str) -> None:
        # Where there are few, MySQL and MariaDB would read them all for several keys, and wait for those that others
        # have locked; and a DELETE takes no hint.
        step = 1 if connections[database].vendor == "mysql" else len(keys)
        for start in range(0, len(keys), step):
            some = keys[start : start + step]
            self._statements.run(_Deleting(len(some)), _numbered(some), using=database)

    def _settle(self, batch: _Batch, database: str) -> None:
        """Write what became of the messages."""
        if batch.taken:
            self._delete(list(batch.taken), database)
        for (attempts, error), keys in _alike(batch.failed, batch.rows).items():
            pause = min(FIRST_PAUSE * 2 ** min(attempts, 10), LONGEST_PAUSE)
            _messages(database).filter(pk__in=keys).update(
                due_at=from_now(random.uniform(0.5, 1) * pause), attempts=attempts + 1, error=error, holder=None
            )
        for (attempts, error), keys in _alike(batch.dead, batch.rows).items():
            _messages(database).filter(pk__in=keys).update(due_at=None, attempts=attempts + 1, error=error, holder=None)


class _Overtaken(Exception):
    """Another relay has deleted a message in the very moment, and a strict isolation level does not pass over it."""


def _first_few(sizes: Mapping[UUID, int]) -> list[UUID]:
    """Return the first messages of `sizes`, one at least, that make a batch and have room in a small function."""
    keys: list[UUID] = []
    characters = 0
    for key, size in sizes.items():
        characters += size
        if len(keys) == BATCH_SIZE or (keys and characters > _MAX_CHARACTERS):
            break
        keys.append(key)
    return keys


def _known(held: set[str], known: Mapping[str, Job]) -> tuple[_Batch, list[Job]]:
    jobs = [job for key, job in known.items() if key in held]
    return _Batch({job.message_id: _Row(job.task_name, job.queue, hidden=_hidden(job)) for job in jobs}), jobs


def _hidden(job: Job) -> tuple[object, ...]:
    """Return the sensitive arguments of `job`; all of them where this process does not know the task."""
    arguments = job.message.kwargs
    names = arguments if job.task is None else job.task.sensitive
    return tuple(arguments[name] for name in names if name in arguments)


# The two statements of a batch that is sent after its commit are written once for each number of messages.


@dataclass(frozen=True, slots=True)
class _Locking:
    """Writes the SELECT that locks those of so many messages that are due and free."""

    n: int

    def __call__(self, connection: BaseDatabaseWrapper) -> Statement:
        due = _of_slots(self.n, connection).filter(due_at__lte=from_now(0))
        locking = selection(due.select_for_update(skip_locked=True).values("pk"), connection)
        if connection.vendor != "mysql":
            return locking
        # Where there are few, it would go along the index of what is due, and lock all of that.
        table = connection.ops.quote_name(OutboxMessage._meta.db_table)
        return replace(locking, sql=locking.sql.replace(f"FROM {table}", f"FROM {table} FORCE INDEX (PRIMARY)"))


@dataclass(frozen=True, slots=True)
class _Deleting:
    """Writes the DELETE of so many messages."""

    n: int

    def __call__(self, connection: BaseDatabaseWrapper) -> Statement:
        return deletion(_of_slots(self.n, connection), connection)


def _lock_no_gaps(connection: BaseDatabaseWrapper) -> None:
    """Have the next transaction lock rows alone.

    Where the isolation level is a stricter one, InnoDB locks the gaps beside them too, in which then nobody
    can insert a message.
    """
    if connection.vendor != "mysql" or connection.in_atomic_block or not connection.get_autocommit():
        return
    if getattr(connection, "isolation_level", None) != "read committed":
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _of_slots(n: int, connection: BaseDatabaseWrapper) -> QuerySet[OutboxMessage]:
    key = OutboxMessage._meta.pk
    chosen: QuerySet[OutboxMessage] = _messages(connection.alias).filter(
        pk__in=[Slot(str(number), key) for number in range(n)]
    )
    return chosen


def _numbered(keys: Sequence[str]) -> dict[str, str]:
    return {str(number): key for number, key in enumerate(keys)}


def _messages(database: str) -> QuerySet[OutboxMessage]:
    messages: QuerySet[OutboxMessage] = OutboxMessage.objects.using(database)
    return messages


def _alike(errors: Mapping[str, Exception], rows: Mapping[str, _Row]) -> dict[tuple[int, str], list[str]]:
    """Return the messages by what is to be written to them."""
    alike: dict[tuple[int, str], list[str]] = defaultdict(list)
    for key, error in errors.items():
        alike[rows[key].attempts, _text(error, rows[key].hidden)].append(key)
    return alike


def _text(error: Exception, hidden: Sequence[object]) -> str:
    text = type(error).__name__
    with suppress(Exception):  # somebody's own error may have no text
        text = f"{text}: {error}"
    if not hidden:
        return storable(text, max_length=_MAX_ERROR)
    # Before the text is shortened, which may cut a value in two; and after, since somebody else may have.
    return without_pieces(storable(scrubbed(text, hidden), max_length=_MAX_ERROR), hidden)


def _tell(batch: _Batch, database: str) -> None:
    """Log what was not sent, and tell the plugins."""
    for (_, reason), keys in _alike(batch.failed, batch.rows).items():
        names = Counter(batch.rows[key].task_name for key in keys)
        logger.warning(
            "%d messages stay in the outbox of %r and are tried again (%s): %s",
            len(keys),
            database,
            ", ".join(f"{count} of {name}" for name, count in names.items()),
            reason,
        )
    for key, error in batch.dead.items():
        sentence = "%s [%s] can never be sent and stays in the outbox of %r as dead: %s"
        logger.error(sentence, batch.rows[key].task_name, key, database, _text(error, batch.rows[key].hidden))
    unsent_hook = hooks().lambda_task_unsent
    for errors in (batch.failed, batch.dead):
        for key, error in errors.items():
            row = batch.rows[key]
            details = {"message_id": key, "task_name": row.task_name, "queue": row.queue}
            notify(unsent_hook, **details, error=error, dead=errors is batch.dead)


def from_now(seconds: float) -> Expression:
    """Return a moment of the database's time."""
    return DatabaseNow() + Value(timedelta(seconds=seconds), output_field=DurationField())
