"""Runs every benchmark, one after the other, and writes docs/benchmarks.md with its plots.

python -m benchmarks                  # all, which takes half an hour
python -m benchmarks execute hooks    # these anew; the others stay as they stand in the page
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks import servers
from benchmarks.plots import draw
from benchmarks.report import Table

DOCS: Final = Path(__file__).parent.parent / "docs"
PAGE: Final = DOCS / "benchmarks.md"
#: The plots, and the reports as they were measured, from which the page is written.
FOLDER: Final = DOCS / "benchmarks"
REPORTS: Final = FOLDER / "reports.json"

#: In the order of the page: the name of a report, and the command that makes it.
PROGRAMS: Final = {
    "enqueue": ["benchmarks.enqueue"],
    "outbox": ["benchmarks.outbox"],
    "execute-postgres": ["benchmarks.execute", "--database", "postgres"],
    "execute-sqlite": ["benchmarks.execute", "--database", "sqlite"],
    "hooks": ["benchmarks.hooks"],
    "peers": ["benchmarks.peers"],
    "cold-start": ["benchmarks.cold_start"],
    "batch-size": ["benchmarks.batch_size"],
    "big-table": ["benchmarks.big_table"],
    "parallel": ["benchmarks.parallel"],
}

HEAD: Final = """\
# Benchmarks

What the library costs, against floors and peers that were measured in the same run. `make bench` measures
all of it again and writes this page; `python -m benchmarks.execute` and its neighbours in `benchmarks/`
answer one question each.

How to read it:

- **Ratios count, absolute times do not.** Contenders take turns, round by round, and are compared within a
  round. Given are medians, and quartiles in parentheses.
- A **floor** does the same work with nothing around it. Nobody can be much below one that uses the same parts.
- **CPU** is the time of the process that is measured; servers have their own. **Wall** is what a clock shows.
- No test fails by a time. What is counted (statements, requests, imports) is
  [asserted by the tests](#what-is-counted).
"""

COUNTED: Final = """\
## What is counted

Times depend on the machine, counts do not. The tests assert them:

| What | Where |
|---|---|
| The statements of a task: INSERT, BEGIN, UPDATE, COMMIT, and what it does itself | `tests/test_execute_cost.py` |
| The requests of a transaction to SQS | `tests/test_enqueue_cost.py` |
| The statements of the outbox | `tests/test_outbox_cost.py` |
| The modules that a process has loaded after each step | `tests/test_imports_cost.py` |
| The index that serves each statement, and that each index serves one | `tests/test_query_plans.py` |
"""


def main() -> int:
    """Run what is asked for; 1 if a program failed, which leaves its part of the page as it was."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--write-only", action="store_true", help="measure nothing; write the page anew")
    options = parser.parse_args()
    chosen = [name for name in PROGRAMS if not options.names or any(name.startswith(word) for word in options.names)]
    FOLDER.mkdir(exist_ok=True)
    failed = [] if options.write_only else [name for name in chosen if not _measured(name)]
    _write_page()
    for name in failed:
        print(f"FAILED: python -m {' '.join(PROGRAMS[name])}")
    return 1 if failed else 0


def _measured(name: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        print(f"\n$ python -m {' '.join(PROGRAMS[name])}\n", flush=True)
        ended = subprocess.run([sys.executable, "-m", *PROGRAMS[name], "--json", str(file)], check=False)
        if ended.returncode or not file.exists():
            return False
        report = json.loads(file.read_text())
    reports = {**_reports(), name: report}
    REPORTS.write_text(json.dumps(reports, indent=1, ensure_ascii=False) + "\n")
    return True


def _reports() -> dict[str, Any]:
    reports: dict[str, Any] = json.loads(REPORTS.read_text()) if REPORTS.exists() else {}
    return reports


def _write_page() -> None:
    reports = _reports()
    sections = [_section(reports[name]) for name in PROGRAMS if name in reports]
    PAGE.write_text("\n".join([HEAD, *sections, COUNTED]))


def _section(report: dict[str, Any]) -> str:
    lines = [f"## {report['title']}", "", report["question"].strip(), ""]
    for plot in report["plots"]:
        draw(plot, FOLDER / f"{plot['name']}.svg")
        lines += [f"![{plot['title']}](benchmarks/{plot['name']}.svg)", ""]
    for table in report["tables"]:
        lines += [table["caption"], "", *Table(**table).lines(), ""]
    if report["remarks"]:
        lines += [*(f"- {remark}" for remark in report["remarks"]), ""]
    lines += ["<details><summary>How it was measured</summary>", ""]
    lines += [*(f"- {sentence}" for sentence in report["method"]), f"- Measured on {report['measured']}.", ""]
    lines += ["</details>", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    servers.find()  # started once for all programs, if they have to be
    sys.exit(main())
