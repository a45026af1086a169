"""The outbox in the admin: what waits, what is delayed, what is dead; to be sent now or discarded."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ImproperlyConfigured
from django.db import router
from django.db.models import Q, QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lambda_tasks.admin import listing
from lambda_tasks.admin.listing import LargeTableAdmin, as_json, counted, preformatted, to_the_second
from lambda_tasks.backends.relay import BATCH_SIZE, LONGEST_PAUSE, Relayed, from_now
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.jobs import ROOT_ID_ATTRIBUTE
from lambda_tasks.maintenance import outbox
from lambda_tasks.masking import MASK, masked
from lambda_tasks.models import DatabaseNow, OutboxMessage, TaskRecord
from lambda_tasks.reading import read_message
from lambda_tasks.registry import find_task, registered_tasks
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from datetime import datetime

    from django.utils.functional import Promise
    from django.utils.safestring import SafeString

    from lambda_tasks.backends.outbox import OutboxBackend
    from lambda_tasks.messages import SQSLambdaTaskMessage
    from lambda_tasks.plain import Invocation

    _Messages = QuerySet[OutboxMessage]

logger = logging.getLogger("lambda_tasks.outbox")

#: Characters of an error that are read for the list, and that it shows.
START: Final = 200
SHOWN: Final = 120
#: Seconds after which "send now" begins no other batch: somebody waits for the page.
SEND_SECONDS: Final = 20.0
#: Messages that are discarded at once, at most: Django takes no form of more than a thousand fields.
MOST_DISCARDED: Final = 900
#: Reasons that are told of those for which messages were not sent.
_REASONS: Final = 3


class State(Enum):
    """How a message stands."""

    WAITING = "waiting"
    DELAYED = "delayed"
    DEAD = "dead"


_LABELS: Final = {State.WAITING: _("Waiting"), State.DELAYED: _("Delayed"), State.DEAD: _("Dead")}


def state_of(message: OutboxMessage) -> State:
    """Tell how `message` stands; it comes from `OutboxMessageAdmin.get_queryset()`, and knows when it was read."""
    if message.due_at is None:
        return State.DEAD
    now = message.now  # type: ignore[attr-defined] # annotated
    due_in = (message.due_at - now).total_seconds()
    kept = due_in > LONGEST_PAUSE or (due_in > 0 and message.run_at is not None and message.run_at > now)
    return State.DELAYED if kept else State.WAITING


def of_state(state: State) -> Q:
    """Return the condition of the messages in `state`, which the index of what is due can serve."""
    now, soon = DatabaseNow(), from_now(LONGEST_PAUSE)
    if state is State.DEAD:
        return Q(due_at=None)
    if state is State.DELAYED:
        return Q(due_at__gt=now) & (Q(due_at__gt=soon) | Q(run_at__gt=now))
    # What could not be sent is put off too, but never for longer than that.
    return Q(due_at__lte=soon) & (Q(due_at__lte=now) | Q(run_at=None) | Q(run_at__lte=now))


class OutboxList(ChangeList):
    """Reads what the list shows: no bodies, and of an error no more than its start."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> _Messages:
        listed: _Messages = super().get_queryset(request, exclude_parameters)
        shown: _Messages = listed.defer("body", "attributes", "error").annotate(start_of_error=Left("error", START))
        return shown

    def get_ordering(self, request: HttpRequest, queryset: _Messages) -> list[Any]:
        """Return the index's order, one way or the other."""
        first, *_ = super().get_ordering(request, queryset)
        return ["-due_at", "-id"] if first == "-due_at" else ["due_at", "id"]


