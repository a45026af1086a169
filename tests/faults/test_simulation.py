"""The simulation in small: that it runs, that it finds nothing, and that no point of the code escapes it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import lambda_tasks
from lambda_tasks.points import POINTS
from tests.simulation.report import Report

pytestmark = pytest.mark.once

PACKAGE: Final = Path(lambda_tasks.__file__).parent
ROOT: Final = PACKAGE.parent
#: Seconds that a small run may take on a machine that does much else.
PATIENCE: Final = 240


def simulate(report: Path, *arguments: str) -> Report:
    """Run the simulation in a process of its own, since it forks, and return what it found."""
    command = [sys.executable, "-m", "tests.simulation", *arguments, "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return Report.from_json(report.read_text())


def points_in_the_code() -> Iterator[str]:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "points.reached":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{file}:{node.lineno} computes the name of a point"
                yield name.value


def test_the_points_of_the_code_are_those_that_are_listed() -> None:
    assert set(points_in_the_code()) == set(POINTS)


def test_random_worlds_come_to_rest_with_nothing_lost_and_nothing_doubled(
    postgres: object, redis_server: object, tmp_path: Path
) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "3", "--first-seed", "1")
    assert report.sentences == []
    assert report.worlds == 3
    assert report.sums["orders committed"] > 20
    assert report.sums["faults"] > 20


def test_so_do_those_whose_claims_do_not_wait_for_the_disk(
    postgres: object, redis_server: object, tmp_path: Path
) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "1", "--first-seed", "4", "--durable-claims", "no")
    assert report.sentences == []
    assert report.sums["faults"] > 5


@pytest.mark.parametrize("part", [0, 20])
def test_a_part_of_the_sweep_finds_nothing(postgres: object, redis_server: object, tmp_path: Path, part: int) -> None:
    """The whole is `make sweep`, which CI runs; it also fails when there is a point at which nothing dies.

    The points of the outbox are met with `--outbox yes` alone, which CI runs for these points.
    """
    report = simulate(tmp_path / "report.json", "sweep", "--part", str(part), "--parts", "40")
    assert report.sentences == []
    assert report.sums["faults"] > 10


def test_with_the_outbox_nothing_is_lost_that_is_committed(
    postgres: object, redis_server: object, tmp_path: Path
) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "2", "--first-seed", "1", "--outbox", "yes")
    assert report.sentences == []
    assert report.sums["not sent (no outbox)"] == 0
    assert report.sums["faults"] > 20
    assert report.sums["relays of the outbox"] > 10


def test_nor_where_a_relay_is_struck_at_each_of_its_points(
    postgres: object, redis_server: object, tmp_path: Path
) -> None:
    arguments = ("sweep", "--outbox", "yes", "--kinds", "plain", "--points", "relay:", "--part", "0", "--parts", "3")
    report = simulate(tmp_path / "report.json", *arguments)
    assert report.sentences == []
    assert report.sums["faults"] > 20
    assert report.sums["messages sent again"] > 0


def test_the_claim_is_struck_on_mariadb_too(
    postgres: object, mariadb: object, redis_server: object, tmp_path: Path
) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "2", "--first-seed", "7", "--database", "mariadb")
    assert report.sentences == []
    assert report.sums["takeovers"] > 0
