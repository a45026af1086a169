"""The names of the message attributes that carry an invocation's identity, and its context."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: The message attributes that carry an invocation's identity. The body keeps the documented schema,
#: so that producers and workers of different versions are compatible.
MESSAGE_ID_ATTRIBUTE: Final = "lambda_tasks.message_id"
ROOT_ID_ATTRIBUTE: Final = "lambda_tasks.root_id"
#: The name of the queue in LAMBDA_TASKS_QUEUES, so that a retry is sent to the queue of its first invocation.
QUEUE_ATTRIBUTE: Final = "lambda_tasks.queue"
#: In retries of tasks with `expires_in` or `max_age`: when the first invocation was sent, in milliseconds since 1970.
FIRST_SENT_ATTRIBUTE: Final = "lambda_tasks.first_sent"
#: In invocations by a schedule, and their retries: the scheduled time, in seconds since 1970.
SCHEDULED_FOR_ATTRIBUTE: Final = "lambda_tasks.scheduled_for"
#: In invocations that others follow: see `lambda_tasks.wire.marks`.
FLOW_ATTRIBUTE: Final = "lambda_tasks.flow"
#: In invocations with a message group: the group. SQS has it as MessageGroupId, too, but not every transport has one.
GROUP_ATTRIBUTE: Final = "lambda_tasks.group"
#: The context of the call, if the settings have one. A plugin writes it, so it is not one of OWN_ATTRIBUTES.
CONTEXT_ATTRIBUTE: Final = "lambda_tasks.context"

OWN_ATTRIBUTES: Final = frozenset(
    {
        MESSAGE_ID_ATTRIBUTE,
        ROOT_ID_ATTRIBUTE,
        QUEUE_ATTRIBUTE,
        FIRST_SENT_ATTRIBUTE,
        SCHEDULED_FOR_ATTRIBUTE,
        FLOW_ATTRIBUTE,
        GROUP_ATTRIBUTE,
    }
)


#: Matches what SQS accepts as a MessageGroupId.
_GROUP: Final = "[!-~]{1,128}"


def is_group(value: object) -> bool:
    """Return whether SQS accepts `value` as the group of a message."""
    return isinstance(value, str) and re.fullmatch(_GROUP, value) is not None


def inherited(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return those attributes of a message that its retry, and the invocations that follow it, have as well."""
    context = attributes.get(CONTEXT_ATTRIBUTE)
    return {} if context is None else {CONTEXT_ATTRIBUTE: context}
