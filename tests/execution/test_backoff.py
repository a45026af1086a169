"""How long messages are postponed, and which outages they survive: numbers and a simulated clock, without sleeping."""

from __future__ import annotations

from pathlib import Path

import pytest

from lambda_tasks.execution import backoff
from lambda_tasks.execution.backoff import foreign_pause, handed_back_pause, in_words, outage_pause, survived_outage
from lambda_tasks.foundation.forks import random
from lambda_tasks.settings import MAX_INSTANCES_TIMEOUT, MAX_VISIBILITY_TIMEOUT

HOUR = 3600
PAGE = Path(__file__).parents[2] / "docs/howto/deploying.md"


def receives_during(outage: float) -> int:
    """Receive a message until the outage has ended; return the number of the receive that runs it."""
    now, receives = 0.0, 1
    while now < outage:
        now += outage_pause(receives)
        receives += 1
    return receives


@pytest.mark.parametrize("max_receive_count", [1, 2, 3, 5, 10])
def test_outage_of_documented_length_is_survived(max_receive_count: int) -> None:
    survived = survived_outage(max_receive_count)
    assert all(receives_during(survived) <= max_receive_count for _ in range(50))


@pytest.mark.parametrize("max_receive_count", [2, 5, 10])
def test_documented_length_is_not_much_too_short(max_receive_count: int) -> None:
    longest = survived_outage(max_receive_count) * (1 + backoff.JITTER) + 1
    assert receives_during(longest) > max_receive_count


def test_five_receives_survive_hours() -> None:
    assert survived_outage(5) >= 6 * HOUR
    assert survived_outage(10) >= 46 * HOUR


def test_short_outages_cost_little() -> None:
    assert outage_pause(1) <= 30
    assert receives_during(15) == 2


def test_pauses_outgrow_the_outage_so_far() -> None:
    for receives in (2, 3, 4):
        assert backoff.least_outage_pause(receives) > 8 * survived_outage(receives)


@pytest.mark.parametrize("pause", [outage_pause, foreign_pause, handed_back_pause])
def test_pauses_have_jitter_and_never_shrink(pause: backoff.Pause) -> None:
    longest = 0.0
    for receives in range(1, 30):
        drawn = [pause(receives) for _ in range(50)]
        assert len(set(drawn)) > 1
        assert max(drawn) > longest / (1 + backoff.JITTER)
        longest = max(drawn)


@pytest.mark.parametrize("pause", [outage_pause, foreign_pause, handed_back_pause])
@pytest.mark.parametrize("receives", [-1, 0, 1, 5, 1000, 10**15])
def test_sqs_takes_every_pause(pause: backoff.Pause, receives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQS counts from the receive: the longest invocation, 5,400 s, precedes the pause."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    assert 0 < pause(receives) <= MAX_VISIBILITY_TIMEOUT - MAX_INSTANCES_TIMEOUT - 300


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3600, "1 h"), (22_220, "6 h 10 min"), (172_800, "48 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize("max_receive_count", [1, 3, 5, 10])
def test_page_states_the_survived_outage(max_receive_count: int) -> None:
    assert f"| {max_receive_count} | {in_words(survived_outage(max_receive_count))} |" in PAGE.read_text()
