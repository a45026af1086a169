"""The local worker with real SQS calls to a moto server, the real awslambdaric, and faults in the handler."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from django.core.management import CommandError, call_command
from moto.server import ThreadedMotoServer
from moto.sqs.models import sqs_backends

from lambda_tasks.decorators import lambda_task
from lambda_tasks.local import tally as tally_module
from lambda_tasks.local import worker as worker_module
from lambda_tasks.local.event_source import EventSource, QueueUnavailable, open_sources
from lambda_tasks.local.health import Pulse
from lambda_tasks.local.holding import MIN_EXTENSION
from lambda_tasks.local.progress import (
    Event,
    Finished,
    HandedBack,
    Maintained,
    Output,
    Received,
    RuntimeReady,
    Started,
    Summary,
    Trouble,
    Warned,
)
from lambda_tasks.local.runtime import RuntimeStartError
from lambda_tasks.local.worker import LocalWorker, log
from tests.operations.test_checks import only

pytestmark = pytest.mark.thorough

PATIENCE = 20  # seconds: only a failing test waits this long
PROJECT = Path(__file__).parents[2]

E = TypeVar("E", bound=Event)

# A message tells the handler what to do at the first receive, or at the first `times` receives.
HANDLER = """
import json, os, signal, socket, time

def handler(event, context):
    if "Records" not in event:
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(json.dumps({"event": event}) + "\\n")
        order = json.loads(os.environ.get("SCHEDULED", "{}"))
        obey(order)
        return order.get("answer")
    failed = []
    for record in event["Records"]:
        order = json.loads(record["body"])
        with open(os.environ["SEEN"], "a") as seen:
            seen.write(json.dumps({"body": order, "record": record, "pid": os.getpid()}) + "\\n")
        if int(record["attributes"]["ApproximateReceiveCount"]) <= order.get("times", 1):
            if obey(order) == "failed":
                failed.append({"itemIdentifier": record["messageId"]})
    return {"batchItemFailures": failed}

grown = []

def obey(order):
    match order.get("do"):
        case "fail":
            return "failed"
        case "raise":
            raise ValueError("no stock")
        case "exit":
            os._exit(7)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(60)
        case "grow":
            grown.append(b"x" * (300 * 2**20))
        case "send":
            import boto3
            boto3.client("sqs").send_message(QueueUrl=order["to"], MessageBody="{}")
        case "connect":
            # Report the connection, and continue on a response.
            with socket.create_connection(order["address"]) as connection:
                connection.sendall(b"here")
                connection.recv(1)
"""


# Helpers


@dataclass
class Watch:
    """Collects a worker's reports, and waits for a report of a type."""

    events: list[Event] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def all(self, kind: type[E]) -> list[E]:
        with self.changed:
            return [event for event in self.events if isinstance(event, kind)]

    def wait_for(self, kind: type[E], which: Callable[[E], bool] = lambda event: True) -> E:
        def found() -> list[E]:
            return [event for event in self.all(kind) if which(event)]

        with self.changed:
            assert self.changed.wait_for(found, PATIENCE), f"no {kind.__name__} among {self.events}"
            return found()[0]


@dataclass(frozen=True)
class Queue:
    url: str
    client: Any

    def send(self, order: dict[str, Any] | None = None, **options: Any) -> str:
        body = json.dumps(order or {})
        message_id: str = self.client.send_message(QueueUrl=self.url, MessageBody=body, **options)["MessageId"]
        return message_id

    def depth(self) -> tuple[int, int]:
        """Return the numbers of visible messages and of messages in flight."""
        attributes = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["All"])["Attributes"]
        return (
            int(attributes["ApproximateNumberOfMessages"]),
            int(attributes["ApproximateNumberOfMessagesNotVisible"]),
        )

    def set_visibility_timeout(self, seconds: int) -> None:
        self.client.set_queue_attributes(QueueUrl=self.url, Attributes={"VisibilityTimeout": str(seconds)})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def client(endpoint: str) -> Any:
    return boto3.client(
        "sqs",
        endpoint_url=endpoint,
        region_name="eu-west-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_text(HANDLER)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL_SQS": endpoint,
        "NO_PROXY": "127.0.0.1",
        "SEEN": str(tmp_path / "seen"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)]),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))
    # The worker finishes a running poll before it ends; these polls do not wait for messages.
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 0)
    monkeypatch.setattr(worker_module, "POLL_SECONDS_UNTIL_IDLE", 0)


@pytest.fixture
def make_queue(client: Any, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Queue]]:
    """Return a factory of queues with a visibility timeout of an hour: unfinished messages stay in flight."""
    made: list[Queue] = []

    def make(name: str) -> Queue:
        unique = f"{name}-{abs(hash(request.node.nodeid))}"
        url = client.create_queue(QueueName=unique, Attributes={"VisibilityTimeout": "3600"})["QueueUrl"]
        made.append(Queue(url, client))
        return made[-1]

    yield make
    for queue in made:
        client.delete_queue(QueueUrl=queue.url)


@pytest.fixture
def queue(make_queue: Callable[[str], Queue]) -> Queue:
    return make_queue("default")


