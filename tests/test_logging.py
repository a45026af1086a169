"""`task_logger`: every line says which invocation wrote it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any
from uuid import uuid4

import pytest
from django.test import override_settings

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.identity import new_message_id
from lambda_tasks.logging import current_message_id, task_logger
from lambda_tasks.models import SQSLambdaTaskMessage, TaskRecord
from lambda_tasks.strategies import get_backend


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
    """What the tasks of a test log."""
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
    def test_inside_it_is_the_message_id_and_outside_there_is_none(self, lines: list[logging.LogRecord]) -> None:
        task_logger.info("before")
        with task_logger.bound("abc-123"):
            task_logger.info("sending email to user %s", 42)
        task_logger.info("after")
        assert texts(lines) == ["before", "[abc-123] sending email to user 42", "after"]

    def test_it_ends_when_an_error_leaves(self, lines: list[logging.LogRecord]) -> None:
        with pytest.raises(ValueError, match="as it happens"), task_logger.bound("abc-123"):
            raise ValueError("as it happens")
        task_logger.info("after")
        assert texts(lines) == ["after"]
        assert current_message_id() is None

    def test_the_inner_one_counts_while_it_lasts(self, lines: list[logging.LogRecord]) -> None:
        with task_logger.bound("outer", task_name="a"):
            with task_logger.bound("inner"):
                task_logger.info("1")
            task_logger.info("2")
        assert texts(lines) == ["[inner] 1", "[outer] 2"]
        assert not hasattr(lines[0], "task_name")  # nothing of the outer one shines through

    @pytest.mark.parametrize("method", ["debug", "info", "warning", "error", "critical", "exception"])
    def test_every_method_has_it(self, lines: list[logging.LogRecord], method: str) -> None:
        with task_logger.bound("abc-123"):
            getattr(task_logger, method)("text")
        assert texts(lines) == ["[abc-123] text"]
        assert lines[0].levelname == {"exception": "ERROR"}.get(method, method.upper())

    def test_what_is_no_text_and_what_has_percent_signs_is_logged_as_it_is(
        self, lines: list[logging.LogRecord]
    ) -> None:
        with task_logger.bound("abc-123"):
            task_logger.info("100%")
            task_logger.info(ValueError("as it happens"))
            task_logger.info("%(a)s", {"a": 1})
        assert texts(lines) == ["[abc-123] 100%", "[abc-123] as it happens", "[abc-123] 1"]

    def test_the_line_is_that_of_the_call(self, lines: list[logging.LogRecord]) -> None:
        task_logger.info("here")
        assert (lines[0].funcName, lines[0].filename) == ("test_the_line_is_that_of_the_call", "test_logging.py")

    def test_other_loggers_have_none(self, caplog: pytest.LogCaptureFixture) -> None:
        with task_logger.bound("abc-123"):
            logging.getLogger("shop").warning("text")
        assert caplog.messages == ["text"]

    def test_it_wraps_the_documented_logger(self) -> None:
        assert isinstance(task_logger, logging.LoggerAdapter)
        assert task_logger.logger is logging.getLogger("lambda_tasks.task")


class TestFields:
    def test_they_stand_on_the_record_for_json(self, lines: list[logging.LogRecord]) -> None:
        class JsonFormatter(logging.Formatter):
            """Writes what Lambda's own formatter takes: text, level, and the fields that are not logging's."""

            own = set(vars(logging.makeLogRecord({}))) | {"message", "taskName"}

            def format(self, record: logging.LogRecord) -> str:
                fields = {name: value for name, value in vars(record).items() if name not in self.own}
                return json.dumps({"text": record.getMessage(), **fields})

        with task_logger.bound("abc-123", task_name="shop.tasks.send"):
            task_logger.info("text", extra={"user_id": 42})
        assert json.loads(JsonFormatter().format(lines[0])) == {
            "text": "[abc-123] text",
            "message_id": "abc-123",
            "task_name": "shop.tasks.send",
            "user_id": 42,
        }

    def test_outside_of_an_invocation_the_callers_extra_is_left_alone(self, lines: list[logging.LogRecord]) -> None:
        task_logger.info("text", extra={"user_id": 42})
        assert vars(lines[0])["user_id"] == 42
        assert not hasattr(lines[0], "message_id")

    def test_the_callers_own_dict_is_not_written_to(self, lines: list[logging.LogRecord]) -> None:
        extra = {"user_id": 42}
        with task_logger.bound("abc-123"):
            task_logger.info("text", extra=extra)
        assert extra == {"user_id": 42}


@pytest.mark.django_db(transaction=True)
class TestInvocations:
    @pytest.mark.parametrize("task", [greet, greet_slowly], ids=["def", "async def"])
    def test_a_run_has_the_id_of_its_record(self, lines: list[logging.LogRecord], task: Any) -> None:
        message_id = new_message_id()
        message(task, name="Ada").execute_immediately(message_id)

        assert texts(lines) == [f"[{message_id}] greeting Ada"]
        assert (vars(lines[0])["message_id"], vars(lines[0])["task_name"]) == (message_id, task.name)
        assert TaskRecord.objects.get(pk=message_id).result == message_id
        assert current_message_id() is None

    def test_a_run_that_fails_leaves_no_id_behind(self, lines: list[logging.LogRecord]) -> None:
        message(fail).execute_immediately()
        task_logger.info("after")
        assert texts(lines)[-1] == "after"

    def test_each_delivery_of_a_batch_has_its_own(self, lines: list[logging.LogRecord]) -> None:
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        backend.jobs.clear()
        handles = [greet.execute_on_commit(name=name) for name in "abc"]
        handler({"Records": [event_record(job) for job in backend.jobs]}, None)
        assert texts(lines) == [
            f"[{handle.message_id}] greeting {name}" for handle, name in zip(handles, "abc", strict=True)
        ]

    def test_a_retry_has_another_than_the_first_run(self, lines: list[logging.LogRecord]) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True, LAMBDA_TASKS_MAX_RETRIES=2):
            fail.execute_on_commit()
        ids = [vars(line)["message_id"] for line in lines]
        assert len(set(ids)) == 3
        assert set(ids) == {str(pk) for pk in TaskRecord.objects.values_list("pk", flat=True)}

    def test_nested_runs_keep_their_own(self, lines: list[logging.LogRecord]) -> None:
        message(nest, depth=2).execute_immediately()
        ids = [vars(line)["message_id"] for line in lines]
        assert [line.split("] ")[1] for line in texts(lines)] == [
            *("2 begins", "1 begins", "0 begins"),
            *("0 ends", "1 ends", "2 ends"),
        ]
        assert ids[:3] == ids[:2:-1]
        assert len(set(ids)) == 3

    def test_eager_tasks_that_send_others_keep_their_own(self, lines: list[logging.LogRecord]) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            send_on.execute_on_commit(depth=2)
        ids = [vars(line)["message_id"] for line in lines]
        assert ids[0::2] == ids[1::2]
        assert len(set(ids)) == 3

    def test_a_direct_call_has_none(self, lines: list[logging.LogRecord]) -> None:
        assert greet(name="Ada") is None
        assert texts(lines) == ["greeting Ada"]

    def test_arguments_are_in_none_of_the_librarys_own_lines(self, caplog: pytest.LogCaptureFixture) -> None:
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
    def test_each_keeps_its_own_at_the_same_time(self, lines: list[logging.LogRecord]) -> None:
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

    def test_one_that_the_task_starts_has_it_if_it_is_given_the_context(self, lines: list[logging.LogRecord]) -> None:
        with task_logger.bound("abc-123"):
            thread = threading.Thread(target=copy_context().run, args=(task_logger.info, "from a thread"))
            thread.start()
            thread.join()
        assert texts(lines) == ["[abc-123] from a thread"]

    def test_tasks_of_asyncio_keep_their_own(self, lines: list[logging.LogRecord]) -> None:
        async def work(message_id: str) -> None:
            with task_logger.bound(message_id):
                await asyncio.sleep(0)
                task_logger.info("from %s", message_id)

        async def both() -> None:
            await asyncio.gather(work("a"), work("b"))

        asyncio.run(both())
        assert texts(lines) == ["[a] from a", "[b] from b"]
