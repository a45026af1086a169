"""The limits, with a clock that the tests set and alarms that they ring."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lambda_tasks.limits.alarms import (
    KILL_GRACE,
    HardTimeLimitExceeded,
    NoLimits,
    SoftTimeLimitExceeded,
    TimeLimits,
    TimeoutContext,
    _OuterAlarm,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def _nothing_stays_armed() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is handler


def ring() -> None:
    """What the timer does, at a moment that the test chooses."""
    signal.raise_signal(signal.SIGALRM)


def limits(clock: Clock, **options: Any) -> TimeLimits:
    return TimeLimits(270, 300, clock=clock, **options)


class TestEscalation:
    def test_alarm_before_the_soft_limit_does_nothing(self, clock: Clock) -> None:
        with limits(clock) as these, these.armed():
            clock.now += 269
            ring()

    def test_alarm_at_the_soft_limit_raises_once(self, clock: Clock) -> None:
        raised = []

        def work() -> None:
            clock.now += 270
            try:
                ring()
            except SoftTimeLimitExceeded as error:
                raised.append(str(error))
            ring()  # the second one is silent until the hard limit

        with limits(clock) as these, these.armed():
            work()
        assert raised == ["The soft timeout of 270 s has expired."]

    def test_except_exception_does_not_catch_the_hard_limit(self, clock: Clock) -> None:
        def work() -> None:
            clock.now += 300
            try:
                ring()
            except Exception:
                pytest.fail("the interrupt was caught")

        with pytest.raises(HardTimeLimitExceeded, match="300 s"), limits(clock) as these, these.armed():
            work()

    def test_swallowed_interrupts_come_again(self, clock: Clock) -> None:
        interrupts = []

        def work() -> None:
            clock.now += 300
            for _ in range(3):
                try:
                    ring()
                except BaseException as error:
                    interrupts.append(type(error).__name__)

        with pytest.raises(HardTimeLimitExceeded), limits(clock) as these, these.armed():
            work()
        assert interrupts == ["_HardInterrupt"] * 3

    def test_return_after_the_hard_limit_is_a_failure(self, clock: Clock) -> None:
        def work() -> str:
            clock.now += 300
            try:
                ring()
            except BaseException:
                return "as if nothing had happened"
            return "never"

        with pytest.raises(HardTimeLimitExceeded), limits(clock) as these, these.armed():
            work()

    def test_error_during_cleanup_is_the_cause(self, clock: Clock) -> None:
        def work() -> None:
            clock.now += 300
            try:
                ring()
            finally:
                raise KeyError("while tidying up")

        with pytest.raises(HardTimeLimitExceeded) as raised, limits(clock) as these, these.armed():
            work()
        assert isinstance(raised.value.__cause__, KeyError)

    def test_process_is_ended_after_the_grace_period(self, clock: Clock) -> None:
        overruns = []

        def work() -> None:
            clock.now += 300 + KILL_GRACE
            try:
                ring()
            except BaseException:
                overruns.append("interrupted")

        these = limits(clock, on_overrun=lambda: overruns.append("overrun"))
        with pytest.raises(HardTimeLimitExceeded), these, these.armed():
            work()
        assert overruns == ["overrun", "interrupted"]

    def test_traceback_shows_where_the_task_was(self, clock: Clock) -> None:
        def endless_loop() -> None:
            clock.now += 300
            ring()

        with pytest.raises(HardTimeLimitExceeded) as raised, limits(clock) as these, these.armed():
            endless_loop()
        assert "endless_loop" in [entry.name for entry in raised.traceback]
        assert raised.value.__suppress_context__


class TestInterruptedCode:
    def test_alarm_outside_of_armed_raises_nothing(self, clock: Clock) -> None:
        with limits(clock) as these:
            clock.now += 1_000
            ring()
            with these.armed():
                pass
            ring()

    def test_function_with_the_block_is_not_interrupted(self, clock: Clock) -> None:
        """Only functions that it calls are."""
        with pytest.raises(HardTimeLimitExceeded), limits(clock) as these, these.armed():
            clock.now += 1_000
            signal.raise_signal(signal.SIGALRM)  # between two lines of ours: it is put off …
            survived = True
            threading.Event().wait(30)  # … until there is a function to interrupt
        assert survived

    def test_limit_reached_before_armed_is_raised_inside(self, clock: Clock) -> None:
        """The limit is reached before the function is called, for example during a slow BEGIN."""
        with pytest.raises(SoftTimeLimitExceeded), limits(clock) as these:
            clock.now += 280
            with these.armed():
                threading.Event().wait(30)


class TestOuterAlarm:
    def test_outer_alarm_is_restored(self, clock: Clock) -> None:
        signal.setitimer(signal.ITIMER_REAL, 500)
        try:
            with limits(clock):
                clock.now += 100
            left, _ = signal.getitimer(signal.ITIMER_REAL)
            assert 390 < left <= 400
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
    def test_handler_of_before_is_restored(self, before: Any) -> None:
        outer = signal.signal(signal.SIGALRM, before)
        try:
            with TimeoutContext(soft_timeout=50, hard_timeout=60):
                assert signal.getsignal(signal.SIGALRM) != before
            assert signal.getsignal(signal.SIGALRM) == before
        finally:
            signal.signal(signal.SIGALRM, outer)

    def test_handler_of_c_code_becomes_the_default(self) -> None:
        outer = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        try:
            _OuterAlarm(handler=None).restore()  # what C code had set before Python started
            assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        finally:
            signal.signal(signal.SIGALRM, outer)

    def test_outer_alarm_due_inside_goes_off_inside(self, clock: Clock) -> None:
        calls = []
        before = signal.signal(signal.SIGALRM, lambda *_: calls.append(clock.now))
        signal.setitimer(signal.ITIMER_REAL, 50)
        try:
            with limits(clock):
                clock.now += 60
                ring()
                ring()
            assert calls == [1060.0]
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class TestTimeoutContext:
    def test_context_limits_its_body(self) -> None:
        with pytest.raises(SoftTimeLimitExceeded), TimeoutContext(0.05, 30):
            threading.Event().wait(30)

    def test_hard_limit_ends_code_that_swallows_interrupts(self) -> None:
        with pytest.raises(HardTimeLimitExceeded), TimeoutContext(soft_timeout=0.05, hard_timeout=0.1):
            while True:
                try:
                    threading.Event().wait(30)
                except Exception:
                    continue

    def test_nested_contexts_keep_their_own_times(self) -> None:
        with pytest.raises(SoftTimeLimitExceeded, match=r"0\.05 s"), TimeoutContext(0.05, 30), TimeoutContext(20, 30):
            threading.Event().wait(30)
        with TimeoutContext(20, 30):
            with pytest.raises(SoftTimeLimitExceeded, match=r"0\.05 s"), TimeoutContext(0.05, 30):
                threading.Event().wait(30)
            left, _ = signal.getitimer(signal.ITIMER_REAL)
            assert 15 < left <= 20

    @pytest.mark.parametrize(("soft", "hard"), [(0, 1), (1, 1), (2, 1), (-1, 1)])
    def test_invalid_limits_are_refused(self, soft: float, hard: float) -> None:
        with pytest.raises(ValueError, match="soft_timeout"):
            TimeoutContext(soft, hard)


def test_other_thread_is_not_limited_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    done = []

    def work() -> None:
        with TimeLimits(0.01, 0.02) as these, these.armed():
            threading.Event().wait(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert done == [True]
    assert "not enforced" in caplog.text


def test_no_limits_limit_nothing() -> None:
    with NoLimits() as these, these.armed():
        pass


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )


class TestWatchdog:
    PREPARE = """
        import ctypes, os, signal, time
        from lambda_tasks.limits import alarms
        alarms.KILL_GRACE = alarms.WATCHDOG_DELAY = 0.1
    """

    def test_code_that_holds_the_gil_is_ended(self) -> None:
        """The stacks are printed."""
        done = in_a_process(
            self.PREPARE
            + """
        def hold_the_gil():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # C code that no signal wakes
            ctypes.PyDLL(None).sleep(50)  # PyDLL keeps the interpreter's lock

        with alarms.TimeLimits(0.1, 0.2, on_overrun=lambda: print("overrun")) as limits, limits.armed():
            hold_the_gil()
            """
        )
        assert done.returncode == 1
        assert "Timeout (0:00:0" in done.stderr
        assert "in hold_the_gil" in done.stderr
        assert "overrun" not in done.stdout

    def test_code_that_swallows_everything_is_ended_by_overrun(self) -> None:
        done = in_a_process(
            self.PREPARE
            + """
        def swallow():
            while True:
                try:
                    time.sleep(50)
                except:
                    print("swallowed", flush=True)

        def overrun():
            print("overrun", flush=True)
            os._exit(7)

        alarms.WATCHDOG_DELAY = 20
        with alarms.TimeLimits(0.1, 0.2, on_overrun=overrun) as limits, limits.armed():
            swallow()
            """
        )
        assert done.returncode == 7, done.stderr
        assert done.stdout.split() == ["swallowed", "swallowed", "overrun"]

    def test_watchdog_is_cancelled_on_leaving(self) -> None:
        done = in_a_process(
            self.PREPARE
            + """
        with alarms.TimeLimits(0.1, 0.2, on_overrun=lambda: None) as limits, limits.armed():
            pass
        time.sleep(1)
        print("alive")
            """
        )
        assert (done.returncode, done.stdout) == (0, "alive\n")


def test_interrupt_lost_in_a_finalizer_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own hook imports modules, and the next interrupt may come in the middle of that.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)

    class Finalized:
        def __del__(self) -> None:
            try:
                threading.Event().wait(30)
            except BaseException as error:
                lost.append(type(error).__name__)
                raise

    def work(make: Callable[[], object]) -> None:
        make()
        threading.Event().wait(30)

    lost: list[str] = []
    with pytest.raises(HardTimeLimitExceeded), TimeoutContext(0.3, 0.4):
        work(Finalized)
    assert lost
