"""Check that every task runs once if processes die, SQS is unavailable or sessions end between COMMIT and the queue."""

from __future__ import annotations

import json
import socket
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.postgresql.psycopg_any import IsolationLevel

from lambda_tasks import failpoints, maintenance
from lambda_tasks.backends.base import Refused, SendResult, Unsent
from lambda_tasks.backends.batches import FIRST_PAUSE, HOLD, LONGEST_PAUSE
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.relay import BATCH_SIZE, Relayed
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.failpoints import POINTS
from lambda_tasks.foundation.forks import random
from lambda_tasks.handler import handler
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.logging import current_message_id
from lambda_tasks.models import OutboxMessage, TaskStatus
from lambda_tasks.operations.reaping import reap
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.testing.contracts import InThread, together
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE
from lambda_tasks.wire.ids import new_message_id
from tests.app.models import Effect
from tests.conftest import NAME_OF_VENDOR, Sqs
from tests.faults.proxy import Strike as NetworkStrike
from tests.faults.proxy import database_behind_proxy
from tests.faults.workers import EVERYWHERE, LONG, WITH_ROW_LOCKS, effects, expire_lease, lost_record, records
from tests.simulation.faults import FROZEN
from tests.simulation.invocations import Process, Strike
from tests.simulation.transport import FileBackend

pytestmark = [pytest.mark.usefixtures("store", "outbox"), pytest.mark.once]

#: The failpoints that a caller's process reaches, before and after COMMIT.
BEFORE_COMMIT: Final = ("enqueue:before_commit", "outbox:before_insert", "outbox:after_insert")
OF_RELAY: Final = tuple(point for point in POINTS if point.startswith("relay:"))
AFTER_COMMIT: Final = ("enqueue:after_commit", "send:before", *OF_RELAY, "send:after")
OF_RETRY: Final = (
    "retry:before_send",
    "retry:between",
    "settle:before_write",
    "outbox:before_insert",
    "outbox:after_insert",
    *AFTER_COMMIT,
    "settle:after_write",
    "batch:before_return",
)


class RetryRequested(Exception):
    """Request a retry."""


@lambda_task
def pack(*, name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)


@lambda_task(retry_on=(RetryRequested,))
def pack_at_second_attempt(*, name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)
    if records().get(pk=current_message_id()).n_retries == 0:
        raise RetryRequested


class PickyBackend(FileBackend):
    """A backend that accepts some messages, fails for others, and permanently rejects one."""

    is_in_trouble = True

    def send(self, jobs: Sequence[Job]) -> Iterator[SendResult]:
        for job in jobs:
            name = job.message.kwargs["name"]
            if name == "poison":
                yield Refused(job, ValueError("SQS will never take it"))
            elif name.startswith("slow") and self.is_in_trouble:
                yield Unsent(job, ConnectionError("SQS is busy"))
            else:
                yield from super().send([job])


