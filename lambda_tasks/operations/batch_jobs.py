"""Run the task of a job on AWS Batch: `manage.py lambda_tasks batch-job` calls it in the job's container."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any, Final

from django.db import InterfaceError, OperationalError

from lambda_tasks import maintenance
from lambda_tasks.exceptions import InvalidMessage, Redeliver, UnknownTask
from lambda_tasks.execution import pipeline
from lambda_tasks.execution.backoff import outage_pause
from lambda_tasks.handler import boot, close_connections, close_stale_connections
from lambda_tasks.limits import watchdog
from lambda_tasks.outcomes import Outcome, Skipped, Succeeded
from lambda_tasks.plugins import hooks, notify
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.settings import app_settings, settled
from lambda_tasks.wire.deliveries import Delivery
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.job_environment import JobMessage
from lambda_tasks.wire.signing import verify

logger: Final = get_logger("lambda_tasks.batch_jobs")

#: The longest pause after an outage for which the container waits, in seconds. Then the next attempt of the job
#: definition's retry strategy tries again.
MAX_PAUSE: Final = 300.0
#: Seconds between two looks at an invocation that another job or worker runs.
GLANCE: Final = 15.0


class JobFailed(Exception):
    """The task of the job was not run, and may be in the next attempt of the job."""


def run_job(environment: Mapping[str, str], *, sleep: Callable[[float], object] = time.sleep) -> str:
    """Run the task whose message is in `environment`, and return how it ended: its record has the details.

    Wait until the task may begin. While another attempt of the job, or a copy of it, holds the claim of the
    invocation, wait for its end, or for the end of its lease, and take over then. After an outage, wait and try again.

    Raise `InvalidMessage` or `UnknownTask` if this container cannot run the task, and `JobFailed` if the outage lasts.
    """
    boot()
    job = JobMessage.of(environment)
    sleep(max(job.not_before - time.time(), 0.0))
    receives = job.attempt
    while True:
        record = job.record(receives)
        result = _attempt(Delivery.of(record), job, receives)
        if isinstance(result, str):
            _finish(record, failed=False)
            return result
        if result.visible_in is None or result.visible_in > MAX_PAUSE:
            _finish(record, failed=True)
            raise JobFailed(f"{result.reason}. The next attempt of the job tries again, if it has one.")
        logger.warning("The job waits for %.0f s, since %s.", result.visible_in, result.reason)
        sleep(result.visible_in)
        receives += 1


def _attempt(delivery: Delivery, job: JobMessage, receives: int) -> str | Redeliver:
    """Try to run the task once. Return its outcome, or why and when to try again."""
    close_stale_connections()
    outcome: Outcome | Skipped | None = None
    try:
        with settled(), watchdog.shared():
            outcome = copy_context().run(_execute, delivery, job)
        return _name_of(outcome)
    except Redeliver as redeliver:
        if redeliver.exact:
            # The other job may end long before its lease, and this container's time is paid for.
            return Redeliver(redeliver.reason, visible_in=min(redeliver.visible_in or GLANCE, GLANCE), exact=True)
        pause = max(redeliver.visible_in or 0.0, outage_pause(receives))
        return Redeliver(redeliver.reason, visible_in=pause)
    except (InvalidMessage, UnknownTask):
        raise
    except (OperationalError, InterfaceError):
        logger.exception("The database is unavailable.")
        return Redeliver("the database is unavailable", visible_in=outage_pause(receives))
    except Exception as error:
        logger.exception("The task of the job could not be run.")
        return Redeliver(f"it could not be run ({type(error).__name__})", visible_in=outage_pause(receives))
    finally:
        if not isinstance(outcome, Succeeded | Skipped):
            close_connections()


def _execute(delivery: Delivery, job: JobMessage) -> Outcome | Skipped:
    if keys := app_settings.signing_keys:
        verify(delivery.body, delivery.texts, keys)
    return pipeline.execute_delivery(Invocation.of_body(delivery.body), delivery, request_id=job.job_id or None)


def _name_of(outcome: Outcome | Skipped) -> str:
    if isinstance(outcome, Skipped):
        return f"skipped ({outcome.reason})"
    return type(outcome).__name__.lower()


def _finish(record: dict[str, Any], *, failed: bool) -> None:
    """Do what an invocation on Lambda does at its end: relay the outbox, and let plugins flush what they have."""
    if not failed:
        maintenance.relay_now_and_then(None)
    response = {"batchItemFailures": [{"itemIdentifier": record["messageId"]}] if failed else []}
    event = {"Records": [record]}
    notify(hooks().lambda_task_batch_finished, event=event, response=response, deadline=None)
    close_stale_connections()
