"""Run each file of tests in a process of its own: `python -m tests.alone [FILE …]`."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
#: pytest found no test to run: in the quick run, all tests of a file may be thorough.
NO_TESTS: Final = 5


def run(path: Path) -> tuple[bool, str]:
    """Return whether the tests of a file pass on their own, and what pytest printed."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not once", str(path)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return ran.returncode in (0, NO_TESTS), ran.stdout


def main(words: list[str]) -> int:
    paths = sorted(map(Path, words)) or sorted(TESTS.rglob("test_*.py"))
    failed = []
    with ThreadPoolExecutor(max_workers=4) as pool:
        for path, (passed, output) in zip(paths, pool.map(run, paths), strict=True):
            if not passed:
                failed.append(path)
                print(f"{output}\n{path} FAILED on its own.", flush=True)
    print(f"{len(paths) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
