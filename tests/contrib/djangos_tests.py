"""Django's own tests of task backends, from its source distribution, which is downloaded and not copied.

    python -m tests.contrib.djangos_tests      # downloads the distribution of the installed Django, with pip or uv

The tests name Django's backends by their dotted paths. A copy in a temporary directory names ours instead, and its
classes may use the database.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import unittest
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Final

import django

from lambda_tasks.contrib.django_tasks import LambdaTasksBackend

OURS: Final = "lambda_tasks.contrib.django_tasks"
#: The environment variable that names the folder of the distribution. If it is set, the tests need the distribution.
FOLDER_VARIABLE: Final = "DJANGO_SDIST_FOLDER"
COMMAND: Final = "python -m tests.contrib.djangos_tests"

#: Replacements for the form of eager mode, in which a task runs when its caller commits.
EAGER: Final = {
    "from django.tasks.backends.immediate import ImmediateBackend": (
        f"from {OURS} import LambdaTasksBackend as ImmediateBackend"
    ),
    "django.tasks.backends.immediate.ImmediateBackend": f"{OURS}.LambdaTasksBackend",
}
#: Replacements for the form in memory, in which nothing runs.
MEMORY: Final = {
    "from django.tasks.backends.dummy import DummyBackend": f"from {__name__} import MemoryTasks as DummyBackend",
    "django.tasks.backends.dummy.DummyBackend": f"{__name__}.MemoryTasks",
}
#: Our backend uses the database, which Django forbids in a SimpleTestCase, and in a test without the app.
_WITH_DATABASE: Final = {
    "import SimpleTestCase, override_settings": "import TransactionTestCase, override_settings",
    "(SimpleTestCase)": "(TransactionTestCase)",
    "available_apps = []": "available_apps = None",
}


class MemoryTasks(LambdaTasksBackend):
    """Our backend with the list of results that Django's tests expect of their dummy."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.results: list[Any] = []

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        result = super().enqueue(task, args, kwargs)
        self.results.append(deepcopy(result))
        return result

    def clear(self) -> None:
        from lambda_tasks.models import EnqueuedTask

        EnqueuedTask.objects.all().delete()
        self.results.clear()


def folder() -> Path:
    """Return where the distribution is."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path(__file__).parents[2] / "build" / "django")


def find_distribution() -> Path | None:
    """Return the file of the source distribution of the installed Django, if it is there."""
    path = folder() / f"django-{django.get_version()}.tar.gz"
    return path if path.exists() else None


@cache
def sources(distribution: Path) -> dict[str, str]:
    """Return the files of Django's package of tests by their names."""
    found = {}
    with tarfile.open(distribution) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if parts[1:-1] == ("tests", "tasks") and parts[-1].endswith(".py"):
                file = archive.extractfile(member)
                assert file is not None
                found[parts[-1]] = file.read().decode()
    return found


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


@contextmanager
def repointed(distribution: Path, directory: Path, replacements: Mapping[str, str]) -> Iterator[None]:
    """Make Django's package of tests importable as `tasks`, with the replacements."""
    target = directory / "tasks"
    target.mkdir()
    for name, source in sources(distribution).items():
        (target / name).write_text(replaced(source, {**replacements, **_WITH_DATABASE}))
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name == "tasks" or name.startswith("tasks.")]:
            del sys.modules[name]


def run(module: str, class_name: str) -> tuple[int, dict[str, str]]:
    """Run the tests of a class, and return their number and the last line of the error of each that failed."""
    case = getattr(importlib.import_module(f"tasks.{module}"), class_name)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    result = unittest.TestResult()
    suite.run(result)
    failed: Sequence[tuple[Any, str]] = [*result.failures, *result.errors]
    return result.testsRun, {name_of(test): text.strip().splitlines()[-1] for test, text in failed}


def name_of(test: Any) -> str:
    return str(getattr(test, "test_case", test).id()).rpartition(".")[2]


def download() -> None:
    """Download the source distribution of the installed Django into `folder()`, unless it is there."""
    if find_distribution() is not None:
        return
    options = ("download", "--quiet", "--no-deps", "--no-binary", "django", "--dest", str(folder()))
    pip = (sys.executable, "-m", "pip")
    if importlib.util.find_spec("pip") is None:
        uv = shutil.which("uv")
        if uv is None:
            raise SystemExit("Install pip or uv, with one of which this program downloads the distribution.")
        pip = (uv, "tool", "run", "--python", sys.executable, "pip")
    subprocess.run([*pip, *options, f"django=={django.get_version()}"], check=True)


if __name__ == "__main__":
    download()
    print(find_distribution())
