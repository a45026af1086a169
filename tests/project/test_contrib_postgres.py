"""`lambda_tasks.contrib.postgres`: its settings, their scope, and how a cancelled statement is reported."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import override_settings

from lambda_tasks.contrib import postgres as plugin
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.outcomes import Failed, Succeeded
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded, TimeoutContext
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

SETTINGS = ("statement_timeout", "client_connection_check_interval")


@pytest.fixture(autouse=True)
def _with_plugin(database: str) -> Iterator[None]:
    store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    with override_settings(LAMBDA_TASKS_PLUGINS=["lambda_tasks.contrib.postgres"], LAMBDA_TASKS_STORE=store):
        yield


def ask(statement: str, alias: str = "postgres") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def settings_now() -> list[str]:
    return [ask(f"SHOW {name}") for name in SETTINGS]


@lambda_task(soft_timeout=50, hard_timeout=60)
def show() -> list[str]:
    return settings_now()


@lambda_task
def one(*, alias: str) -> int:
    return int(ask("SELECT 1", alias))


@lambda_task(soft_timeout=1, hard_timeout=2)
def too_slow_for_its_own_timeout() -> None:
    ask("SELECT pg_sleep(600)")


def run(task: Any, *, limited: bool = True, **kwargs: Any) -> Any:
    message = Invocation(task_name=task.name, kwargs=kwargs)
    return execute(message, message_id=ids.new_message_id(), limited=limited)


on_postgres = pytest.mark.databases("postgres", transaction=True)


@on_postgres
class TestSettings:
    def test_settings_apply_only_in_the_tasks_transaction(self, database: str) -> None:
        before = settings_now()
        assert run(show) == Succeeded(["61s", "1s"])
        assert settings_now() == before == ["0", "0"]

    @pytest.mark.parametrize(
        ("own", "then"),
        [("0", "61s"), ("5s", "5s"), ("1500ms", "1500ms"), ("1min", "1min"), ("2min", "61s"), ("1d", "61s")],
    )
    def test_shorter_timeout_of_the_project_wins(self, database: str, own: str, then: str) -> None:
        with connections[database].cursor() as cursor:
            cursor.execute(f"SET statement_timeout = '{own}'")
        try:
            assert run(show).result[0] == then
            assert ask("SHOW statement_timeout") == own
        finally:
            connections[database].close()

    def test_settings_are_skipped_without_limits(self, database: str) -> None:
        """Eager mode has no limits."""
        assert run(show, limited=False) == Succeeded(["0", "0"])

    def test_settings_are_skipped_in_the_callers_transaction(self, database: str) -> None:
        """The caller's transaction would keep them."""
        with transaction.atomic(using=database):
            assert run(show) == Succeeded(["0", "0"])
            assert settings_now() == ["0", "0"]


@pytest.mark.databases("sqlite", "mariadb", transaction=True)
def test_other_databases_are_not_changed(database: str) -> None:
    assert run(one, alias=database) == Succeeded(1)


@on_postgres
def test_statement_timeout_of_the_project_stays_itself(database: str) -> None:
    """It is not reported as the hard timeout."""
    with connections[database].cursor() as cursor:
        cursor.execute("SET statement_timeout = '50ms'")
    try:
        outcome = run(too_slow_for_its_own_timeout)
    finally:
        connections[database].close()
    assert isinstance(outcome, Failed)
    assert not isinstance(outcome.error, HardTimeLimitExceeded)
    assert "statement timeout" in str(outcome.error)


@on_postgres
class TestEndStatement:
    def test_interrupted_statement_is_cancelled(self, database: str) -> None:
        """The connection stays usable."""
        connection = connections[database]
        with connection.execute_wrapper(plugin._cancel_if_interrupted):
            with pytest.raises(SoftTimeLimitExceeded), TimeoutContext(0.2, 30):
                ask("SELECT pg_sleep(600)")
            assert ask("SELECT 1") == 1

    def test_interrupted_fetch_is_cancelled(self, database: str) -> None:
        connection = connections[database]
        with transaction.atomic(using=database), connection.cursor() as cursor:
            cursor.execute("DECLARE slow CURSOR FOR SELECT pg_sleep(600)")
            with pytest.raises(SoftTimeLimitExceeded), TimeoutContext(0.2, 30):
                cursor.execute("FETCH slow")
            plugin.end_statement(connection)
            transaction.set_rollback(True, using=database)
        assert ask("SELECT 1") == 1

    def test_idle_connection_is_left_alone(self, database: str) -> None:
        assert ask("SELECT 1") == 1
        plugin.end_statement(connections[database])
        connections[database].close()
        plugin.end_statement(connections[database])

    def test_failed_cancellation_is_logged(
        self, database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It does not hide the original exception."""

        def refuse(session: Any) -> None:
            raise OSError("no connection for a cancellation")

        monkeypatch.setattr(plugin, "_cancel", refuse)
        connection = connections[database]
        interrupted = connection.execute_wrapper(plugin._cancel_if_interrupted)
        with interrupted, pytest.raises(SoftTimeLimitExceeded), TimeoutContext(0.2, 30):
            ask("SELECT pg_sleep(3)")
        connection.close()
        assert "could not be cancelled" in caplog.text


@on_postgres
def test_pure_python_psycopg_cancels_too(database: str) -> None:
    """The other tests run on the C implementation."""
    code = textwrap.dedent(
        """
        import psycopg
        import django
        django.setup()
        from django.db import connections
        from lambda_tasks.contrib import postgres as plugin
        from lambda_tasks.timeouts import SoftTimeLimitExceeded, TimeoutContext

        print(psycopg.pq.__impl__)
        connection = connections["postgres"]
        with connection.execute_wrapper(plugin._cancel_if_interrupted), connection.cursor() as cursor:
            try:
                with TimeoutContext(0.2, 30):
                    cursor.execute("SELECT pg_sleep(600)")
            except SoftTimeLimitExceeded:
                cursor.execute("SELECT 'goes on'")
                print(cursor.fetchone()[0])
        """
    )
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "PSYCOPG_IMPL": "python"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    if "no pq wrapper available" in done.stderr:
        pytest.skip("there is no libpq outside of psycopg's binary wheel")
    assert done.stdout.split("\n")[:2] == ["python", "goes on"], done.stderr


@on_postgres
def test_server_enforces_limits_in_another_thread(database: str) -> None:
    """An alarm does not reach another thread; see also the fault suite."""
    outcomes: list[Any] = []

    def work() -> None:
        try:
            outcomes.append(run(show))
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert outcomes == [Succeeded(["61s", "1s"])]