@pytest.fixture
def outbox(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an outbox with a file as its queue, which survives every process. Only the tests relay."""
    settings.LAMBDA_TASKS_OUTBOX = True
    settings.LAMBDA_TASKS_BACKEND = "tests.simulation.transport.FileBackend"
    monkeypatch.setattr(FileBackend, "file", tmp_path / "queue.jsonl", raising=False)
    monkeypatch.setattr(FileBackend, "next_failure", None)
    monkeypatch.setattr(FileBackend, "unavailable", False)
    monkeypatch.setattr(maintenance, "relay_now_and_then", lambda deadline: None)


# Callers


def place(*names: str, task: Any = pack) -> list[TaskHandle]:
    """Write an order for each name and send its task, in one transaction."""
    database = get_store().database
    with transaction.atomic(using=database):
        for name in names:
            Effect.objects.using(database).create(name=f"order {name}")
        return [task.using(database=database).execute_on_commit(name=name) for name in names]


def place_and_roll_back_some() -> None:
    """Commit three orders, and roll a fourth one back with its savepoint."""
    database = get_store().database
    with transaction.atomic(using=database):
        place("a", "b")
        with suppress(RetryRequested), transaction.atomic(using=database):
            place("never")
            raise RetryRequested
        place("c")


def orders() -> list[str]:
    return [name for name in effects() if name.startswith("order")]


def done() -> list[str]:
    """Return the effects of the tasks, sorted."""
    return sorted(name for name in effects() if not name.startswith("order"))


# The outbox


def rows() -> Any:
    return OutboxMessage.objects.using(get_store().database)


def waiting() -> list[str]:
    """Return the names in the outbox, in the order in which they were stored."""
    return [json.loads(row.body)["kwargs"]["name"] for row in rows().order_by("created_at", "id")]


def relay() -> Relayed:
    return cast(OutboxBackend, get_backend()).relay()


def make_all_due() -> None:
    """Let all pauses and leases expire."""
    rows().exclude(due_at=None).update(due_at=DatabaseNow())


def locks_rows() -> bool:
    """Return whether the messages of a process that dies are released immediately."""
    return connections[get_store().database].features.has_select_for_update_skip_locked


def relay_messages_of_dead_process() -> Relayed:
    """Relay immediately, or, if the dead process had a lease, check that it is respected and relay after it expires."""
    if locks_rows() or not rows().filter(holder__isnull=False).exists():
        return relay()
    assert relay().total == 0
    make_all_due()
    return relay()


# The queue and the workers


def sent() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FileBackend.file.read_text().splitlines()] if FileBackend.file.exists() else []


def sent_ids() -> list[str]:
    return [message["attributes"][MESSAGE_ID_ATTRIBUTE] for message in sent()]


def event_of(*messages: dict[str, Any], receives: int = 1) -> dict[str, Any]:
    """Return the event with which SQS delivers `messages`, each under a new SQS id."""
    return {
        "Records": [
            {
                "messageId": str(uuid4()),
                "receiptHandle": "receipt",
                "body": message["body"],
                "attributes": {"ApproximateReceiveCount": str(receives)},
                "messageAttributes": {
                    name: {"stringValue": value, "dataType": "String"} for name, value in message["attributes"].items()
                },
                "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:default",
            }
            for message in messages
        ]
    }


def run_all() -> None:
    """Deliver all sent messages, including copies, one after the other."""
    delivered = 0
    while len(messages := sent()) > delivered:
        for message in messages[delivered:]:
            assert handler(event_of(message), None) == {"batchItemFailures": []}
        delivered = len(messages)


# Processes and sessions that end


def in_process(work: Callable[[], object], *strikes: Strike) -> Process:
    """Do `work` in a fork with faults, and return when it has ended or is frozen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left a thread
        process = Process(lambda: bool(work()), strikes)
    process.run()
    assert process.struck == list(strikes), process.error
    return process


def killed_at(point: str, work: Callable[[], object]) -> None:
    """Do `work` in a fork that is killed at a failpoint, and wait until the database has released its locks."""
    with locks_released():
        assert in_process(work, Strike(point, "killed")).state == "killed"


@contextmanager
def locks_released() -> Iterator[None]:
    """Wait, at the end, until the sessions that began in the block have ended on the database server.

    The server notices only after a moment that a killed process is gone. Until then, its rows stay locked, and others
    skip them.
    """
    earlier = _sessions()
    yield
    give_up = time.monotonic() + 30
    while later := _sessions() - earlier:
        assert time.monotonic() < give_up, f"the sessions {later} of a killed process do not end"
        time.sleep(0.01)


def _sessions() -> set[int]:
    """Return the sessions of other processes and threads on this database. SQLite has none: it locks files."""
    connection = connections[get_store().database]
    looks = {
        "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
        "mysql": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
    }
    if connection.vendor not in looks:
        return set()
    with connection.cursor() as cursor:
        cursor.execute(looks[connection.vendor])
        return {session for (session,) in cursor.fetchall()}


@contextmanager
def frozen_at(point: str, work: Callable[[], object]) -> Iterator[Process]:
    with locks_released():
        process = in_process(work, Strike(point, FROZEN))
        try:
            assert process.state == "frozen"
            yield process
        finally:
            process.kill()


@contextmanager
def at_point(point: str, action: Callable[[], object]) -> Iterator[None]:
    """Execute `action` when this thread reaches the failpoint for the first time."""
    here, left = threading.current_thread(), [action]

    def reached(name: str) -> None:
        if name == point and left and threading.current_thread() is here:
            left.pop()()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "reached", reached)
        yield
    assert not left, f"{point} was not reached"


