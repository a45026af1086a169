"""Spans, metrics and flushing of the plugin for OpenTelemetry, with the real SDK and its instrumentations."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Final

import pytest
from django.test import override_settings
from opentelemetry import context as contexts
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.aws_lambda import AwsLambdaInstrumentor
from opentelemetry.instrumentation.botocore import BotocoreInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from lambda_tasks import handler as handler_module
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.contrib import flushing
from lambda_tasks.contrib import opentelemetry as plugin
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import RetryLater
from lambda_tasks.execution import pipeline
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.outcomes import Failed
from tests.courier import COURIER, OUTBOX, note, outbox
from tests.flows.shop import decorated, queue, run_all, run_next, shop_on

pytestmark = pytest.mark.django_db(transaction=True)

PLUGIN: Final = "lambda_tasks.contrib.opentelemetry"
SECRET: Final = "4111-1111"

tracer: Final = trace.get_tracer("shop")


@lambda_task(ignore_errors=[KeyError], retry_on=[OSError], max_retries=1, retry_delay=7)
def act(*, error: str = "") -> str:
    if error:
        raise {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError}[error](error)
    with tracer.start_as_current_span("inside"):
        return "done"


@lambda_task(sensitive=["card"])
def charge(*, card: str) -> None:
    raise ValueError(f"{card} is refused")


class Mumbled(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@lambda_task
def mumble() -> None:
    raise Mumbled


@lambda_task
def ask_again() -> None:
    raise RetryLater(delay=5, reason="the bank is closed")


class FullQueue(MemoryBackend):
    """Accepts no job."""

    def send(self, jobs: Any) -> Any:
        raise ConnectionError


class OwnTrace:
    @hookimpl
    def lambda_task_sending(self, job: Any) -> None:
        job.attributes["traceparent"] = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture(scope="module")
def sdk() -> SimpleNamespace:
    """Set up the SDK once, as OpenTelemetry allows, with exporters in memory."""
    spans, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    return SimpleNamespace(spans=spans, reader=reader, provider=provider)


@pytest.fixture(autouse=True)
def exported(sdk: SimpleNamespace) -> Iterator[SimpleNamespace]:
    sdk.spans.clear()
    sdk.reader.get_metrics_data()
    with shop_on("default", "direct"), override_settings(LAMBDA_TASKS_PLUGINS=[PLUGIN]):
        yield sdk


def spans(exported: SimpleNamespace, name: str) -> list[ReadableSpan]:
    return [span for span in exported.spans.get_finished_spans() if span.name.startswith(name)]


def values(exported: SimpleNamespace, name: str) -> list[Any]:
    """Return the data points of a metric, or none."""
    data = exported.reader.get_metrics_data()
    found = data.resource_metrics if data else []
    every = [metric for resource in found for scope in resource.scope_metrics for metric in scope.metrics]
    return [point for metric in every if metric.name == name for point in metric.data.data_points]


def context_of(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


class TestSpans:
    def test_process_continues_and_links_the_call(self, exported: SimpleNamespace) -> None:
        with tracer.start_as_current_span("request"):
            handle = act.execute_on_commit()
        run_all()
        [create], [process], [request] = (spans(exported, name) for name in ("create", "process", "request"))
        assert (create.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
        assert create.parent.span_id == request.context.span_id
        assert process.parent.span_id == create.context.span_id
        assert [(link.context.trace_id, link.context.span_id) for link in process.links] == [context_of(create)]
        assert process.attributes == {
            "messaging.system": "aws_sqs",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "default",
            "messaging.message.id": handle.message_id,
            "messaging.message.conversation_id": handle.message_id,
            "lambda_tasks.task": act.name,
            "lambda_tasks.attempt": 1,
            "lambda_tasks.outcome": "succeeded",
        }
        assert spans(exported, "inside")[0].parent.span_id == process.context.span_id
        assert process.status.status_code is StatusCode.UNSET

    def test_message_has_one_more_attribute(self) -> None:
        act.execute_on_commit()
        assert list(queue()[0].attributes) == ["traceparent"]

    def test_context_of_the_caller_is_kept(self, exported: SimpleNamespace) -> None:
        with override_settings(LAMBDA_TASKS_PLUGINS=[PLUGIN, OwnTrace()]):
            act.execute_on_commit()
            run_all()
        assert spans(exported, "create") == []
        assert spans(exported, "process")[0].context.trace_id == int("a" * 32, 16)

    def test_broken_sdk_does_not_affect_the_call(
        self, exported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(plugin, "_tracer", None)
        act.execute_on_commit()
        [job] = queue()
        assert job.attributes == {}
        assert "is sent without a trace" in caplog.text

    def test_unprintable_error_ends_its_span(self, exported: SimpleNamespace) -> None:
        mumble.execute_on_commit()
        run_all()
        [process] = spans(exported, "process")
        assert process.status.status_code is StatusCode.ERROR
        assert process.events[0].attributes["exception.message"] == ""

    def test_failure_is_an_error_with_its_exception(self, exported: SimpleNamespace) -> None:
        act.execute_on_commit(error="ValueError")
        run_all()
        [process] = spans(exported, "process")
        assert (process.status.status_code, process.status.description) == (StatusCode.ERROR, "ValueError")
        assert process.attributes["error.type"] == "ValueError"
        [event] = process.events
        assert (event.name, event.attributes["exception.message"]) == ("exception", "ValueError")

    def test_ignored_error_is_an_event(self, exported: SimpleNamespace) -> None:
        act.execute_on_commit(error="KeyError")
        run_all()
        [process] = spans(exported, "process")
        assert process.status.status_code is StatusCode.UNSET
        assert "error.type" not in process.attributes
        assert [event.name for event in process.events] == ["lambda_tasks.ignored"]

    def test_retry_is_an_event_and_follows_its_attempt(self, exported: SimpleNamespace) -> None:
        act.execute_on_commit(error="OSError")
        run_all()
        first, last = spans(exported, "process")
        assert first.status.status_code is StatusCode.UNSET
        assert [event.name for event in first.events] == ["lambda_tasks.retry"]
        assert spans(exported, "create")[1].parent.span_id == first.context.span_id
        assert last.attributes["lambda_tasks.attempt"] == 2
        assert last.attributes["error.type"] == "lambda_tasks.exceptions.MaxRetriesExceededError"
        assert first.attributes["messaging.message.conversation_id"] == first.attributes["messaging.message.id"]
        assert last.attributes["messaging.message.conversation_id"] == first.attributes["messaging.message.id"]

    def test_requested_retry_shows_its_reason(self, exported: SimpleNamespace) -> None:
        ask_again.execute_on_commit()
        run_next()
        [event] = spans(exported, "process")[0].events
        assert event.attributes["exception.message"] == "the bank is closed"

    def test_follower_belongs_to_what_it_follows(self, exported: SimpleNamespace) -> None:
        decorated.execute_on_commit(name="a")
        run_all()
        assert spans(exported, "create")[1].parent.span_id == spans(exported, "process")[0].context.span_id
        assert not trace.get_current_span().get_span_context().is_valid  # the run's context ended with it

    def test_sensitive_arguments_are_masked(self, exported: SimpleNamespace) -> None:
        charge.execute_on_commit(card=SECRET)
        run_all()
        [process] = spans(exported, "process")
        assert "is refused" in str(process.events[0].attributes["exception.stacktrace"])
        assert SECRET not in process.to_json()

    def test_crash_that_never_starts_has_its_span(
        self, exported: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pipeline, "claim", lambda attempt: Failed(RuntimeError("crashed")))
        monkeypatch.setattr(pipeline, "settle", lambda attempt, outcome: outcome)
        act.execute_on_commit()
        run_all()
        assert spans(exported, "process")[0].status.status_code is StatusCode.ERROR

    def test_returned_run_ends_its_span(self, exported: SimpleNamespace) -> None:
        act.execute_on_commit(error="OSError")
        [job] = queue()
        queue().clear()
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.FullQueue"):
            response = handler({"Records": [event_record(job)]}, None)
        assert len(response["batchItemFailures"]) == 1
        [process] = spans(exported, "process")
        assert process.attributes["lambda_tasks.outcome"] == "returned"
        assert process.status.status_code is StatusCode.UNSET


class TestInstrumentations:
    @pytest.fixture
    def lambda_handler(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """Return the handler as OpenTelemetry's layer wraps it."""
        monkeypatch.setenv("_HANDLER", "lambda_tasks.handler.handler")
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "worker")
        AwsLambdaInstrumentor().instrument(skip_dep_check=True)
        context = SimpleNamespace(
            function_name="worker",
            aws_request_id="r-1",
            invoked_function_arn="arn:aws:lambda:eu-west-1:123456789012:function:worker",
        )
        yield lambda event: handler_module.handler(event, context)
        AwsLambdaInstrumentor().uninstrument()

    def test_lambda_span_of_a_batch_only_receives(self, exported: SimpleNamespace, lambda_handler: Any) -> None:
        for _ in range(2):
            act.execute_on_commit()
        records = [event_record(job) for job in queue()]
        queue().clear()
        lambda_handler({"Records": records})
        ours, [receive] = spans(exported, "process"), spans(exported, "receive")
        assert [span.instrumentation_scope.name for span in ours] == ["lambda_tasks"] * 2
        assert receive.attributes["messaging.operation.type"] == "receive"
        assert [span.attributes["faas.invocation_id"] for span in ours] == ["r-1"] * 2
        assert all(context_of(receive) in [(x.context.trace_id, x.context.span_id) for x in s.links] for s in ours)

    def test_botocore_doubles_nothing(self, exported: SimpleNamespace, sqs: Any) -> None:
        BotocoreInstrumentor().instrument(skip_dep_check=True)
        try:
            act.execute_on_commit()
        finally:
            BotocoreInstrumentor().uninstrument()
        [create], [request] = spans(exported, "create"), spans(exported, "SQS.SendMessage")
        assert request.kind is SpanKind.CLIENT
        [message] = sqs.client.receive_message(
            QueueUrl=sqs.queues["default"], MessageAttributeNames=["All"], WaitTimeSeconds=0
        )["Messages"]
        trace_names = [name for name in message["MessageAttributes"] if name.lower().startswith("trace")]
        assert trace_names == ["traceparent"]
        assert f"{create.context.span_id:016x}" in message["MessageAttributes"]["traceparent"]["StringValue"]


