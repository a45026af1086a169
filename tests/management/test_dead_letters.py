"""Dead letter queues: looking at messages, sending them back without losing any, and deleting them."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any, Final

import pytest
from django.core.management import CommandError, call_command

from lambda_tasks.decorators import lambda_task
from lambda_tasks.management import dlq
from lambda_tasks.operations import dead_letters
from lambda_tasks.operations.dead_letters import DeadLetterError, dead_letter_queues, peek, redrive
from lambda_tasks.recording.masking import MASK
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE, QUEUE_ATTRIBUTE
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.stored import Stored
from tests.conftest import Sqs
from tests.operations.test_doctor import _answer as answer_of

# These tests depend on SQS, not on the version of Python or Django.
pytestmark = pytest.mark.once

OWN_ID: Final = "019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10"


@lambda_task(sensitive=("token",))
def call(*, token: str) -> None: ...


class Letters:
    """A dead letter queue of both queues of the settings."""

    def __init__(self, sqs: Sqs) -> None:
        self.sqs = sqs
        self.url = sqs.client.create_queue(QueueName="dead")["QueueUrl"]
        self.arn = self.arn_of(self.url)
        policy = json.dumps({"deadLetterTargetArn": self.arn, "maxReceiveCount": 1})
        for url in sqs.queues.values():
            sqs.client.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})

    def arn_of(self, url: str) -> str:
        answer = self.sqs.client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(answer["Attributes"]["QueueArn"])

    def add(self, body: str, **attributes: str) -> str:
        """Put a message of unknown origin into the dead letter queue."""
        own = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
        answer = self.sqs.client.send_message(QueueUrl=self.url, MessageBody=body, MessageAttributes=own)
        return str(answer["MessageId"])

    def kill(self, queue: str, body: str) -> None:
        """Have a message received until it is moved to the dead letter queue."""
        url = self.sqs.queues[queue]
        own = {QUEUE_ATTRIBUTE: {"DataType": "String", "StringValue": queue}}
        self.sqs.client.send_message(QueueUrl=url, MessageBody=body, MessageAttributes=own)
        for _ in range(2):
            self.sqs.client.receive_message(QueueUrl=url, VisibilityTimeout=0, WaitTimeSeconds=0)

    @property
    def count(self) -> int:
        answer = self.sqs.client.get_queue_attributes(
            QueueUrl=self.url, AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        )
        return sum(map(int, answer["Attributes"].values()))


@pytest.fixture
def letters(sqs: Sqs) -> Letters:
    return Letters(sqs)


@pytest.fixture(autouse=True)
def _quick_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "WAIT", 0)
    monkeypatch.setattr(dead_letters, "POLL", 0)


def printed(*arguments: str) -> str:
    output = StringIO()
    call_command("lambda_tasks", "dlq", *arguments, stdout=output, stderr=StringIO(), skip_checks=True)
    return output.getvalue()


def body(number: int = 1) -> str:
    return json.dumps({"task_name": "shop.tasks.gone", "kwargs": {"number": number}})


class TestPeek:
    def test_messages_stay_visible(self, letters: Letters) -> None:
        for number in range(12):
            letters.add(body(number))
        (queue,) = dead_letter_queues()
        assert len(peek(queue, limit=11)) == 11
        assert queue.count == 12

    def test_sensitive_arguments_are_masked(self, letters: Letters) -> None:
        letters.add(json.dumps({"task_name": call.name, "kwargs": {"token": "a secret"}}))
        letters.add(json.dumps({"task_name": "shop.tasks.gone", "kwargs": {"token": "another secret"}}))
        for arguments in (["peek", "--arguments"], ["peek", "--arguments", "--format", "json"]):
            text = printed(*arguments)
            assert MASK in text
            assert "secret" not in text

    def test_arguments_are_printed_on_request_only(self, letters: Letters) -> None:
        letters.add(json.dumps({"task_name": call.name, "kwargs": {"token": "a secret"}}))
        assert MASK not in printed("peek")
        assert "kwargs" not in json.loads(printed("peek", "--format", "json"))[0]

    def test_place_of_large_arguments_is_printed(self, letters: Letters) -> None:
        stored = Stored.of("{}", place="database:default", key=OWN_ID)
        letters.add(Invocation(call.name, stored=stored).to_body(), **{QUEUE_ATTRIBUTE: "default"})
        assert f"2 bytes in database:default, key {OWN_ID}" in " ".join(printed("peek", "--arguments").split())
        assert json.loads(printed("peek", "--arguments", "--format", "json"))[0]["stored"] == str(stored)
        assert "stored" not in json.loads(printed("peek", "--format", "json"))[0]
        printed("redrive")
        [body] = letters.sqs.bodies("default")
        assert body == {"task_name": call.name, "stored": stored.to_json()}

    def test_message_has_the_id_of_its_invocation(self, letters: Letters) -> None:
        letters.add(body(), **{MESSAGE_ID_ATTRIBUTE: OWN_ID})
        other = letters.add("nonsense")
        found = json.loads(printed("peek", "--format", "json"))
        assert {each["message_id"]: each["task_name"] for each in found} == {OWN_ID: "shop.tasks.gone", other: ""}
        assert "not a task: body: is not valid JSON" in printed("peek")

    def test_empty_queue_is_a_sentence(self, letters: Letters) -> None:
        assert printed("peek") == "No messages in dead.\n"


class TestRedrive:
    def test_messages_return_to_their_own_queues(self, letters: Letters) -> None:
        letters.kill("default", body(1))
        letters.kill("other", body(2))
        assert printed("redrive") == "dead: 2 messages sent back.\n"
        assert letters.count == 0
        assert letters.sqs.bodies("default") == [json.loads(body(1))]
        assert letters.sqs.bodies("other") == [json.loads(body(2))]

    def test_message_keeps_its_id_and_attributes(self, letters: Letters, settings: Any) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": letters.sqs.queues["default"]}
        letters.add(body(), trace="abc", **{MESSAGE_ID_ATTRIBUTE: OWN_ID})
        foreign = letters.add(body(2))
        letters.add("nonsense")
        printed("redrive")
        returned = {each["Body"]: each.get("MessageAttributes", {}) for each in letters.sqs.receive()}
        assert returned[body()]["trace"]["StringValue"] == "abc"
        assert returned[body()][MESSAGE_ID_ATTRIBUTE]["StringValue"] == OWN_ID
        assert returned[body(2)][MESSAGE_ID_ATTRIBUTE]["StringValue"] == foreign
        assert returned["nonsense"] == {}

    def test_limit_leaves_the_rest(self, letters: Letters) -> None:
        for number in range(3):
            letters.kill("default", body(number))
        (result,) = json.loads(printed("redrive", "--limit", "2", "--format", "json"))
        assert (result["moved"], letters.count) == (2, 1)

    def test_refused_messages_stay(self, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
        letters.kill("default", body(1))
        failed = {"Failed": [{"Id": "0", "Code": "TooLong", "SenderFault": True}]}
        answered_by(monkeypatch, "sqs.SendMessageBatch", 200, failed)
        output = StringIO()
        with pytest.raises(CommandError, match="Messages that were not sent back stay"):
            call_command("lambda_tasks", "dlq", "redrive", stdout=output, skip_checks=True)
        assert "dead: 0 messages sent back." in output.getvalue()
        assert "TooLong" in output.getvalue()
        assert letters.count == 1

    def test_messages_of_other_queues_stay(self, letters: Letters) -> None:
        letters.kill("other", body(1))
        with pytest.raises(CommandError, match="1 error"):
            printed("redrive", "--queue", "default", "--limit", "5")
        assert letters.count == 1
        assert letters.sqs.bodies("default") == []

    @pytest.mark.parametrize(
        ("attributes", "own", "url"),
        [
            ({"DeadLetterQueueSourceArn": "arn:other"}, {}, "url of other"),
            ({"DeadLetterQueueSourceArn": "arn:mail"}, {}, None),
            ({"DeadLetterQueueSourceArn": "arn:other"}, {QUEUE_ATTRIBUTE: {"StringValue": "default"}}, "url of other"),
            ({}, {QUEUE_ATTRIBUTE: {"StringValue": "other"}}, "url of other"),
            ({}, {}, None),
        ],
    )
    def test_origin_is_what_sqs_says(self, attributes: Any, own: Any, url: str | None) -> None:
        sources = {f"arn:{name}": (name, f"url of {name}") for name in ("default", "other")}
        queue = dead_letters.DeadLetterQueue("dead", "url", "arn:dead", sources, None)
        assert dead_letters._source_of(queue, {"Attributes": attributes, "MessageAttributes": own}) == url

    def test_unknown_origin_is_not_guessed(self, letters: Letters) -> None:
        letters.add(body())
        with pytest.raises(CommandError, match="1 error"):
            printed("redrive")
        assert letters.count == 1

    def test_message_that_comes_back_ends_the_move(self, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
        letters.kill("default", body(1))
        send_back = dead_letters._send_back

        def sent_and_dead_again(queue: Any, url: str, messages: Any, moved: Any) -> None:
            send_back(queue, url, messages, moved)
            for _ in range(2):
                letters.sqs.client.receive_message(QueueUrl=url, VisibilityTimeout=0, WaitTimeSeconds=0)

        monkeypatch.setattr(dead_letters, "_send_back", sent_and_dead_again)
        (queue,) = dead_letter_queues()
        assert redrive(queue).number == 1
        assert letters.count == 1

    def test_aws_moves_messages_by_itself(self, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
        running = {"Status": "RUNNING", "TaskHandle": "handle", "ApproximateNumberOfMessagesMoved": 2}
        done = {"Status": "COMPLETED", "ApproximateNumberOfMessagesMoved": 5}
        answered_by(monkeypatch, "sqs.StartMessageMoveTask", 200, {"TaskHandle": "handle"})
        answered_by(monkeypatch, "sqs.ListMessageMoveTasks", 200, {"Results": [running]}, {"Results": [done]})
        reported: list[int] = []
        (queue,) = dead_letter_queues()
        assert redrive(queue, report=reported.append) == dead_letters.Moved(5)
        assert reported == [2, 3]

    def test_failed_move_of_aws_is_reported(self, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
        failed = {"Status": "FAILED", "FailureReason": "AccessDenied"}
        answered_by(monkeypatch, "sqs.StartMessageMoveTask", 200, {"TaskHandle": "handle"})
        answered_by(monkeypatch, "sqs.ListMessageMoveTasks", 200, {"Results": [failed]})
        with pytest.raises(CommandError, match="1 error"):
            printed("redrive")

    def test_missing_permission_is_not_circumvented(self, letters: Letters, monkeypatch: pytest.MonkeyPatch) -> None:
        letters.kill("default", body(1))
        answered_by(monkeypatch, "sqs.StartMessageMoveTask", 403, {"__type": "AccessDenied", "message": "no"})
        with pytest.raises(CommandError, match="cannot be moved"):
            printed("redrive")
        assert letters.count == 1


class TestPurge:
    def test_messages_are_deleted(self, letters: Letters) -> None:
        letters.add(body())
        assert printed("purge", "--yes") == "dead: 1 message deleted.\n"
        assert letters.count == 0

    @pytest.mark.parametrize("answer", [None, "no", "yes"])
    def test_confirmation_is_needed(
        self, letters: Letters, monkeypatch: pytest.MonkeyPatch, answer: str | None
    ) -> None:
        letters.add(body())
        monkeypatch.setattr(dlq.sys.stdin, "isatty", lambda: answer is not None, raising=False)
        monkeypatch.setattr("builtins.input", lambda question: answer)
        if answer == "yes":
            printed("purge")
        else:
            with pytest.raises(CommandError, match=r"--yes|Nothing was deleted"):
                printed("purge")
        assert letters.count == (answer != "yes")


class TestProblems:
    def test_queue_without_dead_letters_is_named(self, sqs: Sqs) -> None:
        with pytest.raises(CommandError, match="None of the queues has a dead letter queue"):
            printed("peek")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [(["peek", "--queue", "mail"], r"not 'mail'"), (["peek", "--limit", "0"], "--limit must be 1 or more")],
    )
    def test_option_is_named(self, letters: Letters, arguments: list[str], message: str) -> None:
        with pytest.raises(CommandError, match=message):
            printed(*arguments)

    def test_unreadable_queue_is_named(self, letters: Letters, settings: Any) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": letters.sqs.queues["default"] + "-gone"}
        with pytest.raises(DeadLetterError, match="cannot be read"):
            dead_letter_queues()


def answered_by(monkeypatch: pytest.MonkeyPatch, operation: str, status: int, *bodies: dict[str, Any]) -> None:
    """Answer the requests of an operation here, one after the other; the last body stands for all later ones."""
    connect = dead_letters.connect_to_aws
    left = list(bodies)

    def answer(request: Any, **options: Any) -> Any:
        return answer_of(status, left.pop(0) if len(left) > 1 else left[0])(request, **options)

    def connected(*arguments: Any, **options: Any) -> Any:
        client = connect(*arguments, **options)
        client.meta.events.register(f"before-send.{operation}", answer)
        return client

    monkeypatch.setattr(dead_letters, "connect_to_aws", connected)
