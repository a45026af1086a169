"""Encrypted arguments: what is hidden, who can read it, and how keys change."""

from __future__ import annotations

import json
import logging
from importlib import util
from typing import Any, Final

import pytest
from cryptography.fernet import Fernet
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as st

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import ArgumentsUnreadable, InvalidSetting, MessageTooLarge, RetryLater
from lambda_tasks.execution.current import current_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.local.event_source import build_record
from lambda_tasks.models import OutboxMessage, StoredArguments, TaskRecord
from lambda_tasks.operations.rerunning import run_again
from lambda_tasks.recording.masking import MASK
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.encryption import decrypted, encrypted
from lambda_tasks.wire.invocation import Invocation
from tests.conftest import Sqs

NEW: Final = Fernet.generate_key().decode()
OLD: Final = Fernet.generate_key().decode()
SECRET: Final = "4111-1111-注"

on_default = pytest.mark.django_db(transaction=True)


@lambda_task(sensitive=("token",))
def charge(*, order: int, token: str) -> int:
    """Return the length of the token, which must not be in the record."""
    return len(token)


@lambda_task(sensitive=("token",))
def charge_later(*, token: str) -> int:
    task = current_task()
    if task is not None and task.attempt == 1:
        raise RetryLater(delay=0)
    return len(token)


@pytest.fixture(autouse=True)
def _keys(settings: Any) -> None:
    settings.LAMBDA_TASKS_ENCRYPTION_KEYS = [NEW, OLD]


def jobs() -> list[Job]:
    backend = get_backend().direct  # behind the outbox, if there is one
    assert isinstance(backend, MemoryBackend)
    return backend.jobs


def run(record: dict[str, Any]) -> bool:
    """Return whether the message is acknowledged."""
    return handler({"Records": [record]}, None) == {"batchItemFailures": []}


def records() -> list[tuple[str, Any]]:
    return sorted(TaskRecord.objects.values_list("status", "result"))


@on_default
def test_message_hides_the_argument(sqs: Sqs) -> None:
    charge.execute_on_commit(order=7, token=SECRET)
    [message] = sqs.receive()
    kwargs = json.loads(message["Body"])["kwargs"]
    assert kwargs["order"] == 7
    assert list(kwargs["token"]) == ["lambda_tasks.encrypted"]
    assert SECRET not in message["Body"]
    assert run(build_record(message, queue_arn="arn:aws:sqs:us-east-1:123456789012:default"))
    assert records() == [("SUCCESS", len(SECRET))]
    assert TaskRecord.objects.get().kwargs == {"order": 7, "token": MASK}


@on_default
def test_retry_hides_the_argument() -> None:
    charge_later.execute_on_commit(token=SECRET)
    assert run(event_record(jobs().pop()))
    record = event_record(jobs().pop())
    assert SECRET not in record["body"]
    assert json.loads(record["body"])["n_retries"] == 1
    assert run(record)
    assert records() == [("RETRYING", None), ("SUCCESS", len(SECRET))]


@on_default
def test_outbox_hides_the_argument(sqs: Sqs, settings: Any) -> None:
    settings.LAMBDA_TASKS_OUTBOX = True
    charge.using(delay=5_000).execute_on_commit(order=7, token=SECRET)
    row = OutboxMessage.objects.get()
    assert SECRET not in json.dumps(json.loads(row.body), ensure_ascii=False)
    outbox = get_backend()
    assert isinstance(outbox, OutboxBackend)
    outbox.send_now([row.pk], using="default")
    [message] = sqs.receive()
    assert json.loads(message["Body"]) == json.loads(row.body)  # not encrypted twice
    assert run(build_record(message, queue_arn="arn:aws:sqs:us-east-1:123456789012:default"))
    assert records() == [("SUCCESS", len(SECRET))]


