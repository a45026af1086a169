"""What a local worker has to tell. Each event is a value to look at, and `str(event)` a line to read.

`environment` names one process of a queue, as "default-1".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: How an invocation ended. "answered" says only that the handler returned something.
Outcome: TypeAlias = Literal["answered", "raised", "crashed", "timed out"]


@dataclass(frozen=True, slots=True)
class Started:
    """The queues can be read; `environments` is the number of processes for each of them."""

    queues: Mapping[str, str]
    handler: str
    environments: int

    def __str__(self) -> str:
        queues = "".join(f"\n  {name}: {url}" for name, url in self.queues.items())
        return f"Worker for {self.handler}, {_count(self.environments, 'process')} for each queue:{queues}"


@dataclass(frozen=True, slots=True)
class Warned:
    """Something works, but not as it should."""

    text: str

    def __str__(self) -> str:
        return f"Warning: {self.text}"


@dataclass(frozen=True, slots=True)
class RuntimeReady:
    """A process has loaded the handler and waits for work. `is_restart`: it replaces one that ended."""

    environment: str
    pid: int
    is_restart: bool

    def __str__(self) -> str:
        return f"{self.environment}: {'started again' if self.is_restart else 'ready'}, process {self.pid}"


@dataclass(frozen=True, slots=True)
class Received:
    """Messages were received and go to the handler."""

    environment: str
    message_ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.environment}: received {_messages(self.message_ids)}"


@dataclass(frozen=True, slots=True)
class Finished:
    """An invocation ended, and what was done is deleted from the queue.

    The messages of `kept_ids` are still in it and come again when their visibility timeout ends;
    `reason` says why, and is empty where there are none.
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
            parts.append(f"{_messages(self.kept_ids)} not done, to come again: {self.reason}")
        return f"{self.environment}: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Maintained:
    """The schedule's event was handled, and there was something to do; or it was not, and `reason` says why.

    `done` is the handler's answer without zeros, as `{"outbox": {"sent": 2}}`.
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
class Trouble:
    """A call to SQS failed."""

    environment: str
    text: str

    def __str__(self) -> str:
        return f"{self.environment}: {self.text}"


@dataclass(frozen=True, slots=True)
class Output:
    """A line that the process of the handler wrote to its standard output or error."""

    environment: str
    line: str

    def __str__(self) -> str:
        return f"{self.environment} | {self.line}"


@dataclass(frozen=True, slots=True)
class Stopping:
    """A signal asked the worker to stop."""

    def __str__(self) -> str:
        return "Finishing what runs, then stopping. Again to kill it: its messages stay in the queue."


@dataclass(frozen=True, slots=True)
class Summary:
    """What a worker did, from its start to its end.

    A message counts each time that it was delivered. `raised`, `crashed` and `timed_out` are
    numbers of batches.
    """

    batches: int = 0
    done: int = 0
    kept: int = 0
    raised: int = 0
    crashed: int = 0
    timed_out: int = 0

    def __str__(self) -> str:
        faults = {"raised": self.raised, "crashed": self.crashed, "timed out": self.timed_out}
        ended = "".join(f", {_count(number, 'batch')} {how}" for how, number in faults.items() if number)
        return f"Stopped after {_count(self.batches, 'batch')}: {self.done} done, {self.kept} not done{ended}"


#: Everything that a worker reports.
Event: TypeAlias = (
    Started | Warned | RuntimeReady | Received | Finished | Maintained | Trouble | Output | Stopping | Summary
)


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith(("s", "h")) else "s")
    return f"{number} {noun if number == 1 else plural}"


def _messages(ids: Sequence[str], shown: int = 3) -> str:
    names = ", ".join(ids[:shown]) + (", …" if len(ids) > shown else "")
    return f"{_count(len(ids), 'message')} ({names})"
