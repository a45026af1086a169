"""Mutations of time limits, sessions and memory."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

HOLD: Final = "tests/faults/test_time_limits_hold.py"
CLEAN: Final = "tests/faults/test_container_stays_clean.py"
POSTGRES: Final = "tests/project/test_contrib_postgres.py"
MEMORY: Final = "tests/faults/test_memory_limit.py"

LONG_LIMITS: Final = "tests/definition/test_long_timeouts.py"
LONG_TASKS: Final = "tests/faults/test_long_tasks.py"

MUTATIONS: Final = (
    Mutation(
        "a limit may be longer than the setting allows",
        "settings/__init__.py",
        "whole_number(1, longest, unit=",
        "whole_number(1, MAX_INSTANCES_TIMEOUT, unit=",
        LONG_LIMITS,
    ),
    Mutation(
        "usual limits read the setting",
        "settings/__init__.py",
        "    if type(value) is int and 1 <= value <= MAX_TIMEOUT:\n",
        "    if False:\n",
        LONG_LIMITS,
    ),
    Mutation(
        "records of long tasks are lost before their messages come back",
        "wire/visibility.py",
        "return advised_visibility(app_settings.max_timeout, MAX_BATCHING_WINDOW)",
        "return 3_600",
        LONG_TASKS,
    ),
    Mutation(
        "the age of a lost record leaves the batching window out",
        "wire/visibility.py",
        "advised_visibility(app_settings.max_timeout, MAX_BATCHING_WINDOW)",
        "advised_visibility(app_settings.max_timeout, 0)",
        "tests/wire/test_visibility.py",
    ),
    Mutation(
        "a queue is to hide messages for longer than SQS does",
        "wire/visibility.py",
        "min(VISIBILITY_FACTOR * function_timeout + batching_window, MAX_VISIBILITY_TIMEOUT)",
        "VISIBILITY_FACTOR * function_timeout + batching_window",
        "tests/wire/test_visibility.py",
    ),
    Mutation(
        "a connection lost to a time limit counts as an outage",
        "execution/errors.py",
        "        if not limits.interrupted:\n",
        "        if True:\n",
        HOLD,
    ),
    Mutation(
        "broken connections stay open after a time limit",
        "execution/pipeline.py",
        "            close_broken_connections()\n",
        "            pass\n",
        HOLD,
    ),
    Mutation(
        "database sessions stay open after a failure",
        "handler.py",
        "                close_connections()\n",
        "                pass\n",
        CLEAN,
    ),
    Mutation(
        "the server does not check for a dead worker",
        "contrib/postgres.py",
        "set_config('client_connection_check_interval', %(check)s::int::text, true)",
        "%(check)s",
        HOLD,
    ),
    Mutation(
        "statement_timeout is not set",
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
        "a shorter statement_timeout is overwritten",
        "contrib/postgres.py",
        "own = 0 OR own > %(ms)s::int",
        "own >= 0",
        POSTGRES,
    ),
    Mutation(
        "statement_timeout is set in the caller's transaction",
        "contrib/postgres.py",
        " and not in_inner_block(connection)",
        "",
        POSTGRES,
    ),
    Mutation(
        "statement_timeout is set in eager mode",
        "contrib/postgres.py",
        "    if not run.limited or not _owns",
        "    if not _owns",
        POSTGRES,
    ),
    Mutation(
        "a statement_timeout is not reported as a hard timeout",
        "contrib/postgres.py",
        "    if sqlstate != _QUERY_CANCELED or",
        "    if True or sqlstate != _QUERY_CANCELED or",
        HOLD,
    ),
    Mutation(
        "every cancelled query is reported as a hard timeout",
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
        "the memory limit stays set after the task",
        "contrib/memory.py",
        "    finally:\n        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))",
        "    finally:\n        pass",
        MEMORY,
    ),
    Mutation(
        "the alarm timer stays armed between tasks",
        "limits/alarms.py",
        "        signal.setitimer(signal.ITIMER_REAL, 0)\n        global",
        "        global",
        CLEAN,
    ),
    Mutation(
        "the watchdog stays armed between tasks",
        "limits/watchdog.py",
        "        faulthandler.cancel_dump_traceback_later()\n",
        "        pass\n",
        CLEAN,
    ),
    Mutation(
        "a task shares a watchdog that is due too early",
        "limits/watchdog.py",
        " and wanted <= _due <= wanted + SLACK:",
        " and _due <= wanted + SLACK:",
        "tests/execution/test_watchdog.py",
    ),
    Mutation(
        "a task shares a watchdog that is due too late",
        "limits/watchdog.py",
        " and wanted <= _due <= wanted + SLACK:",
        " and wanted <= _due:",
        "tests/execution/test_watchdog.py",
    ),
    Mutation(
        "the watchdog stays set after a batch",
        "limits/watchdog.py",
        "        _shared = before\n        call_off()\n",
        "        _shared = before\n",
        "tests/execution/test_watchdog.py",
    ),
    Mutation(
        "the watchdog stays set between tasks although it is due soon",
        "limits/watchdog.py",
        " and _due - time.monotonic() > IDLE)",
        ")",
        "tests/execution/test_watchdog.py",
    ),
    Mutation(
        "time limits inside a task remove its watchdog",
        "limits/alarms.py",
        "            self._outer_limits._set_watchdog()  # this object's watchdog had replaced it\n",
        "            pass\n",
        "tests/execution/test_watchdog.py",
    ),
    Mutation(
        "an outer alarm is not restored",
        "limits/alarms.py",
        "        self._outer.restore()\n",
        "        pass\n",
        CLEAN,
    ),
    Mutation(
        "an outer alarm does not fire",
        "limits/alarms.py",
        "            self._outer.go_off(signum, frame)\n",
        "            pass\n",
        CLEAN,
    ),
    Mutation(
        "the hard interrupt is not repeated",
        "limits/alarms.py",
        "            due = REPEAT_EVERY\n",
        "            due = 600\n",
        HOLD,
    ),
    Mutation(
        "the hard interrupt derives from Exception",
        "limits/alarms.py",
        "class _HardInterrupt(BaseException)",
        "class _HardInterrupt(Exception)",
        HOLD,
    ),
    Mutation(
        "a process ends without recording the failure",
        "execution/pipeline.py",
        "    last_words.start()\n    last_words.join(_LAST_WORDS)\n",
        "",
        HOLD,
    ),
    Mutation(
        "base classes in retry_on retry time limits",
        "execution/default_plugin.py",
        " and not _is_unnamed_limit(error, retried)",
        "",
        CLEAN,
    ),
    Mutation(
        "an alarm can fire during COMMIT",
        "limits/alarms.py",
        "        limits._armed = False\n        limits._owner = None\n",
        "        limits._owner = None\n",
        HOLD,
    ),
)
