"""End a process whose task never releases the GIL, with faulthandler's timer, which does not run Python code.

Setting the timer starts a thread, and cancelling it waits for the end of that thread. This takes longer than all other
work around a small task. So the tasks of a batch share one timer if possible.
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

#: Seconds by which the timer may be late inside `shared()`, where it is set again at most once in this time.
SLACK: Final = 1.0
#: Seconds that must be left for the timer to stay set while no task runs. Claiming and recording take less time.
IDLE: Final = 60.0
#: Seconds until the timer ends a process that is already overdue.
_IMMEDIATELY: Final = 0.01

_due: float | None = None
_shared = False


def end_process_in(seconds: float) -> None:
    """Print all stacks and end the process in `seconds` (at most `SLACK` later), unless `call_off()` is called."""
    global _due
    if sys.__stderr__ is None:
        return  # faulthandler requires a file to print to
    seconds = max(seconds, _IMMEDIATELY)
    wanted = time.monotonic() + seconds
    if _due is not None and _shared and wanted <= _due <= wanted + SLACK:
        return
    if _shared:
        seconds += SLACK
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    _due = time.monotonic() + seconds


def rest() -> None:
    """Stop watching the task that has ended. Inside `shared()`, the timer stays set unless it is due soon."""
    if not (_shared and _due is not None and _due - time.monotonic() > IDLE):
        call_off()


def call_off() -> None:
    """Cancel the timer, so that it does not end the process."""
    global _due
    if _due is not None:
        faulthandler.cancel_dump_traceback_later()
        _due = None


@contextmanager
def shared() -> Iterator[None]:
    """Let consecutive tasks share one timer, and cancel it on exit.

    In a thread other than the main thread, this does nothing, since tasks have no time limits there.
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


def _reset() -> None:
    """Reset the state in a forked process, which inherits neither threads nor the timer."""
    global _due, _shared
    _due, _shared = None, False


os.register_at_fork(after_in_child=_reset)