def end_own_session() -> None:
    """End this thread's session on the database server, and wait until it has ended."""
    connection = connections[get_store().database]
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            if connection.vendor == "postgresql":
                session = cast(Any, connection.connection).info.backend_pid
                end, look = "SELECT pg_terminate_backend(%s)", "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
            else:
                session = cast(Any, connection.connection).thread_id()
                end, look = "KILL CONNECTION %s", "SELECT 1 FROM information_schema.processlist WHERE id = %s"
            cursor.execute(end, [session])
            cursor.execute(look, [session])
            while cursor.fetchone():
                cursor.execute(look, [session])
    finally:
        other.close()


@EVERYWHERE
class TestCallers:
    @pytest.mark.parametrize("point", BEFORE_COMMIT)
    def test_caller_killed_before_commit_sends_nothing(self, point: str) -> None:
        killed_at(point, place_and_roll_back_some)
        assert (orders(), waiting(), relay().total, sent()) == ([], [], 0, [])

    @pytest.mark.parametrize("point", AFTER_COMMIT)
    def test_caller_killed_after_commit_loses_nothing(self, point: str) -> None:
        killed_at(point, place_and_roll_back_some)
        assert orders() == ["order a", "order b", "order c"]
        relay_messages_of_dead_process()
        assert waiting() == []
        assert len(set(sent_ids())) == 3
        run_all()
        assert done() == ["a", "b", "c"]

    def test_sqs_outage_raises_no_error_for_callers(self) -> None:
        """Other callbacks still run."""
        FileBackend.unavailable = True
        called: list[str] = []
        database = get_store().database
        with transaction.atomic(using=database):
            transaction.on_commit(lambda: called.append("before"), using=database)
            place("a")
            transaction.on_commit(lambda: called.append("after"), using=database)
        assert (called, waiting(), sent()) == (["before", "after"], ["a"], [])

    def test_raising_foreign_callback_does_not_block_messages(self) -> None:
        database = get_store().database
        with pytest.raises(RetryRequested), transaction.atomic(using=database):
            transaction.on_commit(_raise_again, using=database)
            place("a")
        assert (waiting(), len(sent())) == ([], 1)
        run_all()
        assert done() == ["a"]


def _raise_again() -> None:
    raise RetryRequested


@WITH_ROW_LOCKS
class TestCallersSessions:
    @pytest.mark.parametrize("point", BEFORE_COMMIT)
    def test_session_lost_before_commit_rolls_everything_back(self, point: str) -> None:
        with pytest.raises(OperationalError), at_point(point, end_own_session):
            place("a")
        assert (orders(), waiting(), relay().total, sent()) == ([], [], 0, [])

    @pytest.mark.parametrize("point", AFTER_COMMIT)
    def test_session_lost_after_commit_loses_nothing(self, point: str) -> None:
        """The caller sees no error, and each task runs once."""
        called: list[str] = []
        database = get_store().database
        with at_point(point, end_own_session), transaction.atomic(using=database):
            [handle] = place("a")
            transaction.on_commit(lambda: called.append("other"), using=database)
        assert called == ["other"]
        connections[database].close()  # as Django does before the next request
        relay()
        assert (waiting(), set(sent_ids())) == ([], {handle.message_id})
        run_all()
        assert done() == ["a"]

    def test_session_lost_before_deletion_resends_the_message(self) -> None:
        with at_point("relay:sent", end_own_session):
            [handle] = place("a")
        assert (waiting(), sent_ids()) == (["a"], [handle.message_id])
        assert relay().sent == 1
        assert sent_ids() == [handle.message_id] * 2
        run_all()
        assert done() == ["a"]

    @pytest.mark.parametrize("point", OF_RELAY)
    def test_relay_may_lose_its_session(self, point: str) -> None:
        FileBackend.unavailable = True
        place("a", "b")
        FileBackend.unavailable = False
        make_all_due()
        with pytest.raises(OperationalError), at_point(point, end_own_session):
            relay()
        assert waiting() == ["a", "b"]
        assert relay().sent == 2
        run_all()
        assert done() == ["a", "b"]

    def test_commit_with_a_lost_answer_sends_once(self, request: pytest.FixtureRequest) -> None:
        with behind_proxy(request) as proxy:
            lose_answer = at_point("outbox:after_insert", lambda: proxy.strike(NetworkStrike.LOSE_ANSWER_TO_COMMIT))
            with pytest.raises(OperationalError), lose_answer:
                place("a")
            assert (orders(), waiting(), sent()) == (["order a"], ["a"], [])
            relay()
            run_all()
            assert done() == ["a"]

    def test_lost_commit_sends_nothing(self, request: pytest.FixtureRequest) -> None:
        with behind_proxy(request) as proxy:
            cut = at_point("outbox:after_insert", lambda: proxy.strike(NetworkStrike.CUT_BEFORE_COMMIT))
            with pytest.raises(OperationalError), cut:
                place("a")
            assert (orders(), waiting(), relay().total, sent()) == ([], [], 0, [])


