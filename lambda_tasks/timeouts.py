"""Time limits for code in the main thread, kept by SIGALRM (Unix only).

Two limits: at the soft one `SoftTimeLimitExceeded` is raised once, so that the code can tidy up; at the
hard one an interrupt that `except Exception` does not catch is raised, again every half second until
the code has ended. What does not end even then is ended with its process; see `TimeLimits`.

An alarm raises only while code that was put under limits is on the stack. A limit that runs out in
between (in COMMIT, say) raises nothing, because what it would interrupt could not be undone.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final

from asgiref.current_thread_executor import _WorkItem

from lambda_tasks import watchdog

logger = logging.getLogger("lambda_tasks.timeouts")

#: Seconds between two interrupts of code that swallows them (`except:`, a `__del__`).
REPEAT_EVERY: Final = 0.5
#: Seconds after the hard limit at which a process that does not end its task is ended.
KILL_GRACE: Final = 3.0
#: Seconds after that at which it is ended even if it holds the interpreter's lock.
WATCHDOG_DELAY: Final = 1.0
#: Seconds by which an alarm is put off that struck between two lines of our own.
_POSTPONE: Final = 0.005


class SoftTimeLimitExceeded(Exception):
    """Raised once inside a task when its soft timeout is over; it may be caught to tidy up."""


class HardTimeLimitExceeded(Exception):
    """What a task failed with that was still running when its hard timeout was over."""


class _HardInterrupt(BaseException):
    """Interrupts the task; no `except Exception` catches it. Seen outside as `HardTimeLimitExceeded`."""


class TimeLimits:
    """A clock with two limits for the code inside `with limits.armed():`, in seconds.

    The clock starts on entering the limits; alarms raise only inside `armed()`. Leaving it after the
    hard limit raises `HardTimeLimitExceeded`, whatever the code made of the interrupt.

    `on_overrun` is called, in the main thread, when the hard limit was over for `KILL_GRACE` seconds
    and the code still runs; it is expected to end the process. `WATCHDOG_DELAY` later, or up to
    `watchdog.SLACK` after that, `faulthandler` prints all stacks and ends it, even where the code never
    gives up the interpreter. Without `on_overrun` neither happens.

    Entered in another thread than the main one it limits nothing, and says so in the log: Python
    delivers signals to the main thread alone.

    An alarm that was set before keeps its time: it goes off in between if it is due, and gets back
    what is left of it on leaving.
    """

    def __init__(
        self,
        soft_timeout: float,
        hard_timeout: float,
        *,
        on_overrun: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < soft_timeout < hard_timeout:
            raise ValueError(
                f"soft_timeout is {soft_timeout} s and hard_timeout {hard_timeout} s; "
                "both must be positive and the soft one the shorter."
            )
        self.soft_timeout = soft_timeout
        self.hard_timeout = hard_timeout
        self.hard_reached = False
        #: Whether a limit has interrupted the code, whatever the code made of it.
        self.interrupted = False
        self._soft_reached = False
        self._on_overrun = on_overrun
        self._clock = clock
        self._armed = False
        self._owner: FrameType | None = None
        self._active = False
        self._deliver: Callable[[BaseException], object] | None = None
        self._outer = _OuterAlarm()
        self._outer_limits: TimeLimits | None = None

    def __enter__(self) -> TimeLimits:
        self._started = self._clock()
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            logger.warning("Not in the main thread: the time limits of this task are not enforced.")
            return self
        global _in_force
        self._outer_limits, _in_force = _in_force, self
        self._outer = _OuterAlarm.put_aside(self._clock)
        signal.signal(signal.SIGALRM, self._on_alarm)
        self._set_next_alarm()
        self._set_watchdog()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._active:
            return
        if self._on_overrun is not None:
            watchdog.rest()
        # An alarm left armed would go on counting while the container is frozen, and strike the next task.
        signal.setitimer(signal.ITIMER_REAL, 0)
        global _in_force
        _in_force = self._outer_limits
        self._outer.give_back()
        if self._outer_limits is not None and self._on_overrun is not None:
            self._outer_limits._set_watchdog()  # ours has taken its place

    @classmethod
    def current(cls) -> TimeLimits | None:
        """Return the limits under which the code that calls this runs, if there are any."""
        return _in_force if threading.current_thread() is threading.main_thread() else None

    @contextmanager
    def delivered_to(self, deliver: Callable[[BaseException], object]) -> Iterator[None]:
        """Inside, hand what a limit would raise to `deliver`, since what it limits runs in another thread."""
        self._deliver = deliver
        try:
            yield
        finally:
            self._deliver = None

    @property
    def seconds_left(self) -> float:
        """Seconds until the soft timeout; negative when it is over."""
        return self.soft_timeout - self._elapsed()

    def armed(self, *, spare_caller: bool = True) -> _Armed:
        """Return the context in which alarms may raise.

        With `spare_caller` they do so only in functions that are called inside, never between two
        lines of the function that holds the `with`: its own clean-up cannot be interrupted.
        """
        return _Armed(self, spare_caller)

    def _elapsed(self) -> float:
        return self._clock() - self._started

    def _set_watchdog(self) -> None:
        if self._on_overrun is not None:
            # Not stopped by armed(): a COMMIT that hangs must not keep the process for ever.
            watchdog.end_process_in(self.hard_timeout + KILL_GRACE + WATCHDOG_DELAY - self._elapsed())

    def _set_next_alarm(self) -> None:
        """Set the timer to whatever is due next: soft, hard, a repetition, or the outer alarm."""
        elapsed = self._elapsed()
        if not self._soft_reached and elapsed < self.hard_timeout:
            due = self.soft_timeout - elapsed
        elif elapsed < self.hard_timeout:
            due = self.hard_timeout - elapsed
        else:
            due = REPEAT_EVERY
        due = min(due, self._outer.seconds_left())
        # The interval raises the alarm again if this one is lost in a __del__ or a callback of C code.
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
            self._interrupt(SoftTimeLimitExceeded(f"The soft timeout of {self.soft_timeout:g} s is over."), frame)
            return
        self._set_next_alarm()

    def _interrupt(self, error: BaseException, frame: FrameType | None) -> None:
        self.interrupted = True
        # What the main thread does for a coroutine (its ORM calls) is interrupted where it is: the
        # error comes out of the coroutine's await.
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


#: The limits of the main thread, the only one that can have any.
_in_force: TimeLimits | None = None

_THIS_FILE: Final = TimeLimits.__enter__.__code__.co_filename


class _Armed:
    """The inside of `TimeLimits.armed()`."""

    def __init__(self, limits: TimeLimits, spare_caller: bool) -> None:
        self._limits = limits
        self._spare_caller = spare_caller

    def __enter__(self) -> None:
        limits = self._limits
        if limits._active:
            limits._owner = sys._getframe(1) if self._spare_caller else None
            limits._armed = True
            # What became due before, in BEGIN say, strikes now.
            limits._set_next_alarm()

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        limits = self._limits
        limits._armed = False
        limits._owner = None
        if limits.hard_reached:
            exceeded = HardTimeLimitExceeded(f"The hard timeout of {limits.hard_timeout:g} s is over.")
            if isinstance(error, _HardInterrupt):
                # The reader wants to see where the task was, and not how it was interrupted.
                raise exceeded.with_traceback(tb) from None
            raise exceeded from error


class _OuterAlarm:
    """The alarm that was set before ours: its handler, and when it is due by our clock."""

    def __init__(
        self,
        handler: Callable[[int, FrameType | None], object] | int | None = signal.SIG_DFL,
        due: float | None = None,
        interval: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler
        self._due = due
        self._interval = interval
        self._clock = clock

    @classmethod
    def put_aside(cls, clock: Callable[[], float]) -> _OuterAlarm:
        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
        return cls(signal.getsignal(signal.SIGALRM), clock() + left if left else None, interval, clock)

    def seconds_left(self) -> float:
        return float("inf") if self._due is None else self._due - self._clock()

    def go_off(self, signum: int, frame: FrameType | None) -> None:
        """Call the handler, as the timer would have done; it may raise."""
        self._due = self._clock() + self._interval if self._interval else None
        if callable(self._handler):
            self._handler(signum, frame)

    def give_back(self) -> None:
        signal.signal(signal.SIGALRM, self._handler if self._handler is not None else signal.SIG_DFL)
        if self._due is not None:
            signal.setitimer(signal.ITIMER_REAL, max(self.seconds_left(), _POSTPONE), self._interval)


class TimeoutContext:
    """Put the body of a `with` under a soft and a hard limit, in seconds.

        with TimeoutContext(soft_timeout=5, hard_timeout=10):
            work()

    Raises `SoftTimeLimitExceeded` once in the body, then `HardTimeLimitExceeded` out of it. In another
    thread than the main one it limits nothing. Contexts may be nested: each keeps its own time.
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
    """Stands in for `TimeLimits` where none are kept, as in eager mode."""

    interrupted: Final = False

    def __enter__(self) -> NoLimits:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def armed(self) -> NoLimits:
        return self
