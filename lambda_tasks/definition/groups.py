"""The message group of an invocation, by which a standard queue shares its workers fairly between tenants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from lambda_tasks.definition import keys
from lambda_tasks.exceptions import InvalidArguments
from lambda_tasks.recording.described import described
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.wire.attributes import is_group

if TYPE_CHECKING:
    from typing import Protocol

    from lambda_tasks.wire.invocation import Invocation

    class GroupedTask(keys.KeyedTask, Protocol):
        """A task, as far as its group depends on it."""

        group: GroupOption


#: The value of the option: the name of a parameter, or a function of the arguments. None sends without a group.
GroupOption: TypeAlias = str | Callable[..., str | int | None] | None

_CONSTRAINT: Final = "1 to 128 ASCII letters, digits and punctuation characters, without spaces"

logger = get_logger("lambda_tasks.outgoing")


def check_option(value: object) -> None:
    """Raise TypeError or ValueError for anything but a parameter's name or a function."""
    if value is None or callable(value):
        return
    if not isinstance(value, str):
        raise TypeError(
            f"group must be a parameter name or a function of the task's arguments, not {described(value)}. For one "
            'call, pass the group itself: using(group="tenant-7").'
        )
    if not value:
        raise ValueError("group must be a parameter name or a function of the task's arguments, not ''.")


def checked(value: object) -> str:
    """Return the group of a call with `using(group=…)`, or raise TypeError or ValueError if SQS would reject it."""
    if not isinstance(value, str):
        raise TypeError(f"group must be a string of {_CONSTRAINT}, not {described(value)}.")
    if not is_group(value):
        raise ValueError(f"group must be {_CONSTRAINT}, not {value!r}.")
    return value


def group_of(task: GroupedTask, message: Invocation) -> str | None:
    """Return the group that the task's option selects for a call; None if it has none.

    Raises `InvalidArguments` if SQS would reject it, and whatever the option's function raises.
    """
    if task.group is None:
        return None
    value = _value(task, message.kwargs)
    if value is None:
        return None
    group = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not is_group(group):
        raise InvalidArguments(
            f"The group of {task.name} must be an integer or a string of {_CONSTRAINT}, not {described(value)}. Set "
            "group to a function that returns such a string, for example a primary key or a digest, or None to send "
            "without a group."
        )
    return group


def group_if_valid(task: GroupedTask | None, message: Invocation) -> str | None:
    """Return the group of an invocation that no caller sends, such as a scheduled one. A wrong group is left out.

    A group only affects when an invocation runs, and no caller could correct this one.
    """
    if task is None or task.group is None:
        return None
    from lambda_tasks.limits.alarms import SoftTimeLimitExceeded  # few processes send such an invocation

    try:
        return group_of(task, message)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        reason = error if isinstance(error, InvalidArguments) else f"its option group raised {type(error).__name__}."
        logger.warning("%s is sent without a message group: %s", task.name, reason)
        return None


def _value(task: GroupedTask, kwargs: Mapping[str, Any]) -> object:
    if callable(task.group):
        return keys.call(task, task.group, task.signature.decode(kwargs))
    assert task.group is not None
    return kwargs[task.group] if task.group in kwargs else task.signature.encoded_default(task.group)
