"""Maintenance: start periodic tasks, relay the outbox and recover lost tasks.

This does not need a daemon. Workers start periodic tasks and relay the outbox at the end of their invocations. An
EventBridge schedule or cron does the maintenance when no messages arrive for a while.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from django.db import connections

from lambda_tasks import registry
from lambda_tasks.database.errors import close_broken_connections, drain_pool, end_session
from lambda_tasks.exceptions import InvalidEvent, InvalidSetting
from lambda_tasks.operations.outboxes import outbox as outbox  # noqa: PLC0414, others import it from here
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.recording.storable import shown
from lambda_tasks.strategies import get_backend

if TYPE_CHECKING:
    from lambda_tasks.backends.outbox import OutboxBackend
    from lambda_tasks.backends.relay import Relayed
    from lambda_tasks.operations.schedules import Fired

logger = get_logger("lambda_tasks.maintenance")

#: The field of an event without messages, and its values: for maintenance, and to ask whether the function works.
EVENT_FIELD: Final = "lambda_tasks"
MAINTENANCE: Final = "maintenance"
PING: Final = "ping"
MAINTENANCE_EVENT: Final = {EVENT_FIELD: MAINTENANCE}

#: The minimum number of seconds between two relays at the end of an invocation, in the same container.
RELAY_EVERY: Final = 30.0
#: Seconds after which such a relay starts no new work, and the seconds that must be left then for the last requests.
#: These wait for 15 s if SQS does not answer. They are made in parallel, and none follows them.
RELAY_SECONDS: Final = 10.0
RELAY_RESERVE: Final = 20.0
#: The share of the remaining time after which a step of the maintenance starts no new work.
TIME_SHARE: Final = 0.4
#: The longest pause between two rounds of a relay that runs as a separate process, in seconds.
MAX_INTERVAL: Final = 86_400

_relayed_at: float | None = None


def wanted(event: object) -> bool:
    """Return whether an event requests maintenance. Raise `InvalidEvent` for an unknown value of the event field."""
    if not isinstance(event, Mapping) or EVENT_FIELD not in event:
        return False
    if event[EVENT_FIELD] not in (MAINTENANCE, PING):
        value = shown(event[EVENT_FIELD])
        raise InvalidEvent(f'{EVENT_FIELD} in the event must be "{MAINTENANCE}" or "{PING}", not {value}.')
    return bool(event[EVENT_FIELD] == MAINTENANCE)


def maintain(deadline: float | None, done: dict[str, Any]) -> None:
    """Start periodic tasks, relay the outbox, recover lost tasks and forget successes, and write results into `done`.

    Each step stops after a share of the remaining time. If one step fails, the others still run, and the first error
    is raised afterwards.
    """
    troubles: list[Exception] = []
    # Records are forgotten last, since lost tasks and what follows tasks are recovered by their records.
    for name, work in (("schedules", _fire), ("outbox", _relay), ("lost", _reap), ("forgotten", _forget)):
        seconds = float("inf") if deadline is None else max(deadline - monotonic(), 0) * TIME_SHARE
        try:
            if (numbers := work(seconds)) is not None:
                done[name] = numbers
        except Exception as error:
            troubles.append(error)
            close_broken_connections()
    logger.info("Maintenance has finished: %s", done)
    for trouble in troubles[1:]:
        logger.error("Another step of the maintenance failed.", exc_info=trouble)
    if troubles:
        raise troubles[0]


def _fire(seconds: float) -> dict[str, int] | None:
    if not any(task.schedule for task in registry.discover_tasks()):
        return None
    # Imported here and below, because most processes have no task with a schedule.
    from lambda_tasks.operations.schedules import fire_due

    fired = fire_due(seconds=seconds)
    return {"sent": fired.sent, "failed": fired.failed}


def _relay(seconds: float) -> dict[str, int] | None:
    kept = outbox()
    return None if kept is None else _shape(kept.relay(seconds=seconds))


def _reap(seconds: float) -> dict[str, int]:
    # Imported here, because most invocations do not need it.
    from lambda_tasks.operations.reaping import reap

    reaped = reap(seconds=seconds)
    return {"sent_again": reaped.sent_again, "failed": reaped.failed, "unsent": reaped.unsent}


def _forget(seconds: float) -> int | None:
    from lambda_tasks.operations import forgetting

    return (forgetting.forget(seconds=seconds) or None) if forgetting.is_wanted() else None


def relay_now_and_then(deadline: float | None) -> None:
    """Start periodic tasks and relay the outbox at the end of an invocation.

    This happens if enough time is left and the last time is long enough ago. Only tasks that this process has imported
    are started, so that no invocation imports others, and only if messages leave the process, so that the time of day
    does not matter in tests. Errors are logged and not raised.
    """
    global _relayed_at
    now = monotonic()
    if deadline is not None and deadline - now < RELAY_SECONDS + RELAY_RESERVE:
        return
    if _relayed_at is not None and now - _relayed_at < RELAY_EVERY:
        return
    _relayed_at = now  # even if the relay fails
    _fire_registered()
    try:
        if (kept := outbox()) is None:
            return
        relayed = kept.relay(seconds=RELAY_SECONDS)
    except Exception:
        logger.exception("The outbox was not relayed. The next attempt is in %g s at the earliest.", RELAY_EVERY)
    else:
        if relayed.total:
            logger.info("The outbox was relayed: %s", _shape(relayed))


def _fire_registered() -> None:
    if not any(task.schedule for task in registry.registered_tasks()):
        return
    try:
        if not get_backend().leaves_process:
            return
        from lambda_tasks.operations.schedules import fire_due

        fire_due(discover=False, seconds=RELAY_SECONDS)
    except Exception:
        logger.exception("Periodic tasks were not started. The next attempt is in %g s at the earliest.", RELAY_EVERY)
        close_broken_connections()


def _shape(relayed: Relayed) -> dict[str, int]:
    return {"sent": relayed.sent, "failed": relayed.failed, "dead": relayed.dead}


def relay_once() -> Relayed:
    """Start periodic tasks and send the due messages of the outbox.

    Raise `InvalidSetting` if the settings have no outbox.
    """
    kept = _needed_outbox()
    _fire_and_log()
    return kept.relay()


def relay_until_stopped(interval: float, *, report: Callable[[str], object]) -> None:
    """Start periodic tasks and send the due messages of the outbox every `interval` seconds, until SIGTERM or Ctrl-C.

    The current work is finished first. `report` is called with each result. An error, for example from an unavailable
    database, is logged, and the next round tries again.

    Raise ValueError if `interval` is not positive or over a day, and `InvalidSetting` like `relay_once()`.
    """
    _check_interval(interval)
    kept = _needed_outbox()
    with stopped_by_signals() as stop:
        report(f"Relaying the outbox every {interval:g} s. Stop with SIGTERM or Ctrl-C.")
        while not stop.asked:
            relayed = None
            _fire_and_log()
            try:
                # Work in short rounds, so that a large backlog does not delay shutdown.
                relayed = kept.relay(seconds=RELAY_SECONDS)
            except Exception:
                logger.exception("The outbox was not relayed. The next attempt is in %g s.", interval)
            _release_connections(after_error=relayed is None)
            if relayed is not None and relayed.total:
                report(str(relayed))
            if relayed is None or relayed.complete or not relayed.sent:
                stop.wait(interval)
        report("Stopped.")


def tick_until_stopped(interval: float, *, report: Callable[[str], object]) -> None:
    """Start periodic tasks every `interval` seconds, until SIGTERM or Ctrl-C.

    `report` is called with each result. An error, for example from an unavailable database, is logged, and the next
    round tries again. Raise ValueError if `interval` is not positive or over a day.
    """
    _check_interval(interval)
    with stopped_by_signals() as stop:
        report(f"Starting periodic tasks every {interval:g} s. Stop with SIGTERM or Ctrl-C.")
        while not stop.asked:
            fired = _fire_and_log()
            _release_connections(after_error=fired is None)
            if fired is not None and fired.total:
                report(str(fired))
            stop.wait(interval)
        report("Stopped.")


def _fire_and_log() -> Fired | None:
    """Start periodic tasks. Log an error and return None if that fails, so that the caller's loop goes on."""
    from lambda_tasks.operations.schedules import fire_due

    try:
        return fire_due()
    except Exception:
        logger.exception("Periodic tasks were not started. The next round tries again.")
        close_broken_connections()
        return None


