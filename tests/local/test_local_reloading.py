"""The local worker starts again with changed code, after its batches, and waits while the code is broken."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.utils import autoreload

from lambda_tasks.local import reloading
from lambda_tasks.local.progress import Event, Reloading, Warned
from lambda_tasks.local.reloading import Changes, problem_of_project, start_again
from tests.conftest import Sqs

PATIENCE = 30


class Watched:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stops = 0
        self.changes = Changes(self.stop, self.events.append)

    def stop(self) -> None:
        self.stops += 1


def test_change_stops_the_worker_once(tmp_path: Path) -> None:
    path = tmp_path / "tasks.py"
    path.write_text("x = 1")
    watched = Watched()
    assert watched.changes.notice(file_path=path)
    assert watched.changes.notice(file_path=path)
    assert (watched.events, watched.stops, watched.changes.happened) == ([Reloading(str(path))], 1, True)
    watched.changes.forget()
    assert not watched.changes.happened


def test_broken_code_does_not_stop_the_worker(tmp_path: Path) -> None:
    path = tmp_path / "tasks.py"
    path.write_text("def broken(:")
    watched = Watched()
    assert watched.changes.notice(file_path=path)
    (event,) = watched.events
    assert isinstance(event, Warned)
    assert "cannot be loaded: invalid syntax" in event.text
    assert not watched.changes.happened


@pytest.mark.parametrize("name", ["deleted.py", "messages.txt"])
def test_other_files_are_changes(tmp_path: Path, name: str) -> None:
    (tmp_path / "messages.txt").write_text("def broken(:")
    watched = Watched()
    watched.changes.notice(file_path=tmp_path / name)
    assert watched.changes.happened


def test_django_reports_changes_while_watching(tmp_path: Path) -> None:
    """Canary: Django sends `file_changed`, and ends the process only if no receiver returns something true."""
    path = tmp_path / "tasks.py"
    path.write_text("x = 1")
    watched = Watched()
    with watched.changes.watched():
        reloader = autoreload.get_reloader()
        reloader.notify_file_changed(path)
        assert watched.changes.happened
        assert "watches the code" in {thread.name for thread in threading.enumerate()}
    watched.changes.forget()
    autoreload.file_changed.send(sender=None, file_path=path)
    assert not watched.changes.happened


def test_process_is_replaced_with_its_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replaced: list[Any] = []
    monkeypatch.setattr(reloading.os, "execv", lambda *arguments: replaced.append(arguments))
    started_as(monkeypatch, tmp_path)
    start_again()
    ((program, arguments),) = replaced
    assert program == arguments[0] == sys.executable
    assert arguments[-len(sys.argv[1:]) :] == sys.argv[1:]


def started_as(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Pretend that this process was started as `python manage.py lambda_tasks worker --reload`."""
    program = directory / "manage.py"
    program.write_text(
        "import sys\n"
        "from django.core.management import execute_from_command_line\n"
        "execute_from_command_line(sys.argv)\n"
    )
    monkeypatch.setattr(sys, "argv", [str(program), "lambda_tasks", "worker", "--reload"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)


@pytest.mark.parametrize(("settings", "problem"), [("", None), ("1 / 0", "ZeroDivisionError")])
def test_project_is_loaded_by_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, problem: str | None
) -> None:
    (tmp_path / "shop_settings.py").write_text(f'SECRET_KEY = "x"\n{settings}\n')
    started_as(monkeypatch, tmp_path)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop_settings")
    monkeypatch.syspath_prepend(tmp_path)
    found = problem_of_project()
    assert (found is None) if problem is None else (problem in (found or ""))


@contextmanager
def reloading_worker(directory: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    (directory / "shop_settings.py").write_text(
        f"""
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["lambda_tasks"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}}
LAMBDA_TASKS_QUEUES = {{"default": {url!r}}}
"""
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "lambda_tasks", "worker", "--reload", "--handler=shop_handler.handler"],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "shop_settings",
            "PYTHONPATH": os.pathsep.join([str(directory), *filter(None, sys.path)]),
        },
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        with process:
            yield process
    finally:
        watchdog.cancel()
        process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} is not in {lines}")


@pytest.mark.thorough
def test_worker_starts_again_with_the_new_code(tmp_path: Path, sqs: Sqs) -> None:
    (tmp_path / "shop_handler.py").write_text("def handler(event, context): ...")
    with reloading_worker(tmp_path, sqs.queues["default"]) as process:
        read_until(process, "ready, process")
        path = tmp_path / "shop_settings.py"
        before = path.read_text()
        path.write_text(before + "def broken(:\n")
        read_until(process, "cannot be loaded: invalid syntax")
        path.write_text(before + "1 / 0\n")
        read_until(process, "Starting again after the running batches have finished.")
        read_until(process, "The project cannot be loaded. Waiting for a change.")
        path.write_text(before + "# corrected\n")
        read_until(process, "ready, process")
        process.terminate()
        assert process.wait(PATIENCE) == 0
