"""Ends a process whose task never gives up the interpreter: faulthandler's timer, which runs no Python code.

To set it starts a thread and to call it off waits for that thread's end, which takes longer than all
else that is done around a small task. So the tasks of a batch share one where they can.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds by which it may be late inside of `shared()`: it is set anew once in so many seconds at most.
SLACK: Final = 1.0
#: Seconds that must be left of it to stay set while no task runs: claims and records take less.
IDLE: Final = 60.0
#: Seconds until it ends a process that should have been ended before.
_AT_ONCE: Final = 0.01

_due: float | None = None
_shared = False


def end_process_in(seconds: float) -> None:
    """Print all stacks and end the process in `seconds` (at most `SLACK` later), if nobody calls it off."""
    global _due
    if sys.__stderr__ is None:
        return  # nowhere to print to, which faulthandler insists on
    seconds = max(seconds, _AT_ONCE)
    wanted = time.monotonic() + seconds
    if _due is not None and _shared and wanted <= _due <= wanted + SLACK:
        return
    if _shared:
        seconds += SLACK
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    _due = time.monotonic() + seconds


def rest() -> None:
    """Say that what was watched has ended: inside of `shared()` it stays set, if there is time until it is due."""
    if not (_shared and _due is not None and _due - time.monotonic() > IDLE):
        call_off()


def call_off() -> None:
    """Let the process live, whatever it does."""
    global _due
    if _due is not None:
        faulthandler.cancel_dump_traceback_later()
        _due = None


@contextmanager
def shared() -> Iterator[None]:
    """Inside, tasks that follow one another may share what was set; on leaving it is called off.

    In another thread than the main one nothing happens: no task of another has time limits.
    """
    global _shared
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _shared = _shared, True
    try:
        yield
    finally:
        _shared = before
        call_off()


def _forget() -> None:
    """Threads do not come along into a forked process, and so no timer does."""
    global _due, _shared
    _due, _shared = None, False


os.register_at_fork(after_in_child=_forget)
