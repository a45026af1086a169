"""The fields, the location and the text of log lines, in the handlers of Lambda's own runtime and in plain text."""

from __future__ import annotations

import io
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from awslambdaric import bootstrap
from django.conf import settings as django_settings

import lambda_tasks
from lambda_tasks import handler as handler_module
from lambda_tasks import plugins
from lambda_tasks.apps import LambdaTasksConfig, enable_loggers
from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.logging import FIELDS, InvocationFilter, add_fields_on_lambda, run_logger, task_logger, trace_id
from lambda_tasks.recording.lines import Lines, get_logger
from lambda_tasks.wire.invocation import Invocation

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT: Final = f"00-{TRACE}-00f067aa0ba902b7-01"
X_RAY: Final = "1-5759e988-bd862e3fe1be46a994272793"
REQUEST_ID: Final = "8f507cfc-xmpl-4697-b07a-ac58fc914c95"
FORGED: Final = "lost\n[ERROR] the database is gone\r\x1b[2K"

shop_logger = logging.getLogger("shop.orders")


class Context:
    aws_request_id = REQUEST_ID


class Carrier(Exception):
    pass


@lambda_task
def pack() -> None:
    shop_logger.warning("packing")


@lambda_task(retry_on=[Carrier], max_retries=0)
def deliver() -> None:
    raise Carrier(FORGED)


@lambda_task(sensitive=["card"])
def charge(*, card: str) -> None:
    raise ValueError(f"{card} is refused\n[ERROR] by the bank")


class Sink:
    """What awslambdaric writes to Lambda's pipe, one line for each record."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str, frame_type: bytes | None = None) -> None:
        self.lines.append(line)

    @property
    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Sink]]:
    """Return a function that sets up logging as the runtime does, in the format JSON or TEXT."""
    root = logging.getLogger()
    before, converter = list(root.handlers), logging.Formatter.converter
    monkeypatch.setattr(bootstrap, "_GLOBAL_AWS_REQUEST_ID", REQUEST_ID)
    monkeypatch.setattr(logging.Formatter, "converter", converter)

    def set_up(log_format: str) -> Sink:
        sink = Sink()
        bootstrap._setup_logging(bootstrap.LogFormat.from_str(log_format), None, sink)
        add_fields_on_lambda()
        return sink

    yield set_up
    for added in [each for each in root.handlers if each not in before]:
        root.removeHandler(added)


@pytest.fixture
def plain() -> Iterator[io.StringIO]:
    """Collect what a handler for plain text writes of all loggers."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


def received(task: Any, *, attributes: dict[str, str] | None = None, n_retries: int = 0, **kwargs: Any) -> Job:
    """Have the handler run a message of the task, and return the job that it was made of."""
    job = Job.of_call(Invocation(task.name, kwargs, n_retries), queue="other", delay=0, task=task, database="default")
    job.attributes.update(attributes or {})
    handler({"Records": [event_record(job)]}, Context())
    return job


