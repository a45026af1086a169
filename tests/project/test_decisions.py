"""The pages on decisions and on the architecture have their sections and name existing tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.named_tests import ROOT, TEST_ID, find, is_unkept

pytestmark = pytest.mark.once

INDEX: Final = ROOT / "docs/decisions/README.md"
DECISIONS: Final = sorted(set(INDEX.parent.glob("*.md")) - {INDEX})
ARCHITECTURE: Final = ROOT / "docs/architecture.md"
SECTIONS: Final = ["Context", "Decision", "Consequences", "What was measured", "When to change it"]


def ids(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", DECISIONS, ids=ids)
def test_decision_has_its_sections(page: Path) -> None:
    assert re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE) == SECTIONS


@pytest.mark.parametrize("page", DECISIONS, ids=ids)
def test_decision_is_short(page: Path) -> None:
    assert 250 <= len(page.read_text().split()) <= 500


@pytest.mark.parametrize("page", DECISIONS, ids=ids)
def test_decision_names_a_test(page: Path) -> None:
    assert TEST_ID.findall(page.read_text())


@pytest.mark.parametrize("page", [*DECISIONS, ARCHITECTURE], ids=ids)
def test_named_tests_exist_and_run(page: Path) -> None:
    decorators = {test: find(test) for test in TEST_ID.findall(page.read_text())}
    assert [test for test, found in decorators.items() if found is None] == []
    assert [test for test, found in decorators.items() if found is not None and is_unkept(found)] == []


def test_index_has_every_decision_once() -> None:
    linked = re.findall(r"^- \[[^]]+\]\((\S+\.md)\): ", INDEX.read_text(), re.MULTILINE)
    assert sorted(linked) == [page.name for page in DECISIONS]


def test_private_name_has_a_test_or_an_explanation() -> None:
    text = ARCHITECTURE.read_text()
    rows = re.findall(r"^\| .+ \| ([^|]+) \|$", text.partition("## Private names")[2], re.MULTILINE)
    cells = [cell for cell in rows if cell not in ("Test", "---")]
    assert len(cells) > 30
    assert [cell for cell in cells if not (TEST_ID.search(cell) or cell.startswith("none yet"))] == []
