"""Relaying the outbox without a daemon: with a scheduled event, and at the end of invocations."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.test import override_settings

from lambda_tasks import maintenance
from lambda_tasks.backends import relay
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.relay import Relayed
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidEvent
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job
from lambda_tasks.limits import watchdog
from lambda_tasks.maintenance import RELAY_EVERY, RELAY_RESERVE, RELAY_SECONDS
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations import reaping as lost
from lambda_tasks.operations.reaping import Reaped
from lambda_tasks.settings import app_settings
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id
from tests.app.models import Effect
from tests.execution.test_handler import LambdaContext
from tests.faults.workers import job_of, lost_record

pytestmark = pytest.mark.django_db(transaction=True)

EVENT = {"lambda_tasks": "maintenance"}


@lambda_task
def leave(*, name: str) -> None:
    Effect.objects.create(name=name)


@lambda_task
def leave_without_autocommit() -> None:
    """Leave the connection in a state that a task should not cause."""
    transaction.on_commit(lambda: transaction.set_autocommit(False))


class Queue(MemoryBackend):
    """A queue that another process reads, and that refuses messages while it is `closed`."""

    leaves_process = True
    closed = False
    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def send(self, jobs: Any) -> Any:
        self.meanwhile()
        if self.closed:
            raise ConnectionError("the queue is closed")
        return super().send(jobs)


class Clock:
    """The clock that maintenance uses."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (maintenance, relay, lost):
        monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr(maintenance, "_relayed_at", None)
    return clock


@pytest.fixture
def outbox(settings: Any) -> OutboxBackend:
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.Queue"
    settings.LAMBDA_TASKS_OUTBOX = True
    chosen = get_backend()
    assert isinstance(chosen, OutboxBackend)
    return chosen


@pytest.fixture
def queue(outbox: OutboxBackend) -> Queue:
    assert isinstance(outbox.transport, Queue)
    return outbox.transport


def leave_waiting(queue: Queue, *names: str) -> list[str]:
    """Enqueue a task for each name while the queue is closed, and make the messages due; return the ids."""
    queue.closed = True
    handles = [leave.execute_on_commit(name=name) for name in names]
    queue.closed = False
    make_due()
    return [handle.message_id for handle in handles]


def make_due() -> None:
    OutboxMessage.objects.update(due_at=DatabaseNow())


def invoke(*jobs: Job, seconds: float = 600) -> dict[str, Any]:
    return handler({"Records": [event_record(job) for job in jobs]}, LambdaContext(seconds))


def maintain(seconds: float | None = None) -> dict[str, Any]:
    answer = handler(EVENT, None if seconds is None else LambdaContext(seconds))
    assert json.loads(json.dumps(answer)) == answer
    return answer


def numbers(**given: int) -> dict[str, int]:
    return {"sent": 0, "failed": 0, "dead": 0} | given


def reaped(**given: int) -> dict[str, int]:
    return {"sent_again": 0, "failed": 0, "unsent": 0} | given


