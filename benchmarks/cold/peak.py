"""Measure the peak memory of a process, and report the cost of a program."""

import json
import re
import sys
from pathlib import Path


def peak_memory(process: object = "self") -> int:
    """Return the peak memory of a process in KiB.

    This is not `ru_maxrss`, which on Linux a new program inherits from its parent.
    """
    found = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def say(wall: float, cpu: float) -> None:
    modules = len(sys.modules)
    print(json.dumps({"wall": wall, "cpu": cpu, "peak_memory": peak_memory(), "modules": modules}))
