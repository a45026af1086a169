"""Actions on selected rows that ask before they act: a page with the number of rows, and a limit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.http import HttpRequest
from django.template.response import TemplateResponse

from lambda_tasks.foundation.frozen import frozen

if TYPE_CHECKING:
    from django.db.models import Model, QuerySet
    from django.utils.functional import Promise

    _Admin = admin.ModelAdmin[Any]

#: The field of the form whose presence confirms an action.
CONFIRMED: Final = "confirmed"
#: The most rows that one form selects. Django reads them with one query, which stays below 16 KB: see
#: `lambda_tasks.database.dividing`.
MOST_SELECTED: Final = 300
#: The number of entries of the log in one INSERT, which stays below 16 KB, too.
_LOGGED: Final = 30
#: The number of rows that the page names. The others are counted only.
_NAMED: Final = 20
_TEMPLATE: Final = "admin/lambda_tasks/confirm_action.html"


@frozen
class Question:
    """What the page asks about an action."""

    #: The name of the action, as in `ModelAdmin.actions`.
    action: str
    title: str | Promise
    #: What happens to the rows.
    explanation: str | Promise
    #: The text of the button that confirms.
    button: str | Promise
    #: The maximum number of rows of one request.
    limit: int
    dangerous: bool = False
    #: Choices of one more field of the form, each with its value and its label.
    choices: tuple[tuple[str, str | Promise], ...] = ()


def is_confirmed(request: HttpRequest) -> bool:
    return CONFIRMED in request.POST


def confirmation(
    model_admin: _Admin,
    request: HttpRequest,
    rows: Sequence[Model],
    question: Question,
    *,
    total: int | None = None,
    notes: Iterable[str] = (),
) -> TemplateResponse:
    """Return the page that asks `question` about `rows`.

    With `total`, the form selects all rows that match the filters, of which there are so many. Otherwise it selects
    the `rows`, so that a row that matches later is not included. `notes` are shown with the explanation.
    """
    context = {
        **model_admin.admin_site.each_context(request),
        "title": question.title,
        "subtitle": None,
        "question": question,
        "notes": list(notes),
        "count": len(rows) if total is None else total,
        "named": rows[:_NAMED],
        "unnamed": (len(rows) if total is None else total) - len(rows[:_NAMED]),
        "selected": [row.pk for row in rows] if total is None else [row.pk for row in rows[:1]],
        "across": total is not None,
        "opts": model_admin.opts,
        "checkbox": ACTION_CHECKBOX_NAME,
        "media": model_admin.media,
    }
    request.current_app = model_admin.admin_site.name  # Django's own convention
    return TemplateResponse(request, _TEMPLATE, context)


def log_changes(
    request: HttpRequest, rows: QuerySet[Any] | Iterable[Model], message: str = "", *, flag: int = CHANGE
) -> list[LogEntry]:
    """Write one entry of the admin's log for each row, which its history page shows, and return the entries."""
    entries: list[LogEntry] = []
    if (user := request.user.pk) is None:
        return entries
    left = iter(rows)
    while some := list(islice(left, _LOGGED)):
        entries += LogEntry.objects.log_actions(user, some, flag, change_message=message)
    return entries
