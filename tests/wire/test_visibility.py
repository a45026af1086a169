"""Visibility timeouts follow the longest limit of tasks, so that no message returns after its record is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_tasks.execution.pipeline import lease_for
from lambda_tasks.operations.doctor.findings import RESERVE
from lambda_tasks.settings import MAX_INSTANCES_TIMEOUT, MAX_TIMEOUT, MAX_VISIBILITY_TIMEOUT
from lambda_tasks.wire.visibility import MAX_BATCHING_WINDOW, advised_visibility, lost_after


@pytest.mark.parametrize(
    ("timeout", "window", "seconds"),
    [(600, 0, 3_600), (600, 20, 3_620), (5_400, 300, 32_700), (7_150, 300, 43_200), (7_151, 300, 43_200)],
)
def test_visibility_is_six_timeouts_at_most_12_hours(timeout: int, window: int, seconds: int) -> None:
    assert advised_visibility(timeout, window) == seconds


@pytest.mark.parametrize(("longest", "seconds"), [(None, 5_700), (900, 5_700), (1_800, 11_100), (5_400, 32_700)])
def test_record_is_lost_later_with_longer_limits(settings: Any, longest: int | None, seconds: int) -> None:
    if longest is not None:
        settings.LAMBDA_TASKS_MAX_TIMEOUT = longest
    assert lost_after() == seconds


@st.composite
def functions(draw: st.DrawFn) -> tuple[int, int, int, float]:
    """Draw a setting, the timeout of a function that fits it, a hard timeout, and when its run starts."""
    longest = draw(st.integers(MAX_TIMEOUT, MAX_INSTANCES_TIMEOUT))
    timeout = draw(st.integers(60, longest))
    hard = draw(st.integers(2, int(timeout - RESERVE)))
    return longest, timeout, hard, draw(st.floats(0, timeout - hard - RESERVE))


@given(functions(), st.integers(0, MAX_BATCHING_WINDOW))
def test_message_returns_between_the_lease_and_the_loss(function: tuple[int, int, int, float], window: int) -> None:
    """All times count from the receive. A run starts after the window, if the function has time for its limit."""
    longest, timeout, hard, start = function
    returns = advised_visibility(timeout, window)
    lease_ends = window + start + lease_for(hard)
    assert window + start + hard + RESERVE <= window + timeout <= returns <= MAX_VISIBILITY_TIMEOUT
    # A redelivery finds that the lease of a dead worker has expired, and uses up no further receive.
    assert lease_ends <= returns
    # The message comes back before its record counts as lost.
    assert returns <= lease_ends + advised_visibility(longest, MAX_BATCHING_WINDOW)
