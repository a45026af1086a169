"""What keeps the system going beside its tasks: sending what waits in the outbox, settling what was lost.

No daemon is needed for it: workers do it at the end of their invocations, and a schedule of EventBridge's, or
cron, where no messages come for a while.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from django.db import connections

from lambda_tasks.databases import close_broken_connections
from lambda_tasks.exceptions import InvalidEvent, InvalidSetting
from lambda_tasks.fidelity import shown
from lambda_tasks.strategies import get_backend

if TYPE_CHECKING:
    from lambda_tasks.backends.outbox import OutboxBackend
    from lambda_tasks.backends.relay import Relayed

logger = logging.getLogger("lambda_tasks.maintenance")

#: The field of an event that asks for maintenance, and what stands in it.
EVENT_FIELD: Final = "lambda_tasks"
MAINTENANCE: Final = "maintenance"
MAINTENANCE_EVENT: Final = {EVENT_FIELD: MAINTENANCE}

#: Seconds from one relay at the end of an invocation to the next, in the same container.
RELAY_EVERY: Final = 30.0
#: Seconds after which such a relay begins nothing new, and those that must be left then: the last requests come on
#: top, which wait 15 s where SQS does not answer. They are made side by side, and none follows them.
RELAY_SECONDS: Final = 10.0
RELAY_RESERVE: Final = 20.0
#: The share of the time left after which a part of maintenance begins nothing new.
TIME_SHARE: Final = 0.4
#: Seconds: the longest pause between two rounds of a relay that is a process of its own.
MAX_INTERVAL: Final = 86_400

_relayed_at: float | None = None


def outbox() -> OutboxBackend | None:
    """Return the outbox, if the settings have one."""
    backend = get_backend()
    # The one that is asked for by its methods may be a subclass, or somebody's own.
    return cast("OutboxBackend", backend) if backend.keeps and hasattr(backend, "relay") else None


def wanted(event: object) -> bool:
    """Tell whether an event asks for maintenance; raises `InvalidEvent` if it asks for something else of ours."""
    if not isinstance(event, Mapping) or EVENT_FIELD not in event:
        return False
    if event[EVENT_FIELD] != MAINTENANCE:
        raise InvalidEvent(
            f'The event has {EVENT_FIELD}: {shown(event[EVENT_FIELD])}; the one thing to ask for is "{MAINTENANCE}".'
        )
    return True


def maintain(deadline: float | None, done: dict[str, Any]) -> None:
    """Relay the outbox and reap lost tasks, each until a share of the time left is over; write into `done` what was.

    One that fails does not keep the other from being done. The first error is raised afterwards.
    """
    troubles: list[Exception] = []
    for name, work in (("outbox", _relay), ("lost", _reap)):
        seconds = float("inf") if deadline is None else max(deadline - monotonic(), 0) * TIME_SHARE
        try:
            if (numbers := work(seconds)) is not None:
                done[name] = numbers
        except Exception as error:
            troubles.append(error)
            close_broken_connections()
    logger.info("Maintenance is done: %s", done)
    for trouble in troubles[1:]:
        logger.error("Maintenance has failed a second time.", exc_info=trouble)
    if troubles:
        raise troubles[0]


def _relay(seconds: float) -> dict[str, int] | None:
    kept = outbox()
    return None if kept is None else _shape(kept.relay(seconds=seconds))


def _reap(seconds: float) -> dict[str, int]:
    # Imported where it runs: most invocations have messages instead.
    from lambda_tasks.lost import reap

    reaped = reap(seconds=seconds)
    return {"sent_again": reaped.sent_again, "failed": reaped.failed, "unsent": reaped.unsent}


def relay_now_and_then(deadline: float | None) -> None:
    """Relay the outbox at the end of an invocation, if time is left and the last time was a while ago; never raises."""
    global _relayed_at
    now = monotonic()
    if deadline is not None and deadline - now < RELAY_SECONDS + RELAY_RESERVE:
        return
    if _relayed_at is not None and now - _relayed_at < RELAY_EVERY:
        return
    _relayed_at = now  # whatever comes of it
    try:
        if (kept := outbox()) is None:
            return
        relayed = kept.relay(seconds=RELAY_SECONDS)
    except Exception:
        logger.exception("The outbox was not relayed; the next try is in %g s at the earliest.", RELAY_EVERY)
    else:
        if relayed.total:
            logger.info("The outbox was relayed: %s", _shape(relayed))


def _shape(relayed: Relayed) -> dict[str, int]:
    return {"sent": relayed.sent, "failed": relayed.failed, "dead": relayed.dead}


def relay_once() -> Relayed:
    """Send what is due in the outbox; raises `InvalidSetting` where the settings have none."""
    return _needed_outbox().relay()


def relay_until_stopped(interval: float, *, report: Callable[[str], object]) -> None:
    """Send what is due every `interval` seconds, until SIGTERM or Ctrl-C; what is under way is finished first.

    What was done is given to `report`. An error, as of a database that is away, is logged, and the next
    round tries again. Raises ValueError for an interval that is not positive or over a day, and
    `InvalidSetting` as `relay_once()`.
    """
    if not 0 < interval <= MAX_INTERVAL:
        raise ValueError(f"interval is {interval:g}; give the seconds between two looks, more than 0, up to a day.")
    kept = _needed_outbox()
    with _stopped_by_signals() as stop:
        report(f"Relaying the outbox every {interval:g} s; SIGTERM or Ctrl-C ends it.")
        while not stop.asked:
            relayed = None
            try:
                # In bites: who asks for the end does not wait until all is sent that an outage has left.
                relayed = kept.relay(seconds=RELAY_SECONDS)
            except Exception:
                logger.exception("The outbox was not relayed; the next try is in %g s.", interval)
            _release_connections(after_error=relayed is None)
            if relayed is not None and relayed.total:
                report(str(relayed))
            if relayed is None or relayed.complete or not relayed.sent:
                stop.wait(interval)
        report("Stopped.")


def _needed_outbox() -> OutboxBackend:
    kept = outbox()
    if kept is None:
        raise InvalidSetting(
            "There is no outbox to relay: set LAMBDA_TASKS_OUTBOX = True, and leave LAMBDA_TASKS_EAGER out."
        )
    return kept


def _release_connections(*, after_error: bool) -> None:
    """Close the connections that are not to be kept; after an error all, since their server may be the wrong one."""
    for connection in connections.all(initialized_only=True):
        if after_error and not connection.in_atomic_block:
            connection.close()
        else:
            connection.close_if_unusable_or_obsolete()


class _Stop:
    """Whether somebody has asked for the end. Not an Event: a signal may interrupt that one in its own lock."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[None] = SimpleQueue()

    @property
    def asked(self) -> bool:
        return not self._orders.empty()

    def ask(self, *_: object) -> None:
        self._orders.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until the end is asked for, for so many seconds at most."""
        with suppress(Empty):
            self._orders.get(timeout=seconds)
            self.ask()


@contextmanager
def _stopped_by_signals() -> Iterator[_Stop]:
    """Give what SIGTERM and SIGINT ask to stop, as far as this thread may handle signals."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {each: signal.signal(each, stop.ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
