"""Numbers about tasks for operators: counts, throughput, durations, errors, and what waits.

All queries about records read those that were started in a window of time, which ends earlier if the window has more
than `MOST_RECORDS` records. So each takes a bounded time on a table of any size, and finds its rows through an index.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connections
from django.db.models import Count, DateTimeField, F, Max, Min, Q, Value
from django.db.models.functions import Floor, Right
from django.utils.timezone import make_naive

from lambda_tasks.database.clock import epoch_now
from lambda_tasks.database.durations import Epoch, MadeAt, Percentile, Seconds
from lambda_tasks.maintenance import outbox
from lambda_tasks.models import OutboxMessage, TaskReason, TaskRecord, TaskStatus
from lambda_tasks.operations.queues import Depth, depths
from lambda_tasks.operations.schedules import Status, list_schedules
from lambda_tasks.recording.tracebacks import without_later_lines
from lambda_tasks.strategies import get_store
from lambda_tasks.wire import ids

if TYPE_CHECKING:
    from lambda_tasks.models import TaskRecordQuerySet

__all__ = [
    "Bucket",
    "Depth",
    "Durations",
    "Errors",
    "Outbox",
    "Running",
    "Snapshot",
    "StatusCount",
    "Window",
    "counts",
    "depths",
    "durations",
    "moment",
    "outboxes",
    "running",
    "snapshot",
    "throughput",
    "top_errors",
    "window",
]

HOUR: Final = 3600
#: The maximum number of records that a statistic reads, and of those whose durations and errors Python sorts.
MOST_RECORDS: Final = 100_000
MOST_SAMPLED: Final = 10_000
MOST_ERRORS: Final = 1_000
#: The maximum number of tasks, and of kinds of errors, that are listed.
MOST_TASKS: Final = 50
MOST_KINDS: Final = 10
#: The number of characters at the end of a traceback in which its last line is searched.
_TAIL: Final = 1_000


@dataclass(frozen=True, slots=True)
class Window:
    """The time of which the statistics tell: from `since` to `now`, both by the database's clock."""

    database: str
    now: datetime
    since: datetime
    #: False if it has more than `MOST_RECORDS` records, so that `since` is later than requested.
    complete: bool = True

    @property
    def records(self) -> TaskRecordQuerySet:
        """The records that were started in the window."""
        records: TaskRecordQuerySet = TaskRecord.objects.using(self.database).filter(start_time__gte=self.since)
        return records

    @property
    def statuses(self) -> TaskRecordQuerySet:
        """The same records, for queries of nothing but `status` and `start_time`, which then read only their index.

        Without the condition, MariaDB finds the records by another index and reads each row: 3 s instead of 0.1 s for a
        hundred thousand of a million records.
        """
        records: TaskRecordQuerySet = self.records.filter(status__in=TaskStatus.values)
        return records


@dataclass(frozen=True, slots=True)
class StatusCount:
    """How many records with this status were started in the last hour, and in the window."""

    status: str
    last_hour: int = 0
    in_window: int = 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """The number of invocations that were started in the `seconds` after `at`, and of those by their status now."""

    at: datetime
    seconds: int
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True)
class Durations:
    """How long the invocations of a task waited and ran, in seconds; None if that is unknown for all of them.

    An invocation waits from its call to its start, which includes its delay. Only the first of a chain of retries
    counts, because the id of a retry does not tell when it was sent.
    """

    task_name: str
    count: int
    waiting_p50: float | None = None
    waiting_p95: float | None = None
    waiting_max: float | None = None
    running_p50: float | None = None
    running_p95: float | None = None
    running_max: float | None = None


@dataclass(frozen=True, slots=True)
class Errors:
    """How often a task has failed with an error of this class, among the latest failures."""

    task_name: str
    #: The name of the class without its module; of the cause, if the last retry has failed; empty if unknown.
    error: str
    reason: str
    count: int
    #: The latest of these records.
    latest_id: UUID
    latest: datetime


