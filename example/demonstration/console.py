"""Output of the demo."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from typing import Final


class Console:
    """Print lines with a time and a source, from any thread. Use colours only on a terminal."""

    COLOURS: Final = {"SUCCESS": 32, "RETRYING": 33, "RUNNING": 36, "FAILED": 31, "ok": 32, "WRONG": 31}

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.width = min(shutil.get_terminal_size().columns, 120) if sys.stdout.isatty() else 100
        self.spoke_at = self._began
        # Show progress immediately, in a pipe too, and never fail on a character that the terminal cannot encode.
        sys.stdout.reconfigure(line_buffering=True, errors="replace")  # type: ignore[union-attr]

    def say(self, who: str, text: str) -> None:
        with self._lock:
            self.spoke_at = time.monotonic()
            print(self._painted(self.fitted(f"{self.spoke_at - self._began:5.1f} s  {who:<10} {text}")))

    def write(self, *lines: str) -> None:
        with self._lock:
            print(*map(self._painted, lines), sep="\n")

    def fitted(self, line: str) -> str:
        return line if len(line) <= self.width else line[: self.width - 3] + "..."

    def _painted(self, line: str) -> str:
        return re.sub(rf"\b({'|'.join(self.COLOURS)})\b", self._colour, line, count=1)

    def _colour(self, word: re.Match[str]) -> str:
        return f"\033[{self.COLOURS[word[0]]}m{word[0]}\033[0m" if self._coloured else word[0]
