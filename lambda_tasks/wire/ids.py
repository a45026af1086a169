"""Message ids. The producer creates them, the ids of retries are derived, and they are the primary keys of records."""

from __future__ import annotations

import os
import threading
import time
import uuid

from lambda_tasks.recording.uuids import is_canonical

# The namespace of derived ids: those of retries, and those that replace foreign ids that are not UUIDs.
_NAMESPACE = uuid.UUID("b0cfa6c4-8a54-5d6e-9b1f-5b6a1f6c2d10")
# The namespace of invocations by a schedule. Foreign ids are strings of others, and must not lead to the same ids.
_TICKS = uuid.UUID("0f3c1f0e-2a57-5c5b-8d0a-6f0f6c1b7e52")
# The namespace of invocations that follow others.
_FOLLOW_UPS = uuid.UUID("6a9f7c5e-3f0b-5b52-9d57-2f8b1c0e4d6a")

_last_moment = 0
_last_lock = threading.Lock()


def _renew_lock() -> None:
    """Free the lock in a forked process.

    A plain lock is enough: every id takes it, and the code that holds it never forks.
    """
    global _last_lock
    _last_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def new_message_id() -> str:
    """Return a new UUIDv7 (RFC 9562, section 5.7) in its usual text form.

    The first 60 bits of the payload are a time in steps of 244 ns. Within this process, it never repeats and never
    decreases (method 3 of section 6.2), so primary keys increase in the order of the calls. The other 62 bits are
    random bits from the operating system, so a fork or a restored snapshot does not repeat them.
    """
    global _last_moment
    moment = (time.time_ns() << 12) // 1_000_000  # milliseconds with twelve bits of fraction
    with _last_lock:
        _last_moment = moment = max(moment, _last_moment + 1)
    milliseconds, fraction = moment >> 12, moment & 0xFFF
    chance = int.from_bytes(os.urandom(8), "big") & (2**62 - 1)
    digits = f"{milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | chance:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def retry_id(root_id: str, n_retries: int) -> str:
    """Return the id of the `n_retries`-th retry of `root_id`. The same arguments always give the same id.

    If a worker dies before it records that it has sent a retry, the retry is sent twice. Both messages then have the
    same id, and count as one invocation.
    """
    return str(uuid.uuid5(uuid.UUID(root_id), f"retry {n_retries}"))


def tick_id(task_name: str, schedule: str, moment: int) -> str:
    """Return the id of the invocation that a schedule of a task sends for a time, in seconds since 1970.

    Any number of processes may send it, and send it again. All messages have the same id, and count as one invocation.
    """
    return str(uuid.uuid5(_TICKS, f"{task_name} {moment} {schedule}"))


def follow_up_id(ended_id: str, place: str) -> str:
    """Return the id of the invocation that follows the end of a task, a chain or a group with the id `ended_id`.

    `place` is the reason why it follows, and its place among others, as in "on_success 0". Whatever repeats the end
    sends the same invocation again.
    """
    return str(uuid.uuid5(_FOLLOW_UPS, f"{ended_id} {place}"))


def predecessor_id(root_id: str, n_retries: int) -> str | None:
    """Return the id of the invocation that sent this retry of a chain; None if it is the first."""
    if n_retries < 1:
        return None
    return root_id if n_retries == 1 else retry_id(root_id, n_retries - 1)


def made_at(message_id: str) -> float | None:
    """Return when `message_id` was created, in seconds since 1970; None for an id that is not a UUIDv7."""
    return int(message_id[:8] + message_id[9:13], 16) / 1000 if tells_time(message_id) else None


def tells_time(message_id: str) -> bool:
    """Return whether an id in its usual form is a UUIDv7, which contains the time of its creation."""
    version, variant = message_id[14:15], message_id[19:20]
    return version == "7" and variant in {"8", "9", "a", "b"}


def canonical_id(raw: str) -> str:
    """Return `raw` in the form that records and logs use.

    A UUID is returned in lower case with dashes. Any other string, such as the `messageId` of some SQS emulators, is
    converted to a UUIDv5. The same string always gives the same UUID.
    """
    if is_canonical(raw):
        return raw
    try:
        return str(uuid.UUID(raw))
    except ValueError:
        # Every string must have an id, even one that contains a lone surrogate.
        encodable = raw.encode("utf-8", "backslashreplace").decode("utf-8")
        return str(uuid.uuid5(_NAMESPACE, encodable))
