"""Mutations of failing callbacks and requests of other code, and of open transactions."""

from __future__ import annotations

from typing import Final

from tests.mutations import Mutation

OUTGOING: Final = "tests/sending/test_outgoing.py"

MUTATIONS: Final = (
    Mutation(
        "a failing foreign callback drops tasks",
        "sending/outgoing.py",
        "    rescue_callbacks(connection, _send_dropped)\n",
        "",
        OUTGOING,
    ),
    Mutation(
        "SystemExit in a callback drops tasks",
        "database/commits.py",
        "        except BaseException as error:\n            if pending",
        "        except Exception as error:\n            if pending",
        OUTGOING,
    ),
    Mutation(
        "tasks are rescued without a warning",
        "sending/outgoing.py",
        "    if not jobs:\n        return\n    logger.warning(",
        "    if not jobs:\n        return\n    logger.debug(",
        OUTGOING,
    ),
    Mutation(
        "the error of a rescued task hides the callback's error",
        "sending/outgoing.py",
        "        try:\n            departure()\n        except Exception:\n",
        "        try:\n            departure()\n        except ZeroDivisionError:\n",
        OUTGOING,
    ),
    Mutation(
        "an ambiguous open transaction is guessed",
        "database/commits.py",
        "    if len(opened) > 1:\n",
        "    if False:\n",
        "tests/backends/test_outbox.py",
    ),
    Mutation(
        "a default database without settings is used",
        "database/commits.py",
        "    if not _is_empty(DEFAULT_DB_ALIAS):\n",
        "    if True:\n",
        "tests/sending/test_commits.py",
    ),
    Mutation(
        "an error around one request stops the other requests",
        "backends/sqs.py",
        "        except Exception as error:  # from code around requests",
        "        except ZeroDivisionError as error:  # of what wraps requests",
        "tests/backends/test_sqs.py",
    ),
)
