"""Compute for how long a queue should hide a message that was received, and when the message counts as gone."""

from __future__ import annotations

from typing import Final

from lambda_tasks.settings import MAX_VISIBILITY_TIMEOUT, app_settings

#: The ratio of visibility timeout to function timeout that AWS recommends.
VISIBILITY_FACTOR: Final = 6
#: The longest batching window of an event source mapping, in seconds.
MAX_BATCHING_WINDOW: Final = 300


def advised_visibility(function_timeout: int, batching_window: int) -> int:
    """Return the visibility timeout, in seconds, of a queue for a function with these seconds."""
    return min(VISIBILITY_FACTOR * function_timeout + batching_window, MAX_VISIBILITY_TIMEOUT)


def lost_after() -> int:
    """Return the seconds between the end of its lease and the time at which an invocation counts as lost.

    This is the longest visibility timeout that a queue should have: until then, SQS redelivers the message. It follows
    LAMBDA_TASKS_MAX_TIMEOUT, whatever the limits of the tasks, since messages wait as their queue says.
    """
    return advised_visibility(app_settings.max_timeout, MAX_BATCHING_WINDOW)
