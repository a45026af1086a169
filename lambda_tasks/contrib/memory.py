"""A plugin that raises `MemoryError` in a task before Lambda kills the process for using too much memory.

    LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.memory"]

Lambda kills a process that uses more than the function's memory, together with the rest of the batch, and without an
error message. The task is retried as a crash, and may crash the next worker. With the plugin, an allocation in the
task beyond `SHARE` of `AWS_LAMBDA_FUNCTION_MEMORY_SIZE` raises `MemoryError`.

The plugin limits `RLIMIT_DATA`, the private memory of the process, and not `RLIMIT_AS`, because reserved addresses and
mapped files use no memory. The limit applies only while the task's function runs, so that enough memory is left to
record its outcome. Nothing is limited if the variable is not set, or on systems other than Linux. Each process that
the task starts has its own limit of the same size.

The processes of a Managed Instance share the memory, so each has an equal part. A process that uses most of its part
after a batch, such as because of a leak, is replaced if it runs under `lambda_tasks.instances`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lambda_tasks.environments import retiring
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Run
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.contrib.memory")

#: The environment variable in which Lambda sets the function's memory in MiB.
MEMORY_SIZE: Final = "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"
#: The share of it that a task may use. The rest is for recording the outcome, for mapped files and for extensions.
SHARE: Final = 0.9
#: The environment variable with the number of processes that share this memory. Lambda sets it on Managed Instances.
MAX_CONCURRENCY: Final = "AWS_LAMBDA_MAX_CONCURRENCY"

#: The share of the limit above which a process is replaced after a batch, before its tasks reach the limit.
REPLACED_ABOVE: Final = 0.75

_MIB: Final = 1024 * 1024
#: Whether the process used so much before its first task, as would the one that replaces it.
_starts_above = False


@hookimpl
def lambda_task_boot() -> None:
    """Warn when the process starts, and not only at the first task, if it already uses more than the limit."""
    global _starts_above
    limit, used = memory_limit(), _data_in_use()
    _starts_above = limit is not None and used is not None and used >= limit * REPLACED_ABOVE
    if limit is not None and used is not None and used >= limit:
        logger.warning(
            "The process uses %d MiB before its first task, but its limit is %d MiB, so no memory limit is set. "
            "Increase the memory of the function.",
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


@hookimpl
def lambda_task_batch_finished() -> None:
    """Ask for a new process, which never happens in the middle of a task, if this one uses most of its memory."""
    limit, used = memory_limit(), _data_in_use()
    if limit is not None and used is not None and used >= limit * REPLACED_ABOVE and not _starts_above:
        retiring.retire(f"it uses {used // _MIB} MiB, and its limit is {limit // _MIB} MiB")


def memory_limit() -> int | None:
    """Return the memory limit of a task in bytes, or None if there is none."""
    size = os.environ.get(MEMORY_SIZE, "")
    if not sys.platform.startswith("linux") or not size.isdecimal() or int(size) == 0:
        return None
    processes = os.environ.get(MAX_CONCURRENCY, "")
    parts = int(processes) if processes.isdecimal() and int(processes) else 1
    return int(int(size) * _MIB * SHARE) // parts


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
    """Return how many bytes currently count towards RLIMIT_DATA."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
