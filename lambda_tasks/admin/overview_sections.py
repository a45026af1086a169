"""The numbers of the overview, and how its sections show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse
from django.utils import timezone as django_timezone
from django.utils.formats import date_format
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from lambda_tasks.admin import charts, showing
from lambda_tasks.admin.queue_ages import Ages, ages
from lambda_tasks.models import TaskReason, TaskStatus
from lambda_tasks.operations import schedules, statistics

if TYPE_CHECKING:
    from django.utils.functional import Promise
    from django.utils.safestring import SafeString

#: The number of tasks whose durations are shown: those with the most runs.
_MOST_TASKS: Final = 20
#: The maximum number of characters of an answer from SQS.
_MOST_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class Span:
    """A time of which the overview tells: its name in the address, its length, and the length of a column."""

    name: str
    label: str | Promise
    hours: int
    #: Seconds in a column of the chart.
    bucket: int
    #: The form of the labels below the chart, as in the filter `date`.
    form: str


#: The spans that the page offers, by the value of `span` in its address.
SPANS: Final = {
    "hour": Span("hour", gettext_lazy("Last hour"), hours=1, bucket=300, form="H:i"),
    "day": Span("day", gettext_lazy("Last 24 hours"), hours=24, bucket=3_600, form="H:i"),
    "week": Span("week", gettext_lazy("Last 7 days"), hours=168, bucket=6 * 3_600, form="D H:i"),
}
_DEFAULT: Final = "day"


def span_of(name: str) -> Span:
    """Return the span of this name, or the default."""
    return SPANS.get(name, SPANS[_DEFAULT])


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the overview shows, as of one moment."""

    window: statistics.Window
    counts: list[statistics.StatusCount]
    buckets: list[statistics.Bucket]
    durations: list[statistics.Durations]
    errors: list[statistics.Errors]
    running: statistics.Running
    outboxes: list[statistics.Outbox]
    schedules: list[schedules.Status]
    #: Why the settings allow only a part of the numbers; empty if they are valid.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: its cells, and where its first cell leads."""

    cells: tuple[Any, ...]
    url: str = ""


def numbers_of(span: Span) -> Numbers:
    """Return the numbers of a span that ends now, with a fixed number of queries."""
    window = statistics.window(hours=span.hours)
    problem = ""
    kept: list[statistics.Outbox] = []
    listed: list[schedules.Status] = []
    try:
        kept = statistics.outboxes(window)
        listed = schedules.list_schedules()
    except ImproperlyConfigured as error:
        problem = str(error)
    return Numbers(
        window=window,
        counts=statistics.counts(window),
        buckets=statistics.throughput(window, seconds=span.bucket),
        durations=statistics.durations(window),
        errors=statistics.top_errors(window),
        running=statistics.running(window),
        outboxes=kept,
        schedules=listed,
        problem=problem,
    )


def queues() -> list[tuple[statistics.Depth, Ages]]:
    """Return the depth and the ages of each queue; none if the settings are invalid, which another section reports."""
    try:
        depths = statistics.depths()
        found = ages(depths)
    except ImproperlyConfigured:
        return []
    return [(depth, found.get(depth.queue, Ages())) for depth in depths]


def context_of(
    span: Span, numbers: Numbers, known_queues: Sequence[tuple[statistics.Depth, Ages]], *, site: str | None
) -> dict[str, Any]:
    """Return what the template shows. Without `site`, the name of an admin site, nothing links to records."""
    now = numbers.window.now
    return {
        "now": showing.to_the_second(now),
        "complete": numbers.window.complete,
        "since": showing.to_the_second(numbers.window.since),
        "problem": numbers.problem,
        "counts": list(_counts(numbers, span, site)),
        "running": _running(numbers.running, now, site),
        "chart": _chart(numbers.buckets, span),
        "buckets": numbers.buckets,
        "bucket_rows": [_bucket(each, span) for each in reversed(numbers.buckets)],
        "duration_rows": list(_durations(numbers.durations[:_MOST_TASKS], span, site)),
        "error_rows": [_error(each, now, site) for each in numbers.errors],
        "outbox_rows": [_outbox(each, now) for each in numbers.outboxes],
        "schedule_rows": [_schedule(each, now) for each in numbers.schedules],
        "queue_rows": [_queue(depth, old) for depth, old in known_queues],
    }


def _list_address(site: str | None, **query: str) -> str:
    return "" if site is None else f"{reverse(f'{site}:lambda_tasks_taskrecord_changelist')}?{urlencode(query)}"


