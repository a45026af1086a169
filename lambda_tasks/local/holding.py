"""Keep the messages that a worker holds invisible for as long as it runs them.

SQS makes a message visible again when its visibility timeout ends. Lambda therefore wants a timeout longer than any
invocation. A worker extends the timeout instead, so that tasks may run longer than it, and so that the messages of a
worker that dies are back soon.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict, deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lambda_tasks.local import progress
from lambda_tasks.local.event_source import SQS_ERRORS
from lambda_tasks.recording.lines import sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lambda_tasks.local.event_source import EventSource, Message, ReceivedBatch

#: Seconds for which SQS keeps a message invisible at most, from the moment at which it was received: twelve hours.
MAX_INVISIBLE: Final = 43_200
#: Seconds that the clocks of SQS and of this machine may differ in measuring these twelve hours.
_CLOCKS: Final = 10
#: The shortest timeout that a heartbeat sets, in seconds, if that of the queue is even shorter.
MIN_EXTENSION: Final = 30
#: The share of the visibility timeout that passes before the next heartbeat, so that two of them may fail.
_SHARE: Final = 1 / 3
#: Seconds between two looks at the messages, and between a failed heartbeat and the next one.
_GLANCE: Final = 1.0
_AGAIN: Final = 5.0
#: Seconds that the end of the worker waits for the last heartbeat.
_PATIENCE: Final = 2.0


@dataclass(slots=True)
class _Holding:
    source: EventSource
    message: Message
    #: When the message was received, and when its next heartbeat is due, by the clock.
    since: float
    due: float

    def extension(self, now: float) -> int:
        """Return the timeout for the next heartbeat, in seconds; 0 or less if SQS would refuse any."""
        left = MAX_INVISIBLE - _CLOCKS - math.ceil(now - self.since)
        return min(max(self.source.visibility_timeout, MIN_EXTENSION), left)


class Waiting:
    """The batches that one process of the worker has not begun. Each is taken once, by any thread."""

    def __init__(self, source: EventSource, name: str, batches: Iterable[ReceivedBatch]) -> None:
        self.source = source
        self.name = name
        self._batches = deque(batches)

    def next(self) -> ReceivedBatch | None:
        """Take the first batch; None if there is none."""
        try:
            return self._batches.popleft()
        except IndexError:
            return None

    def all_messages(self) -> list[Message]:
        """Take all batches, and return their messages."""
        messages: list[Message] = []
        while (batch := self.next()) is not None:
            messages += batch.messages
        return messages


class HeldMessages:
    """The messages that the worker has received and not yet deleted, and their heartbeats. Thread-safe.

    With `is_on=False`, no heartbeat is sent, as in Lambda. `report` gets a `progress.Trouble` for each that fails.
    """

    def __init__(
        self,
        *,
        is_on: bool,
        report: Callable[[progress.Event], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_on = is_on
        self._report = report
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Holding] = {}

    def add(self, source: EventSource, messages: Sequence[Message]) -> None:
        """Hold messages that were received now."""
        now = self._clock()
        due = now + _interval(source)
        with self._lock:
            for message in messages:
                self._held[message["ReceiptHandle"]] = _Holding(source, message, now, due)

    def release(self, messages: Sequence[Message]) -> None:
        """Send no more heartbeats for these messages."""
        with self._lock:
            for message in messages:
                self._held.pop(message["ReceiptHandle"], None)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Send heartbeats in a thread, while the `with` block runs."""
        if not self._is_on:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._run, args=(ended,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_PATIENCE)

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(_GLANCE):
            self.beat()

    def beat(self) -> None:
        """Extend the visibility timeouts that are due."""
        now = self._clock()
        due: dict[tuple[EventSource, int], list[_Holding]] = defaultdict(list)
        with self._lock:
            for holding in self._held.values():
                if now >= holding.due:
                    due[holding.source, holding.extension(now)].append(holding)
        for (source, seconds), holdings in due.items():
            self._extend(source, seconds, holdings, now)

    def _extend(self, source: EventSource, seconds: int, holdings: Sequence[_Holding], now: float) -> None:
        if seconds <= 0:
            for holding in holdings:
                holding.due = math.inf
            self._tell(source, _too_long(holdings))
            return
        try:
            complaints = source.change_visibility([holding.message for holding in holdings], seconds)
        except SQS_ERRORS as error:
            complaints = [_failed(holdings, error)]
        wait = _AGAIN if complaints else _interval(source)
        for holding in holdings:
            holding.due = now + wait
        for complaint in complaints:
            self._tell(source, complaint)

    def _tell(self, source: EventSource, text: str) -> None:
        self._report(progress.Trouble(source.name, text))


def _interval(source: EventSource) -> float:
    return max(source.visibility_timeout * _SHARE, _GLANCE)


def _too_long(holdings: Sequence[_Holding]) -> str:
    ids = ", ".join(holding.message["MessageId"] for holding in holdings)
    return (
        f"SQS keeps a message invisible for at most 12 hours, so {ids} will be redelivered while the task runs. "
        "Lower the hard timeout of the task."
    )


def _failed(holdings: Sequence[_Holding], error: Exception) -> str:
    number = len(holdings)
    messages = "1 message was" if number == 1 else f"{number} messages were"
    return (
        f"the visibility timeout of {messages} not extended, trying again in {_AGAIN:g} s: {sentence(error)} If it "
        "ends, another worker receives them, and waits for the end of their claims."
    )
