"""The clock of the calls and runs of `lambda_tasks.contrib.celery`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lambda_tasks.contrib.celery import calls, parameters


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the calls and of the runs, in a list that the test may change."""
    time = [1_800_000_000.0]
    for module in (calls, parameters):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: time[0]))
    return time
