"""A cursor that is kept for each connection behaves like a new one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, connections, transaction
from django.db.backends.sqlite3.base import SQLiteCursorWrapper
from django.test.utils import CaptureQueriesContext

from lambda_tasks.database.cursors import execute
from lambda_tasks.models import TaskRecord

INSERT = (
    "INSERT INTO lambda_tasks_taskrecord (id, task_name, kwargs, status, n_retries) VALUES (%s, 'a.b', '{}', 'X', 0)"
)
FIRST, SECOND = "00000000000000000000000000000001", "00000000000000000000000000000002"

on_each_database = pytest.mark.databases()
committing = pytest.mark.databases(transaction=True)


def kept(database: str) -> Any:
    """Return the cursor that the connection keeps, or None."""
    _, cursor = vars(connections[database]).get("_lambda_tasks_cursor", (None, None))
    return cursor


@pytest.fixture(autouse=True)
def none_kept(database: str) -> None:
    vars(connections[database]).pop("_lambda_tasks_cursor", None)


@on_each_database
class TestKept:
    def test_statements_share_a_cursor(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        connection = connections[database]
        assert execute(connection, INSERT, [FIRST]) == 1
        monkeypatch.setattr(type(connection), "create_cursor", None)  # creating another one would fail
        assert execute(connection, INSERT, [SECOND]) == 1

    def test_error_discards_the_cursor(self, database: str) -> None:
        connection = connections[database]
        with pytest.raises(IntegrityError), transaction.atomic(using=database):
            for _ in range(2):
                execute(connection, INSERT, [FIRST])
        assert kept(database) is None
        assert execute(connection, INSERT, [SECOND]) == 1

    def test_error_marks_the_transaction_as_broken(self, database: str) -> None:
        connection = connections[database]
        with transaction.atomic(using=database):
            with pytest.raises(IntegrityError):
                for _ in range(2):
                    execute(connection, INSERT, [FIRST])
            assert connection.needs_rollback
            transaction.set_rollback(True, using=database)

    def test_wrappers_see_the_statement(self, database: str) -> None:
        seen = []

        def look(call: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
            seen.append((sql, list(params), context["connection"].alias))
            return call(sql, params, many, context)

        execute(connections[database], INSERT, [FIRST])
        with connections[database].execute_wrapper(look):
            execute(connections[database], INSERT, [SECOND])
        assert seen == [(INSERT, [SECOND], database)]

    def test_logged_statement_is_in_the_log(self, database: str) -> None:
        execute(connections[database], INSERT, [FIRST])
        with CaptureQueriesContext(connections[database]) as queries:
            execute(connections[database], INSERT, [SECOND])
        assert len(queries) == 1

    def test_replaced_method_is_called(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tools that watch queries replace it, and so do tests that allow none."""
        connection = connections[database]
        execute(connection, INSERT, [FIRST])

        def refuse() -> None:
            raise AssertionError("no queries here")

        monkeypatch.setattr(connection, "cursor", refuse)
        with pytest.raises(AssertionError, match="no queries here"):
            execute(connection, INSERT, [SECOND])

    def test_event_loop_is_refused(self, database: str) -> None:
        connection = connections[database]
        execute(connection, INSERT, [FIRST])

        async def call() -> None:
            # The connection of the thread, which a coroutine must not use.
            execute(connection, INSERT, [SECOND])

        with pytest.raises(SynchronousOnlyOperation):
            asyncio.run(call())


@committing
class TestConnections:
    def test_new_connection_has_a_new_cursor(self, database: str) -> None:
        connection = connections[database]
        execute(connection, INSERT, [FIRST])
        first = kept(database)
        connection.close()
        assert execute(connection, INSERT, [SECOND]) == 1
        assert kept(database) is not first

    def test_dead_connection_is_replaced_by_its_health_check(
        self, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connection = connections[database]
        execute(connection, INSERT, [FIRST])
        first = connection.connection
        monkeypatch.setattr(connection, "health_check_enabled", True)
        monkeypatch.setattr(connection, "health_check_done", False)
        monkeypatch.setattr(connection, "is_usable", lambda: False)
        assert execute(connection, INSERT, [SECOND]) == 1
        assert connection.connection is not first


@pytest.mark.databases("sqlite")
class TestConversion:
    """Django converts the placeholders of each statement for SQLite; a kept cursor does so once for each of them."""

    @pytest.fixture(autouse=True)
    def converted(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        converted, convert = [], SQLiteCursorWrapper.convert_query

        def noting(self: SQLiteCursorWrapper, query: str, **options: Any) -> str:
            converted.append(query)
            return str(convert(self, query, **options))

        monkeypatch.setattr(SQLiteCursorWrapper, "convert_query", noting)
        return converted

    def test_statement_is_converted_once(self, database: str, converted: list[str]) -> None:
        for key in (FIRST, SECOND):
            assert execute(connections[database], INSERT, [key]) == 1
        assert converted == [INSERT]

    def test_percent_signs_and_placeholders_are_those_of_django(self, database: str) -> None:
        connection = connections[database]
        execute(connection, INSERT, [FIRST])
        for _ in range(2):
            changed = "UPDATE lambda_tasks_taskrecord SET task_name = '100%%' WHERE id = %s"
            assert execute(connection, changed, [FIRST]) == 1
        assert TaskRecord.objects.using(database).values_list("task_name", flat=True).get() == "100%"

    def test_parameters_by_name_are_converted_as_by_django(self, database: str) -> None:
        deletion = "DELETE FROM lambda_tasks_taskrecord WHERE id = %(id)s"
        execute(connections[database], INSERT, [FIRST])
        kept(database).execute(deletion, {"id": FIRST})
        assert not TaskRecord.objects.using(database).exists()

    def test_cursor_remembers_few_statements(self, database: str) -> None:
        connection = connections[database]
        for number in range(100):
            execute(connection, f"DELETE FROM lambda_tasks_taskrecord WHERE id = %s AND n_retries = {number}", [FIRST])
        assert len(kept(database).cursor._converted) <= 32

    def test_cursor_of_another_backend_is_unchanged(self, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
        class Other(SQLiteCursorWrapper):
            """The cursor of a backend that is derived from Django's."""

        connection = connections[database]
        monkeypatch.setattr(connection, "create_cursor", lambda name=None: connection.connection.cursor(factory=Other))
        execute(connection, INSERT, [FIRST])
        assert type(kept(database).cursor) is Other
