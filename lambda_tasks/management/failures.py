"""Errors of AWS and of the database that end a subcommand: what to print in place of their tracebacks."""

from __future__ import annotations

import re
import sys
from typing import Final

from django.db import DatabaseError, InterfaceError, OperationalError

from lambda_tasks.recording.lines import sentence

#: Matches the errors of databases about a table or a column of the library that does not exist.
_MISSING: Final = re.compile(
    r"(?=.*lambda_tasks_).*(no such (table|column)|not exist|n't exist|unknown column)", re.IGNORECASE
)


def failure(error: Exception) -> str | None:
    """Return the message and the remedy of an error of AWS or the database; None for any other error."""
    if isinstance(error, DatabaseError | InterfaceError):
        return _of_database(error)
    botocore = sys.modules.get("botocore.exceptions")  # which most subcommands do not import
    if botocore is not None and isinstance(error, botocore.BotoCoreError | botocore.ClientError):
        from lambda_tasks.operations.doctor.asking import remedy_for

        return f"{sentence(error)} {remedy_for(error, getattr(error, 'operation_name', 'for it'))}"
    return None


def _of_database(error: Exception) -> str | None:
    text = sentence(error)
    if _MISSING.match(text):
        return f"The tables of the library are missing or outdated: {text} Run `manage.py migrate`."
    if isinstance(error, OperationalError | InterfaceError):
        return f"The database has failed: {text} Make sure that it can be reached, and run the command again."
    return None
