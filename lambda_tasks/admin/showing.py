"""Show names, times, durations, states and errors in the admin, without inline styles or scripts."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from django.conf import settings
from django.utils import timezone as django_timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from lambda_tasks.foundation.frozen import frozen
from lambda_tasks.models import TaskReason, TaskStatus
from lambda_tasks.recording.tracebacks import without_later_lines
from lambda_tasks.wire import ids

if TYPE_CHECKING:
    from django.utils.functional import Promise

    from lambda_tasks.models import TaskRecord

#: What stands for an empty value. Django's page of an object would show None.
EMPTY: Final = "-"
#: The number of characters at the end of a traceback that lists read, to show the line that names the error.
TAIL: Final = 2_000
#: The maximum age, in seconds, of a time that is shown relative to now. Older times are shown as dates.
_RECENT: Final = 7 * 86_400
#: The latest call, in seconds since 1970, that is shown: in the year 9000, which every time zone can represent.
_LATEST: Final = 221_845_392_000
#: Matches the module before the name of an exception, at the start of the last line of a traceback.
_MODULE: Final = re.compile(r"^(?:[^\W\d]\w*\.)+(?=[^\W\d]\w*(?::|$))")


@frozen
class Look:
    """How a state looks: its shape distinguishes it without colour, and `kind` is the suffix of its CSS class."""

    label: str | Promise
    kind: str
    #: SVG elements in a square of 12 units, all of which are constants in this module.
    shape: str


_CHECK: Final = '<circle cx="6" cy="6" r="6"/><path class="mark" d="M3.2 6.2l2 2 3.6-4"/>'
_CROSS: Final = '<path d="M3.6 0h4.8L12 3.6v4.8L8.4 12H3.6L0 8.4V3.6z"/><path class="mark" d="M4 4l4 4M8 4l-4 4"/>'
_PLAY: Final = '<path d="M2 0.5l9.5 5.5-9.5 5.5z"/>'
_AGAIN: Final = '<path class="line" d="M10.5 6a4.5 4.5 0 1 1-1.6-3.4"/><path d="M11.5 0v4h-4z"/>'
_HOURGLASS: Final = '<path d="M1.5 0h9L6.8 6l3.7 6h-9l3.7-6z"/>'
_CLOCK: Final = '<circle class="line" cx="6" cy="6" r="5"/><path class="line" d="M6 3v3l2.4 1.4"/>'

LOOKS: Final = {
    TaskStatus.RUNNING: Look(_("Running"), "running", _PLAY),
    TaskStatus.SUCCESS: Look(_("Success"), "success", _CHECK),
    TaskStatus.FAILED: Look(_("Failed"), "failed", _CROSS),
    TaskStatus.RETRYING: Look(_("Retrying"), "retrying", _AGAIN),
}
WAITING: Final = Look(_("Waiting"), "waiting", _HOURGLASS)
DELAYED: Final = Look(_("Delayed"), "delayed", _CLOCK)
DEAD: Final = Look(_("Dead"), "failed", _CROSS)


def badge(look: Look) -> SafeString:
    """Return a state as a shape with its name."""
    return format_html(
        '<span class="task-badge task-{}"><svg viewBox="0 0 12 12" aria-hidden="true">{}</svg>{}</span>',
        look.kind,
        mark_safe(look.shape),  # a constant
        look.label,
    )


def status_badge(status: str, reason: str = "") -> SafeString:
    """Return the badge of a record, with its reason below. An unknown status is shown as it is."""
    look = LOOKS.get(TaskStatus(status)) if status in TaskStatus.values else None
    shown = badge(look) if look else format_html("{}", status)
    if not reason:
        return shown
    label = TaskReason(reason).label if reason in TaskReason.values else reason
    return format_html('{} <small class="task-reason">{}</small>', shown, label)


def short_name(task_name: str) -> SafeString:
    """Return the last part of a task's name, with the whole name as its title."""
    return format_html('<span title="{}">{}</span>', task_name, task_name.rpartition(".")[2] or "—")


def to_the_second(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    local = django_timezone.localtime(moment) if django_timezone.is_aware(moment) else moment
    return date_format(local, "Y-m-d H:i:s")


def moment_tag(moment: datetime | None, now: datetime) -> SafeString | None:
    """Return how long ago `moment` was, or its date after a week, with the time to the second as the title."""
    if moment is None:
        return None
    exact = to_the_second(moment)
    return format_html('<time datetime="{}" title="{}">{}</time>', moment.isoformat(), exact, _relative(moment, now))


def _relative(moment: datetime, now: datetime) -> str:
    seconds = (now - moment).total_seconds()
    if not -_RECENT < seconds < _RECENT:
        return str(to_the_second(moment))
    if abs(seconds) < 1:
        return str(_("now"))
    text = str(_("%s ago") if seconds > 0 else _("in %s"))
    return text % rounded(abs(seconds))


def rounded(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def duration(seconds: float | None) -> str | None:
    """Return a duration in its two largest units, such as `2 min 5 s`; None for None."""
    if seconds is None:
        return None
    seconds = max(seconds, 0.0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (unit, size), (part, part_size) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // part_size
            return f"{whole // size} {unit} {rest} {part}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else (end - start).total_seconds()


def called_at(message_id: str) -> datetime | None:
    """Return when a task was called, according to its id; None for ids of retries, schedules and other programs."""
    seconds = ids.made_at(message_id)
    if seconds is None or seconds > _LATEST:  # another program can write any id
        return None
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment if settings.USE_TZ else django_timezone.make_naive(moment)


def line_of_error(tail: str, reason: str) -> str:
    """Return the last line of a traceback, without the module of the exception.

    `tail` is the end of a traceback. After the last retry, the line is that of the cause, which is the task's own
    error.
    """
    text = without_later_lines(tail, cause=reason == TaskReason.MAX_RETRIES)
    _, newline, last_line = text.rpartition("\n")
    cut_off = "" if newline or len(tail) < TAIL else "…"
    return cut_off + _MODULE.sub("", last_line)


def error_of(record: TaskRecord) -> str:
    """Return the line of the error of a record from a query with `end_of_traceback`; empty if it has none."""
    tail = getattr(record, "end_of_traceback", None)
    return line_of_error(tail, record.reason) if tail else ""


def preformatted(text: str | None) -> SafeString | None:
    return None if text is None else format_html('<pre class="task-text">{}</pre>', text)


def counted_attempt(n_retries: int) -> str:
    """Return the number of an attempt, counted from 1, and how many retries that is."""
    if not n_retries:
        return "1"
    return ngettext("%(attempt)d (%(count)d retry)", "%(attempt)d (%(count)d retries)", n_retries) % {
        "attempt": n_retries + 1,
        "count": n_retries,
    }
