"""The actions on records. Each has a permission of its own, a confirmation with a limit, and entries in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.contrib import admin, messages
from django.contrib.admin.models import DELETION
from django.core.exceptions import ImproperlyConfigured
from django.db import router, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseBase
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lambda_tasks.admin.confirming import MOST_SELECTED, Question, confirmation, is_confirmed, log_changes
from lambda_tasks.admin.later import later
from lambda_tasks.admin.listing import MOST_LISTED, LargeTableAdmin
from lambda_tasks.database.dividing import divided
from lambda_tasks.models import OutboxMessage, TaskProgress, TaskRecord, TaskRerun, TaskStatus
from lambda_tasks.recording.lines import get_logger

if TYPE_CHECKING:
    from uuid import UUID

    from django.utils.functional import Promise

    from lambda_tasks import handles, maintenance
    from lambda_tasks.admin import export, rerunning

    _Records = QuerySet[TaskRecord]
else:
    export, rerunning = later("lambda_tasks.admin.export"), later("lambda_tasks.admin.rerunning")
    handles, maintenance = later("lambda_tasks.handles"), later("lambda_tasks.maintenance")

logger = get_logger("lambda_tasks.admin")

#: The maximum numbers of records that one request changes.
MOST_RUN_AGAIN: Final = 100
MOST_CANCELLED: Final = MOST_SELECTED
MOST_DELETED: Final = MOST_SELECTED

ENDED: Final = (TaskStatus.SUCCESS, TaskStatus.FAILED)
UNENDED: Final = (TaskStatus.RUNNING, TaskStatus.RETRYING)

_RUN_AGAIN: Final = Question(
    action="run_again",
    title=_("Run tasks again"),
    button=_("Run these tasks again"),
    explanation=_("Each task is enqueued with the same arguments, as a new invocation to which its page links."),
    limit=MOST_RUN_AGAIN,
)
_CANCEL: Final = Question(
    action="cancel",
    title=_("Cancel tasks"),
    button=_("Cancel these tasks"),
    explanation=_(
        "What waits never runs. A task that runs now is asked to end, and is not retried; "
        "one that returns in spite of that is a success."
    ),
    limit=MOST_CANCELLED,
    dangerous=True,
)
_DELETE: Final = Question(
    action="delete_ended",
    title=_("Delete records"),
    button=_("Delete these records"),
    explanation=_(
        "The records of all attempts of these tasks are deleted. Workers recognise a repeated message by its record: "
        "if a message is still in a queue or a dead letter queue, its task runs again."
    ),
    limit=MOST_DELETED,
    dangerous=True,
)
_EXPORT: Final = Question(
    action="export",
    title=_("Export records"),
    button=_("Export these records"),
    explanation=_("The file contains what the pages of the records show."),
    limit=MOST_LISTED,
    choices=(("csv", _("CSV, for spreadsheets")), ("json", _("JSON, one record per line"))),
)


class RecordActions(LargeTableAdmin):
    """Actions on records, which a `ModelAdmin` of records inherits."""

    #: The actions that the page of one record has as buttons, with the text of each.
    buttons: tuple[tuple[str, str | Promise], ...] = (
        ("run_again", _("Run again")),
        ("cancel", _("Cancel")),
        ("delete_ended", _("Delete")),
        ("export", _("Export")),
    )

    @admin.action(permissions=["run_again"], description=_("Run selected tasks again"))
    def run_again(self, request: HttpRequest, queryset: _Records) -> HttpResponseBase | None:
        """Enqueue the selected tasks again, after a confirmation that names those that cannot be enqueued."""
        rows = self._limited(request, queryset, MOST_RUN_AGAIN)
        possible, problems = rerunning.sorted_out(rows)
        for problem in problems:
            self.message_user(request, problem, messages.WARNING)
        if not self._some(request, possible, _("None of the selected tasks can be run again.")):
            return None
        if not is_confirmed(request):
            return confirmation(self, request, possible, _RUN_AGAIN)
        done = rerunning.run_again(possible, username=request.user.get_username())
        for record, handle in done.sent:
            log_changes(request, [record], str(_("Run again as %s.") % handle.message_id))
        logger.info("%s ran %d tasks again.", request.user, len(done.sent))
        if done.sent:
            told = ngettext("%d task was enqueued again.", "%d tasks were enqueued again.", len(done.sent))
            self.message_user(request, told % len(done.sent), messages.SUCCESS)
        for problem in done.problems:
            self.message_user(request, problem, messages.ERROR)
        return None

    @admin.action(permissions=["cancel"], description=_("Cancel selected tasks"))
    def cancel(self, request: HttpRequest, queryset: _Records) -> HttpResponseBase | None:
        """Cancel the selected invocations that have not ended, after a confirmation."""
        rows = _one_of_each_chain(self._limited(request, queryset.filter(status__in=UNENDED), MOST_CANCELLED))
        if not self._some(request, rows, _("None of the selected tasks can be cancelled: all of them have ended.")):
            return None
        if not is_confirmed(request):
            return confirmation(self, request, rows, _CANCEL)
        cancelled = [row for row in rows if handles.cancel(str(row.root_id or row.pk), database=row._state.db)]
        log_changes(request, cancelled, str(_("Cancelled.")))
        logger.info("%s cancelled %d tasks.", request.user, len(cancelled))
        if cancelled:
            told = ngettext("%d task was cancelled.", "%d tasks were cancelled.", len(cancelled))
            self.message_user(request, told % len(cancelled), messages.SUCCESS)
        if late := len(rows) - len(cancelled):
            told = ngettext("%d task had already ended.", "%d tasks had already ended.", late)
            self.message_user(request, told % late, messages.INFO)
        return None

    @admin.action(permissions=["delete_ended"], description=_("Delete selected records of ended tasks"))
    def delete_ended(self, request: HttpRequest, queryset: _Records) -> HttpResponseBase | None:
        """Delete the records of the selected tasks that have ended, with those of their attempts."""
        rows = _without_messages(self._limited(request, queryset.filter(status__in=ENDED), MOST_DELETED), queryset.db)
        why = _("None of the selected records can be deleted: their tasks have not ended, or are still in the outbox.")
        if not self._some(request, rows, why):
            return None
        if not is_confirmed(request):
            return confirmation(self, request, rows, _DELETE)
        deleted = self._delete_chains(request, rows, queryset.db)
        logger.warning("%s deleted %d records.", request.user, deleted)
        told = ngettext("%d record was deleted.", "%d records were deleted.", deleted)
        self.message_user(request, told % deleted, messages.SUCCESS)
        return None

    @admin.action(permissions=["export"], description=_("Export selected records"))
    def export(self, request: HttpRequest, queryset: _Records) -> HttpResponseBase | None:
        """Download the selected records as CSV or JSON, after a confirmation."""
        everything = request.POST.get("select_across") == "1"
        rows = self._limited(request, queryset, MOST_LISTED)
        if not self._some(request, rows, _("There are no records to export.")):
            return None
        form = request.POST.get("choice")
        if not is_confirmed(request) or form not in export.FORMATS:
            total = len(rows) if everything else None
            return confirmation(self, request, rows, _EXPORT, total=total)
        logger.info("%s exported %d records.", request.user, len(rows))
        log_changes(request, rows, str(_("Exported.")))
        keys = [row.pk for row in rows]
        with_arguments = self.has_view_arguments_permission(request)
        return export.response(keys, queryset.db, form=form, with_arguments=with_arguments)

    def _limited(self, request: HttpRequest, queryset: _Records, limit: int) -> list[TaskRecord]:
        """Return the first rows, without their large columns, and tell the user if there are more."""
        rows = list(queryset.only(*_NEEDED).order_by("-start_time", "-id")[: limit + 1])
        if len(rows) > limit:
            told = _("Only the first %d of the selected records are included, the most for one action.")
            self.message_user(request, told % limit, messages.WARNING)
        return rows[:limit]

    def _some(self, request: HttpRequest, rows: list[TaskRecord], why_not: str | Promise) -> bool:
        if not rows:
            self.message_user(request, str(why_not), messages.WARNING)
        return bool(rows)

    def _delete_chains(self, request: HttpRequest, rows: list[TaskRecord], database: str) -> int:
        roots = {row.root_id or row.pk for row in rows}
        records = TaskRecord.objects.using(database).only(*_NEEDED)
        with transaction.atomic(using=database):
            doomed = {row.pk: row for some in divided(roots) for row in records.filter(pk__in=some)}
            for some in divided(roots):
                retries = records.filter(root_id__in=some, n_retries__gt=0)  # matches the condition of the index
                doomed |= {row.pk: row for row in retries}
            log_changes(request, doomed.values(), flag=DELETION)
            for keys in divided(doomed):
                for model in (TaskProgress, TaskRerun, TaskRecord):
                    if router.allow_migrate_model(database, model):
                        model._default_manager.using(database).filter(pk__in=keys).delete()
        return len(doomed)

    # Permissions

    def buttons_for(
        self, request: HttpRequest, record: TaskRecord, *, latest_status: str
    ) -> list[tuple[str, str | Promise]]:
        """Return the actions that the user may apply to a record, whose latest attempt has `latest_status`."""
        allowed = self.get_actions(request)
        return [(name, text) for name, text in self.buttons if name in allowed and _fits(name, record, latest_status)]

    def has_run_again_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("lambda_tasks.run_again_taskrecord")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("lambda_tasks.cancel_taskrecord")

    def has_delete_ended_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("lambda_tasks.delete_taskrecord")

    def has_export_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("lambda_tasks.export_taskrecord")

    # `request` is Any: to the stubs of Django, the user of an HttpRequest has no `has_perm()`.
    def has_view_arguments_permission(self, request: Any, obj: Any = None) -> bool:
        """Return whether the user may see arguments, and therefore search and export them."""
        return self.has_view_permission(request, obj)


#: The columns that the actions read.
_NEEDED: Final = ("id", "task_name", "status", "root_id", "n_retries")


def _fits(action: str, record: TaskRecord, latest_status: str) -> bool:
    """Return whether an action makes sense for a record with its status, and with that of its latest attempt."""
    if action == "cancel":
        return record.status in UNENDED and latest_status in UNENDED
    if action in ("delete_ended", "run_again"):
        return record.status in ENDED
    return True


def _one_of_each_chain(rows: list[TaskRecord]) -> list[TaskRecord]:
    """Return the first record of each chain of retries, which is cancelled as a whole."""
    return list({row.root_id or row.pk: row for row in reversed(rows)}.values())[::-1]


def _without_messages(rows: list[TaskRecord], database: str) -> list[TaskRecord]:
    """Return the records whose message is not in an outbox: it may have been sent already, and must not run again."""
    kept: set[UUID] = set()
    for alias in {database, *_databases_of_outboxes()}:
        if router.allow_migrate_model(alias, OutboxMessage):
            keys = OutboxMessage.objects.using(alias).values_list("pk", flat=True)
            kept.update(key for some in divided(row.pk for row in rows) for key in keys.filter(pk__in=some))
    return [row for row in rows if row.pk not in kept]


def _databases_of_outboxes() -> tuple[str, ...]:
    try:
        kept = maintenance.outbox()
    except ImproperlyConfigured:
        return ()
    return () if kept is None else tuple(kept.databases)