class StateFilter(admin.SimpleListFilter):
    """Waiting, delayed, or dead."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(state.value, str(label)) for state, label in _LABELS.items()]

    def queryset(self, request: HttpRequest, queryset: _Messages) -> _Messages:
        for state in State:
            if state.value == self.value():
                queryset = queryset.filter(of_state(state))
        return queryset


class NameFilter(admin.SimpleListFilter):
    """Offers the names that this process knows, and those of the messages that come first in the outbox."""

    def known(self) -> Iterable[str]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        first = model_admin.get_queryset(request).order_by("due_at", "id")
        names = {*self.known(), *first.values_list(self.parameter_name, flat=True)[: listing.RECENT]}
        if chosen := self.value():
            names.add(chosen)
        return [(name, name) for name in sorted(names)]

    def queryset(self, request: HttpRequest, queryset: _Messages) -> _Messages:
        name = self.value()
        return queryset if name is None else queryset.filter(**{str(self.parameter_name): name})


class TaskFilter(NameFilter):
    title = _("task")
    parameter_name = "task_name"

    def known(self) -> Iterable[str]:
        return (task.name for task in registered_tasks())


class QueueFilter(NameFilter):
    title = _("queue")
    parameter_name = "queue"

    def known(self) -> Iterable[str]:
        try:
            return app_settings.queues
        except ImproperlyConfigured:
            return ()


@admin.register(OutboxMessage)
class OutboxMessageAdmin(LargeTableAdmin):
    """Lists, filters and shows messages that are not on their queue yet, sends them now, and discards them.

    Who may view messages sees them, who may change them sends them, who may delete them discards them.
    Nothing can be added or edited. Values of sensitive arguments are not shown.

    It shows the outbox of the database that Django's routers choose. For that of another alias, register
    a subclass with `using = "other"` in an `AdminSite` of its own, as Django's documentation has it for
    several databases.
    """

    #: The alias whose outbox is shown, instead of the one that the routers choose.
    using: str | None = None

    actions = ("send_now", "delete_selected")
    list_display = ("state", "task", "queue", "enqueued", "due")
    #: The task's name is one; what stands below it is none.
    list_display_links = None
    list_filter = (StateFilter, TaskFilter, QueueFilter)
    # What it finds is its method's business.
    search_fields = ("id",)
    search_help_text = _("A message id")
    ordering = ("due_at", "id")
    #: They have secrets in them: no subclass shows them by accident.
    exclude = ("body", "attributes")
    #: What there is an index for.
    sortable_by = ("due",)
    limit_notice = _("No more than 10,000 messages are listed; use the filters to find others.")

    @property
    def database(self) -> str:
        """The alias of the database in which messages are sent and discarded."""
        return self.using or router.db_for_write(OutboxMessage)

    def get_queryset(self, request: HttpRequest) -> _Messages:
        shown = super().get_queryset(request)
        if self.using is not None:
            shown = shown.using(self.using)
        annotated: _Messages = shown.annotate(now=DatabaseNow())
        return annotated

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return OutboxList

    def get_fieldsets(self, request: HttpRequest, obj: OutboxMessage | None = None) -> Any:
        sending = ["queue", "enqueued", "due", "attempts"]
        if obj is not None and obj.error and obj.due_at is not None:  # of a dead one it stands above all
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
        """Yield what whoever looks at the list should know, each with the class that Django's messages have."""
        if request.GET.get(StateFilter.parameter_name) != State.DEAD.value:
            dead = counted(self.get_queryset(request).filter(of_state(State.DEAD)))
            if dead:
                told = ngettext(
                    "%d message is dead: it was refused, and is not tried again.",
                    "%d messages are dead: they were refused, and are not tried again.",
                    dead,
                )
                yield "error", format_html('{} <a href="?state=dead">{}</a>', told % dead, _("Show the dead ones"))
        kept, why_not = _outbox()
        if kept is None:
            yield "warning", why_not
            return
        others = [alias for alias in kept.databases if alias != self.database]
        if others:
            told_of = _("This is the outbox of the database %(shown)s; there are others, in %(others)s.")
            yield "info", told_of % {"shown": self.database, "others": ", ".join(others)}

    # Columns and fields

    @admin.display(description=_("state"))
    def state(self, message: OutboxMessage) -> SafeString | str | Promise:
        state = state_of(message)
        label = _LABELS[state]
        return (
            format_html('<strong style="color: var(--error-fg)">{}</strong>', label) if state is State.DEAD else label
        )

    @admin.display(description=_("task, and failed tries"))
    def task(self, message: OutboxMessage) -> SafeString:
        url = reverse(f"{self.admin_site.name}:lambda_tasks_outboxmessage_change", args=[message.pk])
        name = format_html('<strong><a href="{}">{}</a></strong>', url, message.task_name)
        error = Truncator(message.start_of_error).chars(SHOWN)  # type: ignore[attr-defined] # annotated
        if not error:
            return name
        colour = "--error-fg" if message.due_at is None else "--body-quiet-color"
        style = f"color: var({colour}); overflow-wrap: anywhere;"
        tries = ngettext("%d failed try: %s", "%d failed tries, lastly: %s", message.attempts) % (
            message.attempts,
            error,
        )
        return format_html('{}<br><small style="{}">{}</small>', name, style, tries)

    @admin.display(description=_("enqueued"))
    def enqueued(self, message: OutboxMessage) -> str | None:
        return _moment(message.created_at)

    @admin.display(description=_("due"), ordering="due_at")
    def due(self, message: OutboxMessage) -> str | Promise | None:
        """When it is sent; of a delayed one, when a worker gets it."""
        moment = message.run_at if state_of(message) is State.DELAYED else message.due_at
        return _("never") if moment is None else _moment(moment)

    @admin.display(description=_("last error"))
    def error_text(self, message: OutboxMessage) -> str | None:
        return preformatted(message.error)

    @admin.display(description=_("arguments"))
    def arguments(self, message: OutboxMessage) -> str | None:
        invocation = _invocation(message)
        if invocation is None:
            return str(_("The message is no invocation of a task. It is not shown, since it may contain secrets."))
        shown, note = _visible(invocation)
        return format_html("{}{}", preformatted(as_json(shown)), format_html("<p>{}</p>", note) if note else "")

    @admin.display(description=_("retry"))
    def n_retries(self, message: OutboxMessage) -> int | None:
        invocation = _invocation(message)
        return None if invocation is None else invocation.n_retries

    @admin.display(description=_("earlier invocations of the chain"))
    def chain(self, message: OutboxMessage) -> str | None:
        root = message.attributes.get(ROOT_ID_ATTRIBUTE)
        if not self.n_retries(message) or root is None or not self.admin_site.is_registered(TaskRecord):
            return None
        url = reverse(f"{self.admin_site.name}:lambda_tasks_taskrecord_changelist")
        return format_html('<a href="{}?q={}">{}</a>', url, root, root)

    # Sending and discarding

    @admin.action(permissions=["send"], description=_("Send selected messages now"))
    def send_now(self, request: HttpRequest, queryset: _Messages) -> None:
        """Send the selected messages, and say what became of them; ends before somebody has waited for too long."""
        kept, why_not = _outbox()
        if kept is None:
            self.message_user(request, _("Nothing was sent. %s") % why_not, messages.ERROR)
            return
        keys = list(queryset.order_by("due_at", "id").values_list("pk", flat=True)[: listing.MOST_LISTED])
        sending = _Sending(kept, self.database)
        deadline = monotonic() + SEND_SECONDS
        for start in range(0, len(keys), BATCH_SIZE):
            if start and (sending.is_in_vain or monotonic() >= deadline):
                break
            sending.send(keys[start : start + BATCH_SIZE])
        logger.info("%s has had messages of the outbox of %r sent now: %s", request.user, self.database, sending.done)
        for level, text in sending.report(chosen=len(keys)):
            self.message_user(request, text, level)

    def has_send_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("lambda_tasks.change_outboxmessage")

    @admin.action(permissions=["delete"], description=_("Discard selected messages"))
    def delete_selected(self, request: HttpRequest, queryset: _Messages) -> HttpResponse | None:
        """Ask, and then discard; as many at a time as one form may name."""
        keys = list(queryset.order_by("due_at", "id").values_list("pk", flat=True)[: MOST_DISCARDED + 1])
        if len(keys) > MOST_DISCARDED:
            told = _("These are the first %d of the messages that you have chosen: no more are discarded at a time.")
            self.message_user(request, told % MOST_DISCARDED, messages.WARNING)
        answer: HttpResponse | None = delete_selected(self, request, queryset.filter(pk__in=keys[:MOST_DISCARDED]))
        return answer

    def delete_queryset(self, request: HttpRequest, queryset: _Messages) -> None:
        for message in queryset:
            self._log_discarded(request, message)
        queryset.delete()

    def delete_model(self, request: HttpRequest, obj: OutboxMessage) -> None:
        self._log_discarded(request, obj)
        obj.delete(using=self.database)

    def _log_discarded(self, request: HttpRequest, message: OutboxMessage) -> None:
        logger.warning("%s discards %s of the outbox of %r: it never runs.", request.user, message, self.database)


