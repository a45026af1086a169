"""The measured operations on a table of records: of the store, the built-in tasks and the admin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from benchmarks import records, tasks
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.jobs import Run
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Busy, Claimed, Finished, Succeeded
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.tasks import cleanup_task_records, reap_lost_tasks
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

#: Units of work in one measurement of an operation that takes less than a millisecond.
RUNS: Final = 200
#: Messages in one call of `begun()`: a batch.
BATCH: Final = 10
CLEANED: Final = 10_000
LOST: Final = 100


@dataclass(frozen=True, slots=True)
class Case:
    """An operation on the table. `prepare` returns the work, and is not measured."""

    name: str
    prepare: Callable[[], Callable[[], object]]
    units: int = 1
    writes: bool = True


def all_cases() -> list[Case]:
    return [
        Case("claim", _first_claims, RUNS),
        Case("record SUCCESS", _ends, RUNS),
        Case("claim, redelivered after its end", _claims_of_finished, RUNS),
        Case("claim, redelivered while it runs", _claims_of_running, RUNS),
        Case("takeover", _takeovers, RUNS),
        Case("begun(), of ten messages", _begun, RUNS // BATCH),
        Case("reap_lost_tasks, nothing lost", lambda: reap_lost_tasks, writes=False),
        Case("reap_lost_tasks", _reap),
        Case("cleanup_task_records", _cleanup),
        *_admin_cases(),
    ]


# The store


def new_run(message_id: str | None = None) -> Run:
    redelivered = message_id is not None
    message_id = message_id or ids.new_message_id()
    return Run(
        message=Invocation(task_name=tasks.nothing.name, kwargs={}),
        message_id=message_id,
        root_id=message_id,
        queue=records.EXTRA,
        task=tasks.nothing,
        arguments={},
        soft_timeout=270,
        hard_timeout=300,
        lease=309,
        database=get_store().database,
        redelivered=redelivered,
    )


def _claim(runs: Sequence[Run], expected: type) -> None:
    store = get_store()
    for run in runs:
        answer = store.claim(run)
        if not isinstance(answer, expected):
            raise AssertionError(f"{answer} instead of {expected.__name__}")


def _claimed() -> list[Run]:
    runs = [new_run() for _ in range(RUNS)]
    _claim(runs, Claimed)
    return runs


def _redelivered(**found: Any) -> list[Run]:
    """Return runs whose records exist, with the values in `found`."""
    ids = [run.message_id for run in _claimed()]
    TaskRecord.objects.filter(pk__in=ids).update(**found)
    return [new_run(message_id) for message_id in ids]


def _first_claims() -> Callable[[], object]:
    runs = [new_run() for _ in range(RUNS)]
    return lambda: _claim(runs, Claimed)


def _ends() -> Callable[[], object]:
    runs, store = _claimed(), get_store()

    def record() -> None:
        for run in runs:
            with transaction.atomic():
                store.record(run, Succeeded())

    return record


def _claims_of_finished() -> Callable[[], object]:
    runs = _redelivered(status="SUCCESS")
    return lambda: _claim(runs, Finished)


def _claims_of_running() -> Callable[[], object]:
    runs = _redelivered(status="RUNNING")
    return lambda: _claim(runs, Busy)


def _takeovers() -> Callable[[], object]:
    runs = _redelivered(lease_until=DatabaseNow() - timedelta(seconds=1))
    return lambda: _claim(runs, Claimed)


def _begun() -> Callable[[], object]:
    ids, store = [run.message_id for run in _claimed()], get_store()
    return lambda: [store.begun(ids[start : start + BATCH]) for start in range(0, RUNS, BATCH)]


# The tasks of the library


def _reap() -> Callable[[], object]:
    records.fill(LOST, oldest=1 / 1440, queue=records.EXTRA)  # only the end of the lease matters
    TaskRecord.objects.filter(queue=records.EXTRA).update(
        status="RUNNING",
        task_name=tasks.nothing.name,
        kwargs={},
        n_retries=0,
        lease_until=DatabaseNow() - timedelta(hours=2),
    )
    get_backend().take_records()
    return lambda: _expect(reap_lost_tasks(), {"sent_again": LOST, "failed": 0, "unsent": 0})


def _cleanup() -> Callable[[], object]:
    records.fill(CLEANED, oldest=records.DAYS + 10, youngest=records.DAYS + 1, queue=records.EXTRA)
    return lambda: _expect(cleanup_task_records(retention_days=records.DAYS + 1), CLEANED)


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise AssertionError(f"{found} instead of {expected}")


# The admin


def _admin_cases() -> list[Case]:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    address = reverse("admin:lambda_tasks_taskrecord_changelist")

    def get(query: str) -> Any:
        response = client.get(query if query.startswith("/") else address + query)
        if response.status_code != 200:
            raise AssertionError(f"{address}{query} answers {response.status_code}")
        return response

    def page(query: Callable[[], str]) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            url = query()
            return lambda: get(url)

        return prepare

    def fresh(query: str) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            cache.clear()
            return lambda: get(query)

        return prepare

    def last_page() -> str:
        return f"?p={get('').context_data['cl'].paginator.num_pages}"

    def some_id() -> str:
        return str(TaskRecord.objects.order_by("-start_time").values_list("pk", flat=True)[500])

    def a_day() -> str:
        first, last = (f"{timezone.now() - timedelta(days=days):%Y-%m-%d+%H:%M:%S%%2B00:00}" for days in (2, 1))
        return f"?start_time__gte={first}&start_time__lt={last}"

    forms: dict[str, Callable[[], str]] = {
        "first page": str,
        "second page": lambda: "?p=2",
        "last page": last_page,
        "status FAILED": lambda: "?status__exact=FAILED",
        "status SUCCESS": lambda: "?status__exact=SUCCESS",
        "status RUNNING": lambda: "?status__exact=RUNNING",
        "one task of thirty": lambda: "?task_name=shop.part_1.tasks.step_1",
        "a task without records": lambda: "?task_name=shop.tasks.never_run",
        "FAILED of one task": lambda: "?status__exact=FAILED&task_name=shop.part_1.tasks.step_1",
        "a day": a_day,
        "the last day": lambda: "?started=day",
        "one queue": lambda: "?queue=default",
        "a queue without records": lambda: "?queue=never-used",
        "running too long": lambda: "?run=overdue",
        "slow runs": lambda: "?run=1min",
        "search for arguments": lambda: "?q=order_id%3D42",
        "search for an id": lambda: f"?q={some_id()}",
        "search for a task's name": lambda: "?q=step_7",
        "search in tracebacks": lambda: "?q=PrinterOnFire",
        "search without a match": lambda: "?q=nowhere",
        "a record": lambda: f"{some_id()}/change/",
    }
    overview = reverse("admin:lambda_tasks_tasksoverview_changelist")
    overviews = {span: f"{overview}?span={span}" for span in ("hour", "day", "week")}
    return [
        *(Case(f"admin: {name}", page(query), writes=False) for name, query in forms.items()),
        *(Case(f"admin: overview, {span}", fresh(query), writes=False) for span, query in overviews.items()),
    ]
