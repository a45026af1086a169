"""The lists of rows, which read only what a page shows. A page with a list imports this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ORDER_VAR, ChangeList
from django.db import DataError
from django.db.models import QuerySet
from django.db.models.functions import Left, Right
from django.http import HttpRequest

from lambda_tasks.admin import showing
from lambda_tasks.admin.sending import START

if TYPE_CHECKING:
    from lambda_tasks.models import OutboxMessage, TaskRecord

    _Messages = QuerySet[OutboxMessage]
    _Records = QuerySet[TaskRecord]

#: The maximum number of values of one query parameter. Each is a condition, and SQLite limits their nesting.
MOST_VALUES: Final = 20


class LargeTableList(ChangeList):
    """Sort by sortable columns only, and redirect requests with values that the database cannot compare."""

    def get_filters(self, request: HttpRequest) -> Any:
        if any(len(values) > MOST_VALUES for values in self.get_filters_params().values()):
            raise IncorrectLookupParameters
        return super().get_filters(request)

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        """Return the requested order, without the columns that `sortable_by` excludes.

        Django only removes the links from their headings, and still sorts by them on request.
        """
        asked = self.params.pop(ORDER_VAR, "").split(".")
        if columns := {part.lstrip("-"): part for part in asked if self._is_sortable(part)}:
            self.params[ORDER_VAR] = ".".join(columns.values())
        return list(super().get_ordering(request, queryset))

    def _is_sortable(self, part: str) -> bool:
        try:
            column = self.list_display[int(part.removeprefix("-"))]
        except (IndexError, ValueError):
            return False
        return self.sortable_by is None or column in self.sortable_by

    def get_results(self, request: HttpRequest) -> None:
        try:
            super().get_results(request)
        except (DataError, OverflowError, ValueError) as error:  # NUL, or a date before the year 1 in UTC
            raise IncorrectLookupParameters from error


class RecordList(LargeTableList):
    """Read only what the list shows: no arguments, and only the end of each traceback."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> _Records:
        records: _Records = super().get_queryset(request, exclude_parameters)
        shown: _Records = records.defer("kwargs", "traceback").annotate(
            end_of_traceback=Right("traceback", showing.TAIL)
        )
        return shown


class OutboxList(LargeTableList):
    """Read only what the list shows: no bodies, and only the start of each error."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> _Messages:
        listed: _Messages = super().get_queryset(request, exclude_parameters)
        shown: _Messages = listed.defer("body", "attributes", "error").annotate(start_of_error=Left("error", START))
        return shown

    def get_ordering(self, request: HttpRequest, queryset: _Messages) -> list[Any]:
        """Return the order of the index, ascending or descending."""
        first, *_ = super().get_ordering(request, queryset)
        return ["-due_at", "-id"] if first == "-due_at" else ["due_at", "id"]
