"""The transport to SQS, against moto's server over real HTTP.

A relay stands in between. It writes down every request, and plays the faults that moto does not know:
entries that are refused, answers that are lost or incomplete.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from lambda_tasks.backends import sqs as sqs_backend
from lambda_tasks.backends.memory import event_record
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments, MessageTooLarge, UnknownQueue
from lambda_tasks.identity import new_message_id
from lambda_tasks.jobs import MESSAGE_ID_ATTRIBUTE, Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from tests.conftest import Sqs

#: What a request is answered with: HTTP status and JSON, or None for an answer that is lost.
Answer = tuple[int, dict[str, Any]] | None
Forward = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
Fault = Callable[[dict[str, Any], Forward], Answer]


@lambda_task(expires_in=60)
def perishable() -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """A request as SQS would see it."""

    operation: str
    payload: dict[str, Any]
    size: int
    region: str
    connection: int

    @property
    def entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.payload.get("Entries", [self.payload])
        return entries


class Relay(ThreadingHTTPServer):
    """Passes requests on to moto and writes them down; the next ones meet the faults that were put in."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _RelayHandler)
        self.upstream = urlsplit(upstream)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def operations(self) -> list[tuple[str, int]]:
        """Return what was asked for, with the number of entries."""
        return [(request.operation, len(request.entries)) for request in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""


class _RelayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Relay

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1
        self.number = self.server.connections

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        payload = json.loads(body)
        operation = self.headers["X-Amz-Target"].rpartition(".")[2]
        scope = re.search(r"Credential=[^/]+/\d+/([^/]+)/sqs/", self.headers["Authorization"])
        self.server.requests.append(Request(operation, payload, len(body), scope[1] if scope else "", self.number))
        fault = self.server.faults.pop(0) if self.server.faults else None
        answer = fault(payload, self._forward) if fault else self._forward(payload)
        if answer is None:
            self.close_connection = True
            return
        status, content = answer
        text = json.dumps(content).encode()
        head = (
            f"HTTP/1.1 {status} OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length: {len(text)}\r\n\r\n"
        )
        self.wfile.write(head.encode() + text)

    def _forward(self, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {name: self.headers[name] for name in ("X-Amz-Target", "Content-Type", "Authorization")}
        upstream = self.server.upstream
        with closing(HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)) as connection:
            connection.request("POST", "/", json.dumps(payload), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def log_message(self, *_: object) -> None:
        """Write nothing to the terminal."""


@pytest.fixture
def relay(sqs: Sqs) -> Iterator[Relay]:
    with Relay(sqs.endpoint) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture
def backend(relay: Relay) -> SQSBackend:
    return SQSBackend(endpoint_url=relay.url, read_timeout=10)


@pytest.fixture(autouse=True)
def _no_pause_between_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqs_backend.random, "uniform", lambda low, high: low)


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


def new_jobs(count: int, **options: Any) -> list[Job]:
    return [new_job(number=number, **options) for number in range(count)]


def ids(jobs: list[Job]) -> list[str]:
    return [job.message_id for job in jobs]


def arrived(sqs: Sqs, queue: str = "default") -> list[str]:
    """Take everything off the queue and return the ids, sorted."""
    found = []
    while batch := sqs.receive(queue):
        found += [message["MessageAttributes"][MESSAGE_ID_ATTRIBUTE]["StringValue"] for message in batch]
    return sorted(found)


# As few requests as the limits allow


def test_one_job_is_one_send_message(backend: SQSBackend, relay: Relay) -> None:
    backend.send([new_job()], taken=[].append)
    assert relay.operations() == [("SendMessage", 1)]


def test_twenty_five_jobs_are_three_batches(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    jobs = new_jobs(25)
    backend.send(jobs, taken=[].append)
    assert relay.operations() == [("SendMessageBatch", 10), ("SendMessageBatch", 10), ("SendMessageBatch", 5)]
    assert arrived(sqs) == sorted(ids(jobs))


def test_each_queue_has_batches_of_its_own(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    mine, others = new_jobs(3), new_jobs(2, queue="other")
    backend.send([mine[0], others[0], mine[1], others[1], mine[2]], taken=[].append)
    assert relay.operations() == [("SendMessageBatch", 3), ("SendMessageBatch", 2)]
    assert arrived(sqs) == sorted(ids(mine))
    assert arrived(sqs, "other") == sorted(ids(others))


def test_a_batch_ends_where_the_next_message_would_make_it_too_large(relay: Relay) -> None:
    backend = SQSBackend(endpoint_url=relay.url, max_message_bytes=2_000)
    backend.send([new_job(text="x" * size) for size in (500, 500, 500, 1_200, 10, 10)], taken=[].append)
    assert relay.operations() == [("SendMessageBatch", 2), ("SendMessage", 1), ("SendMessageBatch", 3)]


def test_two_messages_that_are_as_large_as_sqs_takes_leave_one_by_one(
    backend: SQSBackend, relay: Relay, sqs: Sqs
) -> None:
    jobs = [new_job(text="x" * 1_040_000) for _ in range(2)]
    backend.send(jobs, taken=[].append)
    assert relay.operations() == [("SendMessage", 1)] * 2
    assert arrived(sqs) == sorted(ids(jobs))


# What a message consists of


def test_the_message_on_the_queue_is_the_documented_body_with_the_ids_beside_it(
    backend: SQSBackend, relay: Relay, sqs: Sqs
) -> None:
    job = replace(new_job(order=7, attributes={"traceparent": "00-1"}), root_id=new_message_id())
    backend.send([job], taken=[].append)
    [message] = sqs.receive()
    assert json.loads(message["Body"]) == {"task_name": "shop.tasks.pack", "kwargs": {"order": 7}}
    assert message["MessageAttributes"] == {
        "lambda_tasks.message_id": {"DataType": "String", "StringValue": job.message_id},
        "lambda_tasks.root_id": {"DataType": "String", "StringValue": job.root_id},
        "lambda_tasks.queue": {"DataType": "String", "StringValue": "default"},
        "traceparent": {"DataType": "String", "StringValue": "00-1"},
    }


storable_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=50)


@given(text=storable_text)
def test_the_body_is_ascii_and_carries_any_text(text: str) -> None:
    body = new_job(text=text, **{f"key {text}": [text]}).message.to_body()
    assert body.isascii()
    assert body.isprintable()
    assert SQSLambdaTaskMessage.from_body(body).kwargs == {"text": text, f"key {text}": [text]}


def test_a_delay_is_left_to_sqs(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    backend.send([new_job(delay=900)], taken=[].append)
    backend.send([new_job(delay=30), new_job()], taken=[].append)
    assert [entry["DelaySeconds"] for request in relay.requests for entry in request.entries] == [900, 30, 0]
    assert sqs.depth() == {"visible": 1, "delayed": 2, "in_flight": 0}


# What is refused at the call


def size_in_sqs(body: str, attributes: Mapping[str, str]) -> int:
    """Return the bytes that count against the limit: the body, and name, type and value of each attribute."""
    texts = [body, *attributes, *attributes.values(), *["String"] * len(attributes)]
    return sum(len(text.encode()) for text in texts)


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
def test_the_limit_is_on_body_and_attributes_together_to_the_byte(text: str, note: str) -> None:
    job = new_job(text=text, attributes={"note": note})
    longest_retry = job.message.model_copy(update={"n_retries": 2**31 - 1})
    size = size_in_sqs(longest_retry.to_body(), job.message_attributes())
    SQSBackend(max_message_bytes=size).validate(job)
    with pytest.raises(MessageTooLarge, match=r"shop\.tasks\.pack has [\d,]+ bytes"):
        SQSBackend(max_message_bytes=size - 1).validate(job)


def test_the_largest_message_that_is_accepted_is_accepted_by_sqs_too(
    backend: SQSBackend, relay: Relay, sqs: Sqs
) -> None:
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
    backend.send([new_job(text="x" * low)], taken=[].append)
    assert 1_048_576 - 30 <= size_on_the_wire(relay.requests[0]) <= 1_048_576
    assert len(arrived(sqs)) == 1


def test_an_unknown_queue_is_refused_with_its_remedy(backend: SQSBackend) -> None:
    with pytest.raises(UnknownQueue, match=r"'mail' is not in LAMBDA_TASKS_QUEUES.*fix queue= on shop\.tasks\.pack"):
        backend.validate(new_job(queue="mail"))


def test_plugins_may_add_seven_attributes(backend: SQSBackend) -> None:
    seven = {f"a{number}": "x" for number in range(7)}
    backend.validate(new_job(attributes=seven))
    with pytest.raises(InvalidArguments, match="SQS takes 10"):
        backend.validate(new_job(attributes={**seven, "one.more": "x"}))


def test_a_task_that_expires_leaves_room_for_the_moment_that_its_retries_carry(backend: SQSBackend) -> None:
    first = replace(new_job(attributes={f"a{number}": "x" for number in range(6)}), task=perishable)
    message = first.message.model_copy(update={"n_retries": 2**31 - 1})
    longest_retry = replace(first, message=message, first_sent=1_700_000_000)
    size = size_in_sqs(message.to_body(), longest_retry.message_attributes())
    SQSBackend(max_message_bytes=size).validate(first)
    with pytest.raises(MessageTooLarge):
        SQSBackend(max_message_bytes=size - 1).validate(first)
    with pytest.raises(InvalidArguments, match="SQS takes 10"):
        backend.validate(replace(first, attributes={**first.attributes, "one.more": "x"}))


@pytest.mark.parametrize("name", ["a", "a-b_c.d", "9", "x" * 256, "aws_x"])
def test_these_names_of_attributes_are_accepted(backend: SQSBackend, name: str) -> None:
    backend.validate(new_job(attributes={name: "x"}))


@pytest.mark.parametrize("name", ["", ".a", "a.", "a..b", "a b", "ä", "x" * 257, "AWS.x", "aws.x", "Amazon.x", "a\n"])
def test_these_names_of_attributes_are_refused(backend: SQSBackend, name: str) -> None:
    with pytest.raises(InvalidArguments, match="has a name that SQS refuses"):
        backend.validate(new_job(attributes={name: "x"}))


@pytest.mark.parametrize("value", ["x", " ", "\t", "ä", "\U0001f600", "\ufffd"])
def test_these_values_of_attributes_are_accepted(backend: SQSBackend, value: str) -> None:
    backend.validate(new_job(attributes={"a": value}))


@pytest.mark.parametrize(
    "value",
    ["", "\x00", "\x1b", "\ufffe", "\ud800", None, 3, b"x"],
    ids=ascii,
)
def test_these_values_of_attributes_are_refused(backend: SQSBackend, value: Any) -> None:
    with pytest.raises(InvalidArguments, match="is empty, no text, or has characters"):
        backend.validate(new_job(attributes={"a": value}))


# Faults


def refusing(*numbers: int, sender_fault: bool) -> Fault:
    """Return a fault: SQS takes all entries of a batch but these."""

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
    """Return a fault: SQS does what it should, but these keys are missing in its answer."""

    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = forward(payload)
        return status, {key: value for key, value in answer.items() if key not in keys}

    return fault


def answer_lost(payload: dict[str, Any], forward: Forward) -> Answer:
    forward(payload)
    return None


def throttled(payload: dict[str, Any], forward: Forward) -> Answer:
    return 400, {"__type": "com.amazonaws.sqs#RequestThrottled", "message": "slow down"}


def test_an_entry_that_failed_by_the_services_fault_is_sent_again_alone(
    backend: SQSBackend, relay: Relay, sqs: Sqs
) -> None:
    relay.faults = [refusing(1, 3, sender_fault=False)]
    jobs, taken = new_jobs(5), []
    backend.send(jobs, taken=taken.append)
    assert [[json.loads(entry["MessageBody"])["kwargs"]["number"] for entry in r.entries] for r in relay.requests] == [
        [0, 1, 2, 3, 4],
        [1, 3],
    ]
    assert sorted(ids(taken)) == sorted(ids(jobs)) == arrived(sqs)


def test_an_entry_that_is_our_own_fault_is_not_repeated_and_raised_at_the_end(
    backend: SQSBackend, relay: Relay, sqs: Sqs
) -> None:
    relay.faults = [refusing(1, sender_fault=True)]
    jobs, taken = new_jobs(12), []
    with pytest.raises(ClientError, match=rf"SomeCode.*shop\.tasks\.pack \[{jobs[1].message_id}\]: because"):
        backend.send(jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 10), ("SendMessageBatch", 2)]
    rest = [job for job in jobs if job is not jobs[1]]
    assert sorted(ids(taken)) == sorted(ids(rest)) == arrived(sqs)


def test_an_entry_that_the_service_refuses_three_times_is_raised(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [refusing(0, sender_fault=False)] * 3
    jobs, taken = new_jobs(3), []
    with pytest.raises(ClientError, match="SomeCode"):
        backend.send(jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 3), ("SendMessageBatch", 1), ("SendMessageBatch", 1)]
    assert sorted(ids(taken)) == sorted(ids(jobs[1:])) == arrived(sqs)


def test_each_way_to_be_refused_is_handled_on_its_own(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    def both(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = refusing(0, 1, sender_fault=True)(payload, forward) or (0, {})
        answer["Failed"][1]["SenderFault"] = False
        return status, answer

    relay.faults = [both]
    jobs, taken = new_jobs(3), []
    with pytest.raises(ClientError, match=jobs[0].message_id):
        backend.send(jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 3), ("SendMessageBatch", 1)]
    assert sorted(ids(taken)) == sorted(ids(jobs[1:])) == arrived(sqs)


def test_an_answer_without_failed_means_that_all_were_taken(backend: SQSBackend, relay: Relay) -> None:
    relay.faults = [without("Failed")]
    jobs, taken = new_jobs(2), []
    backend.send(jobs, taken=taken.append)
    assert ids(taken) == ids(jobs)


@pytest.mark.parametrize("value", [None, []])
def test_an_answer_with_nothing_taken_may_say_so_in_several_ways(
    backend: SQSBackend, relay: Relay, value: object
) -> None:
    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        failed = [{"Id": entry["Id"], "SenderFault": True, "Code": "No", "Message": ""} for entry in payload["Entries"]]
        return 200, {"Failed": failed, "Successful": value}

    relay.faults = [fault]
    taken: list[Job] = []
    with pytest.raises(ClientError, match="No"):
        backend.send(new_jobs(2), taken=taken.append)
    assert taken == []


def test_entries_that_an_answer_does_not_mention_are_sent_again_under_their_ids(
    backend: SQSBackend, relay: Relay, sqs: Sqs
) -> None:
    relay.faults = [without("Successful", "Failed")]
    jobs, taken = new_jobs(2), []
    backend.send(jobs, taken=taken.append)
    assert relay.operations() == [("SendMessageBatch", 2)] * 2
    assert ids(taken) == ids(jobs)
    assert Counter(arrived(sqs)) == dict.fromkeys(ids(jobs), 2)  # the worker runs each id once


def test_an_answer_that_never_mentions_the_entries_is_an_error(backend: SQSBackend, relay: Relay) -> None:
    relay.faults = [without("Successful", "Failed")] * 3
    taken: list[Job] = []
    with pytest.raises(ClientError, match="did not mention"):
        backend.send(new_jobs(2), taken=taken.append)
    assert taken == []


def test_an_answer_that_mentions_what_was_not_asked_harms_nobody(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    def fault(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = forward(payload)
        answer["Successful"] += [answer["Successful"][0], {**answer["Successful"][0], "Id": "77"}]
        return status, answer

    relay.faults = [fault]
    jobs, taken = new_jobs(12), []
    backend.send(jobs, taken=taken.append)
    assert ids(taken) == ids(jobs)
    assert arrived(sqs) == sorted(ids(jobs))


@pytest.mark.parametrize("count", [1, 3])
def test_a_lost_answer_makes_a_second_message_with_the_same_id(
    backend: SQSBackend, relay: Relay, sqs: Sqs, count: int
) -> None:
    relay.faults = [answer_lost]
    jobs, taken = new_jobs(count), []
    backend.send(jobs, taken=taken.append)
    assert ids(taken) == ids(jobs)
    assert Counter(arrived(sqs)) == dict.fromkeys(ids(jobs), 2)  # the worker runs each id once


def test_a_throttled_request_is_repeated_once(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    relay.faults = [throttled]
    taken: list[Job] = []
    backend.send([new_job()], taken=taken.append)
    assert relay.operations() == [("SendMessage", 1)] * 2
    assert ids(taken) == arrived(sqs)


def test_what_sqs_refuses_is_raised_after_everything_else_was_sent(
    backend: SQSBackend, relay: Relay, sqs: Sqs, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gone = sqs.queues["default"].replace("default", "gone")
    settings.LAMBDA_TASKS_QUEUES = {"gone": gone, **sqs.queues}
    lost, good, others, taken = new_jobs(11, queue="gone"), new_jobs(2), new_jobs(1, queue="other"), []
    with pytest.raises(ClientError, match=r"NonExistentQueue|QueueDoesNotExist"):
        backend.send([*lost, *good, *others], taken=taken.append)
    assert sorted(ids(taken)) == sorted(ids(good + others))
    assert arrived(sqs) == sorted(ids(good))
    assert arrived(sqs, "other") == ids(others)
    [line] = caplog.records  # the error of the second batch; the first one's is raised
    assert line.getMessage() == "A message could not be sent to SQS."


def test_the_refusals_before_a_lost_connection_are_logged(
    backend: SQSBackend, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    def mixed(payload: dict[str, Any], forward: Forward) -> Answer:
        status, answer = refusing(0, 1, sender_fault=True)(payload, forward) or (0, {})
        answer["Failed"][1]["SenderFault"] = False
        return status, answer

    relay.faults = [mixed, answer_lost, answer_lost]
    jobs = new_jobs(3)
    with pytest.raises((ClientError, BotoCoreError)) as caught:
        backend.send(jobs, taken=[].append)
    logged = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert any(jobs[0].message_id in text for text in [str(caught.value), *logged])


def test_a_closed_port_raises_botos_error_at_once() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    taken: list[Job] = []
    begin = time.monotonic()
    with pytest.raises(EndpointConnectionError):
        SQSBackend(endpoint_url=f"http://127.0.0.1:{port}").send(new_jobs(2), taken=taken.append)
    assert time.monotonic() - begin < 10
    assert taken == []


def test_an_endpoint_that_never_answers_is_given_up_after_the_timeouts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        backend = SQSBackend(endpoint_url=url, connect_timeout=0.2, read_timeout=0.2, max_attempts=2)
        begin = time.monotonic()
        with pytest.raises(ReadTimeoutError):
            backend.send(new_jobs(2), taken=[].append)
        assert 0.4 <= time.monotonic() - begin < 10


def test_the_timeouts_are_short_unless_they_are_given(sqs: Sqs) -> None:
    config = SQSBackend()._client(sqs.queues["default"]).meta.config
    assert (config.connect_timeout, config.read_timeout) == (2, 5)
    assert config.retries["total_max_attempts"] == 2


# Clients


def test_one_client_serves_the_process(backend: SQSBackend, relay: Relay) -> None:
    for _ in range(5):
        backend.send(new_jobs(1), taken=[].append)
    backend.send(new_jobs(1, queue="other"), taken=[].append)
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
        ("http://127.0.0.1:4566/000000000000/q", "eu-west-1"),  # none in it: the environment's
    ],
)
def test_the_region_is_the_one_in_the_queues_url(
    backend: SQSBackend, relay: Relay, settings: Any, url: str, region: str
) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": url}
    with pytest.raises(ClientError):
        backend.send([new_job()], taken=[].append)  # there is no such queue: only the signature matters
    assert {request.region for request in relay.requests} == {region}


FORKING = """
import os, sys
import django
from django.conf import settings
settings.configure(LAMBDA_TASKS_QUEUES={"default": sys.argv[2]})
django.setup()
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.identity import new_message_id
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage

def send():
    message_id = new_message_id()
    job = Job(message=SQSLambdaTaskMessage(task_name="a.b"), message_id=message_id, root_id=message_id)
    backend.send([job], taken=lambda job: None)

backend = SQSBackend(endpoint_url=sys.argv[1])
send()
if child := os.fork():
    _, status = os.waitpid(child, 0)
    send()
    sys.exit(os.waitstatus_to_exitcode(status))
send()
os._exit(0)
"""


def test_a_forked_process_has_a_client_of_its_own(relay: Relay, sqs: Sqs) -> None:
    subprocess.run([sys.executable, "-c", FORKING, relay.url, sqs.queues["default"]], check=True, timeout=60)
    parent, child, parent_again = (request.connection for request in relay.requests)
    assert child != parent
    assert parent_again == parent
    assert len(set(arrived(sqs))) == 3


# Postponing


def received_records(sqs: Sqs, queue: str = "default") -> list[dict[str, Any]]:
    """Receive what is visible, as Lambda would give it to the handler."""
    return [
        {
            **event_record(new_job(queue=queue)),
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
        }
        for message in sqs.receive(queue)
    ]


def test_a_message_that_is_postponed_by_nothing_comes_back_at_once(backend: SQSBackend, relay: Relay, sqs: Sqs) -> None:
    backend.send(new_jobs(2), taken=[].append)
    first, second = received_records(sqs)
    assert sqs.depth()["in_flight"] == 2
    backend.postpone([(first, 0), (second, 600.7)])
    assert [record["messageId"] for record in received_records(sqs)] == [first["messageId"]]
    [_, request] = relay.requests
    assert [entry["VisibilityTimeout"] for entry in request.entries] == [0, 600]


def test_ten_messages_are_postponed_in_one_request_and_each_on_its_queue(
    backend: SQSBackend, relay: Relay, sqs: Sqs
) -> None:
    backend.send([*new_jobs(12), *new_jobs(1, queue="other")], taken=[].append)
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


def test_a_queue_that_is_gone_does_not_keep_the_others_from_being_postponed(
    backend: SQSBackend, relay: Relay, sqs: Sqs, settings: Any
) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"gone": sqs.queues["default"].replace("default", "gone"), **sqs.queues}
    backend.send(new_jobs(1), taken=[].append)
    backend.postpone([(event_record(new_job(queue="gone")), 0), *[(record, 0) for record in received_records(sqs)]])
    assert len(arrived(sqs)) == 1


@pytest.mark.parametrize(("seconds", "timeout"), [(50_000, 43_200), (0.9, 0), (30, 30)])
def test_messages_are_postponed_by_whole_seconds_up_to_twelve_hours(
    backend: SQSBackend, relay: Relay, sqs: Sqs, seconds: float, timeout: int
) -> None:
    backend.send(new_jobs(1), taken=[].append)
    [record] = received_records(sqs)
    backend.postpone([(record, seconds)])
    [entry] = relay.requests[-1].entries
    assert entry["VisibilityTimeout"] == timeout


def test_what_came_from_a_queue_that_is_not_ours_is_left_alone(backend: SQSBackend, relay: Relay) -> None:
    backend.postpone([(event_record(new_job(queue="somebody-elses")), 0)])
    assert relay.requests == []


def test_postponing_says_nothing_aloud_while_sqs_is_away(
    relay: Relay, sqs: Sqs, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    backend = SQSBackend(endpoint_url=f"http://127.0.0.1:{port}", max_attempts=1)
    backend.postpone([(event_record(new_job()), 5)])
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []
