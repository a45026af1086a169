"""A plugin that traces and measures tasks with OpenTelemetry, by its conventions for messaging with SQS.

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.opentelemetry"]

A call creates a span `create`, whose context travels in the message attribute `traceparent`. A run creates a span
`process`, which continues this trace, and links to it. The span lasts from the claim until the outcome is recorded,
so that database queries, retries and calls of the task belong to it.

The plugin uses OpenTelemetry's API. The project sets up the SDK, its exporters and its sampler.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured

from lambda_tasks import __version__, maintenance
from lambda_tasks.contrib.flushing import seconds_to_flush
from lambda_tasks.contrib.measuring import longer_than_usual
from lambda_tasks.exceptions import RetryLater
from lambda_tasks.foundation.forks import ForkSafeLock
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.outcomes import Failed, Ignored, Outcome, Retry, error_of
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.recording.storable import storable

try:
    from opentelemetry import context as contexts
    from opentelemetry import metrics, trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ImproperlyConfigured(
        "The plugin lambda_tasks.contrib.opentelemetry needs the package opentelemetry-api. Install it with: pip "
        "install 'django-lambda-tasks[opentelemetry]'."
    ) from error

logger: Final[logging.Logger] = get_logger("lambda_tasks.contrib.opentelemetry")

#: The name of the library in spans and metrics.
SCOPE: Final = "lambda_tasks"
#: The message attribute that carries the context of the span `create`.
TRACEPARENT: Final = "traceparent"

_tracer: Final = trace.get_tracer(SCOPE, __version__)
_meter: Final = metrics.get_meter(SCOPE, __version__)
# Only the trace travels: baggage may contain what no queue should store.
_propagator: Final = TraceContextTextMapPropagator()

#: The boundaries of the conventions, and some more, since a task may run for 15 minutes, or longer by a setting.
_BOUNDARIES: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 300, 900),
    *longer_than_usual(),
)

_sent: Final = _meter.create_counter(
    "messaging.client.sent.messages", "{message}", "Messages that were given to the queue."
)
_consumed: Final = _meter.create_counter(
    "messaging.client.consumed.messages", "{message}", "Messages whose run was started."
)
_duration: Final = _meter.create_histogram(
    "messaging.process.duration", "s", "Duration of a run.", explicit_bucket_boundaries_advisory=_BOUNDARIES
)
_waiting: Final = _meter.create_histogram(
    "lambda_tasks.waiting.duration",
    "s",
    "Time from the moment at which SQS accepted a message until its run started, with its delay.",
    explicit_bucket_boundaries_advisory=_BOUNDARIES,
)
_outcomes: Final = _meter.create_counter("lambda_tasks.outcomes", "{run}", "Runs by their outcome.")
_takeovers: Final = _meter.create_counter(
    "lambda_tasks.takeovers", "{run}", "Runs that continue an invocation whose worker died."
)
_skipped: Final = _meter.create_counter("lambda_tasks.skipped", "{message}", "Deliveries that did not run.")
_outbox_messages: Final = _meter.create_gauge("lambda_tasks.outbox.messages", "{message}", "Messages in the outbox.")
_outbox_age: Final = _meter.create_gauge("lambda_tasks.outbox.age", "s", "How long the oldest due message is due.")

_Attributes = dict[str, str | int | float]


@dataclass(slots=True)
class _Processing:
    """The span of a run that has not ended yet."""

    message_id: str
    span: trace.Span
    token: Token[contexts.Context]


#: Each run has its own copy of the context, so this is the span of the current one.
_processing: Final[ContextVar[_Processing | None]] = ContextVar("lambda_tasks_processing", default=None)


@hookimpl(trylast=True)  # another plugin may bring a context of its own
def lambda_task_sending(job: Job) -> None:
    if TRACEPARENT in job.attributes:
        return
    try:
        _create(job)
    except Exception:  # a broken SDK must not keep a task from being sent
        logger.warning("OpenTelemetry raised an exception. %s is sent without a trace.", job.task_name, exc_info=True)


@hookimpl
def lambda_task_sent(job: Job) -> None:
    _sent.add(1, _measured("send", job.queue, job.task_name))


@hookimpl
def lambda_task_unsent(task_name: str, queue: str, error: Exception) -> None:
    _sent.add(1, _measured("send", queue, task_name) | {"error.type": _type_of(error)})


@hookimpl
def lambda_task_skipped(message_id: str, reason: str) -> None:
    _skipped.add(1, {"lambda_tasks.reason": reason})
    if (current := _current(message_id)) is not None:  # a run that waits for its lock
        _end(current, reason)


@hookimpl
def lambda_task_started(run: Run) -> None:
    _leave_processing_to_us(trace.get_current_span())
    span = _start(run)
    _processing.set(_Processing(run.message_id, span, contexts.attach(trace.set_span_in_context(span))))
    attributes = _measured("process", run.queue, run.task_name)
    _consumed.add(1, attributes)
    if run.sent_at is not None:
        _waiting.record(max(run.received - run.sent_at, 0.0), attributes)
    if run.takeovers:
        _takeovers.add(1, attributes)


@hookimpl
def lambda_task_finished(run: Run, outcome: Outcome) -> None:
    current = _current(run.message_id)
    # A run that was not started in this process, because it is lost or its workers died too often, has a span too.
    span = _start(run) if current is None else current.span
    name, failure = _name_of(outcome), error_of(outcome)
    if span.is_recording():
        _describe_outcome(span, run, outcome)
    if failure is not None:
        span.set_status(trace.Status(trace.StatusCode.ERROR, _type_of(failure)))
        span.set_attribute("error.type", _type_of(failure))
    attributes = _measured("process", run.queue, run.task_name) | {"lambda_tasks.outcome": name}
    if failure is not None:
        attributes["error.type"] = _type_of(failure)
    _outcomes.add(1, attributes)
    if current is None:
        span.set_attribute("lambda_tasks.outcome", name)
        span.end()
        return
    _duration.record(run.duration, attributes)
    # What follows the run is sent after this hook, and belongs to its span.
    _end(current, name, detach=not run.is_followed or isinstance(outcome, Retry))


@hookimpl
def lambda_task_returned(run: Run, error: Exception) -> None:
    if (current := _current(run.message_id)) is not None:
        current.span.add_event("lambda_tasks.returned", {"lambda_tasks.reason": storable(run.scrubbed(str(error)))})
        _end(current, "returned")


@hookimpl
def lambda_task_batch_finished(event: Mapping[str, Any], deadline: float | None) -> None:
    try:
        if maintenance.wanted(event):
            _measure_outboxes()
    finally:
        _flush(seconds_to_flush(deadline))


def _create(job: Job) -> None:
    attributes = _described("create", job.queue, job.task_name, job.message_id, job.root_id, job.message.n_retries)
    span = _tracer.start_span(f"create {job.queue}", kind=trace.SpanKind.PRODUCER, attributes=attributes)
    _propagator.inject(job.attributes, context=trace.set_span_in_context(span))
    span.end()


def _described(
    operation: str, queue: str, task_name: str, message_id: str, root_id: str, n_retries: int
) -> _Attributes:
    return {
        **_measured(operation, queue, task_name),
        "messaging.operation.type": operation,
        "messaging.message.id": message_id,
        "messaging.message.conversation_id": root_id,
        "lambda_tasks.attempt": n_retries + 1,
    }


def _measured(operation: str, queue: str, task_name: str) -> _Attributes:
    """Return the attributes that have few values, so that metrics can have them."""
    return {
        "messaging.system": "aws_sqs",
        "messaging.operation.name": operation,
        "messaging.destination.name": queue,
        "lambda_tasks.task": task_name,
    }


def _start(run: Run) -> trace.Span:
    """Start the span of a run, in the trace of its message, with links to where it comes from and to what runs now."""
    created = _propagator.extract(run.attributes, context=contexts.get_current())
    origin = trace.get_current_span(_propagator.extract(run.attributes, context=contexts.Context()))
    known = [origin.get_span_context(), trace.get_current_span().get_span_context()]
    attributes = _described("process", run.queue, run.task_name, run.message_id, run.root_id, run.n_retries)
    if run.takeovers:
        attributes["lambda_tasks.takeovers"] = run.takeovers
    if run.request_id is not None:
        attributes["faas.invocation_id"] = run.request_id
    return _tracer.start_span(
        f"process {run.queue}",
        context=created,
        kind=trace.SpanKind.CONSUMER,
        attributes=attributes,
        links=[trace.Link(each) for each in known if each.is_valid],
    )


def _leave_processing_to_us(span: trace.Span) -> None:
    """Turn the span `process` of a whole batch, which OpenTelemetry's instrumentation of Lambda makes, into `receive`.

    By the conventions, a batch is received, and each message of it is processed.
    """
    attributes = getattr(span, "attributes", None) or {}  # of the SDK's spans
    scope = getattr(getattr(span, "instrumentation_scope", None), "name", SCOPE)
    if scope == SCOPE or attributes.get("messaging.operation.type") != "process":
        return
    span.update_name(f"receive {attributes.get('messaging.destination.name', '')}".rstrip())
    span.set_attribute("messaging.operation.type", "receive")
    span.set_attribute("messaging.operation.name", "receive")


def _describe_outcome(span: trace.Span, run: Run, outcome: Outcome) -> None:
    match outcome:
        case Failed() if (error := error_of(outcome)) is not None:
            details = _exception(run, error) | {"exception.stacktrace": run.traceback_text(error)}
            span.add_event("exception", details)
        case Retry(error, delay):
            span.add_event("lambda_tasks.retry", _exception(run, error) | {"lambda_tasks.delay": delay})
        case Ignored(error):
            span.add_event("lambda_tasks.ignored", _exception(run, error))


def _exception(run: Run, error: BaseException) -> _Attributes:
    try:
        message = error.reason if isinstance(error, RetryLater) else str(error)
    except Exception:  # from the error's own __str__()
        message = ""
    # An exporter refuses the whole batch if it cannot encode a lone surrogate.
    return {"exception.type": _type_of(error), "exception.message": storable(run.scrubbed(message or ""))}


def _name_of(outcome: Outcome) -> str:
    if isinstance(outcome, Failed) and error_of(outcome) is None:
        return "cancelled"
    return type(outcome).__name__.lower()


def _type_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _current(message_id: str) -> _Processing | None:
    current = _processing.get()
    return current if current is not None and current.message_id == message_id else None


def _end(current: _Processing, outcome: str, *, detach: bool = True) -> None:
    current.span.set_attribute("lambda_tasks.outcome", outcome)
    current.span.end()
    _processing.set(None)
    if detach:
        contexts.detach(current.token)


def _measure_outboxes() -> None:
    # Imported here, because only the maintenance event needs it.
    from lambda_tasks.operations.statistics import outboxes, window

    if maintenance.outbox() is None:
        return
    of = window()
    for outbox in outboxes(of):
        database = {"lambda_tasks.database": outbox.database}
        _outbox_messages.set(outbox.waiting, {**database, "lambda_tasks.state": "waiting"})
        _outbox_messages.set(outbox.dead, {**database, "lambda_tasks.state": "dead"})
        age = 0.0 if outbox.due_since is None else (of.now - outbox.due_since).total_seconds()
        _outbox_age.set(age, database)


_flushing: Final = ForkSafeLock()
_flusher: threading.Thread | None = None


def _flush(seconds: float) -> None:
    """Export what was collected, and wait at most `seconds` for it. The rest continues with the next invocation.

    The SDK's batch processor ignores the timeout of `force_flush()`, so a thread is what bounds the wait.
    """
    global _flusher
    providers: list[Any] = [trace.get_tracer_provider(), metrics.get_meter_provider()]
    flushes = [provider.force_flush for provider in providers if hasattr(provider, "force_flush")]
    if not flushes or seconds <= 0:
        return
    with _flushing:
        if _flusher is None or not _flusher.is_alive():
            _flusher = threading.Thread(
                target=_export, args=(flushes, seconds), name="lambda_tasks-opentelemetry", daemon=True
            )
            _flusher.start()
    _flusher.join(seconds)
    if _flusher.is_alive():
        logger.warning(
            "OpenTelemetry did not export its data in %.1f s. The export goes on with the next batch.", seconds
        )


def _export(flushes: list[Any], seconds: float) -> None:
    for flush in flushes:
        try:
            flush(int(seconds * 1000))
        except Exception:
            logger.warning("OpenTelemetry could not export its data.", exc_info=True)
