"""Run the prose lint: `python -m tests.prose`, or `--report [paths]` to see every hit and fail on none."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.prose import Checked, check, files, problems


def main() -> int:
    """Lint or report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose", description="Lint the prose of the repository.")
    parser.add_argument("--report", action="store_true", help="count the hits by pattern and by file, and exit with 0")
    parser.add_argument("--only", metavar="NAME", help="with --report: the hits of this pattern only")
    parser.add_argument(
        "paths", nargs="*", type=Path, help="with --report: files or directories; their hits are listed"
    )
    options = parser.parse_args()
    if options.report:
        checked = check(files(options.paths))
        report(checked, options.only, each=bool(options.paths or options.only))
        return 0
    if options.paths or options.only:
        parser.error("paths and --only need --report: the lint itself always reads the whole repository")
    return gate(check(files()))


def gate(checked: list[Checked]) -> int:
    """Print why the lint fails, if it does."""
    found = problems(checked)
    for problem in found:
        print(problem)
    escapes = sum(file.escapes for file in checked)
    print(f"Prose: {len(checked)} files checked, {len(found)} problems, {escapes} exempted lines.")
    return 1 if found else 0


def report(checked: list[Checked], only: str | None, *, each: bool) -> None:
    """Print the hits, if each is wanted, and their number by pattern and by file."""
    hits = [hit for file in checked for hit in file.hits if only in (None, hit.pattern.name)]
    if each:
        for hit in hits:
            print(hit)
        print()
    advice = {hit.pattern.name: hit.pattern.instead for hit in hits}
    for name, number in Counter(hit.pattern.name for hit in hits).most_common():
        print(f"{number:5}  {name:22}  {advice[name]}")
    print()
    for path, number in Counter(hit.path for hit in hits).most_common():
        print(f"{number:5}  {path}")
    print(f"\n{len(hits)} hits in {len(checked)} files; {sum(file.escapes for file in checked)} exempted lines.")


if __name__ == "__main__":
    sys.exit(main())
