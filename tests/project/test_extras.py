"""The session `extras` of nox uses every extra that is meant for users."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.extras.run import CHECKS, PACKAGES

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
#: The extras for the work on the library itself.
INTERNAL = {"bench", "browser", "demo", "dev", "docs", "local-sqs", "test", "test-all"}


def extras_of(text: str) -> set[str]:
    """Return the extras of pyproject.toml, which Python 3.10 has no parser for."""
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, re.DOTALL | re.MULTILINE)
    assert section is not None
    return set(re.findall(r"^([\w-]+) = \[", section[1], re.MULTILINE))


def extras_of_session() -> list[str]:
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXTRAS":
            found: list[str] = ast.literal_eval(node.value)
            return found
    raise LookupError("noxfile.py has no EXTRAS.")


def test_every_extra_for_users_is_used_alone() -> None:
    users = extras_of((ROOT / "pyproject.toml").read_text()) - INTERNAL
    assert set(extras_of_session()) == users == set(CHECKS) == set(PACKAGES)
