"""Compute how long a message stays invisible before its next delivery, from the number of its receives.

Each delivery uses up one of the receives that the queue's `maxReceiveCount` allows, so the pauses grow. All pauses
have jitter, which only lengthens them, so `survived_outage()` is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from lambda_tasks.foundation.forks import random

#: A function that returns the length of a pause, in seconds, for a number of receives.
Pause: TypeAlias = Callable[[int], float]

#: Seconds of the first pause after an infrastructure failure, and the factor from one pause to the next. Each pause is
#: nine times as long as the outage so far, so that a few receives last for hours.
OUTAGE_PAUSE: Final = 20.0
OUTAGE_FACTOR: Final = 10.0
#: The longest such pause without jitter. SQS keeps a message invisible for at most 43,200 s after it was received, and
#: refuses a longer pause. With jitter, this pause is two hours shorter, which leaves time for the invocation itself.
MAX_OUTAGE_PAUSE: Final = 28_800.0
#: Seconds of the first pause of a message that a newer worker may understand, and the longest such pause.
FOREIGN_PAUSE: Final = 60.0
FOREIGN_FACTOR: Final = 4.0
MAX_FOREIGN_PAUSE: Final = 3600.0
#: Seconds of the first pause of a message that was handed back because too little time was left, and the longest such
#: pause.
HANDED_BACK_PAUSE: Final = 5.0
HANDED_BACK_FACTOR: Final = 2.0
MAX_HANDED_BACK_PAUSE: Final = 320.0
#: The maximum jitter, as a fraction of the pause.
JITTER: Final = 0.25
#: The number of receives after which pauses stop growing. It keeps the powers small, however often SQS delivers.
_MOST_RECEIVES: Final = 20


def outage_pause(receives: int) -> float:
    """Return the pause after an infrastructure failure: a database, SQS, settings, a missing table."""
    return _with_jitter(least_outage_pause(receives))


def least_outage_pause(receives: int) -> float:
    """Return `outage_pause(receives)` without jitter."""
    return _growing(OUTAGE_PAUSE, OUTAGE_FACTOR, MAX_OUTAGE_PAUSE, receives)


def survived_outage(max_receive_count: int) -> float:
    """Return how many seconds an outage may last before messages reach the dead letter queue.

    This is the sum of the pauses between the receives. The last receive has to succeed, since no pause follows it.
    """
    receives = range(1, max_receive_count)
    return sum(map(least_outage_pause, receives))


def in_words(seconds: float) -> str:
    """Return a duration in whole units, rounded down: "6 h 10 min", "20 s"."""
    minutes, left = divmod(int(seconds), 60)
    if not minutes:
        return f"{left} s"
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h"] * bool(hours) + [f"{minutes} min"] * bool(minutes)
    return " ".join(parts)


def foreign_pause(receives: int) -> float:
    """Return the pause of a message that this worker does not understand, but a newer worker may."""
    return _with_jitter(_growing(FOREIGN_PAUSE, FOREIGN_FACTOR, MAX_FOREIGN_PAUSE, receives))


def handed_back_pause(receives: int) -> float:
    """Return the pause of a message that was handed back because too little time was left to run it."""
    return _with_jitter(_growing(HANDED_BACK_PAUSE, HANDED_BACK_FACTOR, MAX_HANDED_BACK_PAUSE, receives))


def _growing(first: float, factor: float, most: float, receives: int) -> float:
    power: float = factor ** min(max(receives - 1, 0), _MOST_RECEIVES)
    return min(first * power, most)


def _with_jitter(seconds: float) -> float:
    return seconds * random.uniform(1, 1 + JITTER)
