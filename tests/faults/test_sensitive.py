"""`sensitive=("token",)`: what an argument is appears in no record, on no page and in no line of the library's."""

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
from lambda_tasks.executor import prepare
from lambda_tasks.handler import deliveries, handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.locks.memory import MemoryLock
from lambda_tasks.masking import MASK, MIN_LENGTH, PIECE, scrubbed
from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Failed, Retry, Succeeded
from lambda_tasks.storable import MAX_TEXT
from lambda_tasks.strategies import get_backend
from lambda_tasks.tracebacks import traceback_text

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
    # The objects too: who formats lines as JSON, or sends errors elsewhere, has more than the text.
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


def said_of(record: TaskRecord) -> str:
    """Return all fields of a record as one text."""
    return repr({field.attname: getattr(record, field.attname) for field in TaskRecord._meta.fields})


class TestTheRecord:
    @pytest.mark.databases(transaction=True)
    def test_it_has_a_mask_where_the_task_has_the_value(self, database: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
        keep.execute_on_commit(token=TOKEN, user_id=42)
        handler({"Records": backend().take_records()}, None)
        record = TaskRecord.objects.using(database).get()
        assert received == [TOKEN]
        assert record.kwargs == {"token": MASK, "user_id": 42}
        assert (record.status, record.result) == ("SUCCESS", "kept for 42")

    @pytest.mark.django_db(transaction=True)
    def test_the_mask_tells_neither_the_type_nor_the_length(self) -> None:
        record = deliver(pay, wallet=Wallet(cards=[Card("Ada", 4111)], pin=b"1234"), tokens={"a": []})
        assert record.kwargs == {"wallet": MASK, "tokens": MASK}

    @pytest.mark.django_db(transaction=True)
    def test_a_task_that_names_nothing_is_recorded_as_it_was_called(self) -> None:
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
    def test_the_text_of_an_error_is_kept_without_what_it_quotes(
        self, error: str, status: str, lines: pytest.LogCaptureFixture
    ) -> None:
        record = deliver(quote_token, token=TOKEN, error=error)
        assert record.status == status
        assert f"{error}: " in (record.traceback or "")
        assert f"cannot log in with {MASK} as" in (record.traceback or "")
        assert "The above exception was the direct cause" in (record.traceback or "")
        assert "hunter2" not in said_of(record)

    @pytest.mark.django_db(transaction=True)
    def test_what_is_inside_of_an_argument_is_masked_as_well(self, lines: pytest.LogCaptureFixture) -> None:
        wallet = Wallet(cards=[Card("hunter2", 4111_1111)], pin=b"hunter2\x01")
        record = deliver(pay, wallet=wallet, tokens={"a": ["hunter2-a", "hunter2-b"]})
        assert record.status == "FAILED"
        assert "hunter2" not in said_of(record)
        assert "41111111" not in said_of(record)
        assert "Card(holder=" in (record.traceback or "")

    @pytest.mark.django_db(transaction=True)
    def test_a_coroutine_is_treated_alike(self, lines: pytest.LogCaptureFixture) -> None:
        record = deliver(quote_token_asynchronously, token=TOKEN)
        assert record.status == "FAILED"
        assert "hunter2" not in said_of(record)

    @pytest.mark.django_db(transaction=True)
    def test_a_retry_has_the_value_and_the_last_error_of_a_chain_has_not(self, lines: pytest.LogCaptureFixture) -> None:
        with override_settings(LAMBDA_TASKS_MAX_RETRIES=1):
            deliver(quote_token, token=TOKEN, error="OSError")
            [retry] = backend().jobs
            assert retry.message.kwargs["token"] == TOKEN
            handler({"Records": backend().take_records()}, None)
        assert received == [TOKEN, TOKEN]
        last = TaskRecord.objects.get(n_retries=1)
        assert "MaxRetriesExceededError" in (last.traceback or "")
        assert "hunter2" not in said_of(last)

    @pytest.mark.django_db(transaction=True)
    def test_eager_mode_records_alike(self, lines: pytest.LogCaptureFixture) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            handle = quote_token.execute_on_commit(token=TOKEN, error="ValueError")
        record = TaskRecord.objects.get(pk=handle.message_id)
        assert received == [TOKEN]
        assert record.kwargs == {"token": MASK, "error": "ValueError"}
        assert "hunter2" not in said_of(record)

    @pytest.mark.django_db(transaction=True)
    def test_other_routing_and_a_later_send_change_nothing(self) -> None:
        task = keep.using(queue="other", delay=5)
        assert task.sensitive == keep.options.sensitive == ("token",)
        payload = json.loads(json.dumps(task.serialize(token=TOKEN, user_id=1)))
        assert payload["message"]["kwargs"]["token"] == TOKEN  # it is to be sent
        SQSLambdaTask.model_validate(payload).execute_on_commit()
        handler({"Records": backend().take_records()}, None)
        assert received == [TOKEN]
        assert TaskRecord.objects.get().kwargs == {"token": MASK, "user_id": 1}


@pytest.mark.django_db(transaction=True)
def test_the_admin_shows_the_mask(client: Client) -> None:
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
class TestTheLogs:
    def test_a_failure_has_its_traceback_without_the_value(self, lines: pytest.LogCaptureFixture) -> None:
        deliver(quote_token, token=TOKEN, error="ValueError")
        [line] = [line for line in lines.records if line.levelno == logging.ERROR]
        assert line.name == "lambda_tasks.executor"
        assert re.search(
            r"quote_token failed\.\n.*raise kind\(.*ValueError: cannot log in", line.getMessage(), re.DOTALL
        )

    def test_a_failure_of_another_task_has_its_error_for_those_who_collect_errors(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        @lambda_task
        def plain() -> None:
            raise ValueError("as it happens")

        deliver(plain)
        [line] = [line for line in caplog.records if line.levelno == logging.ERROR]
        assert line.exc_info
        assert isinstance(line.exc_info[1], ValueError)

    @pytest.mark.parametrize("hook", ["started", "finished", "classify", "retry_delay"])
    def test_a_plugin_that_fails_over_the_error_does_not_reveal_it(
        self, hook: str, lines: pytest.LogCaptureFixture
    ) -> None:
        def fail(run: Any) -> Any:
            raise RuntimeError(f"no idea what to do about {run.arguments}")

        failing = type("Failing", (), {f"lambda_task_{hook}": staticmethod(hookimpl(fail))})
        with override_settings(LAMBDA_TASKS_PLUGINS=[failing()]):
            deliver(quote_token, token=TOKEN, error="OSError")
        assert "no idea what to do about" in lines.text

    def test_nor_one_whose_answer_is_none(self, lines: pytest.LogCaptureFixture) -> None:
        class Odd:
            @hookimpl
            def lambda_task_retry_delay(self, error: BaseException) -> Any:
                return error

        with override_settings(LAMBDA_TASKS_PLUGINS=[Odd()]):
            deliver(quote_token, token=TOKEN, error="OSError")
        assert "answered lambda_task_retry_delay with a OSError" in lines.text

    def test_what_fails_after_the_commit_is_masked(self, lines: pytest.LogCaptureFixture) -> None:
        @lambda_task(sensitive=("token",))
        def careless(*, token: str) -> None:
            def fail() -> None:
                raise ValueError(token)

            transaction.on_commit(fail)

        assert deliver(careless, token=TOKEN).status == "SUCCESS"
        assert "what was to follow its commit failed" in lines.text

    def test_a_lock_that_cannot_be_released_does_not_bring_the_error_along(
        self, lines: pytest.LogCaptureFixture
    ) -> None:
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


class TestErrorsOfTheCall:
    def test_what_a_validator_says_of_the_value_is_not_passed_on(self) -> None:
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

    def test_nor_are_the_keys_of_what_is_in_it(self) -> None:
        @lambda_task(sensitive=("tokens", "more"))
        def guarded(*, tokens: dict[str, int], more: Any = None) -> None: ...

        for arguments in ({"tokens": {"hunter2": "1"}}, {"tokens": {}, "more": {"hunter2": (1,)}}):
            with pytest.raises(InvalidArguments) as refused:
                guarded.execute_on_commit(**arguments)
            assert "hunter2" not in str(refused.value)

    @pytest.mark.parametrize(
        "value", [[TOKEN], {TOKEN}, b"hunter2", ValueError(TOKEN)], ids=["list", "set", "bytes", "error"]
    )
    def test_no_error_of_pydantics_with_the_value_hangs_on_it(self, value: Any) -> None:
        with pytest.raises(InvalidArguments) as refused:
            keep.execute_on_commit(token=value, user_id=1)
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None

    def test_a_payload_that_is_none_is_refused_without_being_quoted(self) -> None:
        with pytest.raises(ValidationError) as refused:
            SQSLambdaTask.model_validate({"message": {"task_name": "a.b", "kwargs": [TOKEN]}})
        assert "hunter2" not in str(refused.value)


def test_what_plugins_and_logs_may_print_has_no_arguments() -> None:
    message = SQSLambdaTaskMessage(task_name=keep.name, kwargs={"token": TOKEN, "user_id": 1})
    task = SQSLambdaTask(message=message)
    job = task.new_job()
    run = prepare(message, job.message_id)
    for printed in (message, task, job, run, keep, run.retry_job(5), Retry(OSError()), Failed(OSError()), Succeeded()):
        assert "hunter2" not in repr(printed)
        assert "hunter2" not in str(printed)
    [delivery] = deliveries({"Records": [event_record(job)]})
    assert "hunter2" not in repr(delivery)


class TestScrubbing:
    @given(secret=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="*\x00"), min_size=MIN_LENGTH))
    @settings(deadline=None, max_examples=100)
    def test_a_text_is_found_in_every_form_that_quotes_it(self, secret: str) -> None:
        for form in (secret, repr(secret)[1:-1], ascii(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret, safe="")):
            text = scrubbed(f"0{form}1", [{"nested": (secret,)}])
            assert form not in text or form in f"0{MASK}1"

    def test_a_shorter_one_is_left_alone(self) -> None:
        assert scrubbed("an is in and", ["an", "is"]) == "an is in and"

    def test_asterisks_do_not_multiply(self) -> None:
        text = scrubbed("*" * 30, ["*" * length for length in range(1, 30)])
        assert text == "*" * 30

    def test_a_piece_that_is_left_where_somebody_shortened_a_text_is_masked(self) -> None:
        """As pydantic does with long inputs: the beginning, three dots, the end."""

        class Order(BaseModel):
            number: int

        secret = "".join(chr(ord("a") + i % 26) + str(i) for i in range(100))
        with pytest.raises(ValidationError) as refused:
            Order(number=secret)  # type: ignore[arg-type]
        text = traceback_text(refused.value, hiding=[secret])
        assert "..." in str(refused.value)
        assert not [i for i in range(len(secret) - PIECE) if secret[i : i + PIECE] in text]
        assert "Input should be a valid integer" in text

    def test_so_is_the_piece_that_is_left_by_the_limit_of_a_record(self) -> None:
        secret = "0123456789abcdef" * 10
        for shift in range(0, len(secret), 7):
            error = ValueError("x" * (MAX_TEXT // 2 - shift) + secret + "y" * MAX_TEXT)
            text = traceback_text(error, hiding=[secret])
            assert "0123456789abcdef" not in text

    def test_an_error_that_cannot_be_searched_is_named_by_its_type(self) -> None:
        class Odd:
            @property
            def __dict__(self) -> Any:  # type: ignore[override]
                raise RuntimeError

            __pydantic_fields__ = ()

        assert traceback_text(ValueError("hunter2"), hiding=[Odd()]) == f"ValueError: {MASK}"

    def test_more_values_than_can_be_looked_for_hide_the_whole_text(self) -> None:
        text = traceback_text(ValueError("hunter2"), hiding=[[f"token {i}" for i in range(5000)]])
        assert text.startswith(MASK)
        assert "hunter2" not in text
