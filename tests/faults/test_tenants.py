"""Test routers that follow a context variable, as in projects with a database for each tenant."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from django.test import override_settings

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id
from tests.faults.workers import job_of

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "sqlite"]),
    pytest.mark.usefixtures("empty_queue", "tenants"),
]

tenant: ContextVar[str] = ContextVar("tenant", default="default")


class Router:
    def db_for_read(self, model: Any, **hints: Any) -> str:
        return tenant.get()

    db_for_write = db_for_read


class RetryRequested(Exception):
    """Request a retry."""


@lambda_task(retry_on=(RetryRequested,))
def bill(*, end: str) -> str:
    tenant.set("sqlite")
    if end == "retry":
        raise RetryRequested
    if end == "failure":
        raise RuntimeError("the printer is out of paper")
    return "billed"


@pytest.fixture
def tenants(settings: Any) -> Iterator[None]:
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.Router"]):
        yield


@pytest.mark.parametrize(("end", "status"), [("success", "SUCCESS"), ("failure", "FAILED"), ("retry", "RETRYING")])
@pytest.mark.parametrize("outbox", [False, True], ids=["directly", "outbox"])
def test_record_is_ended_on_its_own_database(end: str, status: str, outbox: bool, settings: Any) -> None:
    settings.LAMBDA_TASKS_OUTBOX = outbox
    job = job_of(bill, new_message_id(), end=end)
    assert handler({"Records": [event_record(job)]}, None) == {"batchItemFailures": []}

    assert list(TaskRecord.objects.using("default").values_list("status", flat=True)) == [status]
    assert not TaskRecord.objects.using("sqlite").exists()
    if end == "retry":
        transport: Any = get_backend()
        sent = getattr(transport, "transport", transport).jobs
        kept = OutboxMessage.objects.using("default").count()
        assert len(sent) + kept == 1
        sent.clear()
