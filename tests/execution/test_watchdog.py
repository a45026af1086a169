"""The timer that ends a process whose task never gives up the interpreter, and how the tasks of a batch share it."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from lambda_tasks.limits import watchdog
from lambda_tasks.limits.alarms import KILL_GRACE, WATCHDOG_DELAY, TimeLimits, TimeoutContext

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


def test_unshared_timer_is_exact_and_cancelled(timer: Timer) -> None:
    for _ in range(2):
        with limits(timer):
            assert timer.due == timer.now + NEEDED
        assert timer.due is None
    assert timer.times_set == 2


class TestShared:
    def test_consecutive_tasks_share_the_timer(self, timer: Timer) -> None:
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

    def test_timer_is_reset_if_it_is_too_early(self, timer: Timer) -> None:
        with watchdog.shared():
            for _ in range(5):
                with limits(timer):
                    assert timer.due is not None
                    assert 0 <= timer.due - (timer.now + NEEDED) <= watchdog.SLACK
                    timer.now += watchdog.SLACK * 1.5
        assert timer.times_set == 5

    @pytest.mark.parametrize("hard", [30, 299, 302, 900])
    def test_timer_is_reset_for_another_limit(self, timer: Timer, hard: int) -> None:
        with watchdog.shared():
            with limits(timer):
                pass
            with limits(timer, hard):
                assert timer.due is not None
                late = timer.due - (timer.now + hard + KILL_GRACE + WATCHDOG_DELAY)
                assert 0 <= late <= watchdog.SLACK
        assert timer.times_set == 2

    def test_timer_due_soon_is_cancelled_between_tasks(self, timer: Timer) -> None:
        """The next claim may take longer, and must not be mistaken for a task that does not end."""
        with watchdog.shared():
            with limits(timer, 5):
                pass
            assert timer.due is None
            with limits(timer):
                timer.now += HARD - watchdog.IDLE / 2
            assert timer.due is None

    def test_timer_is_cancelled_when_a_batch_ends(self, timer: Timer) -> None:
        with pytest.raises(KeyboardInterrupt), watchdog.shared(), limits(timer):
            raise KeyboardInterrupt
        assert timer.due is None


def test_batches_in_other_threads_do_not_share_it(timer: Timer) -> None:
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
    def test_limits_inside_a_task_keep_its_timer(self, timer: Timer) -> None:
        with limits(timer):
            before = timer.due
            with TimeoutContext(1, 2):
                assert timer.due == before
            assert timer.due == before

    def test_run_inside_a_task_restores_its_timer(self, timer: Timer) -> None:
        with limits(timer):
            before = timer.due
            timer.now += 10
            with limits(timer, 20):
                assert timer.due == timer.now + 20 + KILL_GRACE + WATCHDOG_DELAY
                timer.now += 5
            assert timer.due == before

    def test_committed_run_inside_a_task_restores_its_timer(self, timer: Timer) -> None:
        with limits(timer):
            before = timer.due
            with TimeoutContext(10, 20), limits(timer, 20) as inner:
                assert timer.due != before
                inner.outlived()
                assert timer.due == before
            assert timer.due == before

    def test_committed_run_in_a_foreign_context_is_unwatched(self, timer: Timer) -> None:
        with TimeoutContext(10, 20), limits(timer) as inner:
            inner.outlived()
            assert timer.due is None

    def test_run_inside_a_committed_one_restores_the_deadline(self, timer: Timer) -> None:
        with TimeLimits(10, 20, on_overrun=int, deadline=timer.now + 600, clock=lambda: timer.now) as outer:
            outer.outlived()
            with limits(timer, 5):
                assert timer.due == timer.now + 5 + KILL_GRACE + WATCHDOG_DELAY
            assert timer.due == timer.now + 600

    def test_run_left_before_its_commit_changes_nothing(self, timer: Timer) -> None:
        """Its transaction was a savepoint of an outer transaction."""
        with TimeLimits(10, 20, on_overrun=int, deadline=timer.now + 600, clock=lambda: timer.now) as left:
            pass
        left.outlived()
        assert timer.due is None

    def test_overdue_timer_goes_off_immediately(self, timer: Timer) -> None:
        with limits(timer):
            with limits(timer, 20):
                timer.now += 2 * NEEDED
            assert timer.due is not None
            assert 0 < timer.due - timer.now < 1


def test_missing_stderr_disables_the_timer(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "__stderr__", None)
    with limits(timer):
        assert timer.due is None


PROGRAM = """
import os, sys
from lambda_tasks.limits import watchdog

with watchdog.shared():
    watchdog.end_process_in(100)
    child = os.fork()
    if child == 0:
        # Threads do not come along, and so no timer does: it has to be set anew.
        os._exit(0 if watchdog._due is None and not watchdog._shared else 1)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_process_has_no_timer() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
