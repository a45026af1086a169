"""Define `lambda_tasks.handler.handler`, the function that AWS Lambda calls with batches of SQS messages.

It returns a partial batch response, which lists only the messages that could not be settled: malformed messages,
messages of unknown tasks, invocations that run elsewhere, and those whose database or queue is unavailable. If a task
raises an error, the error is recorded and the message is acknowledged.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import django
from django.apps import apps
from django.db import InterfaceError, OperationalError, connections

from lambda_tasks import failpoints, maintenance, registry
from lambda_tasks.apps import enable_loggers
from lambda_tasks.database.errors import drain_pool, end_session, refuse_manual_commits
from lambda_tasks.database.private_names import had_errors, initialized_connections
from lambda_tasks.exceptions import InvalidMessage, Redeliver, UnknownTask
from lambda_tasks.execution import pipeline, resolving
from lambda_tasks.execution.backoff import foreign_pause, handed_back_pause, outage_pause
from lambda_tasks.execution.strangers import start_watching
from lambda_tasks.foundation.forks import ForkSafeLock, random
from lambda_tasks.limits import watchdog
from lambda_tasks.limits.alarms import KILL_GRACE
from lambda_tasks.logging import Fields, SteadyLogger, add_fields_on_lambda, log_context, trace_id
from lambda_tasks.operations import ping
from lambda_tasks.outcomes import Outcome, Skipped, Succeeded
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.secret_loader import resolve_secrets_into_env
from lambda_tasks.settings import app_settings, settled
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.wire.deliveries import Delivery, deliveries
from lambda_tasks.wire.invocation import Invocation

if TYPE_CHECKING:
    from lambda_tasks.definition.task import Task

logger = SteadyLogger(get_logger("lambda_tasks.handler"), {})

#: The number of deliveries after which a message is suspected of killing workers, and runs last in its batch.
SUSPICIOUS_RECEIVES: Final = 3
#: Seconds of an invocation that are reserved for returning the response.
ANSWER_RESERVE: Final = 2.0
#: The share of a whole invocation that must be left to start a task whose limits are longer than any invocation. It is
#: raised to the power of the message's receives, so that each delivery is more likely to run it, down to `LEAST_SHARE`.
START_SHARE: Final = 0.75
LEAST_SHARE: Final = 0.25
#: Seconds that compensate for rounding, since SQS accepts only whole seconds. A delivery before the lease ends would
#: waste a receive.
_ROUNDING: Final = 1.0
#: The maximum jitter, in seconds, of the next delivery of a message whose task is already running.
_JITTER: Final = 5.0

#: The variable in which Lambda tells how it makes environments, its value for those from a snapshot, and those for
#: environments that exist before their first message. Otherwise, the first message waits while Django is set up.
INITIALIZATION: Final = "AWS_LAMBDA_INITIALIZATION_TYPE"
_FROM_SNAPSHOT: Final = "snap-start"
_IN_ADVANCE: Final = ("provisioned-concurrency", "lambda-managed-instances")

_booting = ForkSafeLock()
_booted = False
#: The longest time that an invocation of this process had at its start: an estimate for a new invocation.
_full_time = 0.0
#: Whether this process has logged the warning that time limits are shortened.
_warned_of_limits = False


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Run the tasks of an event, and return which messages must stay on their queue.

    The scheduled event `{"lambda_tasks": "maintenance"}` relays the outbox and reaps lost tasks instead, and returns a
    summary. The event `{"lambda_tasks": "ping"}`, and those that keep functions warm, query the database, and return
    versions.

    Raise `InvalidEvent` for an event without usable message ids, because any response would delete messages that were
    not run. A failed cold start raises, too, and the next invocation starts again.
    """
    deadline = deadline_of(context)
    full_time = full_time_of(deadline)
    boot()
    if maintenance.wanted(event):
        return _maintain(event, deadline)
    if ping.wanted(event):
        return _answer_ping(event, deadline)
    batch = Batch(deliveries(event), deadline, full_time, request_id=request_id_of(context))
    # Treat a batch like a request: check Django's connections before it, and close expired ones after it.
    close_stale_connections()
    try:
        with settled(), watchdog.shared():
            batch.run()
        if not batch.database_unavailable:  # otherwise the response would wait for the database again
            close_doubtful_connections()
            maintenance.relay_now_and_then(deadline)
        # The hooks get their own copy of the response, so that they cannot change it.
        notify(hooks().lambda_task_batch_finished, event=event, response=batch.response(), deadline=deadline)
    finally:
        close_stale_connections()
    return batch.response()


