"""Test DATABASES with AUTOCOMMIT: False, where no write would be committed."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connections

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

pytestmark = [pytest.mark.databases(transaction=True)]

ran: list[str] = []


@lambda_task
def note() -> None:
    ran.append("note")


@pytest.fixture
def manual(database: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    monkeypatch.setitem(connections[database].settings_dict, "AUTOCOMMIT", False)
    ran.clear()
    return database


def test_message_stays_on_the_queue(manual: str) -> None:
    job = Job(Invocation(task_name=note.name, kwargs={}), ids.new_message_id(), root_id="x")
    record = event_record(job)
    assert handler({"Records": [record]}, None) == {"batchItemFailures": [{"itemIdentifier": record["messageId"]}]}
    assert ran == []
    assert not TaskRecord.objects.using(manual).exists()


def test_maintenance_refuses_to_run(manual: str) -> None:
    with pytest.raises(InvalidSetting, match="AUTOCOMMIT"):
        handler({"lambda_tasks": "maintenance"}, None)
