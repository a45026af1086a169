"""Find problems that would lose or repeat work: in queues and functions on AWS, database settings, and the outbox.

`diagnose()` returns findings, and `manage.py lambda_tasks doctor` prints them. The doctor changes nothing, and does
not receive or send messages.
"""

from __future__ import annotations

from collections.abc import Callable

from lambda_tasks.maintenance import outbox
from lambda_tasks.operations.aws import connect_to_aws
from lambda_tasks.operations.doctor.databases import look_at_database, look_at_outbox
from lambda_tasks.operations.doctor.findings import LEVELS, Connect, Doctor, Finding, Queue
from lambda_tasks.operations.doctor.queues import look_at_queue
from lambda_tasks.operations.doctor.schedules import look_at_schedules
from lambda_tasks.operations.doctor.tasks import look_at_tasks
from lambda_tasks.settings import app_settings
from lambda_tasks.strategies import get_store

__all__ = ["LEVELS", "Connect", "Finding", "connect_to_aws", "diagnose"]


def diagnose(
    *, function: str | None = None, connect: Connect | None = None, note: Callable[[str], None] | None = None
) -> list[Finding]:
    """Check every queue in LAMBDA_TASKS_QUEUES, its functions, the outbox, the schedules, and the records' database.

    The `tasks` modules of all installed apps are imported first, since the checks depend on the tasks' time limits.

    `function` is the name of the Lambda function that reads from the queues. By default, the functions of the queues'
    event source mappings are checked. A request that AWS or the database of an outbox does not answer (because of a
    missing permission, or an unavailable network) is a finding with the level `skipped`. `note` is called with
    useful facts that are not findings: how long an outage each queue survives.

    Raise ImproperlyConfigured if a setting is invalid.
    """
    doctor = Doctor(connect or connect_to_aws, function, note or (lambda text: None))
    look_at_tasks(doctor)
    for name, url in app_settings.queue_urls.items():
        look_at_queue(doctor, Queue(name, url))
    if job_queues := app_settings.job_queues:
        from lambda_tasks.operations.doctor.job_queues import look_at_job_queue  # most projects have none

        for name, job_queue in job_queues.items():
            look_at_job_queue(doctor, name, job_queue)
    look_at_database(doctor, get_store().database)
    if (kept := outbox()) is not None:
        for database in kept.databases:
            look_at_outbox(doctor, database)
    look_at_schedules(doctor)
    return doctor.findings
