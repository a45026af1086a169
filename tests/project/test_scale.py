"""The page on scale shows the tables of the last measurement."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from benchmarks.report import Table
from tests.named_tests import ROOT

pytestmark = pytest.mark.once

PAGE: Final = ROOT / "docs/scale.md"
REPORT: Final[dict[str, Any]] = json.loads((ROOT / "docs/benchmarks/reports.json").read_text())["scale"]


@pytest.mark.parametrize("number", range(4))
def test_table_is_that_of_the_report(number: int) -> None:
    table = REPORT["tables"][number]
    assert "\n".join([table["caption"], "", *Table(**table).lines()]) in PAGE.read_text()


def test_assumptions_are_those_of_the_report() -> None:
    for remark in REPORT["remarks"][:2]:
        assert remark in PAGE.read_text()
