"""`task_logger`: every line names the invocation that wrote it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any
from uuid import uuid4

import pytest
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Run
from lambda_tasks.logging import current_message_id, run_logger, show_outcomes_locally, task_logger
from lambda_tasks.models import SQSLambdaTaskMessage, TaskRecord
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id

# A new process, as Lambda starts it: first the handler, then Django with the first event.
COLD_START = """
    import json, logging, logging.config, sys
    from lambda_tasks.handler import boot
    from lambda_tasks.logging import task_logger
    from django.conf import settings

    SILENCING = {"version": 1, "root": {"level": "INFO", "handlers": []}}

    class Configuring:
        @hookimpl
        def lambda_task_boot(self):
            if "in a plugin" in sys.argv:
                logging.config.dictConfig(SILENCING)

    settings.configure(
        INSTALLED_APPS=["lambda_tasks"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        LOGGING={} if "in a plugin" in sys.argv else {**SILENCING, "loggers": json.loads(sys.argv[1])},
        LAMBDA_TASKS_PLUGINS=[Configuring()],
    )
    logging.getLogger("shop.mail")  # a logger of the project alone
    before = [name for name in logging.root.manager.loggerDict if name.startswith("lambda_tasks")]
    if "without the handler" in sys.argv:
        import django
        django.setup()
    else:
        boot()
    loggers = {name: logging.getLogger(name) for name in [*before, "shop.mail"]}
    print(json.dumps({
        "disabled": [name for name, logger in loggers.items() if logger.disabled],
        "before": before,
        "level": loggers["lambda_tasks.task"].getEffectiveLevel(),
    }))
"""


def cold_start(*arguments: str, loggers: str = "{}") -> dict[str, Any]:
    program = "from lambda_tasks.hookspecs import hookimpl\n" + textwrap.dedent(COLD_START)
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, "-c", program, loggers, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.mark.once
class TestColdStart:
    @pytest.mark.parametrize("way", ["with the handler", "without the handler", "in a plugin"])
    def test_loggers_survive_dict_config(self, way: str) -> None:
        """Only the project's own logger is disabled, which is the default of LOGGING."""
        seen = cold_start(way)
        assert seen["disabled"] == ["shop.mail"]
        assert {"lambda_tasks.task", "lambda_tasks.executor", "lambda_tasks.handler"} <= set(seen["before"])

    def test_levels_of_logging_are_kept(self) -> None:
        seen = cold_start(loggers='{"lambda_tasks": {"level": "CRITICAL"}}')
        assert (seen["disabled"], seen["level"]) == (["shop.mail"], logging.CRITICAL)


@lambda_task
def greet(*, name: str) -> str | None:
    task_logger.info("greeting %s", name)
    return current_message_id()


@lambda_task
async def greet_slowly(*, name: str) -> str | None:
    await asyncio.sleep(0)
    task_logger.info("greeting %s", name)
    return current_message_id()


@lambda_task(retry_on=[OSError])
def fail() -> None:
    task_logger.warning("failing")
    raise OSError


@lambda_task(retry_on=[ConnectionError], max_retries=0)
def give_up() -> None:
    raise ConnectionError("the carrier is down")


@lambda_task(ignore_errors=[KeyError])
def ignore() -> None:
    raise KeyError("x")


@lambda_task
def nest(*, depth: int) -> None:
    task_logger.info("%d begins", depth)
    if depth:
        SQSLambdaTaskMessage(task_name=nest.name, kwargs={"depth": depth - 1}).execute_immediately()
    task_logger.info("%d ends", depth)


@lambda_task
def send_on(*, depth: int) -> None:
    task_logger.info("%d begins", depth)
    if depth:
        send_on.execute_on_commit(depth=depth - 1)
    task_logger.info("%d ends", depth)


def message(task: LambdaTaskWrapper[..., Any], **kwargs: Any) -> SQSLambdaTaskMessage:
    return SQSLambdaTaskMessage(task_name=task.name, kwargs=kwargs)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    """Collect the records that the tasks of a test log."""
    written: list[logging.LogRecord] = []
    keeper = logging.Handler()
    keeper.emit = written.append  # type: ignore[method-assign]
    with caplog.at_level(logging.DEBUG, "lambda_tasks.task"):
        logging.getLogger("lambda_tasks.task").addHandler(keeper)
        yield written
        logging.getLogger("lambda_tasks.task").removeHandler(keeper)


def texts(lines: list[logging.LogRecord]) -> list[str]:
    return [line.getMessage() for line in lines]


class TestPrefix:
    def test_prefix_exists_only_inside_an_invocation(self, lines: list[logging.LogRecord]) -> None:
        task_logger.info("before")
        with task_logger.bound("abc-123"):
            task_logger.info("sending email to user %s", 42)
        task_logger.info("after")
        assert texts(lines) == ["before", "[abc-123] sending email to user 42", "after"]

    def test_prefix_ends_after_an_exception(self, lines: list[logging.LogRecord]) -> None:
        with pytest.raises(ValueError, match="as it happens"), task_logger.bound("abc-123"):
            raise ValueError("as it happens")
        task_logger.info("after")
        assert texts(lines) == ["after"]
        assert current_message_id() is None

    def test_inner_prefix_replaces_the_outer_one(self, lines: list[logging.LogRecord]) -> None:
        with task_logger.bound("outer", lambda: {"task_name": "a"}):
            with task_logger.bound("inner"):
                task_logger.info("1")
            task_logger.info("2")
        assert texts(lines) == ["[inner] 1", "[outer] 2"]
        assert not hasattr(lines[0], "task_name")  # without the fields of the outer one

    @pytest.mark.parametrize("method", ["debug", "info", "warning", "error", "critical", "exception"])
    def test_every_method_has_the_prefix(self, lines: list[logging.LogRecord], method: str) -> None:
        with task_logger.bound("abc-123"):
            getattr(task_logger, method)("text")
        assert texts(lines) == ["[abc-123] text"]
        assert lines[0].levelname == {"exception": "ERROR"}.get(method, method.upper())

    def test_other_objects_and_percent_signs_are_logged(self, lines: list[logging.LogRecord]) -> None:
        with task_logger.bound("abc-123"):
            task_logger.info("100%")
            task_logger.info(ValueError("as it happens"))
            task_logger.info("%(a)s", {"a": 1})
        assert texts(lines) == ["[abc-123] 100%", "[abc-123] as it happens", "[abc-123] 1"]

    def test_location_is_that_of_the_call(self, lines: list[logging.LogRecord]) -> None:
        task_logger.info("here")
        assert (lines[0].funcName, lines[0].filename) == ("test_location_is_that_of_the_call", "test_logging.py")

    def test_other_loggers_have_no_prefix(self, caplog: pytest.LogCaptureFixture) -> None:
        with task_logger.bound("abc-123"):
            logging.getLogger("shop").warning("text")
        assert caplog.messages == ["text"]

    def test_adapter_wraps_the_documented_logger(self) -> None:
        assert isinstance(task_logger, logging.LoggerAdapter)
        assert task_logger.logger is logging.getLogger("lambda_tasks.task")


class TestFields:
    def test_fields_are_on_the_record_for_json(self, lines: list[logging.LogRecord]) -> None:
        class JsonFormatter(logging.Formatter):
            """Formats what Lambda's own formatter uses: message, level, and the fields that the call added."""

            own = set(vars(logging.makeLogRecord({}))) | {"message", "taskName"}

            def format(self, record: logging.LogRecord) -> str:
                fields = {name: value for name, value in vars(record).items() if name not in self.own}
                return json.dumps({"text": record.getMessage(), **fields})

        with task_logger.bound("abc-123", lambda: {"task_name": "shop.tasks.send"}):
            task_logger.info("text", extra={"user_id": 42})
        assert json.loads(JsonFormatter().format(lines[0])) == {
            "text": "[abc-123] text",
            "message_id": "abc-123",
            "task_name": "shop.tasks.send",
            "user_id": 42,
        }

    def test_extra_is_unchanged_outside_an_invocation(self, lines: list[logging.LogRecord]) -> None:
        task_logger.info("text", extra={"user_id": 42})
        assert vars(lines[0])["user_id"] == 42
        assert not hasattr(lines[0], "message_id")

    def test_extra_of_the_caller_is_not_modified(self, lines: list[logging.LogRecord]) -> None:
        extra = {"user_id": 42}
        with task_logger.bound("abc-123"):
            task_logger.info("text", extra=extra)
        assert extra == {"user_id": 42}


class TestCauses:
    """Lambda's formatter for JSON prints an error, but not the error that caused it."""

    def logged(self, caplog: pytest.LogCaptureFixture, error: Exception) -> logging.LogRecord:
        run_logger.error("failed", exc_info=error)
        return caplog.records[-1]

    def raised(self, *, implicitly: bool = False, hidden: bool = False) -> Exception:
        try:
            try:
                raise ConnectionError("the carrier is down")
            except ConnectionError as error:
                if implicitly:
                    raise RuntimeError("no luck")  # noqa: B904
                raise RuntimeError("no luck") from (None if hidden else error)
        except RuntimeError as error:
            return error

    @pytest.mark.parametrize("implicitly", [False, True])
    def test_cause_is_a_field_of_the_record(self, caplog: pytest.LogCaptureFixture, implicitly: bool) -> None:
        record = self.logged(caplog, self.raised(implicitly=implicitly))
        assert "ConnectionError: the carrier is down" in vars(record)["cause"]
        assert "no luck" not in vars(record)["cause"]

    def test_error_without_a_cause_has_no_field(self, caplog: pytest.LogCaptureFixture) -> None:
        assert not hasattr(self.logged(caplog, ValueError("x")), "cause")
        assert not hasattr(self.logged(caplog, self.raised(hidden=True)), "cause")

    @pytest.mark.django_db(transaction=True)
    def test_exhausted_retries_log_the_last_error(self, caplog: pytest.LogCaptureFixture) -> None:
        with suppress(MaxRetriesExceededError):
            message(give_up).execute_immediately()
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert "ConnectionError: the carrier is down" in vars(record)["cause"]


@pytest.mark.django_db(transaction=True)
class TestEndedTasks:
    """Each ended task has one line with its id, name, outcome and duration."""

    @pytest.mark.parametrize(
        ("task", "arguments", "outcome"),
        [
            (greet, {"name": "Ada"}, "succeeded in"),
            (ignore, {}, "raised KeyError, which it ignores, after"),
            (fail, {}, "raised OSError after"),
            (give_up, {}, "failed after"),
        ],
    )
    def test_ended_task_is_logged_once(
        self,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        task: Any,
        arguments: dict[str, str],
        outcome: str,
    ) -> None:
        monkeypatch.setattr(Run, "duration", 1.25)
        message_id = new_message_id()
        with caplog.at_level(logging.INFO, "lambda_tasks.executor"), suppress(MaxRetriesExceededError):
            message(task, **arguments).execute_immediately(message_id)
        [line] = [text for record in caplog.records if outcome in (text := record.getMessage())]
        assert line.startswith(f"[{message_id}] {task.name} {outcome} 1.250 s")


class TestLocalWorker:
    """Under the local worker, lines about ended tasks are shown, although Lambda's default level hides them."""

    @pytest.fixture(autouse=True)
    def levels(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("LAMBDA_TASKS_LOCAL_WORKER", "1")
        monkeypatch.delenv("AWS_LAMBDA_LOG_LEVEL", raising=False)
        loggers = [logging.getLogger(name) for name in ("lambda_tasks", "lambda_tasks.executor")]
        before = [logger.level for logger in loggers]
        yield
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

    def level(self) -> int:
        show_outcomes_locally()
        return logging.getLogger("lambda_tasks.executor").level

    def test_outcomes_are_shown(self) -> None:
        assert self.level() == logging.INFO

    def test_level_of_the_environment_decides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_LAMBDA_LOG_LEVEL", "ERROR")
        assert self.level() == logging.NOTSET

    def test_level_of_logging_decides(self) -> None:
        logging.getLogger("lambda_tasks").setLevel(logging.WARNING)
        assert self.level() == logging.NOTSET

    def test_other_processes_are_unaffected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LAMBDA_TASKS_LOCAL_WORKER")
        assert self.level() == logging.NOTSET


@pytest.mark.django_db(transaction=True)
class TestInvocations:
    @pytest.mark.parametrize("task", [greet, greet_slowly], ids=["def", "async def"])
    def test_run_has_the_id_of_its_record(self, lines: list[logging.LogRecord], task: Any) -> None:
        message_id = new_message_id()
        message(task, name="Ada").execute_immediately(message_id)

        assert texts(lines) == [f"[{message_id}] greeting Ada"]
        assert (vars(lines[0])["message_id"], vars(lines[0])["task_name"]) == (message_id, task.name)
        assert TaskRecord.objects.get(pk=message_id).result == message_id
        assert current_message_id() is None

    def test_failed_run_leaves_no_id(self, lines: list[logging.LogRecord]) -> None:
        message(fail).execute_immediately()
        task_logger.info("after")
        assert texts(lines)[-1] == "after"

    def test_each_delivery_of_a_batch_has_its_id(self, lines: list[logging.LogRecord]) -> None:
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        backend.jobs.clear()
        handles = [greet.execute_on_commit(name=name) for name in "abc"]
        handler({"Records": [event_record(job) for job in backend.jobs]}, None)
        assert texts(lines) == [
            f"[{handle.message_id}] greeting {name}" for handle, name in zip(handles, "abc", strict=True)
        ]

    def test_retry_has_a_different_id(self, lines: list[logging.LogRecord]) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True, LAMBDA_TASKS_MAX_RETRIES=2):
            fail.execute_on_commit()
        ids = [vars(line)["message_id"] for line in lines]
        assert len(set(ids)) == 3
        assert set(ids) == {str(pk) for pk in TaskRecord.objects.values_list("pk", flat=True)}

    def test_nested_runs_keep_their_ids(self, lines: list[logging.LogRecord]) -> None:
        message(nest, depth=2).execute_immediately()
        ids = [vars(line)["message_id"] for line in lines]
        assert [line.split("] ")[1] for line in texts(lines)] == [
            *("2 begins", "1 begins", "0 begins"),
            *("0 ends", "1 ends", "2 ends"),
        ]
        assert ids[:3] == ids[:2:-1]
        assert len(set(ids)) == 3

    def test_chained_eager_tasks_keep_their_ids(self, lines: list[logging.LogRecord]) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            send_on.execute_on_commit(depth=2)
        ids = [vars(line)["message_id"] for line in lines]
        assert ids[0::2] == ids[1::2]
        assert len(set(ids)) == 3

    def test_direct_call_has_no_id(self, lines: list[logging.LogRecord]) -> None:
        assert greet(name="Ada") is None
        assert texts(lines) == ["greeting Ada"]

    def test_library_never_logs_arguments(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "lambda_tasks")

        @lambda_task(ignore_errors=[KeyError], retry_on=[OSError])
        def judge(*, secret: str, error: str) -> None:
            raise {"KeyError": KeyError, "OSError": OSError}[error]

        for error in ("KeyError", "OSError", "ValueError"):
            message(judge, secret="hunter2", error=error).execute_immediately()
        assert len(caplog.records) == 3
        assert "hunter2" not in caplog.text
        assert all(line.getMessage().startswith("[") for line in caplog.records)


class TestThreads:
    def test_threads_keep_their_ids_concurrently(self, lines: list[logging.LogRecord]) -> None:
        together = threading.Barrier(4)

        def work(message_id: str) -> None:
            with task_logger.bound(message_id):
                together.wait(timeout=10)
                task_logger.info("from %s", message_id)
                together.wait(timeout=10)

        ids = [str(uuid4()) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, ids))
        assert sorted(texts(lines)) == sorted(f"[{message_id}] from {message_id}" for message_id in ids)

    def test_thread_with_the_context_has_the_id(self, lines: list[logging.LogRecord]) -> None:
        with task_logger.bound("abc-123"):
            thread = threading.Thread(target=copy_context().run, args=(task_logger.info, "from a thread"))
            thread.start()
            thread.join()
        assert texts(lines) == ["[abc-123] from a thread"]

    def test_asyncio_tasks_keep_their_ids(self, lines: list[logging.LogRecord]) -> None:
        async def work(message_id: str) -> None:
            with task_logger.bound(message_id):
                await asyncio.sleep(0)
                task_logger.info("from %s", message_id)

        async def both() -> None:
            await asyncio.gather(work("a"), work("b"))

        asyncio.run(both())
        assert texts(lines) == ["[a] from a", "[b] from b"]
