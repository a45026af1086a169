"""Check the settings of a database, and its outbox, for problems that would lose or repeat work."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from django.db import connections
from django.db.models import Count, Min

from lambda_tasks import registry
from lambda_tasks.database.clock import from_now
from lambda_tasks.database.errors import DATABASE_ERRORS
from lambda_tasks.models import OutboxMessage
from lambda_tasks.operations.database_settings import forgetful_setting, idle_timeout
from lambda_tasks.operations.doctor.findings import OVERDUE, RESERVE, Doctor, Finding
from lambda_tasks.recording.lines import sentence

if TYPE_CHECKING:
    from datetime import datetime

#: The maximum number of characters of an error that a finding quotes.
_QUOTED: Final = 200
#: The end of the addresses of RDS Proxy: NAME.proxy-ID.REGION.rds.amazonaws.com.
_RDS_PROXY: Final = re.compile(r"\.proxy-\w+\.[\w-]+\.rds\.amazonaws\.com(\.cn)?$")


def look_at_database(doctor: Doctor, alias: str) -> None:
    """Check the settings of the database of the records, and what they do not show, in the server."""
    settings = connections[alias].settings_dict
    subject = f"database {alias!r}"
    if settings.get("CONN_MAX_AGE", 0) != 0 and not settings.get("CONN_HEALTH_CHECKS"):
        doctor.find(
            "D302",
            subject,
            "connections are kept open (CONN_MAX_AGE) but not checked. A container that resumes with a dead connection "
            "notices only when a query fails. The worker then repeats the claim, but a query that a plugin makes "
            "before the claim fails.",
            'Set "CONN_HEALTH_CHECKS": True.',
        )
    if connections[alias].vendor == "postgresql":
        options = settings.get("OPTIONS", {})
        doctor.findings += _missing_limits(subject, options)
        doctor.findings += _refused_options(subject, settings)
        if "service" not in options:  # otherwise, the timeouts are in the connection service file
            _look_at_statement_timeout(doctor, alias, options)
    _look_at_durability(doctor, alias)
    _look_at_idle_timeout(doctor, alias)


def _look_at_durability(doctor: Doctor, alias: str) -> None:
    """Ask the server whether COMMIT waits for its disk, as `check --database` does."""
    subject = f"database {alias!r}"
    try:
        setting = forgetful_setting(connections[alias])
    except DATABASE_ERRORS as error:
        if all(finding.subject != subject or finding.id != "D001" for finding in doctor.findings):
            _skipped(doctor, subject, error, "Make sure that the database can be reached from this machine.")
        return
    if setting is not None:
        doctor.find(
            "D305",
            subject,
            f"{setting}: COMMIT does not wait for the disk, so a crash of the server may undo tasks that were "
            "acknowledged.",
            "Leave the setting at its default for this server, database and role. To make only claims faster, use "
            "durable_claims=False of ORMStore.",
        )


def _look_at_idle_timeout(doctor: Doctor, alias: str) -> None:
    """Ask the server when it ends the transaction of a task that computes for so long."""
    longest = max((task.timeouts()[1] for task in registry.registered_tasks()), default=0)
    try:
        seconds = idle_timeout(connections[alias])
    except DATABASE_ERRORS:
        return  # another check of the server has reported it
    if 0 < seconds < (needed := longest + RESERVE):
        doctor.find(
            "D306",
            f"database {alias!r}",
            f"idle_in_transaction_session_timeout is {seconds:g} s, but the longest task may compute for {longest} s "
            "between two queries. The server then ends its transaction, which counts as a death of the worker.",
            f"Set it to {needed:g} s or more, where it is set: in OPTIONS, on the role, the database or the server.",
        )


def look_at_outbox(doctor: Doctor, alias: str) -> None:
    """Check the outbox in this database for a missing table, dead messages, and messages that no relay sends."""
    subject = f"outbox in database {alias!r}"
    try:
        if OutboxMessage._meta.db_table in connections[alias].introspection.table_names():
            _look_at_messages(doctor, alias, subject)
        else:
            doctor.find(
                "D401",
                subject,
                "its table does not exist, so every commit with a task fails.",
                f"Run `manage.py migrate --database {alias}`, and make sure that DATABASE_ROUTERS allow the table "
                "there.",
            )
    except DATABASE_ERRORS as error:
        _skipped(
            doctor,
            subject,
            error,
            "Make sure that the database can be reached from this machine, or check the outbox manually.",
        )


def _look_at_messages(doctor: Doctor, alias: str, subject: str) -> None:
    messages = OutboxMessage.objects.using(alias)
    dead = messages.filter(due_at=None)
    if number := dead.count():
        oldest = dead.order_by("created_at", "id").defer("body", "attributes")[0]
        doctor.find(
            "D402",
            subject,
            f"{_messages(number)} dead, the oldest since {_minute(oldest.created_at)} ({oldest.task_name}: "
            f"{oldest.error[:_QUOTED]}). Rejected messages are not retried, so their tasks do not run.",
            "Inspect the messages in the admin (/lambda_tasks/outboxmessage/?state=dead). Fix the cause and send them, "
            "or delete them.",
        )
    overdue = messages.filter(due_at__lt=from_now(-OVERDUE)).aggregate(number=Count("pk"), since=Min("due_at"))
    if overdue["number"]:
        doctor.find(
            "D403",
            subject,
            f"{_messages(overdue['number'])} due for more than {OVERDUE // 60} minutes, the first since "
            f"{_minute(overdue['since'])}. No relay is running, or the relays are too slow.",
            'Create an EventBridge schedule that sends {"lambda_tasks": "maintenance"} to the function every minute, '
            "or run `manage.py lambda_tasks relay`. If one of them is running, check its log for errors.",
        )


def _messages(number: int) -> str:
    return "1 message is" if number == 1 else f"{number:,} messages are"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}{' UTC' if moment.tzinfo else ''}"


def _missing_limits(subject: str, options: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding for each missing timeout without which PostgreSQL's client would wait indefinitely."""
    if "service" in options:
        return
    if not _is_set(options.get("connect_timeout") or os.environ.get("PGCONNECT_TIMEOUT")):
        yield Finding(
            "D301",
            subject,
            "connect_timeout is not set. If the server does not respond, an invocation waits until Lambda ends it.",
            'Set "connect_timeout": 3 in its OPTIONS.',
        )
    if not _is_set(options.get("tcp_user_timeout")):
        yield Finding(
            "D303",
            subject,
            "tcp_user_timeout is not set. If the server disappears without closing the connection, as in a failover, "
            "the worker notices only after many minutes.",
            'Set "tcp_user_timeout": 30_000 and the keepalives in its OPTIONS.',
        )


