"""PostgreSQL is shut down at once while workers stand everywhere, and starts again: with and without durable claims.

A server that crashes forgets what was committed without waiting for the disk. With `durable_claims=False` that
is every claim that nothing durable has followed; the worlds of `tests.simulation.crashes` count them.
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
    pytest.mark.once,
    pytest.mark.skipif(not list(services.postgres_programs()), reason="no programs of PostgreSQL to start and crash"),
]

#: Where workers stand when the server crashes: each of three parts comes to all of them.
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


def test_nothing_is_lost_or_doubled_where_the_crash_has_made_the_server_forget_claims(
    redis_server: object, tmp_path: Path
) -> None:
    """The whole, with every fate of every worker, is `make crashes ARGS="--durable-claims no"`."""
    report = crash(tmp_path, "--durable-claims", "no", "--part", "0", "--seeds", "1", "--first-seed", "1")
    assert report.sentences == []
    assert report.sums["claims forgotten by it"] >= 14
    assert report.sums["crashes of the database"] == 1 + 4
    assert [point for point in POINTS if not report.struck[f"{point}|{CRASHED}"]] == []


def test_nor_where_it_remembers_them_all(redis_server: object, tmp_path: Path) -> None:
    report = crash(tmp_path, "--durable-claims", "yes", "--part", "1", "--seeds", "2", "--first-seed", "1")
    assert report.sentences == []
    assert report.sums["claims forgotten by it"] == 0
    assert report.sums["takeovers"] > 3
    assert [point for point in POINTS if not report.struck[f"{point}|{CRASHED}"]] == []
