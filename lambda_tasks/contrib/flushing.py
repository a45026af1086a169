"""How long a plugin may send its data at the end of a batch, before Lambda freezes the process."""

from __future__ import annotations

import time
from typing import Final

#: Seconds of an invocation that are left for its response.
RESERVE: Final = 1.0
#: The most seconds that a batch waits for one plugin. A server that does not answer must not double the cost of Lambda.
MOST_SECONDS: Final = 3.0


def seconds_to_flush(deadline: float | None) -> float:
    """Return how many seconds a flush may take that starts now; 0 if no time is left.

    `deadline` is the time, by `time.monotonic()`, at which Lambda ends the invocation, or None if that is unknown.
    """
    if deadline is None:
        return MOST_SECONDS
    return min(max(deadline - time.monotonic() - RESERVE, 0.0), MOST_SECONDS)
