"""Read the job of an outbox row, which another program or version may have written."""

from __future__ import annotations

from datetime import datetime
from math import ceil
from typing import Any, Final

from lambda_tasks import registry
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.jobs import Job
from lambda_tasks.limits.alarms import SoftTimeLimitExceeded
from lambda_tasks.models import OutboxMessage
from lambda_tasks.recording.storable import shown
from lambda_tasks.wire.attributes import FIRST_SENT_ATTRIBUTE, SCHEDULED_FOR_ATTRIBUTE
from lambda_tasks.wire.invocation import Invocation

#: Digits that seconds or milliseconds since 1970 may have.
_MAX_DIGITS: Final = 15


def job_of(message: OutboxMessage, *, now: datetime, max_delay: int, database: str) -> Job:
    """Return the job that `message` contains.

    Raises `InvalidMessage` if the row does not contain one, which another attempt does not change.
    """
    left = 0.0 if message.run_at is None else (message.run_at - now).total_seconds()
    _refuse_odd_attributes(message.attributes)
    try:
        call = Invocation.of_body(message.body)
        return Job.of_sent(
            call,
            # A row may escape characters that the queue does not need escaped, and that count towards its limit.
            call.to_body() if "\\u" in message.body else message.body,
            message.attributes,
            message_id=str(message.pk),
            queue=message.queue,
            delay=min(max(ceil(left), 0), max_delay),
            task=registry.known_task(message.task_name),
            database=database,
        )
    except (InvalidMessage, SoftTimeLimitExceeded):
        raise
    except Exception as error:
        raise InvalidMessage(f"The row does not contain a valid message ({type(error).__name__}).") from error


def _refuse_odd_attributes(attributes: Any) -> None:
    if not isinstance(attributes, dict):
        raise InvalidMessage(f"The attributes of the row must be an object, not {type(attributes).__name__}.")
    for name, value in attributes.items():
        if not isinstance(value, str):
            raise InvalidMessage(f"Attribute {shown(name)} of the row must be a string, not {type(value).__name__}.")
    for name, unit in ((FIRST_SENT_ATTRIBUTE, "milliseconds"), (SCHEDULED_FOR_ATTRIBUTE, "seconds")):
        time = attributes.get(name)
        if time is not None and not (time.isascii() and time.isdecimal() and len(time) <= _MAX_DIGITS):
            raise InvalidMessage(f"Attribute {name} of the row must be {unit}, not {shown(time)!r}.")
