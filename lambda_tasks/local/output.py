"""Read what a process prints and logs, and keep the records of its log apart.

Lambda's runtime client writes each record as a frame to a descriptor of its own if `_LAMBDA_TELEMETRY_LOG_FD` names
one, as on Lambda. On its standard output, a traceback would not end its line, and would run into the next record.
"""

from __future__ import annotations

import os
import re
import selectors
import struct
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: The type of a frame, the length of its text in bytes, and its time.
_HEADER: Final = struct.Struct(">IIQ")
#: The first half of every type of frame.
_MAGIC: Final = 0xA55A
#: Matches the end of a line. A carriage return at the end may be the first half of one.
_END_OF_LINE: Final = re.compile(rb"\r\n|\n|\r(?!\Z)")
_CHUNK: Final = 65_536


class _Parser(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def rest(self) -> bytes: ...


class Lines:
    """Splits the standard output into lines."""

    def __init__(self) -> None:
        self._unfinished = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that `data` completes."""
        *lines, self._unfinished = _END_OF_LINE.split(self._unfinished + data)
        yield from lines

    def rest(self) -> bytes:
        """Return the last line, which has no end."""
        return self._unfinished


class Frames:
    """Splits frames into their records, each of which may have several lines."""

    def __init__(self) -> None:
        self._unfinished = b""
        #: Replaces this parser after data that is not a frame, such as of two processes that write at the same time.
        self._lines: Lines | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the records that `data` completes."""
        self._unfinished += data
        while self._lines is None and len(self._unfinished) >= _HEADER.size:
            kind, length, _ = _HEADER.unpack_from(self._unfinished)
            if kind >> 16 != _MAGIC:
                self._lines = Lines()
                break
            end = _HEADER.size + length
            if len(self._unfinished) < end:
                return
            text, self._unfinished = self._unfinished[_HEADER.size : end], self._unfinished[end:]
            yield text
        if self._lines is not None:
            data, self._unfinished = self._unfinished, b""
            yield from self._lines.feed(data)

    def rest(self) -> bytes:
        """Return the data after the last record: a frame that was not finished."""
        if self._lines is not None:
            return self._lines.rest()
        return self._unfinished[_HEADER.size :]


def read_output(stdout: int, frames: int, on_output: Callable[[str], None]) -> None:
    """Call `on_output` with each line and each record, until all writers have closed both descriptors."""
    parsers: dict[int, _Parser] = {stdout: Lines(), frames: Frames()}
    with selectors.DefaultSelector() as selector:
        for descriptor in parsers:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                parser = parsers[key.fd]
                if data := os.read(key.fd, _CHUNK):
                    for text in parser.feed(data):
                        on_output(_readable(text))
                    continue
                selector.unregister(key.fd)
                if rest := parser.rest():
                    on_output(_readable(rest))


def _readable(text: bytes) -> str:
    # For CloudWatch, the client indents the lines of a traceback with no-break spaces.
    return text.decode("utf-8", "replace").rstrip("\r\n").replace("\N{NO-BREAK SPACE}", " ")
