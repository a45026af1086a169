"""The page of one record: its times, its attempts, its traceback, links to other tools, and the call in Python."""

from __future__ import annotations

import keyword
from dataclasses import dataclass
from datetime import datetime, timezone
from pprint import pformat
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured
from django.db.models.functions import Right
from django.urls import reverse
from django.utils import timezone as django_timezone
from django.utils.translation import gettext_lazy as _

from lambda_tasks.admin import relations, showing
from lambda_tasks.admin.frames import marked
from lambda_tasks.models import TaskRecord, TaskStatus
from lambda_tasks.recording.masking import MASK, masked
from lambda_tasks.registry import find_task
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.utils.functional import Promise
    from django.utils.safestring import SafeString

#: The maximum number of attempts of a chain that the page shows: the latest ones.
MOST_ATTEMPTS: Final = 50
#: Seconds before the start and after the end of a run that links to logs include.
_MARGIN: Final = 60


@dataclass(frozen=True, slots=True)
class Step:
    """One time in the life of an invocation, and how long after the previous one it was."""

    label: str | Promise
    moment: SafeString | str | None
    gap: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One invocation of a chain of retries."""

    number: int
    url: str
    badge: SafeString
    started: str | None
    took: str | None
    error: str
    is_this: bool


def context_of(record: TaskRecord, *, site: str, may_see_arguments: bool) -> dict[str, Any]:
    """Return what the template of the page shows in addition to the fields, with links to the admin `site`."""
    chain = _chain(record)
    return {
        "badge": showing.status_badge(record.status, record.reason),
        "name": showing.short_name(record.task_name),
        "subtitle": None,
        "steps": list(_steps(record, chain)),
        "attempts": [_attempt(each, record, site) for each in chain[-MOST_ATTEMPTS:]] if len(chain) > 1 else [],
        "latest_status": chain[-1].status if chain else record.status,
        "relations": relations.of(record, site),
        "links": list(links_of(record)),
        "call": call_in_python(record) if may_see_arguments else "",
    }


def visible_arguments(record: TaskRecord) -> dict[str, Any]:
    """Return the arguments of a record with the values masked that its task declares as sensitive now.

    A worker masks them when a run begins, but records from the time before the declaration contain them.
    """
    kwargs = record.kwargs if isinstance(record.kwargs, dict) else {}
    try:
        return masked(kwargs, find_task(record.task_name).sensitive)
    except Exception:  # its module may fail in any way; the worker has masked what it knew
        return dict(kwargs)


def marked_traceback(record: TaskRecord) -> SafeString | None:
    """Return the traceback with the frames of the project marked."""
    return None if record.traceback is None else marked(record.traceback, record.task_name)


def _chain(record: TaskRecord) -> list[TaskRecord]:
    """Return the invocations of the record's chain of retries, without what their own pages show."""
    root = record.root_id or record.pk
    rows = TaskRecord.objects.using(record._state.db).chain(root)
    shown = rows.defer("kwargs", "result", "traceback").annotate(end_of_traceback=Right("traceback", showing.TAIL))
    latest = shown.order_by("-n_retries")[: MOST_ATTEMPTS + 1]
    return list(reversed(latest))


def _attempt(each: TaskRecord, shown: TaskRecord, site: str) -> Attempt:
    return Attempt(
        number=each.n_retries + 1,
        url=reverse(f"{site}:lambda_tasks_taskrecord_change", args=[each.pk]),
        badge=showing.status_badge(each.status, each.reason),
        started=showing.to_the_second(each.start_time),
        took=showing.duration(showing.seconds_between(each.start_time, each.end_time)),
        error=showing.error_of(each),
        is_this=each.pk == shown.pk,
    )


def _steps(record: TaskRecord, chain: list[TaskRecord]) -> Iterator[Step]:
    """Yield the known times of an invocation in their order. A record contains no times of its message."""
    before: datetime | None = None
    now = django_timezone.now()
    for label, moment in _moments(record, chain):
        if moment is None:
            continue
        gap = showing.seconds_between(before, moment)
        yield Step(label, showing.moment_tag(moment, now), showing.duration(gap))
        before = moment


def _moments(record: TaskRecord, chain: list[TaskRecord]) -> Iterator[tuple[str | Promise, datetime | None]]:
    yield _("Called"), showing.called_at(str(record.root_id or record.pk))
    if record.n_retries:
        previous = next((each for each in chain if each.n_retries == record.n_retries - 1), None)
        yield _("Previous attempt ended"), None if previous is None else previous.end_time
    yield _("Began to wait for its lock"), record.waiting_since
    yield _("Started"), record.start_time
    if record.status == TaskStatus.RUNNING:
        yield _("Its lease ends"), record.lease_until
    else:
        yield _("Ended"), record.end_time


def links_of(record: TaskRecord) -> Iterator[tuple[str, str]]:
    """Yield the name and the address of each link in LAMBDA_TASKS_ADMIN_LINKS."""
    try:
        templates = app_settings.admin_links
    except ImproperlyConfigured:
        return
    started = record.start_time or showing.called_at(str(record.pk)) or django_timezone.now()
    values = {
        "message_id": str(record.pk),
        "root_id": str(record.root_id or record.pk),
        "task_name": record.task_name,
        "queue": record.queue,
        "start": str(_milliseconds(started) - _MARGIN * 1000),
        "end": str(_milliseconds(record.end_time or django_timezone.now()) + _MARGIN * 1000),
    }
    quoted = {name: quote(value, safe="") for name, value in values.items()}
    for name, template in templates.items():
        yield name, template.format_map(quoted)


def _milliseconds(moment: datetime) -> int:
    aware = moment if django_timezone.is_aware(moment) else django_timezone.make_aware(moment)
    return int(aware.astimezone(timezone.utc).timestamp() * 1000)


def call_in_python(record: TaskRecord) -> str:
    """Return Python code that calls the task again with the recorded arguments, which are JSON values."""
    module, _dot, name = record.task_name.rpartition(".")
    if not module or not all(
        part.isidentifier() and not keyword.iskeyword(part) for part in record.task_name.split(".")
    ):
        return ""
    arguments = visible_arguments(record)
    if all(map(_is_name, arguments)):
        lines = [f"    {each}={_literal(value)},\n" for each, value in arguments.items()]
        inside = f"\n{''.join(lines)}" if lines else ""
    else:
        inside = f"**{_literal(arguments)}"
    hidden = "# Replace the masked values.\n" if MASK in arguments.values() else ""
    return f"from {module} import {name}\n\n{hidden}{name}.execute_on_commit({inside})\n"


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _literal(value: Any) -> str:
    return pformat(value, width=100, sort_dicts=False).replace("\n", "\n    ")
