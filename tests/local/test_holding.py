"""The heartbeats of messages that a worker holds, with a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import ClientError

from lambda_tasks.local.holding import MAX_INVISIBLE, MIN_EXTENSION, HeldMessages
from lambda_tasks.local.progress import Event, Trouble

THROTTLED = ClientError({"Error": {"Code": "RequestThrottled"}}, "ChangeMessageVisibilityBatch")


@dataclass(eq=False)
class Source:
    """A queue that notes the heartbeats, and fails with the errors in `failures` first."""

    visibility_timeout: int = 90
    name: str = "default"
    beats: list[tuple[list[str], int]] = field(default_factory=list)
    failures: list[Exception | str] = field(default_factory=list)

    def change_visibility(self, messages: Any, seconds: int) -> list[str]:
        self.beats.append(([message["MessageId"] for message in messages], seconds))
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, Exception):
            raise failure
        return [] if failure is None else [failure]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def message(name: str) -> dict[str, str]:
    return {"MessageId": name, "ReceiptHandle": f"receipt-{name}"}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def held(clock: Clock, events: list[Event]) -> HeldMessages:
    return HeldMessages(is_on=True, report=events.append, clock=clock)


def test_heartbeat_comes_after_a_third_of_the_timeout(held: HeldMessages, clock: Clock) -> None:
    source: Any = Source(90)
    held.add(source, [message("a"), message("b")])

    clock.now += 29
    held.beat()
    assert source.beats == []
    clock.now += 1
    held.beat()
    held.beat()
    assert source.beats == [(["a", "b"], 90)]
    clock.now += 30
    held.beat()
    assert source.beats == [(["a", "b"], 90)] * 2


def test_short_timeout_is_extended_by_more(held: HeldMessages, clock: Clock) -> None:
    source: Any = Source(1)
    held.add(source, [message("a")])
    clock.now += 1
    held.beat()
    assert source.beats == [(["a"], MIN_EXTENSION)]


def test_released_messages_have_no_heartbeat(held: HeldMessages, clock: Clock) -> None:
    source: Any = Source()
    held.add(source, [message("a"), message("b")])
    held.release([message("a"), message("unknown")])
    clock.now += 60
    held.beat()
    assert source.beats == [(["b"], 90)]


@pytest.mark.parametrize("failure", [THROTTLED, "SQS did not change the visibility timeout of a: InternalError"])
def test_failed_heartbeat_is_reported_and_repeated(
    held: HeldMessages, clock: Clock, events: list[Event], failure: Exception | str
) -> None:
    source: Any = Source(failures=[failure])
    held.add(source, [message("a")])
    clock.now += 30
    held.beat()
    [trouble] = events
    assert isinstance(trouble, Trouble)
    assert trouble.environment == "default"
    assert ("not extended, trying again in 5 s" in trouble.text) == isinstance(failure, Exception)

    clock.now += 5  # long before the timeout of 90 s ends
    held.beat()
    assert len(source.beats) == 2
    assert len(events) == 1


def test_twelve_hours_are_never_exceeded(held: HeldMessages, clock: Clock, events: list[Event]) -> None:
    source: Any = Source(3600)
    held.add(source, [message("a")])
    began = clock.now
    ends: list[float] = []
    while clock.now < began + MAX_INVISIBLE + 7200:
        before = len(source.beats)
        held.beat()
        ends += [clock.now + seconds for _, seconds in source.beats[before:]]
        clock.now += 60
    assert began + MAX_INVISIBLE - 60 < max(ends) <= began + MAX_INVISIBLE
    [trouble] = events
    assert "at most 12 hours, so a will be redelivered" in str(trouble)
    assert source.beats[-1][1] < 3600