def _maintain(event: Mapping[str, Any], deadline: float | None) -> dict[str, Any]:
    refuse_manual_commits(connections[get_store().database])
    # Use new connections: open ones may have died during a freeze, and only a second attempt would succeed.
    close_connections()
    for connection in connections.all(initialized_only=True):
        if not connection.settings_dict["CONN_HEALTH_CHECKS"]:
            drain_pool(connection)
    done: dict[str, Any] = {}
    try:
        maintenance.maintain(deadline, done)
    finally:
        notify(hooks().lambda_task_batch_finished, event=event, response=dict(done), deadline=deadline)
        close_connections()
    return done


def _answer_ping(event: Mapping[str, Any], deadline: float | None) -> dict[str, Any]:
    close_stale_connections()
    try:
        answer = ping.answer()
        logger.info("The function works: %s", answer)
        notify(hooks().lambda_task_batch_finished, event=event, response=dict(answer), deadline=deadline)
    finally:
        close_stale_connections()
    return answer


def boot() -> None:
    """Prepare secrets, Django and plugins, once per process.

    Its first invocation does this, since Lambda's init phase has only 10 s. The init phase of SnapStart, provisioned
    concurrency and Managed Instances is longer, and no message waits for it, so they do it then.
    """
    global _booted
    with _booting:
        if _booted:
            return
        resolve_secrets_into_env()
        if not apps.ready:
            django.setup()  # after the secrets, since the settings may read them
        start_watching()
        hooks().lambda_task_boot()
        enable_loggers()  # a plugin may have configured logging
        add_fields_on_lambda()
        _booted = True


def suspects_last(batch: Sequence[Delivery]) -> list[Delivery]:
    """Return the batch with the messages last that may have killed a worker.

    When a worker dies, its whole batch is redelivered. The messages that it had started are more suspicious than those
    that were only received often, so that the other messages in a poison pill's batch finish with the next delivery.
    """
    begun: set[str] = set()
    again = [delivery.message_id for delivery in batch if delivery.receives > 1]
    if again and len(batch) > 1:
        try:
            begun = get_store().begun(again)
        except Exception:
            # Only the order depends on it. If the store has a problem, claims report it.
            logger.warning("The store could not list the messages of the batch that were started.", exc_info=True)
    return sorted(batch, key=lambda delivery: (delivery.message_id in begun, delivery.receives >= SUSPICIOUS_RECEIVES))