def _record_address(site: str | None, key: object) -> str:
    return "" if site is None or key is None else reverse(f"{site}:lambda_tasks_taskrecord_change", args=[key])


def _counts(numbers: Numbers, span: Span, site: str | None) -> Iterator[dict[str, Any]]:
    for each in numbers.counts:
        is_running = each.status == TaskStatus.RUNNING
        query = {"status__exact": each.status} | ({} if is_running else {"started": span.name})
        yield {
            "badge": showing.status_badge(each.status),
            "number": numbers.running.count if is_running else each.in_window,
            "note": _("now") if is_running else span.label,
            "last_hour": None if is_running or span.hours == 1 else each.last_hour,
            "url": _list_address(site, **query),
        }


def _running(running: statistics.Running, now: datetime, site: str | None) -> dict[str, Any] | None:
    if running.oldest_id is None:
        return None
    return {
        "name": showing.short_name(running.oldest_task),
        "since": showing.moment_tag(running.since, now),
        "url": _record_address(site, running.oldest_id),
    }


def _chart(buckets: Sequence[statistics.Bucket], span: Span) -> SafeString:
    data = [
        charts.Column(
            _label(each, span),
            (
                ("succeeded", each.succeeded),
                ("retried", each.retried),
                ("failed", each.failed),
                ("unended", max(each.started - each.succeeded - each.retried - each.failed, 0)),
            ),
        )
        for each in buckets
    ]
    totals = {
        "started": sum(each.started for each in buckets),
        "failed": sum(each.failed for each in buckets),
        "retried": sum(each.retried for each in buckets),
    }
    told = _(
        "%(started)d attempts were started: %(failed)d failed, and %(retried)d were retried. The table has all numbers."
    )
    return charts.columns(data, name="throughput", title=_("Attempts over time"), description=told % totals)


def _label(bucket: statistics.Bucket, span: Span) -> str:
    at = bucket.at
    return date_format(django_timezone.localtime(at) if django_timezone.is_aware(at) else at, span.form)


def _bucket(bucket: statistics.Bucket, span: Span) -> Row:
    return Row((_label(bucket, span), bucket.started, bucket.succeeded, bucket.retried, bucket.failed))


def _durations(durations: Sequence[statistics.Durations], span: Span, site: str | None) -> Iterator[Row]:
    waited = [(each.waiting_p50, each.waiting_p95) for each in durations]
    ran = [(each.running_p50, each.running_p95) for each in durations]
    of_waited, of_ran = (charts.Scale.around(chain.from_iterable(pairs)) for pairs in (waited, ran))
    for each, waiting, running in zip(durations, waited, ran, strict=True):
        cells = (*_range(*waiting, of_waited), *_range(*running, of_ran))
        address = _list_address(site, task_name=each.task_name, started=span.name)
        yield Row((showing.short_name(each.task_name), each.count, *cells), address)


def _range(median: float | None, late: float | None, scale: charts.Scale) -> tuple[Any, ...]:
    return charts.duration_range(median, late, scale), showing.duration(median), showing.duration(late)


def _error(each: statistics.Errors, now: datetime, site: str | None) -> Row:
    reason = TaskReason(each.reason).label if each.reason in TaskReason.values else each.reason
    latest = showing.moment_tag(each.latest, now)
    cells = (each.error or "—", reason, showing.short_name(each.task_name), each.count, latest)
    return Row(cells, _record_address(site, each.latest_id))


def _outbox(each: statistics.Outbox, now: datetime) -> Row:
    late = showing.moment_tag(each.due_since, now)
    return Row((each.database, each.waiting, each.dead, showing.moment_tag(each.oldest, now), late))


def _schedule(each: schedules.Status, now: datetime) -> Row:
    following = _("paused") if each.paused else showing.moment_tag(_moment(each.next), now)
    badge = showing.status_badge(each.last_status) if each.last_status else ""
    return Row((each.key, showing.moment_tag(_moment(each.last), now), badge, following))


def _queue(each: statistics.Depth, old: Ages) -> Row:
    waiting = (each.visible, showing.duration(old.queue), each.in_flight, each.delayed)
    dead = (each.dead if each.dead_letter_queue else _("none"), showing.duration(old.dead_letter_queue))
    return Row((each.queue, *waiting, *dead, each.problem[:_MOST_CHARACTERS]))


def _moment(seconds: int | None) -> datetime | None:
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment if settings.USE_TZ else django_timezone.make_naive(moment)
