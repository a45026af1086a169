"""Time limits, sessions and memory."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

HOLD: Final = "tests/faults/test_time_limits_hold.py"
CLEAN: Final = "tests/faults/test_container_stays_clean.py"
POSTGRES: Final = "tests/test_contrib_postgres.py"
MEMORY: Final = "tests/faults/test_memory_limit.py"

MUTATIONS: Final = (
    Mutation(
        "what a limit cost counts as an outage",
        "executor.py",
        "        if not limits.interrupted:\n",
        "        if True:\n",
        HOLD,
    ),
    Mutation(
        "broken connections stay", "executor.py", "            close_broken_connections()\n", "            pass\n", HOLD
    ),
    Mutation(
        "sessions stay after a failure",
        "handler.py",
        "                close_connections()\n",
        "                pass\n",
        CLEAN,
    ),
    Mutation(
        "the server misses no worker",
        "contrib/postgres.py",
        "set_config('client_connection_check_interval', %(check)s::int::text, true)",
        "%(check)s",
        HOLD,
    ),
    Mutation(
        "no statement_timeout",
        "contrib/postgres.py",
        "CASE WHEN longer THEN set_config('statement_timeout', %(ms)s::int::text, true) END",
        "longer",
        POSTGRES,
    ),
    Mutation(
        "an interrupted statement is not cancelled",
        "contrib/postgres.py",
        '        end_statement(context["connection"])\n        raise\n',
        "        raise\n",
        POSTGRES,
    ),
    Mutation(
        "an interrupted fetch is not cancelled",
        "contrib/postgres.py",
        "    session: Any = connection.connection\n",
        "    return\n    session: Any = connection.connection\n",
        POSTGRES,
    ),
    Mutation(
        "a shorter timeout of one's own loses",
        "contrib/postgres.py",
        "own = 0 OR own > %(ms)s::int",
        "own >= 0",
        POSTGRES,
    ),
    Mutation(
        "SET LOCAL in the caller's transaction",
        "contrib/postgres.py",
        " and not connection.savepoint_ids",
        "",
        POSTGRES,
    ),
    Mutation(
        "statement_timeout in eager mode",
        "contrib/postgres.py",
        "    if not run.limited or not _owns",
        "    if not _owns",
        POSTGRES,
    ),
    Mutation(
        "the server's end has no reason",
        "contrib/postgres.py",
        "    if sqlstate != _QUERY_CANCELED or",
        "    if True or sqlstate != _QUERY_CANCELED or",
        HOLD,
    ),
    Mutation(
        "every cancelled query is a hard timeout",
        "contrib/postgres.py",
        " or run.duration < run.hard_timeout:",
        ":",
        POSTGRES,
    ),
    Mutation(
        "memory is not limited",
        "contrib/memory.py",
        "    with _data_limited_to(limit):\n        return (yield)",
        "    return (yield)",
        MEMORY,
    ),
    Mutation(
        "the memory limit stays",
        "contrib/memory.py",
        "    finally:\n        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))",
        "    finally:\n        pass",
        MEMORY,
    ),
    Mutation(
        "the timer stays armed",
        "timeouts.py",
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n        global",
        "        global",
        CLEAN,
    ),
    Mutation(
        "the watchdog stays armed",
        "watchdog.py",
        "        faulthandler.cancel_dump_traceback_later()\n",
        "        pass\n",
        CLEAN,
    ),
    Mutation(
        "the watchdog is shared with whom it would strike too early",
        "watchdog.py",
        " and wanted <= _due <= wanted + SLACK:",
        " and _due <= wanted + SLACK:",
        "tests/test_watchdog.py",
    ),
    Mutation(
        "the watchdog is shared with whom it would strike too late",
        "watchdog.py",
        " and wanted <= _due <= wanted + SLACK:",
        " and wanted <= _due:",
        "tests/test_watchdog.py",
    ),
    Mutation(
        "the watchdog stays set after a batch",
        "watchdog.py",
        "        _shared = before\n        call_off()\n",
        "        _shared = before\n",
        "tests/test_watchdog.py",
    ),
    Mutation(
        "the watchdog stays set though it is due soon",
        "watchdog.py",
        " and _due - time.monotonic() > IDLE)",
        ")",
        "tests/test_watchdog.py",
    ),
    Mutation(
        "limits inside of a task take its watchdog away",
        "timeouts.py",
        "            self._outer_limits._set_watchdog()  # ours has taken its place\n",
        "            pass\n",
        "tests/test_watchdog.py",
    ),
    Mutation(
        "an outer alarm is not given back", "timeouts.py", "        self._outer.give_back()\n", "        pass\n", CLEAN
    ),
    Mutation(
        "an outer alarm does not go off",
        "timeouts.py",
        "            self._outer.go_off(signum, frame)\n",
        "            pass\n",
        CLEAN,
    ),
    Mutation(
        "the hard interrupt comes once",
        "timeouts.py",
        "            due = REPEAT_EVERY\n",
        "            due = 600\n",
        HOLD,
    ),
    Mutation(
        "the hard interrupt is an Exception",
        "timeouts.py",
        "class _HardInterrupt(BaseException)",
        "class _HardInterrupt(Exception)",
        HOLD,
    ),
    Mutation("no last words", "executor.py", "    last_words.start()\n    last_words.join(_LAST_WORDS)\n", "", HOLD),
    Mutation(
        "wider types retry limits", "default_plugin.py", " and not _is_unnamed_limit(error, task.retry_on)", "", CLEAN
    ),
    Mutation(
        "an alarm strikes in COMMIT",
        "timeouts.py",
        "        limits._armed = False\n        limits._owner = None\n",
        "        limits._owner = None\n",
        HOLD,
    ),
)
