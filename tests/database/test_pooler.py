"""The documented settings for PostgreSQL: directly, and through a real PgBouncer in transaction mode."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import OperationalError, connections

from lambda_tasks import registry
from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.operations.doctor.databases import look_at_database
from lambda_tasks.operations.doctor.findings import Doctor
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.database.pooled import documented, use, value_of

pytestmark = [pytest.mark.databases("postgres", transaction=True), pytest.mark.once]


@lambda_task
def pack(*, order: int) -> int:
    return order


@lambda_task
def order_all() -> str:
    for order in range(3):
        pack.using(database="postgres").execute_on_commit(order=order)
    return "ordered"


@lambda_task
def break_down() -> None:
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


@lambda_task(singleton=True)
def alone() -> None: ...


@lambda_task(retry_on=[KeyError], max_retries=1)
def again() -> None:
    raise KeyError("x")


def run(*tasks: Any) -> list[str]:
    """Run a batch, and return the statuses of its records."""
    jobs = [Job(Invocation(task.name, {}), new := ids.new_message_id(), root_id=new) for task in tasks]
    assert handler({"Records": [event_record(job) for job in jobs]}, None) == {"batchItemFailures": []}
    records = TaskRecord.objects.using("postgres").in_bulk([job.message_id for job in jobs])
    return [record.status for record in sorted(records.values(), key=lambda record: str(record.pk))]


class TestDirectly:
    def test_documented_settings_connect_and_limit(
        self, store: None, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            use(database, documented("deploying.md", "Directly"), patch)
            assert value_of(database, "statement_timeout") == "2min"
            assert value_of(database, "lock_timeout") == "30s"
            assert run(order_all) == ["SUCCESS"]
            connections[database].close()


class TestThroughPooler:
    def test_settings_for_a_direct_connection_are_refused(
        self, database: str, address: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            use(database, documented("deploying.md", "Directly"), patch, **address)
            with pytest.raises(OperationalError, match="unsupported startup parameter"):
                connections[database].ensure_connection()
            connections[database].close()

    def test_documented_settings_connect_and_limit(self, pooled: str) -> None:
        assert value_of(pooled, "statement_timeout") == "2min"
        assert value_of(pooled, "lock_timeout") == "30s"
        assert value_of(pooled, "idle_in_transaction_session_timeout") == "15min"

    def test_doctor_finds_no_missing_limit(self, pooled: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "registered_tasks", list)  # without the long tasks of other tests
        doctor = Doctor(lambda *_: None, None, lambda text: None)
        look_at_database(doctor, pooled)
        # The tests' own server does not wait for the disk, which is D305.
        assert [finding for finding in doctor.findings if finding.id != "D305"] == []

    def test_tasks_of_every_kind_end(self, pooled: str) -> None:
        backend = get_backend()
        assert isinstance(backend, MemoryBackend)
        backend.jobs.clear()
        assert run(order_all, break_down, alone, again) == ["SUCCESS", "FAILED", "SUCCESS", "RETRYING"]
        assert [job.task_name for job in backend.jobs].count(pack.name) == 3

    def test_claims_may_be_lazy(self, pooled: str, settings: Any) -> None:
        options = {"database": pooled, "durable_claims": False}
        settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": options}
        assert run(order_all) == ["SUCCESS"]
        # The claim must not leave its setting behind in a session that others share.
        assert value_of(pooled, "synchronous_commit") == "local"
