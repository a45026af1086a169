"""A plugin that fails a task with `MemoryError` before Lambda kills the process for its memory.

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.memory"]

Lambda ends a process that takes more than the function's memory without a word, and the rest of the
batch with it; the task comes back as a crash, and may crash the next worker. With the plugin, what a
task allocates beyond `SHARE` of `AWS_LAMBDA_FUNCTION_MEMORY_SIZE` raises `MemoryError` in the task.

It limits `RLIMIT_DATA`, the memory that belongs to the process alone, and not `RLIMIT_AS`: addresses
that are only reserved, and files that are mapped, take no memory. The limit holds while the task's
function runs, so that there is memory left to record its end. Where the variable is not set, or
outside of Linux, nothing is limited. Other processes that the task starts have the limit each for itself.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run

logger = logging.getLogger("lambda_tasks.contrib.memory")

#: Where Lambda says how many MiB the function has.
MEMORY_SIZE: Final = "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"
#: How much of it a task may take; the rest is for recording its end, for mapped files and for extensions.
SHARE: Final = 0.9

_MIB: Final = 1024 * 1024


@hookimpl
def lambda_task_boot() -> None:
    """Say at the start, and not with the first task, that the limit leaves no room."""
    limit, used = memory_limit(), _data_in_use()
    if limit is not None and used is not None and used >= limit:
        logger.warning(
            "The process takes %d MiB before its first task, and tasks may take %d MiB: no memory limit is kept. "
            "Give the function more memory.",
            used // _MIB,
            limit // _MIB,
        )


@hookimpl(wrapper=True)
def lambda_task_call(run: Run) -> Generator[None, object, object]:
    limit = memory_limit()
    if limit is None or not run.limited or (_data_in_use() or 0) >= limit:
        return (yield)
    with _data_limited_to(limit):
        return (yield)


def memory_limit() -> int | None:
    """Return how many bytes of data a task may have, or None where nobody says so."""
    size = os.environ.get(MEMORY_SIZE, "")
    if not sys.platform.startswith("linux") or not size.isdecimal() or int(size) == 0:
        return None
    return int(int(size) * _MIB * SHARE)


@contextmanager
def _data_limited_to(limit: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    own_is_lower = any(value != resource.RLIM_INFINITY and value <= limit for value in (soft, hard))
    if own_is_lower:
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_in_use() -> int | None:
    """Return how many bytes count against RLIMIT_DATA now."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
