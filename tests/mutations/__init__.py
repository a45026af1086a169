"""Remove one protection at a time, and check that a test fails.

    python -m tests.mutations              # all mutations, which takes an hour
    python -m tests.mutations fence lock   # mutations whose name contains one of the words

Each mutation is one replacement in a copy of the package. If the tests still pass with a mutation, its protection
is untested. If the text of a mutation is not found, this list is out of date. Both are failures.
"""

from __future__ import annotations

import importlib
import pkgutil
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
#: Seconds for the tests of one mutation. A test run that hangs without the protection counts as a failure.
TIME_LIMIT: Final = 180
#: The exit codes of pytest that report an error in its command, and not in a test.
BROKEN: Final = (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED)


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    file: str
    text: str
    instead: str
    #: The tests that pytest runs: a file, or a class or test in it.
    tests: str = "tests/execution/test_executor.py"

    @property
    def occurrences(self) -> int:
        """The number of occurrences of the text in the file; 0 if the file does not exist."""
        source = ROOT / "lambda_tasks" / self.file
        return source.read_text().count(self.text) if source.exists() else 0


def all_mutations() -> list[Mutation]:
    """Return the mutations of every family. Each module in this package defines `MUTATIONS`."""
    families = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return [mutation for family in families for mutation in importlib.import_module(f"{__name__}.{family}").MUTATIONS]


@contextmanager
def copy_with(mutation: Mutation | None) -> Iterator[Path]:
    """Yield a copy of the project, with the mutation if one is given."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder, "project")
        ignored = shutil.ignore_patterns(".*", "__pycache__", "example", "docs", "build")
        shutil.copytree(ROOT, copy, ignore=ignored)
        if mutation is not None:
            file = copy / "lambda_tasks" / mutation.file
            source = file.read_text()
            if source.count(mutation.text) != 1:
                raise SystemExit(
                    f"{mutation.name}: its text must occur once in {mutation.file}, not {source.count(mutation.text)} times."
                )
            file.write_text(source.replace(mutation.text, mutation.instead))
        yield copy


def is_noticed(mutation: Mutation) -> bool:
    """Return whether the tests fail in a copy of the project with the mutation."""
    with copy_with(mutation) as copy:
        command = [sys.executable, "-m", "pytest", "-x", "-q", mutation.tests]
        try:
            done = subprocess.run(command, cwd=copy, capture_output=True, timeout=TIME_LIMIT, check=False)
        except subprocess.TimeoutExpired:
            return True
    if done.returncode in BROKEN:
        raise SystemExit(f"{mutation.name}: pytest could not run: {done.stdout.decode()[-2000:]}")
    return done.returncode != 0  # 1, or the number of the signal that ended pytest