def _check_interval(interval: float) -> None:
    if not 0 < interval <= MAX_INTERVAL:
        raise ValueError(f"interval must be more than 0 and at most {MAX_INTERVAL} seconds (a day), not {interval:g}.")


def _needed_outbox() -> OutboxBackend:
    kept = outbox()
    if kept is None:
        raise InvalidSetting(
            "The settings have no outbox to relay. Set LAMBDA_TASKS_OUTBOX = True, and remove LAMBDA_TASKS_EAGER."
        )
    return kept


def _release_connections(*, after_error: bool) -> None:
    """Close unusable and expired connections. After an error, close all, because their server may be the wrong one."""
    for connection in connections.all(initialized_only=True):
        if after_error and not connection.in_atomic_block:
            end_session(connection)
            drain_pool(connection)
        else:
            connection.close_if_unusable_or_obsolete()


class _Stop:
    """A request to stop that a signal handler can set.

    `threading.Event` would deadlock if the signal arrived while the event's own lock is held.
    """

    def __init__(self) -> None:
        self._orders: SimpleQueue[None] = SimpleQueue()

    @property
    def asked(self) -> bool:
        return not self._orders.empty()

    def ask(self, *_: object) -> None:
        self._orders.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the request to stop, for at most `seconds`."""
        with suppress(Empty):
            self._orders.get(timeout=seconds)
            self.ask()


@contextmanager
def stopped_by_signals() -> Iterator[_Stop]:
    """Yield a `_Stop` that SIGTERM and SIGINT set, if this is the main thread, which alone may handle signals."""
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
