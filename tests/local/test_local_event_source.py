"""The event source mapping: how messages become an event, and what a response means for the messages."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from lambda_tasks.local.event_source import (
    MAX_EVENT_SIZE,
    EventSource,
    QueueUnavailable,
    ReceivedBatch,
    Verdict,
    build_event,
    build_record,
    interpret_answer,
    judge,
    open_sources,
    split_by_size,
)
from lambda_tasks.local.runtime_api import Answered, Crashed, Errored, TimedOut
from lambda_tasks.wire.queue_urls import region_in

ARN = "arn:aws:sqs:eu-west-1:123456789012:default"
URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/default"
NOBODY = "http://127.0.0.1:9"  # the port of "discard", on which no service listens
IDS = ("a", "b", "c")
OPEN = threading.Event()


def message(name: str = "a", **parts: Any) -> dict[str, Any]:
    return {"MessageId": name, "ReceiptHandle": f"handle-{name}", "Body": "{}", "MD5OfBody": "99914b", **parts}


# From messages to an event


def test_record_has_the_shape_of_a_lambda_record() -> None:
    received = message(
        Body='{"task_name": "shop.tasks.send"}',
        Attributes={"ApproximateReceiveCount": "2", "SentTimestamp": 1760000000000},
        MessageAttributes={"id": {"StringValue": "0193", "DataType": "String"}},
        MD5OfMessageAttributes="not passed on",
    )

    assert build_event([build_record(received, queue_arn=ARN)]) == {
        "Records": [
            {
                "messageId": "a",
                "receiptHandle": "handle-a",
                "body": '{"task_name": "shop.tasks.send"}',
                "attributes": {"ApproximateReceiveCount": "2", "SentTimestamp": "1760000000000"},
                "messageAttributes": {
                    "id": {
                        "stringValue": "0193",
                        "stringListValues": [],
                        "binaryListValues": [],
                        "dataType": "String",
                    }
                },
                "md5OfBody": "99914b",
                "eventSource": "aws:sqs",
                "eventSourceARN": ARN,
                "awsRegion": "eu-west-1",
            }
        ]
    }


def test_binary_attributes_travel_in_base64() -> None:
    received = message(MessageAttributes={"key": {"BinaryValue": b"\x00\xff", "DataType": "Binary"}})

    assert build_record(received, queue_arn=ARN)["messageAttributes"] == {
        "key": {"binaryValue": "AP8=", "stringListValues": [], "binaryListValues": [], "dataType": "Binary"}
    }


def test_message_without_attributes_has_empty_attributes() -> None:
    record = build_record(message(), queue_arn=ARN)

    assert record["attributes"] == {}
    assert record["messageAttributes"] == {}


def test_large_records_are_split_into_several_events() -> None:
    # The order stays.
    records = [{"body": "x" * 1_000_000, "number": number} for number in range(10)]

    parts = list(split_by_size(records))

    assert [len(part) for part in parts] == [6, 4]
    assert [record for part in parts for record in part] == records
    assert all(len(json.dumps(build_event(part))) <= MAX_EVENT_SIZE for part in parts)


def test_split_uses_the_available_space() -> None:
    records = [{"n": 1}, {"n": 2}, {"n": 3}]
    for_two = len(json.dumps(build_event(records[:2]))) + len(", ")

    assert list(split_by_size(records, limit=for_two)) == [records[:2], records[2:]]
    assert list(split_by_size(records, limit=1)) == [[record] for record in records]
    assert list(split_by_size([])) == []


# From the response to a verdict


@pytest.mark.parametrize("answer", [b'{"batchItemFailures": []}', b'{"batchItemFailures": null}', b"{}", b"null"])
def test_responses_that_report_complete_success(answer: bytes) -> None:
    assert interpret_answer(answer, IDS) == Verdict(frozenset())


def failures(*items: Any) -> bytes:
    return json.dumps({"batchItemFailures": items}).encode()


def test_only_reported_messages_have_failed() -> None:
    verdict = interpret_answer(failures({"itemIdentifier": "b"}, {"itemIdentifier": "b"}), IDS)

    assert verdict == Verdict(frozenset("b"), "the handler reported them as failed")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "it is not JSON"),
        (b"not json", "it is not JSON"),
        (b"\xff\xfe\xfd", "it is not JSON"),
        (b'{"batchItemFailures": [], "cost": NaN}', "it is not JSON (NaN is not allowed in JSON)"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", 'lacks the key "batchItemFailures"'),
        (b'"done"', 'lacks the key "batchItemFailures"'),
        (b'{"batchitemfailures": []}', 'lacks the key "batchItemFailures"'),
        (b'{"batchItemFailures": {}}', "must be a list"),
        (failures("a"), 'lacks the key "itemIdentifier"'),
        (failures({"id": "a"}), 'lacks the key "itemIdentifier"'),
        (failures({"itemIdentifier": ""}), "must be a non-empty string"),
        (failures({"itemIdentifier": None}), "must be a non-empty string"),
        (failures({"itemIdentifier": 7}), "must be a non-empty string"),
        (failures({"itemIdentifier": "d"}), "'d' is not the id of a message"),
        (failures({"itemIdentifier": "a"}, {"itemIdentifier": "d"}), "'d' is not the id of a message"),
    ],
)
def test_responses_that_fail_the_whole_batch(answer: bytes, reason: str) -> None:
    verdict = interpret_answer(answer, IDS)

    assert verdict.failed_ids == set(IDS)
    assert reason in verdict.reason


def test_long_response_is_quoted_in_part() -> None:
    assert len(interpret_answer(b'"' + b"x" * 10_000 + b'"', IDS).reason) < 300


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Errored("KeyError", "'x'"), "the handler raised KeyError: 'x'"),
        (Crashed("killed by SIGKILL"), "the runtime crashed: killed by SIGKILL"),
        (TimedOut(60.0), "the function timed out after 60 s"),
    ],
)
def test_missing_response_fails_the_whole_batch(result: Errored | Crashed | TimedOut, reason: str) -> None:
    assert judge(result, IDS) == Verdict(frozenset(IDS), reason)


def test_response_is_judged_by_its_body() -> None:
    assert judge(Answered(failures({"itemIdentifier": "c"})), IDS).failed_ids == {"c"}


# The queue


class ScriptedSqs:
    """Answers each receive with the next item of a script, and records the requests."""

    def __init__(self, *script: int | Exception, failed: tuple[str, ...] = ()) -> None:
        self.script = list(script)
        self.asked: list[tuple[int, int]] = []
        self.deleted: list[list[str]] = []
        self.failed = failed
        self.counts: list[tuple[int, int, int]] = []

    def get_queue_attributes(self, **_: Any) -> dict[str, Any]:
        visible, in_flight, delayed = map(str, self.counts.pop(0) if self.counts else (0, 0, 0))
        return {
            "Attributes": {
                "QueueArn": ARN,
                "VisibilityTimeout": "30",
                "ApproximateNumberOfMessages": visible,
                "ApproximateNumberOfMessagesNotVisible": in_flight,
                "ApproximateNumberOfMessagesDelayed": delayed,
            }
        }

    def receive_message(self, *, MaxNumberOfMessages: int, WaitTimeSeconds: int, **_: Any) -> dict[str, Any]:  # noqa: N803
        self.asked.append((MaxNumberOfMessages, WaitTimeSeconds))
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return {"Messages": [message(f"{len(self.asked)}-{number}") for number in range(step)]} if step else {}

    def delete_message_batch(self, *, Entries: list[dict[str, str]], **_: Any) -> dict[str, Any]:  # noqa: N803
        self.deleted.append([entry["ReceiptHandle"] for entry in Entries])
        return {"Failed": [{"Id": each, "Code": "InternalError"} for each in self.failed]}


def source(client: ScriptedSqs, *, batch_size: int = 10, window: int = 0, wait: int = 2) -> EventSource:
    return EventSource(
        "default", URL, client=client, batch_size=batch_size, batching_window_seconds=window, wait_seconds=wait
    )


def test_receive_is_a_batch_without_a_window() -> None:
    sqs = ScriptedSqs(4)

    assert len(source(sqs).gather(OPEN)) == 4
    assert sqs.asked == [(10, 2)]


def test_window_fills_a_batch_by_tens() -> None:
    sqs = ScriptedSqs(10, 10, 0, 5)

    assert len(source(sqs, batch_size=25, window=60).gather(OPEN)) == 25
    assert sqs.asked == [(10, 2), (10, 2), (5, 2), (5, 2)]


def test_window_starts_with_the_first_message() -> None:
    sqs = ScriptedSqs(0)

    assert source(sqs, batch_size=25, window=60).gather(OPEN) == []
    assert sqs.asked == [(10, 2)]


def test_stop_ends_the_window_of_a_batch() -> None:
    stopping = threading.Event()

    class StopsMeanwhile(ScriptedSqs):
        def receive_message(self, **options: Any) -> dict[str, Any]:
            stopping.set()
            return super().receive_message(**options)

    assert len(source(StopsMeanwhile(3), batch_size=25, window=60).gather(stopping)) == 3


def test_stopped_source_receives_no_messages() -> None:
    stopping = threading.Event()
    stopping.set()

    assert source(sqs := ScriptedSqs(), batch_size=1).gather(stopping) == []
    assert sqs.asked == []


def test_received_messages_survive_an_sqs_error() -> None:
    sqs = ScriptedSqs(3, EndpointConnectionError(endpoint_url=URL))

    assert len(source(sqs, batch_size=25, window=60).gather(OPEN)) == 3


def test_messages_become_batches_with_their_events() -> None:
    large = [message(name, Body="x" * 1_000_000) for name in "abcdefgh"]

    batches = list(source(ScriptedSqs()).batches(large))

    assert [batch.message_ids for batch in batches] == [tuple("abcdef"), tuple("gh")]
    assert [record["messageId"] for record in batches[1].event["Records"]] == ["g", "h"]
    assert list(source(ScriptedSqs()).batches([])) == []


def batch_of(*names: str) -> ReceivedBatch:
    return ReceivedBatch(tuple(message(name) for name in names), {})


def test_succeeded_messages_are_deleted_by_tens() -> None:
    sqs = ScriptedSqs()
    names = [f"{number:02}" for number in range(13)]

    assert source(sqs).delete_succeeded(batch_of(*names), Verdict(frozenset({"00", "07"}))) == []

    done = [f"handle-{name}" for name in names if name not in {"00", "07"}]
    assert sqs.deleted == [done[:10], done[10:]]


def test_both_copies_of_a_failed_message_stay() -> None:
    sqs = ScriptedSqs()

    source(sqs).delete_succeeded(batch_of("a", "b", "a"), Verdict(frozenset("a")))

    assert sqs.deleted == [["handle-b"]]


def test_failed_batch_deletes_no_messages() -> None:
    sqs = ScriptedSqs()

    source(sqs).delete_succeeded(batch_of(*IDS), Verdict(frozenset(IDS)))

    assert sqs.deleted == []


def test_messages_that_sqs_kept_are_named() -> None:
    sqs = ScriptedSqs(failed=("1",))

    complaints = source(sqs).delete_succeeded(batch_of(*IDS), Verdict(frozenset()))

    assert complaints == ["SQS did not delete b, so it will be redelivered: InternalError"]


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_queue_with_any_message_is_not_idle(counts: tuple[int, int, int]) -> None:
    queue = source(sqs := ScriptedSqs())
    assert queue.is_idle()

    sqs.counts = [counts]
    assert not queue.is_idle()


def test_second_count_finds_a_message_turning_visible() -> None:
    queue = source(sqs := ScriptedSqs())

    sqs.counts = [(0, 0, 0), (1, 0, 0)]
    assert not queue.is_idle()


def test_unreadable_queue_is_named_with_the_remedy() -> None:
    with pytest.raises(QueueUnavailable, match=r"Queue 'default' .* cannot be read at http://127\.0\.0\.1:9: .*") as e:
        open_sources({"default": URL}, endpoint_url=NOBODY, batch_size=1, batching_window_seconds=0, wait_seconds=0)

    assert "LAMBDA_TASKS_QUEUES" in str(e.value)
    assert "AWS_ENDPOINT_URL_SQS" in str(e.value)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.ap-southeast-2.amazonaws.com/1/q", "ap-southeast-2"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
        ("https://us-west-2.queue.amazonaws.com/1/q", "us-west-2"),
        ("http://127.0.0.1:4566/000000000000/q", None),
    ],
)
def test_client_uses_the_region_in_the_url(url: str, region: str | None) -> None:
    assert region_in(url) == region
