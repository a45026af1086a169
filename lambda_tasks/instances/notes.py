"""What a process tells the one that watches over it: which invocation it is running."""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from typing import Final

#: Bytes of a note. The ids of an invocation need a tenth of them.
_SIZE: Final = 1024


@dataclass(frozen=True, slots=True)
class Invocation:
    """The ids of an invocation in the Runtime API. Only newer versions of it have the second one."""

    request_id: str
    invocation_id: str | None = None


class Note:
    """A piece of memory that a process shares with its parent, which can read it after the process was killed."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)

    def write(self, invocation: Invocation) -> None:
        """Note that an invocation has begun."""
        text = json.dumps([invocation.request_id, invocation.invocation_id]).encode()
        self._memory[:] = text.ljust(_SIZE, b"\0")[:_SIZE]

    def clear(self) -> None:
        """Note that no invocation is running."""
        self._memory[:] = bytes(_SIZE)

    def read(self) -> Invocation | None:
        """Return the invocation that the process was running, or None. A half-written note counts as none."""
        try:
            request_id, invocation_id = json.loads(bytes(self._memory).rstrip(b"\0"))
        except (ValueError, TypeError):
            return None
        return Invocation(request_id, invocation_id)
