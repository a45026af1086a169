"""The admin of the outbox, which lists waiting, delayed and dead messages, sends them now, and deletes them."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.models import DELETION, LogEntry
from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lambda_tasks.admin import filters, listing
from lambda_tasks.admin.confirming import MOST_SELECTED, log_changes
from lambda_tasks.admin.later import later
from lambda_tasks.admin.listing import LargeTableAdmin, as_json, counted
from lambda_tasks.database.dividing import divided
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.registry import find_task

if TYPE_CHECKING:
    from datetime import datetime

    from django.contrib.admin.views.main import ChangeList
    from django.utils.functional import Promise
    from django.utils.safestring import SafeString

    from lambda_tasks.admin import showing
    from lambda_tasks.backends.outbox import OutboxBackend
    from lambda_tasks.wire.invocation import Invocation

    _Messages = QuerySet[OutboxMessage]
else:
    showing = later("lambda_tasks.admin.showing")

logger = get_logger("lambda_tasks.outbox")

#: The maximum number of characters of an error that the list shows.
SHOWN: Final = 120
#: Seconds after which "send now" does not start another batch, because the user waits for the page.
SEND_SECONDS: Final = 20.0
#: The maximum number of messages that one request deletes.
MOST_DELETED: Final = MOST_SELECTED


class State(Enum):
    """The state of a message in the outbox."""

    WAITING = "waiting"
    DELAYED = "delayed"
    DEAD = "dead"

    @property
    def look(self) -> showing.Look:
        looks = {State.WAITING: showing.WAITING, State.DELAYED: showing.DELAYED, State.DEAD: showing.DEAD}
        return looks[self]


def state_of(message: OutboxMessage) -> State:
    """Return the state of a message from `OutboxMessageAdmin.get_queryset()`, as of the moment it was read."""
    from lambda_tasks.backends.batches import LONGEST_PAUSE

    if message.due_at is None:
        return State.DEAD
    now = message.now  # type: ignore[attr-defined] # annotated
    due_in = (message.due_at - now).total_seconds()
    kept = due_in > LONGEST_PAUSE or (due_in > 0 and message.run_at is not None and message.run_at > now)
    return State.DELAYED if kept else State.WAITING


def of_state(state: State) -> Q:
    """Return the condition for messages in `state`, in a form that can use the index on `due_at`."""
    from lambda_tasks.backends.batches import LONGEST_PAUSE
    from lambda_tasks.database.clock import DatabaseNow, from_now

    now, soon = DatabaseNow(), from_now(LONGEST_PAUSE)
    if state is State.DEAD:
        return Q(due_at=None)
    if state is State.DELAYED:
        return Q(due_at__gt=now) & (Q(due_at__gt=soon) | Q(run_at__gt=now))
    # Messages that could not be sent are postponed too, but never for longer than LONGEST_PAUSE.
    return Q(due_at__lte=soon) & (Q(due_at__lte=now) | Q(run_at=None) | Q(run_at__lte=now))


class StateFilter(admin.SimpleListFilter):
    """Filter messages by state: waiting, delayed or dead."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(state.value, str(state.look.label)) for state in State]

    def queryset(self, request: HttpRequest, queryset: _Messages) -> _Messages:
        for state in State:
            if state.value == self.value():
                queryset = queryset.filter(of_state(state))
        return queryset


class TaskFilter(filters.TaskFilter):
    order = ("due_at", "id")


class QueueFilter(filters.QueueFilter):
    order = ("due_at", "id")


