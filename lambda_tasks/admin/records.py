"""The read-only admin of task records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.db.models.functions import Right
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from lambda_tasks.admin import listing
from lambda_tasks.admin.listing import LargeTableAdmin, LargeTableList, as_json, preformatted, to_the_second
from lambda_tasks.models import TaskProgress, TaskReason, TaskRecord, TaskRecordQuerySet
from lambda_tasks.outcomes import ReportedProgress
from lambda_tasks.recording.tracebacks import without_later_lines
from lambda_tasks.registry import registered_tasks
from lambda_tasks.stores.following import reported

if TYPE_CHECKING:
    _Records = QuerySet[TaskRecord]

#: The maximum number of records that a text search reads: the latest of those that match the filters.
MOST_SEARCHED: Final = 10_000
#: The number of characters at the end of a traceback that the list reads, to show the line that names the error.
TAIL: Final = 2_000
#: The maximum number of characters and words in a search. Each word is a condition, and SQLite limits both the
#: length of a pattern and the number of conditions.
MOST_CHARACTERS: Final = 500
MOST_WORDS: Final = 50


class RecordList(LargeTableList):
    """Read only what the list shows: no arguments, and only the end of each traceback."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> _Records:
        records: _Records = super().get_queryset(request, exclude_parameters)
        shown: _Records = records.defer("kwargs", "traceback").annotate(end_of_traceback=Right("traceback", TAIL))
        return shown


class TaskFilter(admin.SimpleListFilter):
    """Offer the tasks that this process knows, and those of the latest records. Reading all records takes too long."""

    title = _("task")
    parameter_name = "task_name"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        records = model_admin.get_queryset(request).order_by("-start_time")
        names = {
            *records.values_list("task_name", flat=True)[: listing.RECENT],
            *(task.name for task in registered_tasks()),
        }
        if chosen := self.value():
            names.add(chosen)
        return [(name, name) for name in sorted(names)]

    def queryset(self, request: HttpRequest, queryset: _Records) -> _Records:
        name = self.value()
        return queryset if name is None else queryset.filter(task_name=name)


@admin.register(TaskRecord)
class TaskRecordAdmin(LargeTableAdmin):
    """List, filter, search and show task records, without adding, changing or deleting any."""

    list_display = ("task_name", "status", "outcome", "n_retries", "seconds", "started")
    list_filter = ("status", TaskFilter, "reason", "start_time")
    search_fields = ("task_name", "traceback")
    search_help_text = _("A message id, or part of a task name or traceback (in the latest 10,000 records)")
    ordering = ("-start_time", "-id")
    #: The only column with an index. Any other order reads the whole table for each page.
    sortable_by = ("started",)
    limit_notice = _("Only 10,000 records are listed. Use the filters to find others.")
    fieldsets = (
        (None, {"fields": ("id", "task_name", "status", "arguments")}),
        (_("Run"), {"fields": ("queue", "started", "ended", "seconds", "progress", "takeovers")}),
        (_("Outcome"), {"fields": ("returned", "error")}),
        (_("Retries"), {"fields": ("n_retries", "chain")}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RecordList

    def get_search_results(self, request: HttpRequest, queryset: _Records, search_term: str) -> tuple[_Records, bool]:
        try:
            key = UUID(search_term.strip())
        except ValueError:
            if len(search_term) > MOST_CHARACTERS or len(search_term.split()) > MOST_WORDS:
                told = _("A search must have at most %(characters)d characters and %(words)d words.")
                messages.error(request, told % {"characters": MOST_CHARACTERS, "words": MOST_WORDS})
                return queryset.none(), False
            searched = _latest(queryset) if search_term.strip() else queryset
            return super().get_search_results(request, searched, search_term)
        assert isinstance(queryset, TaskRecordQuerySet)
        return queryset.chain(key).order_by(*queryset.query.order_by), False

    @admin.display(description=_("started"), ordering="start_time")
    def started(self, record: TaskRecord) -> str | None:
        return to_the_second(record.start_time)

    @admin.display(description=_("ended"))
    def ended(self, record: TaskRecord) -> str | None:
        return to_the_second(record.end_time)

    @admin.display(description=_("seconds"))
    def seconds(self, record: TaskRecord) -> str | None:
        if record.start_time is None or record.end_time is None:
            return None
        return f"{(record.end_time - record.start_time).total_seconds():.3f}"

    @admin.display(description=_("progress"))
    def progress(self, record: TaskRecord) -> str | None:
        """Return a bar with its percentage, if the task has reported its progress."""
        for row in TaskProgress.objects.using(record._state.db).filter(pk=record.pk):
            return _bar(reported(row))
        return None

    @admin.display(description=_("outcome"))
    def outcome(self, record: TaskRecord) -> str | None:
        """Return the line of the traceback that names the error of the task, or the result."""
        if tail := getattr(record, "end_of_traceback", None):
            # After the last retry, the task's own error is the cause.
            to_the_error = without_later_lines(tail, cause=record.reason == TaskReason.MAX_RETRIES)
            _, newline, last_line = to_the_error.rpartition("\n")
            cut_off = "" if newline or len(tail) < TAIL else "…"
            return Truncator(cut_off + last_line).chars(60)
        text = as_json(record.result, indent=None)
        return text and Truncator(text).chars(60)

    @admin.display(description=_("arguments"))
    def arguments(self, record: TaskRecord) -> str | None:
        return preformatted(as_json(record.kwargs))

    @admin.display(description=_("result"))
    def returned(self, record: TaskRecord) -> str | None:
        return preformatted(as_json(record.result))

    @admin.display(description=_("traceback"))
    def error(self, record: TaskRecord) -> str | None:
        return preformatted(record.traceback)

    @admin.display(description=_("all invocations of the chain"))
    def chain(self, record: TaskRecord) -> str | None:
        if record.root_id is None:
            return None
        url = reverse(f"{self.admin_site.name}:lambda_tasks_taskrecord_changelist")
        return format_html('<a href="{}?q={}">{}</a>', url, record.root_id, record.root_id)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _bar(progress: ReportedProgress) -> str:
    updated = to_the_second(progress.updated)
    if progress.total is None or progress.fraction is None:
        return format_html("{} {} ({})", progress.done, progress.note, updated)
    text = _("%(done)s of %(total)s") % {"done": progress.done, "total": progress.total}
    percent = f"{progress.fraction:.0%}"
    bar = '<progress max="{}" value="{}" aria-label="{}">{}</progress> {}, {} {} ({})'
    return format_html(bar, 100, round(100 * progress.fraction), text, percent, text, percent, progress.note, updated)


def _latest(records: _Records) -> _Records:
    """Return only the latest `MOST_SEARCHED` records, with a query that uses the index of their filters and order."""
    moments = records.filter(start_time__isnull=False).order_by("-start_time").values_list("start_time", flat=True)
    oldest = moments[MOST_SEARCHED - 1 : MOST_SEARCHED].first()
    return records if oldest is None else records.filter(start_time__gte=oldest)