@pytest.fixture
def other(make_queue: Callable[[str], Queue]) -> Queue:
    return make_queue("other")


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listen for a connection from a handler with the order "connect"."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


def accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    assert connection.recv(4) == b"here"
    return connection


def received() -> list[dict[str, Any]]:
    """Return the orders that the handlers received, in order, including those that killed a handler."""
    path = Path(os.environ["SEEN"])
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def worker_for(watch: Watch, **queues: Queue) -> LocalWorker:
    urls = {name: queue.url for name, queue in queues.items()}
    return LocalWorker(urls, "orders.handler", report=watch)


@contextmanager
def running(worker: LocalWorker, **options: Any) -> Iterator[None]:
    """Run the worker in a thread for the duration of the context, and raise its exception here."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            worker.run(**options)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
        worker.stop()
    except BaseException:
        worker.kill()
        raise
    finally:
        thread.join(PATIENCE)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


# Delivery


def test_batch_is_delivered_and_deleted(queue: Queue, watch: Watch) -> None:
    attribute = {"StringValue": "0193", "DataType": "String"}
    ids = {queue.send({"number": number}, MessageAttributes={"id": attribute}) for number in range(3)}

    summary = worker_for(watch, default=queue).run(until_idle=True)

    assert summary == Summary(batches=1, done=3)
    assert queue.depth() == (0, 0)
    assert [each["body"]["number"] for each in received()] == [0, 1, 2]
    record = received()[0]["record"]
    assert record["messageId"] in ids
    assert record["messageAttributes"]["id"]["stringValue"] == "0193"
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert record["eventSourceARN"].startswith("arn:aws:sqs:eu-west-1:")
    (finished,) = watch.all(Finished)
    assert set(finished.done_ids) == ids
    assert not finished.kept_ids
    assert not finished.reason


def test_process_serves_successive_batches_of_configured_size(queue: Queue, watch: Watch) -> None:
    for number in range(5):
        queue.send({"number": number})

    LocalWorker({"default": queue.url}, "orders.handler", batch_size=2, report=watch).run(until_idle=True)

    assert [len(received.message_ids) for received in watch.all(Received)] == [2, 2, 1]
    assert len({each["pid"] for each in received()}) == 1


def test_window_makes_larger_batches(queue: Queue, watch: Watch) -> None:
    for number in range(12):
        queue.send({"number": number})

    worker = LocalWorker({"default": queue.url}, "orders.handler", batch_size=12, batching_window=5, report=watch)
    worker.run(until_idle=True)

    assert [len(received.message_ids) for received in watch.all(Received)] == [12]


def test_batches_of_a_queue_run_concurrently(queue: Queue, watch: Watch, listener: socket.socket) -> None:
    for _ in range(2):
        queue.send({"do": "connect", "address": listener.getsockname()})
    worker = LocalWorker({"default": queue.url}, "orders.handler", concurrency=2, batch_size=1, report=watch)

    with running(worker, until_idle=True):
        with accept(listener), accept(listener):  # both are running
            pass
        watch.wait_for(Summary)

    assert queue.depth() == (0, 0)


# Failures


def test_partial_failure_keeps_only_failed_messages(queue: Queue, watch: Watch) -> None:
    ids = [queue.send(order) for order in ({}, {"do": "fail"}, {})]

    with running(worker_for(watch, default=queue)):
        finished = watch.wait_for(Finished)

    assert finished.kept_ids == (ids[1],)
    assert finished.outcome == "answered"
    assert queue.depth() == (0, 1)


def test_exception_keeps_the_whole_batch(queue: Queue, watch: Watch) -> None:
    ids = [queue.send(order) for order in ({}, {"do": "raise"})]

    with running(worker_for(watch, default=queue)):
        finished = watch.wait_for(Finished)
        output = watch.wait_for(Output)

    assert finished.kept_ids == tuple(ids)
    assert finished.outcome == "raised"
    assert finished.reason == "the handler raised ValueError: no stock"
    assert queue.depth() == (0, 2)
    assert len(watch.all(RuntimeReady)) == 1  # the process is the same
    assert str(output).splitlines()[0] == "default-1 | [ERROR] ValueError: no stock"


def test_crash_keeps_the_batch_and_restarts_process(queue: Queue, watch: Watch) -> None:
    ids = [queue.send({}), queue.send({"do": "segfault"})]

    with running(worker_for(watch, default=queue)):
        crashed = watch.wait_for(Finished)
        watch.wait_for(RuntimeReady, lambda ready: ready.is_restart)
        queue.send({"number": 3})
        after = watch.wait_for(Finished, lambda finished: finished is not crashed)

    assert crashed.outcome == "crashed"
    assert crashed.kept_ids == tuple(ids)
    assert crashed.reason == "the runtime crashed: killed by SIGSEGV"
    assert len(after.done_ids) == 1
    assert queue.depth() == (0, 2)
    assert received()[-1]["pid"] != received()[0]["pid"]


def test_crash_does_not_affect_another_queue(queue: Queue, other: Queue, watch: Watch, listener: socket.socket) -> None:
    other.send({"do": "connect", "address": listener.getsockname()})

    with running(worker_for(watch, default=queue, other=other)):
        with accept(listener):  # a batch of the other queue continues meanwhile
            queue.send({"do": "exit"})
            watch.wait_for(Finished, lambda finished: finished.outcome == "crashed")
        done = watch.wait_for(Finished, lambda finished: finished.environment == "other-1")

    assert done.outcome == "answered"
    assert other.depth() == (0, 0)
    assert queue.depth() == (0, 1)


def test_batch_exceeding_the_function_timeout_is_killed(queue: Queue, watch: Watch) -> None:
    queue.send({"do": "hang"})
    worker = LocalWorker({"default": queue.url}, "orders.handler", function_timeout=0.5, report=watch)

    with running(worker):
        finished = watch.wait_for(Finished)
        watch.wait_for(RuntimeReady, lambda ready: ready.is_restart)

    assert finished.outcome == "timed out"
    assert finished.reason == "the function timed out after 0.5 s"
    assert queue.depth() == (0, 1)


def test_failed_message_is_redelivered_after_visibility_timeout(queue: Queue, watch: Watch) -> None:
    queue.set_visibility_timeout(1)
    queue.send({"do": "fail"})

    summary = worker_for(watch, default=queue).run(until_idle=True)

    assert summary == Summary(batches=2, done=1, kept=1)
    assert [each["record"]["attributes"]["ApproximateReceiveCount"] for each in received()] == ["1", "2"]


def test_process_that_dies_between_batches_is_replaced(queue: Queue, watch: Watch) -> None:
    with running(worker_for(watch, default=queue)):
        os.kill(watch.wait_for(RuntimeReady).pid, signal.SIGKILL)
        watch.wait_for(RuntimeReady, lambda ready: ready.is_restart)
        queue.send()
        finished = watch.wait_for(Finished)

    assert finished.outcome == "answered"


def test_worker_survives_an_sqs_outage(
    queue: Queue, client: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "RETRY_SECONDS", 0.05)
    name = queue.url.rpartition("/")[2]

    with running(worker_for(watch, default=queue)):
        watch.wait_for(RuntimeReady)
        client.delete_queue(QueueUrl=queue.url)
        watch.wait_for(Trouble)
        client.create_queue(QueueName=name)
        queue.send()
        watch.wait_for(Finished)


def test_failed_deletion_is_reported(queue: Queue, client: Any) -> None:
    class DeletesTheQueue(Watch):
        """Deletes the queue while the batch runs, so that its messages cannot be deleted."""

        def __call__(self, event: Event) -> None:
            if isinstance(event, Received):
                client.delete_queue(QueueUrl=queue.url)
            super().__call__(event)

    watch = DeletesTheQueue()
    queue.send()

    with running(worker_for(watch, default=queue)):
        trouble = watch.wait_for(Trouble)
        watch.wait_for(Finished)

    assert "did not delete finished messages" in trouble.text
    client.create_queue(QueueName=queue.url.rpartition("/")[2])


# Until idle


def test_empty_queues_are_idle(queue: Queue, other: Queue, watch: Watch) -> None:
    """The processes have ended afterwards."""
    worker = LocalWorker({"a": queue.url, "b": other.url}, "orders.handler", concurrency=2, report=watch)

    assert worker.run(until_idle=True) == Summary()

    assert watch.all(RuntimeReady)
    for ready in watch.all(RuntimeReady):
        with pytest.raises(ProcessLookupError):
            os.kill(ready.pid, 0)


def test_worker_waits_for_delayed_messages(queue: Queue, watch: Watch) -> None:
    queue.send(DelaySeconds=1)

    assert worker_for(watch, default=queue).run(until_idle=True).done == 1


def test_worker_waits_for_messages_of_tasks(queue: Queue, other: Queue, watch: Watch) -> None:
    queue.send({"do": "send", "to": other.url})

    summary = worker_for(watch, other=other, default=queue).run(until_idle=True)

    assert summary.done == 2
    assert other.depth() == queue.depth() == (0, 0)


def test_message_sent_during_idle_check_is_found(
    queue: Queue, other: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_idle = EventSource.is_idle
    happened = threading.Event()

    def is_idle_with_bad_luck(source: EventSource) -> bool:
        """Let a task of the second queue send to the first, once, between the responses of the two queues."""
        answer = is_idle(source)
        if happened.is_set():
            return answer
        if threading.current_thread().name != "other-1":
            return False  # the thread of the other queue must make this check
        happened.set()
        queue.send({"do": "send", "to": other.url})
        watch.wait_for(Finished)
        return answer

    monkeypatch.setattr(EventSource, "is_idle", is_idle_with_bad_luck)

    summary = worker_for(watch, other=other, default=queue).run(until_idle=True)

    assert summary.done == 2
    assert other.depth() == (0, 0)


def test_worker_waits_for_messages_in_flight(queue: Queue, watch: Watch, client: Any) -> None:
    queue.send()
    (elsewhere,) = client.receive_message(QueueUrl=queue.url)["Messages"]

    with running(worker_for(watch, default=queue), until_idle=True):
        watch.wait_for(RuntimeReady)
        assert not watch.all(Summary)
        client.delete_message(QueueUrl=queue.url, ReceiptHandle=elsewhere["ReceiptHandle"])
        watch.wait_for(Summary)


# Start and stop


def test_stop_lets_the_batch_finish(queue: Queue, watch: Watch, listener: socket.socket) -> None:
    queue.send({"do": "connect", "address": listener.getsockname()})
    worker = worker_for(watch, default=queue)

    with running(worker):
        with accept(listener):
            worker.stop()
            queue.send({"number": 2})
        watch.wait_for(Summary)

    assert [each["body"].get("do") for each in received()] == ["connect"]
    assert queue.depth() == (1, 0)  # the second message was not received


def test_worker_stopped_before_running_receives_nothing(queue: Queue, watch: Watch) -> None:
    queue.send()
    worker = worker_for(watch, default=queue)
    worker.stop()

    assert worker.run() == Summary()
    assert queue.depth() == (1, 0)


def test_kill_ends_a_batch_and_hands_it_back(queue: Queue, watch: Watch, listener: socket.socket) -> None:
    queue.send({"do": "connect", "address": listener.getsockname()})
    worker = worker_for(watch, default=queue)

    with running(worker), accept(listener) as connection:
        worker.kill()
        assert connection.recv(1) == b""  # the process has ended

    assert watch.all(Finished)[0].outcome == "crashed"
    assert len(watch.all(RuntimeReady)) == 1
    assert worker.was_killed
    assert queue.depth() == (1, 0)


def test_last_poll_before_kill_runs_no_batch(queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "POLL_SECONDS", 20)
    worker = worker_for(watch, default=queue)

    with running(worker):
        watch.wait_for(RuntimeReady)
        worker.kill()
        queue.send()  # ends the poll, if one is running

    assert watch.all(Received) == []
    assert len(watch.all(RuntimeReady)) == 1
    assert sum(queue.depth()) == 1


def test_kill_ends_a_starting_process(queue: Queue, watch: Watch, listener: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "slow_start.py").write_text(
        f"import orders; orders.obey({{'do': 'connect', 'address': {listener.getsockname()!r}}})"
    )
    worker = LocalWorker({"default": queue.url}, "slow_start.handler", report=watch)

    with running(worker), accept(listener) as connection:
        worker.kill()
        assert connection.recv(1) == b""  # the process has ended

    assert watch.all(Summary) == [Summary()]


class TestDraining:
    def test_waiting_messages_are_handed_back_immediately(
        self, queue: Queue, watch: Watch, listener: socket.socket
    ) -> None:
        order = {"do": "connect", "address": listener.getsockname()}
        for _ in range(3):
            queue.send(order)
        worker = LocalWorker({"default": queue.url}, "orders.handler", one_by_one=True, report=watch)

        with running(worker), accept(listener):
            assert queue.depth() == (0, 3)
            worker.stop()
            watch.wait_for(HandedBack)
            assert queue.depth() == (2, 1)  # while the first one still runs

        assert [len(batch.message_ids) for batch in watch.all(Received)] == [1]
        [summary] = watch.all(Summary)
        assert (summary.done, summary.handed_back) == (1, 2)
        assert str(summary) == "Stopped after 1 batch: 1 done, 0 kept, 2 handed back"
        assert queue.depth() == (2, 0)
        assert not worker.was_killed

    def test_unfinished_batch_is_killed(self, queue: Queue, watch: Watch, listener: socket.socket) -> None:
        message_id = queue.send({"do": "connect", "address": listener.getsockname()})
        worker = LocalWorker({"default": queue.url}, "orders.handler", drain_seconds=0, report=watch)

        with running(worker), accept(listener) as connection:
            worker.stop()
            assert connection.recv(1) == b""  # the process has ended

        assert worker.was_killed
        assert watch.all(HandedBack) == [HandedBack("default-1", (message_id,))]
        assert "have not ended within 0 s, so their processes are killed" in str(watch.all(Warned)[-1])
        assert queue.depth() == (1, 0)

    def test_batch_that_ends_in_time_is_finished(self, queue: Queue, watch: Watch, listener: socket.socket) -> None:
        queue.send({"do": "connect", "address": listener.getsockname()})
        worker = LocalWorker({"default": queue.url}, "orders.handler", drain_seconds=PATIENCE, report=watch)

        with running(worker), accept(listener) as connection:
            worker.stop()
            connection.sendall(b"!")
            watch.wait_for(Finished)

        assert not worker.was_killed
        assert queue.depth() == (0, 0)

    def test_message_of_the_last_poll_is_handed_back(
        self, queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker = worker_for(watch, default=queue)
        receive = EventSource._receive

        def stop_and_receive(source: EventSource, *args: Any, **options: Any) -> Any:
            queue.send()
            worker.stop()
            return receive(source, *args, **options)

        monkeypatch.setattr(EventSource, "_receive", stop_and_receive)
        worker.run()

        assert watch.all(Received) == []
        assert len(watch.all(HandedBack)) == 1
        assert queue.depth() == (1, 0)

    def test_failed_hand_back_is_reported(
        self, queue: Queue, client: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = EventSource(
            "default", queue.url, client=client, batch_size=1, batching_window_seconds=0, wait_seconds=0
        )
        queue.send()
        messages = source.gather(threading.Event())
        source.url += "-no"
        worker_for(watch, default=queue)._hand_back(messages, source, "default-1")

        assert "return when their visibility timeout ends" in str(watch.all(Trouble)[0])


def test_process_is_replaced_after_its_messages(queue: Queue, watch: Watch) -> None:
    for _ in range(4):
        queue.send()

    worker = LocalWorker({"default": queue.url}, "orders.handler", one_by_one=True, max_messages=2, report=watch)
    worker.run(until_idle=True)

    pids = [order["pid"] for order in received()]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2]


def test_large_process_is_replaced_after_its_batch(queue: Queue, watch: Watch) -> None:
    for order in ({}, {"do": "grow"}, {}, {}):
        queue.send(order)

    worker = LocalWorker({"default": queue.url}, "orders.handler", one_by_one=True, max_memory=250, report=watch)
    summary = worker.run(until_idle=True)

    pids = [order["pid"] for order in received()]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2]
    assert (summary.done, summary.handed_back) == (4, 0)
    [warning] = watch.all(Warned)
    assert re.search(r"The process of default-1 uses [0-9,]+ MB, more than --max-memory 250, and is repl", str(warning))


def test_heartbeat_extends_a_running_message(queue: Queue, watch: Watch, listener: socket.socket) -> None:
    queue.set_visibility_timeout(1)
    queue.send({"do": "connect", "address": listener.getsockname(), "times": 5})
    worker = LocalWorker({"default": queue.url}, "orders.handler", heartbeat=True, report=watch)

    with running(worker), accept(listener):
        backend = sqs_backends["123456789012"]["eu-west-1"]
        [message] = backend.queues[queue.url.rpartition("/")[2]]._messages
        extended = message.visible_at + (MIN_EXTENSION - 5) * 1000
        assert eventually(lambda: message.visible_at > extended)

    assert [order["record"]["attributes"]["ApproximateReceiveCount"] for order in received()] == ["1"]
    assert watch.all(Warned) == []  # the visibility timeout may be shorter than an invocation


def test_long_poll_has_time_for_its_answer(queue: Queue) -> None:
    [source] = open_sources({"default": queue.url}, batch_size=1, batching_window_seconds=0, wait_seconds=20)
    assert source._client.meta.config.read_timeout == 30
    assert source._connect is not None
    assert source._connect().meta.config.read_timeout == 30
    assert source.longest_gathering == 96


class TestSqsFailures:
    def test_pauses_double_up_to_a_maximum(self, queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker_module.random, "uniform", lambda low, high: high)
        worker = worker_for(watch, default=queue)
        pulse, source = Pulse("default-1"), SimpleNamespace(renew_client=lambda error: None)
        worker.stop()  # so that it does not wait

        for failures in range(7):
            worker._wait_for_sqs(BotoCoreError(), failures, source, "default-1", pulse)  # type: ignore[arg-type]

        seconds = [re.search(r"in (\d+) s", str(trouble)) for trouble in watch.all(Trouble)]
        assert [int(match[1]) for match in seconds if match] == [2, 4, 8, 16, 32, 60, 60]

    def test_expired_credentials_are_read_again(self, queue: Queue, client: Any) -> None:
        made: list[Any] = []

        def connect() -> Any:
            made.append(client)
            return client

        source = EventSource(
            "default",
            queue.url,
            client=client,
            batch_size=1,
            batching_window_seconds=0,
            wait_seconds=0,
            connect=connect,
        )

        source.renew_client(ClientError({"Error": {"Code": "ThrottlingException"}}, "ReceiveMessage"))
        assert made == []
        source.renew_client(ClientError({"Error": {"Code": "ExpiredToken"}}, "ReceiveMessage"))
        source.renew_client(NoCredentialsError())
        assert len(made) == 2


def eventually(holds: Callable[[], bool]) -> bool:
    """Wait until something holds that another thread does, at most as long as for a report."""
    deadline = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    return holds()


def test_exception_in_a_report_ends_the_worker(queue: Queue) -> None:
    def report(event: Event) -> None:
        if isinstance(event, RuntimeReady):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        LocalWorker({"default": queue.url}, "orders.handler", report=report).run()


def test_unloadable_handler_uses_no_receive(queue: Queue, watch: Watch) -> None:
    queue.send()

    with pytest.raises(RuntimeStartError, match=r"no_such\.handler"):
        LocalWorker({"default": queue.url}, "no_such.handler", report=watch).run()

    assert queue.depth() == (1, 0)


def test_missing_queue_is_named(queue: Queue, watch: Watch) -> None:
    with pytest.raises(QueueUnavailable, match="Queue 'mail'"):
        LocalWorker({"default": queue.url, "mail": queue.url + "-no"}, "orders.handler", report=watch).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": {}}, "queues must contain at least one name"),
        ({"concurrency": 0}, "concurrency must be an integer from 1 to 1000, not 0"),
        ({"batch_size": 10_001, "batching_window": 1}, "batch_size must be an integer from 1 to 10000, not 10001"),
        ({"batch_size": 11}, "batch_size must be at most 10 without a batching_window, not 11"),
        ({"batching_window": 301}, "batching_window must be an integer from 0 to 300, not 301"),
        ({"function_timeout": 43_141}, "function_timeout must be more than 0 and at most 43140 seconds, not 43141"),
        ({"drain_seconds": -1}, "drain_seconds must be at least 0 seconds, or None, not -1"),
        ({"poll_seconds": 21}, "poll_seconds must be an integer from 0 to 20, not 21"),
        ({"poll_seconds": 20, "drain_seconds": 20}, r"poll_seconds must be less than drain_seconds \(20\), not 20"),
        ({"max_messages": 0}, "max_messages must be an integer of at least 1, not 0"),
        ({"max_memory": 0}, "max_memory must be an integer of at least 1, not 0"),
        ({"function_timeout": 0}, "function_timeout must be more than 0 and at most 43140 seconds, not 0"),
    ],
)
def test_options_that_lambda_refuses_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalWorker(**{"queues": {"default": "http://127.0.0.1:9/1/q"}, **options})


# The schedule


def scheduled(monkeypatch: pytest.MonkeyPatch, **order: Any) -> None:
    """Define the order that the handler executes, and its response, for an event of the schedule."""
    monkeypatch.setenv("SCHEDULED", json.dumps(order))


def events() -> list[Any]:
    return [entry["event"] for entry in received() if "event" in entry]


ANSWER = {"outbox": {"sent": 1, "failed": 0, "dead": 0}, "lost": {"sent_again": 0, "failed": 0, "unsent": 0}}


def test_worker_waits_for_messages_of_maintenance(queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled(monkeypatch, do="send", to=queue.url, answer=ANSWER)

    worker = LocalWorker({"default": queue.url}, "orders.handler", maintenance_every=3600, report=watch)
    summary = worker.run(until_idle=True)

    assert summary == Summary(batches=1, done=1)
    assert events() == [{"lambda_tasks": "maintenance"}]
    [maintained] = watch.all(Maintained)
    assert str(maintained) == "default-1: maintenance, outbox: 1 sent"


def test_only_one_process_gets_the_event(queue: Queue, other: Queue, watch: Watch) -> None:
    urls = {"default": queue.url, "other": other.url}

    LocalWorker(urls, "orders.handler", concurrency=2, maintenance_every=3600, report=watch).run(until_idle=True)

    assert len(watch.all(RuntimeReady)) == 4
    assert len(events()) == 1
    assert watch.all(Maintained) == []  # the event had no effect


def test_event_repeats(queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled(monkeypatch, answer={"outbox": {"sent": 2}, "lost": {"sent_again": 1, "failed": 3}})

    with running(LocalWorker({"default": queue.url}, "orders.handler", maintenance_every=0.01, report=watch)):
        for _ in range(3):
            watch.wait_for(Maintained)
            watch.events.clear()

    assert str(Maintained("default-1", {"outbox": {"sent": 2}, "lost": {"sent_again": 1, "failed": 3}})) == (
        "default-1: maintenance, outbox: 2 sent; lost: 1 sent again, 3 failed"
    )


def test_event_requires_a_schedule(queue: Queue, watch: Watch) -> None:
    queue.send()
    worker_for(watch, default=queue).run(until_idle=True)
    assert events() == []


def test_schedule_is_due_immediately_and_then_periodically(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(tally_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    schedule = tally_module.Schedule(10)
    due = []
    for seconds in (0, 0, 9.9, 0.1, 5, 40, 0):
        now[0] += seconds
        due.append(schedule.is_due())
    assert due == [True, False, False, True, False, True, False]
    assert not tally_module.Schedule(None).is_due()


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"do": "raise"}, "the handler raised ValueError: no stock"),
        ({"do": "segfault"}, "the runtime crashed: killed by SIGSEGV"),
    ],
    ids=["raises", "crashes"],
)
def test_failed_event_is_reported(
    queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch, order: dict[str, Any], reason: str
) -> None:
    """The worker continues."""
    scheduled(monkeypatch, **order)
    queue.send()

    worker = LocalWorker({"default": queue.url}, "orders.handler", maintenance_every=3600, report=watch)
    summary = worker.run(until_idle=True)

    assert summary.done == 1
    [maintained] = watch.all(Maintained)
    assert maintained.reason == reason
    assert str(maintained) == f"default-1: maintenance failed: {reason}"


@pytest.mark.parametrize("answer", [None, [], "text", {"outbox": 5}, {"batchItemFailures": []}], ids=str)
def test_malformed_response_to_the_event_is_ignored(
    queue: Queue, watch: Watch, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    scheduled(monkeypatch, answer=answer)
    LocalWorker({"default": queue.url}, "orders.handler", maintenance_every=3600, report=watch).run(until_idle=True)
    assert len(events()) == 1
    assert watch.all(Maintained) == []


@pytest.mark.parametrize("every", [0, -1, float("nan")])
def test_invalid_schedule_is_refused(every: float) -> None:
    with pytest.raises(ValueError, match=r"maintenance_every must be more than 0 seconds, or None, not "):
        LocalWorker({"default": "url"}, maintenance_every=every)


# Reports


def test_reports_are_readable_lines(queue: Queue, watch: Watch) -> None:
    queue.set_visibility_timeout(1)
    message_id = queue.send({"do": "exit"})

    with only():
        worker_for(watch, default=queue).run(until_idle=True)

    first, second = watch.all(RuntimeReady)
    short_visibility = (
        "The visibility timeout of queue 'default' is 1 s, less than the function's timeout of 900 s. A batch that "
        "takes longer is redelivered while it runs. AWS rejects this configuration. Raise the queue's visibility "
        "timeout."
    )
    assert [str(event) for event in watch.events] == [
        f"Worker for orders.handler, 1 process for each queue:\n  default: {queue.url}",
        f"Warning: {short_visibility}",
        f"default-1: ready, process {first.pid}",
        f"default-1: received 1 message ({message_id})",
        f"default-1: 1 message ({message_id}) kept in the queue: the runtime crashed: exit status 7",
        f"default-1: restarted, process {second.pid}",
        f"default-1: received 1 message ({message_id})",
        f"default-1: 1 message done in {watch.all(Finished)[1].seconds:.2f} s",
        "Stopped after 2 batches: 1 done, 1 kept, 1 batch crashed",
    ]


def test_worker_warns_about_a_short_function_timeout(queue: Queue, watch: Watch) -> None:
    queue.set_visibility_timeout(900)

    @lambda_task(soft_timeout=5, hard_timeout=10)
    def quick() -> None: ...

    with only(quick):
        LocalWorker({"default": queue.url}, "orders.handler", function_timeout=15, report=watch).run(until_idle=True)
    assert watch.all(Warned) == []
    with only(quick):
        LocalWorker({"default": queue.url}, "orders.handler", function_timeout=14, report=watch).run(until_idle=True)
    with only():
        LocalWorker({"default": queue.url}, "orders.handler", function_timeout=60, report=watch).run(until_idle=True)
    of_quick, of_default = (str(event) for event in watch.all(Warned))
    assert "function's timeout of 14 s is shorter than the 15 s" in of_quick
    assert "function's timeout of 60 s is shorter than the 305 s" in of_default


def test_partial_failure_is_one_readable_line() -> None:
    finished = Finished("default-1", "answered", ("a", "b"), ("c", "d", "e", "f"), "no luck", 1.234)

    assert str(finished) == ("default-1: 2 messages done in 1.23 s; 4 messages (c, d, e, …) kept in the queue: no luck")


def test_worker_logs_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lambda_tasks.local")

    log(Started({"default": "url"}, "h.h", 1))
    log(Warned("too short"))
    log(Maintained("default-1", reason="no database"))
    log(Maintained("default-1", {"outbox": {"sent": 1}}))

    assert [(record.levelname, record.getMessage().splitlines()[0]) for record in caplog.records] == [
        ("INFO", "Worker for h.h, 1 process for each queue:"),
        ("WARNING", "Warning: too short"),
        ("WARNING", "default-1: maintenance failed: no database"),
        ("INFO", "default-1: maintenance, outbox: 1 sent"),
    ]


# The command


def test_command_serves_the_queues_of_the_settings(queue: Queue, other: Queue, settings: Any, capsys: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": queue.url, "other": other.url}
    queue.send()
    other.send()

    call_command("lambda_tasks", "worker", "--until-idle", "--handler", "orders.handler")

    assert "Stopped after 2 batches: 2 done, 0 kept" in capsys.readouterr().out


def test_command_can_serve_some_queues_only(queue: Queue, other: Queue, settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": queue.url, "other": other.url}
    queue.send()
    other.send()

    call_command("lambda_tasks", "worker", "--queue=other", "--until-idle", "--handler=orders.handler")

    assert queue.depth() == (1, 0)
    assert other.depth() == (0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queue=mail"], r"--queue must be a queue in LAMBDA_TASKS_QUEUES \(default\), not 'mail'"),
        (["--concurrency=0"], "^--concurrency must be an integer from 1 to 1000, not 0"),
        (["--batch-size=20"], "^--batch-size must be .* or set --batching-window"),
        (["--drain=-1"], "^--drain must be"),
        (["--poll=21"], "^--poll must be"),
        (["--health-port=70000"], "The health cannot be served at port 70000: .* Choose another port"),
        (["--handler=no_such.handler", "--until-idle"], "cannot load the handler 'no_such.handler'"),
    ],
)
def test_command_reports_the_problem(queue: Queue, settings: Any, arguments: list[str], message: str) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": queue.url}

    with pytest.raises(CommandError, match=message):
        call_command("lambda_tasks", "worker", *arguments)


def test_command_names_an_invalid_setting(settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"mail": "url"}

    with pytest.raises(CommandError, match="LAMBDA_TASKS_QUEUES"):
        call_command("lambda_tasks", "worker")


def test_command_warns_about_eager_mode(settings: Any, capsys: Any) -> None:
    settings.LAMBDA_TASKS_EAGER = True

    with pytest.raises(CommandError):
        call_command("lambda_tasks", "worker", "--concurrency=0")

    assert "LAMBDA_TASKS_EAGER is True" in capsys.readouterr().out


@contextmanager
def command(
    queue: Queue, directory: Path, handler: str = "orders.handler", options: Sequence[str] = (), **settings: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run the command in its own process group, as a shell starts it."""
    (directory / "shop_settings.py").write_text(
        f"""
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["lambda_tasks"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}}
LAMBDA_TASKS_QUEUES = {{"default": {queue.url!r}}}
globals().update({settings!r})
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "lambda_tasks", "worker", f"--handler={handler}", *options],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "shop_settings"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(PATIENCE, process.kill)  # ends a test that would read its output indefinitely
    watchdog.start()
    try:
        with process:
            yield process
    finally:
        watchdog.cancel()
        process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} is not in {lines}")


def test_command_logs_each_ended_task(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_LAMBDA_LOG_LEVEL", raising=False)
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "records.sqlite3")}
    name = "lambda_tasks.tasks.cleanup_task_records"
    with command(queue, tmp_path, "lambda_tasks.handler.handler", DATABASES={"default": database}) as process:
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "shop_settings"}
        subprocess.run([sys.executable, "-m", "django", "migrate", "-v0"], env=environment, check=True)
        message_id = queue.send({"task_name": name, "kwargs": {"retention_days": 30}})
        ended = read_until(process, name)[-1]
        process.terminate()
        process.wait(PATIENCE)
    assert re.search(rf"default-1 \| .*\[{message_id}\] {name} succeeded in \d+\.\d+ s\.", ended)


@pytest.mark.parametrize("outbox", [True, False])
def test_command_has_a_schedule_with_an_outbox(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outbox: bool
) -> None:
    """Without the schedule, delayed messages would never be sent on a developer's machine."""
    scheduled(monkeypatch, answer=ANSWER)
    queue.send()

    with command(queue, tmp_path, LAMBDA_TASKS_OUTBOX=outbox) as process:
        said = read_until(process, "1 message done")
        process.terminate()
        assert process.wait(PATIENCE) == 0

    assert ("default-1: maintenance, outbox: 1 sent\n" in said) == outbox
    assert len(events()) == outbox


def test_ctrl_c_lets_the_batch_finish(queue: Queue, tmp_path: Path, listener: socket.socket) -> None:
    queue.send({"do": "connect", "address": listener.getsockname()})

    with command(queue, tmp_path) as process:
        with accept(listener):
            os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does
            read_until(process, "Stopping after the running batches have finished")
        read_until(process, "1 message done")
        assert process.wait(PATIENCE) == 0

    assert queue.depth() == (0, 0)


def test_second_signal_kills_the_batch(queue: Queue, tmp_path: Path, listener: socket.socket) -> None:
    queue.send({"do": "connect", "address": listener.getsockname()})

    with command(queue, tmp_path) as process, accept(listener) as connection:
        process.send_signal(signal.SIGTERM)
        read_until(process, "A second signal kills them")
        process.send_signal(signal.SIGTERM)
        read_until(process, "the runtime crashed: killed by SIGKILL")
        assert process.wait(PATIENCE) == 3
        assert connection.recv(1) == b""

    assert queue.depth() == (1, 0)


def test_json_records_have_a_line_each(queue: Queue, settings: Any, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(
        """
import logging

def handler(event, context):
    logging.getLogger("shop").error("no stock", exc_info=ValueError("empty"))
    print("plain")
"""
    )
    settings.LAMBDA_TASKS_QUEUES = {"default": queue.url}
    queue.send()

    call_command("lambda_tasks", "worker", "--until-idle", "--handler=talkative.handler", "--format=json")

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [record] = [line for line in lines if line.get("message") == "no stock"]
    assert record["environment"] == "default-1"
    assert (record["level"], record["logger"], record["errorType"]) == ("ERROR", "shop", "ValueError")
    assert {"event": "Output", "environment": "default-1", "line": "plain"} in lines


def test_health_of_the_command(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "healthy"
    with command(queue, tmp_path, options=[f"--health-port={port}", f"--health-file={file}"]) as process:
        read_until(process, "ready, process")
        assert file.exists()
        assert ask(f"http://127.0.0.1:{port}/") == (200, {"status": "ok", "problems": []})
        # The tables do not exist in this project.
        status, answer = ask(f"http://127.0.0.1:{port}/ready")
        assert (status, answer["status"]) == (503, "unavailable")
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert not file.exists()


def test_taken_health_port_ends_the_command(queue: Queue, settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": queue.url}
    with (
        socket.create_server(("0.0.0.0", 0)) as taken,
        pytest.raises(CommandError, match=r"cannot be served at port \d+: .*Address already in use. Choose another"),
    ):
        call_command("lambda_tasks", "worker", f"--health-port={taken.getsockname()[1]}")


def ask(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
