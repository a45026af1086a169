"""Crash PostgreSQL while workers are at every failpoint, and restart it, with and without durable claims.

A server that crashes loses only commits that did not wait for the disk. With `durable_claims=False`, these are the
claims that no durable write has followed, which the worlds of `tests.simulation.crashes` count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests import services
from tests.faults.test_simulation import simulate
from tests.simulation.faults import CRASHED
from tests.simulation.report import Report

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.once,
    pytest.mark.skipif(not list(services.postgres_programs()), reason="no programs of PostgreSQL to start and crash"),
]

#: The failpoints of workers at the crash. Each of three parts covers all of them.
POINTS: Final = (
    "claim:after",
    "task:before_begin",
    "task:enter",
    "shop:inside",
    "task:leave",
    "finish:before_commit",
    "finish:after_commit",
    "retry:before_send",
    "retry:between",
    "settle:before_write",
    "settle:after_write",
)


def crash(tmp_path: Path, *arguments: str) -> Report:
    return simulate(tmp_path / "report.json", "crashes", "--parts", "3", *arguments)


def test_crash_with_forgotten_claims_loses_or_doubles_nothing(redis_server: object, tmp_path: Path) -> None:
    """`make crashes ARGS="--durable-claims no"` runs all combinations of crashes and dead workers."""
    report = crash(tmp_path, "--durable-claims", "no", "--part", "0", "--seeds", "1", "--first-seed", "1")
    assert report.sentences == []
    assert report.sums["claims lost in crashes"] >= 14
    assert report.sums["crashes of the database"] == 1 + 4
    assert [point for point in POINTS if not report.struck[f"{point}|{CRASHED}"]] == []


def test_crash_with_durable_claims_loses_or_doubles_nothing(redis_server: object, tmp_path: Path) -> None:
    report = crash(tmp_path, "--durable-claims", "yes", "--part", "1", "--seeds", "2", "--first-seed", "1")
    assert report.sentences == []
    assert report.sums["claims lost in crashes"] == 0
    assert report.sums["takeovers"] > 3
    assert [point for point in POINTS if not report.struck[f"{point}|{CRASHED}"]] == []
