"""Measure how much memory a process uses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of a process in bytes, without that of its children; None if it is unknown."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:  # on other systems than Linux
        kilobytes = subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)], stderr=subprocess.DEVNULL, timeout=5)
        return int(kilobytes) * 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
