"""Check that a task takes effect once when its database is unavailable, silent, ends sessions or has conflicts."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings as django_settings
from django.db import DatabaseError, IntegrityError, OperationalError, connections, transaction
from django.db.transaction import TransactionManagementError

from lambda_tasks import failpoints
from lambda_tasks.backends.base import BaseBackend, Taken
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.database.errors import LOCKED_PAUSE, is_conflict
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution import pipeline
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.outcomes import Outcome, Retry, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.testing.contracts import InThread, crowd, together
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.conftest import NAME_OF_VENDOR
from tests.faults.proxy import PATIENCE, Proxy, Strike, database_behind_proxy

pytestmark = pytest.mark.thorough

on_servers = pytest.mark.databases("postgres", "mariadb", transaction=True)
on_postgres = pytest.mark.databases("postgres", transaction=True)

#: The names that tasks were called with, in order, even if nothing was committed.
ran: list[str] = []
#: An additional action of a task, by the name that it is called with, executed once.
meanwhile: dict[str, Callable[[], object]] = {}


def nothing() -> None: ...


@lambda_task
def leave(*, name: str) -> None:
    """Leave an effect, and execute the test's action."""
    ran.append(name)
    effects().create(name=name)
    meanwhile.pop(name, nothing)()


@lambda_task
def leave_and_tell(*, name: str) -> str:
    leave(name=name)
    return name


@lambda_task
def leave_and_enqueue(*, name: str) -> None:
    """Enqueue three tasks, with another callback among them."""
    with transaction.atomic(using=get_store().database):
        leave.using(database=get_store().database).execute_on_commit(name=f"{name} 0")
        transaction.on_commit(nothing, using=get_store().database)
        for number in (1, 2):
            leave.using(database=get_store().database).execute_on_commit(name=f"{name} {number}")
    leave(name=name)


@lambda_task(on_crash="fail")
def leave_but_once(*, name: str) -> None:
    leave(name=name)


@lambda_task
def leave_all(*, names: list[str], options: dict[str, Any]) -> None:
    """Modify the arguments."""
    while names:
        leave(name=names.pop())
    options["inner"].clear()
    meanwhile.pop("in the end", nothing)()


@lambda_task
def leave_and_fail(*, name: str) -> None:
    ran.append(name)
    effects().create(name=name)
    raise ValueError(name)


@lambda_task(soft_timeout=1, hard_timeout=2)
def query_repeatedly(*, name: str) -> None:
    """Query a server that never answers, and query it again on a new connection at the soft limit."""
    effects().create(name=name)
    meanwhile.pop(name, nothing)()
    try:
        effects().count()
    except SoftTimeLimitExceeded:
        with another_connection(connect_timeout=60) as another, another.cursor():
            pytest.fail("the server answered")
    finally:
        meanwhile.pop("in the end", nothing)()


@lambda_task(soft_timeout=1, hard_timeout=60)
def query_once(*, name: str) -> None:
    meanwhile.pop(name, nothing)()
    effects().count()


@lambda_task
def read_then_write(*, name: str) -> None:
    """Read a row, execute the test's action, and write the row."""
    ran.append(name)
    assert effects().filter(name="row").exists()
    meanwhile.get(name, nothing)()
    effects().filter(name="row").update(name="row")
    effects().create(name=name)


@lambda_task(on_crash="fail")
def read_then_write_but_once(*, name: str) -> None:
    read_then_write(name=name)


@lambda_task(soft_timeout=1, hard_timeout=60)
def read_then_write_in_a_second(*, name: str) -> None:
    read_then_write(name=name)


@lambda_task(max_retries=0)
def read_then_write_without_retries(*, name: str) -> None:
    read_then_write(name=name)


@lambda_task
def close_everything(*, name: str) -> None:
    """Close all connections, including the task's own, as before a fork."""
    leave(name=name)
    connections.close_all()
    meanwhile.pop(name, nothing)()


@lambda_task
def write_both(*, name: str, first: str, second: str) -> None:
    """Write two rows. On the first attempt, another task writes the second row first."""
    ran.append(name)
    if ran.count(name) > 1:
        meanwhile["again"]()
    effects().filter(name=first).update(created=DatabaseNow())
    meanwhile.pop(name, nothing)()
    effects().filter(name=second).update(created=DatabaseNow())
    effects().create(name=name)


class WatchedBackend(MemoryBackend):
    def __init__(self) -> None:
        super().__init__()
        self.postponed: list[float] = []

    def postpone(self, records: Any) -> None:
        self.postponed.extend(seconds for _, seconds in records)