@pytest.mark.django_db(transaction=True)
class TestFields:
    def test_every_logger_has_them_in_json_mode(self, runtime: Callable[[str], Sink]) -> None:
        sink = runtime("JSON")
        job = received(pack, attributes={"traceparent": TRACEPARENT})
        [line] = [each for each in sink.read if each["logger"] == "shop.orders"]
        assert {name: line[name] for name in (*FIELDS, "requestId") if name in line} == {
            "message_id": job.message_id,
            "task_name": pack.name,
            "queue": "other",
            "attempt": 1,
            "root_id": job.root_id,
            "requestId": REQUEST_ID,  # the runtime's name of aws_request_id
            "trace_id": TRACE,
        }

    def test_lines_outside_of_invocations_lack_them(self, runtime: Callable[[str], Sink]) -> None:
        sink = runtime("JSON")
        shop_logger.warning("the container starts")
        assert not {*FIELDS} & {*sink.read[0]}

    def test_lines_of_the_handler_have_the_id(self, runtime: Callable[[str], Sink]) -> None:
        sink = runtime("JSON")
        job = Job.of_call(Invocation("shop.nothing.here"), queue="other", delay=0, task=None, database="default")
        assert handler({"Records": [event_record(job)]}, Context())["batchItemFailures"]
        [line] = [each for each in sink.read if "stays on the queue" in each["message"]]
        assert (line["message_id"], line["queue"]) == (job.message_id, "other")
        assert (line["task_name"], line["attempt"]) == ("shop.nothing.here", 1)

    def test_line_about_a_malformed_message_has_the_id(self, runtime: Callable[[str], Sink]) -> None:
        sink = runtime("JSON")
        job = Job.of_call(Invocation(pack.name), queue="other", delay=0, task=pack, database="default")
        handler({"Records": [event_record(job) | {"body": "{"}]}, Context())
        [line] = [each for each in sink.read if "stays on the queue" in each["message"]]
        assert (line["message_id"], "task_name" in line) == (job.message_id, False)

    def test_boot_adds_them(self, runtime: Callable[[str], Sink], monkeypatch: pytest.MonkeyPatch) -> None:
        runtime("JSON")
        [added] = [each for each in logging.getLogger().handlers if type(each).__name__.startswith("LambdaLogger")]
        added.filters = []
        monkeypatch.setattr(handler_module, "_booted", False)
        handler_module.boot()
        assert [type(each) for each in added.filters] == [InvocationFilter]

    def test_runtime_gets_one_filter(self, runtime: Callable[[str], Sink]) -> None:
        runtime("JSON")
        add_fields_on_lambda()
        [added] = [each for each in logging.getLogger().handlers if type(each).__name__.startswith("LambdaLogger")]
        assert len([each for each in added.filters if isinstance(each, InvocationFilter)]) == 1

    def test_text_mode_works_with_them(self, runtime: Callable[[str], Sink]) -> None:
        sink = runtime("TEXT")
        received(pack)
        assert [line for line in sink.lines if f"\t{REQUEST_ID}\tpacking\n" in line]


class TestFilter:
    def filtered(self, **options: Any) -> logging.LogRecord:
        record = logging.makeLogRecord({"queue": "own"})
        with task_logger.bound("abc-123", lambda: {"queue": "other", "attempt": 2}):
            assert InvocationFilter(**options).filter(record)
        return record

    def test_fields_are_added(self) -> None:
        record = vars(self.filtered())
        assert (record["message_id"], record["attempt"], record["trace_id"]) == ("abc-123", 2, None)

    def test_field_of_the_call_is_kept(self) -> None:
        assert vars(self.filtered())["queue"] == "own"

    def test_missing_fields_have_the_given_value(self) -> None:
        assert vars(self.filtered(missing="-"))["trace_id"] == "-"


