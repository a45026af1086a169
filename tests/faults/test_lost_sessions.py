"""Check that a task that loses its own database session counts as a crash, and an unavailable database does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connections

from lambda_tasks.database.errors import connection_lost
from lambda_tasks.decorators import lambda_task
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_store
from tests.faults.proxy import Proxy, Strike
from tests.faults.test_database_faults import (  # noqa: F401, the fixtures are used by name
    _tasks_work_here,
    deliver,
    effects,
    end_own_session,
    execute,
    ids_of,
    leave,
    meanwhile,
    message_of,
    names,
    on_postgres,
    on_servers,
    proxy,
    ran,
    records,
    statuses,
    wait_until,
)

#: The actions of the task on its session, on each run.
harm: list[Callable[[], object]] = []
#: Runs with the default settings: the first one, and one for each of LAMBDA_TASKS_MAX_TAKEOVERS takeovers.
RUNS = 4


@lambda_task
def cost_session(*, name: str) -> None:
    ran.append(name)
    effects().create(name=name)
    for action in harm:
        action()


@pytest.fixture(autouse=True)
def _no_harm() -> Iterator[None]:
    harm.clear()
    yield
    harm.clear()


def end_and_use() -> None:
    end_own_session()
    effects().count()


def end_and_swallow() -> None:
    end_own_session()
    with suppress(DatabaseError):
        effects().count()


def stay_idle() -> None:
    """Let the server end the idle session, without the task detecting it."""
    with connections[get_store().database].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [pid] = cursor.fetchone()
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'")
    wait_until(f"SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = {pid}")


def send_too_much() -> None:
    limit = execute("SELECT @@max_allowed_packet")
    with connections[get_store().database].cursor() as cursor:
        cursor.execute("SELECT LENGTH(%s)", ["x" * (limit + 1024)])


def deliver_until_acknowledged(message: dict[str, Any]) -> int:
    for deliveries in range(1, 10):
        if not deliver(message):
            return deliveries
    pytest.fail("the message came back each time")


def assert_failed_as_crashed() -> None:
    assert (names(), statuses()) == ([], ["FAILED"])
    assert "TaskCrashedError: crashed:" in records().get().traceback
    assert "max_allowed_packet" in records().get().traceback


@on_servers
class TestTaskThatLosesItsSession:
    @pytest.mark.parametrize("how", [end_own_session, end_and_use, end_and_swallow])
    def test_task_fails_after_the_allowed_losses(self, database: str, how: Callable[[], object]) -> None:
        harm.append(how)
        assert deliver_until_acknowledged(message_of(cost_session, name="a")) == RUNS
        assert len(ran) == RUNS
        assert_failed_as_crashed()

    def test_setting_limits_the_number_of_losses(self, database: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_MAX_TAKEOVERS = 0
        harm.append(end_and_use)
        assert deliver_until_acknowledged(message_of(cost_session, name="a")) == 1
        assert_failed_as_crashed()

    def test_single_loss_is_counted_and_redelivered(self, database: str) -> None:
        message = message_of(leave, name="a")
        meanwhile["a"] = end_own_session
        assert deliver(message) == ids_of([message])
        assert (records().get().claim, records().get().takeovers) == (None, 1)
        assert deliver(message) == []
        assert (names(), statuses(), records().get().takeovers) == (["a"], ["SUCCESS"], 1)

    def test_store_without_the_method_redelivers(self, database: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_STORE = {"BACKEND": f"{__name__}.PlainStore", "OPTIONS": {"database": database}}
        message = message_of(leave, name="a")
        meanwhile["a"] = end_own_session
        assert deliver(message) == ids_of([message])
        assert (records().get().claim, records().get().takeovers) == (None, 0)
        assert deliver(message) == []


class PlainStore(ORMStore):
    """A store without `release_crashed()`."""

    def release_crashed(self, run: Any) -> None:
        super(ORMStore, self).release_crashed(run)


@on_postgres
@pytest.mark.parametrize("how", [stay_idle])
def test_idle_session_that_the_server_ends_is_counted(database: str, how: Callable[[], object]) -> None:
    harm.append(how)
    assert deliver_until_acknowledged(message_of(cost_session, name="a")) == RUNS
    assert_failed_as_crashed()


@on_postgres
@pytest.mark.parametrize("then", [lambda: None, lambda: effects().create(name="b")], ids=["record", "task"])
def test_task_that_forbids_writing_fails_eventually(database: str, then: Callable[[], object]) -> None:
    def forbid_writing() -> None:
        with connections[database].cursor() as cursor:
            cursor.execute("SET transaction_read_only = on")

    harm.extend([forbid_writing, then])
    assert deliver_until_acknowledged(message_of(cost_session, name="a")) == RUNS
    assert_failed_as_crashed()


@pytest.mark.databases("mariadb", transaction=True)
def test_statement_over_the_packet_limit_is_counted(database: str) -> None:
    harm.append(send_too_much)
    assert deliver_until_acknowledged(message_of(cost_session, name="a")) <= RUNS
    assert (names(), statuses()) == ([], ["FAILED"])


@on_servers
class TestNotCounted:
    def test_refused_connection_is_not_counted(self, proxy: Proxy) -> None:  # noqa: F811
        message = message_of(leave, name="a")
        meanwhile["a"] = proxy.become_unavailable
        assert deliver(message) == ids_of([message])
        proxy.pass_through()
        assert records().get().takeovers == 0

    def test_session_lost_in_commit_is_not_counted(self, proxy: Proxy) -> None:  # noqa: F811
        message = message_of(leave, name="a")
        meanwhile["a"] = lambda: proxy.strike(Strike.CUT_BEFORE_COMMIT)
        assert deliver(message) == ids_of([message])
        assert records().get().takeovers == 0


@pytest.mark.parametrize("code", [1927, 2006, 2013, 2055, 4031])
def test_driver_that_reconnects_does_not_hide_the_loss(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyMySQL before 1.2 reconnects when Django asks whether the connection is usable."""
    session = object()
    monkeypatch.setattr(connections["default"], "connection", session)
    monkeypatch.setattr(connections["default"], "is_usable", lambda: True)
    assert connection_lost("default", OperationalError(code, "gone"), session)
    assert connection_lost("default", InterfaceError(0, ""), session)
    assert not connection_lost("default", OperationalError(1205, "locked"), session)
