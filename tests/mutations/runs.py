"""Mutations of errors that the task does not cause, lost sessions, and the steps after its commit."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

AFTER_COMMIT: Final = "tests/faults/test_after_commit.py"
DATABASE: Final = "tests/faults/test_database_faults.py"
SESSIONS: Final = "tests/faults/test_lost_sessions.py"
REFUSALS: Final = "tests/faults/test_refusals.py"

MUTATIONS: Final = (
    Mutation(
        "a refused record of SUCCESS fails the task",
        "execution/errors.py",
        "    elif refused_by_database(attempt, error, limits):\n",
        "    elif False:\n",
        REFUSALS + "::TestLibraryStatements",
    ),
    Mutation(
        "a demoted server fails the task",
        "execution/errors.py",
        "return is_read_only(error) or (attempt.run.takeovers",
        "return False or (attempt.run.takeovers",
        REFUSALS + "::TestReadOnly",
    ),
    Mutation(
        "a lock timeout of the task is redelivered",
        "execution/errors.py",
        "    if attempt.stage is not Stage.CALL:\n        return is_infrastructure(error)\n",
        "    if True:\n        return is_infrastructure(error)\n",
        REFUSALS + "::TestLockedTable",
    ),
    Mutation(
        "a refused check for a request to cancel keeps the claim",
        "execution/claiming.py",
        "        give_back_if_possible(attempt)\n",
        "",
        REFUSALS + "::TestLibraryStatements",
    ),
    Mutation(
        "a refused record of FAILED keeps the claim",
        "execution/settling.py",
        "if is_infrastructure(error) and _may_be_rerun(attempt, outcome, kept):",
        "if False:",
        REFUSALS + "::TestLibraryStatements",
    ),
    Mutation(
        "a sender reruns after its retry was sent",
        "execution/settling.py",
        "return not sent and not (attempt.called",
        "return not (attempt.called",
        REFUSALS + "::TestLibraryStatements",
    ),
    Mutation(
        "a refused record repeats a task that must not repeat",
        "execution/settling.py",
        'return not sent and not (attempt.called and run.task.on_crash == "fail")',
        "return not sent",
        REFUSALS + "::TestLibraryStatements",
    ),
    Mutation(
        "a claim on a demoted server does not count as an outage",
        "execution/claiming.py",
        "            raise OperationalError(*error.args) from error  # the handler",
        "            raise  # the handler",
        REFUSALS + "::TestReadOnly",
    ),
    Mutation(
        "a full disk counts as the task's failure",
        "database/infrastructure.py",
        '("53", "58")',
        '("58",)',
        REFUSALS + "::TestIsInfrastructure",
    ),
    Mutation(
        "the watchdog can end the process after the commit",
        "execution/settling.py",
        "        limits.outlived()\n",
        "        pass\n",
        AFTER_COMMIT + "::TestWatchdog",
    ),
    Mutation(
        "a task that ends its session is redelivered indefinitely",
        "execution/errors.py",
        "if cost and run.takeovers >= app_settings.max_takeovers:",
        "if False:",
        SESSIONS,
    ),
    Mutation(
        "a lost session does not count as a crash",
        "execution/errors.py",
        "give_back(attempt, crashed=cost)",
        "give_back(attempt)",
        SESSIONS,
    ),
    Mutation(
        "a terminated idle session does not count as a crash",
        "execution/errors.py",
        "return attempt.stage is Stage.RECORD and not is_infrastructure(error)",
        "return False",
        SESSIONS,
    ),
    Mutation(
        "a session lost in COMMIT counts as a crash",
        "execution/errors.py",
        "return attempt.stage is Stage.RECORD and not is_infrastructure(error)",
        "return not is_infrastructure(error)",
        SESSIONS,
    ),
    Mutation(
        "a refused record counts as a crash",
        "execution/errors.py",
        "return attempt.stage is Stage.RECORD and not is_infrastructure(error)",
        "return attempt.stage is Stage.RECORD",
        REFUSALS,
    ),
    Mutation(
        "a task that writes to a read-only server is redelivered indefinitely",
        "execution/errors.py",
        "    if attempt.stage is Stage.CALL:\n        return True\n",
        "    if attempt.stage is Stage.CALL:\n        return not is_read_only(error)\n",
        SESSIONS,
    ),
    Mutation(
        "the store does not save the number of lost sessions",
        "stores/orm.py",
        "takeovers=counted, claim=None,",
        "            claim=None,",
        SESSIONS,
    ),
    Mutation(
        "tasks are dropped if the answer to COMMIT is lost",
        "execution/errors.py",
        "    send_what_followed(attempt)\n",
        "",
        DATABASE + "::TestCommit",
    ),
    Mutation(
        "a send error after a lost answer to COMMIT changes the outcome",
        "execution/errors.py",
        "        log_failed_callback(run, error)\n        return\n",
        "        raise\n",
        DATABASE + "::TestCommit",
    ),
    Mutation(
        "dropped callbacks are not counted",
        "sending/outgoing.py",
        "    return len(following) - len(departures)\n",
        "    return 0\n",
        DATABASE + "::TestCommit",
    ),
    Mutation(
        "every commit sets the watchdog",
        "execution/settling.py",
        "    if attempt.following:\n        limits",
        "    if True:\n        limits",
        AFTER_COMMIT + "::TestWatchdog",
    ),
    Mutation(
        "a commit inside a task removes its watchdog",
        "limits/alarms.py",
        "            limits = limits._outer_limits\n",
        "            limits = None\n",
        "tests/execution/test_watchdog.py::TestInside",
    ),
    Mutation(
        "an inactive run sets the watchdog",
        "limits/alarms.py",
        "if self._active and _in_force is self:",
        "if self._active:",
        "tests/execution/test_watchdog.py::TestInside",
    ),
    Mutation(
        "a lock of the previous worker fails the task",
        "execution/errors.py",
        "(attempt.run.takeovers > 0 and is_lock_timeout(error))",
        "False",
        "tests/execution/test_executor.py::TestTakenOverLocks",
    ),
)
