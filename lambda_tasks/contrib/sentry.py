"""A plugin that reports failed tasks, traces and periodic tasks to Sentry.

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.sentry"]

A failure is one event, with its task, queue and attempt as tags. Retries and ignored errors are not reported. A call
is a span `queue.publish`, and a run a transaction `queue.process`, in the trace of its call. Runs by a schedule check
in to a monitor of Sentry. The project calls `sentry_sdk.init()`; without it, the plugin does nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from lambda_tasks.contrib.flushing import seconds_to_flush
from lambda_tasks.definition.schedules import Cron, Every, Schedule
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.logging import FAILED_FIELDS
from lambda_tasks.outcomes import Failed, Outcome, Retry, error_of
from lambda_tasks.wire import ids

try:
    import sentry_sdk
    import sentry_sdk.crons
    from sentry_sdk import scope as sentry_scope
    from sentry_sdk.utils import capture_internal_exceptions, event_from_exception
except ImportError as error:
    raise ImproperlyConfigured(
        "The plugin lambda_tasks.contrib.sentry needs the package sentry-sdk. Install it with: pip install "
        "'django-lambda-tasks[sentry]'."
    ) from error

#: The message attributes that carry the trace of a call.
TRACE_ATTRIBUTES: Final = ("sentry-trace", "baggage")
#: Where the library's spans come from, as Sentry shows it.
ORIGIN: Final = "auto.queue.lambda_tasks"
#: The longest slug of a monitor that Sentry accepts.
MAX_SLUG: Final = 50
#: Minutes by which a check-in may be late: processes that start periodic tasks pause in between.
MARGIN: Final = 10

_ODD: Final = re.compile("[^a-z0-9_-]+")
_DIGITS: Final = 6


@dataclass(slots=True)
class _Processing:
    """The scope and the transaction of a run that has not ended yet."""

    message_id: str
    scopes: ExitStack
    transaction: Any


#: Each run has its own copy of the context, so this is the scope of the current one.
_processing: Final[ContextVar[_Processing | None]] = ContextVar("lambda_tasks_sentry", default=None)


def _drop_logged_failure(event: Any, hint: dict[str, Any]) -> Any:
    """Drop the event that Sentry makes of the library's log line about a failure, which the plugin reports itself."""
    record = hint.get("log_record")
    is_line = record is not None and record.name == "lambda_tasks.executor"
    return None if is_line and getattr(record, "outcome", None) == FAILED_FIELDS["outcome"] else event


def _install() -> None:
    # First, since Sentry's DedupeIntegration would note the error of the line, and then drop the report of it.
    sentry_scope.global_event_processors.insert(0, _drop_logged_failure)


_install()


@hookimpl(trylast=True)  # another plugin may bring a trace of its own
def lambda_task_sending(job: Job) -> None:
    if not sentry_sdk.get_client().is_active() or TRACE_ATTRIBUTES[0] in job.attributes:
        return
    with capture_internal_exceptions():  # a broken client must not keep a task from being sent
        _publish(job)


@hookimpl
def lambda_task_started(run: Run) -> None:
    if sentry_sdk.get_client().is_active():
        _enter(run)
        _check_in(run, "in_progress")


@hookimpl
def lambda_task_finished(run: Run, outcome: Outcome) -> None:
    if not sentry_sdk.get_client().is_active():
        return
    current = _current(run.message_id)
    if current is None:  # it is lost, or its workers died too often
        with ExitStack() as scopes:
            _set_scope(run, scopes)
            _report(run, outcome)
        return
    _report(run, outcome)
    _leave(current, "internal_error" if error_of(outcome) is not None else "ok")


@hookimpl
def lambda_task_returned(run: Run) -> None:
    if (current := _current(run.message_id)) is not None:
        _leave(current, "aborted")


@hookimpl
def lambda_task_skipped(message_id: str) -> None:
    if (current := _current(message_id)) is not None:  # it waits for its lock
        _leave(current, "aborted")


@hookimpl
def lambda_task_batch_finished(deadline: float | None) -> None:
    client = sentry_sdk.get_client()
    seconds = seconds_to_flush(deadline)
    if client.is_active() and seconds > 0:
        client.flush(timeout=seconds)


def _has_transactions() -> bool:
    """Return whether Sentry traces with transactions. In its streaming mode, the plugin creates no spans."""
    options = sentry_sdk.get_client().options
    experiments = options.get("_experiments") or {}
    return "stream" not in (options.get("trace_lifecycle"), experiments.get("trace_lifecycle"))


def _publish(job: Job) -> None:
    if not _has_transactions():
        _add_trace(job, None)
        return
    with sentry_sdk.start_span(op="queue.publish", name=job.task_name, origin=ORIGIN) as span:
        _describe(span, job.message_id, job.queue, job.message.n_retries)
        _add_trace(job, span)


def _add_trace(job: Job, span: Any) -> None:
    for name, value in sentry_sdk.get_isolation_scope().iter_trace_propagation_headers(span=span):
        if value and name in TRACE_ATTRIBUTES:
            job.attributes[name] = value


