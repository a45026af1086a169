"""Message ids: made by the producer, derived for retries, the primary key of a record."""

from __future__ import annotations

import os
import threading
import time
import uuid

# The namespace of the ids that are derived: of retries, and of foreign ids that are no UUIDs.
_NAMESPACE = uuid.UUID("b0cfa6c4-8a54-5d6e-9b1f-5b6a1f6c2d10")

_last_moment = 0
_last_lock = threading.Lock()


def new_message_id() -> str:
    """Return a new UUIDv7 (RFC 9562, section 5.7) in its usual text form.

    The first 60 bits of payload are a time in steps of 244 ns that never repeats and never goes back
    within this process (method 3 of section 6.2), so primary keys grow in the order of the calls.
    The other 62 bits come from the operating system: a fork or a restored snapshot repeats none.
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
    """Return the id of the `n_retries`-th retry of `root_id`: always the same one.

    A retry that is sent twice, by a worker that died before it could record the first send, is
    therefore recognised as one invocation.
    """
    return str(uuid.uuid5(uuid.UUID(root_id), f"retry {n_retries}"))


def predecessor_id(root_id: str, n_retries: int) -> str | None:
    """Return the id of the invocation that sent this retry of a chain; None if it is the first."""
    if n_retries < 1:
        return None
    return root_id if n_retries == 1 else retry_id(root_id, n_retries - 1)


def made_at(message_id: str) -> float | None:
    """Return when `message_id` was made, in seconds since 1970; None for an id that is no UUIDv7."""
    parsed = uuid.UUID(message_id)
    return (parsed.int >> 80) / 1000 if parsed.version == 7 else None


def canonical_id(raw: str) -> str:
    """Return `raw` in the one form that records and logs use.

    A UUID comes back in lower case with dashes. Any other text, as some emulators of SQS use for
    their `messageId`, is turned into the UUIDv5 that always stands for it.
    """
    try:
        return str(uuid.UUID(raw))
    except ValueError:
        # No text is without an id, not even one with half of a character in it.
        encodable = raw.encode("utf-8", "backslashreplace").decode("utf-8")
        return str(uuid.uuid5(_NAMESPACE, encodable))