@admin.register(OutboxMessage)
class OutboxMessageAdmin(LargeTableAdmin):
    """List, filter and show the messages in the outbox, send them now, and delete them.

    Users need the view permission to see messages, the change permission to send them, and the delete permission
    to delete them. Messages cannot be added or edited. Values of sensitive arguments are masked.

    The admin shows the outbox of the database that Django's routers choose. For another database, register a
    subclass with `using = "other"` in a separate `AdminSite`, as in Django's documentation on multiple databases.
    """

    #: The alias of the database whose outbox is shown, instead of the one that the routers choose.
    using: str | None = None

    actions = ("send_now", "delete_selected")
    list_display = ("state", "task", "queue", "enqueued", "due")
    #: `task()` makes only the task's name a link, and not the error below it.
    list_display_links = None
    list_filter = (StateFilter, TaskFilter, QueueFilter)
    # Shows the search box. `get_search_results()` does the search.
    search_fields = ("id",)
    search_help_text = _("A message id")
    ordering = ("due_at", "id")
    #: These may contain secrets, so no subclass shows them by accident.
    exclude = ("body", "attributes")
    #: The only column with an index.
    sortable_by = ("due",)
    limit_notice = _("Only 10,000 messages are listed. Use the filters to find others.")

    @property
    def database(self) -> str:
        """The alias of the database whose messages are sent and deleted."""
        return self.using or router.db_for_write(OutboxMessage)

    def get_queryset(self, request: HttpRequest) -> _Messages:
        from lambda_tasks.database.clock import DatabaseNow

        shown = super().get_queryset(request)
        if self.using is not None:
            shown = shown.using(self.using)
        annotated: _Messages = shown.annotate(now=DatabaseNow())
        return annotated

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        from lambda_tasks.admin.lists import OutboxList

        return OutboxList

    def get_fieldsets(self, request: HttpRequest, obj: OutboxMessage | None = None) -> Any:
        sending = ["queue", "enqueued", "due", "attempts"]
        if obj is not None and obj.error and obj.due_at is not None:  # the template shows a dead message's error
            sending.append("error_text")
        fieldsets = [
            (None, {"fields": ["id", "task_name", "state", "arguments"]}),
            (_("Sending"), {"fields": sending}),
        ]
        if obj is not None and self.n_retries(obj):
            fieldsets.append((_("Retries"), {"fields": ["n_retries", "chain"]}))
        return fieldsets

    def get_search_results(self, request: HttpRequest, queryset: _Messages, search_term: str) -> tuple[_Messages, bool]:
        text = search_term.strip()
        if not text:
            return queryset, False
        try:
            return queryset.filter(pk=UUID(text)), False
        except ValueError:
            return queryset.none(), False

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        notices = list(self._notices(request)) if request.method == "GET" else []
        return super().changelist_view(request, {"notices": notices, **(extra_context or {})})

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        message = context["original"]
        context |= {
            "reason": message.error if message is not None and message.due_at is None else "",
            "is_dead": message is not None and message.due_at is None,
            "may_send": self.has_send_permission(request),
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def _notices(self, request: HttpRequest) -> Iterable[tuple[str, SafeString | str | Promise]]:
        """Yield the notices above the list, each with the CSS class of one of Django's message levels."""
        if request.GET.get(StateFilter.parameter_name) != State.DEAD.value:
            dead = counted(self.get_queryset(request).filter(of_state(State.DEAD)))
            if dead:
                told = ngettext(
                    "%d message is dead: it was rejected, and will not be retried.",
                    "%d messages are dead: they were rejected, and will not be retried.",
                    dead,
                )
                yield "error", format_html('{} <a href="?state=dead">{}</a>', told % dead, _("Show dead messages"))
        kept, why_not = _outbox()
        if kept is None:
            yield "warning", why_not
            return
        others = [alias for alias in kept.databases if alias != self.database]
        if others:
            notice = _("This is the outbox of the database %(shown)s. Other databases with an outbox: %(others)s.")
            yield "info", notice % {"shown": self.database, "others": ", ".join(others)}

    # Columns and fields

    @admin.display(description=_("state"))
    def state(self, message: OutboxMessage) -> SafeString:
        return showing.badge(state_of(message).look)

    @admin.display(description=_("task and failed attempts"))
    def task(self, message: OutboxMessage) -> SafeString:
        url = reverse(f"{self.admin_site.name}:lambda_tasks_outboxmessage_change", args=[message.pk])
        name = format_html('<strong><a href="{}">{}</a></strong>', url, message.task_name)
        error = Truncator(message.start_of_error).chars(SHOWN)  # type: ignore[attr-defined] # annotated
        if not error:
            return name
        kind = "task-error" if message.due_at is None else "task-reason"
        text = ngettext("%d failed attempt: %s", "%d failed attempts, most recently: %s", message.attempts)
        return format_html('{}<br><small class="{}">{}</small>', name, kind, text % (message.attempts, error))

    @admin.display(description=_("enqueued"))
    def enqueued(self, message: OutboxMessage) -> str | None:
        return _moment(message.created_at)

    @admin.display(description=_("due"), ordering="due_at")
    def due(self, message: OutboxMessage) -> str | Promise | None:
        """Return when the message will be sent, or for a delayed message, when a worker will receive it."""
        moment = message.run_at if state_of(message) is State.DELAYED else message.due_at
        return _("never") if moment is None else _moment(moment)

    @admin.display(description=_("last error"))
    def error_text(self, message: OutboxMessage) -> str | None:
        return showing.preformatted(message.error)

    @admin.display(description=_("arguments"))
    def arguments(self, message: OutboxMessage) -> str | None:
        invocation = _invocation(message)
        if invocation is None:
            return str(_("The message is not a valid task invocation. It is hidden because it may contain secrets."))
        shown, note = _visible(invocation)
        return format_html("{}{}", showing.preformatted(as_json(shown)), format_html("<p>{}</p>", note) if note else "")

    @admin.display(description=_("retry"))
    def n_retries(self, message: OutboxMessage) -> int | None:
        invocation = _invocation(message)
        return None if invocation is None else invocation.n_retries

    @admin.display(description=_("earlier invocations of the chain"))
    def chain(self, message: OutboxMessage) -> str | None:
        from lambda_tasks.wire.attributes import ROOT_ID_ATTRIBUTE

        attributes: object = message.attributes  # another program may have written the row
        root = attributes.get(ROOT_ID_ATTRIBUTE) if isinstance(attributes, dict) else None
        if not self.n_retries(message) or root is None or not self.admin_site.is_registered(TaskRecord):
            return None
        url = reverse(f"{self.admin_site.name}:lambda_tasks_taskrecord_changelist")
        return format_html('<a href="{}?q={}">{}</a>', url, root, root)

    # Sending and deleting

    @admin.action(permissions=["send"], description=_("Send selected messages now"))
    def send_now(self, request: HttpRequest, queryset: _Messages) -> None:
        """Send the selected messages, and report the results. Stop early if it takes too long for a page."""
        from lambda_tasks.admin.sending import Sending
        from lambda_tasks.backends.relay import BATCH_SIZE

        kept, why_not = _outbox()
        if kept is None:
            self.message_user(request, _("Nothing was sent. %s") % why_not, messages.ERROR)
            return
        rows = list(queryset.only("id", "task_name").order_by("due_at", "id")[: listing.MOST_LISTED])
        sending = Sending(kept, self.database)
        deadline = monotonic() + SEND_SECONDS
        for start in range(0, len(rows), BATCH_SIZE):
            if start and (sending.queues_are_unavailable or monotonic() >= deadline):
                break
            sending.send([row.pk for row in rows[start : start + BATCH_SIZE]])
        logger.info("%s sent messages from the outbox of database %r: %s", request.user, self.database, sending.done)
        self._log_sent(request, rows[: sending.tried])
        for level, text in sending.report(chosen=len(rows)):
            self.message_user(request, text, level)

    def _log_sent(self, request: HttpRequest, tried: list[OutboxMessage]) -> None:
        keys = [message.pk for message in tried]
        pks = OutboxMessage.objects.using(self.database).values_list("pk", flat=True)
        left = {pk for some in divided(keys) for pk in pks.filter(pk__in=some)}
        log_changes(request, [each for each in tried if each.pk not in left], str(_("Sent now.")))
        log_changes(request, [each for each in tried if each.pk in left], str(_("Could not be sent now.")))

    def has_send_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("lambda_tasks.change_outboxmessage")

    @admin.action(permissions=["delete"], description=_("Delete selected messages"))
    def delete_selected(self, request: HttpRequest, queryset: _Messages) -> HttpResponse | None:
        """Delete the selected messages after a confirmation, up to as many as one form can contain."""
        keys = list(queryset.order_by("due_at", "id").values_list("pk", flat=True)[: MOST_DELETED + 1])
        if len(keys) > MOST_DELETED:
            told = _("Only the first %d of the selected messages are listed, the most that can be deleted at a time.")
            self.message_user(request, told % MOST_DELETED, messages.WARNING)
        # Not from `queryset`, whose condition has the keys, too.
        chosen = self.get_queryset(request).filter(pk__in=keys[:MOST_DELETED])
        answer: HttpResponse | None = delete_selected(self, request, chosen)
        return answer

    def delete_queryset(self, request: HttpRequest, queryset: _Messages) -> None:
        for message in queryset:
            self._log_deleted(request, message)
        queryset.delete()

    def log_deletions(self, request: HttpRequest, queryset: _Messages) -> list[LogEntry]:
        return log_changes(request, queryset, flag=DELETION)

    def delete_model(self, request: HttpRequest, obj: OutboxMessage) -> None:
        self._log_deleted(request, obj)
        obj.delete(using=self.database)

    def _log_deleted(self, request: HttpRequest, message: OutboxMessage) -> None:
        logger.warning(
            "%s deleted %s from the outbox of database %r. Its task will not run.",
            request.user,
            message,
            self.database,
        )


def _moment(moment: datetime | None) -> SafeString | None:
    """Return the date and the time, with a line break allowed in between."""
    day, _, time = (showing.to_the_second(moment) or "").partition(" ")
    return format_html('<span class="task-unbroken">{}</span> {}', day, time) if day else None


def _outbox() -> tuple[OutboxBackend | None, str | Promise]:
    """Return the configured outbox and a remedy. The outbox is None if the settings have none or are invalid."""
    from lambda_tasks.maintenance import outbox

    try:
        kept = outbox()
    except ImproperlyConfigured as error:
        return None, str(error)
    return kept, _(
        "The outbox is turned off in this process, so these messages cannot be sent from here. "
        "Set LAMBDA_TASKS_OUTBOX = True, and remove LAMBDA_TASKS_EAGER."
    )


def _invocation(message: OutboxMessage) -> Invocation | None:
    from lambda_tasks.wire.invocation import Invocation

    try:
        return Invocation.of_body(message.body)
    except InvalidMessage:
        return None


def _visible(invocation: Invocation) -> tuple[dict[str, Any], str | Promise]:
    """Return the arguments with (possibly) sensitive values masked, and a note that explains the masks."""
    from lambda_tasks.recording.masking import MASK, masked

    kwargs = invocation.kwargs
    if invocation.stored is not None:
        note = _("The arguments are too large for a message, and are stored outside of it: %(place)s.")
        return {}, note % {"place": invocation.stored}
    try:
        task = find_task(invocation.task_name)
    except Exception:  # its module may fail in any way
        return dict.fromkeys(kwargs, MASK), _(
            "All arguments are masked: this process cannot find the task, so it is not known which are sensitive."
        )
    if not task.sensitive:
        return dict(kwargs), ""
    # A sensitive parameter may have had another name when the message was enqueued.
    unknown = task.signature.unknown(kwargs)
    return masked(kwargs, {*task.sensitive, *unknown}), ""
