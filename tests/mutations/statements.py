"""Statements that the library compiles once, and the ORM as their fallback."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

SIZE: Final = "tests/database/test_statement_size.py"

TESTS: Final = "tests/database/test_unexpected_sql.py"
ROWS: Final = TESTS + "::TestManyRows"
ONE: Final = TESTS + "::TestOneStatement"
LOCKING: Final = TESTS + "::TestLocking"
CURSORS: Final = "tests/database/test_cursors.py"
SLOTS: Final = "tests/database/test_slots.py"

MUTATIONS: Final = (
    Mutation(
        "statements: unexpected SQL of one row raises",
        "database/statements.py",
        "        _warn_once(name, error)\n        return OrmCall(call)\n",
        "        raise\n",
        ONE,
    ),
    Mutation(
        "statements: unexpected SQL of many rows raises",
        "database/statements.py",
        '        _warn_once(f"the INSERT of many rows of {record._meta.label}", error)\n',
        "        raise\n",
        ROWS,
    ),
    Mutation(
        "statements: unexpected SQL of many rows is used",
        "database/statements.py",
        "    if not as_expected:\n",
        "    if False:\n",
        ROWS,
    ),
    Mutation(
        "statements: parameters may come in any order",
        "database/statements.py",
        "        and params_of_two == params + params\n",
        "",
        ROWS,
    ),
    Mutation(
        "statements: a slot may be lost",
        "database/statements.py",
        "    if MARK in sql or any(",
        "    if False and any(",
        ONE,
    ),
    Mutation(
        "statements: slots have no values for the ORM",
        "database/statements.py",
        "        with slots_filled(values):\n            return int(self.call())\n",
        "        return int(self.call())\n",
        ONE,
    ),
    Mutation(
        "statements: a slot's value is its mark",
        "database/slots.py",
        "        return self._mark if values is None else values[self.name]\n",
        "        return self._mark\n",
        ONE,
    ),
    Mutation(
        "statements: the fallback ignores rows that exist",
        "database/statements.py",
        '    options = {"update_conflicts": True, ',
        '    options = {"ignore_conflicts": True} if anew else {"update_conflicts": True, ',
        ROWS,
    ),
    Mutation(
        "statements: each fallback is warned about each time",
        "database/statements.py",
        "    if statement in _warned:\n",
        "    if False:\n",
        ROWS,
    ),
    Mutation(
        "statements: a hint that is not put in is not noticed",
        "database/statements.py",
        "    if statement.sql.count(text) != 1:\n",
        "    if False:\n",
        LOCKING,
    ),
    Mutation(
        "statements: a claim whose COMMIT does not wait has no fallback",
        "stores/rows.py",
        "    if isinstance(insert, OrmCall):\n",
        "    if False:\n",
        TESTS + "::TestTasks",
    ),
    Mutation(
        "statements: the cursor of a closed connection is used",
        "database/cursors.py",
        "    if cursor is not None and driver is connection.connection:\n",
        "    if cursor is not None:\n",
        CURSORS + "::TestConnections",
    ),
    Mutation(
        "statements: a kept cursor skips the health check",
        "database/cursors.py",
        "    connection.close_if_health_check_failed()\n",
        "",
        CURSORS + "::TestConnections",
    ),
    Mutation(
        "statements: a kept cursor works inside an event loop",
        "database/cursors.py",
        "    connection.ensure_connection()\n",
        "",
        CURSORS + "::TestKept",
    ),
    Mutation(
        "statements: a replaced cursor() is not called",
        "database/cursors.py",
        "connection.queries_logged or _is_replaced(connection)",
        "connection.queries_logged",
        CURSORS + "::TestKept",
    ),
    Mutation(
        "statements: queries of a kept cursor are not logged",
        "database/cursors.py",
        "connection.queries_logged or _is_replaced(connection)",
        "_is_replaced(connection)",
        CURSORS + "::TestKept",
    ),
    Mutation(
        "statements: a cursor is kept after an error",
        "database/cursors.py",
        "        vars(connection).pop(_KEPT, None)\n",
        "",
        CURSORS + "::TestKept",
    ),
    Mutation(
        "a part of a statement or a request has any size",
        "foundation/parts.py",
        " or size + own_size > most_size",
        "",
        SIZE + "::TestCalls::test_group",
    ),
    Mutation(
        "a part of a request has any number of items",
        "foundation/parts.py",
        "len(part) == most_items or ",
        "",
        "tests/backends/test_sqs.py",
    ),
    Mutation(
        "statements: a cursor for SQLite converts each statement again",
        "database/sqlite_cursor.py",
        "        converted = self._converted.get(query)\n",
        "        converted = None\n",
        CURSORS + "::TestConversion",
    ),
    Mutation(
        "statements: a cursor for SQLite remembers all statements",
        "database/sqlite_cursor.py",
        "                self._converted.clear()\n",
        "                pass\n",
        CURSORS + "::TestConversion",
    ),
    Mutation(
        "statements: a cursor for SQLite confuses parameters by name and by place",
        "database/sqlite_cursor.py",
        "        if param_names is not None:\n",
        "        if False:\n",
        CURSORS + "::TestConversion",
    ),
    Mutation(
        "statements: the cursor of another backend is replaced",
        "database/cursors.py",
        "    if type(created.cursor) is not SQLiteCursorWrapper:\n        return created\n",
        "",
        CURSORS + "::TestConversion",
    ),
    Mutation(
        "statements: an error does not break the transaction",
        "database/cursors.py",
        "        with transaction.mark_for_rollback_on_error(using=connection.alias):\n            raise\n",
        "        raise\n",
        CURSORS + "::TestKept",
    ),
    Mutation(
        "statements: any string becomes a part of the SQL",
        "database/slots.py",
        "        if isinstance(param, str) and _is_plain(param):\n",
        "        if isinstance(param, str):\n",
        SLOTS,
    ),
    Mutation(
        "statements: a boolean becomes a number in the SQL",
        "database/slots.py",
        "isinstance(param, int) and not isinstance(param, bool)",
        "isinstance(param, int)",
        SLOTS,
    ),
    Mutation(
        "statements: a parameter may be lost",
        "database/slots.py",
        "params, strict=True)",
        "params)",
        SLOTS,
    ),
    Mutation(
        "settings: a batch does not see a change",
        "settings/__init__.py",
        "settled is not None and settled[0] == _changes",
        "settled is not None",
        "tests/project/test_settings.py::TestSettled",
    ),
    Mutation(
        "SQLite counts a lease in local time that changes in summer",
        "database/clock.py",
        "        ahead = _ahead_on_sqlite(connection, summer=self._clock.summer)\n",
        "        ahead = _ahead_on_sqlite(connection, summer=True)\n",
        "tests/faults/test_local_time.py",
    ),
    *(
        Mutation(f"{what} is one statement, however long", file, text, instead, SIZE + test)
        for what, file, text, instead, test in (
            (
                "the DELETE of old records",
                "operations/forgetting.py",
                "    for some in divided(keys):\n        delete_details",
                "    for some in [list(keys)]:\n        delete_details",
                "::TestMaintenance::test_forgotten_successes",
            ),
            (
                "the INSERT of a group's members",
                "flows/rows.py",
                "_BATCH_SIZE: Final = 120",
                "_BATCH_SIZE: Final = 1_000",
                "::TestCalls::test_group",
            ),
            (
                "the SELECT that locks lost tasks",
                "stores/orm.py",
                "for some in divided(record.pk for record in found)",
                "for some in [[record.pk for record in found]]",
                "::TestMaintenance::test_lost_tasks",
            ),
            (
                "the question of a reaper to the outbox",
                "backends/outbox.py",
                "found.update(str(pk) for some in divided(message_ids) for",
                "found.update(str(pk) for some in [message_ids] for",
                "::TestCalls::test_questions_about_many_messages",
            ),
        )
    ),
    Mutation(
        "rows that the cleanup spares are found again and again",
        "database/dividing.py",
        "if row[0] not in spared][:size]",
        "][:size]",
        SIZE + "::TestOldestFirst",
    ),
)