class TestMetrics:
    def test_run_is_measured(self, exported: SimpleNamespace) -> None:
        act.execute_on_commit()
        run_all()
        names = ("messaging.client.sent.messages", "messaging.client.consumed.messages", "lambda_tasks.outcomes")
        data = exported.reader.get_metrics_data().resource_metrics[0].scope_metrics
        by_name = {metric.name: metric.data.data_points for scope in data for metric in scope.metrics}
        mine = {
            name: [point for point in points if point.attributes.get("lambda_tasks.task") == act.name]
            for name, points in by_name.items()
        }
        assert all(mine[name] for name in names)
        assert mine["messaging.process.duration"][0].sum > 0
        assert mine["lambda_tasks.waiting.duration"][0].count >= 1

    def test_outbox_is_measured_by_the_maintenance(self, exported: SimpleNamespace) -> None:
        with override_settings(LAMBDA_TASKS_BACKEND={"BACKEND": OUTBOX, "OPTIONS": {"transport": COURIER}}):
            courier: Any = outbox().transport
            courier.refuses = {1}
            note.execute_on_commit(number=1)
            handler({"lambda_tasks": "maintenance"}, None)
        states = {p.attributes["lambda_tasks.state"]: p.value for p in values(exported, "lambda_tasks.outbox.messages")}
        assert states == {"waiting": 0, "dead": 1}


