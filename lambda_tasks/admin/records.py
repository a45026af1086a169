"""The admin of task records: find, read, run again, cancel, delete and export them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from lambda_tasks.admin.actions import RecordActions
from lambda_tasks.admin.filters import QueueFilter, RunFilter, StartedFilter, TaskFilter, latest
from lambda_tasks.admin.later import later
from lambda_tasks.admin.listing import as_json
from lambda_tasks.models import TaskProgress, TaskRecord, TaskRecordQuerySet, TasksOverview

if TYPE_CHECKING:
    from django.contrib.admin.views.main import ChangeList
    from django.utils.functional import Promise
    from django.utils.safestring import SafeString

    from lambda_tasks.admin import record_page, search, showing
    from lambda_tasks.outcomes import ReportedProgress

    _Records = QuerySet[TaskRecord]
else:
    record_page, search = later("lambda_tasks.admin.record_page"), later("lambda_tasks.admin.search")
    showing = later("lambda_tasks.admin.showing")

#: The maximum number of characters of an error or a result that the list shows.
MOST_OUTCOME: Final = 80
#: The fields of the page that contain arguments.
HIDDEN: Final = frozenset({"arguments", "kwargs"})


@admin.register(TaskRecord)
class TaskRecordAdmin(RecordActions):
    """List, filter, search and show task records. Records cannot be added or edited.

    A user who may view records also sees arguments, results and tracebacks. To hide arguments from some users,
    override `has_view_arguments_permission()` in a subclass: then these users cannot search or export them either.
    """

    actions = ("run_again", "cancel", "delete_ended", "export")
    list_display = ("badge", "task", "outcome", "queue_name", "attempt", "waited", "seconds", "started")
    list_filter = (
        "status",
        "reason",
        TaskFilter,
        QueueFilter,
        ("start_time", StartedFilter),
        RunFilter,  # the last one, because it reads the latest records of those that match the others
    )
    search_fields = ("task_name", "traceback")
    ordering = ("-start_time", "-id")
    #: The only column with an index. Any other order reads the whole table for each page.
    sortable_by = ("started",)
    limit_notice = _("Only 10,000 records are listed. Use the filters to find others.")
    fieldsets = (
        (None, {"fields": ("id", "task_name", "status", "queue", "arguments")}),
        (_("Outcome"), {"fields": ("returned", "error")}),
        (_("Run"), {"fields": ("started_at", "ended", "seconds", "progress", "takeovers")}),
        (_("Retries"), {"fields": ("n_retries", "chain")}),
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        from lambda_tasks.admin.lists import RecordList

        return RecordList

    def get_list_display_links(self, request: HttpRequest, list_display: Any) -> Any:
        """Return the task, also if it is not the first column. A subclass may have other columns."""
        if "task" in list_display and not self.list_display_links:
            return ["task"]
        return super().get_list_display_links(request, list_display)

    def get_search_results(self, request: HttpRequest, queryset: _Records, search_term: str) -> tuple[_Records, bool]:
        match search.read(search_term):
            case search.ById(key):
                assert isinstance(queryset, TaskRecordQuerySet)
                return queryset.chain(key).order_by(*queryset.query.order_by), False
            case search.ByArguments(arguments) if self._may_search_arguments(request, queryset):
                return search.with_arguments(queryset, arguments), False
            case search.TooLong():
                told = _("A search must have at most %(characters)d characters and %(words)d words.")
                limits = {"characters": search.MOST_CHARACTERS, "words": search.MOST_WORDS}
                messages.error(request, told % limits)
                return queryset.none(), False
        searched = latest(queryset) if search_term.strip() else queryset
        return super().get_search_results(request, searched, search_term)

    def _may_search_arguments(self, request: HttpRequest, queryset: _Records) -> bool:
        return self.has_view_arguments_permission(request) and search.can_search_arguments(queryset.db)

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        shown = super().get_changelist_instance(request)
        shown.search_help_text = str(_search_help(self._may_search_arguments(request, shown.root_queryset)))
        return shown

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        return super().changelist_view(request, {"overview_url": self._overview(request), **(extra_context or {})})

    def _overview(self, request: HttpRequest) -> str | None:
        site = self.admin_site
        if not (site.is_registered(TasksOverview) and request.user.has_perm("lambda_tasks.view_tasksoverview")):
            return None
        return reverse(f"{site.name}:lambda_tasks_tasksoverview_changelist")

    # Columns

    @admin.display(description=_("status"))
    def badge(self, record: TaskRecord) -> SafeString:
        return showing.status_badge(record.status, record.reason)

    @admin.display(description=_("task"))
    def task(self, record: TaskRecord) -> SafeString:
        return showing.short_name(record.task_name)

    @admin.display(description=_("outcome"))
    def outcome(self, record: TaskRecord) -> str | None:
        """Return the line of the traceback that names the error of the task, or the result."""
        error = showing.error_of(record)
        text = error or as_json(record.result, indent=None)
        return text and Truncator(text).chars(MOST_OUTCOME)

    @admin.display(description=_("queue"))
    def queue_name(self, record: TaskRecord) -> str:
        return record.queue

    @admin.display(description=_("attempt"))
    def attempt(self, record: TaskRecord) -> int:
        return record.n_retries + 1

    @admin.display(description=_("waited"))
    def waited(self, record: TaskRecord) -> str | None:
        """Return the time from the call to the start. It is unknown for retries and scheduled runs."""
        called = showing.called_at(str(record.pk))
        return showing.duration(showing.seconds_between(called, record.start_time))

    @admin.display(description=_("duration"))
    def seconds(self, record: TaskRecord) -> str:
        return showing.duration(showing.seconds_between(record.start_time, record.end_time)) or showing.EMPTY

    @admin.display(description=_("started"), ordering="start_time")
    def started(self, record: TaskRecord) -> SafeString | None:
        return showing.moment_tag(record.start_time, timezone.now())

    # Fields of the page

    @admin.display(description=_("started"))
    def started_at(self, record: TaskRecord) -> str:
        return showing.to_the_second(record.start_time) or showing.EMPTY

    @admin.display(description=_("ended"))
    def ended(self, record: TaskRecord) -> str:
        return showing.to_the_second(record.end_time) or showing.EMPTY

    @admin.display(description=_("progress"))
    def progress(self, record: TaskRecord) -> str:
        """Return a bar with its percentage, if the task has reported its progress."""
        from lambda_tasks.stores.following import reported

        for row in TaskProgress.objects.using(record._state.db).filter(pk=record.pk):
            return _bar(reported(row))
        return showing.EMPTY

    @admin.display(description=_("arguments"))
    def arguments(self, record: TaskRecord) -> str:
        return showing.preformatted(as_json(record_page.visible_arguments(record))) or showing.EMPTY

    @admin.display(description=_("result"))
    def returned(self, record: TaskRecord) -> str:
        return showing.preformatted(as_json(record.result)) or showing.EMPTY

    @admin.display(description=_("traceback"))
    def error(self, record: TaskRecord) -> str:
        return record_page.marked_traceback(record) or showing.EMPTY

    @admin.display(description=_("all invocations of the chain"))
    def chain(self, record: TaskRecord) -> str:
        if record.root_id is None:
            return showing.EMPTY
        url = reverse(f"{self.admin_site.name}:lambda_tasks_taskrecord_changelist")
        return format_html('<a href="{}?q={}">{}</a>', url, record.root_id, record.root_id)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if self.has_view_arguments_permission(request, obj):
            return fieldsets
        return [(name, {**options, "fields": _without(options["fields"], HIDDEN)}) for name, options in fieldsets]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        if record := context["original"]:
            may_see = self.has_view_arguments_permission(request, record)
            context |= record_page.context_of(record, site=self.admin_site.name, may_see_arguments=may_see)
            context["buttons"] = self.buttons_for(request, record, latest_status=context["latest_status"])
        return super().render_change_form(request, context, *args, **kwargs)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: the action deletes only what has ended, which Django's own pages would not check."""
        return False


def _without(fields: Any, hidden: Iterable[str]) -> tuple[Any, ...]:
    return tuple(field for field in fields if field not in hidden)


def _search_help(arguments: bool) -> str | Promise:
    if arguments:
        return _("A message id, arguments like order_id=42, or part of task name or traceback (in the latest 10,000)")
    return _("A message id, or part of task name or traceback (in the latest 10,000 records)")


def _bar(progress: ReportedProgress) -> SafeString:
    updated = showing.to_the_second(progress.updated)
    if progress.total is None or progress.fraction is None:
        return format_html("{} {} ({})", progress.done, progress.note, updated)
    text = _("%(done)s of %(total)s") % {"done": progress.done, "total": progress.total}
    percent = f"{progress.fraction:.0%}"
    bar = '<progress max="{}" value="{}" aria-label="{}">{}</progress> {}, {} {} ({})'
    return format_html(bar, 100, round(100 * progress.fraction), text, percent, text, percent, progress.note, updated)
