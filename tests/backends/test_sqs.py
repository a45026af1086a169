"""The transport to SQS, tested with moto's server over HTTP and a proxy in between that simulates faults."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from botocore.client import BaseClient
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoRegionError,
    ReadTimeoutError,
)
from hypothesis import example, given
from hypothesis import strategies as st

from lambda_tasks.backends import sqs as sqs_backend
from lambda_tasks.backends.base import Refused, Taken, Unsent
from lambda_tasks.backends.memory import event_record
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments, InvalidSetting, MessageTooLarge, UnknownQueue
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.sending.results import first_error, send_all
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE
from lambda_tasks.wire.ids import new_message_id, tick_id
from lambda_tasks.wire.invocation import Invocation, in_ascii
from lambda_tasks.wire.queue_urls import Server
from tests.conftest import Sqs
from tests.relay import Answer, Fault, Forward, Relay, Request, running
from tests.sending.test_side_by_side import worker_threads


@lambda_task(expires_in=60)
def perishable() -> None: ...


@lambda_task
def regular() -> None: ...


@pytest.fixture(name="relay")
def _relay(sqs: Sqs) -> Iterator[Relay]:
    with running(sqs.endpoint) as server:
        yield server


@pytest.fixture
def backend(relay: Relay) -> SQSBackend:
    """Return a backend that sends requests one after the other, so that each request gets its own fault."""
    return SQSBackend(endpoint_url=relay.url, read_timeout=10, max_threads=1)


@pytest.fixture(autouse=True)
def _no_pause_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqs_backend.random, "uniform", lambda low, high: low)


def distant(**options: Any) -> SQSBackend:
    """Return a backend that has measured a round trip as long as to AWS."""
    return mark_as_distant(SQSBackend(**options))


def mark_as_distant(backend: SQSBackend) -> SQSBackend:
    backend._waited.update((backend._server(url), 1.0) for url in app_settings.queues.values())
    return backend


def new_job(*, queue: str = "default", delay: int = 0, attributes: dict[str, str] | None = None, **kwargs: Any) -> Job:
    message_id = new_message_id()
    return Job(
        message=SQSLambdaTaskMessage(task_name="shop.tasks.pack", kwargs=kwargs),
        message_id=message_id,
        root_id=message_id,
        queue=queue,
        delay=delay,
        attributes=attributes or {},
    )


def send(backend: SQSBackend, jobs: list[Job], *, taken: Callable[[Job], object] = lambda job: None) -> None:
    """Send `jobs` like the library: attempt all of them, and then raise the first error."""
    if error := first_error(send_all(backend.send, jobs, taken=taken)):
        raise error


def new_jobs(count: int, **options: Any) -> list[Job]:
    return [new_job(number=number, **options) for number in range(count)]


def ids(jobs: list[Job]) -> list[str]:
    return [job.message_id for job in jobs]


def arrived(sqs: Sqs, queue: str = "default") -> list[str]:
    """Receive all messages of the queue, and return their ids, sorted."""
    found = []
    while batch := sqs.receive(queue):
        found += [message["MessageAttributes"][MESSAGE_ID_ATTRIBUTE]["StringValue"] for message in batch]
    return sorted(found)


# The number of requests


def test_single_job_is_sent_by_send_message(backend: SQSBackend, relay: Relay) -> None:
    send(backend, [new_job()])
    assert relay.operations() == [("SendMessage", 1)]


def test_jobs_are_sent_in_batches_of_ten(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    jobs = new_jobs(25)
    send(backend, jobs)
    assert relay.operations() == [("SendMessageBatch", 10), ("SendMessageBatch", 10), ("SendMessageBatch", 5)]
    assert arrived(sqs) == sorted(ids(jobs))


def test_each_queue_has_its_own_batches(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    mine, others = new_jobs(3), new_jobs(2, queue="other")
    send(backend, [mine[0], others[0], mine[1], others[1], mine[2]])
    assert relay.operations() == [("SendMessageBatch", 3), ("SendMessageBatch", 2)]
    assert arrived(sqs) == sorted(ids(mine))
    assert arrived(sqs, "other") == sorted(ids(others))


def test_large_messages_are_split_between_batches(relay: Relay) -> None:
    backend = SQSBackend(endpoint_url=relay.url, max_message_bytes=2_000, max_threads=1)
    send(backend, [new_job(text="x" * size) for size in (500, 500, 500, 1_200, 10, 10)])
    assert relay.operations() == [("SendMessageBatch", 2), ("SendMessage", 1), ("SendMessageBatch", 3)]


def test_largest_messages_are_sent_one_by_one(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    jobs = [new_job(text="x" * 1_040_000) for _ in range(2)]
    send(backend, jobs)
    assert relay.operations() == [("SendMessage", 1)] * 2
    assert arrived(sqs) == sorted(ids(jobs))


# The parts of a message


def test_message_has_documented_body_and_ids(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    job = replace(new_job(order=7, attributes={"traceparent": "00-1"}), root_id=new_message_id())
    send(backend, [job])
    [message] = sqs.receive()
    assert json.loads(message["Body"]) == {"task_name": "shop.tasks.pack", "kwargs": {"order": 7}}
    assert message["MessageAttributes"] == {
        "lambda_tasks.message_id": {"DataType": "String", "StringValue": job.message_id},
        "lambda_tasks.root_id": {"DataType": "String", "StringValue": job.root_id},
        "lambda_tasks.queue": {"DataType": "String", "StringValue": "default"},
        "traceparent": {"DataType": "String", "StringValue": "00-1"},
    }


storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=50)
#: The characters that SQS accepts in a body: those of XML 1.0.
ACCEPTED = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")


@given(text=storable_text)
@example(text="\ufffe\uffff\x01\x1f\x7f\x85\u2028\U0001ffff😀注")
def test_body_has_only_characters_that_sqs_accepts(text: str) -> None:
    body = new_job(text=text, **{f"key {text}": [text]}).message.to_body()
    assert ACCEPTED.fullmatch(body)
    assert SQSLambdaTaskMessage.from_body(body).kwargs == {"text": text, f"key {text}": [text]}
    # Workers of every version read both forms.
    assert json.loads(body) == json.loads(in_ascii(body))
    assert in_ascii(body).isascii()


def test_lone_surrogate_is_escaped() -> None:
    assert Invocation("a.b", {"text": "\ud800"}).to_body() == r'{"task_name":"a.b","kwargs":{"text":"\ud800"}}'


@pytest.mark.parametrize("text", ["注", "é", "😀", "\u2028", "\x7f"], ids=ascii)
def test_body_is_as_large_as_its_text(text: str) -> None:
    empty, full = (new_job(text=text * count).message.to_body().encode() for count in (0, 1_000))
    assert len(full) - len(empty) == 1_000 * len(text.encode())


def test_sqs_takes_japanese_text_up_to_its_limit(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    text = "注" * 349_000
    backend.validate(job := new_job(text=text))
    with pytest.raises(MessageTooLarge):
        backend.validate(new_job(text=text + "注" * 1_000))
    send(backend, [job])
    assert 1_047_000 < size_on_the_wire(relay.requests[0]) <= 1_048_576
    assert len(arrived(sqs)) == 1


def test_sqs_applies_the_delay(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    send(backend, [new_job(delay=900)])
    send(backend, [new_job(delay=30), new_job()])
    assert [entry["DelaySeconds"] for request in relay.requests for entry in request.entries] == [900, 30, 0]
    assert sqs.depth() == {"visible": 1, "delayed": 2, "in_flight": 0}


# Errors at the call


def size_in_sqs(body: str, attributes: Mapping[str, str]) -> int:
    """Return the bytes that count toward the limit: the body, and the name, type and value of each attribute."""
    strings = [body, *attributes, *attributes.values(), *["String"] * len(attributes)]
    return sum(len(string.encode()) for string in strings)


def size_on_the_wire(request: Request) -> int:
    return sum(
        size_in_sqs(
            entry["MessageBody"],
            {name: attribute["StringValue"] for name, attribute in entry["MessageAttributes"].items()},
        )
        for entry in request.entries
    )


@given(
    text=storable_text, note=st.text(st.characters(codec="utf-8", min_codepoint=32, max_codepoint=0xD7FF), min_size=1)
)
def test_size_limit_covers_body_and_attributes_exactly(text: str, note: str) -> None:
    job = new_job(text=text, attributes={"note": note})
    longest_retry = job.message.model_copy(update={"n_retries": 2**31 - 1})
    size = size_in_sqs(longest_retry.to_body(), job.message_attributes())
    SQSBackend(max_message_bytes=size).validate(job)
    with pytest.raises(MessageTooLarge, match=r"of shop\.tasks\.pack must have at most [\d,]+ bytes"):
        SQSBackend(max_message_bytes=size - 1).validate(job)


def test_sqs_accepts_the_largest_accepted_message(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    def fits(length: int) -> bool:
        try:
            backend.validate(new_job(text="x" * length))
        except MessageTooLarge:
            return False
        return True

    low, high = 0, 2_000_000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    send(backend, [new_job(text="x" * low)])
    assert 1_048_576 - 30 <= size_on_the_wire(relay.requests[0]) <= 1_048_576
    assert len(arrived(sqs)) == 1


def test_unknown_queue_is_refused_with_a_remedy(backend: SQSBackend) -> None:
    with pytest.raises(UnknownQueue, match=r"'mail' is not in LAMBDA_TASKS_QUEUES.*queue= on shop\.tasks\.pack"):
        backend.validate(new_job(queue="mail"))


def test_plugins_may_add_six_attributes_to_ticks(backend: SQSBackend) -> None:
    """A retry of a tick carries the time of its first message, which its id does not tell. Both times are packed."""
    six = {f"a{number}": "x" for number in range(6)}
    tick = tick_id(regular.name, "every 0:05:00", 1_800_000_000)
    job = replace(new_job(attributes=six), message_id=tick, root_id=tick, scheduled_for=1.8e9, task=regular)
    backend.validate(job)
    with pytest.raises(InvalidArguments, match="must have at most 10 attributes"):
        backend.validate(replace(job, attributes={**six, "one.more": "x"}))


def test_plugins_may_add_seven_attributes(backend: SQSBackend) -> None:
    seven = {f"a{number}": "x" for number in range(7)}
    backend.validate(new_job(attributes=seven))
    with pytest.raises(InvalidArguments, match="must have at most 10 attributes"):
        backend.validate(new_job(attributes={**seven, "one.more": "x"}))


def test_expiring_task_reserves_room_for_its_retries(backend: SQSBackend) -> None:
    """The retries have an additional attribute, the first send time."""
    first = replace(new_job(attributes={f"a{number}": "x" for number in range(6)}), task=perishable)
    message = first.message.model_copy(update={"n_retries": 2**31 - 1})
    longest_retry = replace(first, message=message, first_sent=1_700_000_000)
    size = size_in_sqs(message.to_body(), longest_retry.message_attributes())
    SQSBackend(max_message_bytes=size).validate(first)
    with pytest.raises(MessageTooLarge):
        SQSBackend(max_message_bytes=size - 1).validate(first)
    with pytest.raises(InvalidArguments, match="must have at most 10 attributes"):
        backend.validate(replace(first, attributes={**first.attributes, "one.more": "x"}))


@pytest.mark.parametrize("name", ["a", "a-b_c.d", "9", "x" * 256, "aws_x"])
def test_attribute_names_are_accepted(backend: SQSBackend, name: str) -> None:
    backend.validate(new_job(attributes={name: "x"}))


@pytest.mark.parametrize("name", ["", ".a", "a.", "a..b", "a b", "ä", "x" * 257, "AWS.x", "aws.x", "Amazon.x", "a\n"])
def test_attribute_names_are_refused(backend: SQSBackend, name: str) -> None:
    with pytest.raises(InvalidArguments, match="has a name that SQS rejects"):
        backend.validate(new_job(attributes={name: "x"}))


@pytest.mark.parametrize("value", ["x", " ", "\t", "ä", "\U0001f600", "\ufffd"])
def test_attribute_values_are_accepted(backend: SQSBackend, value: str) -> None:
    backend.validate(new_job(attributes={"a": value}))


@pytest.mark.parametrize(
    "value",
    ["", "\x00", "\x1b", "\ufffe", "\ud800", None, 3, b"x"],
    ids=ascii,
)
def test_attribute_values_are_refused(backend: SQSBackend, value: Any) -> None:
    with pytest.raises(InvalidArguments, match="must be a non-empty string of characters"):
        backend.validate(new_job(attributes={"a": value}))


# Faults


def refusing(*numbers: int, sender_fault: bool) -> Fault:
    """Return a fault: SQS accepts all entries of a batch except these."""

    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        refused = [entry for position, entry in enumerate(payload["Entries"]) if position in numbers]
        accepted = [entry for entry in payload["Entries"] if entry not in refused]
        status, answer = forward({**payload, "Entries": accepted}) if accepted else (200, {})
        answer["Failed"] = [
            {"Id": entry["Id"], "SenderFault": sender_fault, "Code": "SomeCode", "Message": "because"}
            for entry in refused
        ]
        return status, answer

    return fault


def without(*keys: str) -> Fault:
    """Return a fault: SQS works, but its response lacks these keys."""

    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = forward(payload)
        return status, {key: value for key, value in answer.items() if key not in keys}

    return fault


def answer_lost(payload: dict[str, Any], forward: Forward) -> Answer:
    forward(payload)
    return None


def throttled(payload: dict[str, Any], forward: Forward) -> Answer:
    return 400, {"__type": "com.amazonaws.sqs#RequestThrottled", "message": "slow down"}


def test_entry_failed_by_the_service_is_resent_alone(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [refusing(1, 3, sender_fault=False)]
    jobs, taken = new_jobs(5), []
    send(backend, jobs, taken=taken.append)
    assert [[json.loads(entry["MessageBody"])["kwargs"]["number"] for entry in r.entries] for r in relay.requests] == [
        [0, 1, 2, 3, 4],
        [1, 3],
    ]
    assert sorted(ids(taken)) == sorted(ids(jobs)) == arrived(sqs)


def test_entry_failed_by_the_sender_is_raised(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    """The entry is not sent again, and its error is raised at the end."""
    relay.faults = [refusing(1, sender_fault=True)]
    jobs, taken = new_jobs(12), []
    with pytest.raises(ClientError, match=rf"SomeCode.*shop\.tasks\.pack \[{jobs[1].message_id}\]: because"):
        send(backend, jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 10), ("SendMessageBatch", 2)]
    rest = [job for job in jobs if job is not jobs[1]]
    assert sorted(ids(taken)) == sorted(ids(rest)) == arrived(sqs)


def test_entry_refused_three_times_is_raised(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [refusing(0, sender_fault=False)] * 3
    jobs, taken = new_jobs(3), []
    with pytest.raises(ClientError, match="SomeCode"):
        send(backend, jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 3), ("SendMessageBatch", 1), ("SendMessageBatch", 1)]
    assert sorted(ids(taken)) == sorted(ids(jobs[1:])) == arrived(sqs)


def test_entries_of_one_answer_are_handled_separately(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    def both(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = refusing(0, 1, sender_fault=True)(payload, forward) or (0, {})
        answer["Failed"][1]["SenderFault"] = False
        return status, answer

    relay.faults = [both]
    jobs, taken = new_jobs(3), []
    with pytest.raises(ClientError, match=jobs[0].message_id):
        send(backend, jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 3), ("SendMessageBatch", 1)]
    assert sorted(ids(taken)) == sorted(ids(jobs[1:])) == arrived(sqs)


def test_answer_without_failed_means_success(backend: SQSBackend, relay: Relay) -> None:
    relay.faults = [without("Failed")]
    jobs, taken = new_jobs(2), []
    send(backend, jobs, taken=taken.append)
    assert ids(taken) == ids(jobs)


@pytest.mark.parametrize("value", [None, []])
def test_answer_without_successful_entries_is_understood(backend: SQSBackend, relay: Relay, value: object) -> None:
    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        failed = [{"Id": entry["Id"], "SenderFault": True, "Code": "No", "Message": ""} for entry in payload["Entries"]]
        return 200, {"Failed": failed, "Successful": value}

    relay.faults = [fault]
    taken: list[Job] = []
    with pytest.raises(ClientError, match="No"):
        send(backend, new_jobs(2), taken=taken.append)
    assert taken == []


def test_unmentioned_entries_are_resent_under_their_ids(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [without("Successful", "Failed")]
    jobs, taken = new_jobs(2), []
    send(backend, jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 2)] * 2
    assert ids(taken) == ids(jobs)
    assert Counter(arrived(sqs)) == dict.fromkeys(ids(jobs), 2)  # the worker runs each id once


def test_repeatedly_unmentioned_entries_are_an_error(backend: SQSBackend, relay: Relay) -> None:
    relay.faults = [without("Successful", "Failed")] * 3
    taken: list[Job] = []
    with pytest.raises(ClientError, match="did not mention"):
        send(backend, new_jobs(2), taken=taken.append)
    assert taken == []


def test_unknown_ids_in_an_answer_are_ignored(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = forward(payload)
        answer["Successful"] += [answer["Successful"][0], {**answer["Successful"][0], "Id": "77"}]
        return status, answer

    relay.faults = [fault]
    jobs, taken = new_jobs(12), []
    send(backend, jobs, taken=taken.append)
    assert ids(taken) == ids(jobs)
    assert arrived(sqs) == sorted(ids(jobs))


@pytest.mark.parametrize("count", [1, 3])
def test_lost_answer_resends_under_the_same_id(backend: SQSBackend, relay: Relay, sqs: Sqs, count: int) -> None:
    relay.faults = [answer_lost]
    jobs, taken = new_jobs(count), []
    send(backend, jobs, taken=taken.append)
    assert ids(taken) == ids(jobs)
    assert Counter(arrived(sqs)) == dict.fromkeys(ids(jobs), 2)  # the worker runs each id once


def test_throttled_request_is_repeated_once(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [throttled]
    taken: list[Job] = []
    send(backend, [new_job()], taken=taken.append)
    assert relay.operations() == [("SendMessage", 1)] * 2
    assert ids(taken) == arrived(sqs)


def test_refused_messages_raise_after_others_are_sent(
    backend: SQSBackend, relay: Relay, sqs: Sqs, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gone = sqs.queues["default"].replace("default", "gone")
    settings.LAMBDA_TASKS_QUEUES = {"gone": gone, **sqs.queues}
    lost, good, others, taken = new_jobs(11, queue="gone"), new_jobs(2), new_jobs(1, queue="other"), []
    with pytest.raises(ClientError, match=r"NonExistentQueue|QueueDoesNotExist"):
        send(backend, [*lost, *good, *others], taken=taken.append)
    assert sorted(ids(taken)) == sorted(ids(good + others))
    assert arrived(sqs) == sorted(ids(good))
    assert arrived(sqs, "other") == ids(others)
    [line] = caplog.records  # the error of the second batch; the error of the first batch is raised
    assert line.getMessage() == "Messages could not be sent: 1 of shop.tasks.pack."


@pytest.mark.parametrize("error", [RuntimeError("credentials were refreshed"), KeyError("traceparent")], ids=repr)
def test_foreign_errors_do_not_stop_other_requests(
    backend: SQSBackend, sqs: Sqs, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Instrumentation and credential providers may raise anything from a request."""
    real, calls = BaseClient._make_api_call, []

    def traced(self: Any, name: str, arguments: Any) -> Any:
        calls.append(name)
        if calls.count("SendMessageBatch") == 1 and name == "SendMessageBatch":
            raise error
        return real(self, name, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", traced)
    jobs, taken = new_jobs(30), []
    with pytest.raises(type(error)):
        send(backend, jobs, taken=taken.append)
    assert len(taken) == 20
    calls.clear()
    assert [result.error for result in backend.send(new_jobs(12)) if isinstance(result, Unsent)] == [error] * 10


def test_refusals_before_a_lost_connection_are_logged(
    backend: SQSBackend, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    def mixed(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = refusing(0, 1, sender_fault=True)(payload, forward) or (0, {})
        answer["Failed"][1]["SenderFault"] = False
        return status, answer

    relay.faults = [mixed, answer_lost, answer_lost]
    jobs = new_jobs(3)
    with pytest.raises((ClientError, BotoCoreError)) as caught:
        send(backend, jobs)
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert any(jobs[0].message_id in text for text in [str(caught.value), *logged])


def test_closed_port_raises_quickly() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    taken: list[Job] = []
    begin = time.monotonic()
    with pytest.raises(EndpointConnectionError):
        send(SQSBackend(endpoint_url=f"http://127.0.0.1:{port}"), new_jobs(2), taken=taken.append)
    assert time.monotonic() - begin < 10
    assert taken == []


def test_silent_endpoint_raises_after_the_timeouts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        backend = SQSBackend(endpoint_url=url, connect_timeout=0.2, read_timeout=0.2, max_attempts=2)
        begin = time.monotonic()
        with pytest.raises(ReadTimeoutError):
            send(backend, new_jobs(2))
        assert 0.4 <= time.monotonic() - begin < 10


def test_timeouts_are_short_by_default(sqs: Sqs) -> None:
    config = SQSBackend()._client(sqs.queues["default"]).meta.config
    assert (config.connect_timeout, config.read_timeout) == (2, 5)
    assert config.retries["total_max_attempts"] == 2


# The result for each job


class Ends:
    """The results of `send()`, by kind."""

    def __init__(self, backend: SQSBackend, jobs: list[Job]) -> None:
        results = list(backend.send(jobs))
        assert Counter(result.job.message_id for result in results) == dict.fromkeys(ids(jobs), 1)
        self.taken = [number_of(result.job) for result in results if isinstance(result, Taken)]
        self.failed = {number_of(result.job): result.error for result in results if isinstance(result, Unsent)}
        self.refused = {number_of(result.job): result.error for result in results if isinstance(result, Refused)}


def number_of(job: Job) -> int:
    return int(job.message.kwargs["number"])


def refusing_as(code: str, *numbers: int) -> Fault:
    """Return a fault: SQS refuses these entries of a batch with this code, as a fault of the sender."""

    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = refusing(*numbers, sender_fault=True)(payload, forward) or (0, {})
        for entry in answer["Failed"]:
            entry["Code"] = code
        return status, answer

    return fault


def refused_as(code: str) -> Fault:
    """Return a fault: SQS refuses a whole request."""
    return lambda payload, forward: (400, {"__type": f"com.amazonaws.sqs#{code}", "message": "because"})


def test_sent_jobs_are_reported_as_taken(backend: SQSBackend, sqs: Sqs) -> None:
    jobs = new_jobs(25)
    ends = Ends(backend, jobs)
    assert (ends.taken, ends.failed, ends.refused) == ([*range(25)], {}, {})
    assert arrived(sqs) == sorted(ids(jobs))


@pytest.mark.parametrize(
    "code", ["InvalidMessageContents", "InvalidParameterValue", "UnsupportedOperation", "SomeCode"]
)
def test_permanently_invalid_entry_is_refused(backend: SQSBackend, relay: Relay, sqs: Sqs, code: str) -> None:
    relay.faults = [refusing_as(code, 1)]
    jobs = new_jobs(3)
    ends = Ends(backend, jobs)
    assert (ends.taken, ends.failed, [*ends.refused]) == ([0, 2], {}, [1])
    assert isinstance(ends.refused[1], ClientError)
    assert ends.refused[1].response["Error"]["Code"] == code
    assert jobs[1].message_id in str(ends.refused[1])
    assert arrived(sqs) == sorted(ids([jobs[0], jobs[2]]))


@pytest.mark.parametrize(
    "code",
    [
        "KmsDisabled",
        "KmsInvalidState",
        "KmsNotFound",
        "KmsOptInRequired",
        "KmsThrottled",
        "KmsAccessDenied",
        "KMS.DisabledException",
        "ThrottlingException",
        "RequestThrottled",
        "OverLimit",
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "InvalidSecurity",
        "InvalidClientTokenId",
        "AWS.SimpleQueueService.NonExistentQueue",
        "QueueDoesNotExist",
        "ServiceUnavailable",
        "MissingParameter",  # from a FIFO queue, which the settings name by mistake
    ],
)
def test_entry_with_a_repairable_error_has_failed(backend: SQSBackend, relay: Relay, sqs: Sqs, code: str) -> None:
    """For example, an operator can enable a disabled KMS key."""
    relay.faults = [refusing_as(code, 1)]
    ends = Ends(backend, new_jobs(3))
    assert (ends.taken, [*ends.failed], ends.refused) == ([0, 2], [1], {})


def test_entry_failed_by_the_service_has_failed(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [refusing(0, sender_fault=False)] * 3
    ends = Ends(backend, new_jobs(3))
    assert (sorted(ends.taken), [*ends.failed], ends.refused) == ([1, 2], [0], {})


def test_entries_that_an_answer_never_mentions_have_failed(backend: SQSBackend, relay: Relay) -> None:
    relay.faults = [without("Successful", "Failed")] * 3
    ends = Ends(backend, new_jobs(2))
    assert (ends.taken, [*ends.failed], ends.refused) == ([], [0, 1], {})


@pytest.mark.parametrize("code", ["InvalidMessageContents", "InvalidParameterValue", "BatchRequestTooLong"])
def test_invalid_batch_is_sent_one_by_one(backend: SQSBackend, relay: Relay, sqs: Sqs, code: str) -> None:
    def refuse_one(payload: dict[str, Any], forward: Forward) -> Answer:
        if json.loads(payload["MessageBody"])["kwargs"]["number"] == 4:
            return refused_as(code)(payload, forward)
        return forward(payload)

    relay.faults = [refused_as(code), *[refuse_one] * 10]
    jobs = new_jobs(12)
    ends = Ends(backend, jobs)
    assert relay.operations() == [("SendMessageBatch", 10), *[("SendMessage", 1)] * 10, ("SendMessageBatch", 2)]
    assert (ends.taken, ends.failed, [*ends.refused]) == ([n for n in range(12) if n != 4], {}, [4])
    assert arrived(sqs) == sorted(ids([*jobs[:4], *jobs[5:]]))


def test_send_splits_an_invalid_batch(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [refused_as("InvalidMessageContents"), refused_as("InvalidMessageContents")]
    jobs, taken = new_jobs(3), []
    with pytest.raises(ClientError, match="InvalidMessageContents"):
        send(backend, jobs, taken=taken.append)
    assert ids(taken) == ids(jobs[1:])
    assert arrived(sqs) == sorted(ids(jobs[1:]))


def test_invalid_single_message_is_refused(backend: SQSBackend, relay: Relay) -> None:
    relay.faults = [refused_as("InvalidMessageContents")]
    ends = Ends(backend, new_jobs(1))
    assert (ends.taken, ends.failed, [*ends.refused]) == ([], {}, [0])
    assert relay.operations() == [("SendMessage", 1)]


@pytest.mark.parametrize(
    "code",
    [
        "AccessDeniedException",
        "RequestThrottled",
        "KmsAccessDenied",
        "InvalidSecurity",
        "OverLimit",
        "QueueDoesNotExist",
        "MissingParameter",
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_other_refused_requests_fail_as_a_whole(backend: SQSBackend, relay: Relay, code: str, count: int) -> None:
    relay.faults = [refused_as(code)] * 2  # botocore retries some of them
    ends = Ends(backend, new_jobs(count))
    assert (ends.taken, [*ends.failed], ends.refused) == ([], [*range(count)], {})
    assert {operation for operation, _ in relay.operations()} == {"SendMessage" if count == 1 else "SendMessageBatch"}


def test_missing_queue_does_not_block_others(backend: SQSBackend, relay: Relay, sqs: Sqs, settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"gone": sqs.queues["default"].replace("default", "gone"), **sqs.queues}
    ends = Ends(backend, [new_job(queue="gone", number=0), new_job(queue="gone", number=1), new_job(number=2)])
    assert (ends.taken, [*ends.failed], ends.refused) == ([2], [0, 1], {})


def test_refusal_is_kept_after_a_lost_answer(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    def mixed(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = refusing(0, 1, sender_fault=True)(payload, forward) or (0, {})
        answer["Failed"][1]["SenderFault"] = False
        return status, answer

    relay.faults = [mixed, answer_lost, answer_lost]
    ends = Ends(backend, new_jobs(3))
    assert (ends.taken, [*ends.failed], [*ends.refused]) == ([2], [1], [0])


def test_untried_messages_have_failed(settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": "http://127.0.0.1/1/default"}
    with silent_server() as (url, connections):
        backend = distant(endpoint_url=url, read_timeout=0.3, max_attempts=1, max_threads=2)
        ends = Ends(backend, new_jobs(100))
        assert connections() == 2
    assert (ends.taken, [*ends.failed], ends.refused) == ([], [*range(100)], {})
    kinds = Counter(type(error).__name__ for error in ends.failed.values())
    assert kinds == {"ReadTimeoutError": 20, "ConnectionError": 80}
    assert str(ends.failed[99]) == "SQS did not answer the messages before it."


def test_silence_during_single_messages_fails_the_rest(sqs: Sqs, relay: Relay) -> None:
    backend = SQSBackend(endpoint_url=relay.url, read_timeout=0.3, max_attempts=1, max_threads=1)
    test_is_over = threading.Event()

    def never(payload: dict[str, Any], forward: Forward) -> Answer:
        test_is_over.wait(60)
        return None

    relay.faults = [refused_as("InvalidMessageContents"), lambda payload, forward: forward(payload), never]
    ends = Ends(backend, new_jobs(5))
    test_is_over.set()
    assert (ends.taken, [*ends.failed], ends.refused) == ([0], [1, 2, 3, 4], {})
    # Botocore may have repeated the unanswered request. No request was made for the messages after it.
    assert {request.entries[0]["MessageBody"] for request in relay.requests[1:]} == {
        new_job(number=number).body for number in (0, 1)
    }


@pytest.mark.parametrize("url", ["nonsense", "http://", "https://sqs.eu-west-1.amazonaws.com:port/1/q", "file:///etc"])
def test_invalid_address_does_not_block_other_queues(backend: SQSBackend, sqs: Sqs, settings: Any, url: str) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"bad": url, **sqs.queues}
    backend = SQSBackend(max_threads=1)
    ends = Ends(backend, [new_job(queue="bad", number=0), new_job(number=1), new_job(queue="other", number=2)])
    assert (ends.taken, [*ends.failed]) == ([1, 2], [0])


# Parallel requests


def numbers_in(request: Request) -> list[int]:
    return [json.loads(entry["MessageBody"])["kwargs"]["number"] for entry in request.entries]


def test_batches_are_sent_in_parallel(relay: Relay, sqs: Sqs) -> None:
    all_are_under_way = threading.Barrier(3)

    def together(payload: dict[str, Any], forward: Forward) -> Answer:
        all_are_under_way.wait(30)
        return forward(payload)

    relay.faults = [together] * 3
    jobs = new_jobs(30)
    send(distant(endpoint_url=relay.url, max_threads=3), jobs)
    assert sorted(map(numbers_in, relay.requests)) == [[*range(10)], [*range(10, 20)], [*range(20, 30)]]
    assert arrived(sqs) == sorted(ids(jobs))


def test_max_threads_limits_parallel_requests(relay: Relay) -> None:
    """After sending, all threads have ended."""
    under_way, most = set(), []

    def counted(payload: dict[str, Any], forward: Forward) -> Answer:
        under_way.add(id(payload))
        most.append(len(under_way))
        answer = forward(payload)
        under_way.remove(id(payload))
        return answer

    relay.faults = [counted] * 12
    send(distant(endpoint_url=relay.url, max_threads=2), new_jobs(120))
    assert len(most) == 12
    assert max(most) <= 2
    assert worker_threads() == []


@pytest.mark.parametrize("count", [1, 10])
def test_single_request_starts_no_thread(relay: Relay, count: int) -> None:
    seen: list[str] = []

    def look(payload: dict[str, Any], forward: Forward) -> Answer:
        seen.extend(worker_threads())
        return forward(payload)

    relay.faults = [look]
    send(SQSBackend(endpoint_url=relay.url), new_jobs(count))
    assert len(relay.requests) == 1
    assert seen == []


class TestDistance:
    """Threads are worth their cost only if requests wait for their responses."""

    @pytest.fixture
    def threads(self, relay: Relay) -> list[list[str]]:
        """Collect the library's threads that exist at each request."""
        seen: list[list[str]] = []

        def look(payload: dict[str, Any], forward: Forward) -> Answer:
            seen.append(worker_threads())
            return forward(payload)

        relay.faults = [look] * 20
        return seen

    def waits(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = count(step=seconds)
        monkeypatch.setattr(sqs_backend.time, "perf_counter", lambda: next(clock))
        monkeypatch.setattr(sqs_backend.time, "thread_time", lambda: 0.0)

    def test_fast_sqs_needs_no_threads(
        self, relay: Relay, threads: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.waits(0.0001, monkeypatch)
        backend = SQSBackend(endpoint_url=relay.url)
        for _ in range(2):
            send(backend, new_jobs(40))
        assert threads == [[]] * 8

    def test_first_request_measures_the_distance(
        self, relay: Relay, threads: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.waits(0.01, monkeypatch)
        backend = SQSBackend(endpoint_url=relay.url)
        jobs, taken = new_jobs(40), []
        send(backend, jobs, taken=taken.append)
        first, *others = threads
        assert first == []
        assert all(others)
        assert ids(taken) == ids(jobs)
        send(backend, new_jobs(40))
        assert all(threads[4:])
        assert len(threads) == 8

    def test_refused_connection_is_not_considered_fast(self, relay: Relay) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            backend = SQSBackend(endpoint_url=f"http://127.0.0.1:{probe.getsockname()[1]}", max_attempts=1)
            with pytest.raises(EndpointConnectionError):
                send(backend, new_jobs(40))
        assert backend._waited == {}

    def test_failing_client_does_not_block_other_queues(
        self, relay: Relay, sqs: Sqs, monkeypatch: pytest.MonkeyPatch, settings: Any
    ) -> None:
        settings.LAMBDA_TASKS_QUEUES = {
            "default": sqs.queues["default"],
            "broken": "https://sqs.eu-west-1.amazonaws.com/123456789012/broken",
        }
        backend = SQSBackend(endpoint_url=relay.url)
        make = backend._new_client

        def new_client(server: Server) -> Any:
            if server.region == "eu-west-1":
                raise NoRegionError
            return make(server)

        monkeypatch.setattr(backend, "_new_client", new_client)
        jobs, taken = [new_job(queue="broken"), *new_jobs(12)], []
        with pytest.raises(NoRegionError):
            send(backend, jobs, taken=taken.append)
        assert ids(taken) == ids(jobs[1:])

    def test_slower_sqs_is_noticed(
        self, relay: Relay, threads: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend = SQSBackend(endpoint_url=relay.url)
        backend._waited[backend._server(app_settings.queues["default"])] = 0.0
        self.waits(0.01, monkeypatch)
        send(backend, new_jobs(20))
        send(backend, new_jobs(20))
        assert threads[:2] == [[], []]
        assert all(threads[2:])


def test_reports_have_the_jobs_order_and_callers_thread(relay: Relay) -> None:
    others_are_answered = threading.Event()

    def late(payload: dict[str, Any], forward: Forward) -> Answer:
        assert others_are_answered.wait(30)
        status, answer = forward(payload)
        answer["Successful"].reverse()
        return status, answer

    def prompt(payload: dict[str, Any], forward: Forward) -> Answer:
        answer = forward(payload)
        others_are_answered.set()
        return answer

    def by_first_number(payload: dict[str, Any], forward: Forward) -> Answer:
        first = json.loads(payload["Entries"][0]["MessageBody"])["kwargs"]["number"]
        return (late if first == 0 else prompt)(payload, forward)

    relay.faults = [by_first_number] * 3
    jobs, taken = new_jobs(25), []
    send(
        distant(endpoint_url=relay.url, max_threads=2),
        jobs,
        taken=lambda job: taken.append((job.message_id, threading.current_thread())),
    )
    assert taken == [(job.message_id, threading.current_thread()) for job in jobs]


def test_first_error_in_order_is_raised(relay: Relay, sqs: Sqs, caplog: pytest.LogCaptureFixture) -> None:
    second_is_refused = threading.Event()

    def refuse(payload: dict[str, Any], forward: Forward) -> Answer:
        first = json.loads(payload["Entries"][0]["MessageBody"])["kwargs"]["number"]
        assert first != 0 or second_is_refused.wait(30)
        answer = refusing(0, sender_fault=True)(payload, forward)
        second_is_refused.set()
        return answer

    relay.faults = [refuse] * 2
    jobs, taken = new_jobs(20), []
    with pytest.raises(ClientError, match=jobs[0].message_id):
        send(distant(endpoint_url=relay.url, max_threads=2), jobs, taken=taken.append)
    [line] = caplog.records
    assert line.exc_info is not None
    assert jobs[10].message_id in str(line.exc_info[1])
    assert ids(taken) == ids([*jobs[1:10], *jobs[11:]])


def test_raising_listener_ends_sending_and_its_threads(relay: Relay) -> None:
    def fail(job: Job) -> None:
        raise KeyError(job.message_id)

    with pytest.raises(KeyError):
        send(distant(endpoint_url=relay.url, max_threads=2), new_jobs(500), taken=fail)
    assert worker_threads() == []
    assert len(relay.requests) < 50


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None])
def test_invalid_number_of_threads_is_refused(settings: Any, value: object) -> None:
    settings.LAMBDA_TASKS_BACKEND = {
        "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
        "OPTIONS": {"max_threads": value},
    }
    with pytest.raises(InvalidSetting, match=r"LAMBDA_TASKS_BACKEND.*max_threads must be an integer of at least 1"):
        get_backend()


def test_client_keeps_a_connection_for_each_thread(sqs: Sqs) -> None:
    config = SQSBackend(max_threads=70)._client(sqs.queues["default"]).meta.config
    assert config.max_pool_connections == 70


# A server that does not respond


@contextmanager
def silent_server() -> Iterator[tuple[str, Callable[[], int]]]:
    """Yield the URL of a server that never responds, and a function that counts the connections to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def connections() -> int:
            server.setblocking(False)
            count = 0
            with suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()
                    count += 1
            return count

        yield f"http://127.0.0.1:{server.getsockname()[1]}", connections


def test_silent_server_costs_one_timeout(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": "http://127.0.0.1/1/default", "other": "http://127.0.0.1/1/other"}
    taken: list[Job] = []
    with silent_server() as (url, connections):
        backend = distant(endpoint_url=url, read_timeout=0.3, max_attempts=1, max_threads=2)
        with pytest.raises(ReadTimeoutError):
            send(backend, [*new_jobs(500), *new_jobs(500, queue="other")], taken=taken.append)
        assert connections() == 2
    assert taken == []
    assert [record.getMessage() for record in caplog.records] == [
        "Messages could not be sent: 10 of shop.tasks.pack.",  # the second of the two batches that were attempted
        "Messages could not be sent: 980 of shop.tasks.pack.",
    ]


@pytest.mark.parametrize("max_threads", [1, 4])
def test_closed_port_is_tried_once_per_thread(caplog: pytest.LogCaptureFixture, max_threads: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = distant(endpoint_url=f"http://127.0.0.1:{port}", max_attempts=1, max_threads=max_threads)
    with pytest.raises(EndpointConnectionError):
        send(backend, new_jobs(1_000))
    *tried, rest = [record.getMessage() for record in caplog.records]
    assert len(tried) < max_threads
    left = 1_000 - 10 * (len(tried) + 1)
    assert rest == f"Messages could not be sent: {left} of shop.tasks.pack."


class Watched(SQSBackend):
    """Sets `failed` when the first batch has failed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.failed = threading.Event()

    def _send_batch(self, batch: Any) -> Any:
        answer = super()._send_batch(batch)
        if answer.failures:
            self.failed.set()
        return answer


def test_one_lost_request_does_not_stop_the_rest(relay: Relay, sqs: Sqs) -> None:
    backend = Watched(endpoint_url=relay.url, read_timeout=2, max_attempts=1, max_threads=2)
    mark_as_distant(backend)
    test_is_over = threading.Event()

    def never(payload: dict[str, Any], forward: Forward) -> Answer:
        test_is_over.wait(60)
        return None

    def in_the_meantime(payload: dict[str, Any], forward: Forward) -> Answer:
        backend.failed.wait(1)
        return forward(payload)

    def afterwards(payload: dict[str, Any], forward: Forward) -> Answer:
        backend.failed.wait(60)
        return forward(payload)

    relay.faults = [never, in_the_meantime, afterwards]
    jobs, taken = new_jobs(60), []
    with pytest.raises(ReadTimeoutError):
        send(backend, jobs, taken=taken.append)
    test_is_over.set()
    assert len(taken) == 50
    assert sorted(ids(taken)) == arrived(sqs)


def test_refusal_counts_as_an_answer(backend: SQSBackend, relay: Relay) -> None:
    relay.faults = [throttled] * 2
    taken: list[Job] = []
    with pytest.raises(ClientError):
        send(backend, new_jobs(30), taken=taken.append)
    assert len(taken) == 20


def test_server_of_another_region_is_tried(settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {
        "default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default",
        "far": "https://sqs.us-east-2.amazonaws.com/123456789012/far",
    }
    with silent_server() as (url, connections):
        backend = SQSBackend(endpoint_url=url, read_timeout=0.3, max_attempts=1, max_threads=1)
        with pytest.raises(ReadTimeoutError):
            send(backend, [*new_jobs(30), *new_jobs(30, queue="far")])
        assert connections() == 2


# Clients


def test_process_has_one_client(backend: SQSBackend, relay: Relay) -> None:
    for _ in range(5):
        send(backend, new_jobs(1))
    send(backend, new_jobs(1, queue="other"))
    assert len(relay.requests) == 6
    assert {request.connection for request in relay.requests} == {1}


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.us-east-2.amazonaws.com/123456789012/q", "us-east-2"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", "cn-north-1"),
        ("https://ap-south-1.queue.amazonaws.com/123456789012/q", "ap-south-1"),
        ("https://sqs-fips.us-gov-west-1.amazonaws.com/123456789012/q", "us-gov-west-1"),
        pytest.param("https://vpce-0a1b-2c3d.sqs.eu-central-1.vpce.amazonaws.com/123456789012/q", "eu-central-1"),
        ("https://sqs.us-west-2.api.aws/123456789012/q", "us-west-2"),
        # A URL without a region gets the region of the environment.
        ("http://127.0.0.1:4566/000000000000/q", "eu-west-1"),
    ],
)
def test_region_comes_from_the_queue_url(
    backend: SQSBackend, relay: Relay, settings: Any, url: str, region: str
) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": url}
    with pytest.raises(ClientError):
        send(backend, [new_job()])  # the queue does not exist; only the signature matters
    assert {request.region for request in relay.requests} == {region}


FORKING = """
import os, sys
import django
from django.conf import settings
settings.configure(LAMBDA_TASKS_QUEUES={"default": sys.argv[2]})
django.setup()
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.queue_urls import Server
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage

def send():
    message_id = new_message_id()
    job = Job(message=SQSLambdaTaskMessage(task_name="a.b"), message_id=message_id, root_id=message_id)
    list(backend.send([job]))

backend = SQSBackend(endpoint_url=sys.argv[1])
send()
if child := os.fork():
    _, status = os.waitpid(child, 0)
    send()
    sys.exit(os.waitstatus_to_exitcode(status))
send()
os._exit(0)
"""


def test_forked_process_has_its_own_client(relay: Relay, sqs: Sqs) -> None:
    subprocess.run([sys.executable, "-c", FORKING, relay.url, sqs.queues["default"]], check=True, timeout=60)
    parent, child, parent_again = (request.connection for request in relay.requests)
    assert child != parent
    assert parent_again == parent
    assert len(set(arrived(sqs))) == 3


# Postponing messages


def received_records(sqs: Sqs, queue: str = "default") -> list[dict[str, Any]]:
    """Receive the visible messages as the records that Lambda would pass to the handler."""
    return [
        {
            **event_record(new_job(queue=queue)),
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
        }
        for message in sqs.receive(queue)
    ]


def test_message_postponed_by_zero_returns_immediately(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    send(backend, new_jobs(2))
    first, second = received_records(sqs)
    assert sqs.depth()["in_flight"] == 2
    backend.postpone([(first, 0), (second, 600.7)])
    assert [record["messageId"] for record in received_records(sqs)] == [first["messageId"]]
    [_, request] = relay.requests
    assert [entry["VisibilityTimeout"] for entry in request.entries] == [0, 600]


def test_messages_are_postponed_in_batches_per_queue(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    send(backend, [*new_jobs(12), *new_jobs(1, queue="other")])
    records = [*received_records(sqs), *received_records(sqs), *received_records(sqs, "other")]
    relay.requests.clear()
    backend.postpone([(record, 0) for record in records])
    assert relay.operations() == [
        ("ChangeMessageVisibilityBatch", 10),
        ("ChangeMessageVisibilityBatch", 2),
        ("ChangeMessageVisibilityBatch", 1),
    ]
    assert len(arrived(sqs)) == 12
    assert len(arrived(sqs, "other")) == 1


def test_missing_queue_does_not_block_other_postponements(
    backend: SQSBackend, relay: Relay, sqs: Sqs, settings: Any
) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"gone": sqs.queues["default"].replace("default", "gone"), **sqs.queues}
    send(backend, new_jobs(1))
    backend.postpone([(event_record(new_job(queue="gone")), 0), *[(record, 0) for record in received_records(sqs)]])
    assert len(arrived(sqs)) == 1


@pytest.mark.parametrize(("seconds", "timeout"), [(50_000, 43_200), (0.9, 0), (30, 30)])
def test_pauses_are_whole_seconds_up_to_twelve_hours(
    backend: SQSBackend, relay: Relay, sqs: Sqs, seconds: float, timeout: int
) -> None:
    send(backend, new_jobs(1))
    [record] = received_records(sqs)
    backend.postpone([(record, seconds)])
    [entry] = relay.requests[-1].entries
    assert entry["VisibilityTimeout"] == timeout


def test_message_of_an_unknown_queue_is_not_postponed(backend: SQSBackend, relay: Relay) -> None:
    backend.postpone([(event_record(new_job(queue="somebody-elses")), 0)])
    assert relay.requests == []


def test_postponing_during_an_outage_logs_only_debug(relay: Relay, sqs: Sqs, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = SQSBackend(endpoint_url=f"http://127.0.0.1:{port}", max_attempts=1)
    backend.postpone([(event_record(new_job()), 5)])
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
