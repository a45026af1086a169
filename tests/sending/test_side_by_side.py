"""Work in several threads: the order of results, errors, and the end of all threads."""

from __future__ import annotations

import gc
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from types import FrameType
from typing import Any

import pytest

from lambda_tasks.sending.side_by_side import THREAD_NAME, SideBySide
from lambda_tasks.timeouts import HardTimeLimitExceeded, SoftTimeLimitExceeded, TimeoutContext

#: Seconds after which a test that hangs fails.
PATIENCE = 30


class Strike(BaseException):
    """An exception that an alarm raises in a test."""


class Failure(Exception):
    """An exception that work raises in a test."""


def worker_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert worker_threads() == []


@contextmanager
def alarms(strike: Callable[[], object], *, after: float, every: float) -> Iterator[None]:
    """Call `strike` repeatedly in the main thread while the block runs."""

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
    """The items that are not yet started. `left` is set when the block is left, after which no item starts."""

    def __init__(self, length: int) -> None:
        super().__init__(range(length))
        self.left = threading.Event()

    def clear(self) -> None:
        super().clear()
        self.left.set()


class UnderWay:
    """Work that ends only after the block is left."""

    def __init__(self, things: int, *, max_threads: int) -> None:
        self.started: list[int] = []
        self.ended: list[int] = []
        self.all_threads_are_at_work = threading.Barrier(max_threads + 1)
        self.side_by_side = SideBySide(self.work, range(things), max_threads=max_threads)
        self.side_by_side._waiting = self.line = Line(things)

    def work(self, number: int) -> None:
        self.started.append(number)
        self.all_threads_are_at_work.wait(PATIENCE)
        assert self.line.left.wait(PATIENCE)
        self.ended.append(number)


def done(work: Callable[[Any], Any], things: list[Any], *, max_threads: int) -> list[Any]:
    with SideBySide(work, things, max_threads=max_threads) as results:
        return list(results)


@pytest.mark.parametrize("max_threads", [1, 2, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_results_have_the_order_of_the_items(max_threads: int, count: int) -> None:
    assert done(lambda thing: thing * 2, list(range(count)), max_threads=max_threads) == list(range(0, 2 * count, 2))


def test_order_is_independent_of_the_ends() -> None:
    others_are_done = threading.Barrier(2)

    def work(number: int) -> int:
        if number in (0, 2):
            others_are_done.wait(PATIENCE)
        return number

    assert done(work, [0, 1, 2], max_threads=2) == [0, 1, 2]


def test_each_thread_works_simultaneously() -> None:
    all_are_here = threading.Barrier(4)
    assert done(lambda _: all_are_here.wait(PATIENCE) >= 0, [1, 2, 3, 4], max_threads=4) == [True] * 4


@pytest.mark.parametrize(("count", "max_threads", "expected"), [(1, 8, 0), (5, 1, 0), (2, 8, 2), (50, 3, 3)])
def test_threads_are_limited_by_option_and_items(count: int, max_threads: int, expected: int) -> None:
    with SideBySide(lambda thing: thing, range(count), max_threads=max_threads) as results:
        assert len(results._threads) == expected
        assert list(results) == list(range(count))


def test_single_thread_is_the_callers() -> None:
    assert set(done(lambda _: threading.current_thread(), [1, 2], max_threads=1)) == {threading.current_thread()}


def test_caller_works_if_threads_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert set(done(lambda _: threading.current_thread(), [1, 2, 3], max_threads=2)) == {threading.current_thread()}


def test_single_started_thread_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def once(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", once)
    assert done(lambda _: threading.current_thread(), [1, 2, 3], max_threads=3) == started * 3


def test_threads_run_in_a_copy_of_the_context() -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="none")
    tenant.set("acme")

    def work(_: int) -> str:
        seen = tenant.get()
        tenant.set("globex")
        return seen

    assert done(work, [1, 2], max_threads=2)[0] == "acme"
    assert tenant.get() == "acme"


@pytest.mark.parametrize("max_threads", [1, 4])
def test_error_is_raised_in_order(max_threads: int) -> None:
    def work(number: int) -> int:
        if number == 2:
            raise Failure(number)
        return number

    seen = []
    with pytest.raises(Failure), SideBySide(work, range(5), max_threads=max_threads) as results:
        for result in results:
            seen.append(result)
    assert seen == [0, 1]


def test_early_exit_waits_for_running_work() -> None:
    """No other work starts."""
    under_way = UnderWay(100, max_threads=2)
    with pytest.raises(Failure), under_way.side_by_side:
        under_way.all_threads_are_at_work.wait(PATIENCE)
        raise Failure
    assert sorted(under_way.started) == sorted(under_way.ended) == [0, 1]


def test_alarm_is_raised_after_running_work_has_ended() -> None:
    started, ended, strikes = [], [], []
    go_on = threading.Event()

    def work(number: int) -> None:
        started.append(number)
        assert go_on.wait(PATIENCE)
        ended.append(number)

    def strike() -> None:
        strikes.append(len(ended))
        if len(strikes) == 4:
            go_on.set()
        raise Strike(len(strikes))

    gc.disable()  # an exception in a callback of the collector (hypothesis has one) would be reported and lost
    try:
        with (
            pytest.raises(Strike) as caught,
            alarms(strike, after=0.2, every=0.05),
            SideBySide(work, range(100), max_threads=3) as results,
        ):
            list(results)
    finally:
        gc.enable()
    # The caller gets the first exception. The later ones were raised while it waited for the work to end.
    assert caught.value.args == (1,)
    assert strikes[:4] == [0, 0, 0, 0]
    assert sorted(started) == sorted(ended) == [0, 1, 2]


def test_alarm_after_the_last_result_is_raised() -> None:
    go_on = threading.Event()

    def strike() -> None:
        go_on.set()
        raise Strike

    with (
        pytest.raises(Strike),
        alarms(strike, after=0.1, every=0),
        SideBySide(lambda _: go_on.wait(PATIENCE), [1, 2], max_threads=2),
    ):
        pass  # the caller ignores the results, and waits when the block is left


def test_soft_limit_interrupts_waiting() -> None:
    under_way = UnderWay(100, max_threads=2)

    def wait() -> None:
        with under_way.side_by_side as results:
            under_way.all_threads_are_at_work.wait(PATIENCE)
            list(results)

    with pytest.raises(SoftTimeLimitExceeded), TimeoutContext(soft_timeout=1, hard_timeout=60):
        wait()
    assert sorted(under_way.started) == sorted(under_way.ended) == [0, 1]


def test_hard_limit_interrupts_waiting() -> None:
    under_way = UnderWay(100, max_threads=2)

    def wait() -> None:
        with under_way.side_by_side as results:
            under_way.all_threads_are_at_work.wait(PATIENCE)
            with suppress(SoftTimeLimitExceeded):
                list(results)
            list(results)

    with pytest.raises(HardTimeLimitExceeded), TimeoutContext(soft_timeout=1, hard_timeout=1.2):
        wait()
    assert sorted(under_way.started) == sorted(under_way.ended) == [0, 1]
