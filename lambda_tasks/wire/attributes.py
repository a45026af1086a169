"""The names of the message attributes that carry an invocation's identity, and its context."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

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

#: Other attributes of these, as a JSON object, in messages that would have more attributes than their queue accepts.
MORE_ATTRIBUTE: Final = "lambda_tasks.more"

OWN_ATTRIBUTES: Final = frozenset(
    {
        MESSAGE_ID_ATTRIBUTE,
        ROOT_ID_ATTRIBUTE,
        QUEUE_ATTRIBUTE,
        FIRST_SENT_ATTRIBUTE,
        SCHEDULED_FOR_ATTRIBUTE,
        FLOW_ATTRIBUTE,
        GROUP_ATTRIBUTE,
        MORE_ATTRIBUTE,
    }
)
#: What may be in MORE_ATTRIBUTE. The ids and the queue never are, since other programs read them.
_PACKED: Final = (FIRST_SENT_ATTRIBUTE, SCHEDULED_FOR_ATTRIBUTE, FLOW_ATTRIBUTE, GROUP_ATTRIBUTE, CONTEXT_ATTRIBUTE)


#: Matches what SQS accepts as a MessageGroupId.
_GROUP: Final = "[!-~]{1,128}"


def is_group(value: object) -> bool:
    """Return whether SQS accepts `value` as the group of a message."""
    return isinstance(value, str) and re.fullmatch(_GROUP, value) is not None


def packed(attributes: Mapping[str, str], most: int) -> Mapping[str, str]:
    """Return the attributes of a message for a queue that accepts `most`.

    If there are more, those of the library, except its ids and the queue, are packed into one. Others are not:
    instrumentations and filters of the queue look for them by their names.
    """
    if len(attributes) <= most:
        return attributes
    more = {name: attributes[name] for name in _PACKED if name in attributes}
    if len(more) < 2:
        return attributes
    left = {name: value for name, value in attributes.items() if name not in more}
    return {**left, MORE_ATTRIBUTE: json.dumps(more, separators=(",", ":"))}


def unpacked(attributes: dict[str, str]) -> dict[str, str]:
    """Return the attributes of a message with those that are packed. The message's own ones have precedence.

    If MORE_ATTRIBUTE is not an object of strings, it stays.
    """
    if (text := attributes.get(MORE_ATTRIBUTE)) is None:
        return attributes
    try:
        more: Any = json.loads(text)
    except (ValueError, RecursionError):
        more = None
    if not isinstance(more, dict) or not all(isinstance(value, str) for value in more.values()):
        return attributes
    own = {name: value for name, value in attributes.items() if name != MORE_ATTRIBUTE}
    return {**{name: value for name, value in more.items() if value and name != MORE_ATTRIBUTE}, **own}


def inherited(attributes: Mapping[str, str]) -> dict[str, str]:
    """Return those attributes of a message that its retry, and the invocations that follow it, have as well."""
    context = attributes.get(CONTEXT_ATTRIBUTE)
    return {} if context is None else {CONTEXT_ATTRIBUTE: context}