@on_default
def test_large_arguments_are_stored_encrypted(sqs: Sqs, settings: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = {
        "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
        "OPTIONS": {"large_arguments": "database", "max_message_bytes": 6_000},
    }
    charge.execute_on_commit(order=7, token=SECRET * 1_000)
    assert SECRET not in json.dumps(json.loads(StoredArguments.objects.get().content), ensure_ascii=False)
    [message] = sqs.receive()
    assert run(build_record(message, queue_arn="arn:aws:sqs:us-east-1:123456789012:default"))
    assert records() == [("SUCCESS", 1_000 * len(SECRET))]


@on_default
def test_cancelled_task_can_be_run_again(settings: Any) -> None:
    """The record masks the argument, and the outbox still has it, encrypted."""
    settings.LAMBDA_TASKS_OUTBOX = True
    handle = charge.using(delay=5_000).execute_on_commit(order=7, token=SECRET)
    TaskRecord.objects.create(
        id=handle.message_id, task_name=charge.name, kwargs={"order": 7, "token": MASK}, status="FAILED"
    )
    with transaction.atomic():
        run_again(TaskRecord.objects.get())
    OutboxMessage.objects.filter(pk=handle.message_id).delete()
    assert run(event_record(jobs().pop()))
    assert ("SUCCESS", len(SECRET)) in records()


@on_default
def test_eager_mode_needs_no_key(settings: Any) -> None:
    settings.LAMBDA_TASKS_EAGER = True
    settings.LAMBDA_TASKS_ENCRYPTION_KEYS = []
    charge.execute_on_commit(order=7, token=SECRET)
    assert records() == [("SUCCESS", len(SECRET))]


class TestKeys:
    @on_default
    def test_old_key_decrypts(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_ENCRYPTION_KEYS = [OLD]
        charge.execute_on_commit(order=7, token=SECRET)
        record = event_record(jobs().pop())
        settings.LAMBDA_TASKS_ENCRYPTION_KEYS = [NEW, OLD]
        assert run(record)

    @pytest.mark.parametrize("keys", [[OLD], []], ids=["another", "none"])
    @on_default
    def test_missing_key_leaves_the_message(
        self, settings: Any, keys: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        settings.LAMBDA_TASKS_ENCRYPTION_KEYS = [NEW]
        charge.execute_on_commit(order=7, token=SECRET)
        record = event_record(jobs().pop())
        settings.LAMBDA_TASKS_ENCRYPTION_KEYS = keys
        with caplog.at_level(logging.ERROR):
            assert not run(record)
        assert records() == []
        assert f"can decrypt argument token of {charge.name}. Give the worker the same keys" in caplog.text
        for hidden in (SECRET, NEW, OLD, json.loads(record["body"])["kwargs"]["token"]["lambda_tasks.encrypted"]):
            assert hidden not in caplog.text

    @on_default
    def test_plain_argument_still_arrives(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_ENCRYPTION_KEYS = []
        charge.execute_on_commit(order=7, token=SECRET)
        record = event_record(jobs().pop())
        assert SECRET in record["body"]
        settings.LAMBDA_TASKS_ENCRYPTION_KEYS = [NEW]
        assert run(record)

    def test_missing_library_is_reported(self, settings: Any, monkeypatch: Any) -> None:
        monkeypatch.setattr("lambda_tasks.settings.values.find_spec", lambda name: None)
        assert util.find_spec("cryptography") is not None
        with pytest.raises(InvalidSetting, match=r"Install django-lambda-tasks\[encryption\]"):
            _ = app_settings.encryption_keys

    @pytest.mark.parametrize("value", [NEW, [NEW, "x" * 44], [NEW, NEW[:-2]]], ids=["string", "text", "short"])
    def test_invalid_setting_is_not_quoted(self, settings: Any, value: Any) -> None:
        settings.LAMBDA_TASKS_ENCRYPTION_KEYS = value
        with pytest.raises(InvalidSetting) as error:
            _ = app_settings.encryption_keys
        assert NEW[:-2] not in str(error.value)


def test_argument_cannot_move_to_another_task() -> None:
    sent = encrypted(Invocation("shop.tasks.charge", {"token": SECRET}), ["token"])
    for moved in (
        Invocation("shop.tasks.show", sent.kwargs),
        Invocation(sent.task_name, {"other": sent.kwargs["token"]}),
    ):
        with pytest.raises(ArgumentsUnreadable, match="was encrypted for another argument or task"):
            decrypted(moved, ["token", "other"])


texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | texts, st.lists, max_leaves=10))
def test_every_value_arrives_as_it_was(value: Any) -> None:
    message = Invocation("shop.tasks.charge", {"token": value, "order": value})
    sent = encrypted(message, ["token", "missing"])
    assert sent.kwargs["order"] == value
    assert encrypted(sent, ["token"]) == sent
    assert decrypted(Invocation.of_body(sent.to_body()), ["token", "missing", "order"]) == message


def test_size_is_that_of_the_encrypted_message(sqs: Sqs, settings: Any) -> None:
    job = Job(Invocation(charge.name, {"order": 7, "token": "x" * 1_000}), "1", "1", task=charge)
    assert len(job.body) > 1_400
    with pytest.raises(MessageTooLarge):
        SQSBackend(max_message_bytes=1_400).validate(job)


def test_tasks_without_sensitive_arguments_are_not_changed() -> None:
    message = Invocation("shop.tasks.pack", {"a": 1})
    assert Job(message, "1", "1").sent_message is message
