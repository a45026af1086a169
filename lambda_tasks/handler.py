"""The function that AWS Lambda calls with batches of SQS messages: `lambda_tasks.handler.handler`.

The answer is a partial batch response. Only messages that could not be settled are named in it: those
that are no invocation of a known task, run elsewhere, or whose database or queue went away. What a
task raised is recorded, and its message acknowledged.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final

import django
from django.apps import apps
from django.db import InterfaceError, OperationalError, connections

from lambda_tasks import identity
from lambda_tasks.exceptions import InvalidEvent, Redeliver
from lambda_tasks.jobs import MESSAGE_ID_ATTRIBUTE, OWN_ATTRIBUTES, QUEUE_ATTRIBUTE, ROOT_ID_ATTRIBUTE
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.secret_loader import resolve_secrets_into_env
from lambda_tasks.settings import LambdaTasksSettings, app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.timeouts import KILL_GRACE

logger = logging.getLogger("lambda_tasks.handler")

#: Deliveries after which a message is suspected to bring workers down, and runs after its neighbours.
SUSPICIOUS_RECEIVES: Final = 3
#: Seconds of an invocation that are kept for answering.
ANSWER_RESERVE: Final = 2.0
#: Seconds for which messages are put off when the database is away; doubled with each receive, so that
#: an outage does not use up the receives that the queue allows.
OUTAGE_PAUSE: Final = 10.0
#: Seconds at most by which deliveries that met a running task are spread out.
_JITTER: Final = 5.0

_booting = threading.Lock()
_booted = False


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Run the tasks of an event and say which messages must stay on their queue.

    Raises `InvalidEvent` for an event without usable message ids: any answer to it would delete
    messages that nobody ran. A cold start that fails raises too, and the next invocation starts again.
    """
    boot()
    batch = Batch(deliveries(event), deadline_of(context))
    batch.run()
    # A dict of its own for the listeners: they are told, and change nothing.
    notify(hooks().lambda_task_batch_finished, event=event, response=batch.response())
    return batch.response()


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


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message of an event."""

    record: Mapping[str, Any]
    raw_id: str
    receives: int

    @property
    def message_id(self) -> str:
        """The producer's id, or SQS's own where another program sent the message."""
        return identity.canonical_id(self._attribute(MESSAGE_ID_ATTRIBUTE) or self.raw_id)

    @property
    def root_id(self) -> str:
        root = self._attribute(ROOT_ID_ATTRIBUTE)
        return identity.canonical_id(root) if root else self.message_id

    @property
    def queue(self) -> str | None:
        """The queue that the message was sent to; None if there is none of that name any more."""
        queue = self._attribute(QUEUE_ATTRIBUTE)
        known = LambdaTasksSettings.queues.is_set and queue in app_settings.queues
        return queue if known else None

    @property
    def attributes(self) -> dict[str, str]:
        """The text attributes that are not ours: a plugin of the producer has added them."""
        names = self._all_attributes().keys() - OWN_ATTRIBUTES
        return {name: value for name in sorted(names) if (value := self._attribute(name)) is not None}

    def _attribute(self, name: str) -> str | None:
        attribute = self._all_attributes().get(name)
        value = attribute.get("stringValue") if isinstance(attribute, Mapping) else None
        return value if isinstance(value, str) and value else None

    def _all_attributes(self) -> Mapping[str, Any]:
        attributes = self.record.get("messageAttributes")
        return attributes if isinstance(attributes, Mapping) else {}


def deliveries(event: Mapping[str, Any]) -> list[Delivery]:
    """Return the messages of `event`, each once, those last that were received suspiciously often."""
    records = event.get("Records")
    if not isinstance(records, list):
        raise InvalidEvent(
            "The event has no Records; the handler takes batches of an SQS event source mapping. "
            f"It has: {', '.join(map(str, event))}."
        )
    found: dict[str, Delivery] = {}
    for record in records:
        raw_id = record.get("messageId") if isinstance(record, Mapping) else None
        if not isinstance(raw_id, str) or not raw_id:
            raise InvalidEvent("A record of the event has no messageId; the whole batch stays on the queue.")
        found.setdefault(raw_id, Delivery(record, raw_id, _receive_count(record)))
    return sorted(found.values(), key=lambda delivery: delivery.receives >= SUSPICIOUS_RECEIVES)


def _receive_count(record: Mapping[str, Any]) -> int:
    attributes = record.get("attributes")
    count = attributes.get("ApproximateReceiveCount") if isinstance(attributes, Mapping) else None
    return int(count) if isinstance(count, str) and count.isdecimal() else 1


def deadline_of(context: Any) -> float | None:
    """Return the moment by `time.monotonic()` at which Lambda ends the invocation; None without a context."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return None if remaining is None else time.monotonic() + remaining() / 1000


