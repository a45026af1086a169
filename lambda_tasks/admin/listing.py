"""Base classes and helpers for admin lists of large tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import get_fields_from_path
from django.contrib.admin.widgets import url_params_from_lookup_dict
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.functional import Promise, cached_property

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.contrib.admin.views.main import ChangeList

    _Admin = admin.ModelAdmin[Any]
    _Paginator = Paginator[Any]
else:
    _Admin = admin.ModelAdmin
    _Paginator = Paginator

#: The maximum number of rows that the pages of a list show. A filter or an id finds the others.
MOST_LISTED: Final = 10_000
#: The number of rows whose names a filter offers, in addition to the names that this process knows.
RECENT: Final = 1_000


class LimitedPaginator(_Paginator):
    """Count rows only up to `MOST_LISTED`, and have pages only for these rows."""

    @cached_property
    def count(self) -> int:
        assert isinstance(self.object_list, QuerySet)
        return counted(self.object_list)


class DeclaredLookupAdmin(_Admin):
    """Filter and sort the list by what the admin declares, and by nothing else.

    Django accepts any lookup of any column from the query string, which lets users guess hidden values letter by
    letter.
    """

    class Media:
        css: Final = {"all": ("lambda_tasks/admin.css",)}
        js = ("lambda_tasks/admin.js",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        from lambda_tasks.admin.lists import LargeTableList

        return LargeTableList

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Return whether a filter of the list, or a foreign key's `limit_choices_to`, declares the lookup."""
        return lookup in self._declared_lookups(request) or any(
            (lookup, value) in url_params_from_lookup_dict(limit() if callable(limit) else limit).items()
            for limit in self.opts.related_fkey_lookups
        )

    def _declared_lookups(self, request: Any) -> Iterator[str]:
        if self.date_hierarchy:
            yield from (f"{self.date_hierarchy}__{part}" for part in ("year", "month", "day"))
        for declared in self.get_list_filter(request):
            if isinstance(declared, type) and issubclass(declared, admin.SimpleListFilter):
                yield str(declared.parameter_name)  # an instance would read the choices from the database
            elif callable(declared):
                yield from filter(None, declared(request, {}, self.model, self).expected_parameters() or ())
            else:
                yield from filter(None, _field_filter(declared, request, self).expected_parameters() or ())

    def response_action(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse | None:
        if not all(self._is_key(text) for text in request.POST.getlist(ACTION_CHECKBOX_NAME)):
            raise SuspiciousOperation(f"{ACTION_CHECKBOX_NAME} must contain only ids of rows.")
        return super().response_action(request, *args, **kwargs)

    def _is_key(self, text: str) -> bool:
        """Return whether the database can compare the primary key with `text`."""
        try:
            self.opts.pk.to_python(text)
        except ValidationError:
            return False
        return "\x00" not in text


class LargeTableAdmin(DeclaredLookupAdmin):
    """List and show rows of a large table, without adding or changing any."""

    paginator = LimitedPaginator
    show_full_result_count = False
    #: The counts next to the filters' choices would read the whole table.
    show_facets = admin.ShowFacets.NEVER
    #: Shown if the table has more rows than the list shows.
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


def _field_filter(declared: Any, request: Any, model_admin: _Admin) -> admin.FieldListFilter:
    """Create the filter of a field in `list_filter`, with or without a class, in the same way as the list."""
    path, make = declared if isinstance(declared, list | tuple) else (declared, admin.FieldListFilter.create)
    field = get_fields_from_path(model_admin.model, path)[-1]
    made: admin.FieldListFilter = make(field, request, {}, model_admin.model, model_admin, field_path=path)
    return made


def counted(rows: QuerySet[Any]) -> int:
    """Return the number of `rows`, or `MOST_LISTED` if there are more."""
    count: int = rows.order_by().values("pk")[:MOST_LISTED].count()
    return count


def as_json(value: Any, indent: int | None = 2) -> str | None:
    return None if value is None else json.dumps(value, indent=indent, ensure_ascii=False)