@dataclass(slots=True)
class _Sending:
    """What became of messages that somebody wanted to have sent now."""

    outbox: OutboxBackend
    database: str
    tried: int = 0
    done: Relayed = field(default_factory=Relayed)
    #: Why messages are tried again, and why they are dead; with how many there are.
    failures: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)

    @property
    def is_in_vain(self) -> bool:
        """Whether nothing was taken so far, and nothing refused: the queues do not answer."""
        return self.done.failed > 0 and not self.done.sent and not self.done.dead

    def send(self, keys: Sequence[UUID]) -> None:
        relayed = self.outbox.send_now(keys, using=self.database)
        self.tried += len(keys)
        self.done.sent += relayed.sent
        self.done.failed += relayed.failed
        self.done.dead += relayed.dead
        if relayed.failed or relayed.dead:
            left = OutboxMessage.objects.using(self.database).filter(pk__in=keys).exclude(error="")
            for due_at, error in left.order_by("id").values_list("due_at", "error"):
                (self.refusals if due_at is None else self.failures)[error] += 1

    def report(self, *, chosen: int) -> Iterable[tuple[int, str]]:
        """Yield sentences for who has chosen so many messages, each with its level."""
        if not chosen:
            yield messages.INFO, str(_("What you have chosen is not there any more: it was sent or discarded."))
        sent, failed, dead = self.done.sent, self.done.failed, self.done.dead
        if sent:
            yield messages.SUCCESS, ngettext("%d message was sent.", "%d messages were sent.", sent) % sent
        if failed:
            text = ngettext(
                "%d message could not be sent and is tried again: %s",
                "%d messages could not be sent and are tried again: %s",
                failed,
            )
            yield messages.WARNING, text % (failed, _reasons(self.failures))
        if dead:
            text = ngettext(
                "%d message was refused and is dead: %s",
                "%d messages were refused and are dead: %s",
                dead,
            )
            yield messages.ERROR, text % (dead, _reasons(self.refusals))
        if others := self.tried - self.done.total:
            text = ngettext(
                "%d message was not there any more, or somebody else is sending it.",
                "%d messages were not there any more, or somebody else is sending them.",
                others,
            )
            yield messages.INFO, text % others
        if untried := chosen - self.tried:
            text = ngettext(
                "%d message was not tried, since those before it took too long or could not be sent.",
                "%d messages were not tried, since those before them took too long or could not be sent.",
                untried,
            )
            yield messages.WARNING, text % untried


