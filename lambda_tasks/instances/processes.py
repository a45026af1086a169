"""Keep a number of forked processes running, until a signal ends them all."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from lambda_tasks.instances.notes import Note
from lambda_tasks.local.launch import describe_exit, die_with
from lambda_tasks.recording.lines import get_logger

logger = get_logger("lambda_tasks.instances")

#: A process that has run for this many seconds was not stillborn, and its replacement does not wait.
STEADY: Final = 60.0
#: The longest pause in seconds before a process is replaced.
MAX_PAUSE: Final = 60.0

#: Seconds that processes get to end. Lambda grants the whole environment little more.
ENDING_GRACE: Final = 1.5

#: The exit status of a process that asks to be replaced between two invocations.
RETIRED: Final = 75

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
#: The signals that the parent waits for. They are blocked, so that none is missed and no other thread takes one.
SIGNALS: Final = frozenset((signal.SIGCHLD, *_ENDING))


def pause(early_deaths: int) -> float:
    """Return the seconds until a process is replaced, from how many died early in a row: 0, then 1, 2, 4, up to 60."""
    if early_deaths < 2:
        return 0.0
    return min(2.0 ** (min(early_deaths, 64) - 2), MAX_PAUSE)


@dataclass(slots=True)
class _Slot:
    """A place for one process: the running one, or the next one and when it starts."""

    note: Note = field(default_factory=Note)
    pid: int | None = None
    started: float = 0.0
    early_deaths: int = 0
    due: float = 0.0


class Processes:
    """Run `work` in `count` forked processes, and replace those that end.

    `work` gets the note on which it writes the invocation that it is running. `died` is called in the parent with the
    note of a process that has ended, and with text for humans, such as "killed by SIGKILL".

    Call `block_signals()` first, before any thread is started.
    """

    def __init__(self, count: int, work: Callable[[Note], None], died: Callable[[Note, str], None]) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._work = work
        self._died = died

    def run(self) -> None:
        """Return when SIGTERM or SIGINT has arrived, and all processes have ended."""
        while True:
            self._start_due()
            number = self._wait()
            if number in _ENDING:
                self._end()
                return
            self._reap()

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.pid is None and slot.due <= time.monotonic():
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        slot.started = time.monotonic()
        parent = os.getpid()
        try:
            slot.pid = os.fork()
        except OSError:
            logger.exception("A process could not be forked.")
            self._postpone(slot)
            return
        if slot.pid == 0:
            os._exit(_exit_code(lambda: self._begin(slot, parent)))

    def _begin(self, slot: _Slot, parent: int) -> None:
        die_with(parent)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._work(slot.note)

    def _wait(self) -> int | None:
        """Return the number of the next signal, or None when a process is due."""
        due = [slot.due for slot in self._slots if slot.pid is None]
        if not due:
            return signal.sigwaitinfo(SIGNALS).si_signo
        received = signal.sigtimedwait(SIGNALS, max(min(due) - time.monotonic(), 0))
        return None if received is None else received.si_signo

    def _reap(self) -> None:
        """Settle the processes that have ended: one SIGCHLD may stand for several of them."""
        for slot, pid in self._running():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._settle(slot, status)

    def _settle(self, slot: _Slot, status: int) -> None:
        pid, slot.pid = slot.pid, None
        code = os.waitstatus_to_exitcode(status)
        if code == RETIRED and slot.note.read() is None:
            slot.early_deaths, slot.due = 0, 0.0
            logger.info("Process %d is replaced, as it has asked for.", pid)
            return
        how = describe_exit(code)
        self._postpone(slot)
        seconds = round(slot.due - time.monotonic())
        when = f"in {seconds} s" if seconds > 0 else "immediately"
        logger.warning("Process %d has ended: %s. It is replaced %s.", pid, how, when)
        self._died(slot.note, how)
        slot.note.clear()

    def _postpone(self, slot: _Slot) -> None:
        now = time.monotonic()
        slot.early_deaths = 0 if now - slot.started >= STEADY else slot.early_deaths + 1
        slot.due = now + pause(slot.early_deaths)

    def _end(self) -> None:
        """Pass SIGTERM on, and kill the processes that do not end because of it."""
        self._kill(signal.SIGTERM)
        deadline = time.monotonic() + ENDING_GRACE
        while self._running() and (seconds := deadline - time.monotonic()) > 0:
            signal.sigtimedwait((signal.SIGCHLD,), seconds)
            self._bury(os.WNOHANG)
        self._kill(signal.SIGKILL)
        self._bury(0)

    def _kill(self, number: signal.Signals) -> None:
        for _, pid in self._running():
            os.kill(pid, number)  # it exists: nothing has waited for it yet

    def _bury(self, options: int) -> None:
        for slot, pid in self._running():
            if os.waitpid(pid, options)[0]:
                slot.pid = None
                self._died(slot.note, "the environment is shutting down")

    def _running(self) -> list[tuple[_Slot, int]]:
        return [(slot, slot.pid) for slot in self._slots if slot.pid is not None]


def block_signals() -> None:
    """Block the signals that `Processes.run()` waits for, in this thread and in those that it will start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _exit_code(work: Callable[[], None]) -> int:
    """Run `work`, and return the exit status of its process. No exception may reach the parent's code in a child."""
    try:
        work()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
