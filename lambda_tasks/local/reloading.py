"""Notice changes of the project's code, by Django's autoreload, so that the local worker can start again with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from django.utils import autoreload

from lambda_tasks.local import progress

#: Seconds that loading the project may take.
_PATIENCE: Final = 60


class Changes:
    """Changes of the files of loaded modules whose new code can be compiled.

    `on_change` is called with the first one, in the thread that watches. `report` is called with each.
    """

    def __init__(self, on_change: Callable[[], object], report: Callable[[progress.Event], object]) -> None:
        self._on_change = on_change
        self._report = report
        self._happened = threading.Event()

    @property
    def happened(self) -> bool:
        """Whether a file has changed."""
        return self._happened.is_set()

    def wait(self) -> None:
        """Wait until a file has changed."""
        self._happened.wait()

    def forget(self) -> None:
        """Forget the changes so far."""
        self._happened.clear()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the files of all modules in a thread, while the `with` block runs."""
        autoreload.file_changed.connect(self.notice)
        reloader = autoreload.get_reloader()
        thread = threading.Thread(
            target=reloader.run, args=(threading.main_thread(),), name="watches the code", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            reloader.stop()
            autoreload.file_changed.disconnect(self.notice)

    def notice(self, *, file_path: Path, **_: Any) -> bool:
        """Note a change. Return True, so that Django does not end the process: the running batches finish first."""
        if problem := _problem_of(file_path):
            self._report(progress.Warned(f"{file_path} has changed, but cannot be loaded: {problem}. Correct it."))
        elif not self._happened.is_set():
            self._happened.set()
            self._report(progress.Reloading(str(file_path)))
            self._on_change()
        return True


def problem_of_project() -> str | None:
    """Return what `manage.py check` reports about the code as it is now; None if a new process can load it."""
    options = len(sys.argv) - 1
    program = autoreload.get_child_arguments()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    checked = subprocess.run(
        [*program[: len(program) - options], "check"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    return None if checked.returncode == 0 else checked.stderr.strip()


def start_again() -> None:
    """Replace this process by a new one with the same arguments."""
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = autoreload.get_child_arguments()
    os.execv(arguments[0], arguments)


def _problem_of(path: Path) -> str | None:
    """Return why the code in `path` cannot be compiled; None if it can, or if it is not code or was deleted."""
    if path.suffix != ".py" or not path.exists():
        return None
    try:
        compile(path.read_bytes(), path, "exec")
    except (SyntaxError, ValueError) as error:
        return str(error)
    return None
