"""The events that a local worker reports. `str(event)` is a line for humans.

`environment` is the name of one process of a queue, such as "default-1".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: How an invocation ended. "answered" means only that the handler returned a value.
Outcome: TypeAlias = Literal["answered", "raised", "crashed", "timed out"]


@dataclass(frozen=True, slots=True)
class Started:
    """The worker has started, and the queues can be read. `environments` is the number of processes per queue."""

    queues: Mapping[str, str]
    handler: str
    environments: int

    def __str__(self) -> str:
        queues = "".join(f"\n  {name}: {url}" for name, url in self.queues.items())
        return f"Worker for {self.handler}, {_count(self.environments, 'process')} for each queue:{queues}"


@dataclass(frozen=True, slots=True)
class Warned:
    """The worker runs, but its configuration has a problem."""

    text: str

    def __str__(self) -> str:
        return f"Warning: {self.text}"


@dataclass(frozen=True, slots=True)
class RuntimeReady:
    """A process has loaded the handler and waits for work. `is_restart` is true if it replaces a process that ended."""

    environment: str
    pid: int
    is_restart: bool

    def __str__(self) -> str:
        return f"{self.environment}: {'restarted' if self.is_restart else 'ready'}, process {self.pid}"


@dataclass(frozen=True, slots=True)
class Received:
    """Messages were received, and are passed to the handler."""

    environment: str
    message_ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.environment}: received {_messages(self.message_ids)}"


@dataclass(frozen=True, slots=True)
class Finished:
    """An invocation ended, and its finished messages were deleted from the queue.

    The messages in `kept_ids` stay in the queue, and are redelivered when their visibility timeout ends. `reason` says
    why, and is empty if there are none.
    """

    environment: str
    outcome: Outcome
    done_ids: tuple[str, ...]
    kept_ids: tuple[str, ...]
    reason: str
    seconds: float

    def __str__(self) -> str:
        parts = []
        if self.done_ids:
            parts.append(f"{_count(len(self.done_ids), 'message')} done in {self.seconds:.2f} s")
        if self.kept_ids:
            parts.append(f"{_messages(self.kept_ids)} kept in the queue: {self.reason}")
        return f"{self.environment}: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Maintained:
    """The maintenance has done something, or it failed, and `reason` says why.

    `done` is the handler's response without zeros, such as `{"outbox": {"sent": 2}}`.
    """

    environment: str
    done: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.environment}: maintenance failed: {self.reason}"
        parts = (
            f"{part}: {', '.join(f'{number} {what}'.replace('_', ' ') for what, number in numbers.items())}"
            for part, numbers in self.done.items()
        )
        return f"{self.environment}: maintenance, {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Ticked:
    """Periodic tasks were started: the number of messages, and the number of schedules that could not be sent."""

    sent: int
    failed: int

    def __str__(self) -> str:
        failed = f", {_count(self.failed, 'schedule')} failed and will be tried again" if self.failed else ""
        return f"schedules: {_count(self.sent, 'periodic task')} started{failed}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """A call to SQS failed."""

    environment: str
    text: str

    def __str__(self) -> str:
        return f"{self.environment}: {self.text}"


@dataclass(frozen=True, slots=True)
class Output:
    """A line that the process of the handler printed, or a record of its log.

    A record may have several lines, such as those of a traceback. The lines after the first are indented.
    """

    environment: str
    line: str

    def __str__(self) -> str:
        return f"{self.environment} | " + f"\n{self.environment} |   ".join(self.line.splitlines() or [""])


@dataclass(frozen=True, slots=True)
class Reloading:
    """The file of a module has changed, so the worker starts again after the running batches have finished."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} has changed. Starting again after the running batches have finished."


@dataclass(frozen=True, slots=True)
class Stopping:
    """The worker received a signal to stop. `seconds` is how long running batches may take; None for any time."""

    seconds: float | None = None

    def __str__(self) -> str:
        within = "" if self.seconds is None else f", for which they have {self.seconds:g} s"
        return (
            f"Stopping after the running batches have finished{within}. A second signal kills them, and hands their "
            "messages back."
        )


@dataclass(frozen=True, slots=True)
class HandedBack:
    """Messages that did not run, or whose process was killed at the end of the worker, are visible again."""

    environment: str
    message_ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.environment}: {_messages(self.message_ids)} handed back to the queue"


@dataclass(frozen=True, slots=True)
class Summary:
    """The totals of a worker, from its start to its end.

    A message counts each time it was delivered. `raised`, `crashed` and `timed_out` are numbers of batches. Those of
    the messages that were handed back at the end did not run, or are also in `kept`.
    """

    batches: int = 0
    done: int = 0
    kept: int = 0
    raised: int = 0
    crashed: int = 0
    timed_out: int = 0
    handed_back: int = 0

    def __str__(self) -> str:
        faults = {"raised": self.raised, "crashed": self.crashed, "timed out": self.timed_out}
        ended = "".join(f", {_count(number, 'batch')} {how}" for how, number in faults.items() if number)
        handed = f", {self.handed_back} handed back" if self.handed_back else ""
        return f"Stopped after {_count(self.batches, 'batch')}: {self.done} done, {self.kept} kept{ended}{handed}"


#: Everything that a worker reports.
Event: TypeAlias = (
    Started
    | Warned
    | RuntimeReady
    | Received
    | Finished
    | Maintained
    | Ticked
    | Trouble
    | Output
    | Reloading
    | Stopping
    | HandedBack
    | Summary
)


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith(("s", "h")) else "s")
    return f"{number} {noun if number == 1 else plural}"


def _messages(ids: Sequence[str], shown: int = 3) -> str:
    names = ", ".join(ids[:shown]) + (", …" if len(ids) > shown else "")
    return f"{_count(len(ids), 'message')} ({names})"