@contextmanager
def behind_proxy(request: pytest.FixtureRequest) -> Iterator[Any]:
    database = get_store().database
    name = {"PostgreSQL": "postgres", "MariaDB": "mariadb"}[NAME_OF_VENDOR[connections[database].vendor]]
    with database_behind_proxy(database, request.getfixturevalue(name)) as proxy:
        yield proxy


@EVERYWHERE
class TestRelays:
    @pytest.fixture(autouse=True)
    def _unsent(self, outbox: None, store: str) -> None:
        FileBackend.unavailable = True
        self.handles = place("a", "b", "c")
        FileBackend.unavailable = False
        make_all_due()

    @pytest.mark.parametrize("point", OF_RELAY)
    def test_messages_of_a_killed_relay_are_sent_later(self, point: str) -> None:
        killed_at(point, relay)
        deleted = point == "relay:settled" and not locks_rows()  # no transaction is open that could roll back
        assert relay_messages_of_dead_process().sent == (0 if deleted else 3)
        times = 1 if point == "relay:held" or deleted else 2
        assert sorted(sent_ids()) == sorted([handle.message_id for handle in self.handles] * times)
        run_all()
        assert (done(), waiting()) == (["a", "b", "c"], [])

    def test_scheduled_maintenance_sends_messages_of_a_killed_relay(self) -> None:
        killed_at("relay:sent", lambda: handler({"lambda_tasks": "maintenance"}, None))
        if not locks_rows():
            make_all_due()
        answer = handler({"lambda_tasks": "maintenance"}, None)
        assert answer["outbox"] == {"sent": 3, "failed": 0, "dead": 0}
        run_all()
        assert (done(), waiting()) == (["a", "b", "c"], [])

    def test_messages_of_a_frozen_relay_are_left_alone(self) -> None:
        with frozen_at("relay:sent", relay) as frozen:
            assert relay().total == 0
            frozen.thaw()
            assert frozen.state == "answered"
        assert sorted(sent_ids()) == sorted(handle.message_id for handle in self.handles)
        run_all()
        assert (done(), waiting()) == (["a", "b", "c"], [])

    def test_message_tried_by_another_relay_is_skipped(self) -> None:
        others: list[Relayed] = []

        def relay_first(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            """Let another relay fail between the query for due messages and the lock."""
            if not others and ("FOR UPDATE" in sql or sql.startswith("UPDATE")):
                FileBackend.next_failure = "before"
                others.append(Relayed())
                others.append(InThread(relay).start().answer())
            return execute(sql, params, many, context)

        with connections[get_store().database].execute_wrapper(relay_first):
            assert relay().total == 0
        assert others[1].failed == 3
        assert sent() == []

    def test_concurrent_relays_send_each_message_once(self) -> None:
        FileBackend.unavailable = True
        names = [f"{number:03}" for number in range(350)]
        place(*names)
        FileBackend.unavailable = False
        make_all_due()
        relayed = together(4, lambda _: relay())
        assert sum(each.sent for each in relayed) == 353
        assert len(sent_ids()) == len(set(sent_ids())) == 353
        assert waiting() == []

    def test_lost_sqs_answer_resends_under_the_same_id(self) -> None:
        FileBackend.next_failure = "after"
        assert str(relay()) == "0 sent, 3 to be retried, 0 dead."
        make_all_due()
        assert relay().sent == 3
        assert sorted(sent_ids()) == sorted([handle.message_id for handle in self.handles] * 2)
        run_all()
        assert (done(), waiting()) == (["a", "b", "c"], [])

    def test_sqs_may_be_unavailable_for_days(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(random, "uniform", lambda low, high: high)
        rows().update(attempts=0)
        FileBackend.unavailable = True
        pauses: list[timedelta] = []
        for attempt in range(1, 13):
            make_all_due()
            assert relay().failed == 3
            now_and_due = rows().annotate(now=DatabaseNow()).order_by("id").values_list("attempts", "now", "due_at")
            [(attempts, now, due_at), *_] = now_and_due
            assert attempts == attempt
            pauses.append(due_at - now)
            assert relay().total == 0  # the queue is not used again before that
        for pause, seconds in zip(pauses, [5, 10, 20, 40, 80, 160, *[300] * 6], strict=True):
            assert timedelta(seconds=seconds * 0.5) < pause <= timedelta(seconds=seconds)
        assert (FIRST_PAUSE, LONGEST_PAUSE) == (5, 300)
        assert [handle.status for handle in self.handles] == ["WAITING"] * 3

        FileBackend.unavailable = False
        make_all_due()
        assert relay().sent == 3
        run_all()
        assert (done(), waiting()) == (["a", "b", "c"], [])

    def test_two_reapers_resend_each_invocation_once(self) -> None:
        lost = lost_record(pack, ago=LONG)
        database = get_store().database
        with transaction.atomic(using=database):
            assert reap(older_than=0).sent_again == 1
            assert reap(older_than=0).sent_again == 1  # its lease ended just now
        assert sent_ids().count(lost) == 1


@pytest.mark.databases("sqlite", transaction=True)
def test_expired_hold_lets_another_relay_send() -> None:
    """The first relay does not undo what the other one has done."""
    FileBackend.unavailable = True
    place("a")
    FileBackend.unavailable = False
    make_all_due()
    [left] = rows().annotate(now=DatabaseNow()).values_list("now", flat=True)
    with frozen_at("relay:held", relay) as frozen:
        [(due_at, holder)] = rows().values_list("due_at", "holder")
        assert holder is not None
        assert timedelta(seconds=HOLD) <= due_at - left < timedelta(seconds=2 * HOLD)
        make_all_due()
        FileBackend.next_failure = "before"
        assert relay().failed == 1
        frozen.thaw()  # it sends anyway, because other relays do not wait for the message
        assert frozen.state == "answered"
    make_all_due()
    relay()
    run_all()
    assert (done(), waiting()) == (["a"], [])


@EVERYWHERE
class TestPartialFailures:
    @pytest.fixture(autouse=True)
    def _picky(self, outbox: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.LAMBDA_TASKS_BACKEND = f"{__name__}.PickyBackend"
        monkeypatch.setattr(PickyBackend, "is_in_trouble", True)

    def test_failed_messages_wait_and_refused_ones_die(self) -> None:
        """A dead message keeps the reason."""
        handles = place("a", "slow one", "poison", "b", "slow two")
        assert waiting() == ["slow one", "poison", "slow two"]
        left = {row.pk: row for row in rows().order_by("pk")}
        of = {handle.message_id: name for handle, name in zip(handles, ["a", "1", "poison", "b", "2"], strict=True)}
        for pk, row in left.items():
            if of[str(pk)] == "poison":
                assert (row.due_at, row.attempts, row.error) == (None, 1, "ValueError: SQS will never take it")
            else:
                assert (row.attempts, row.error) == (1, "ConnectionError: SQS is busy")
                assert row.due_at is not None
        assert [handle.status for handle in handles] == ["SENT", "WAITING", "DEAD", "SENT", "WAITING"]

        PickyBackend.is_in_trouble = False
        assert relay().total == 0
        make_all_due()
        assert str(relay()) == "2 sent, 0 to be retried, 0 dead."
        assert waiting() == ["poison"]
        run_all()
        assert done() == ["a", "b", "slow one", "slow two"]

    def test_failing_queue_is_skipped_until_the_next_relay(self, monkeypatch: Any) -> None:
        FileBackend.unavailable = True
        place(*(f"slow {number:03}" for number in range(150)))
        FileBackend.unavailable = False
        tried = Counter(rows().values_list("attempts", flat=True))
        assert tried == {1: 100, 0: 50}  # the caller waited for only one batch
        make_all_due()
        assert relay().failed == 100
        PickyBackend.is_in_trouble = False
        make_all_due()
        assert relay().sent == 150
        assert len(set(sent_ids())) == len(sent_ids()) == 150


@EVERYWHERE
def test_silent_sqs_does_not_lose_messages(settings: Any, sqs: Sqs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {
            "endpoint_url": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "connect_timeout": 0.2,
            "read_timeout": 0.2,
            "max_attempts": 1,
        }
        settings.LAMBDA_TASKS_BACKEND = {"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": options}
        handles = place("a", "b")
        make_all_due()
        assert relay().failed == 2
    assert waiting() == ["a", "b"]
    for error in rows().values_list("error", flat=True):
        assert "ReadTimeoutError" in error
    settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
    make_all_due()
    assert relay().sent == 2
    received = [message["MessageAttributes"][MESSAGE_ID_ATTRIBUTE]["StringValue"] for message in sqs.receive()]
    assert sorted(received) == sorted(handle.message_id for handle in handles)


def tell_the_optimiser() -> None:
    """Update MariaDB's statistics, because MariaDB prefers to scan a small table instead of using an index."""
    connection = connections[get_store().database]
    if connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE TABLE {OutboxMessage._meta.db_table}")


@WITH_ROW_LOCKS
class TestFrozenRelay:
    """A frozen relay holds only its own messages, and no other process waits for it, not even for a second."""

    @pytest.fixture(autouse=True, params=["read committed", "repeatable read"])
    def _impatient(
        self, request: pytest.FixtureRequest, store: str, outbox: None, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        connection = connections[store]
        connection.close()
        level: Any = request.param
        impatient: dict[str, Any] = {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"}
        if connection.vendor == "postgresql":
            level = IsolationLevel[request.param.upper().replace(" ", "_")]
            impatient = {"options": "-c lock_timeout=1000"}
        options = connection.settings_dict["OPTIONS"] | impatient | {"isolation_level": level}
        monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
        yield
        connection.close()

    @pytest.fixture(params=["relay:held", "relay:settled"])
    def frozen(self, request: pytest.FixtureRequest, _impatient: None) -> Iterator[Process]:
        FileBackend.unavailable = True
        place("a", "b", "c")
        FileBackend.unavailable = False
        make_all_due()
        tell_the_optimiser()
        with frozen_at(request.param, relay) as frozen:
            yield frozen
            frozen.thaw()
            assert frozen.state == "answered"
        assert waiting() == []
        assert len(set(sent_ids())) == len(sent_ids())

    def test_relay_does_not_block_callers(self, frozen: Process) -> None:
        before = len(sent())
        for few in (["d"], ["e", "f"], [f"{number:02}" for number in range(30)]):
            place(*few)
        assert len(sent()) == before + 33

    def test_relay_leaves_other_messages_to_other_relays(self) -> None:
        FileBackend.unavailable = True
        place(*(f"{number:03}" for number in range(BATCH_SIZE + 30)))
        FileBackend.unavailable = False
        make_all_due()
        tell_the_optimiser()
        with frozen_at("relay:held", relay) as frozen:
            assert relay().sent == 30
            frozen.thaw()
        assert (waiting(), len(set(sent_ids()))) == ([], BATCH_SIZE + 30)

    def test_relay_locks_no_missing_message(self, store: str) -> None:
        """Such a lock would cover a gap in the index, and so block new messages."""
        gone = new_message_id()
        with frozen_at(
            "relay:held", lambda: cast(OutboxBackend, get_backend()).send_now([gone], using=store)
        ) as frozen:
            place("a")
            frozen.thaw()
            assert frozen.state == "answered"
        assert (waiting(), len(sent())) == ([], 1)

    def test_relay_does_not_block_callers_during_an_outage(self, frozen: Process) -> None:
        FileBackend.unavailable = True
        own = rows().filter(pk__in=[handle.message_id for handle in place("d", "e")])
        assert list(own.values_list("attempts", flat=True)) == [1, 1]
        FileBackend.unavailable = False
        own.update(due_at=DatabaseNow())
        assert relay().sent == 2


@WITH_ROW_LOCKS
class TestRetries:
    @pytest.fixture(autouse=True)
    def _message(self, outbox: None, store: str) -> None:
        place("a", task=pack_at_second_attempt)
        [self.message] = sent()

    def _first_delivery(self) -> object:
        return handler(event_of(self.message), None)

    def _deliver_again(self) -> None:
        expire_lease()
        assert handler(event_of(self.message, receives=2), None) == {"batchItemFailures": []}

    def _has_one_retry(self) -> None:
        relay_messages_of_dead_process()
        run_all()
        chain = records().order_by("n_retries").values_list("status", flat=True)
        assert list(chain) == [TaskStatus.RETRYING, TaskStatus.SUCCESS]
        assert len(set(sent_ids())) == 2
        assert (done(), waiting()) == (["a"], [])

    @pytest.mark.parametrize("point", OF_RETRY)
    def test_killed_worker_leaves_one_retry(self, point: str) -> None:
        killed_at(point, self._first_delivery)
        self._deliver_again()
        self._has_one_retry()

    @pytest.mark.parametrize(
        "point", ["settle:before_write", "outbox:before_insert", "outbox:after_insert", "enqueue:after_commit"]
    )
    def test_overtaken_worker_leaves_one_retry(self, point: str) -> None:
        with frozen_at(point, self._first_delivery) as frozen:
            expire_free_leases()
            handler(event_of(self.message, receives=2), None)
            frozen.thaw()
        make_all_due()
        self._deliver_again()
        self._has_one_retry()

    @pytest.mark.parametrize("failure", ["before", "after"])
    def test_failing_queue_does_not_release_the_claim(self, failure: str) -> None:
        FileBackend.next_failure = failure
        assert self._first_delivery() == {"batchItemFailures": []}
        assert waiting() == ["a"]
        make_all_due()
        self._has_one_retry()


def expire_free_leases() -> None:
    """Let leases expire, except those of records that an open transaction is writing."""
    with transaction.atomic(using=get_store().database):
        free = records().select_for_update(skip_locked=True).filter(status="RUNNING")
        keys = list(free.values_list("pk", flat=True))
        records().filter(pk__in=keys).update(lease_until=DatabaseNow() - LONG)


@pytest.mark.databases("sqlite", transaction=True)
def test_killed_worker_leaves_one_retry_on_sqlite() -> None:
    place("a", task=pack_at_second_attempt)
    [message] = sent()
    killed_at("relay:sent", lambda: handler(event_of(message), None))
    assert relay_messages_of_dead_process().sent == 1
    run_all()
    assert (done(), waiting(), len(set(sent_ids()))) == (["a"], [], 2)


@WITH_ROW_LOCKS
class TestRetriesWithLostCommit:
    @pytest.fixture(autouse=True)
    def _message(self, outbox: None, store: str) -> None:
        place("a", task=pack_at_second_attempt)
        [self.message] = sent()

    @pytest.mark.parametrize(
        "strike",
        [NetworkStrike.LOSE_ANSWER_TO_COMMIT, NetworkStrike.CUT_BEFORE_COMMIT, NetworkStrike.CUT_AFTER_COMMIT],
    )
    def test_commit_with_a_lost_answer_leaves_one_retry(
        self, request: pytest.FixtureRequest, strike: NetworkStrike
    ) -> None:
        with behind_proxy(request) as proxy:
            with at_point("outbox:after_insert", lambda: proxy.strike(strike)):
                assert handler(event_of(self.message), None) == {"batchItemFailures": []}
            self._has_one_retry(copies=1)

    def test_retry_sent_by_a_relay_is_not_duplicated(self, request: pytest.FixtureRequest) -> None:
        """The relay sends it before the worker keeps it for the second time."""
        times: list[int] = []

        def strike() -> None:
            proxy.strike(NetworkStrike.LOSE_ANSWER_TO_COMMIT)

        def sent_meanwhile(name: str) -> None:
            if name == "outbox:after_insert" and not times:
                times.append(1)
                strike()
            elif name == "outbox:before_insert" and times == [1]:
                times.append(2)
                assert InThread(relay).start().answer().sent == 1

        with behind_proxy(request) as proxy, pytest.MonkeyPatch.context() as patch:
            patch.setattr(failpoints, "reached", sent_meanwhile)
            assert handler(event_of(self.message), None) == {"batchItemFailures": []}
            assert times == [1, 2]
            self._has_one_retry(copies=2)

    def _has_one_retry(self, *, copies: int) -> None:
        relay()
        run_all()
        chain = records().order_by("n_retries").values_list("status", flat=True)
        assert list(chain) == [TaskStatus.RETRYING, TaskStatus.SUCCESS]
        retries = [message_id for message_id in sent_ids() if message_id != sent_ids()[0]]
        assert (len(set(retries)), len(retries)) == (1, copies)
        assert (done(), waiting()) == (["a"], [])
