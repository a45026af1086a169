"""The filters of the list of records, and those that offer names without reading a whole table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from django.contrib import admin
from django.core.exceptions import ImproperlyConfigured
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from lambda_tasks.admin import listing
from lambda_tasks.admin.later import later
from lambda_tasks.models import TaskRecord, TaskStatus
from lambda_tasks.registry import registered_tasks
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from django.utils.functional import Promise

    from lambda_tasks.database import clock

    _Records = QuerySet[TaskRecord]
else:
    clock = later("lambda_tasks.database.clock")

#: The maximum number of records that a text search and the filter of slow runs read: the latest of those that match
#: the other filters.
MOST_SEARCHED: Final = 10_000


def latest(records: _Records) -> _Records:
    """Return only the latest `MOST_SEARCHED` records, with a query that uses the index of their filters and order."""
    moments = records.filter(start_time__isnull=False).order_by("-start_time").values_list("start_time", flat=True)
    oldest = moments[MOST_SEARCHED - 1 : MOST_SEARCHED].first()
    return records if oldest is None else records.filter(start_time__gte=oldest)


class NameFilter(admin.SimpleListFilter):
    """Offer the names that this process knows, and those of some rows. Reading all rows would take too long."""

    #: The order in which the rows are read, which must be that of an index.
    order: tuple[str, ...] = ("-start_time",)

    def known(self) -> Iterable[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = {*self.known(), *(row[str(self.parameter_name)] for row in self._rows(request, model_admin))} - {""}
        if chosen := self.value():
            names.add(chosen)
        return [(name, name) for name in sorted(names)]

    def _rows(self, request: HttpRequest, model_admin: Any) -> list[dict[str, str]]:
        """Return the names in some rows, which all filters of the page share."""
        rows: list[dict[str, str]] | None = getattr(request, "_lambda_tasks_names", None)
        if rows is None:
            first = model_admin.get_queryset(request).order_by(*self.order)
            rows = list(first.values("task_name", "queue")[: listing.RECENT])
            request._lambda_tasks_names = rows  # type: ignore[attr-defined]
        return rows

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        name = self.value()
        return queryset if name is None else queryset.filter(**{str(self.parameter_name): name})


class TaskFilter(NameFilter):
    title = _("task")
    parameter_name = "task_name"

    def known(self) -> Iterable[str]:
        return (task.name for task in registered_tasks())


class QueueFilter(NameFilter):
    title = _("queue")
    parameter_name = "queue"

    def known(self) -> Iterable[str]:
        try:
            return app_settings.queues
        except ImproperlyConfigured:
            return ()


#: The spans of time that the filter of starts offers, with their lengths in seconds.
_SPANS: Final[dict[str, tuple[str | Promise, int]]] = {
    "hour": (_("Last hour"), 3_600),
    "day": (_("Last 24 hours"), 86_400),
    "week": (_("Last 7 days"), 7 * 86_400),
    "month": (_("Last 30 days"), 30 * 86_400),
}


class StartedFilter(admin.DateFieldListFilter):
    """Filter records by spans of time that end now, so that a bookmark stays correct.

    `start_time__gte`, `start_time__lt` and `start_time__isnull` in the URL filter by fixed times.
    """

    PARAMETER: Final = "started"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The name of the chosen span. Django would compare the other parameters with the column.
        chosen = self.used_parameters.pop(self.PARAMETER, "")
        self.span = str(chosen[-1] if isinstance(chosen, list) and chosen else chosen)

    def expected_parameters(self) -> list[str | None]:
        return [*super().expected_parameters(), self.PARAMETER]

    def choices(self, changelist: Any) -> Iterator[Any]:
        expected = [name for name in self.expected_parameters() if name]
        yield {
            "selected": not self.used_parameters and self.span not in _SPANS,
            "query_string": changelist.get_query_string(remove=expected),
            "display": _("Any time"),
        }
        for name, (label, _seconds) in _SPANS.items():
            yield {
                "selected": name == self.span,
                "query_string": changelist.get_query_string({self.PARAMETER: name}, remove=expected),
                "display": label,
            }

    def queryset(self, request: HttpRequest, queryset: _Records) -> _Records:
        records = cast("_Records", super().queryset(request, queryset))
        span = _SPANS.get(self.span)
        return records if span is None else records.filter(start_time__gte=clock.from_now(-span[1]))


class RunFilter(admin.SimpleListFilter):
    """Filter records of runs that have outlived their lease, and among the latest records those of slow runs."""

    title = _("run")
    parameter_name = "run"
    #: The durations, in seconds, from which a run counts as slow.
    slow = (
        ("10s", _("Slow: over 10 s"), 10),
        ("1min", _("Slow: over 1 min"), 60),
        ("5min", _("Slow: over 5 min"), 300),
    )

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        slow = [(value, str(label)) for value, label, _seconds in self.slow]
        return [("overdue", str(_("Running too long"))), *slow]

    def queryset(self, request: HttpRequest, queryset: _Records) -> _Records:
        records = queryset
        if self.value() == "overdue":
            records = queryset.filter(status=TaskStatus.RUNNING, lease_until__lt=clock.LeaseNow())
        for value, _label, seconds in self.slow:
            if value == self.value():
                records = latest(queryset).filter(end_time__gt=F("start_time") + timedelta(seconds=seconds))
        return records
