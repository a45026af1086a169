"""A transport for tests of the outbox, that takes, fails and refuses what it is told to, and the tools around it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from django.db.models import F

from lambda_tasks.backends.base import Refused, SendResult, Taken, Unsent
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage
from lambda_tasks.strategies import get_backend

OUTBOX = "lambda_tasks.backends.outbox.OutboxBackend"


@lambda_task
def note(*, number: int) -> None: ...


def number_of(job: Job) -> int:
    number: int = job.message.kwargs.get("number", 0)
    return number


class Refusal(Exception):
    """The queue says that it will never take a message."""


class Courier(MemoryBackend):
    """Its workers are said to be elsewhere, so that the outbox locks what it sends, where the database can."""

    leaves_process = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: The numbers that it was asked to send together.
        self.calls: list[list[int]] = []
        #: Numbers that it cannot send now, and that it will never send.
        self.fails: set[int] = set()
        self.refuses: set[int] = set()
        #: Queues that take nothing.
        self.away: set[str] = set()
        #: Called while the messages are held, before any of them is sent.
        self.on_the_way: Callable[[], object] = lambda: None

    def send(self, jobs: Sequence[Job]) -> Iterator[SendResult]:
        self.calls.append([number_of(job) for job in jobs])
        self.on_the_way()
        for job in jobs:
            number = number_of(job)
            if job.queue in self.away or number in self.fails:
                yield Unsent(job, ConnectionError(f"the queue {job.queue} is away"))
            elif number in self.refuses:
                yield Refused(job, Refusal(f"number {number} is not wanted"))
            else:
                self.jobs.append(job)
                yield Taken(job)

    @property
    def sent(self) -> list[int]:
        """The numbers that it took, in their order."""
        return [number_of(job) for job in self.jobs]


class CourierInHouse(Courier):
    """Its workers are in this process: no transaction of the outbox may be open around it."""

    leaves_process = False


COURIER = f"{__name__}.Courier"
IN_HOUSE = f"{__name__}.CourierInHouse"


def use_outbox(settings: Any, *databases: str, transport: Any = COURIER, plugins: Sequence[object] = ()) -> Courier:
    """Have messages kept in `databases`, and in the one of the records, and sent by a courier, which is returned."""
    options = {"transport": transport} | ({"databases": list(databases)} if databases else {})
    settings.LAMBDA_TASKS_PLUGINS = list(plugins)
    settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": options}
    return cast("Courier", outbox().transport)


def outbox() -> OutboxBackend:
    return cast("OutboxBackend", get_backend())


def rows(database: str = "default") -> list[OutboxMessage]:
    """Return what is in the outbox, in the order in which it was enqueued."""
    return list(OutboxMessage.objects.using(database).order_by("id"))


def numbers(database: str = "default") -> list[int]:
    """Return the numbers of the messages in the outbox, in the order in which they were enqueued."""
    return [json.loads(message.body)["kwargs"]["number"] for message in rows(database)]


def later(seconds: float, database: str = "default") -> None:
    """Move the outbox in time, as if so many seconds had gone by."""
    passed = timedelta(seconds=seconds)
    OutboxMessage.objects.using(database).update(
        created_at=F("created_at") - passed, run_at=F("run_at") - passed, due_at=F("due_at") - passed
    )


def seconds_until(moment: str, database: str = "default") -> list[float | None]:
    """Return in how many seconds `due_at` or `run_at` comes, by the clock of the database."""
    found = OutboxMessage.objects.using(database).annotate(now=DatabaseNow()).order_by("id").values_list(moment, "now")
    return [None if at is None else (at - now).total_seconds() for at, now in found]


def time_of(database: str = "default") -> datetime:
    """Return the time of the database, which needs a message in the outbox to say it."""
    [now] = OutboxMessage.objects.using(database).annotate(now=DatabaseNow()).values_list("now", flat=True)[:1]
    return now


def paused(seconds: float, since: datetime, message: OutboxMessage, database: str = "default") -> bool:
    """Return whether `message` waits for `seconds`, counted from a moment between `since` and now.

    However long the test itself takes, the answer is the same.
    """
    assert message.due_at is not None
    return since <= message.due_at - timedelta(seconds=seconds) <= time_of(database)
