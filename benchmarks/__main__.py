"""Run every benchmark, one after the other, and write docs/benchmarks.md with its plots.

python -m benchmarks                  # all, which takes half an hour
python -m benchmarks execute hooks    # only these; the rest of the page stays unchanged
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
#: The plots, and the measured reports that the page is generated from.
FOLDER: Final = DOCS / "benchmarks"
REPORTS: Final = FOLDER / "reports.json"

#: The name of each report and the command that creates it, in the order of the page.
PROGRAMS: Final = {
    "enqueue": ["benchmarks.enqueue"],
    "outbox": ["benchmarks.outbox"],
    "insert-at-call": ["benchmarks.insert_at_call"],
    "execute-postgres": ["benchmarks.execute", "--database", "postgres"],
    "execute-sqlite": ["benchmarks.execute", "--database", "sqlite"],
    "instructions": ["benchmarks.instructions"],
    "network": ["benchmarks.network"],
    "hooks": ["benchmarks.hooks"],
    "peers": ["benchmarks.peers"],
    "cold-start": ["benchmarks.cold_start"],
    "batch-size": ["benchmarks.batch_size"],
    "big-table": ["benchmarks.big_table"],
    "old-snapshot": ["benchmarks.old_snapshot"],
    "parallel": ["benchmarks.parallel"],
    "group": ["benchmarks.group"],
    "scale": ["benchmarks.scale"],
}

HEAD: Final = """\
# Benchmarks

This page shows what the library costs, compared with floors and peers that were measured in the same run.
`make bench` repeats all measurements and writes this page.
`python -m benchmarks.execute` and its neighbours in `benchmarks/` answer one question each.

How to read it:

- **Ratios matter, absolute times do not.** Contenders take turns, round by round, and are compared within a round.
  The tables show medians, with quartiles in parentheses.
- A **floor** does only the same work.
  A library that uses the same parts cannot be much faster than its floor.
- **CPU** is the CPU time of the measured process, without servers. **Wall** is the elapsed time.
- Tests never fail because of a time.
  They [assert counts](#what-is-counted) of statements, requests and imports.
"""

COUNTED: Final = """\
## What is counted

Times depend on the machine, but counts do not. The tests assert these counts:

| Count | Test |
|---|---|
| The statements of a task: INSERT, BEGIN, UPDATE, COMMIT, and its own | `tests/execution/test_execute_cost.py` |
| The requests of a transaction to SQS | `tests/sending/test_enqueue_cost.py` |
| The statements of the outbox | `tests/backends/test_outbox_cost.py` |
| The modules that a process has loaded after each step | `tests/project/test_imports_cost.py` |
| The index that each statement uses, and that a statement uses each index | `tests/database/test_query_plans.py` |
"""


def main() -> int:
    """Run the chosen benchmarks. Return 1 if a program failed; its part of the page then stays unchanged."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(PROGRAMS)}")
    parser.add_argument("--write-only", action="store_true", help="only rebuild the page from the last reports")
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
    servers.find()  # starts missing servers once for all programs
    sys.exit(main())