def _enter(run: Run) -> None:
    scopes = ExitStack()
    _set_scope(run, scopes)
    transaction: Any = None
    if _has_transactions():
        headers = {name: run.attributes[name] for name in TRACE_ATTRIBUTES if name in run.attributes}
        transaction = sentry_sdk.continue_trace(
            headers, op="queue.process", name=run.task_name, source="task", origin=ORIGIN
        )
        transaction = sentry_sdk.start_transaction(
            transaction, custom_sampling_context={"lambda_task": {"task": run.task_name, "queue": run.queue}}
        )
        scopes.enter_context(transaction)
        _describe(transaction, run.message_id, run.queue, run.n_retries)
        if run.sent_at is not None:
            latency = max(run.received - run.sent_at, 0.0) * 1000
            transaction.set_data("messaging.message.receive.latency", latency)
    _processing.set(_Processing(run.message_id, scopes, transaction))


def _set_scope(run: Run, scopes: ExitStack) -> None:
    scope = scopes.enter_context(sentry_sdk.isolation_scope())
    scope.clear_breadcrumbs()
    scope.set_transaction_name(run.task_name, source="task")
    scope.set_tag("task", run.task_name)
    scope.set_tag("queue", run.queue)
    scope.set_tag("attempt", str(run.n_retries + 1))
    scope.set_tag("message_id", run.message_id)
    details: dict[str, Any] = {"message_id": run.message_id, "root_id": run.root_id, "takeovers": run.takeovers}
    if sentry_scope.should_send_default_pii():
        details["arguments"] = run.recorded_kwargs
    scope.set_context("lambda_task", details)
    if run.task.sensitive:
        scope.add_event_processor(lambda event, _: _scrubbed(event, run))


def _describe(span: Any, message_id: str, queue: str, n_retries: int) -> None:
    span.set_data("messaging.system", "aws_sqs")
    span.set_data("messaging.message.id", message_id)
    span.set_data("messaging.destination.name", queue)
    span.set_data("messaging.message.retry.count", n_retries)


def _report(run: Run, outcome: Outcome) -> None:
    error = error_of(outcome)
    if error is not None:
        event, hint = event_from_exception(
            (type(error), error, error.__traceback__),
            client_options=sentry_sdk.get_client().options,
            mechanism={"type": "lambda_tasks", "handled": False},
        )
        sentry_sdk.capture_event(event, hint=hint)
    if not isinstance(outcome, Retry):
        _check_in(run, "error" if isinstance(outcome, Failed) else "ok")


def _current(message_id: str) -> _Processing | None:
    current = _processing.get()
    return current if current is not None and current.message_id == message_id else None


def _leave(current: _Processing, status: str) -> None:
    _processing.set(None)
    if current.transaction is not None:
        current.transaction.set_status(status)
    current.scopes.close()


def _scrubbed(event: Any, run: Run) -> Any:
    """Mask sensitive arguments in an event, and remove the local variables of its frames."""
    for frames in _frames(event):
        for frame in frames:
            frame.pop("vars", None)
    return _masked(event, run)


def _frames(event: Any) -> Iterator[list[Any]]:
    for part in ("exception", "threads"):
        for value in (event.get(part) or {}).get("values") or ():
            yield (value.get("stacktrace") or {}).get("frames") or []


def _masked(value: Any, run: Run) -> Any:
    if isinstance(value, str):
        return run.scrubbed(value)
    if isinstance(value, dict):
        return {key: _masked(each, run) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each, run) for each in value]
    return value


def _check_in(run: Run, status: str) -> None:
    """Tell Sentry's monitor of the schedule how far its run is. All attempts of a chain are one check-in."""
    if run.scheduled_for is None or (status == "in_progress" and run.n_retries):
        return
    schedules = run.task.schedule
    moment = int(run.scheduled_for)
    for schedule in schedules:
        # A run that an operator has started in addition has another id, and is not what the monitor expects.
        if ids.tick_id(run.task.name, schedule.label, moment) == run.root_id:
            config = _config_of(schedule)
            if config is not None:
                slug = monitor_slug(run.task.name, schedule, alone=len(schedules) == 1)
                check_in_id = run.root_id.replace("-", "")
                sentry_sdk.crons.capture_checkin(slug, check_in_id, status, monitor_config=config)
            return


def monitor_slug(task_name: str, schedule: Schedule, *, alone: bool) -> str:
    """Return the slug of the monitor of a schedule: the name of its task, and of the schedule if it has one.

    `alone` says that the task has no other schedule. A name that is too long is shortened, with a hash of all of it.
    """
    label = schedule.name or ("" if alone else schedule.label)
    text = f"{task_name}-{label}" if label else task_name
    slug = _ODD.sub("-", text.lower()).strip("-")
    if len(slug) <= MAX_SLUG and (schedule.name or alone):
        return slug
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]  # different labels may lead to the same characters
    return f"{slug[-(MAX_SLUG - _DIGITS - 1) :].lstrip('-')}-{digest}"


def _config_of(schedule: Schedule) -> Any:
    """Return the configuration of the monitor of `schedule`; None for one that Sentry cannot represent."""
    match schedule:
        case Cron():
            when: dict[str, Any] = {"type": "crontab", "value": schedule.expression}
            return {"schedule": when, "timezone": schedule.timezone or settings.TIME_ZONE, "checkin_margin": MARGIN}
        case Every():
            for unit, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
                if schedule.interval % seconds == 0:
                    when = {"type": "interval", "value": schedule.interval // seconds, "unit": unit}
                    return {"schedule": when, "checkin_margin": MARGIN}
    return None
