"""The admin of schedules: when periodic tasks run next, with actions to pause, resume and run them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lambda_tasks.admin.confirming import log_changes
from lambda_tasks.admin.later import later
from lambda_tasks.admin.listing import DeclaredLookupAdmin
from lambda_tasks.models import TaskSchedule

if TYPE_CHECKING:
    from lambda_tasks import strategies
    from lambda_tasks.admin import showing
    from lambda_tasks.operations import schedules

    _Schedules = QuerySet[TaskSchedule]
else:
    schedules, showing = later("lambda_tasks.operations.schedules"), later("lambda_tasks.admin.showing")
    strategies = later("lambda_tasks.strategies")


@admin.register(TaskSchedule)
class TaskScheduleAdmin(DeclaredLookupAdmin):
    """List the schedules, without adding or changing any. Rows of schedules that no longer exist can be deleted."""

    list_display = ("key", "last_run", "next_run", "is_paused")
    list_filter = ("paused",)
    search_fields = ("key",)
    ordering = ("key",)
    actions = ("pause", "resume", "run_now")
    fields = ("key", "task_name", "last_run", "next_run", "is_paused")

    def get_queryset(self, request: HttpRequest) -> _Schedules:
        rows: _Schedules = super().get_queryset(request).using(strategies.get_store().database)
        return rows

    @admin.display(description=_("last run"))
    def last_run(self, row: TaskSchedule) -> str:
        entry = schedules.entries().get(row.key)
        if entry is not None and not schedules.is_tick(entry.schedule, row.last_tick):
            return showing.EMPTY
        return _shown(row.last_tick)

    @admin.display(description=_("next run"))
    def next_run(self, row: TaskSchedule) -> str | Promise:
        if row.paused:
            return showing.EMPTY
        entry = schedules.entries().get(row.key)
        if entry is None:
            return _("never: no task has this schedule")
        return _shown(entry.schedule.next_after(row.last_tick))

    @admin.display(description=_("paused"), ordering="paused")
    def is_paused(self, row: TaskSchedule) -> str | Promise:
        """Return a word, since Django's red cross for False would look like an error."""
        return _("Yes") if row.paused else _("No")

    @admin.action(permissions=["change"], description=_("Pause selected schedules"))
    def pause(self, request: HttpRequest, queryset: _Schedules) -> None:
        self._apply(request, queryset, schedules.pause, _("paused"))

    @admin.action(permissions=["change"], description=_("Resume selected schedules"))
    def resume(self, request: HttpRequest, queryset: _Schedules) -> None:
        self._apply(request, queryset, schedules.resume, _("resumed"))

    @admin.action(permissions=["change"], description=_("Run the tasks of selected schedules now"))
    def run_now(self, request: HttpRequest, queryset: _Schedules) -> None:
        self._apply(request, queryset, _run_now, _("run now"))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show the page without buttons that would save nothing. Actions need the permission to change schedules."""
        nothing_to_save = {"show_save": False, "show_save_and_continue": False, "title": _("View schedule")}
        return super().change_view(request, object_id, form_url, {**nothing_to_save, **(extra_context or {})})

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self.fields

    def _apply(
        self, request: HttpRequest, queryset: _Schedules, action: Callable[[str], object], done: str | Promise
    ) -> None:
        """Apply `action` to each schedule, and report how many succeeded and why others did not."""
        changed = []
        for row in queryset:
            try:
                action(row.key)
            except Exception as error:  # one that no task has, or an unavailable queue
                self.message_user(request, f"{row.key}: {error}", messages.ERROR)
            else:
                changed.append(row)
        log_changes(request, changed, str(done))
        count = len(changed)
        if count:
            told = ngettext("%(count)d schedule: %(done)s.", "%(count)d schedules: %(done)s.", count)
            self.message_user(request, told % {"count": count, "done": done}, messages.SUCCESS)


def _run_now(key: str) -> None:
    if not any(handle.created for handle in schedules.run_now(key)):
        raise ValueError(_("an earlier run or call of the unique task waits or runs already"))


def _shown(moment: int | None) -> str:
    if moment is None:
        return showing.EMPTY
    return showing.to_the_second(datetime.fromtimestamp(moment, timezone.utc)) or showing.EMPTY
