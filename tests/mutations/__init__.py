"""Take out one protection at a time, and see the tests turn red.

    python -m tests.mutations              # all of them, which takes an hour
    python -m tests.mutations fence lock   # those whose name contains one of the words

Each mutation is one replacement in a copy of the package. A mutation that leaves the tests green means
that a protection has no test; one whose text is not found means that this list is out of date. Both
are failures.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent.parent
#: Seconds for the tests of one mutation; a suite that hangs without its protection is red too.
TIME_LIMIT: Final = 180
#: What pytest answers when it is its own command, and not a test, that went wrong.
BROKEN: Final = (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    file: str
    text: str
    instead: str
    #: What pytest is to run: a file, or a class or test in one.
    tests: str = "tests/test_executor.py"


@contextmanager
def copy_with(mutation: Mutation | None) -> Iterator[Path]:
    """Give a copy of the project, with the mutation if there is one."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder, "project")
        ignored = shutil.ignore_patterns(".*", "__pycache__", "example", "docs")
        shutil.copytree(ROOT, copy, ignore=ignored)
        if mutation is not None:
            file = copy / "lambda_tasks" / mutation.file
            source = file.read_text()
            if source.count(mutation.text) != 1:
                raise SystemExit(
                    f"{mutation.name}: its text stands {source.count(mutation.text)} times in {mutation.file}."
                )
            file.write_text(source.replace(mutation.text, mutation.instead))
        yield copy


def is_noticed(mutation: Mutation) -> bool:
    """Tell whether the tests turn red in a copy of the project with the mutation."""
    with copy_with(mutation) as copy:
        command = [sys.executable, "-m", "pytest", "-x", "-q", mutation.tests]
        try:
            done = subprocess.run(command, cwd=copy, capture_output=True, timeout=TIME_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return True
    if done.returncode in BROKEN:
        raise SystemExit(f"{mutation.name}: pytest could not run: {done.stdout.decode()[-2000:]}")
    return done.returncode != 0  # 1, or the number of the signal that ended pytest