class NotingBackend(BaseBackend):
    """Record the names that the tasks were sent with."""

    def send(self, jobs: Sequence[Job]) -> Iterator[Taken]:
        for job in jobs:
            noted.append(job.message.kwargs["name"])
            yield Taken(job)

    def postpone(self, records: Any) -> None: ...


#: The names that `NotingBackend` has sent.
noted: list[str] = []


@pytest.fixture(autouse=True)
def _tasks_work_here(database: str, settings: Any) -> Iterator[None]:
    """Store records and effects in `database`, and messages in memory."""
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.WatchedBackend"
    ran.clear()
    noted.clear()
    meanwhile.clear()
    vars(connections[database]).pop("commit", None)  # a test with an outbox has wrapped it
    yield
    connections[database].close()  # the next test must not use this connection


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    server = django_settings.SERVERS[NAME_OF_VENDOR[connections[database].vendor]]
    with database_behind_proxy(database, server) as proxy:
        yield proxy
        proxy.pass_through()


def backend() -> WatchedBackend:
    chosen = get_backend()
    assert isinstance(chosen, WatchedBackend)
    return chosen


def effects() -> Any:
    return Effect.objects.using(get_store().database)


def records() -> Any:
    return TaskRecord.objects.using(get_store().database)


def names() -> list[str]:
    return sorted(effects().values_list("name", flat=True))


def statuses() -> list[str]:
    return sorted(records().values_list("status", flat=True))


def message_of(task: Any, /, *, receives: int = 1, **kwargs: Any) -> dict[str, Any]:
    """Return the message of an invocation as it appears in an event."""
    task.execute_on_commit(**kwargs)
    [job] = backend().take()
    return event_record(job, receive_count=receives)


def deliver(*messages: dict[str, Any]) -> list[str]:
    """Deliver the messages to the handler, and return the ids of those that stay on the queue."""
    response = handler({"Records": list(messages)}, None)
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def ids_of(messages: Any) -> list[str]:
    return [message["messageId"] for message in messages]


def expire_leases() -> None:
    records().filter(status="RUNNING").update(lease_until=DatabaseNow() - timedelta(seconds=1))


def at(monkeypatch: pytest.MonkeyPatch, point: str, action: Callable[[], object], *, time: int = 1) -> None:
    """Execute `action` when the failpoint is reached for the `time`th time."""
    met = []

    def reached(name: str) -> None:
        if name == point:
            met.append(name)
            if len(met) == time:
                action()

    monkeypatch.setattr(failpoints, "reached", reached)


@contextmanager
def another_connection(**options: Any) -> Iterator[Any]:
    with closing(connections.create_connection(get_store().database)) as another:
        another.settings_dict = another.settings_dict | {"OPTIONS": {**another.settings_dict["OPTIONS"], **options}}
        yield another


