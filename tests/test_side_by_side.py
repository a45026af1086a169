"""Work that is done in several threads: its order, its errors, and that no thread is left."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any

import pytest

from lambda_tasks.backends.side_by_side import THREAD_NAME, SideBySide
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded, TimeoutContext

#: Seconds after which a test that hangs is a failure.
PATIENCE = 30


class Strike(BaseException):
    """What an alarm raises in a test."""


class Failure(Exception):
    """What work raises in a test."""


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert threads_of_ours() == []


@contextmanager
def alarms(strike: Callable[[], object], *, after: float, every: float) -> Iterator[None]:
    """Inside, call `strike` in the main thread again and again."""

    def handler(signum: int, frame: FrameType | None) -> None:
        strike()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Line(deque[int]):
    """What waits to be begun; tells when the block is left, which is when nothing more is to be begun."""

    def __init__(self, length: int) -> None:
        super().__init__(range(length))
        self.left = threading.Event()

    def clear(self) -> None:
        super().clear()
        self.left.set()


class UnderWay:
    """Work that ends when the block is left, and not before."""

    def __init__(self, things: int, *, max_threads: int) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.all_threads_are_at_work = threading.Barrier(max_threads + 1)
        self.side_by_side = SideBySide(self.work, range(things), max_threads=max_threads)
        self.side_by_side._waiting = self.line = Line(things)

    def work(self, number: int) -> None:
        self.begun.append(number)
        self.all_threads_are_at_work.wait(PATIENCE)
        assert self.line.left.wait(PATIENCE)
        self.ended.append(number)


def done(work: Callable[[Any], Any], things: list[Any], *, max_threads: int) -> list[Any]:
    with SideBySide(work, things, max_threads=max_threads) as results:
        return list(results)


@pytest.mark.parametrize("max_threads", [1, 2, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_results_come_in_the_order_of_the_things(max_threads: int, count: int) -> None:
    assert done(lambda thing: thing * 2, list(range(count)), max_threads=max_threads) == list(range(0, 2 * count, 2))


def test_the_order_is_the_same_when_the_first_ends_last() -> None:
    others_are_done = threading.Barrier(2)

    def work(number: int) -> int:
        if number in (0, 2):
            others_are_done.wait(PATIENCE)
        return number

    assert done(work, [0, 1, 2], max_threads=2) == [0, 1, 2]


def test_as_many_are_under_way_as_there_are_threads() -> None:
    all_are_here = threading.Barrier(4)
    assert done(lambda _: all_are_here.wait(PATIENCE) >= 0, [1, 2, 3, 4], max_threads=4) == [True] * 4


@pytest.mark.parametrize(("count", "max_threads", "expected"), [(1, 8, 0), (5, 1, 0), (2, 8, 2), (50, 3, 3)])
def test_there_are_no_more_threads_than_asked_for_and_than_things(count: int, max_threads: int, expected: int) -> None:
    with SideBySide(lambda thing: thing, range(count), max_threads=max_threads) as results:
        assert len(results._threads) == expected
        assert list(results) == list(range(count))


def test_one_thread_is_the_callers_own() -> None:
    assert set(done(lambda _: threading.current_thread(), [1, 2], max_threads=1)) == {threading.current_thread()}


def test_where_no_thread_can_be_started_the_caller_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert set(done(lambda _: threading.current_thread(), [1, 2, 3], max_threads=2)) == {threading.current_thread()}


def test_where_one_thread_can_be_started_it_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def once(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", once)
    assert done(lambda _: threading.current_thread(), [1, 2, 3], max_threads=3) == started * 3


def test_threads_see_the_context_of_the_caller_and_cannot_change_it() -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    tenant.set("acme")

    def work(_: int) -> str:
        seen = tenant.get()
        tenant.set("somebody else")
        return seen

    assert done(work, [1, 2], max_threads=2)[0] == "acme"
    assert tenant.get() == "acme"


@pytest.mark.parametrize("max_threads", [1, 4])
def test_an_error_is_raised_when_its_turn_has_come(max_threads: int) -> None:
    def work(number: int) -> int:
        if number == 2:
            raise Failure(number)
        return number

    seen = []
    with pytest.raises(Failure), SideBySide(work, range(5), max_threads=max_threads) as results:
        for result in results:
            seen.append(result)
    assert seen == [0, 1]


def test_a_caller_that_leaves_early_waits_for_what_is_under_way_and_begins_no_more() -> None:
    under_way = UnderWay(100, max_threads=2)
    with pytest.raises(Failure), under_way.side_by_side:
        under_way.all_threads_are_at_work.wait(PATIENCE)
        raise Failure
    assert sorted(under_way.begun) == sorted(under_way.ended) == [0, 1]


def test_an_alarm_ends_the_waiting_but_not_before_what_is_under_way_has_ended() -> None:
    begun, ended, strikes = [], [], []
    go_on = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        assert go_on.wait(PATIENCE)
        ended.append(number)

    def strike() -> None:
        strikes.append(len(ended))
        if len(strikes) == 4:
            go_on.set()
        raise Strike(len(strikes))

    with (
        pytest.raises(Strike) as caught,
        alarms(strike, after=0.2, every=0.05),
        SideBySide(work, range(100), max_threads=3) as results,
    ):
        list(results)
    # The first one is what the caller sees, and the later ones were struck while it waited for the end.
    assert caught.value.args == (1,)
    assert strikes[:4] == [0, 0, 0, 0]
    assert sorted(begun) == sorted(ended) == [0, 1, 2]


def test_an_alarm_that_strikes_when_all_is_done_is_not_lost() -> None:
    go_on = threading.Event()

    def strike() -> None:
        go_on.set()
        raise Strike

    with (
        pytest.raises(Strike),
        alarms(strike, after=0.1, every=0),
        SideBySide(lambda _: go_on.wait(PATIENCE), [1, 2], max_threads=2),
    ):
        pass  # the caller is not interested in the results, and waits on leaving


def test_the_soft_limit_of_a_task_strikes_while_it_waits() -> None:
    under_way = UnderWay(100, max_threads=2)

    def wait() -> None:
        with under_way.side_by_side as results:
            under_way.all_threads_are_at_work.wait(PATIENCE)
            list(results)

    with pytest.raises(SoftTimeLimitExceeded), TimeoutContext(soft_timeout=1, hard_timeout=60):
        wait()
    assert sorted(under_way.begun) == sorted(under_way.ended) == [0, 1]


def test_the_hard_limit_of_a_task_strikes_while_it_waits() -> None:
    under_way = UnderWay(100, max_threads=2)

    def wait() -> None:
        with under_way.side_by_side as results:
            under_way.all_threads_are_at_work.wait(PATIENCE)
            with suppress(SoftTimeLimitExceeded):
                list(results)
            list(results)

    with pytest.raises(HardTimeLimitExceeded), TimeoutContext(soft_timeout=1, hard_timeout=1.2):
        wait()
    assert sorted(under_way.begun) == sorted(under_way.ended) == [0, 1]
