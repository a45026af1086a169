"""Signed messages: who may send, what is covered, how keys change, and that no key is shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from io import StringIO
from typing import Any, Final

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.backends.sqs_messages import excessive_size
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidSetting, InvalidSignature, MessageTooLarge, RetryLater
from lambda_tasks.execution.current import current_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.local.event_source import build_record
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations import dead_letters
from lambda_tasks.operations.dead_letters import dead_letter_queues, redrive
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.attributes import CONTEXT_ATTRIBUTE, OWN_ATTRIBUTES, QUEUE_ATTRIBUTE, ROOT_ID_ATTRIBUTE
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.signing import SIGNATURE_BYTES, signed, verify
from tests.conftest import Sqs
from tests.operations.infrastructure import described

OLD: Final = "the old key, with 32 characters!"
NEW: Final = "the new key, which has more than 32 characters"
BODY: Final = '{"task_name":"tests.wire.test_signing.note","kwargs":{"text":"a"}}'

on_default = pytest.mark.django_db(transaction=True)


@lambda_task
def note(*, text: str) -> str:
    return text


@lambda_task(group="text")
def note_again(*, text: str) -> str:
    task = current_task()
    if task is not None and task.attempt == 1:
        raise RetryLater(delay=0)
    return text


@pytest.fixture(autouse=True)
def _keys(settings: Any) -> None:
    settings.LAMBDA_TASKS_SIGNING_KEYS = [NEW, OLD]


def jobs() -> list[Job]:
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    return backend.jobs


def record_of(message: dict[str, Any]) -> dict[str, Any]:
    return build_record(message, queue_arn="arn:aws:sqs:us-east-1:123456789012:default")


def run(record: dict[str, Any]) -> bool:
    """Return whether the message is acknowledged."""
    return handler({"Records": [record]}, None) == {"batchItemFailures": []}


def statuses() -> list[str]:
    return sorted(TaskRecord.objects.values_list("status", flat=True))


class TestSigned:
    @on_default
    def test_signed_message_runs(self, sqs: Sqs) -> None:
        note.execute_on_commit(text="注")
        [message] = sqs.receive()
        body = json.loads(message["Body"])
        assert list(body) == ["task_name", "kwargs", "signature"]
        assert run(record_of(message))
        assert statuses() == ["SUCCESS"]

    @on_default
    def test_retries_are_signed(self, sqs: Sqs) -> None:
        note_again.execute_on_commit(text="a")
        for _ in range(2):
            assert [run(record_of(message)) for message in sqs.receive()] == [True]
        assert statuses() == ["RETRYING", "SUCCESS"]

    @on_default
    def test_batch_is_signed(self, sqs: Sqs) -> None:
        with transaction.atomic():
            for text in "abc":
                note.execute_on_commit(text=text)
        assert [run(record_of(message)) for message in sqs.receive()] == [True] * 3

    @on_default
    def test_outbox_signs_when_it_sends(self, sqs: Sqs, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        note.using(delay=5_000).execute_on_commit(text="a")
        row = OutboxMessage.objects.get()
        assert "signature" not in row.body
        settings.LAMBDA_TASKS_SIGNING_KEYS = [NEW]  # the key of the call is no longer valid
        get_backend().send_now([row.pk], using="default")  # type: ignore[attr-defined]
        assert [run(record_of(message)) for message in sqs.receive()] == [True]

    @on_default
    def test_memory_transport_signs(self) -> None:
        note.execute_on_commit(text="a")
        assert run(event_record(jobs().pop()))

    def test_size_includes_the_signature(self, sqs: Sqs) -> None:
        job = Job(Invocation("shop.tasks.pack", {"text": "x"}), "1", "1")
        attributes = job.message_attributes()
        assert len(signed(job.body, attributes, NEW)) == len(job.body) + SIGNATURE_BYTES
        with override_settings(LAMBDA_TASKS_SIGNING_KEYS=()):
            unsigned = excessive_size(job, attributes, 0)
        SQSBackend(max_message_bytes=unsigned + SIGNATURE_BYTES).validate(job)
        with pytest.raises(MessageTooLarge):
            SQSBackend(max_message_bytes=unsigned + SIGNATURE_BYTES - 1).validate(job)


def _unsigned(record: dict[str, Any]) -> None:
    record["body"] = BODY


def _other_arguments(record: dict[str, Any]) -> None:
    record["body"] = record["body"].replace('"text":"a"', '"text":"b"')


def _other_number(record: dict[str, Any]) -> None:
    record["body"] = record["body"].replace(',"signature"', ',"n_retries":7,"signature"')


def _field_after_the_signature(record: dict[str, Any]) -> None:
    record["body"] = record["body"][:-1] + ',"kwargs":{"text":"b"}}'


def _signature_of_another(record: dict[str, Any]) -> None:
    record["body"] = signed(BODY, {}, NEW)


def _wrong_key(record: dict[str, Any]) -> None:
    texts = {name: each["stringValue"] for name, each in record["messageAttributes"].items()}
    record["body"] = signed(BODY, texts, "a key that nobody has given to us")


def _set(name: str) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        value = "019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10"
        record["messageAttributes"][name] = {"stringValue": value, "dataType": "String"}

    change.__name__ = f"set {name}"
    return change


def _no_queue(record: dict[str, Any]) -> None:
    del record["messageAttributes"][QUEUE_ATTRIBUTE]


CHANGES: Final = (
    *(_unsigned, _other_arguments, _other_number, _field_after_the_signature, _signature_of_another, _wrong_key),
    *(_set(name) for name in sorted(OWN_ATTRIBUTES | {CONTEXT_ATTRIBUTE})),
    _no_queue,
)


class TestRefused:
    @on_default
    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
    def test_changed_message_does_not_run(
        self, change: Callable[[dict[str, Any]], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        note.execute_on_commit(text="a")
        record = event_record(jobs().pop())
        change(record)
        with caplog.at_level(logging.ERROR):
            assert not run(record)
        assert statuses() == []
        assert "stays on the queue: this worker cannot run it." in caplog.text
        assert "InvalidSignature" in caplog.text
        assert NEW not in caplog.text
        assert OLD not in caplog.text

    @on_default
    def test_other_attributes_may_change(self) -> None:
        note.execute_on_commit(text="a")
        record = event_record(jobs().pop())
        record["messageAttributes"]["traceparent"] = {"stringValue": "00-1", "dataType": "String"}
        assert run(record)

    @on_default
    def test_task_without_a_transport_needs_no_signature(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        note.execute_on_commit(text="a")
        assert statuses() == ["SUCCESS"]


class TestKeys:
    def test_each_key_verifies_and_the_first_signs(self) -> None:
        for key in (NEW, OLD):
            verify(signed(BODY, {}, key), {}, app_settings.signing_keys)
        with pytest.raises(InvalidSignature, match="No key in LAMBDA_TASKS_SIGNING_KEYS has signed the message"):
            verify(signed(BODY, {}, NEW), {}, (OLD,))

    @on_default
    def test_worker_without_keys_runs_signed_messages(self, settings: Any) -> None:
        note.execute_on_commit(text="a")
        record = event_record(jobs().pop())
        settings.LAMBDA_TASKS_SIGNING_KEYS = []
        assert run(record)

    @pytest.mark.parametrize(
        ("accept", "runs"),
        [
            (True, True),
            (False, False),
            (datetime.now(timezone.utc) + timedelta(hours=1), True),
            (datetime.now(timezone.utc) - timedelta(hours=1), False),
        ],
        ids=["always", "never", "until later", "until earlier"],
    )
    @on_default
    def test_unsigned_messages_during_a_migration(self, settings: Any, accept: Any, runs: bool) -> None:
        settings.LAMBDA_TASKS_ACCEPT_UNSIGNED = accept
        note.execute_on_commit(text="a")
        record = event_record(jobs().pop())
        wrong = {**record, "body": signed(BODY, {}, NEW)}
        _unsigned(record)
        assert not run(wrong)  # a wrong signature is never accepted
        assert run(record) == runs

    @pytest.mark.parametrize("value", [NEW, 5, {NEW: NEW}, [NEW, 5], [b"x" * 40], ["short secret"]], ids=str)
    def test_invalid_setting_is_not_quoted(self, settings: Any, value: Any) -> None:
        settings.LAMBDA_TASKS_SIGNING_KEYS = value
        with pytest.raises(InvalidSetting) as error:
            _ = app_settings.signing_keys
        assert NEW not in str(error.value)
        assert "secret" not in str(error.value).replace("secrets.token_urlsafe", "").replace("import secrets", "")

    def test_moment_needs_a_time_zone(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_ACCEPT_UNSIGNED = datetime(2027, 1, 1)  # noqa: DTZ001
        with pytest.raises(InvalidSetting, match="must be a datetime with a time zone"):
            _ = app_settings.accept_unsigned


names = st.sampled_from(sorted(OWN_ATTRIBUTES))
attributes = st.dictionaries(names, st.text(st.characters(codec="utf-8"), min_size=1, max_size=5), max_size=3)
bodies = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: json.dumps({"a": text}))


@given(first=st.tuples(bodies, attributes), second=st.tuples(bodies, attributes))
def test_different_messages_have_different_signatures(first: Any, second: Any) -> None:
    ends = {signed(*message, NEW).rpartition(",")[2] for message in (first, second)}
    assert (len(ends) == 1) == (first == second)


def test_value_cannot_continue_as_another_attribute() -> None:
    two = {QUEUE_ATTRIBUTE: "a", ROOT_ID_ATTRIBUTE: "b"}
    one = {QUEUE_ATTRIBUTE: f"a{ROOT_ID_ATTRIBUTE}b"}
    assert signed(BODY, two, NEW) != signed(BODY, one, NEW)


class TestOtherPrograms:
    @on_default
    def test_command_signs_a_body(self) -> None:
        output = StringIO()
        call_command("lambda_tasks", "sign", BODY, stdout=output)
        assert run({"messageId": "1", "body": output.getvalue().strip(), "attributes": {}, "messageAttributes": {}})

    def test_template_signs_the_cleanup(self) -> None:
        plan = described(LAMBDA_TASKS_SIGNING_KEYS=[NEW]).cleanup
        assert plan is not None
        verify(plan.body, {}, [NEW])
        assert Invocation.of_body(plan.body).task_name == "lambda_tasks.tasks.cleanup_task_records"

    def test_command_needs_a_key(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_SIGNING_KEYS = []
        with pytest.raises(CommandError, match="LAMBDA_TASKS_SIGNING_KEYS is empty"):
            call_command("lambda_tasks", "sign", BODY)

    @on_default
    def test_redriven_message_is_signed_again(self, sqs: Sqs, monkeypatch: Any) -> None:
        monkeypatch.setattr(dead_letters, "WAIT", 0)
        dead = sqs.client.create_queue(QueueName="dead")["QueueUrl"]
        arn = sqs.client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = {"RedrivePolicy": json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1})}
        sqs.client.set_queue_attributes(QueueUrl=sqs.queues["default"], Attributes=policy)
        sqs.client.send_message(QueueUrl=dead, MessageBody=signed(BODY, {}, OLD))
        [queue] = dead_letter_queues()
        assert redrive(queue, limit=1).number == 1
        [message] = sqs.receive()
        assert run(record_of(message))
        assert statuses() == ["SUCCESS"]
