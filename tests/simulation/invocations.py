"""Run each invocation in a forked process, which injects faults at failpoints and reports through a pipe."""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from django.db import connections

from lambda_tasks import failpoints
from tests.simulation.faults import FAULTS, FROZEN

#: Seconds without output after which a process counts as hung.
PATIENCE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault at one failpoint."""

    point: str
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.point}"


class Process:
    """A forked process that does `work` and returns an answer. It may freeze or be killed before that."""

    def __init__(self, work: Callable[[], object], strikes: Sequence[Strike] = ()) -> None:
        connections.close_all()  # do not share connections with the child
        sys.stdout.flush()
        self._from_child, to_parent = os.pipe()
        from_parent, self._to_child = os.pipe()
        self.strikes = tuple(strikes)
        #: The failpoints that the process has reported, and the faults that it has injected.
        self.reached: list[str] = []
        self.struck: list[Strike] = []
        self.answer: Any = None
        #: The traceback of an exception that it raised.
        self.error: str | None = None
        #: "running", "frozen", "answered", "raised", "killed" or "hung".
        self.state = "running"
        self.pid = os.fork()
        if not self.pid:
            os.close(self._from_child)
            os.close(self._to_child)
            _Child(to_parent, from_parent, list(strikes)).run(work)
        os.close(to_parent)
        os.close(from_parent)
        self._unread = b""

    def run(self, *, points: int | None = None) -> None:
        """Wait until the process freezes or ends, or has reached that many failpoints."""
        for told in self._lines():
            match told:
                case {"reached": point}:
                    self.reached.append(point)
                    if len(self.reached) == points:
                        return
                case {"struck": point, "fault": fault}:
                    self.struck.append(Strike(point, fault))
                    if fault == FROZEN:
                        self.state = "frozen"
                        return
                case {"answer": answer}:
                    self.answer, self.state = answer, "answered"
                case {"raised": error}:
                    self.answer, self.state = None, "raised"
                    self.error = error
        if self.state == "running":
            self.state = "killed"
        self._bury()

    def thaw(self) -> None:
        """Let a frozen process continue, and wait until it freezes again or ends."""
        self.state = "running"
        with suppress(BrokenPipeError):  # it has ended while it was frozen
            os.write(self._to_child, b".")
        self.run()

    def kill(self) -> None:
        """Kill the process, wherever it is."""
        if self.state in ("running", "frozen"):
            self.state = "killed"
            self._bury()

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        while True:
            while b"\n" in self._unread:
                line, _, self._unread = self._unread.partition(b"\n")
                yield json.loads(line)
            if not select.select([self._from_child], [], [], PATIENCE)[0]:
                self.state = "hung"
                os.kill(self.pid, signal.SIGUSR1)  # it prints its stack
                select.select([self._from_child], [], [], 1)
                return
            chunk = os.read(self._from_child, 65_536)
            if not chunk:
                return
            self._unread += chunk

    def _bury(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # it may still be exiting
        os.waitpid(self.pid, 0)
        os.close(self._from_child)
        os.close(self._to_child)


class _Child:
    """The child process, which injects each of its faults once."""

    def __init__(self, to_parent: int, from_parent: int, strikes: list[Strike]) -> None:
        self._to_parent = to_parent
        self._from_parent = from_parent
        self._strikes = strikes

    def run(self, work: Callable[[], object]) -> NoReturn:
        status = 1
        faulthandler.register(signal.SIGUSR1)
        try:
            failpoints.reached = self._reached
            self._tell(answer=work())
            status = 0
        except BaseException:
            self._tell(raised=traceback.format_exc())
        finally:
            os._exit(status)

    def _reached(self, point: str) -> None:
        self._tell(reached=point)
        for strike in [strike for strike in self._strikes if strike.point == point]:
            self._strikes.remove(strike)
            self._tell(struck=point, fault=strike.fault)
            if strike.fault == FROZEN:
                os.read(self._from_parent, 1)
            else:
                FAULTS[strike.fault]()

    def _tell(self, **what: Any) -> None:
        os.write(self._to_parent, json.dumps(what).encode() + b"\n")
