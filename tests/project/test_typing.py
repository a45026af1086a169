"""Programs that mypy must accept, and programs whose marked lines, and no others, it must refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.typing import pyright

pytestmark = [pytest.mark.thorough, pytest.mark.once]

ROOT = Path(__file__).parents[2]
ACCEPTED = sorted(Path(__file__).parents[1].glob("typing/accepted/[a-z]*.py"))
REFUSED = sorted(Path(__file__).parents[1].glob("typing/refused/[a-z]*.py"))
PROGRAMS = ACCEPTED + REFUSED
#: Programs whose types must also be known without the plugin of django-stubs, as to pyright.
WITHOUT_PLUGIN = sorted(Path(__file__).parents[1].glob("typing/without_plugin/[a-z]*.py"))
#: Programs that pyright must judge like mypy, if it is installed.
FOR_PYRIGHT = [*(program for program in PROGRAMS if program.stem != "fields_of_records"), *WITHOUT_PLUGIN]

Complaints = dict[int, set[str]]


@pytest.fixture(scope="session")
def complaints() -> dict[Path, Complaints]:
    """What mypy says of all programs, in one run: the error codes on each line of each file."""
    # Each environment has a cache of its own: what it has installed is part of the answer.
    return said_by_mypy(*PROGRAMS, cache=".mypy_cache")


def said_by_mypy(*arguments: str | Path, cache: str) -> dict[Path, Complaints]:
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", f"{sys.prefix}/{cache}", "--output", "json", *arguments],
        cwd=ROOT,  # where pyproject.toml has the configuration, with the plugin of django-stubs
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    assert "No module named" not in run.stderr  # with the same exit code as an error in a program
    found: dict[Path, Complaints] = defaultdict(lambda: defaultdict(set))
    for line in filter(None, run.stdout.splitlines()):
        complaint: dict[str, Any] = json.loads(line)
        if complaint["severity"] == "error":
            found[ROOT / complaint["file"]][complaint["line"]].add(complaint["code"])
    return found


def marked(program: Path) -> Complaints:
    """Return the error codes that the program expects, by the comments on its lines."""
    lines = enumerate(program.read_text().splitlines(), start=1)
    marks = ((number, re.search(r"# error: ([a-z, -]+)$", line)) for number, line in lines)
    return {number: set(mark[1].split(", ")) for number, mark in marks if mark}


@pytest.mark.parametrize("program", ACCEPTED, ids=lambda program: program.stem)
def test_correct_program_is_accepted(complaints: dict[Path, Complaints], program: Path) -> None:
    assert dict(complaints[program]) == {}


@pytest.mark.parametrize("program", REFUSED, ids=lambda program: program.stem)
def test_only_wrong_lines_are_refused(complaints: dict[Path, Complaints], program: Path) -> None:
    expected = marked(program)
    assert expected
    assert dict(complaints[program]) == expected


def test_pyright_agrees(tmp_path: Path) -> None:
    found = pyright.errors(FOR_PYRIGHT, tmp_path)
    lines = {(Path(each["file"]), pyright.line(each)) for each in found}
    assert lines == {(program, number) for program in FOR_PYRIGHT for number in marked(program)}, found


@pytest.mark.parametrize(
    ("options", "cache"),
    [
        (["--config-file=", "--strict", "--ignore-missing-imports"], ".mypy_cache_without_plugin"),
        ([], ".mypy_cache"),
    ],
    ids=["without a plugin", "with django-stubs"],
)
def test_documented_use_is_typed(options: list[str], cache: str) -> None:
    assert WITHOUT_PLUGIN
    found = said_by_mypy(*options, *WITHOUT_PLUGIN, cache=cache)
    assert {program: dict(found[program]) for program in WITHOUT_PLUGIN} == {program: {} for program in WITHOUT_PLUGIN}


def test_library_is_marked_as_typed() -> None:
    import lambda_tasks

    assert (Path(lambda_tasks.__file__).parent / "py.typed").is_file()
