"""Statements that the library compiles once, and the ORM as their fallback."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

TESTS: Final = "tests/database/test_unexpected_sql.py"
ROWS: Final = TESTS + "::TestManyRows"
ONE: Final = TESTS + "::TestOneStatement"
LOCKING: Final = TESTS + "::TestLocking"

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
        "    if _MARK in sql or any(",
        "    if False and any(",
        ONE,
    ),
    Mutation(
        "statements: slots have no values for the ORM",
        "database/statements.py",
        "        with _slots_filled(values):\n            return int(self.call())\n",
        "        return int(self.call())\n",
        ONE,
    ),
    Mutation(
        "statements: a slot's value is its mark",
        "database/statements.py",
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
)