class Blocked(SpanExporter):
    """An exporter whose server does not answer until the test lets it, or a batch has waited for too long."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.exported: list[str] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.answers.wait(5)
        self.exported += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...


class TestFlush:
    def test_flush_leaves_time_for_the_response(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        exporter, provider = Blocked(), TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        monkeypatch.setattr(plugin.trace, "get_tracer_provider", lambda: provider)
        provider.get_tracer("shop").start_span("waits").end()
        plugin.lambda_task_batch_finished({"Records": []}, time.monotonic() + flushing.RESERVE + 0.01)
        assert exporter.exported == []  # it has returned, although the server does not answer
        assert "did not export" in caplog.text
        exporter.answers.set()
        plugin.lambda_task_batch_finished({"Records": []}, None)
        assert exporter.exported == ["waits"]
        provider.shutdown()

    @pytest.mark.parametrize(("left", "seconds"), [(-5.0, 0.0), (0.5, 0.0), (2.5, 1.5), (900.0, 3.0), (None, 3.0)])
    def test_time_to_flush(self, monkeypatch: pytest.MonkeyPatch, left: float | None, seconds: float) -> None:
        monkeypatch.setattr(flushing.time, "monotonic", lambda: 1000.0)
        assert flushing.seconds_to_flush(None if left is None else 1000.0 + left) == seconds

    def test_handler_passes_its_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[float | None] = []
        monkeypatch.setattr(plugin, "_flush", seen.append)
        monkeypatch.setattr(plugin, "seconds_to_flush", lambda deadline: deadline)
        context = SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)
        for event in ({"Records": []}, {"lambda_tasks": "ping"}, {"lambda_tasks": "maintenance"}):
            handler(event, context)
        assert [value is not None for value in seen] == [True] * 3


def test_context_does_not_outlive_a_run() -> None:
    before = contexts.get_current()
    with suppress(Exception):
        act.execute_on_commit()
        run_all()
    assert contexts.get_current() == before