def deadline_of(context: Any) -> float | None:
    """Return the time, by `time.monotonic()`, at which Lambda ends the invocation, or None without a context."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    if remaining is None:
        return None
    try:
        seconds = float(remaining()) / 1000
    except Exception:  # a substitute for Lambda's context: still run the event
        logger.exception("The context does not report the remaining time, so time limits are not shortened.")
        return None
    return time.monotonic() + seconds if math.isfinite(seconds) else None


def request_id_of(context: Any) -> str | None:
    """Return the id of the Lambda invocation, or None without a context."""
    request_id = getattr(context, "aws_request_id", None)
    return request_id if isinstance(request_id, str) else None


def full_time_of(deadline: float | None) -> float:
    """Return how many seconds a new invocation has: the longest time that one of this process had at its start."""
    global _full_time
    if deadline is not None:
        _full_time = max(_full_time, deadline - time.monotonic())
    return _full_time


class Batch:
    """The deliveries of one event, and the ids of those that have failed so far.

    `deadline` is the end of the invocation, and `full_time` is how many seconds a new invocation would have.
    """

    def __init__(
        self,
        waiting: Iterable[Delivery],
        deadline: float | None,
        full_time: float = math.inf,
        *,
        request_id: str | None = None,
    ) -> None:
        self._waiting = list(waiting)
        self._deadline = deadline
        self._full_time = full_time
        self._request_id = request_id
        # The tasks that were handed back because of too little time, and those with limits longer than any invocation.
        self._handed_back: list[Task] = []
        self._shortened: list[Task] = []
        self._started_any = False
        self._postponed: list[tuple[Mapping[str, Any], float]] = []
        self._signing_keys: list[str] = []
        self.failed: list[str] = []
        self.database_unavailable = False

    def run(self) -> None:
        """Run the deliveries one after another; each of them ends acknowledged or in `failed`."""
        failpoints.reached("batch:start")
        self._signing_keys = app_settings.signing_keys
        self._waiting = suspects_last(self._waiting)
        for index, delivery in enumerate(self._waiting):
            failpoints.reached("batch:next")
            close_doubtful_connections()
            try:
                # Each task runs in its own context, so that its language, time zone and contextvars end with it.
                copy_context().run(self._run_one, delivery)
            except (OperationalError, InterfaceError):
                logger.exception("The database is unavailable; the rest of the batch returns to the queue.")
                self.database_unavailable = True
                for waiting in self._waiting[index:]:
                    self._keep(waiting, visible_in=outage_pause(waiting.receives))
                break
        self._warn_of_too_little_time()
        if self._postponed:
            get_backend().postpone(self._postponed)
        failpoints.reached("batch:before_return")

    def response(self) -> dict[str, Any]:
        """Return the partial batch response for Lambda."""
        return {"batchItemFailures": [{"itemIdentifier": raw_id} for raw_id in self.failed]}

    def _run_one(self, delivery: Delivery) -> None:
        log_context.set((delivery.message_id, partial(self._log_fields, delivery)))  # it ends with the context
        outcome: Outcome | Skipped | None = None
        try:
            message = Invocation.of_body(self._verified(delivery) if self._signing_keys else delivery.body)
            log_context.set((delivery.message_id, partial(self._log_fields, delivery, message)))
            task = resolving.resolve(message.task_name, self._deadline)
            if not self._time_for(task, delivery.receives):
                logger.info("Message %s is handed back: too little time is left to run it.", delivery.shown_id)
                self._handed_back.append(task)
                self._keep(delivery, visible_in=handed_back_pause(delivery.receives))
                return
            self._started_any = True
            outcome = pipeline.execute_delivery(
                message, delivery, deadline=self._deadline, task=task, request_id=self._request_id
            )
        except Redeliver as redeliver:
            logger.warning("Message %s stays on the queue: %s.", delivery.shown_id, redeliver.reason)
            self._keep(delivery, visible_in=_pause(redeliver, delivery.receives))
        except (OperationalError, InterfaceError):
            raise
        except (UnknownTask, InvalidMessage):
            # The producer may be newer than this worker. A deployment must not use up all receives.
            logger.exception("Message %s stays on the queue: this worker cannot run it.", delivery.shown_id)
            self._keep(delivery, visible_in=foreign_pause(delivery.receives))
        except Exception:
            logger.exception("Message %s stays on the queue: it could not be run.", delivery.shown_id)
            self._keep(delivery, visible_in=outage_pause(delivery.receives))
        finally:
            if not isinstance(outcome, Succeeded | Skipped):
                close_connections()

    def _verified(self, delivery: Delivery) -> str:
        """Return the body of a message that is signed, or raise `InvalidSignature`."""
        from lambda_tasks.wire.signing import verify

        verify(delivery.body, delivery.texts, self._signing_keys)
        return delivery.body

    def _log_fields(self, delivery: Delivery, message: Invocation | None = None) -> Fields:
        """Return the fields of lines about a delivery before and after its task is executed."""
        return {
            "task_name": None if message is None else message.task_name,
            "queue": delivery.queue,
            "attempt": None if message is None else message.n_retries + 1,
            "root_id": delivery.root_id if message is not None and message.n_retries else delivery.message_id,
            "aws_request_id": self._request_id,
            "trace_id": trace_id(delivery.texts),
        }

    def _time_for(self, task: Task, receives: int) -> bool:
        """Return whether a task may start. Its limits are shortened to the time that is left.

        The first task may always start. A later one needs the time for its hard timeout. If no invocation has that
        much time, handing the message back only helps if a new invocation would have much more time.
        """
        if self._deadline is None:
            return True
        enough = time_needed(task)
        if self._full_time < enough:
            self._shortened.append(task)
            enough = self._full_time * max(START_SHARE ** max(receives, 1), LEAST_SHARE)
        return not self._started_any or self._deadline - time.monotonic() >= enough

    def _warn_of_too_little_time(self) -> None:
        """Log a WARNING for each invocation that handed messages back, or one per process about shortened limits."""
        global _warned_of_limits
        if self._handed_back:
            number = len(self._handed_back)
            messages = "1 message was" if number == 1 else f"{number} messages were"
            text = f"{messages} handed back, at the cost of one receive each, because too little time was left."
            logger.warning("%s %s", text, self._times_of(self._handed_back))
        elif self._shortened and not _warned_of_limits:
            logger.warning("Time limits are shortened. %s", self._times_of(self._shortened))
            _warned_of_limits = True

    def _times_of(self, tasks: Iterable[Task]) -> str:
        """Return the sentences about the function's time, the time that the slowest task needs, and the remedy."""
        task = max(tasks, key=time_needed)
        return (
            f"The function has {self._full_time:.0f} s, and {task.name} needs up to {time_needed(task):g} s (its hard "
            f"timeout and {KILL_GRACE + ANSWER_RESERVE:g} s). Raise the function's timeout, lower hard_timeout, or "
            "reduce the batch size."
        )

    def _keep(self, delivery: Delivery, *, visible_in: float | None = None) -> None:
        """Leave a message on its queue, invisible for `visible_in` seconds or the rest of its visibility timeout."""
        self.failed.append(delivery.raw_id)
        if visible_in is not None:
            self._postponed.append((delivery.record, visible_in))


