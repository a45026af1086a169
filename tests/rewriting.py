"""Compile the test modules once before the workers of a parallel run start.

pytest rewrites the assertions of each test module and caches the result. Workers that start together would all find
the cache empty, and each would rewrite all modules.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
#: As many as the smallest machine of a contributor has cores.
PROCESSES: Final = 2


def fill_cache(config: pytest.Config) -> None:
    """Import the test modules that have changed since the last call, in forks of this process."""
    cache: pytest.Cache | None = getattr(config, "cache", None)
    if sys.dont_write_bytecode or cache is None:
        return
    # The name of the cached files has the same parts.
    folder = cache.mkdir("rewritten")
    stamp = folder / f"{sys.implementation.cache_tag}-{sys.flags.optimize}-{pytest.__version__}"
    last = stamp.stat().st_mtime if stamp.exists() else 0.0
    stamp.touch()
    changed = [path for path in sorted(TESTS.rglob("test_*.py")) if path.stat().st_mtime >= last]
    children = [_fork(changed[first::PROCESSES]) for first in range(min(PROCESSES, len(changed)))]
    for child in children:
        os.waitpid(child, 0)


def _fork(paths: Sequence[Path]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for path in paths:
            # The worker that collects the module reports the error.
            with suppress(BaseException):
                importlib.import_module(".".join(path.relative_to(TESTS.parent).with_suffix("").parts))
    finally:
        os._exit(0)
