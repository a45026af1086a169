"""Decode the arguments of a message, which may come from a newer version of the task."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.logging import run_logger
from lambda_tasks.recording.storable import shown
from lambda_tasks.settings import app_settings

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task

#: The number of unknown arguments that the warning names.
_NAMED: Final = 5


def arguments_of(task: Task, kwargs: Mapping[str, Any], *, warn: bool = False) -> dict[str, Any]:
    """Return the arguments for the function, or raise `InvalidMessage` if they do not match its annotations.

    With LAMBDA_TASKS_UNKNOWN_ARGUMENTS = "drop", arguments that the function lacks are dropped, with a warning. The
    message and its record keep them, so a retry still has them.
    """
    unknown = task.signature.unknown(kwargs)
    if not unknown or app_settings.unknown_arguments != "drop":
        return task.signature.decode(kwargs)
    if warn:
        names = ", ".join(map(shown, islice(sorted(unknown), _NAMED)))
        run_logger.warning(
            "%s has no parameter for %s, and runs without: the message probably comes from a newer version of the "
            "task. (%d arguments were dropped, see LAMBDA_TASKS_UNKNOWN_ARGUMENTS.)",
            task.name,
            names,
            len(unknown),
        )
    return task.signature.decode({name: value for name, value in kwargs.items() if name not in unknown})
