"""Run pyright, which knows Django by the stubs of django-stubs and has no plugin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]


def errors(programs: Iterable[Path], folder: Path, **rules: bool) -> list[dict[str, Any]]:
    """Return the errors that pyright finds in the programs, in one run. `folder` receives its configuration."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    command = shutil.which("basedpyright", path=beside) or shutil.which("pyright", path=beside)
    if command is None:
        pytest.skip("pyright is not installed")
    included = [str(program) for program in programs]
    config = {"include": included, "extraPaths": [str(ROOT)], "typeCheckingMode": "standard", "pythonVersion": "3.12"}
    (folder / "pyrightconfig.json").write_text(json.dumps({**config, **rules}))
    run = subprocess.run(
        [command, "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = json.loads(run.stdout)
    assert said["summary"]["filesAnalyzed"] == len(included)
    return [each for each in said["generalDiagnostics"] if each["severity"] == "error"]


def line(error: dict[str, Any]) -> int:
    """Return the number of the line of an error; the first line of a file is 1."""
    number: int = error["range"]["start"]["line"]
    return number + 1
