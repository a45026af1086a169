"""The records in the admin: to look at, not to change.

The table may have millions of rows. No page of the list counts, sorts or searches all of them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.db.models.functions import Right
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from lambda_tasks.models import TaskRecord, TaskRecordQuerySet
from lambda_tasks.registry import registered_tasks

if TYPE_CHECKING:
    from datetime import datetime

    _Admin = admin.ModelAdmin[TaskRecord]
    _Paginator = Paginator[TaskRecord]
    _Records = QuerySet[TaskRecord]
else:
    _Admin = admin.ModelAdmin
    _Paginator = Paginator

#: Records that the pages of a list show, at most. Earlier ones are found by a filter or their id.
MOST_LISTED: Final = 10_000
#: Records that are searched for a text, at most: the latest of those that the filters leave.
MOST_SEARCHED: Final = 10_000
#: The latest records, whose tasks the filter offers beside those that this process knows.
RECENT: Final = 1_000
#: Characters of a traceback that the list reads, to show its last line.
TAIL: Final = 1_000


class LimitedPaginator(_Paginator):
    """Counts no further than to `MOST_LISTED`, and has as many pages."""

    @cached_property
    def count(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        count: int = self.object_list.order_by().values("pk")[:MOST_LISTED].count()
        return count


class RecordList(ChangeList):
    """Reads what the list shows: no arguments, and of a traceback no more than its end."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> _Records:
        records: _Records = super().get_queryset(request, exclude_parameters)
        shown: _Records = records.defer("kwargs", "traceback").annotate(end_of_traceback=Right("traceback", TAIL))
        return shown


class TaskFilter(admin.SimpleListFilter):
    """Offers the tasks that this process knows, and those of the latest records: to look for all takes long."""

    title = _("task")
    parameter_name = "task_name"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        records = model_admin.get_queryset(request).order_by("-start_time")
        names = {*records.values_list("task_name", flat=True)[:RECENT], *(task.name for task in registered_tasks())}
        if chosen := self.value():
            names.add(chosen)
        return [(name, name) for name in sorted(names)]

    def queryset(self, request: HttpRequest, queryset: _Records) -> _Records:
        name = self.value()
        return queryset if name is None else queryset.filter(task_name=name)


@admin.register(TaskRecord)
class TaskRecordAdmin(_Admin):
    """Lists, filters, searches and shows records; nothing can be added, changed or deleted."""

    list_display = ("task_name", "status", "outcome", "n_retries", "seconds", "started")
    list_filter = ("status", TaskFilter, "start_time")
    search_fields = ("task_name", "traceback")
    search_help_text = _("A message id; or part of a task's name or of a traceback, among the latest 10,000 records")
    ordering = ("-start_time", "-id")
    #: What there is an index for; any other order reads the whole table for each page.
    sortable_by = ("started",)
    paginator = LimitedPaginator
    show_full_result_count = False
    #: The numbers beside the filters' choices would be counted over the whole table.
    show_facets = admin.ShowFacets.NEVER
    fieldsets = (
        (None, {"fields": ("id", "task_name", "status", "arguments")}),
        (_("Run"), {"fields": ("queue", "started", "ended", "seconds", "takeovers")}),
        (_("Outcome"), {"fields": ("returned", "error")}),
        (_("Retries"), {"fields": ("n_retries", "chain")}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RecordList

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None) or {}
        if "cl" in context and context["cl"].result_count == MOST_LISTED:
            context["subtitle"] = _("No more than 10,000 records are listed; use the filters to find others.")
        return response

    def get_search_results(self, request: HttpRequest, queryset: _Records, search_term: str) -> tuple[_Records, bool]:
        try:
            key = UUID(search_term.strip())
        except ValueError:
            searched = _latest(queryset) if search_term.strip() else queryset
            return super().get_search_results(request, searched, search_term)
        assert isinstance(queryset, TaskRecordQuerySet)
        return queryset.chain(key).order_by(*queryset.query.order_by), False

    @admin.display(description=_("started"), ordering="start_time")
    def started(self, record: TaskRecord) -> str | None:
        return _to_the_second(record.start_time)

    @admin.display(description=_("ended"))
    def ended(self, record: TaskRecord) -> str | None:
        return _to_the_second(record.end_time)

    @admin.display(description=_("seconds"))
    def seconds(self, record: TaskRecord) -> str | None:
        if record.start_time is None or record.end_time is None:
            return None
        return f"{(record.end_time - record.start_time).total_seconds():.3f}"

    @admin.display(description=_("outcome"))
    def outcome(self, record: TaskRecord) -> str | None:
        """The last line of the traceback, or the result."""
        if tail := getattr(record, "end_of_traceback", None):
            _, newline, last_line = tail.strip().rpartition("\n")
            cut_off = "" if newline or len(tail) < TAIL else "…"
            return Truncator(cut_off + last_line).chars(60)
        text = _as_json(record.result, indent=None)
        return text and Truncator(text).chars(60)

    @admin.display(description=_("arguments"))
    def arguments(self, record: TaskRecord) -> str | None:
        return _preformatted(_as_json(record.kwargs))

    @admin.display(description=_("result"))
    def returned(self, record: TaskRecord) -> str | None:
        return _preformatted(_as_json(record.result))

    @admin.display(description=_("traceback"))
    def error(self, record: TaskRecord) -> str | None:
        return _preformatted(record.traceback)

    @admin.display(description=_("all invocations of the chain"))
    def chain(self, record: TaskRecord) -> str | None:
        if record.root_id is None:
            return None
        url = reverse(f"{self.admin_site.name}:lambda_tasks_taskrecord_changelist")
        return format_html('<a href="{}?q={}">{}</a>', url, record.root_id, record.root_id)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _latest(records: _Records) -> _Records:
    """Leave the latest `MOST_SEARCHED` records, along the index that their filters and order have."""
    moments = records.filter(start_time__isnull=False).order_by("-start_time").values_list("start_time", flat=True)
    oldest = moments[MOST_SEARCHED - 1 : MOST_SEARCHED].first()
    return records if oldest is None else records.filter(start_time__gte=oldest)


def _to_the_second(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return date_format(timezone.localtime(moment) if timezone.is_aware(moment) else moment, "Y-m-d H:i:s")


def _as_json(value: Any, indent: int | None = 2) -> str | None:
    return None if value is None else json.dumps(value, indent=indent, ensure_ascii=False)


def _preformatted(text: str | None) -> str | None:
    if text is None:
        return None
    style = "margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;"
    return format_html('<pre style="{}">{}</pre>', style, text)
