"""The table of faults names existing tests that run, one or more for each fault. The failpoints are listed."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lambda_tasks.failpoints import POINTS
from tests.named_tests import ROOT, find, is_unkept, read_rows

pytestmark = pytest.mark.once

PAGE: Final = ROOT / "docs/faults.md"
ROWS: Final = list(read_rows(PAGE, "Fault", "What happens", "Tested by"))
NAMED: Final = sorted({test for row in ROWS for test in row.tests})


def test_every_table_of_the_page_is_read() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    sections = Counter(row.section for row in ROWS)
    # Each table has a header, and a line below it.
    assert len(rows) == len(ROWS) + 2 * len(sections)
    assert len(ROWS) > 70
    assert min(sections.values()) > 3


def test_every_fault_has_only_tests_in_its_cell() -> None:
    assert [str(row) for row in ROWS if min(map(len, row.cells[:2])) < 8 or not row.tests] == []
    assert [str(row) for row in ROWS if row.text_without_tests] == []


def test_each_fault_is_listed_once() -> None:
    faults = Counter(row.cells[0] for row in ROWS)
    assert [fault for fault, count in faults.items() if count > 1] == []


def test_row_names_each_test_once() -> None:
    assert [str(row) for row in ROWS if len(set(row.tests)) < len(row.tests)] == []


def test_tests_of_the_faults_exist() -> None:
    assert [test for test in NAMED if find(test) is None] == []


def test_tests_of_the_faults_must_pass() -> None:
    assert [test for test in NAMED if is_unkept(find(test) or [])] == []


def test_every_fault_suite_file_is_on_page() -> None:
    files = {f"tests/faults/{path.name}" for path in (Path(__file__).parents[1] / "faults").glob("test_*.py")}
    assert files - {test.partition("::")[0] for test in NAMED} == set()


# Failpoints


def points_in_the_code() -> Iterator[str]:
    for file in (ROOT / "lambda_tasks").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.reached":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{file}:{node.lineno} must pass a literal name"
                yield name.value


def test_points_in_the_code_are_listed() -> None:
    assert set(points_in_the_code()) == set(POINTS)
