"""What the lists of large tables have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.functional import Promise, cached_property
from django.utils.html import format_html

if TYPE_CHECKING:
    from datetime import datetime

    _Admin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:
    _Admin = admin.ModelAdmin
    _Paginator = Paginator

#: Rows that the pages of a list show, at most. Others are found by a filter or their id.
MOST_LISTED: Final = 10_000
#: Rows of a list whose names a filter offers beside those that this process knows.
RECENT: Final = 1_000


class LimitedPaginator(_Paginator):
    """Counts no further than to `MOST_LISTED`, and has as many pages."""

    @cached_property
    def count(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        return counted(self.object_list)


class LargeTableAdmin(_Admin):
    """Lists and shows rows; nothing can be added or changed."""

    paginator = LimitedPaginator
    show_full_result_count = False
    #: The numbers beside the filters' choices would be counted over the whole table.
    show_facets = admin.ShowFacets.NEVER
    #: Said where there are more rows than the list shows.
    limit_notice: str | Promise = ""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        context = getattr(response, "context_data", None) or {}
        if "cl" in context and context["cl"].result_count == MOST_LISTED:
            context["subtitle"] = self.limit_notice
        return response

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def counted(rows: QuerySet[Any]) -> int:
    """Return how many `rows` there are, or `MOST_LISTED` if there are more."""
    count: int = rows.order_by().values("pk")[:MOST_LISTED].count()
    return count


def to_the_second(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return date_format(timezone.localtime(moment) if timezone.is_aware(moment) else moment, "Y-m-d H:i:s")


def as_json(value: Any, indent: int | None = 2) -> str | None:
    return None if value is None else json.dumps(value, indent=indent, ensure_ascii=False)


def preformatted(text: str | None) -> str | None:
    if text is None:
        return None
    style = "margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;"
    return format_html('<pre style="{}">{}</pre>', style, text)
