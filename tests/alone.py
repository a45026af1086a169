"""Run each file of tests in a process of its own: `python -m tests.alone [--coverage PERCENT] [FILE …]`.

The processes are forks of this one, which has imported the packages of others that tests need, but neither the
library nor a test. So each file starts as if it ran by itself, and in a fraction of the time.

With `--coverage`, the run fails if the files together cover less of the package's lines and branches. What the
processes cover that tests start is not counted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, NoReturn

import pytest

TESTS: Final = Path(__file__).parent
PROCESSES: Final = 4
#: pytest warns that it cannot rewrite the assertions of plugins that are imported already.
OPTIONS: Final = ("-q", "-m", "not once", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
#: coverage opens a database in each thread, and closes none of them.
WITH_COVERAGE: Final = ("-W", "ignore:unclosed database:ResourceWarning")
#: Packages that take long to import. None of them reads the settings of Django when it is imported.
PRELOADED: Final = (
    *("django.db.models", "django.test", "django.core.management", "django.template.backends.django"),
    *("pydantic", "redis", "fakeredis", "boto3", "botocore.endpoint", "hypothesis", "hypothesis.stateful"),
    *("moto.server", "moto.sqs", "moto.core.botocore_stubber", "psycopg", "pymysql", "pytest_django.plugin"),
)


class Run:
    """The tests of one file, in a forked process."""

    def __init__(self, path: Path, coverage_file: Path | None) -> None:
        self.path = path
        self._coverage_file = coverage_file
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it is read when the process has ended
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run()

    def _run(self) -> NoReturn:
        code = 1
        try:
            os.dup2(self._output.fileno(), 1)
            os.dup2(self._output.fileno(), 2)
            with self._covered():
                code = pytest.main([*OPTIONS, *(WITH_COVERAGE if self._coverage_file else ()), str(self.path)])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @contextmanager
    def _covered(self) -> Iterator[None]:
        if self._coverage_file is None:
            yield
            return
        from coverage import Coverage  # only the session that measures has it

        measured = Coverage(data_file=self._coverage_file, branch=True, source=["lambda_tasks"])
        with measured.collect():
            yield
        measured.save()

    def output(self) -> str:
        """Return what pytest printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")


def finished(paths: list[Path], coverage_files: Path | None) -> Iterator[tuple[Run, int]]:
    """Run the files, several at a time, and yield each run with its exit code when it has ended.

    `coverage_files` is the directory for what each of them covers; None measures nothing.
    """
    running: dict[int, Run] = {}
    # The largest files first, so that none of them is left for the end.
    waiting = sorted(paths, key=lambda path: path.stat().st_size)
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            run = Run(waiting.pop(), coverage_files and coverage_files / f"coverage.{len(waiting)}")
            running[run.pid] = run
        pid, status = os.wait()
        if pid in running:
            yield running.pop(pid), os.waitstatus_to_exitcode(status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coverage", type=float, metavar="PERCENT", help="the least that the files must cover")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    assert not {"lambda_tasks", "tests.conftest", "tests.settings"} & set(sys.modules)
    paths = options.files or sorted(TESTS.rglob("test_*.py"))
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        coverage_files = Path(directory) if options.coverage is not None else None
        for run, code in finished(paths, coverage_files):
            # In the quick run, all tests of a file may be left out.
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                failed.append(run.path)
                print(f"{run.output()}\nFAILED {run.path} on its own, with exit code {code}.", flush=True)
        print(f"{len(paths) - len(failed)} files passed on their own, {len(failed)} failed")
        covered = total_coverage(coverage_files) if coverage_files else 0.0
    if options.coverage is not None and covered < options.coverage:
        print(f"FAILED: {covered:.1f} percent of the package is covered, and {options.coverage:g} are required.")
        return 1
    return 1 if failed else 0


def total_coverage(files: Path) -> float:
    """Print what the tests do not cover, and return the percentage of lines and branches that they do cover."""
    from coverage import Coverage

    measured = Coverage(data_file=files / "combined", branch=True, source=["lambda_tasks"])
    measured.combine([str(path) for path in files.iterdir()])
    return measured.report(show_missing=True, skip_covered=True)


if __name__ == "__main__":
    raise SystemExit(main())
