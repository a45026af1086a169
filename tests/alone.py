"""Run each file of tests in a process of its own: `python -m tests.alone [FILE …]`.

The processes are forks of this one, which has imported the packages of others that tests need, but neither the
library nor a test. So each file starts as if it ran by itself, and in a fraction of the time.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NoReturn

import pytest

TESTS: Final = Path(__file__).parent
PROCESSES: Final = 4
#: pytest warns that it cannot rewrite the assertions of plugins that are imported already.
OPTIONS: Final = ("-q", "-m", "not once", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
#: Packages that take long to import. None of them reads the settings of Django when it is imported.
PRELOADED: Final = (
    *("django.db.models", "django.test", "django.core.management", "django.template.backends.django"),
    *("pydantic", "redis", "fakeredis", "boto3", "botocore.endpoint", "hypothesis", "hypothesis.stateful"),
    *("moto.server", "moto.sqs", "moto.core.botocore_stubber", "psycopg", "pymysql", "pytest_django.plugin"),
)


class Run:
    """The tests of one file, in a forked process."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
            code = pytest.main([*OPTIONS, str(self.path)])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def output(self) -> str:
        """Return what pytest printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")


def finished(paths: list[Path]) -> Iterator[tuple[Run, int]]:
    """Run the files, several at a time, and yield each run with its exit code when it has ended."""
    running: dict[int, Run] = {}
    # The largest files first, so that none of them is left for the end.
    waiting = sorted(paths, key=lambda path: path.stat().st_size)
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            run = Run(waiting.pop())
            running[run.pid] = run
        pid, status = os.wait()
        if pid in running:
            yield running.pop(pid), os.waitstatus_to_exitcode(status)


def main(words: list[str]) -> int:
    for name in PRELOADED:
        importlib.import_module(name)
    assert not {"lambda_tasks", "tests.conftest", "tests.settings"} & set(sys.modules)
    paths = list(map(Path, words)) or sorted(TESTS.rglob("test_*.py"))
    failed = []
    for run, code in finished(paths):
        # In the quick run, all tests of a file may be left out.
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            failed.append(run.path)
            print(f"{run.output()}\nFAILED {run.path} on its own, with exit code {code}.", flush=True)
    print(f"{len(paths) - len(failed)} files passed on their own, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