class TestEvent:
    def test_event_relays_and_reaps_and_reports_both(self, queue: Queue) -> None:
        waiting = leave_waiting(queue, "a", "b")
        lost = lost_record(leave)

        assert maintain(600) == {"outbox": numbers(sent=2), "lost": reaped(sent_again=1)}

        assert [job.message_id for job in queue.jobs] == [*waiting, lost]
        assert not OutboxMessage.objects.exists()

    def test_event_reports_zeros_without_work(self, queue: Queue) -> None:
        assert maintain() == {"outbox": numbers(), "lost": reaped()}

    def test_unsendable_messages_are_counted_and_stay(self, queue: Queue) -> None:
        leave_waiting(queue, "a")
        queue.closed = True
        assert maintain()["outbox"] == numbers(failed=1)
        assert OutboxMessage.objects.get().attempts == 2

    @pytest.mark.parametrize("why", ["no outbox", "eager"])
    def test_event_only_reaps_without_the_outbox(self, queue: Queue, why: str) -> None:
        leave_waiting(queue, "a")
        lost_record(leave)
        off = {"no outbox": {"LAMBDA_TASKS_OUTBOX": False}, "eager": {"LAMBDA_TASKS_EAGER": True}}
        with override_settings(**off[why]):
            assert maintain() == {"lost": reaped(sent_again=1)}
        assert OutboxMessage.objects.count() == 1

    @pytest.mark.parametrize("value", ["relay", "Maintenance", "", None, 5, ["maintenance"], {"a": 1}], ids=str)
    def test_unknown_order_is_refused_by_name(self, queue: Queue, value: Any) -> None:
        leave_waiting(queue, "a")
        with pytest.raises(InvalidEvent) as refused:
            handler({"lambda_tasks": value}, None)
        assert 'lambda_tasks in the event must be "maintenance" or "ping", not ' in str(refused.value)
        assert not isinstance(value, str) or value in str(refused.value)
        assert queue.jobs == []

    def test_each_part_has_a_share_of_time(self, queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """The share is taken from the time that remains when the part starts."""
        monkeypatch.setattr(relay, "BATCH_SIZE", 1)
        monkeypatch.setattr(lost, "BATCH_SIZE", 1)
        leave_waiting(queue, *"abcdef")
        for _ in range(6):
            lost_record(leave)
        queue.meanwhile = lambda: setattr(clock, "now", clock.now + 10)

        done: dict[str, Any] = {}
        maintenance.maintain(clock() + 100, done)

        # Started at 0, 10, 20 and 30 of 40 s; then at 0, 10 and 20 of 24 s.
        assert done == {"outbox": numbers(sent=4), "lost": reaped(sent_again=3)}

    def test_event_starts_no_work_without_time(self, queue: Queue, clock: Clock) -> None:
        leave_waiting(queue, "a")
        lost_record(leave)
        done: dict[str, Any] = {}
        maintenance.maintain(clock() - 1, done)
        assert done == {"outbox": numbers(), "lost": reaped()}

    def test_handler_passes_its_deadline_on(self, queue: Queue, clock: Clock) -> None:
        leave_waiting(queue, "a")
        clock.now += 60
        assert maintain(30)["outbox"] == numbers()
        assert maintain(600)["outbox"] == numbers(sent=1)


class BrokenOutbox(OutboxBackend):
    def relay(self, **_: Any) -> Relayed:
        raise OperationalError("the outbox is away")


def end_session() -> None:
    """Cut the connection to the database without closing it in Django."""
    connection.ensure_connection()
    session: Any = connection.connection
    if connection.vendor == "sqlite":
        session.close()
        return
    descriptor = session.fileno() if connection.vendor == "postgresql" else session._sock.fileno()
    with socket.socket(fileno=os.dup(descriptor)) as line:
        line.shutdown(socket.SHUT_RDWR)


class DisconnectingOutbox(OutboxBackend):
    """Its session ends during the relay."""

    def relay(self, **_: Any) -> Relayed:
        end_session()
        OutboxMessage.objects.count()
        raise AssertionError("the session should have ended")


class BrokenStore(ORMStore):
    def lost(self, **_: Any) -> Any:
        raise OperationalError("the records are away")


def broken(*, outbox: type[OutboxBackend] = BrokenOutbox, **settings: Any) -> override_settings:
    options = {"BACKEND": f"{__name__}.{outbox.__name__}", "OPTIONS": {"transport": f"{__name__}.Queue"}}
    return override_settings(LAMBDA_TASKS_OUTBOX=False, LAMBDA_TASKS_BACKEND=options, **settings)


class TestErrorsOfTheEvent:
    def test_relay_error_is_raised_after_the_reaping(self) -> None:
        message_id = lost_record(leave)
        with broken():
            with pytest.raises(OperationalError, match="the outbox is away"):
                maintain()
            backend = get_backend()
        assert isinstance(backend, OutboxBackend)
        assert isinstance(backend.transport, Queue)
        assert [job.message_id for job in backend.transport.jobs] == [message_id]

    def test_reaping_does_not_use_the_relays_session(self) -> None:
        if connection.vendor == "sqlite":
            pytest.skip("SQLite has no session that could end")
        lost_record(leave)
        with broken(outbox=DisconnectingOutbox), pytest.raises(OperationalError):
            maintain()
        assert TaskRecord.objects.get().takeovers == 1

    def test_reaping_error_is_raised_after_the_relay(self, queue: Queue) -> None:
        leave_waiting(queue, "a")
        with (
            override_settings(LAMBDA_TASKS_STORE=f"{__name__}.BrokenStore"),
            pytest.raises(OperationalError, match="the records are away"),
        ):
            maintain()
        assert len(queue.jobs) == 1

    def test_first_error_is_raised_and_second_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with (
            broken(LAMBDA_TASKS_STORE=f"{__name__}.BrokenStore"),
            pytest.raises(OperationalError, match="the outbox is away"),
        ):
            maintain()
        [logged] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert logged.exc_info is not None
        assert "the records are away" in str(logged.exc_info[1])


class RecordingPlugin:
    """A plugin that records its calls in one list."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batches: list[tuple[Any, Any]] = []

    @hookimpl
    def lambda_task_sent(self, job: Job) -> None:
        self.names.append("sent")

    @hookimpl
    def lambda_task_batch_finished(self, event: Any, response: Any) -> None:
        self.names.append("batch_finished")
        self.batches.append((event, dict(response)))
        response.clear()


@pytest.fixture
def plugin(settings: Any) -> Iterator[RecordingPlugin]:
    plugin = RecordingPlugin()
    with override_settings(LAMBDA_TASKS_PLUGINS=[plugin]):
        yield plugin


class TestAroundTheEvent:
    def test_plugins_are_called_last_and_change_nothing(self, queue: Queue, plugin: RecordingPlugin) -> None:
        """Plugins flush their exporters, which must include the events of the relay."""
        leave_waiting(queue, "a")
        answer = maintain()
        assert plugin.batches == [(EVENT, {"outbox": numbers(sent=1), "lost": reaped()})]
        assert plugin.names == ["sent", "batch_finished"]
        assert answer == plugin.batches[0][1]

    def test_plugins_receive_a_partial_response_after_error(self, plugin: RecordingPlugin) -> None:
        with broken(), pytest.raises(OperationalError):
            maintain()
        assert plugin.batches == [(EVENT, {"lost": reaped()})]

    @pytest.mark.parametrize("backend", ["Queue", "BrokenOutbox"])
    def test_database_sessions_are_closed(self, backend: str) -> None:
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.{backend}", LAMBDA_TASKS_OUTBOX=backend == "Queue"):
            try:
                maintain()
            except OperationalError:
                assert backend == "BrokenOutbox"
        assert all(each.connection is None for each in connections.all(initialized_only=True))

    def test_session_lost_during_a_freeze_is_replaced(self, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
        leave_waiting(queue, "a")
        connection.close()
        monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", 600)
        end_session()
        assert maintain()["outbox"] == numbers(sent=1)


class TestEndOfInvocation:
    def test_waiting_message_is_sent_unchanged_and_once(self, queue: Queue) -> None:
        leave.execute_on_commit(name="sent at once")
        leave_waiting(queue, "sent later")
        [at_once] = queue.take()

        assert invoke() == {"batchItemFailures": []}

        [later] = queue.take()
        assert (later.queue, later.delay, list(later.message_attributes())) == (
            at_once.queue,
            0,
            list(at_once.message_attributes()),
        )
        assert later.body == at_once.body.replace("sent at once", "sent later")
        assert invoke(later, later) == {"batchItemFailures": []}
        assert invoke(later) == {"batchItemFailures": []}
        assert list(Effect.objects.values_list("name", flat=True)) == ["sent later"]
        assert str(TaskRecord.objects.get().pk) == later.message_id

    def test_container_relays_once_in_thirty_seconds(self, queue: Queue, clock: Clock) -> None:
        assert RELAY_EVERY == 30
        for seconds, sent in ((0, 1), (0, 0), (29.9, 0), (0.1, 3), (29.9, 0), (0.1, 2)):
            clock.now += seconds
            leave_waiting(queue, "a")
            invoke()
            assert len(queue.take()) == sent

    @pytest.mark.parametrize("off", [{"LAMBDA_TASKS_OUTBOX": False}, {"LAMBDA_TASKS_EAGER": True}], ids=str)
    def test_invocation_without_the_outbox_does_not_relay(self, queue: Queue, off: dict[str, bool]) -> None:
        leave_waiting(queue, "a")
        with override_settings(**off):
            invoke()
        assert OutboxMessage.objects.count() == 1

    def test_relay_requires_enough_remaining_time(self, queue: Queue, clock: Clock) -> None:
        leave_waiting(queue, "a")
        maintenance.relay_now_and_then(clock() + RELAY_SECONDS + RELAY_RESERVE - 0.1)
        assert queue.jobs == []
        # That attempt did not count as the relay of these thirty seconds.
        maintenance.relay_now_and_then(clock() + RELAY_SECONDS + RELAY_RESERVE)
        assert len(queue.jobs) == 1

    def test_handler_passes_its_deadline_on(self, queue: Queue) -> None:
        leave_waiting(queue, "a")
        invoke(seconds=5)
        assert queue.jobs == []
        invoke(seconds=600)
        assert len(queue.jobs) == 1

    def test_unknown_deadline_does_not_prevent_the_relay(self, queue: Queue) -> None:
        leave_waiting(queue, "a")
        handler({"Records": []}, None)
        assert len(queue.jobs) == 1

    def test_relay_stops_after_ten_seconds(self, queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay, "BATCH_SIZE", 1)
        leave_waiting(queue, *"abcde")
        queue.meanwhile = lambda: setattr(clock, "now", clock.now + RELAY_SECONDS / 2)
        invoke()
        assert len(queue.jobs) == 2

    def test_alarms_are_disarmed_during_the_relay(self, queue: Queue) -> None:
        armed: list[Any] = []
        leave.execute_on_commit(name="runs")
        [running] = queue.take()
        leave_waiting(queue, "a")
        queue.meanwhile = lambda: armed.append((signal.getitimer(signal.ITIMER_REAL), watchdog._due))
        invoke(running)
        assert armed == [((0.0, 0.0), None)]
        assert Effect.objects.count() == 1

    def test_relay_works_after_a_task_disabled_autocommit(self, queue: Queue) -> None:
        leave_without_autocommit.execute_on_commit()
        [untidy] = queue.take()
        leave_waiting(queue, "a")
        try:
            invoke(untidy)
        finally:
            if connection.connection is not None:
                connection.set_autocommit(True)
        assert len(queue.jobs) == 1
        assert not OutboxMessage.objects.exists()

    def test_plugins_are_called_last(self, queue: Queue, plugin: RecordingPlugin) -> None:
        leave_waiting(queue, "a")
        assert invoke() == {"batchItemFailures": []}
        assert plugin.names == ["sent", "batch_finished"]


class TestErrorsAtTheEnd:
    def test_response_survives_an_error_of_the_relay(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        """The next attempt waits for its interval."""

        def complaints() -> int:
            return caplog.text.count("The outbox was not relayed")

        leave.execute_on_commit(name="a")
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        [job] = backend.take()
        record = event_record(job)
        with broken():
            for number, seconds in ((1, 0.0), (1, RELAY_EVERY - 1), (2, 2.0)):
                clock.now += seconds
                event = {"Records": [record, record | {"messageId": "bad", "body": "{"}]}
                assert handler(event, None) == {"batchItemFailures": [{"itemIdentifier": "bad"}]}
                assert complaints() == number
        assert Effect.objects.count() == 1
        assert "the outbox is away" in caplog.text

    def test_response_survives_invalid_settings(self, caplog: pytest.LogCaptureFixture) -> None:
        with override_settings(LAMBDA_TASKS_BACKEND="shop.Pigeons"):
            assert handler({"Records": []}, None) == {"batchItemFailures": []}
            assert handler({"Records": []}, None) == {"batchItemFailures": []}
        assert caplog.text.count("The outbox was not relayed") == 1

    def test_unavailable_database_is_not_queried_again(self, queue: Queue) -> None:
        """Connecting to it could take as long as the whole invocation."""

        class Away(ORMStore):
            def claim(self, run: Any) -> Any:
                raise OperationalError("no route to host")

        leave.execute_on_commit(name="runs")
        [running] = queue.take()
        leave_waiting(queue, "a")
        globals()["Away"] = Away
        with override_settings(LAMBDA_TASKS_STORE=f"{__name__}.Away"):
            assert len(invoke(running)["batchItemFailures"]) == 1
        assert queue.jobs == []
        assert len(invoke(running)["batchItemFailures"]) == 0
        assert len(queue.jobs) == 1


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """Accept connections without answering."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        server.setblocking(False)
        yield server


def requests_to(server: socket.socket) -> int:
    """Return the number of connections, each of which had one request."""
    count = 0
    while True:
        try:
            connected, _ = server.accept()
        except BlockingIOError:
            return count
        connected.close()
        count += 1


class TestSilence:
    """Without a response from SQS, the handler waits for one request, and for those sent at the same time."""

    @pytest.fixture(autouse=True)
    def _sqs(self, silent_server: socket.socket, settings: Any) -> None:
        options = {
            "endpoint_url": f"http://127.0.0.1:{silent_server.getsockname()[1]}",
            "connect_timeout": 0.3,
            "read_timeout": 0.05,
            "max_attempts": 2,
        }
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": options}
        settings.LAMBDA_TASKS_OUTBOX = True

    @pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
    def test_only_one_batch_of_requests_is_attempted(self, silent_server: socket.socket, warm: bool) -> None:
        backend = get_backend()
        assert isinstance(backend, OutboxBackend)
        assert isinstance(backend.transport, SQSBackend)
        if warm:
            server = backend.transport._server(app_settings.queues["default"])
            backend.transport._waited[server] = 1.0
        backend.keep([job_of(leave, new_message_id(), name="a") for _ in range(150)], using="default")

        assert invoke() == {"batchItemFailures": []}

        # A cold transport sends the first request alone, and no other if it fails; a warm one sends eight at a time.
        assert requests_to(silent_server) == (16 if warm else 2)
        assert sorted(OutboxMessage.objects.values_list("attempts", flat=True)) == [0] * 50 + [1] * 100

    def test_reserve_covers_the_timeouts_of_sqs(self) -> None:
        config = SQSBackend()._config
        retries: Any = config["retries"]
        timeouts: Any = config["connect_timeout"] + config["read_timeout"]  # type: ignore[operator]
        pause = 1  # botocore's longest pause before the second attempt
        assert timeouts * retries["total_max_attempts"] + pause < RELAY_RESERVE


def test_response_contains_the_fields_of_reaped() -> None:
    assert set(reaped()) < set(Reaped.__dataclass_fields__)
