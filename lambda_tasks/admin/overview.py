"""The page with an overview of all tasks: what runs, what fails, how long it takes, and what waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.contrib import admin
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.text import capfirst

from lambda_tasks.admin.later import later
from lambda_tasks.admin.listing import DeclaredLookupAdmin
from lambda_tasks.models import TaskRecord, TasksOverview
from lambda_tasks.recording.lines import get_logger

if TYPE_CHECKING:
    from lambda_tasks.admin import overview_sections
else:
    overview_sections = later("lambda_tasks.admin.overview_sections")

T = TypeVar("T")

logger = get_logger("lambda_tasks.admin")

#: Seconds for which the numbers are cached, so that many open pages ask the database no more often than one.
FRESH: Final = 5
#: Seconds for which the numbers of the queues are cached, since they take requests to AWS.
FRESH_QUEUES: Final = 60
#: Seconds between two requests of an open page.
REFRESH: Final = 10
_PAGE: Final = "admin/lambda_tasks/overview.html"
_FRAGMENT: Final = "admin/lambda_tasks/overview_sections.html"


@admin.register(TasksOverview)
class TasksOverviewAdmin(DeclaredLookupAdmin):
    """Show an overview of all tasks to users with the permission `view_tasksoverview`.

    The page shows numbers, and the names of tasks, queues and exceptions. Its links to records lead on only for users
    who may view these.
    """

    def get_urls(self) -> list[URLPattern]:
        """Return the addresses of the page and of its fragment, and none of single records."""
        shown = self.admin_site.admin_view
        return [
            path("", shown(self.changelist_view), name="lambda_tasks_tasksoverview_changelist"),
            path("sections/", shown(self.sections_view), name="lambda_tasks_tasksoverview_sections"),
        ]

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the page."""
        context = {
            **self.admin_site.each_context(request),
            **self._context(request),
            "title": capfirst(str(self.opts.verbose_name_plural)),
            "subtitle": None,
            "media": self.media,
            "refresh": REFRESH,
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, _PAGE, context)

    def sections_view(self, request: HttpRequest) -> HttpResponse:
        """Return only the part of the page that changes, for the script that replaces it."""
        request.current_app = self.admin_site.name
        return render(request, _FRAGMENT, self._context(request))

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        if not self.has_view_permission(request):
            raise PermissionDenied
        span = overview_sections.span_of(request.GET.get("span", ""))
        numbers = _cached(f"overview-{span.name}", lambda: overview_sections.numbers_of(span), seconds=FRESH)
        queues = _cached("queues", overview_sections.queues, seconds=FRESH_QUEUES)
        has_records = self.admin_site.is_registered(TaskRecord)
        may_follow = has_records and request.user.has_perm("lambda_tasks.view_taskrecord")
        return {
            "span": span,
            "spans": overview_sections.SPANS.values(),
            "opts": self.opts,
            **overview_sections.context_of(span, numbers, queues, site=self.admin_site.name if may_follow else None),
        }

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def _cached(name: str, compute: Callable[[], T], *, seconds: int) -> T:
    """Return what the cache has under `name`, or compute it. An unavailable cache only costs time."""
    key = f"lambda_tasks.admin.{name}"
    try:
        found: T | None = cache.get(key)
    except Exception as error:
        logger.warning("The cache is unavailable, so the overview is computed for each request: %s", error)
        return compute()
    if found is None:
        found = compute()
        try:
            cache.set(key, found, seconds)
        except Exception as error:
            logger.warning("The overview was not cached: %s", error)
    return found
