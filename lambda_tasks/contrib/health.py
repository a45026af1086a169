"""A view that tells a load balancer or a monitor whether this process can enqueue tasks, and workers can run them.

    from lambda_tasks.contrib.health import HealthView, health_view

    path("health/", health_view)
    path("health/", HealthView.as_view(max_outbox_age=60, check_queues=True))

It answers 200 and `{"status": "ok"}`, or 503 and `{"status": "unavailable"}`. Only users with the permission
`lambda_tasks.view_taskrecord` also get the checks with their errors, which the log has as warnings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pkgutil import iter_modules
from typing import Any, Final

from django.conf import settings as django_settings
from django.db import connections, router, transaction
from django.http import HttpRequest, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache

from lambda_tasks import migrations, registry
from lambda_tasks.database.clock import from_now
from lambda_tasks.database.errors import on_sound_connection
from lambda_tasks.definition.keys import locks
from lambda_tasks.maintenance import outbox
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.strategies import get_lock, get_store
from lambda_tasks.wire.ids import new_message_id

logger: Final = get_logger("lambda_tasks.health")

#: Seconds for which a message in the outbox may be due, by default: a failed attempt postpones it for less.
MAX_OUTBOX_AGE: Final = 600.0
#: Seconds after which the lock of a check expires, if it cannot be released.
_LOCK_SECONDS: Final = 10.0
OK: Final = "ok"


class Unhealthy(Exception):
    """What a check has found."""


@method_decorator([never_cache, transaction.non_atomic_requests], name="dispatch")
class HealthView(View):
    """Answers whether the database, the tables, the outbox, the lock and, on request, the queues are available.

    The options are the attributes below, as arguments of `as_view()`. If the database does not answer, the other
    checks are omitted, which would wait for it, too.
    """

    #: Whether the migrations of the library must be applied. A project without records may omit the check.
    check_tables: bool = True
    #: How many seconds ago a message in the outbox may have been due; None to omit the check.
    max_outbox_age: float | None = MAX_OUTBOX_AGE
    #: Whether to acquire and release a lock; None to do so if a task of this process needs one.
    check_lock: bool | None = None
    #: Whether to ask SQS for the depth of each queue, which costs at least one request for each.
    check_queues: bool = False

    def get(self, request: HttpRequest) -> JsonResponse:
        found: dict[str, str] = {}
        for name, check in self._checks():
            found[name] = _outcome(name, check)
            if name == "database" and found[name] != OK:
                break
        healthy = all(outcome == OK for outcome in found.values())
        body: dict[str, Any] = {"status": OK if healthy else "unavailable"}
        if _may_see_details(request):
            body["checks"] = found
        return JsonResponse(body, status=200 if healthy else 503)

    def _checks(self) -> Iterator[tuple[str, Callable[[], object]]]:
        yield "database", check_database
        if self.check_tables:
            yield "tables", check_tables
        max_age, kept = self.max_outbox_age, outbox()
        if max_age is not None and kept is not None:
            yield "outbox", lambda: check_outbox(kept.databases, max_age)
        needed = any(map(locks, registry.registered_tasks())) if self.check_lock is None else self.check_lock
        if needed:
            yield "lock", check_lock
        if self.check_queues:
            yield "queues", check_queues


health_view = HealthView.as_view()


def _outcome(name: str, check: Callable[[], object]) -> str:
    """Return "ok", or what the check has found. An error of any kind is an answer, and not an error page."""
    try:
        check()
    except Exception as error:
        found = str(error) if isinstance(error, Unhealthy) else f"{type(error).__name__}: {error}"
        logger.warning("The check of the health of %s has failed: %s", name, found)
        return found
    return OK


def check_database() -> None:
    """Raise the database's error if the database of the records does not answer."""
    database = get_store().database

    def query() -> None:
        with connections[database].cursor() as cursor:
            cursor.execute("SELECT 1")

    on_sound_connection(database, query)


def check_tables() -> None:
    """Raise `Unhealthy` if a migration of the library is not applied in the database of the records."""
    from django.db.migrations.recorder import MigrationRecorder  # only this check needs it

    database = get_store().database
    overridden = "lambda_tasks" in getattr(django_settings, "MIGRATION_MODULES", {})
    if overridden or not router.allow_migrate_model(database, TaskRecord):
        return
    known = {module.name for module in iter_modules(migrations.__path__)}
    recorder = MigrationRecorder(connections[database])
    with transaction.atomic(using=database):  # a failed query must not break a transaction that is already open
        applied = set(recorder.migration_qs.filter(app="lambda_tasks").values_list("name", flat=True))
    if missing := known - applied:
        raise Unhealthy(
            f"Migration {min(missing)} is not applied. Run `manage.py migrate lambda_tasks --database {database}`."
        )


def check_outbox(databases: list[str], max_age: float) -> None:
    """Raise `Unhealthy` if a message in the outbox has been due for more than `max_age` seconds."""
    for database in databases:
        with transaction.atomic(using=database):
            overdue = OutboxMessage.objects.using(database).filter(due_at__lt=from_now(-max_age)).exists()
        if overdue:
            raise Unhealthy(
                f"A message in the outbox of database {database!r} has been due for more than {max_age:g} s. Relay the "
                "outbox, or look at the log of the relay."
            )


def check_lock() -> None:
    """Raise the error of the lock's server if a lock cannot be acquired and released."""
    lock, token = get_lock(), new_message_id()
    key = f"lambda_tasks.health.{token}"  # its own, so that concurrent checks do not wait for each other
    if not lock.acquire(key, token=token, timeout=_LOCK_SECONDS):
        raise Unhealthy("A free lock could not be acquired. Check the cache that LAMBDA_TASKS_LOCK uses.")
    lock.release(key, token=token)


def check_queues() -> None:
    """Raise `Unhealthy` if SQS does not tell the depth of a queue."""
    from lambda_tasks.operations.queues import depths  # only this check needs it

    for depth in depths():
        if depth.problem:
            raise Unhealthy(f"Queue {depth.queue!r}: {depth.problem}")


def _may_see_details(request: HttpRequest) -> bool:
    """Return whether the request's user may see records: not if the sessions or the users are unavailable."""
    user = getattr(request, "user", None)
    try:
        return user is not None and bool(user.has_perm("lambda_tasks.view_taskrecord"))
    except Exception:
        return False
