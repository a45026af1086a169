"""Mutations of sessions that must end, and transactions that end too early."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

POOLS: Final = "tests/faults/test_pools.py"
MANUAL: Final = "tests/faults/test_manual_commits.py"
ENDED: Final = "tests/faults/test_ended_transactions.py"
STRANGERS: Final = "tests/faults/test_other_threads.py"

MUTATIONS: Final = (
    Mutation(
        "an ended session returns to the pool",
        "database/errors.py",
        "            pgconn.finish()",
        "            pass",
        POOLS,
    ),
    Mutation(
        "a rerun gets the next dead connection of a pool",
        "database/errors.py",
        "            drain_pool(connection)\n        return action()",
        "        return action()",
        POOLS,
    ),
    Mutation(
        "an exhausted pool is waited for twice",
        "database/errors.py",
        "maybe_old and not _pool_is_empty(error)",
        "maybe_old",
        POOLS,
    ),
    Mutation(
        "maintenance uses dead connections of a pool",
        "handler.py",
        "            drain_pool(connection)\n    done",
        "            pass\n    done",
        POOLS,
    ),
    Mutation(
        "tasks are claimed without autocommit",
        "execution/pipeline.py",
        "    refuse_manual_commits(connection)\n",
        "",
        MANUAL,
    ),
    Mutation(
        "maintenance runs without autocommit",
        "handler.py",
        "    refuse_manual_commits(connections[get_store().database])\n",
        "",
        MANUAL,
    ),
    Mutation(
        "a statement that ends the transaction is executed",
        "database/guards.py",
        "        if words is not None:\n            self._refuse(words)",
        "        if False:\n            self._refuse(words)",
        ENDED + "::TestRefused",
    ),
    Mutation(
        "queries of a psycopg cursor are not checked",
        "database/guards.py",
        "            guard.before_psycopg(query)\n",
        "            pass\n",
        ENDED + "::TestRefused",
    ),
    Mutation(
        "statements with their own settings are not checked",
        "database/guards.py",
        '"mysql": rf"{_BEFORE}{_SETTINGS}({_IMPLICIT})',
        '"mysql": rf"{_BEFORE}({_IMPLICIT})',
        ENDED + "::TestRefused::test_implicit_commit_is_refused",
    ),
    Mutation(
        "procedures with their own settings are not checked",
        "database/guards.py",
        "{_BEFORE}{_SETTINGS}(?:CALL",
        "{_BEFORE}(?:CALL",
        ENDED + "::TestNoticed::test_procedure_with_its_own_settings_is_noticed",
    ),
    Mutation(
        "only the first setting of a SET statement is checked",
        "database/guards.py",
        'SET\\b{_AUTOCOMMIT}"',
        'SET\\s+AUTOCOMMIT"',
        ENDED + "::TestRefused::test_implicit_commit_is_refused",
    ),
    Mutation(
        "commit() of the driver is not refused",
        "database/guards.py",
        "        if self._used:\n            self._refuse(words)",
        "        if False:\n            self._refuse(words)",
        ENDED + "::TestRefused::test_method_of_the_driver_is_refused",
    ),
    Mutation(
        "scripts are not checked",
        "database/guards.py",
        "    return _ending_in_script(text, vendor)",
        "    return None",
        ENDED + "::TestRefused::test_script_is_refused",
    ),
    Mutation(
        "a task that swallows a deadlock succeeds",
        "database/guards.py",
        "            self._error = self._error or error",
        "            pass",
        ENDED + "::TestDeadlocks",
    ),
    Mutation(
        "a procedure that commits is not detected",
        "database/guards.py",
        "            if opaque and not self._in_transaction():",
        "            if False:",
        ENDED + "::TestNoticed::test_procedure_that_commits_fails_the_task",
    ),
    Mutation(
        "a task with an ended transaction succeeds",
        "database/guards.py",
        "        if self._has_ended():\n            raise self._broken()\n",
        "",
        ENDED + "::TestNoticed",
    ),
    Mutation(
        "a later error hides the end of the transaction",
        "database/guards.py",
        "and self._has_ended():\n            raise self._broken() from error",
        "and False:\n            raise self._broken() from error",
        ENDED + "::TestNoticed",
    ),
    Mutation(
        "a task with partly committed work is rerun",
        "execution/errors.py",
        "error.work_may_stand:",
        "False:",
        ENDED + "::TestNoticed",
    ),
    Mutation(
        "a transaction block of psycopg commits",
        "database/guards.py",
        "        if not self._in_transaction():\n            self._driver.execute",
        "        if False:\n            self._driver.execute",
        ENDED + "::TestNotRefused::test_block_of_psycopg_is_a_savepoint",
    ),
    Mutation(
        "the guard stays on the connection after the task",
        "database/guards.py",
        "            self._put_back()\n",
        "            pass\n",
        ENDED + "::TestNotRefused::test_driver_is_restored",
    ),
    Mutation(
        "a server that can lose commits is not reported",
        "operations/database_settings.py",
        "            if value in forgetful:",
        "            if False:",
        "tests/operations/test_checks.py",
    ),
    Mutation(
        "the doctor does not report a server that can lose commits",
        "operations/doctor/databases.py",
        "    _look_at_durability(doctor, alias)\n",
        "",
        "tests/operations/test_doctor.py",
    ),
    Mutation(
        "workers do not watch for new connections",
        "handler.py",
        "        start_watching()\n",
        "",
        STRANGERS,
    ),
    Mutation(
        "connections of the main thread are reported",
        "execution/strangers.py",
        "    if watch is not None and threading.current_thread() is not threading.main_thread():",
        "    if watch is not None:",
        STRANGERS,
    ),
    Mutation(
        "every connection of a thread is reported",
        "execution/strangers.py",
        "        self._warned = True\n",
        "",
        STRANGERS,
    ),
    Mutation(
        "runs are watched after their end",
        "execution/strangers.py",
        "            _current = self._outer\n",
        "            pass\n",
        STRANGERS,
    ),
)