def execute(sql: str, parameters: Any = None) -> Any:
    """Execute `sql` on another connection, and return the first column of the first row, if any."""
    with another_connection() as another, another.cursor() as cursor:
        cursor.execute(sql, parameters)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def end_own_session() -> None:
    """End the session of this thread's connection on the server, without notifying the client."""
    connection = connections[get_store().database]
    number, end = {
        "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend(%s, 5000)"),
        "mysql": ("SELECT CONNECTION_ID()", "KILL CONNECTION %s"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(number)
        [session] = cursor.fetchone()
    execute(end, [session])


def wait_until(sql: str) -> None:
    """Wait until `sql` returns a true value."""
    deadline = threading.Event()
    timer = threading.Timer(PATIENCE, deadline.set)
    timer.start()
    try:
        with another_connection() as another, another.cursor() as cursor:
            while not deadline.is_set():
                cursor.execute(sql)
                if cursor.fetchone()[0]:
                    return
            pytest.fail(f"never true: {sql}")
    finally:
        timer.cancel()
        timer.join()


@on_servers
class TestCommit:
    def test_commit_with_a_lost_answer_takes_effect_once(self, proxy: Proxy) -> None:
        message = message_of(leave, name="a")
        meanwhile["a"] = lambda: proxy.strike(Strike.LOSE_ANSWER_TO_COMMIT)
        assert deliver(message) == []
        assert (ran, names(), statuses()) == (["a"], ["a"], ["SUCCESS"])

        assert deliver(message) == []
        assert ran == ["a"]

    def test_listeners_receive_the_result_despite_a_lost_answer(self, proxy: Proxy, settings: Any) -> None:
        told: list[Outcome] = []

        class Listener:
            @hookimpl
            def lambda_task_finished(self, outcome: Outcome) -> None:
                told.append(outcome)

        settings.LAMBDA_TASKS_PLUGINS = [Listener]
        meanwhile["a"] = lambda: proxy.strike(Strike.LOSE_ANSWER_TO_COMMIT)
        assert deliver(message_of(leave_and_tell, name="a")) == []
        assert told == [Succeeded("a")]

    @pytest.mark.parametrize("outbox", [False, True], ids=["alone", "outbox"])
    def test_lost_answer_still_sends_what_the_task_enqueued(
        self, proxy: Proxy, settings: Any, outbox: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        message = message_of(leave_and_enqueue, name="a")
        transport = f"{__name__}.NotingBackend"
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": "lambda_tasks.backends.outbox.OutboxBackend",
            "OPTIONS": {"transport": transport, "databases": [get_store().database]},
        }
        if not outbox:
            settings.LAMBDA_TASKS_BACKEND = transport
        meanwhile["a"] = lambda: proxy.strike(Strike.LOSE_ANSWER_TO_COMMIT)
        with caplog.at_level(logging.WARNING, "lambda_tasks"):
            assert deliver(message) == []
        assert (names(), statuses()) == (["a"], ["SUCCESS"])
        assert sorted(noted) == ["a 0", "a 1", "a 2"]
        assert "enqueued tasks were not sent" not in caplog.text
        assert not OutboxMessage.objects.using(get_store().database).exists()
        assert "1 other callbacks are not called" in caplog.text

    def test_commit_that_never_arrives_sends_nothing(self, proxy: Proxy) -> None:
        message = message_of(leave_and_enqueue, name="a")
        meanwhile["a"] = lambda: proxy.strike(Strike.CUT_BEFORE_COMMIT)
        assert deliver(message) == ids_of([message])
        assert backend().take() == []

        assert deliver(message) == []
        assert len(backend().take()) == 3

    def test_queue_error_after_a_lost_answer_changes_nothing(
        self, proxy: Proxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = message_of(leave_and_enqueue, name="a")
        meanwhile["a"] = lambda: proxy.strike(Strike.LOSE_ANSWER_TO_COMMIT)

        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectionError("the queue does not answer")

        monkeypatch.setattr(WatchedBackend, "send", refuse)
        assert deliver(message) == []
        assert statuses() == ["SUCCESS"]
        assert "the queue does not answer" in caplog.text

    def test_lost_commit_is_rolled_back_and_redelivered(self, proxy: Proxy) -> None:
        message = message_of(leave, name="a")
        meanwhile["a"] = lambda: proxy.strike(Strike.CUT_BEFORE_COMMIT)
        assert deliver(message) == ids_of([message])
        record = records().get()
        assert (names(), record.status, record.claim) == ([], "RUNNING", None)

        assert deliver(message) == []
        record = records().get()
        assert (ran, names(), record.status, record.takeovers) == (["a", "a"], ["a"], "SUCCESS", 0)

    def test_redelivery_finds_the_success_after_an_outage(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        """The outage begins with the COMMIT."""
        message = message_of(leave, name="a")

        def strike() -> None:
            proxy.refuse()  # new connections; this connection gets as far as COMMIT
            proxy.strike(Strike.LOSE_ANSWER_TO_COMMIT)

        meanwhile["a"] = strike
        assert deliver(message) == ids_of([message])
        proxy.pass_through()
        assert deliver(message) == []
        assert (ran, names(), statuses()) == (["a"], ["a"], ["SUCCESS"])


@contextmanager
def at_commit(does: str) -> Iterator[None]:
    """Run these statements of PL/pgSQL in the COMMIT of a transaction that has left an effect."""
    execute(
        f"""
        CREATE FUNCTION do_in_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does}; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER do_in_commit AFTER INSERT ON app_effect
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION do_in_commit()
        """
    )
    try:
        yield
    finally:
        execute("DROP TRIGGER do_in_commit ON app_effect; DROP FUNCTION do_in_commit()")


def slow_commit(*, fails: bool) -> AbstractContextManager[None]:
    """Block every COMMIT of an effect while the advisory lock 4711 is held, and let it fail afterwards if `fails`."""
    end = "RAISE EXCEPTION 'refused at commit'" if fails else "NULL"
    return at_commit(f"PERFORM pg_advisory_xact_lock_shared(4711); {end}")


@on_postgres
@pytest.mark.parametrize("level", [None, "REPEATABLE_READ", "SERIALIZABLE"])
@pytest.mark.parametrize("fails", [False, True], ids=["that succeeds", "that fails"])
def test_worker_waits_for_a_commit_under_way(
    proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch, fails: bool, level: str | None
) -> None:
    if level:
        isolate(monkeypatch, database, level)
    message = message_of(leave, name="a")
    meanwhile["a"] = lambda: proxy.strike(Strike.HOLD_AFTER_COMMIT)
    with slow_commit(fails=fails), another_connection() as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(4711)")

        def let_go() -> None:
            proxy.wait_until_struck()
            wait_until(
                "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock' AND query LIKE '%COMMIT' AND pid <> pg_backend_pid()"
            )
            proxy.cut_struck()
            wait_until(
                "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() "
                "AND wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE%' AND pid <> pg_backend_pid()"
            )
            cursor.execute("SELECT pg_advisory_unlock(4711)")

        watcher = InThread(let_go).start()
        kept = deliver(message)
        watcher.answer()
        if fails:
            assert (kept, names(), statuses()) == (ids_of([message]), [], ["RUNNING"])
            assert records().get().claim is None
        else:
            assert (kept, names(), statuses()) == ([], ["a"], ["SUCCESS"])
    assert deliver(message) == []
    assert (names(), statuses()) == (["a"], ["SUCCESS"])
    assert ran == (["a", "a"] if fails else ["a"])


@on_servers
class TestEndedSessions:
    @pytest.mark.parametrize("checked", [True, False], ids=["health checks", "no health checks"])
    def test_session_is_replaced_between_messages(self, proxy: Proxy, database: str, checked: bool) -> None:
        messages = [message_of(leave, name=name) for name in "ab"]
        connections[database].settings_dict["CONN_HEALTH_CHECKS"] = checked
        assert deliver(messages[0]) == []
        end_own_session()
        assert deliver(messages[1]) == []
        assert (ran, names()) == (["a", "b"], ["a", "b"])

    def test_read_only_session_is_replaced_after_a_failover(self, proxy: Proxy, database: str) -> None:
        if database == "mariadb":
            pytest.skip("nothing that a session can set gives the error of a server that may only read")
        messages = [message_of(leave, name=name) for name in "ab"]
        assert deliver(messages[0]) == []
        with connections[database].cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")
        assert deliver(messages[1]) == []
        assert (ran, names()) == (["a", "b"], ["a", "b"])

    @pytest.mark.parametrize("point", ["claim:after", "task:before_begin", "task:enter", "finish:before_commit"])
    def test_session_lost_around_a_task_returns_the_message(
        self, database: str, point: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = message_of(leave, name="a")
        at(monkeypatch, point, end_own_session)
        assert deliver(message) == ids_of([message])
        record = records().get()
        assert (names(), record.status, record.claim) == ([], "RUNNING", None)

        assert deliver(message) == []
        assert (names(), statuses()) == (["a"], ["SUCCESS"])
        # A loss that the task's first statement detects counts, because the task may be the cause.
        assert records().get().takeovers in ((0,) if point == "finish:before_commit" else (0, 1))

    def test_session_lost_in_a_task_is_not_failure(self, database: str) -> None:
        message = message_of(leave, name="a")
        meanwhile["a"] = end_own_session
        assert deliver(message) == ids_of([message])
        assert deliver(message) == []
        assert (ran, names(), statuses()) == (["a", "a"], ["a"], ["SUCCESS"])

    def test_unrepeatable_task_fails_if_it_was_called(self, database: str) -> None:
        message = message_of(leave_but_once, name="a")
        meanwhile["a"] = end_own_session
        assert deliver(message) == []
        assert deliver(message) == []
        assert (ran, names(), statuses()) == (["a"], [], ["FAILED"])
        assert "crashed: it lost its database" in records().get().traceback

    def test_unrepeatable_task_runs_if_it_was_not_called(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise OperationalError("nobody is there")

        message = message_of(leave_but_once, name="a")
        at(monkeypatch, "task:before_begin", refuse)
        assert deliver(message) == ids_of([message])
        assert deliver(message) == []
        assert (ran, names(), statuses()) == (["a"], ["a"], ["SUCCESS"])

    def test_session_is_replaced_to_record_a_failure(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        message = message_of(leave_and_fail, name="a")
        at(monkeypatch, "settle:before_write", end_own_session)
        assert deliver(message) == []
        assert (ran, names(), statuses()) == (["a"], [], ["FAILED"])

    def test_session_lost_after_the_commit_changes_nothing(
        self, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        messages = [message_of(leave, name=name) for name in "ab"]
        at(monkeypatch, "finish:after_commit", end_own_session)
        assert deliver(*messages) == []
        assert (ran, names(), statuses()) == (["a", "b"], ["a", "b"], ["SUCCESS", "SUCCESS"])


@on_postgres
def test_row_referencing_a_record_does_not_block_takeover(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = message_of(leave, name="a")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(failpoints, "reached", interrupt_at("claim:after"))
        deliver(message)
    expire_leases()
    execute("CREATE TABLE audit (record uuid REFERENCES lambda_tasks_taskrecord ON DELETE CASCADE)")
    try:
        with another_connection() as another:
            another.set_autocommit(False)
            with another.cursor() as cursor:
                cursor.execute("INSERT INTO audit VALUES (%s)", [records().get().pk])
                assert deliver(message) == []
            another.rollback()
    finally:
        execute("DROP TABLE audit")
    assert (names(), statuses()) == (["a"], ["SUCCESS"])


def interrupt_at(point: str) -> Callable[[str], None]:
    def reached(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    return reached


@on_servers
class TestConnectionClosedByTask:
    """A task that breaks its connection is not an outage, because it would do so again on every run."""

    def test_task_that_closes_its_connection_fails(self, database: str) -> None:
        assert deliver(message_of(close_everything, name="a")) == []
        assert (names(), statuses()) == ([], ["FAILED"])
        assert "has closed the database connection" in records().get().traceback

    def test_task_that_opens_another_connection_fails(self, database: str) -> None:
        meanwhile["a"] = lambda: leave(name="b")
        assert deliver(message_of(close_everything, name="a")) == []
        assert (names(), statuses()) == ([], ["FAILED"])


@on_servers
def test_copy_blocked_by_a_commit_stops_no_neighbours(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first delivery inserts without a look at the table, and the server ends its wait."""
    patience = {"options": "-c lock_timeout=200ms"}
    if database == "mariadb":
        patience = {"init_command": "SET SESSION innodb_lock_wait_timeout = 1"}
    message = message_of(leave, name="a")
    with another_connection() as frozen:
        frozen.set_autocommit(False)
        assert deliver(message) == []
        with frozen.cursor() as cursor:
            cursor.execute("UPDATE lambda_tasks_taskrecord SET result = NULL")
        change_options(monkeypatch, database, patience)
        connections[database].close()
        copy = {**message, "messageId": "a copy under another id of SQS's"}
        assert deliver(copy, message_of(leave, name="b")) == [copy["messageId"]]
        assert backend().postponed[0] >= LOCKED_PAUSE
        frozen.rollback()
    assert names() == ["a", "b"]


@on_servers
class TestOutages:
    def test_batch_returns_with_growing_pauses_without_a_database(
        self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        messages = [message_of(leave, name=str(receives), receives=receives) for receives in (1, 2, 3, 9)]
        claims: list[str] = []
        monkeypatch.setattr(failpoints, "reached", lambda point: claims.extend([point] * (point == "claim:before")))
        proxy.become_unavailable()
        assert deliver(*messages) == ids_of(messages)
        least = (20, 200, 2000, 28_800)
        assert all(low <= pause <= 1.25 * low for pause, low in zip(backend().postponed, least, strict=True))
        assert (ran, len(claims)) == ([], 1)

        proxy.pass_through()
        assert deliver(*messages) == []
        assert (ran, names(), statuses()) == (["1", "2", "3", "9"], ["1", "2", "3", "9"], ["SUCCESS"] * 4)

    def test_outage_in_a_batch_returns_the_rest(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tasks that ended before the outage are acknowledged."""
        messages = [message_of(leave, name=str(number)) for number in range(10)]
        at(monkeypatch, "batch:next", proxy.become_unavailable, time=5)
        assert deliver(*messages) == ids_of(messages[4:])
        proxy.pass_through()
        assert ran == names() == ["0", "1", "2", "3"]

        assert deliver(*messages[4:]) == []
        assert ran == names() == [str(number) for number in range(10)]
        assert statuses() == ["SUCCESS"] * 10

    def test_task_that_lost_its_database_is_taken_over(self, proxy: Proxy) -> None:
        messages = [message_of(leave, name=name) for name in "abc"]
        meanwhile["b"] = proxy.become_unavailable
        assert deliver(*messages) == ids_of(messages[1:])
        proxy.pass_through()
        assert names() == ["a"]

        # The claim could not be given back, so it lasts until its lease has expired.
        assert deliver(*messages[1:]) == ids_of([messages[1]])
        expire_leases()
        assert deliver(messages[1]) == []
        assert (ran, names(), statuses()) == (["a", "b", "c", "b"], ["a", "b", "c"], ["SUCCESS"] * 3)

    def test_unrecorded_failure_is_not_acknowledged(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        message = message_of(leave_and_fail, name="a")
        at(monkeypatch, "settle:before_write", proxy.become_unavailable)
        assert deliver(message) == ids_of([message])
        proxy.pass_through()
        assert (names(), statuses()) == ([], ["RUNNING"])

        expire_leases()
        assert deliver(message) == []
        assert deliver(message) == []
        assert (ran, names(), statuses()) == (["a", "a"], [], ["FAILED"])


#: The recommendations in docs/howto/deploying.md, with shorter times.
IMPATIENT: dict[str, dict[str, Any]] = {
    "postgres": {
        "connect_timeout": 2,
        "keepalives_idle": 1,
        "keepalives_interval": 1,
        "keepalives_count": 1,
        "tcp_user_timeout": 500,
    },
    "mariadb": {"connect_timeout": 1, "read_timeout": 1, "write_timeout": 1},
}


@on_servers
class TestSilentServer:
    """A half-open connection: the client is not notified that the server is gone."""

    @pytest.fixture(autouse=True)
    def _impatient(self, proxy: Proxy, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        change_options(monkeypatch, database, IMPATIENT[database])

    def test_handler_answers_without_an_answer_from_the_database(self, proxy: Proxy) -> None:
        messages = [message_of(leave, name=name) for name in "ab"]
        proxy.stop_answering()
        assert deliver(*messages) == ids_of(messages)
        proxy.pass_through()
        assert deliver(*messages) == []
        assert names() == ["a", "b"]

    def test_open_connection_is_abandoned_after_its_timeout(self, proxy: Proxy, database: str) -> None:
        # More than the network buffers hold, so that it is never acknowledged.
        long = "x" * 2_000_000
        messages = [message_of(leave, name="a"), message_of(leave, name=long)]
        connections[database].settings_dict["CONN_HEALTH_CHECKS"] = False
        assert deliver(messages[0]) == []
        proxy.stop_answering()
        assert deliver(messages[1]) == ids_of(messages[1:])

    def test_unanswered_query_ends_at_the_hard_limit(self, proxy: Proxy, patient_reader: None) -> None:
        message = message_of(query_repeatedly, name="a")
        meanwhile["a"] = proxy.stop_answering
        meanwhile["in the end"] = proxy.pass_through
        assert deliver(message) == []
        record = records().get()
        assert (names(), record.status) == ([], "FAILED")
        assert "HardTimeLimitExceeded" in record.traceback

    def test_lasting_silence_after_a_limit_returns_the_message(self, proxy: Proxy, database: str) -> None:
        if database == "mariadb":
            pytest.skip("its driver knows one time for all answers, to a query and to a new connection")
        message = message_of(query_once, name="a")
        meanwhile["a"] = proxy.stop_answering
        assert deliver(message) == ids_of([message])
        proxy.pass_through()
        expire_leases()
        assert deliver(message) == []
        assert statuses() == ["SUCCESS"]

    @pytest.fixture
    def patient_reader(self, _impatient: None, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the task's limits end the wait for an answer."""
        if database == "mariadb":
            change_options(monkeypatch, database, {"read_timeout": 60})


def change_options(monkeypatch: pytest.MonkeyPatch, database: str, options: dict[str, Any]) -> None:
    connection = connections[database]
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {**connection.settings_dict["OPTIONS"], **options})


def isolate(monkeypatch: pytest.MonkeyPatch, database: str, level: str) -> None:
    """Give new connections to `database` a strict isolation level."""
    vendor = connections[database].vendor
    value = psycopg.IsolationLevel[level] if vendor == "postgresql" else level.replace("_", " ").lower()
    change_options(monkeypatch, database, {"isolation_level": value})


@on_servers
@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
class TestIsolation:
    @pytest.fixture(autouse=True)
    def _isolated(self, database: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
        isolate(monkeypatch, database, level)

    @pytest.mark.parametrize("dead", [False, True], ids=["claim", "takeover"])
    def test_one_of_many_simultaneous_deliveries_runs(self, database: str, dead: bool) -> None:
        messages = [message_of(leave, name=str(round_)) for round_ in range(4)]
        for message in messages if dead else []:
            records().create(
                id=message["messageId"],
                task_name=leave.name,
                claim=ids.new_message_id(),
                lease_until=DatabaseNow() - timedelta(seconds=1),
            )
        kept = crowd(lambda round_, _: deliver(messages[round_]), size=4, rounds=len(messages))
        for message, answers in zip(messages, kept, strict=True):
            assert [] in answers
            assert all(answer in ([], ids_of([message])) for answer in answers)
        assert (sorted(ran), names()) == (["0", "1", "2", "3"], ["0", "1", "2", "3"])
        assert statuses() == ["SUCCESS"] * 4

    def test_worker_without_its_lease_commits_nothing(self, database: str) -> None:
        message = message_of(leave, name="a")
        successor = ids.new_message_id()

        def take_over() -> None:
            with another_connection() as another, another.cursor() as cursor:
                table = connections[database].ops.quote_name(TaskRecord._meta.db_table)
                cursor.execute(f"UPDATE {table} SET claim = %s", [uuid_of(database, successor)])

        meanwhile["a"] = take_over
        assert deliver(message) == ids_of([message])
        record = records().get()
        assert (names(), record.status, str(record.claim)) == ([], "RUNNING", successor)


def uuid_of(database: str, value: str) -> Any:
    return TaskRecord._meta.get_field("claim").get_db_prep_value(value, connections[database])


class ContestedStore(ORMStore):
    """A store in which other workers always claim the task named "contested" first."""

    def claim(self, run: Any) -> Any:
        if run.arguments["name"] == "contested":
            with connections[self.database].cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE serialization_failure; END $$")
        return super().claim(run)


@on_postgres
def test_contested_claim_returns_only_its_own_message(database: str, settings: Any) -> None:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": f"{__name__}.ContestedStore", "OPTIONS": {"database": database}}
    messages = [message_of(leave, name=name) for name in ("a", "contested", "b")]
    assert deliver(*messages) == ids_of(messages[1:2])
    assert names() == ["a", "b"]
    [seconds] = backend().postponed
    assert seconds <= 25


# Two conflicting transactions


@pytest.mark.databases("postgres", "mariadb", transaction=True)
def test_two_deadlocked_tasks_are_each_done_once(database: str) -> None:
    for row in ("left", "right"):
        effects().create(name=row)
    both_have_one = threading.Barrier(2, timeout=PATIENCE)
    one_is_done = threading.Event()
    meanwhile.update(a=both_have_one.wait, b=both_have_one.wait)
    # An immediate rerun could get its first row before the other task gets its second row, and conflict again.
    meanwhile["again"] = lambda: one_is_done.wait(PATIENCE)
    messages = [
        message_of(write_both, name="a", first="left", second="right"),
        message_of(write_both, name="b", first="right", second="left"),
    ]

    def work(number: int) -> list[str]:
        kept = deliver(messages[number])
        one_is_done.set()
        return kept

    assert together(2, work) == [[], []]
    assert names() == ["a", "b", "left", "right"]
    assert len(ran) == 3
    assert statuses() == ["SUCCESS", "SUCCESS"]
    assert set(records().values_list("n_retries", flat=True)) == {0}
    assert backend().take() == []


@pytest.mark.databases("sqlite", "postgres", "mariadb", transaction=True)
class TestConflicts:
    """A task reads a row, another connection writes it, and then the task writes it too."""

    @pytest.fixture(autouse=True)
    def _row(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        effects().create(name="row")
        if database == "postgres":
            isolate(monkeypatch, database, "SERIALIZABLE")
        if database == "mariadb":
            isolate(monkeypatch, database, "REPEATABLE_READ")
            # The default since MariaDB 11.6.
            change_options(monkeypatch, database, {"init_command": "SET SESSION innodb_snapshot_isolation=ON"})

    def rival(self) -> None:
        # SQLite ignores an UPDATE that changes nothing.
        self.writes = getattr(self, "writes", 0) + 1
        execute("UPDATE app_effect SET created = %s WHERE name = 'row'", [f"2001-01-01 00:00:{self.writes:02}"])

    def conflict(self) -> OperationalError:
        with pytest.raises(OperationalError) as caught, transaction.atomic(using=get_store().database):
            assert effects().filter(name="row").exists()
            self.rival()
            effects().filter(name="row").update(name="row")
        return caught.value

    def test_conflict_is_rerun_immediately(self, database: str) -> None:
        rivals = [self.rival] * pipeline.MAX_RERUNS
        meanwhile["a"] = lambda: rivals and rivals.pop()()
        assert deliver(message_of(read_then_write, name="a")) == []
        assert ran == ["a"] * (pipeline.MAX_RERUNS + 1)
        assert (names(), statuses()) == (["a", "row"], ["SUCCESS"])
        assert backend().take() == []

    def test_rerun_has_its_original_arguments(self, database: str) -> None:
        conflict = self.conflict()

        def give_up() -> None:
            raise conflict

        meanwhile["in the end"] = give_up
        assert deliver(message_of(leave_all, names=["a", "b"], options={"inner": [1]})) == []
        assert ran == ["b", "a", "b", "a"]
        assert (names(), statuses()) == (["a", "b", "row"], ["SUCCESS"])

    def test_repeated_conflicts_are_retried_later(self, database: str) -> None:
        meanwhile["a"] = self.rival
        assert deliver(message_of(read_then_write, name="a")) == []
        assert ran == ["a"] * (pipeline.MAX_RERUNS + 1)
        assert (names(), statuses()) == (["row"], ["RETRYING"])

        del meanwhile["a"]
        [retry] = backend().take()
        assert deliver(event_record(retry)) == []
        assert (names(), statuses()) == (["a", "row"], ["RETRYING", "SUCCESS"])

    def test_conflict_without_time_for_rerun_is_retried(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The attempts share the limits: after an attempt of 0.6 s, 1 s leaves too little for another one."""
        monkeypatch.setattr(Run, "duration", 0.6)
        meanwhile["a"] = self.rival
        hurried = read_then_write_in_a_second
        assert deliver(message_of(hurried, name="a")) == []
        assert ran == ["a"]
        assert (names(), statuses()) == (["row"], ["RETRYING"])

    def test_task_without_retries_is_retried_for_a_conflict(self, database: str) -> None:
        meanwhile["a"] = self.rival
        assert deliver(message_of(read_then_write_without_retries, name="a")) == []
        assert statuses() == ["RETRYING"]

    def test_unrepeatable_task_is_not_rerun(self, database: str) -> None:
        meanwhile["a"] = self.rival
        assert deliver(message_of(read_then_write_but_once, name="a")) == []
        assert ran == ["a"]
        assert (names(), statuses()) == (["row"], ["FAILED"])
        assert backend().take() == []

    def test_task_in_an_outer_transaction_is_not_rerun(self, database: str) -> None:
        if database == "sqlite":
            pytest.skip("no other connection can write during the caller's transaction")
        meanwhile["a"] = self.rival
        message = Invocation(task_name=read_then_write.name, kwargs={"name": "a"})
        with transaction.atomic(using=database):
            # MariaDB has rolled back the caller's transaction, and the worker cannot restart it.
            with pytest.raises(TransactionManagementError) if database == "mariadb" else nullcontext():
                outcome = pipeline.execute(message, message_id=ids.new_message_id(), limited=False)
                assert isinstance(outcome, Retry)
            transaction.set_rollback(True, using=database)
        assert ran == ["a"]

    def test_error_is_recognized_as_a_conflict(self, database: str) -> None:
        assert is_conflict(self.conflict())


@pytest.mark.databases("sqlite", "postgres", "mariadb", transaction=True)
class TestIsConflict:
    def test_other_errors_are_not_conflicts(self, database: str) -> None:
        for sql in ("SELECT nothing FROM nowhere", "SELECT (", "INSERT INTO app_effect (id) VALUES (NULL)"):
            with pytest.raises(DatabaseError) as caught:
                execute(sql)
            assert not is_conflict(caught.value)

    def test_duplicate_key_is_not_a_conflict(self, database: str) -> None:
        effect = effects().create(name="a")
        with pytest.raises(IntegrityError) as caught:
            effects().create(pk=effect.pk, name="b")
        assert not is_conflict(caught.value)

    def test_terminated_session_is_not_a_conflict(self, database: str) -> None:
        if database == "sqlite":
            pytest.skip("there is no server that could end it")
        end_own_session()
        with pytest.raises(DatabaseError) as caught:
            effects().count()
        assert not is_conflict(caught.value)

    def test_error_number_is_enough_without_an_sqlstate(self, database: str) -> None:
        """mysqlclient and PyMySQL before 1.2 give no SQLSTATE."""
        assert is_conflict(OperationalError(1213, "Deadlock found when trying to get lock; try restarting transaction"))
        assert is_conflict(OperationalError(1020, "Record has changed since last read in table 'app_effect'"))
        assert not is_conflict(OperationalError(1205, "Lock wait timeout exceeded; try restarting transaction"))
        assert not is_conflict(OperationalError())

    def test_untranslated_driver_error_is_not_a_conflict(self, database: str) -> None:
        assert not is_conflict(sqlite3.OperationalError("database is locked"))
        assert not is_conflict(ValueError("database is locked"))
