"""Run a short soak test; `make soak` runs it at full length."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import Server

pytestmark = [pytest.mark.thorough, pytest.mark.once]

ROOT = Path(__file__).parents[2]


def soak(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults.soak", "--keep", str(folder), *options]
    # The soak test has its own settings, and uses the test server in DATABASE_URL.
    inherited = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(command, cwd=ROOT, env=inherited, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="it finds the processes to kill in /proc")
def test_short_soak_loses_and_doubles_nothing(postgres: Server, tmp_path: Path) -> None:
    done = soak(tmp_path, "--tasks", "60", "--workers", "1", "--seed", "2", "--kill-every", "0.5", "--patience", "120")
    table = dict(re.findall(r"^(\S[\w -]*?)  +(\d+)\b", done.stdout, re.MULTILINE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (table["orders"], table["lost"], table["doubled"], table["stuck"]) == ("60", "0", "0", "0")
    assert int(table["kills"]) >= 2
    assert int(table["retries"]) > 0
    assert "Seed 2: nothing lost, nothing doubled." in done.stdout
