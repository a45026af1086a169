"""Enforce time limits on code in the main thread with SIGALRM (Unix only).

At the soft limit `SoftTimeLimitExceeded` is raised once, so that the code can clean up. At the hard limit an interrupt
that `except Exception` does not catch is raised, and again every half second until the code ends. If the code does not
end even then, its process is ended; see `TimeLimits`.

An alarm raises only while code under limits is on the stack. A limit that expires outside of it, for example during
COMMIT, does not raise, because the interrupted operation could not be undone.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final

from asgiref.current_thread_executor import _WorkItem

from lambda_tasks.limits import watchdog
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.timeouts")

#: Seconds between two interrupts of code that swallows them (`except:`, a `__del__`).
REPEAT_EVERY: Final = 0.5
#: Seconds between the hard limit and the end of a process whose task still runs.
KILL_GRACE: Final = 3.0
#: Seconds after `KILL_GRACE` at which the process is ended even if the task never releases the GIL.
WATCHDOG_DELAY: Final = 1.0
#: Seconds by which an alarm is postponed that arrives while this module's own code runs.
_POSTPONE: Final = 0.005

try:
    # The public `signal.signal()` also converts the result to an enum, by an exception if it is a function. That took
    # a task 40,000 of 1,210,000 instructions on Python 3.11.
    from _signal import signal as _set_handler  # type: ignore[import-not-found]
except ImportError:  # another implementation of Python
    _set_handler = signal.signal

#: As integers, which is how `_signal` has them.
_DEFAULT_HANDLER: Final = int(signal.SIG_DFL)


class SoftTimeLimitExceeded(Exception):
    """Raised once inside a task when its soft timeout expires. The task may catch it to clean up."""

    __module__ = "lambda_tasks.timeouts"  # where users import it from, and what tracebacks show


class HardTimeLimitExceeded(Exception):
    """The error of a task that was still running when its hard timeout expired."""

    __module__ = "lambda_tasks.timeouts"  # where users import it from, and what tracebacks show


class _HardInterrupt(BaseException):
    """Interrupts the task without being caught by `except Exception`; converted to `HardTimeLimitExceeded`."""


class TimeLimits:
    """A clock with a soft and a hard limit, in seconds, for the code inside `with limits.armed():`.

    The clock starts when the limits are entered. Alarms raise only inside `armed()`. Leaving `armed()` after the hard
    limit raises `HardTimeLimitExceeded`, even if the code has swallowed the interrupt.

    `on_overrun` is called in the main thread if the code still runs `KILL_GRACE` seconds after the hard limit, and is
    expected to end the process. `WATCHDOG_DELAY` seconds later, or up to `watchdog.SLACK` seconds after that,
    `faulthandler` prints all stacks and ends the process, even if the code never releases the GIL. Without
    `on_overrun`, the process is not ended.

    After `outlived()` the limits no longer end the process, since the work of the code is committed. Instead,
    `faulthandler` ends it at `deadline` (by `clock`), or never if that is None.

    In a thread other than the main thread, the limits are not enforced, and a warning is logged: Python delivers
    signals only to the main thread.

    An alarm that was already set keeps its time. It goes off while the limits are active if it is due, and is restored
    with the remaining time when they are left.
    """

    def __init__(
        self,
        soft_timeout: float,
        hard_timeout: float,
        *,
        on_overrun: Callable[[], object] | None = None,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < soft_timeout < hard_timeout:
            raise ValueError(
                "soft_timeout must be positive and shorter than hard_timeout, "
                f"not {soft_timeout} s with a hard_timeout of {hard_timeout} s."
            )
        self.soft_timeout = soft_timeout
        self.hard_timeout = hard_timeout
        self.hard_reached = False
        #: Whether a limit has interrupted the code, even if the code has swallowed the interrupt.
        self.interrupted = False
        self._soft_reached = False
        self._on_overrun = on_overrun
        self._deadline = deadline
        self._outlived = False
        self._clock = clock
        self._armed = False
        self._owner: FrameType | None = None
        self._active = False
        self._deliver: Callable[[BaseException], object] | None = None
        self._outer = _NO_ALARM
        self._outer_limits: TimeLimits | None = None

    def __enter__(self) -> TimeLimits:
        self._started = self._clock()
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            logger.warning("The time limits of this task are not enforced, since it does not run in the main thread.")
            return self
        global _in_force
        self._outer_limits, _in_force = _in_force, self
        self._outer = _OuterAlarm.replace(self._on_alarm, self._clock)
        self._set_next_alarm()
        if self._on_overrun is not None:
            self._set_watchdog()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._active:
            return
        if self._on_overrun is not None:
            watchdog.rest()
        # An alarm that stays set would keep counting while the container is frozen, and interrupt the next task.
        signal.setitimer(signal.ITIMER_REAL, 0)
        global _in_force
        _in_force = self._outer_limits
        self._outer.restore()
        if self._outer_limits is not None and self._on_overrun is not None:
            self._outer_limits._set_watchdog()  # this object's watchdog had replaced it

    def outlived(self) -> None:
        """Let the process outlive these limits, until the deadline; outer limits stay in force."""
        self._outlived = True
        if self._active and _in_force is self:
            self._set_watchdog()

    @classmethod
    def current(cls) -> TimeLimits | None:
        """Return the limits that apply to the calling code, or None."""
        return _in_force if threading.current_thread() is threading.main_thread() else None

    @contextmanager
    def delivered_to(self, deliver: Callable[[BaseException], object]) -> Iterator[None]:
        """Pass the limits' exceptions to `deliver` instead of raising them, since the code runs in another thread."""
        self._deliver = deliver
        try:
            yield
        finally:
            self._deliver = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the soft timeout; negative after it has expired."""
        return self.soft_timeout - self._elapsed()

    def armed(self, *, spare_caller: bool = True) -> _Armed:
        """Return the context in which alarms may raise.

        With `spare_caller`, they raise only in functions called inside, never in the function that contains the `with`
        statement itself, so that its clean-up is not interrupted.
        """
        return _Armed(self, spare_caller)

    def _elapsed(self) -> float:
        return self._clock() - self._started

    def _set_watchdog(self) -> None:
        limits: TimeLimits | None = self
        outlived: TimeLimits | None = None
        while limits is not None and (limits._outlived or limits._on_overrun is None):
            outlived = limits if limits._outlived else outlived
            limits = limits._outer_limits
        if limits is not None:
            # armed() does not stop it: a COMMIT that hangs must not block the process forever.
            watchdog.end_process_in(limits.hard_timeout + KILL_GRACE + WATCHDOG_DELAY - limits._elapsed())
        elif outlived is not None and outlived._deadline is not None:
            watchdog.end_process_in(outlived._deadline - outlived._clock())
        elif outlived is not None:
            watchdog.call_off()

    def _set_next_alarm(self) -> None:
        """Set the timer to the next event: soft limit, hard limit, a repetition, or the outer alarm."""
        elapsed = self._elapsed()
        if not self._soft_reached and elapsed < self.hard_timeout:
            due = self.soft_timeout - elapsed
        elif elapsed < self.hard_timeout:
            due = self.hard_timeout - elapsed
        else:
            due = REPEAT_EVERY
        due = min(due, self._outer.seconds_left())
        # The interval repeats the alarm if this one is lost in a __del__ or a callback from C code.
        signal.setitimer(signal.ITIMER_REAL, max(due, _POSTPONE), REPEAT_EVERY)

    def _on_alarm(self, signum: int, frame: FrameType | None) -> None:
        if self._outer.seconds_left() <= 0:
            self._outer.go_off(signum, frame)
        if not self._armed:
            self._set_next_alarm()
            return
        if self._must_spare(frame):
            signal.setitimer(signal.ITIMER_REAL, _POSTPONE, REPEAT_EVERY)
            return
        elapsed = self._elapsed()
        if elapsed >= self.hard_timeout + KILL_GRACE and self._on_overrun is not None:
            self._on_overrun()
        if elapsed >= self.hard_timeout:
            self.hard_reached = True
            self._set_next_alarm()
            self._interrupt(_HardInterrupt(f"hard timeout of {self.hard_timeout:g} s"), frame)
            return
        if elapsed >= self.soft_timeout and not self._soft_reached:
            self._soft_reached = True
            self._set_next_alarm()
            self._interrupt(SoftTimeLimitExceeded(f"The soft timeout of {self.soft_timeout:g} s has expired."), frame)
            return
        self._set_next_alarm()

    def _interrupt(self, error: BaseException, frame: FrameType | None) -> None:
        self.interrupted = True
        # The main thread's work for a coroutine (its ORM calls) is interrupted directly: the coroutine's `await`
        # raises the error.
        if self._deliver is None or _works_for_coroutine(frame):
            raise error
        self._deliver(error)

    def _must_spare(self, frame: FrameType | None) -> bool:
        return frame is not None and (frame is self._owner or frame.f_code.co_filename == _THIS_FILE)


def _works_for_coroutine(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _WorkItem.run.__code__:
            return True
        frame = frame.f_back
    return False


#: The limits of the main thread. Other threads cannot have limits.
_in_force: TimeLimits | None = None

_THIS_FILE: Final = TimeLimits.__enter__.__code__.co_filename


class _Armed:
    """The context manager that `TimeLimits.armed()` returns."""

    def __init__(self, limits: TimeLimits, spare_caller: bool) -> None:
        self._limits = limits
        self._spare_caller = spare_caller

    def __enter__(self) -> None:
        limits = self._limits
        if limits._active:
            limits._owner = sys._getframe(1) if self._spare_caller else None
            limits._armed = True
            if limits.seconds_left <= 0:  # it expired before, for example during BEGIN, and raises now
                limits._set_next_alarm()

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        limits = self._limits
        limits._armed = False
        limits._owner = None
        if limits.hard_reached:
            exceeded = HardTimeLimitExceeded(f"The hard timeout of {limits.hard_timeout:g} s has expired.")
            if isinstance(error, _HardInterrupt):
                # The traceback should show where the task was, not how it was interrupted.
                raise exceeded.with_traceback(tb) from None
            raise exceeded from error


class _OuterAlarm:
    """The alarm that was already set: its handler, and when it is due by the limits' clock."""

    def __init__(
        self,
        handler: Callable[[int, FrameType | None], object] | int | None = _DEFAULT_HANDLER,
        due: float | None = None,
        interval: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler
        self._due = due
        self._interval = interval
        self._clock = clock

    @classmethod
    def replace(cls, handler: Callable[[int, FrameType | None], object], clock: Callable[[], float]) -> _OuterAlarm:
        """Stop the timer, and have `handler` handle the next alarms. Return what was set before."""
        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
        before = _set_handler(signal.SIGALRM, handler)
        return cls(before, clock() + left if left else None, interval, clock)

    def seconds_left(self) -> float:
        return float("inf") if self._due is None else self._due - self._clock()

    def go_off(self, signum: int, frame: FrameType | None) -> None:
        """Call the handler as the timer would have done; the handler may raise."""
        self._due = self._clock() + self._interval if self._interval else None
        if callable(self._handler):
            self._handler(signum, frame)

    def restore(self) -> None:
        _set_handler(signal.SIGALRM, self._handler if self._handler is not None else _DEFAULT_HANDLER)
        if self._due is not None:
            signal.setitimer(signal.ITIMER_REAL, max(self.seconds_left(), _POSTPONE), self._interval)


#: The alarm of limits that are not entered yet.
_NO_ALARM: Final = _OuterAlarm()


class TimeoutContext:
    """Enforce a soft and a hard limit, in seconds, on the body of a `with` statement.

        with TimeoutContext(soft_timeout=5, hard_timeout=10):
            work()

    Raise `SoftTimeLimitExceeded` once in the body, and later `HardTimeLimitExceeded` from the `with` statement. In a
    thread other than the main thread, the limits are not enforced. Contexts may be nested, and each has its own clock.
    """

    def __init__(self, soft_timeout: float, hard_timeout: float) -> None:
        self._limits = TimeLimits(soft_timeout, hard_timeout)
        self._armed = self._limits.armed(spare_caller=False)

    def __enter__(self) -> TimeoutContext:
        self._limits.__enter__()
        self._armed.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            self._armed.__exit__(exc_type, error, tb)
        finally:
            self._limits.__exit__()


class NoLimits:
    """A replacement for `TimeLimits` without limits, as in eager mode."""

    interrupted: Final = False

    def outlived(self) -> None: ...

    def __enter__(self) -> NoLimits:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def armed(self) -> NoLimits:
        return self