def time_needed(task: Task) -> float:
    """Return the seconds that an invocation needs to run `task` up to its hard timeout, and to respond."""
    _, hard_timeout = task.timeouts()
    return hard_timeout + KILL_GRACE + ANSWER_RESERVE


def _pause(redeliver: Redeliver, receives: int) -> float | None:
    """Return the seconds until the message of `redeliver` is visible again, or None to leave that to the queue."""
    known = redeliver.visible_in
    if known is not None:
        known += random.uniform(_ROUNDING, _JITTER)
    if redeliver.exact:
        return known
    return max(known or 0.0, outage_pause(receives))


def longest_time_needed(queue: str) -> float:
    """Return the longest `time_needed()` of the imported tasks of `queue`, or that of a task with default limits."""
    tasks = [task for task in registry.registered_tasks() if task.queue == queue]
    default = app_settings.default_hard_timeout + KILL_GRACE + ANSWER_RESERVE
    return max(map(time_needed, tasks), default=default)


def close_stale_connections() -> None:
    """Close connections that are too old or broken, as Django does before and after a request.

    Connections in a transaction are skipped. They do not occur on Lambda, but they do in tests.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def close_doubtful_connections() -> None:
    """Close the unusable ones of the connections that a run has left with an error or without autocommit."""
    for connection in initialized_connections():
        if connection.connection is None or connection.in_atomic_block:
            continue
        if had_errors(connection) or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]:
            connection.close_if_unusable_or_obsolete()


def close_connections() -> None:
    """End the database sessions of a run that did not succeed, since ROLLBACK does not undo all its effects there.

    For example, advisory locks belong to the session, not to the transaction. Connections in a transaction are
    skipped, as in `close_stale_connections()`.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            end_session(connection)


def _prepare_early() -> None:
    """Prepare the process before its first message, if Lambda makes environments early."""
    kind = os.environ.get(INITIALIZATION)
    if kind == _FROM_SNAPSHOT:
        from lambda_tasks.environments import snapshots

        snapshots.register(boot)
    elif kind in _IN_ADVANCE:
        from lambda_tasks.environments import preparing

        preparing.begin(boot)


_prepare_early()
