"""Check that the values of `sensitive=("token",)` are not in records, on admin pages or in the library's log."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.test import Client, override_settings
from django.urls import reverse
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ValidationError

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage
from lambda_tasks.execution.pipeline import prepare
from lambda_tasks.handler import deliveries, handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed, Retry, Succeeded
from lambda_tasks.recording.masking import MASK, MIN_LENGTH, PIECE, scrubbed
from lambda_tasks.recording.storable import MAX_TEXT
from lambda_tasks.recording.tracebacks import traceback_text
from lambda_tasks.strategies import get_backend

TOKEN = 'hunter2 "&ü\\?'

received: list[Any] = []


@dataclass
class Card:
    holder: str
    number: int


class Wallet(BaseModel):
    cards: list[Card]
    pin: bytes


@lambda_task(sensitive=("token",))
def keep(*, token: str, user_id: int) -> str:
    received.append(token)
    return f"kept for {user_id}"


@lambda_task(sensitive=("token",), retry_on=(OSError,), ignore_errors=(KeyError,))
def quote_token(*, token: str, error: str) -> None:
    received.append(token)
    kind = {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError, "SystemExit": SystemExit}[error]
    raise kind(f"cannot log in with {token} as {[token]}") from ValueError(token)


@lambda_task(sensitive=["wallet", "tokens"])
def pay(*, wallet: Wallet, tokens: dict[str, list[str]]) -> None:
    raise ValueError(f"{wallet!r} {tokens!r}")


@lambda_task(sensitive=("token",))
async def quote_token_asynchronously(*, token: str) -> None:
    raise ValueError(token)


@pytest.fixture(autouse=True)
def _clean() -> None:
    received.clear()
    backend().jobs.clear()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG, "lambda_tasks")
    yield caplog
    records = caplog.get_records("call")
    assert records
    # Check the objects too, because JSON formatters and error trackers use more than the message.
    for line in records:
        assert "hunter2" not in logging.Formatter().format(line)
        assert "hunter2" not in repr(vars(line))


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def deliver(task: LambdaTaskWrapper[..., Any], **arguments: Any) -> TaskRecord:
    handle = task.execute_on_commit(**arguments)
    assert handler({"Records": backend().take_records()}, None) == {"batchItemFailures": []}
    return TaskRecord.objects.get(pk=handle.message_id)


def contents_of(record: TaskRecord) -> str:
    """Return all fields of a record as one string."""
    return repr({field.attname: getattr(record, field.attname) for field in TaskRecord._meta.fields})


class TestRecord:
    @pytest.mark.databases(transaction=True)
    def test_record_has_a_mask_instead_of_the_value(self, database: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
        keep.execute_on_commit(token=TOKEN, user_id=42)
        handler({"Records": backend().take_records()}, None)
        record = TaskRecord.objects.using(database).get()
        assert received == [TOKEN]
        assert record.kwargs == {"token": MASK, "user_id": 42}
        assert (record.status, record.result) == ("SUCCESS", "kept for 42")

    @pytest.mark.django_db(transaction=True)
    def test_mask_hides_type_and_length(self) -> None:
        record = deliver(pay, wallet=Wallet(cards=[Card("Ada", 4111)], pin=b"1234"), tokens={"a": []})
        assert record.kwargs == {"wallet": MASK, "tokens": MASK}

    @pytest.mark.django_db(transaction=True)
    def test_task_without_sensitive_parameters_is_recorded_unmasked(self) -> None:
        @lambda_task
        def plain(*, token: str) -> None:
            raise ValueError(token)

        record = deliver(plain, token=TOKEN)
        assert record.kwargs == {"token": TOKEN}
        assert TOKEN in (record.traceback or "")

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize(
        ("error", "status"),
        [("ValueError", "FAILED"), ("SystemExit", "FAILED"), ("KeyError", "SUCCESS"), ("OSError", "RETRYING")],
    )
    def test_error_message_is_kept_without_quoted_values(
        self, error: str, status: str, lines: pytest.LogCaptureFixture
    ) -> None:
        record = deliver(quote_token, token=TOKEN, error=error)
        assert record.status == status
        assert f"{error}: " in (record.traceback or "")
        assert f"cannot log in with {MASK} as" in (record.traceback or "")
        assert "The above exception was the direct cause" in (record.traceback or "")
        assert "hunter2" not in contents_of(record)

    @pytest.mark.django_db(transaction=True)
    def test_values_inside_arguments_are_masked(self, lines: pytest.LogCaptureFixture) -> None:
        wallet = Wallet(cards=[Card("hunter2", 4111_1111)], pin=b"hunter2\x01")
        record = deliver(pay, wallet=wallet, tokens={"a": ["hunter2-a", "hunter2-b"]})
        assert record.status == "FAILED"
        assert "hunter2" not in contents_of(record)
        assert "41111111" not in contents_of(record)
        assert "Card(holder=" in (record.traceback or "")

    @pytest.mark.django_db(transaction=True)
    def test_coroutine_arguments_are_masked(self, lines: pytest.LogCaptureFixture) -> None:
        record = deliver(quote_token_asynchronously, token=TOKEN)
        assert record.status == "FAILED"
        assert "hunter2" not in contents_of(record)

    @pytest.mark.django_db(transaction=True)
    def test_retry_has_the_value_its_traceback_does_not(self, lines: pytest.LogCaptureFixture) -> None:
        with override_settings(LAMBDA_TASKS_MAX_RETRIES=1):
            deliver(quote_token, token=TOKEN, error="OSError")
            [retry] = backend().jobs
            assert retry.message.kwargs["token"] == TOKEN
            handler({"Records": backend().take_records()}, None)
        assert received == [TOKEN, TOKEN]
        last = TaskRecord.objects.get(n_retries=1)
        assert "MaxRetriesExceededError" in (last.traceback or "")
        assert "hunter2" not in contents_of(last)

    @pytest.mark.django_db(transaction=True)
    def test_eager_mode_masks_arguments(self, lines: pytest.LogCaptureFixture) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = quote_token.execute_on_commit(token=TOKEN, error="ValueError")
        record = TaskRecord.objects.get(pk=handle.message_id)
        assert received == [TOKEN]
        assert record.kwargs == {"token": MASK, "error": "ValueError"}
        assert "hunter2" not in contents_of(record)

    @pytest.mark.django_db(transaction=True)
    def test_other_routing_and_later_send_mask_arguments(self) -> None:
        task = keep.using(queue="other", delay=5)
        assert task.sensitive == keep.options.sensitive == ("token",)
        payload = json.loads(json.dumps(task.serialize(token=TOKEN, user_id=1)))
        assert payload["message"]["kwargs"]["token"] == TOKEN  # the message needs the value
        SQSLambdaTask.model_validate(payload).execute_on_commit()
        handler({"Records": backend().take_records()}, None)
        assert received == [TOKEN]
        assert TaskRecord.objects.get().kwargs == {"token": MASK, "user_id": 1}


@pytest.mark.django_db(transaction=True)
def test_admin_shows_the_mask(client: Client) -> None:
    record = deliver(quote_token, token=TOKEN, error="ValueError")
    client.force_login(User.objects.create_superuser("root"))
    for url in (
        reverse("admin:lambda_tasks_taskrecord_changelist"),
        reverse("admin:lambda_tasks_taskrecord_change", args=[record.pk]),
    ):
        page = client.get(url).content.decode()
        assert MASK in page
        assert "hunter2" not in page


@pytest.mark.django_db(transaction=True)
class TestLogs:
    def test_failure_has_its_traceback_without_the_value(self, lines: pytest.LogCaptureFixture) -> None:
        deliver(quote_token, token=TOKEN, error="ValueError")
        [line] = [line for line in lines.records if line.levelno == logging.ERROR]
        assert line.name == "lambda_tasks.executor"
        assert re.search(
            r"quote_token failed after [0-9.]+ s\.\n.*raise kind\(.*ValueError: cannot log in",
            line.getMessage(),
            re.DOTALL,
        )

    def test_failure_without_sensitive_arguments_has_its_exception(self, caplog: pytest.LogCaptureFixture) -> None:
        """Collectors of errors, such as Sentry, read it from `exc_info`."""

        @lambda_task
        def plain() -> None:
            raise ValueError("as it happens")

        deliver(plain)
        [line] = [line for line in caplog.records if line.levelno == logging.ERROR]
        assert line.exc_info
        assert isinstance(line.exc_info[1], ValueError)

    @pytest.mark.parametrize("hook", ["started", "finished", "classify", "retry_delay"])
    def test_failing_plugin_does_not_reveal_the_error(self, hook: str, lines: pytest.LogCaptureFixture) -> None:
        def fail(run: Any) -> Any:
            raise RuntimeError(f"no idea what to do about {run.arguments}")

        failing = type("Failing", (), {f"lambda_task_{hook}": staticmethod(hookimpl(fail))})
        with override_settings(LAMBDA_TASKS_PLUGINS=[failing()]):
            deliver(quote_token, token=TOKEN, error="OSError")
        assert "no idea what to do about" in lines.text

    def test_invalid_plugin_answer_does_not_reveal_the_error(self, lines: pytest.LogCaptureFixture) -> None:
        class Odd:
            @hookimpl
            def lambda_task_retry_delay(self, error: BaseException) -> Any:
                return error

        with override_settings(LAMBDA_TASKS_PLUGINS=[Odd()]):
            deliver(quote_token, token=TOKEN, error="OSError")
        assert "returned an invalid value from lambda_task_retry_delay: object of type OSError" in lines.text

    def test_errors_after_the_commit_are_masked(self, lines: pytest.LogCaptureFixture) -> None:
        @lambda_task(sensitive=("token",))
        def careless(*, token: str) -> None:
            def fail() -> None:
                raise ValueError(token)

            transaction.on_commit(fail)

        assert deliver(careless, token=TOKEN).status == "SUCCESS"
        assert "an action after the commit failed" in lines.text

    def test_failed_lock_release_does_not_reveal_the_error(self, lines: pytest.LogCaptureFixture) -> None:
        @lambda_task(sensitive=("token",), singleton=True)
        def alone(*, token: str) -> None:
            raise ValueError(token)

        with override_settings(LAMBDA_TASKS_LOCK=f"{__name__}.StuckLock"):
            assert deliver(alone, token=TOKEN).status == "FAILED"
        assert "could not be released" in lines.text


class StuckLock(MemoryLock):
    def release(self, key: str, *, token: str) -> None:
        raise ConnectionError("the lock's server is away")


def quoting(value: str) -> str:
    raise ValueError(f"{value} is no good")


class TestCallErrors:
    def test_validator_message_about_the_value_is_hidden(self) -> None:
        @lambda_task(sensitive=("token",))
        def guarded(
            *, token: Annotated[str, AfterValidator(quoting)], name: Annotated[str, AfterValidator(quoting)]
        ) -> None: ...

        with pytest.raises(InvalidArguments) as refused:
            guarded.execute_on_commit(token="hunter2", name="Ada")
        assert "token: value_error; name: Value error, Ada is no good" in str(refused.value)
        assert "hunter2" not in str(refused.value)

        with pytest.raises(InvalidMessage) as foreign:
            guarded.signature.decode({"token": "hunter2", "name": "Ada"})
        assert "hunter2" not in str(foreign.value)

    def test_keys_inside_the_value_are_hidden(self) -> None:
        @lambda_task(sensitive=("tokens", "more"))
        def guarded(*, tokens: dict[str, int], more: Any = None) -> None: ...

        for arguments in ({"tokens": {"hunter2": "1"}}, {"tokens": {}, "more": {"hunter2": (1,)}}):
            with pytest.raises(InvalidArguments) as refused:
                guarded.execute_on_commit(**arguments)
            assert "hunter2" not in str(refused.value)

    @pytest.mark.parametrize(
        "value", [[TOKEN], {TOKEN}, b"hunter2", ValueError(TOKEN)], ids=["list", "set", "bytes", "error"]
    )
    def test_exception_has_no_cause_with_the_value(self, value: Any) -> None:
        with pytest.raises(InvalidArguments) as refused:
            keep.execute_on_commit(token=value, user_id=1)
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None

    def test_invalid_payload_is_refused_without_being_quoted(self) -> None:
        with pytest.raises(ValidationError) as refused:
            SQSLambdaTask.model_validate({"message": {"task_name": "a.b", "kwargs": [TOKEN]}})
        assert "hunter2" not in str(refused.value)


def test_repr_of_printable_objects_shows_no_arguments() -> None:
    message = SQSLambdaTaskMessage(task_name=keep.name, kwargs={"token": TOKEN, "user_id": 1})
    task = SQSLambdaTask(message=message)
    job = task.new_job()
    run = prepare(message, message_id=job.message_id)
    for printed in (message, task, job, run, keep, run.retry_job(5), Retry(OSError()), Failed(OSError()), Succeeded()):
        assert "hunter2" not in repr(printed)
        assert "hunter2" not in str(printed)
    [delivery] = deliveries({"Records": [event_record(job)]})
    assert "hunter2" not in repr(delivery)


class TestScrubbing:
    @given(secret=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*\x00"), min_size=MIN_LENGTH))
    @settings(deadline=None, max_examples=100)
    def test_string_is_found_in_every_quoted_form(self, secret: str) -> None:
        for form in (secret, repr(secret)[1:-1], ascii(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")):
            text = scrubbed(f"0{form}1", [{"nested": (secret,)}])
            assert form not in text or form in f"0{MASK}1"

    def test_short_string_is_left_alone(self) -> None:
        assert scrubbed("an is in and", ["an", "is"]) == "an is in and"

    def test_asterisks_do_not_multiply(self) -> None:
        text = scrubbed("*" * 30, ["*" * length for length in range(1, 30)])
        assert text == "*" * 30

    def test_piece_of_a_shortened_string_is_masked(self) -> None:
        """Pydantic shortens long inputs: the beginning, three dots, the end."""

        class Order(BaseModel):
            number: int

        secret = "".join(chr(ord("a") + i % 26) + str(i) for i in range(100))
        with pytest.raises(ValidationError) as refused:
            Order(number=secret)  # type: ignore[arg-type]
        text = traceback_text(refused.value, hiding=[secret])
        assert "..." in str(refused.value)
        assert not [i for i in range(len(secret) - PIECE) if secret[i : i + PIECE] in text]
        assert "Input should be a valid integer" in text

    def test_piece_left_by_the_records_limit_is_masked(self) -> None:
        secret = "0123456789abcdef" * 10
        for shift in range(0, len(secret), 7):
            error = ValueError("x" * (MAX_TEXT // 2 - shift) + secret + "y" * MAX_TEXT)
            text = traceback_text(error, hiding=[secret])
            assert "0123456789abcdef" not in text

    def test_unsearchable_error_is_named_by_its_type(self) -> None:
        class Odd:
            @property
            def __dict__(self) -> Any:  # type: ignore[override]
                raise RuntimeError

            __pydantic_fields__ = ()

        assert traceback_text(ValueError("hunter2"), hiding=[Odd()]) == f"ValueError: {MASK}"

    def test_too_many_values_hide_the_message(self) -> None:
        text = traceback_text(ValueError("hunter2"), hiding=[[f"token {i}" for i in range(5000)]])
        assert f"ValueError: {MASK} (withheld" in text
        assert "hunter2" not in text
