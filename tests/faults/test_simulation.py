"""Run small simulations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.simulation.report import Report

pytestmark = [pytest.mark.thorough, pytest.mark.once]

ROOT: Final = Path(__file__).parent.parent.parent
#: Seconds that a small run may take on a busy machine.
PATIENCE: Final = 240


def simulate(report: Path, *arguments: str) -> Report:
    """Run the simulation in a separate process, because it forks, and return its report."""
    command = [sys.executable, "-m", "tests.simulation", *arguments, "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return Report.from_json(report.read_text())


def test_random_worlds_lose_and_double_nothing(postgres: object, redis_server: object, tmp_path: Path) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "3", "--first-seed", "1")
    assert report.sentences == []
    assert report.worlds == 3
    assert report.sums["orders committed"] > 20
    assert report.sums["faults"] > 20


def test_forgotten_successes_run_once(postgres: object, redis_server: object, tmp_path: Path) -> None:
    arguments = ("chaos", "--seeds", "2", "--first-seed", "1", "--kinds", "brief")
    report = simulate(tmp_path / "report.json", *arguments)
    assert report.sentences == []
    assert report.sums["successes forgotten"] > 10
    assert report.sums["duplicates"] > 5


def test_partitioned_records_lose_and_double_nothing(postgres: object, redis_server: object, tmp_path: Path) -> None:
    arguments = ("--seeds", "2", "--first-seed", "5", "--partitioned", "yes")
    report = simulate(tmp_path / "report.json", "chaos", *arguments)
    assert report.sentences == []
    assert report.sums["takeovers"] > 0
    assert report.sums["faults"] > 10


def test_non_durable_claims_lose_and_double_nothing(postgres: object, redis_server: object, tmp_path: Path) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "1", "--first-seed", "4", "--durable-claims", "no")
    assert report.sentences == []
    assert report.sums["faults"] > 5


@pytest.mark.parametrize("part", [0, 20])
def test_part_of_the_sweep_finds_nothing(postgres: object, redis_server: object, tmp_path: Path, part: int) -> None:
    """CI runs the whole sweep, `make sweep`, which also fails if no worker dies at one of the points.

    Only `--outbox yes` reaches the points of the outbox, for which CI runs it.
    """
    report = simulate(tmp_path / "report.json", "sweep", "--part", str(part), "--parts", "40")
    assert report.sentences == []
    assert report.sums["faults"] > 10


def test_outbox_loses_no_committed_message(postgres: object, redis_server: object, tmp_path: Path) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "2", "--first-seed", "1", "--outbox", "yes")
    assert report.sentences == []
    assert report.sums["not sent (no outbox)"] == 0
    assert report.sums["faults"] > 20
    assert report.sums["relays of the outbox"] > 10


def test_relay_struck_at_any_point_loses_nothing(postgres: object, redis_server: object, tmp_path: Path) -> None:
    arguments = ("sweep", "--outbox", "yes", "--kinds", "plain", "--points", "relay:", "--part", "0", "--parts", "3")
    report = simulate(tmp_path / "report.json", *arguments)
    assert report.sentences == []
    assert report.sums["faults"] > 20
    assert report.sums["messages sent again"] > 0


def test_random_worlds_on_mariadb_lose_nothing(
    postgres: object, mariadb: object, redis_server: object, tmp_path: Path
) -> None:
    report = simulate(tmp_path / "report.json", "chaos", "--seeds", "2", "--first-seed", "7", "--database", "mariadb")
    assert report.sentences == []
    assert report.sums["takeovers"] > 0


@pytest.mark.parametrize("options", [(), ("--outbox", "yes"), ("--database", "mariadb")], ids=str)
def test_no_tick_is_missed_or_doubled(
    postgres: object, mariadb: object, redis_server: object, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """CI runs all faults at all failpoints of schedules."""
    arguments = ("ticks", "--seeds", "2", "--first-seed", "1", "--part", "1", "--parts", "8", *options)
    report = simulate(tmp_path / "report.json", *arguments)
    assert report.sentences == []
    assert report.sums["ticks"] > 10
    assert report.sums["faults"] > 5


@pytest.mark.parametrize("options", [(), ("--outbox", "yes")], ids=str)
def test_stored_arguments_are_never_missing(
    postgres: object, redis_server: object, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """CI has more failpoints of a task whose arguments are stored outside of its messages."""
    kinds = ("--kinds", "large", "--points", "arguments:", "retry:between")
    report = simulate(tmp_path / "report.json", "sweep", *kinds, "--part", "0", "--parts", "3", *options)
    assert report.sentences == []
    assert report.sums["faults"] > 5


@pytest.mark.parametrize("options", [(), ("--outbox", "yes"), ("--database", "mariadb")], ids=str)
def test_followers_are_neither_lost_nor_doubled(
    postgres: object, mariadb: object, redis_server: object, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """CI has more faults at the end of tasks that others follow, and `make sweep` has all of them."""
    kinds = ("--kinds", "followed", "chain_failing", "grouped", "--points", "flow:")
    report = simulate(tmp_path / "report.json", "sweep", *kinds, "--part", "7", "--parts", "40", *options)
    assert report.sentences == []
    assert report.sums["faults"] > 10