class Batch:
    """The deliveries of one event, and which of them have failed so far."""

    def __init__(self, waiting: Iterable[Delivery], deadline: float | None) -> None:
        self._waiting = list(waiting)
        self._deadline = deadline
        self._started_any = False
        self._postponed: list[tuple[Mapping[str, Any], float]] = []
        self.failed: list[str] = []

    def run(self) -> None:
        """Run one delivery after the other; every one ends acknowledged or in `failed`."""
        for index, delivery in enumerate(self._waiting):
            close_stale_connections()
            try:
                # A context of its own: what a task sets (language, time zone, contextvars) ends with it.
                copy_context().run(self._run_one, delivery)
            except (OperationalError, InterfaceError):
                logger.exception("The database does not answer; the rest of the batch goes back to the queue.")
                for waiting in self._waiting[index:]:
                    self._keep(waiting, visible_in=OUTAGE_PAUSE * 2 ** min(waiting.receives - 1, 5))
                break
        if self._postponed:
            get_backend().postpone(self._postponed)

    def response(self) -> dict[str, Any]:
        """Return the answer to Lambda: a partial batch response."""
        return {"batchItemFailures": [{"itemIdentifier": raw_id} for raw_id in self.failed]}

    def _run_one(self, delivery: Delivery) -> None:
        # Imported late: pydantic is not needed before the first message.
        from lambda_tasks import executor
        from lambda_tasks.messages import SQSLambdaTaskMessage

        try:
            message = SQSLambdaTaskMessage.from_body(_body(delivery))
            task = executor.resolve(message.task_name)
            if not self._time_for(task.timeouts()[1]):
                # For another invocation to take at once.
                logger.info("Message %s is handed back: too little time is left to run it.", delivery.raw_id)
                self._keep(delivery, visible_in=0)
                return
            self._started_any = True
            executor.execute(
                message,
                message_id=delivery.message_id,
                root_id=delivery.root_id,
                queue=delivery.queue,
                attributes=delivery.attributes,
                deadline=self._deadline,
                task=task,
            )
        except Redeliver as redeliver:
            logger.warning("Message %s stays on the queue: %s.", delivery.raw_id, redeliver.reason)
            seconds = redeliver.visible_in
            self._keep(delivery, visible_in=None if seconds is None else seconds + random.uniform(0, _JITTER))
        except (OperationalError, InterfaceError):
            raise
        except Exception:
            logger.exception("Message %s stays on the queue: it could not be run.", delivery.raw_id)
            self._keep(delivery)

    def _time_for(self, hard_timeout: float) -> bool:
        """Tell whether a task may start: the first one always, its limits are clamped to what is left."""
        if self._deadline is None or not self._started_any:
            return True
        return self._deadline - time.monotonic() >= hard_timeout + KILL_GRACE + ANSWER_RESERVE

    def _keep(self, delivery: Delivery, *, visible_in: float | None = None) -> None:
        """Leave a message on its queue, for so many seconds or for the rest of its visibility timeout."""
        self.failed.append(delivery.raw_id)
        if visible_in is not None:
            self._postponed.append((delivery.record, visible_in))


def close_stale_connections() -> None:
    """Close connections that are too old or broken, as Django does between requests.

    One in a transaction is left alone: there is none on Lambda, but there is in tests.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _body(delivery: Delivery) -> str:
    body = delivery.record.get("body")
    return body if isinstance(body, str) else ""