def _refused_options(subject: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield a finding for startup options and a host that is known to refuse them; PgBouncer may have any name."""
    options = settings.get("OPTIONS", {}).get("options") or os.environ.get("PGOPTIONS")
    if options and _RDS_PROXY.search(settings.get("HOST") or ""):
        yield Finding(
            "D307",
            subject,
            f"{settings['HOST']} is an RDS Proxy, which refuses connections with startup options, and "
            f"{'OPTIONS' if settings.get('OPTIONS', {}).get('options') else 'PGOPTIONS'} has some: {options}.",
            "Remove them, and set the limits on the role: ALTER ROLE name SET statement_timeout = '120s'.",
        )


def _look_at_statement_timeout(doctor: Doctor, alias: str, options: Mapping[str, Any]) -> None:
    """Ask the server for the timeout if the settings do not contain it: it may belong to the role or the database."""
    if "statement_timeout" in f"{options.get('options', '')}{os.environ.get('PGOPTIONS', '')}":
        return
    subject = f"database {alias!r}"
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            is_set = _is_set(cursor.fetchone()[0])
    except DATABASE_ERRORS as error:
        _skipped(doctor, subject, error, "Make sure that the database can be reached from this machine.")
        return
    if not is_set:
        doctor.find(
            "D304",
            subject,
            "statement_timeout is not set. A query that waits for a lock waits until the task's hard timeout, or "
            "indefinitely where no hard timeout applies, such as while an outcome is recorded.",
            'Set "options": "-c statement_timeout=120s" in its OPTIONS. PgBouncer and RDS Proxy reject this option: '
            "through them, set the timeout on the role (ALTER ROLE name SET statement_timeout = '120s').",
        )


def _skipped(doctor: Doctor, subject: str, error: Exception, remedy: str) -> None:
    doctor.find("D001", subject, f"this check was skipped: {sentence(error)}", remedy)


def _is_set(limit: object) -> bool:
    return str(limit or "0") != "0"
