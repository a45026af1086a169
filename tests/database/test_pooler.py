"""The settings in *Deploying* for PostgreSQL: directly, and through a real PgBouncer in transaction mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connections

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
from tests.services import Missing, own_pooler

pytestmark = [pytest.mark.databases("postgres", transaction=True), pytest.mark.once]

PAGE = Path(__file__).parents[2] / "docs/howto/deploying.md"
#: The keys of an entry in DATABASES that name the server.
ADDRESS = ("HOST", "PORT", "USER", "NAME")
#: Ends the sessions of the pooler, which were opened before a change of the role.
END_OTHERS = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def section(title: str) -> str:
    text = PAGE.read_text().partition(f"\n### {title}\n")[2]
    return text.partition("\n### ")[0]


def documented(title: str) -> dict[str, Any]:
    """Return the entry of DATABASES in a section of the page."""
    [example] = re.findall(r"^```python\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    return dict(namespace["DATABASES"]["default"])


def use(database: str, entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **address: Any) -> None:
    """Connect with a documented entry, but to the server of the tests."""
    connection = connections[database]
    connection.close()
    for key, value in {**entry, **{key: address[key] for key in ADDRESS if key in address}}.items():
        if key not in ADDRESS or key in address:
            monkeypatch.setitem(connection.settings_dict, key, value)


def value_of(database: str, setting: str) -> str:
    with connections[database].cursor() as cursor:
        cursor.execute(f"SHOW {setting}")
        return str(cursor.fetchone()[0])


@pytest.fixture
def store(database: str, settings: Any) -> Iterator[None]:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    yield
    connections[database].close()


@pytest.fixture(scope="module")
def address() -> dict[str, Any]:
    """Return the entry of DATABASES with the address of a pooler before the server of the tests."""
    started = own_pooler(django_settings.DATABASES["postgres"])
    if isinstance(started, Missing):
        pytest.skip(str(started))
    return started


@pytest.fixture
def limits_of_the_role(database: str) -> Iterator[None]:
    """Set the documented limits for the role in the database of this run."""
    connection = connections[database]
    [sql] = re.findall(r"^```sql\n(.*?)^```", section("Through a pooler"), re.MULTILINE | re.DOTALL)
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    role = "ALTER ROLE CURRENT_USER IN DATABASE"
    with connection.cursor() as cursor:
        cursor.execute(sql.replace("ALTER ROLE shop IN DATABASE shop", f"{role} {name}"))
        # A value of its own, since servers differ: those of the tests do not wait for the disk.
        cursor.execute(f"{role} {name} SET synchronous_commit TO local")
        cursor.execute(END_OTHERS)
    connection.close()
    yield
    connection.close()
    with connection.cursor() as cursor:
        cursor.execute(f"{role} {name} RESET ALL")
        cursor.execute(END_OTHERS)


@pytest.fixture
def pooled(
    store: None, database: str, address: dict[str, Any], limits_of_the_role: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    with monkeypatch.context() as patch:
        use(database, documented("Through a pooler"), patch, **address)
        yield database
        connections[database].close()


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
            use(database, documented("Directly"), patch)
            assert value_of(database, "statement_timeout") == "2min"
            assert value_of(database, "lock_timeout") == "30s"
            assert run(order_all) == ["SUCCESS"]
            connections[database].close()


class TestThroughPooler:
    def test_settings_for_a_direct_connection_are_refused(
        self, database: str, address: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            use(database, documented("Directly"), patch, **address)
            with pytest.raises(OperationalError, match="unsupported startup parameter"):
                connections[database].ensure_connection()
            connections[database].close()

    def test_documented_settings_connect_and_limit(self, pooled: str) -> None:
        assert value_of(pooled, "statement_timeout") == "2min"
        assert value_of(pooled, "lock_timeout") == "30s"
        assert value_of(pooled, "idle_in_transaction_session_timeout") == "15min"

    def test_doctor_finds_no_missing_limit(self, pooled: str) -> None:
        doctor = Doctor(lambda *_: None, None, lambda text: None)
        look_at_database(doctor, pooled)
        assert doctor.findings == []

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
