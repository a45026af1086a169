"""The text forms of UUIDs. Reading them as `UUID` takes three times as long."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

_CANONICAL: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def is_canonical(text: str) -> bool:
    """Return whether `text` is a UUID as `str()` writes it: in lower case, with dashes."""
    return _CANONICAL.fullmatch(text) is not None


def hexadecimal(value: UUID | str) -> str:
    """Return the digits of a UUID, as Django stores it in a column of characters, or raise ValueError."""
    if isinstance(value, str) and is_canonical(value):
        return value.replace("-", "")
    return UUID(str(value)).hex
