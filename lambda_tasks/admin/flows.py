"""The admin of chains and groups: how far they have come, their tasks, and cancelling them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lambda_tasks.admin.confirming import Question, confirmation, is_confirmed, log_changes
from lambda_tasks.admin.later import later
from lambda_tasks.admin.listing import LargeTableAdmin
from lambda_tasks.models import FlowKind, MemberStatus, TaskFlow, TaskFlowMember, TaskStatus
from lambda_tasks.recording.lines import get_logger

if TYPE_CHECKING:
    from django.utils.safestring import SafeString

    from lambda_tasks import strategies
    from lambda_tasks.admin import showing
    from lambda_tasks.flows import handles

    _Flows = QuerySet[TaskFlow]
else:
    handles, showing = later("lambda_tasks.flows.handles"), later("lambda_tasks.admin.showing")
    strategies = later("lambda_tasks.strategies")

logger = get_logger("lambda_tasks.admin")

#: The maximum numbers of chains and groups that one request cancels, and of tasks that a page names.
MOST_CANCELLED: Final = 20
MOST_MEMBERS: Final = 100

_CANCEL: Final = Question(
    action="cancel",
    title=_("Cancel chains and groups"),
    button=_("Cancel these chains and groups"),
    explanation=_(
        "Each task that has not ended is cancelled: what waits never runs, and a task that runs now is asked to end. "
        "The tasks in on_failure are sent."
    ),
    limit=MOST_CANCELLED,
    dangerous=True,
)


class StateFilter(admin.SimpleListFilter):
    """Chains and groups that run, that have succeeded, and that have failed."""

    title = _("status")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        statuses = (TaskStatus.RUNNING, TaskStatus.SUCCESS, TaskStatus.FAILED)
        return [(str(status), showing.LOOKS[status].label) for status in statuses]

    def queryset(self, request: HttpRequest, queryset: _Flows) -> _Flows:
        conditions = {
            str(TaskStatus.RUNNING): Q(ended_at=None),
            str(TaskStatus.SUCCESS): Q(ended_at__isnull=False, failed=False),
            str(TaskStatus.FAILED): Q(ended_at__isnull=False, failed=True),
        }
        chosen: _Flows = queryset.filter(conditions.get(str(self.value()), Q()))
        return chosen


@admin.register(TaskFlow)
class TaskFlowAdmin(LargeTableAdmin):
    """List and show chains and groups, and cancel them. The arguments of tasks that follow are not shown."""

    actions = ("cancel",)
    list_display = ("badge", "task", "kind", "size", "created", "duration")
    list_display_links = ("task",)
    list_filter = (StateFilter, "kind")
    search_fields = ("id",)
    search_help_text = _("The id of a chain, a group, or one of its tasks")
    ordering = ("-id",)
    sortable_by = ()
    limit_notice = _("Only 10,000 chains and groups are listed. Use the filters to find others.")
    fields = ("id", "badge", "kind", "counts", "created", "ended", "owed_for", "members")

    def get_queryset(self, request: HttpRequest) -> _Flows:
        rows: _Flows = super().get_queryset(request).using(strategies.get_store().database).exclude(kind=FlowKind.CALL)
        shown: _Flows = rows.defer("steps", "on_success", "on_failure", "owed")
        return shown

    def get_search_results(self, request: HttpRequest, queryset: _Flows, search_term: str) -> tuple[_Flows, bool]:
        text = search_term.strip()
        if not text:
            return queryset, False
        try:
            key = UUID(text)
        except ValueError:
            return queryset.none(), False
        of_member = TaskFlowMember.objects.using(queryset.db).filter(pk=key).values("flow_id")
        return queryset.filter(Q(pk=key) | Q(pk__in=of_member)), False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return self.fields

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("lambda_tasks.cancel_taskrecord")

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        flow = context["original"]
        if flow is not None:
            context["name"] = f"{FlowKind(flow.kind).label} {flow.size}"
            may_cancel = flow.ended_at is None and "cancel" in self.get_actions(request)
            context["buttons"] = [("cancel", _("Cancel"))] if may_cancel else []
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.action(permissions=["cancel"], description=_("Cancel selected chains and groups"))
    def cancel(self, request: HttpRequest, queryset: _Flows) -> HttpResponseBase | None:
        """Cancel the selected chains and groups that have not ended, after a confirmation."""
        rows = list(queryset.filter(ended_at=None).order_by("-id")[: MOST_CANCELLED + 1])
        if len(rows) > MOST_CANCELLED:
            limit = _("Only the first %d of the selected rows are included, the most for one action.")
            self.message_user(request, str(limit) % MOST_CANCELLED, messages.WARNING)
        rows = rows[:MOST_CANCELLED]
        if not rows:
            self.message_user(request, str(_("All of the selected chains and groups have ended.")), messages.WARNING)
            return None
        if not is_confirmed(request):
            return confirmation(self, request, rows, _CANCEL)
        cancelled = [row for row in rows if handles.FlowHandle(str(row.pk), str(row._state.db)).cancel()]
        log_changes(request, cancelled, str(_("Cancelled.")))
        logger.info("%s cancelled %d chains and groups.", request.user, len(cancelled))
        told = ngettext("%d chain or group was cancelled.", "%d chains and groups were cancelled.", len(cancelled))
        self.message_user(request, told % len(cancelled), messages.SUCCESS)
        return None

    # Columns and fields

    @admin.display(description=_("status"))
    def badge(self, flow: TaskFlow) -> SafeString:
        return showing.status_badge(_status(flow))

    @admin.display(description=_("first task"))
    def task(self, flow: TaskFlow) -> SafeString:
        return showing.short_name(flow.task_name)

    @admin.display(description=_("created"))
    def created(self, flow: TaskFlow) -> str:
        return showing.moment_tag(flow.created_at, timezone.now()) or showing.EMPTY

    @admin.display(description=_("ended"))
    def ended(self, flow: TaskFlow) -> str:
        return showing.moment_tag(flow.ended_at, timezone.now()) or showing.EMPTY

    @admin.display(description=_("duration"))
    def duration(self, flow: TaskFlow) -> str:
        return showing.duration(showing.seconds_between(flow.created_at, flow.ended_at)) or showing.EMPTY

    @admin.display(description=_("to be sent since"))
    def owed_for(self, flow: TaskFlow) -> str:
        """Return since when the tasks that follow wait for a worker or the maintenance, which is a fault if long."""
        return showing.moment_tag(flow.owed_since, timezone.now()) or showing.EMPTY

    @admin.display(description=_("tasks"))
    def counts(self, flow: TaskFlow) -> SafeString:
        counts = handles.FlowHandle(str(flow.pk), str(flow._state.db)).counts
        done = counts.total - counts.pending
        text = _("%(done)d of %(total)d have ended") % {"done": done, "total": counts.total}
        bar = '<progress max="{}" value="{}" aria-label="{}">{}</progress> {}'
        return format_html(bar, max(counts.total, 1), done, text, text, ", ".join([str(text), *_parts(counts)]))

    @admin.display(description=_("members"))
    def members(self, flow: TaskFlow) -> SafeString:
        """Return a list of the tasks, the failed ones first."""
        rows = TaskFlowMember.objects.using(flow._state.db).filter(flow_id=flow.pk)
        failed = list(rows.filter(status=MemberStatus.FAILED)[:MOST_MEMBERS])
        others = rows.exclude(status=MemberStatus.FAILED).order_by("position")[: MOST_MEMBERS - len(failed)]
        named = [*failed, *others]
        address = reverse(f"{self.admin_site.name}:lambda_tasks_taskrecord_changelist")
        items = ((_look(row), address, row.pk, row.pk, row.position + 1) for row in named)
        listed = format_html_join("", '<li>{} <a href="{}?q={}">{}</a> ({})</li>', items)
        more = flow.size - len(named)
        rest = format_html("<p>{}</p>", _("and %d more") % more) if more > 0 else ""
        return format_html('<ol class="task-members">{}</ol>{}', listed, rest)


def _status(flow: TaskFlow) -> str:
    if flow.ended_at is None:
        return str(TaskStatus.RUNNING)
    return str(TaskStatus.FAILED if flow.failed else TaskStatus.SUCCESS)


def _look(member: TaskFlowMember) -> SafeString | str:
    if member.status in TaskStatus.values:
        return showing.status_badge(member.status)
    return showing.badge(showing.WAITING) if member.status == MemberStatus.PENDING else str(_("Skipped"))


def _parts(counts: handles.Counts) -> Iterator[str]:
    numbers = ((counts.succeeded, _("succeeded")), (counts.failed, _("failed")), (counts.skipped, _("skipped")))
    yield from (f"{number} {label}" for number, label in numbers if number)
