"""The records in the admin: to look at, not to change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _

from lambda_tasks.models import TaskRecord

if TYPE_CHECKING:
    from datetime import datetime

    _Admin = admin.ModelAdmin[TaskRecord]
else:
    _Admin = admin.ModelAdmin


@admin.register(TaskRecord)
class TaskRecordAdmin(_Admin):
    """Lists, filters, searches and shows records; nothing can be added, changed or deleted."""

    list_display = ("task_name", "status", "outcome", "n_retries", "seconds", "started")
    list_filter = ("status", "task_name")
    search_fields = ("=id", "=root_id", "task_name", "traceback")
    search_help_text = _("A message id, or part of a task's name or of a traceback")
    ordering = ("-start_time", "-id")
    show_full_result_count = False
    fieldsets = (
        (None, {"fields": ("id", "task_name", "status", "arguments")}),
        (_("Run"), {"fields": ("queue", "started", "ended", "seconds", "takeovers")}),
        (_("Outcome"), {"fields": ("returned", "error")}),
        (_("Retries"), {"fields": ("n_retries", "chain")}),
    )

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
        if record.traceback:
            return Truncator(record.traceback.strip().rpartition("\n")[2]).chars(60)
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
