"""Send the messages of the outbox, after the commit that stored them and later.

A batch is locked, sent and deleted in one transaction. If the process dies in between, the locks are freed, and
messages that were already sent are sent again with the same id, and run once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Final
from uuid import UUID

from django.db.models.functions import Length

from lambda_tasks import failpoints
from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.backends.batches import Overtaken, Rows, Sending, error_text, grouped, known_jobs, messages_in
from lambda_tasks.database.clock import DatabaseNow, from_now
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.sending.results import results_of

logger = get_logger("lambda_tasks.outbox")

#: The status of a message in the outbox, as `TaskHandle.status` returns it.
WAITING: Final = "WAITING"
DEAD: Final = "DEAD"

#: Messages that are locked, sent and deleted together: ten parallel requests to SQS. If a relay dies, at most this
#: many messages are sent again.
BATCH_SIZE: Final = 100
#: How often a batch is attempted if other relays are faster.
_ATTEMPTS: Final = 3
#: The most characters of bodies that a relay keeps in memory, unless a single body has more.
_MAX_CHARACTERS: Final = 8 * 1024 * 1024


@dataclass(slots=True)
class Relayed:
    """The numbers of messages that were sent, that failed and are sent again later, and that are dead."""

    sent: int = 0
    failed: int = 0
    dead: int = 0
    #: False if the time or the limit was used up before every due message was attempted.
    complete: bool = True

    @property
    def total(self) -> int:
        return self.sent + self.failed + self.dead

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.failed} to be retried, {self.dead} dead."


class Relay:
    """Sends messages of the outbox with `transport`."""

    def __init__(self, transport: BaseBackend) -> None:
        self._transport = transport
        self._rows = Rows(transport)

    def send(self, jobs: Sequence[Job], *, using: str) -> Iterator[Job]:
        """Send `jobs`, which are kept in `using` and due, and yield those that are taken.

        Messages that another process is sending are skipped. After a batch without a taken message, no further batch
        is attempted, because the caller is waiting, and a relay sends the rest.
        """
        for start in range(0, len(jobs), BATCH_SIZE):
            known = {job.message_id: job for job in jobs[start : start + BATCH_SIZE]}
            batch = self._pass_on(list(known), using, known)
            yield from batch.taken.values()
            if batch.failed and not batch.taken:
                return

    def these(self, keys: Sequence[str], *, using: str) -> Relayed:
        """Send the due messages among `keys`."""
        relayed = Relayed()
        for start in range(0, len(keys), BATCH_SIZE):
            self._count(relayed, self._pass_on(keys[start : start + BATCH_SIZE], using))
        return relayed

    def run(self, databases: Sequence[str], *, seconds: float, limit: float) -> Relayed:
        """Send the due messages in `databases`, as `OutboxBackend.relay()` describes."""
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
        started: datetime | None = None
        seen: set[UUID] = set()
        silent: set[str] = set()
        while True:
            # A message that fails is due after `started`, and is left to the next call.
            due = messages_in(database).filter(due_at__lte=started or from_now(0)).exclude(queue__in=silent)
            # Not locked here, because InnoDB also locks rows that it only reads, and gaps for future rows.
            first = due.annotate(now=DatabaseNow(), size=Length("body")).order_by("due_at", "id")
            found = list(first.values_list("pk", "size", "now")[: BATCH_SIZE + len(seen)])
            # Messages that another process is sending are still due, but were seen.
            seen &= {key for key, _, _ in found}
            keys = _first_few({key: size for key, size, _ in found if key not in seen})
            if not keys:
                return
            if monotonic() >= deadline or relayed.total >= limit:
                relayed.complete = False
                return
            started = started or found[0][2]
            keys = keys[: int(min(limit - relayed.total, BATCH_SIZE))]
            batch = self._pass_on([str(key) for key in keys], database)
            self._count(relayed, batch)
            silent |= batch.silent_queues()
            seen.update(key for key in keys if str(key) not in batch.rows)

    def _count(self, relayed: Relayed, batch: Sending) -> None:
        sent_hook = hooks().lambda_task_sent
        for job in batch.taken.values():
            notify(sent_hook, job=job)
        relayed.sent += len(batch.taken)
        relayed.failed += len(batch.failed)
        relayed.dead += len(batch.dead)

    def _pass_on(self, keys: Sequence[str], database: str, known: Mapping[str, Job] | None = None) -> Sending:
        """Send the messages among `keys` that are due and that no other process is sending.

        Messages in `known` are not read again.
        """
        for _ in range(_ATTEMPTS):
            with suppress(Overtaken):
                return self._try_to_pass_on(keys, database, known)
        return Sending({})  # the other relays send them

    def _try_to_pass_on(self, keys: Sequence[str], database: str, known: Mapping[str, Job] | None) -> Sending:
        with self._rows.held(keys, database) as held:
            free = [key for key in keys if key in held.keys]
            batch, jobs = self._rows.read(free, database) if known is None else known_jobs(held, known)
            failpoints.reached("relay:held")
            self._send(jobs, batch)
            failpoints.reached("relay:sent")
            self._rows.settle(batch, database, held)
            failpoints.reached("relay:settled")
        _tell(batch, database)
        return batch

    def _send(self, jobs: Sequence[Job], batch: Sending) -> None:
        if not jobs:
            return
        try:
            with closing(results_of(self._transport.send, jobs)) as results:
                for result in results:
                    batch.end(result)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # after all results: tasks that ran in this process have failed
            logger.debug("The transport raised after it had sent all messages.", exc_info=error)


def _first_few(sizes: Mapping[UUID, int]) -> list[UUID]:
    """Return the first messages of `sizes`, at least one, that form a batch and fit into a small function."""
    keys: list[UUID] = []
    characters = 0
    for key, size in sizes.items():
        characters += size
        if len(keys) == BATCH_SIZE or (keys and characters > _MAX_CHARACTERS):
            break
        keys.append(key)
    return keys


def _tell(batch: Sending, database: str) -> None:
    """Log the messages that were not sent, and notify the plugins."""
    for (_, reason), keys in grouped(batch.failed, batch.rows).items():
        names = Counter(batch.rows[key].task_name for key in keys)
        logger.warning(
            "Messages stay in the outbox of %r and are retried (%s): %s",
            database,
            ", ".join(f"{count} of {name}" for name, count in names.items()),
            reason,
        )
    for key, error in batch.dead.items():
        sentence = "%s [%s] can never be sent and stays in the outbox of %r as dead: %s"
        logger.error(sentence, batch.rows[key].task_name, key, database, error_text(error, batch.rows[key].hidden))
    unsent_hook = hooks().lambda_task_unsent
    for errors in (batch.failed, batch.dead):
        for key, error in errors.items():
            row = batch.rows[key]
            details = {"message_id": key, "task_name": row.task_name, "queue": row.queue}
            notify(unsent_hook, **details, error=error, dead=errors is batch.dead)