class TestTraceId:
    @pytest.fixture(autouse=True)
    def x_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root={X_RAY};Parent=53995c3f42cd8ad8;Sampled=1")

    def test_x_ray_has_the_trace(self) -> None:
        assert trace_id({}) == X_RAY

    def test_trace_of_the_message_comes_first(self) -> None:
        assert trace_id({"traceparent": TRACEPARENT}) == TRACE

    @pytest.mark.parametrize("value", ["", "00-x-y-01", "Root=1-5759e988\n"])
    def test_malformed_trace_is_ignored(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("_X_AMZN_TRACE_ID", value)
        assert trace_id({"traceparent": value}) is None


@pytest.mark.django_db(transaction=True)
class TestExhaustedRetries:
    def test_json_mode_shows_the_cause_and_its_place(self, runtime: Callable[[str], Sink]) -> None:
        sink = runtime("JSON")
        received(deliver)
        [line] = [each for each in sink.read if each["level"] == "ERROR"]
        assert line["errorType"] == "MaxRetriesExceededError"
        assert "in deliver" in line["cause"]
        assert "Carrier: lost" in line["cause"]


class TestLocation:
    """A line has the location of the code that logs it, and not that of the adapter around the logger."""

    @pytest.mark.parametrize("method", ["info", "warning", "exception", "log"])
    def test_run_logger_has_that_of_its_caller(self, caplog: pytest.LogCaptureFixture, method: str) -> None:
        caplog.set_level(logging.DEBUG, "lambda_tasks")
        arguments = (logging.INFO, "here") if method == "log" else ("here",)
        getattr(run_logger, method)(*arguments)
        assert caplog.records[0].funcName == "test_run_logger_has_that_of_its_caller"

    def test_unwritable_line_has_that_of_its_caller(self) -> None:
        seen: list[logging.LogRecord] = []

        class Failing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(record)
                if len(seen) == 1:
                    raise UnicodeError

        failing = Failing()
        run_logger.logger.addHandler(failing)
        run_logger.warning("here")
        run_logger.logger.removeHandler(failing)
        assert {record.funcName for record in seen} == {"test_unwritable_line_has_that_of_its_caller"}

    @pytest.mark.django_db(transaction=True)
    def test_failed_task_has_that_of_the_outcome(self, caplog: pytest.LogCaptureFixture) -> None:
        received(deliver)
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert (record.filename, record.funcName) == ("pipeline.py", "_log_outcome")


class TestForgedLines:
    def test_arguments_of_a_line_are_escaped(self, plain: io.StringIO) -> None:
        get_logger("lambda_tasks.tested").error("%s [%s] %d %r", FORGED, Carrier(FORGED), 7, "mail")
        assert len(plain.getvalue().splitlines()) == 1
        assert r"\n[ERROR] the database is gone\r\x1b[2K" in plain.getvalue()

    def test_lines_of_the_library_are_kept(self, plain: io.StringIO) -> None:
        get_logger("lambda_tasks.tested").error("%s", Lines("one\ntwo"))
        assert plain.getvalue() == "one\ntwo\n"

    def test_error_in_a_traceback_is_indented(self, plain: io.StringIO) -> None:
        try:
            try:
                raise Carrier(FORGED)
            except Carrier:
                raise ValueError("x\ny") from None
        except ValueError as error:
            error.__cause__ = Carrier(FORGED)
            get_logger("lambda_tasks.tested").error("failed", exc_info=error)
        lines = plain.getvalue().splitlines()
        assert not [line for line in lines if line.startswith(("[ERROR]", "y"))]
        assert r"    [ERROR] the database is gone\r\x1b[2K" in lines
        assert "    y" in lines

    def test_other_tracebacks_are_those_of_python(self, plain: io.StringIO) -> None:
        with pytest.raises(Carrier) as raised:
            raise Carrier("lost")
        get_logger("lambda_tasks.tested").error("failed", exc_info=raised.value)
        assert plain.getvalue() == f"failed\n{''.join(traceback.format_exception(raised.value))}"

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize(("task", "arguments"), [(deliver, {}), (charge, {"card": "4242-4242"})])
    def test_failed_task_cannot_forge_a_line(self, plain: io.StringIO, task: Any, arguments: dict[str, str]) -> None:
        received(task, **arguments)
        lines = plain.getvalue().splitlines()
        assert "    [ERROR]" in plain.getvalue()
        assert not [line for line in lines if line.startswith("[ERROR]")]

    def test_plugin_cannot_forge_a_line(self, plain: io.StringIO) -> None:
        plugins.logger.error("Plugin %s failed", "x\ny")
        assert plain.getvalue() == "Plugin x\\ny failed\n"


class TestDisabledLoggers:
    @pytest.fixture
    def silenced(self) -> Iterator[logging.Logger]:
        logger = get_logger("lambda_tasks.tested")
        logger.disabled = True
        yield logger
        logger.disabled = False

    def test_logger_that_a_project_disables_stays_disabled(self, silenced: logging.Logger) -> None:
        enable_loggers()
        assert silenced.disabled

    def test_logger_that_logging_disables_is_enabled(
        self, silenced: logging.Logger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also if LOGGING has disabled it before the library was imported."""
        # Not with override_settings(): since Django 6.1, this configures logging.
        monkeypatch.setattr(django_settings, "LOGGING", {"version": 1})
        LambdaTasksConfig("lambda_tasks", lambda_tasks)
        assert not silenced.disabled

    @pytest.mark.parametrize(
        ("name", "value"),
        [("LOGGING", {"version": 1, "disable_existing_loggers": False}), ("LOGGING", {}), ("LOGGING_CONFIG", None)],
    )
    def test_logger_stays_disabled_if_logging_disables_none(
        self, silenced: logging.Logger, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
    ) -> None:
        monkeypatch.setattr(django_settings, "LOGGING", {"version": 1})
        monkeypatch.setattr(django_settings, name, value)
        LambdaTasksConfig("lambda_tasks", lambda_tasks)
        assert silenced.disabled
