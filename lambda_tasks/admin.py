"""The records in the admin: to look at, not to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from lambda_tasks.models import TaskRecord

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[TaskRecord]
else:
    _Admin = admin.ModelAdmin


@admin.register(TaskRecord)
class TaskRecordAdmin(_Admin):
    """Lists, filters, searches and shows records; nothing can be added, changed or deleted."""

    list_display = ("id", "task_name", "status", "n_retries", "start_time", "duration")
    list_filter = ("status", "start_time", "task_name")
    search_fields = ("=id", "=root_id", "task_name", "traceback")
    search_help_text = _("A message id, or part of a task's name or traceback")
    ordering = ("-start_time",)
    date_hierarchy = None
    show_full_result_count = False
    fieldsets = (
        (None, {"fields": ("id", "task_name", "status", "kwargs")}),
        (_("Run"), {"fields": ("start_time", "end_time", "duration", "n_retries", "root_id", "takeovers")}),
        (_("Outcome"), {"fields": ("result", "traceback")}),
    )

    @admin.display(description=_("seconds"))
    def duration(self, record: TaskRecord) -> str | None:
        if record.start_time is None or record.end_time is None:
            return None
        return f"{(record.end_time - record.start_time).total_seconds():.3f}"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
