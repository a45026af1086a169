"""The function that AWS Lambda calls with batches of SQS messages: `lambda_tasks.handler.handler`.

The answer is a partial batch response. Only messages that could not be settled are named in it: those
that are no invocation of a known task, run elsewhere, or whose database or queue went away. What a
task raised is recorded, and its message acknowledged.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

import django
from django.apps import apps
from django.db import InterfaceError, OperationalError, connections

from lambda_tasks import executor, maintenance, points, watchdog
from lambda_tasks.deliveries import Delivery, deliveries
from lambda_tasks.exceptions import InvalidMessage, Redeliver, UnknownTask
from lambda_tasks.logging import SteadyLogger
from lambda_tasks.outcomes import Outcome, Skipped, Succeeded
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.reading import read_message
from lambda_tasks.secret_loader import resolve_secrets_into_env
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.timeouts import KILL_GRACE

if TYPE_CHECKING:
    from lambda_tasks.decorators import LambdaTaskWrapper

logger = SteadyLogger(logging.getLogger("lambda_tasks.handler"), {})

#: Deliveries after which a message is suspected to bring workers down, and runs after its neighbours.
SUSPICIOUS_RECEIVES: Final = 3
#: Seconds of an invocation that are kept for answering.
ANSWER_RESERVE: Final = 2.0
#: Seconds for which messages are put off when the database is away; doubled with each receive, so that
#: an outage does not use up the receives that the queue allows.
OUTAGE_PAUSE: Final = 10.0
#: Seconds for which messages are put off that this worker does not understand, and the most that this
#: grows to: a newer worker may understand them, once the deployment has come that far.
FOREIGN_PAUSE: Final = 60.0
MAX_FOREIGN_PAUSE: Final = 3600.0
#: Seconds at most by which deliveries that met a running task are spread out.
_JITTER: Final = 5.0

_booting = threading.Lock()
_booted = False


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Run the tasks of an event and say which messages must stay on their queue.

    The event `{"lambda_tasks": "maintenance"}`, of a schedule, relays the outbox and reaps lost tasks
    instead, and is answered with what was done.

    Raises `InvalidEvent` for an event without usable message ids: any answer to it would delete
    messages that nobody ran. A cold start that fails raises too, and the next invocation starts again.
    """
    boot()
    deadline = deadline_of(context)
    if maintenance.wanted(event):
        return _maintain(event, deadline)
    batch = Batch(deliveries(event), deadline)
    # A batch is to Django's connections what a request is: checked before it, closed after it if not to be kept.
    close_stale_connections()
    try:
        with watchdog.shared():
            batch.run()
        if not batch.database_away:  # else the answer would wait for it once more
            close_doubtful_connections()
            maintenance.relay_now_and_then(deadline)
        # A dict of its own for the listeners: they are told, and change nothing.
        notify(hooks().lambda_task_batch_finished, event=event, response=batch.response())
    finally:
        close_stale_connections()
    return batch.response()


def _maintain(event: Mapping[str, Any], deadline: float | None) -> dict[str, Any]:
    # New connections: those that are open may have died over a freeze, which only a second try would survive.
    close_connections()
    done: dict[str, Any] = {}
    try:
        maintenance.maintain(deadline, done)
    finally:
        notify(hooks().lambda_task_batch_finished, event=event, response=dict(done))
        close_connections()
    return done


def boot() -> None:
    """Prepare the process on its first invocation: secrets, Django, plugins. Lambda gives init only 10 s."""
    global _booted
    with _booting:
        if _booted:
            return
        resolve_secrets_into_env()
        if not apps.ready:
            django.setup()  # after the secrets: the settings may read them
        hooks().lambda_task_boot()
        _booted = True


def suspects_last(batch: Sequence[Delivery]) -> list[Delivery]:
    """Return the batch with those messages at its end that may have brought a worker down.

    When a worker dies its whole batch comes again. What it had begun is suspected more than what was
    only received often, so that the neighbours of a poison pill are done with the next delivery.
    """
    begun: set[str] = set()
    again = [delivery.message_id for delivery in batch if delivery.receives > 1]
    if again and len(batch) > 1:
        try:
            begun = get_store().begun(again)
        except Exception:
            # The order is worth no more trouble; what is wrong with the store is said where it matters.
            logger.warning("Nobody can tell which messages of the batch were begun before.", exc_info=True)
    return sorted(batch, key=lambda delivery: (delivery.message_id in begun, delivery.receives >= SUSPICIOUS_RECEIVES))


