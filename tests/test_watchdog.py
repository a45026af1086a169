"""The timer that ends a process whose task never gives up the interpreter, and how the tasks of a batch share it."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from lambda_tasks import watchdog
from lambda_tasks.timeouts import KILL_GRACE, WATCHDOG_DELAY, TimeLimits, TimeoutContext

HARD = 300
NEEDED = HARD + KILL_GRACE + WATCHDOG_DELAY


class Timer:
    """Stands in for faulthandler's; the test sets the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: float | None = None
        self.times_set = 0

    def set(self, seconds: float, **_: Any) -> None:
        self.due = self.now + seconds
        self.times_set += 1

    def cancel(self) -> None:
        self.due = None


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    timer = Timer()
    monkeypatch.setattr(faulthandler, "dump_traceback_later", timer.set)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", timer.cancel)
    monkeypatch.setattr(time, "monotonic", lambda: timer.now)
    return timer


def limits(timer: Timer, hard: float = HARD) -> TimeLimits:
    return TimeLimits(hard * 0.9, hard, on_overrun=int, clock=lambda: timer.now)


def test_alone_it_is_set_to_the_second_and_called_off(timer: Timer) -> None:
    for _ in range(2):
        with limits(timer):
            assert timer.due == timer.now + NEEDED
        assert timer.due is None
    assert timer.times_set == 2


class TestShared:
    def test_tasks_that_follow_one_another_at_once_share_it(self, timer: Timer) -> None:
        with watchdog.shared():
            for _ in range(10):
                with limits(timer):
                    assert timer.due is not None
                    # Never before its time, and late by a second at most.
                    assert 0 <= timer.due - (timer.now + NEEDED) <= watchdog.SLACK
                timer.now += 0.05
                assert timer.due is not None
        assert timer.due is None
        assert timer.times_set == 1

    def test_it_is_set_anew_when_it_would_come_too_early(self, timer: Timer) -> None:
        with watchdog.shared():
            for _ in range(5):
                with limits(timer):
                    assert timer.due is not None
                    assert 0 <= timer.due - (timer.now + NEEDED) <= watchdog.SLACK
                    timer.now += watchdog.SLACK * 1.5
        assert timer.times_set == 5

    @pytest.mark.parametrize("hard", [30, 299, 302, 900])
    def test_it_is_set_anew_for_another_limit(self, timer: Timer, hard: int) -> None:
        with watchdog.shared():
            with limits(timer):
                pass
            with limits(timer, hard):
                assert timer.due is not None
                late = timer.due - (timer.now + hard + KILL_GRACE + WATCHDOG_DELAY)
                assert 0 <= late <= watchdog.SLACK
        assert timer.times_set == 2

    def test_what_is_due_soon_does_not_wait_for_the_next_task(self, timer: Timer) -> None:
        """Whoever claims that may take longer, and is no task that never ends."""
        with watchdog.shared():
            with limits(timer, 5):
                pass
            assert timer.due is None
            with limits(timer):
                timer.now += HARD - watchdog.IDLE / 2
            assert timer.due is None

    def test_nothing_stays_set_however_a_batch_ends(self, timer: Timer) -> None:
        with pytest.raises(KeyboardInterrupt), watchdog.shared(), limits(timer):
            raise KeyboardInterrupt
        assert timer.due is None


def test_batches_in_other_threads_have_no_part_in_it(timer: Timer) -> None:
    both_are_inside, may_leave = threading.Barrier(2), threading.Event()

    def run_batch() -> None:
        with watchdog.shared():
            both_are_inside.wait(30)
            may_leave.wait(30)

    thread = threading.Thread(target=run_batch)
    thread.start()
    with watchdog.shared():
        both_are_inside.wait(30)
    may_leave.set()
    thread.join()
    with limits(timer):
        assert timer.due == timer.now + NEEDED


class TestInside:
    def test_limits_inside_of_a_task_leave_the_tasks_own(self, timer: Timer) -> None:
        with limits(timer):
            before = timer.due
            with TimeoutContext(1, 2):
                assert timer.due == before
            assert timer.due == before

    def test_a_run_inside_of_a_task_gives_the_tasks_own_back(self, timer: Timer) -> None:
        with limits(timer):
            before = timer.due
            timer.now += 10
            with limits(timer, 20):
                assert timer.due == timer.now + 20 + KILL_GRACE + WATCHDOG_DELAY
                timer.now += 5
            assert timer.due == before

    def test_one_that_should_have_struck_already_strikes_at_once(self, timer: Timer) -> None:
        with limits(timer):
            with limits(timer, 20):
                timer.now += 2 * NEEDED
            assert timer.due is not None
            assert 0 < timer.due - timer.now < 1


def test_without_a_place_to_print_to_it_is_not_set(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", None)
    with limits(timer):
        assert timer.due is None


PROGRAM = """
import os, sys
from lambda_tasks import watchdog

with watchdog.shared():
    watchdog.end_process_in(100)
    child = os.fork()
    if child == 0:
        # Threads do not come along, and so no timer does: it has to be set anew.
        os._exit(0 if watchdog._due is None and not watchdog._shared else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_knows_that_it_has_none() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