def _moment(moment: datetime | None) -> SafeString | None:
    """Return the day and the time, which may stand below each other."""
    day, _, time = (to_the_second(moment) or "").partition(" ")
    return format_html('<span style="white-space: nowrap">{}</span> {}', day, time) if day else None


def _reasons(counted_errors: Counter[str]) -> str:
    shown = [Truncator(error).chars(START) for error, _ in counted_errors.most_common(_REASONS)]
    return "; ".join([*shown, "…"] if len(counted_errors) > _REASONS else shown)


def _outbox() -> tuple[OutboxBackend | None, str | Promise]:
    """Return the outbox of the settings; or None, and what to do about that."""
    try:
        kept = outbox()
    except ImproperlyConfigured as error:
        return None, str(error)
    return kept, _(
        "The outbox is not on in this process, which sends none of these messages: set LAMBDA_TASKS_OUTBOX = True, "
        "and leave LAMBDA_TASKS_EAGER out."
    )


def _invocation(message: OutboxMessage) -> Invocation | SQSLambdaTaskMessage | None:
    try:
        return read_message(message.body)
    except InvalidMessage:
        return None


def _visible(invocation: Invocation | SQSLambdaTaskMessage) -> tuple[dict[str, Any], str | Promise]:
    """Return the arguments, with masks where they are sensitive or may be; and what to say of that."""
    kwargs = invocation.kwargs
    try:
        task = find_task(invocation.task_name)
    except Exception:  # its module may fail in any way
        return dict.fromkeys(kwargs, MASK), _(
            "The task cannot be found here, so nobody can tell which arguments are sensitive: all are masked."
        )
    if not task.sensitive:
        return dict(kwargs), ""
    # A sensitive parameter may have had another name when the message was made.
    unknown = kwargs.keys() - task.signature.parameters.keys()
    return masked(kwargs, {*task.sensitive, *unknown}), ""