@dataclass(frozen=True, slots=True)
class Running:
    """How many records are RUNNING, at most `MOST_RECORDS`, and the one that was started first."""

    count: int = 0
    oldest_id: UUID | None = None
    oldest_task: str = ""
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Outbox:
    """The messages in the outbox of a database, at most `MOST_RECORDS` of them."""

    database: str
    waiting: int = 0
    dead: int = 0
    #: When the oldest message was enqueued, and since when the first is due that is due already.
    oldest: datetime | None = None
    due_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All statistics of one moment."""

    window: Window
    counts: list[StatusCount]
    running: Running
    buckets: list[Bucket]
    durations: list[Durations]
    errors: list[Errors]
    outboxes: list[Outbox]
    schedules: list[Status]
    queues: list[Depth]


def snapshot(*, hours: float = 24, queues: bool = True) -> Snapshot:
    """Read all statistics of the last `hours`. With `queues`, SQS is asked for the depth of each queue."""
    of = window(hours=hours)
    return Snapshot(
        of,
        counts(of),
        running(of),
        throughput(of),
        durations(of),
        top_errors(of),
        outboxes(of),
        list_schedules(),
        depths() if queues else [],
    )


def window(*, hours: float = 24) -> Window:
    """Return the window of the last `hours`, or a shorter one if there are too many records. This takes two queries."""
    now = moment()
    asked = replace(now, since=now.now - timedelta(hours=hours))
    starts = asked.records.order_by("-start_time").values_list("start_time", flat=True)
    for boundary in starts[MOST_RECORDS - 1 : MOST_RECORDS]:
        assert boundary is not None
        return replace(asked, since=boundary, complete=False)
    return asked


def moment() -> Window:
    """Return an empty window that ends now, for statistics that concern no window. This is one query."""
    database = get_store().database
    now = _moment(epoch_now(database))
    return Window(database, now, now)


def counts(of: Window) -> list[StatusCount]:
    """Return the number of records for each status. This is one query, which reads only an index."""
    hour = Q(start_time__gte=of.now - timedelta(seconds=HOUR))
    grouped = of.statuses.values("status").annotate(in_window=Count("*"), last_hour=Count("status", filter=hour))
    found = {row["status"]: StatusCount(**row) for row in grouped.order_by()}
    return [found.get(status, StatusCount(status)) for status in TaskStatus.values]


def throughput(of: Window, *, seconds: int = HOUR) -> list[Bucket]:
    """Return one bucket for each `seconds` of the window, the oldest first. This is one query.

    Buckets begin at multiples of `seconds` after midnight, so that those that have passed do not change.
    """
    until = _next_boundary(of.now, seconds)
    age = Seconds(Value(until, output_field=DateTimeField()), F("start_time"))
    grouped = of.statuses.annotate(bucket=Floor(age / seconds)).values("bucket")
    rows = grouped.annotate(
        started=Count("*"),
        succeeded=Count("status", filter=Q(status=TaskStatus.SUCCESS)),
        failed=Count("status", filter=Q(status=TaskStatus.FAILED)),
        retried=Count("status", filter=Q(status=TaskStatus.RETRYING)),
    )
    columns: list[Any] = list(rows.order_by())
    found = {max(int(row.pop("bucket")), 0): row for row in columns}
    number = int((until - of.since).total_seconds() // seconds) + 1
    starts = {age: until - timedelta(seconds=seconds * (age + 1)) for age in reversed(range(number))}
    return [
        Bucket(start, seconds, **found.get(age, {}))
        for age, start in starts.items()
        if start + timedelta(seconds=seconds) > of.since
    ]


def durations(of: Window) -> list[Durations]:
    """Return the durations of the tasks that were started most often. This is one query.

    PostgreSQL computes the percentiles of the whole window. The other databases lack percentile_cont: Python computes
    them for the latest `MOST_SAMPLED` records of the window.
    """
    if connections[of.database].vendor != "postgresql":
        return _sampled_durations(of)
    measured = of.records.annotate(
        waiting=Epoch(F("start_time")) - MadeAt(F("pk")),
        running=Seconds(F("end_time"), F("start_time")),
    )
    kinds = {f"{kind}_p{percent}": Percentile(kind, percent) for kind in ("waiting", "running") for percent in (50, 95)}
    longest = {f"{kind}_max": Max(kind) for kind in ("waiting", "running")}
    grouped = measured.values("task_name").annotate(count=Count("*"), **kinds, **longest)
    return [
        Durations(**{name: _not_negative(value) for name, value in row.items()})
        for row in grouped.order_by("-count", "task_name")[:MOST_TASKS]
    ]


def top_errors(of: Window) -> list[Errors]:
    """Return the most frequent errors among the latest `MOST_ERRORS` failures of the window. This is one query."""
    failed = of.records.filter(status=TaskStatus.FAILED).order_by("-start_time")
    rows = failed.values_list("task_name", "reason", "pk", "start_time", Right("traceback", _TAIL))[:MOST_ERRORS]
    numbers: Counter[tuple[str, str, str]] = Counter()
    latest: dict[tuple[str, str, str], tuple[UUID, datetime]] = {}
    for task_name, reason, pk, start, tail in rows:
        key = (task_name, error_class(tail, reason=reason), reason)
        numbers[key] += 1
        latest.setdefault(key, (pk, start))
    return [Errors(*key, count, *latest[key]) for key, count in numbers.most_common(MOST_KINDS)]


def running(of: Window) -> Running:
    """Return how many records are RUNNING, whenever they were started, and the oldest. This takes two queries."""
    records = TaskRecord.objects.using(of.database).filter(status=TaskStatus.RUNNING)
    number = records.order_by("start_time")[:MOST_RECORDS].count()
    for row in (
        records.filter(start_time__isnull=False).order_by("start_time").values_list("pk", "task_name", "start_time")[:1]
    ):
        return Running(number, *row)
    return Running(number)


def outboxes(of: Window) -> list[Outbox]:
    """Return the number and the age of the messages in each outbox; none without an outbox. One query for each."""
    kept = outbox()
    return [] if kept is None else [_outbox(database, of.now) for database in kept.databases]


def error_class(end_of_traceback: str | None, *, reason: str) -> str:
    """Return the class of a recorded error without its module, from the end of its traceback; empty if unknown."""
    text = without_later_lines(end_of_traceback or "", cause=reason == TaskReason.MAX_RETRIES)
    name = text.rpartition("\n")[2].partition(":")[0].strip()
    return name.rpartition(".")[2] if name and " " not in name else ""


def _outbox(database: str, now: datetime) -> Outbox:
    messages = OutboxMessage.objects.using(database).order_by("due_at", "id").values("due_at", "created_at")
    found = messages[:MOST_RECORDS].aggregate(
        number=Count("*"),
        waiting=Count("due_at"),
        oldest=Min("created_at"),
        due_since=Min("due_at", filter=Q(due_at__lte=now)),
    )
    dead = found["number"] - found["waiting"]
    return Outbox(database, found["waiting"], dead, found["oldest"], found["due_since"])


def _sampled_durations(of: Window) -> list[Durations]:
    rows = of.records.order_by("-start_time").values_list("task_name", "pk", "start_time", "end_time")[:MOST_SAMPLED]
    numbers: Counter[str] = Counter()
    waited: defaultdict[str, list[float]] = defaultdict(list)
    ran: defaultdict[str, list[float]] = defaultdict(list)
    for task_name, pk, start, end in rows:
        numbers[task_name] += 1
        assert start is not None
        if (made := ids.made_at(str(pk))) is not None:
            waited[task_name].append(max(start.timestamp() - made, 0))
        if end is not None:
            ran[task_name].append(max((end - start).total_seconds(), 0))
    return [
        Durations(name, number, *_percentiles(waited[name]), *_percentiles(ran[name]))
        for name, number in sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:MOST_TASKS]
    ]


def _percentiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """Return the median, the 95th percentile and the maximum, interpolated as percentile_cont does it."""
    if not values:
        return None, None, None
    ordered = sorted(values)
    return _percentile(ordered, 0.5), _percentile(ordered, 0.95), ordered[-1]


def _percentile(ordered: Sequence[float], fraction: float) -> float:
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _not_negative(value: Any) -> Any:
    """Return 0 for a negative duration, which clocks that differ produce."""
    return max(value, 0.0) if isinstance(value, float) else value


def _moment(epoch: int) -> datetime:
    moment = datetime.fromtimestamp(epoch, timezone.utc)
    return moment if settings.USE_TZ else make_naive(moment)


def _next_boundary(now: datetime, seconds: int) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    passed = int((now - midnight).total_seconds()) // seconds
    return midnight + timedelta(seconds=(passed + 1) * seconds)