def deadline_of(context: Any) -> float | None:
    """Return the moment by `time.monotonic()` at which Lambda ends the invocation; None without a context."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    if remaining is None:
        return None
    try:
        seconds = float(remaining()) / 1000
    except Exception:  # a stand-in for Lambda's context; the event is worth more than its clock
        logger.exception("The context does not tell how much time is left; limits are not clamped.")
        return None
    return time.monotonic() + seconds if math.isfinite(seconds) else None


class Batch:
    """The deliveries of one event, and which of them have failed so far."""

    def __init__(self, waiting: Iterable[Delivery], deadline: float | None) -> None:
        self._waiting = list(waiting)
        self._deadline = deadline
        self._started_any = False
        self._postponed: list[tuple[Mapping[str, Any], float]] = []
        self.failed: list[str] = []
        self.database_away = False

    def run(self) -> None:
        """Run one delivery after the other; every one ends acknowledged or in `failed`."""
        points.reached("batch:start")
        self._waiting = suspects_last(self._waiting)
        for index, delivery in enumerate(self._waiting):
            points.reached("batch:next")
            close_doubtful_connections()
            try:
                # A context of its own: what a task sets (language, time zone, contextvars) ends with it.
                copy_context().run(self._run_one, delivery)
            except (OperationalError, InterfaceError):
                logger.exception("The database does not answer; the rest of the batch goes back to the queue.")
                self.database_away = True
                for waiting in self._waiting[index:]:
                    self._keep(waiting, visible_in=OUTAGE_PAUSE * 2 ** min(waiting.receives - 1, 5))
                break
        if self._postponed:
            get_backend().postpone(self._postponed)
        points.reached("batch:before_return")

    def response(self) -> dict[str, Any]:
        """Return the answer to Lambda: a partial batch response."""
        return {"batchItemFailures": [{"itemIdentifier": raw_id} for raw_id in self.failed]}

    def _run_one(self, delivery: Delivery) -> None:
        outcome: Outcome | Skipped | None = None
        try:
            message = read_message(delivery.body)
            task = executor.resolve(message.task_name)
            if not self._time_for(task):
                # For another invocation to take at once.
                logger.info("Message %s is handed back: too little time is left to run it.", delivery.shown_id)
                self._keep(delivery, visible_in=0)
                return
            self._started_any = True
            outcome = executor.execute(
                message,
                message_id=delivery.message_id,
                root_id=delivery.root_id,
                queue=delivery.queue,
                attributes=delivery.attributes,
                deadline=self._deadline,
                task=task,
                first_sent=delivery.first_sent,
                redelivered=delivery.receives > 1,
            )
        except Redeliver as redeliver:
            logger.warning("Message %s stays on the queue: %s.", delivery.shown_id, redeliver.reason)
            seconds = redeliver.visible_in
            self._keep(delivery, visible_in=None if seconds is None else seconds + random.uniform(0, _JITTER))
        except (OperationalError, InterfaceError):
            raise
        except (UnknownTask, InvalidMessage):
            # The producer may be newer than this worker: its deployment must not cost all the receives.
            logger.exception("Message %s stays on the queue: this worker cannot run it.", delivery.shown_id)
            pause = FOREIGN_PAUSE * 4 ** min(delivery.receives - 1, 5)
            self._keep(delivery, visible_in=min(pause, MAX_FOREIGN_PAUSE))
        except Exception:
            logger.exception("Message %s stays on the queue: it could not be run.", delivery.shown_id)
            self._keep(delivery)
        finally:
            if not isinstance(outcome, Succeeded | Skipped):
                close_connections()

    def _time_for(self, task: LambdaTaskWrapper[..., Any]) -> bool:
        """Tell whether a task may start: the first one always, its limits are clamped to what is left."""
        if self._deadline is None or not self._started_any:
            return True
        _, hard_timeout = task.timeouts()
        return self._deadline - time.monotonic() >= hard_timeout + KILL_GRACE + ANSWER_RESERVE

    def _keep(self, delivery: Delivery, *, visible_in: float | None = None) -> None:
        """Leave a message on its queue, for so many seconds or for the rest of its visibility timeout."""
        self.failed.append(delivery.raw_id)
        if visible_in is not None:
            self._postponed.append((delivery.record, visible_in))


def close_stale_connections() -> None:
    """Close connections that are too old or broken, as Django does before and after a request.

    One in a transaction is left alone: there is none on Lambda, but there is in tests.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def close_doubtful_connections() -> None:
    """Close those connections that a run has left with an error, or out of autocommit, if they do not work."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue
        if connection.errors_occurred or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]:
            connection.close_if_unusable_or_obsolete()


def close_connections() -> None:
    """End the database sessions of a run that did not succeed: ROLLBACK does not undo all that it did there.

    Advisory locks, for instance, are the session's and not the transaction's. What is in a transaction
    is left alone, as above.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
