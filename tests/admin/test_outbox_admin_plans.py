"""The outbox pages of the admin read a large table through its only index, without sorting."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import pytest
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from lambda_tasks.admin import listing
from lambda_tasks.models import OutboxMessage

pytestmark = pytest.mark.django_db

ROWS: Final = 10_000
TABLE: Final = OutboxMessage._meta.db_table
DUE: Final = "lambda_tasks_due"
#: Words in plans for a step that reads or sorts more than a page needs.
TROUBLE: Final = ("Seq Scan", "Sort", "TEMP B-TREE", "filesort", "'ALL'", f"SCAN {TABLE}')")
WORDS: Final = {"postgresql": "EXPLAIN", "sqlite": "EXPLAIN QUERY PLAN", "mysql": "EXPLAIN"}


def key(number: int) -> UUID:
    return uuid5(UUID(int=0), str(number))


@pytest.fixture(scope="module", autouse=True)
def _table(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Insert messages: of each hundred, ten are dead, forty are waiting, and fifty are delayed by days."""
    now = timezone.now()
    with django_db_blocker.unblock():
        OutboxMessage.objects.bulk_create((_message(number, now) for number in range(ROWS)), batch_size=1000)
        if connection.vendor != "sqlite":
            with connection.cursor() as cursor:
                cursor.execute(f"ANALYZE {'TABLE ' if connection.vendor == 'mysql' else ''}{TABLE}")
    yield
    with django_db_blocker.unblock():
        OutboxMessage.objects.all().delete()


def _message(number: int, now: Any) -> OutboxMessage:
    kind = number % 100
    run_at = now + timedelta(days=2, seconds=number) if kind >= 50 else None
    waits = now - timedelta(seconds=number) if run_at is None else run_at - timedelta(seconds=900)
    return OutboxMessage(
        id=key(number),
        task_name=f"shop.tasks.step_{number % 30}",
        queue=f"queue-{number % 3}",
        body='{"task_name": "shop.tasks.step", "kwargs": {}}',
        created_at=now,
        run_at=run_at,
        due_at=None if kind < 10 else waits,
    )


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the limits of the list in proportion to the small table."""
    monkeypatch.setattr(listing, "MOST_LISTED", 150)
    monkeypatch.setattr(listing, "RECENT", 10)


def plans_of(address: str, client: Client) -> dict[str, str]:
    """Return the plans of the page's queries on the table, by query."""
    found: dict[str, str] = {}

    def explain(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if TABLE in sql:
            execute(f"{WORDS[connection.vendor]} {sql}", params, False, context)
            found[sql] = str(context["cursor"].fetchall())
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        assert client.get(address).status_code == 200
    return found


@pytest.mark.parametrize(
    "query",
    ["", "?p=2", "?o=-5", "?state=dead", "?state=waiting", "?state=delayed", "?state=delayed&o=-5"],
)
def test_page_reads_the_index_without_sorting(query: str, admin_client: Client) -> None:
    plans = plans_of(reverse("admin:lambda_tasks_outboxmessage_changelist") + query, admin_client)
    assert len(plans) == (3 if "dead" in query else 4)
    for sql, plan in plans.items():
        if "COUNT(" in sql:  # it may read any rows, because its limit is that of the list
            assert "LIMIT 150" in sql
        else:
            assert DUE in plan, plan
            # MariaDB sorts dead messages by id, because it does not know that the index has them in that order.
            expected = {"filesort"} if connection.vendor == "mysql" and "dead" in query else set()
            assert not any(word in plan for word in TROUBLE if word not in expected), plan


def test_message_is_found_by_its_key(admin_client: Client) -> None:
    for address in (
        reverse("admin:lambda_tasks_outboxmessage_changelist") + f"?state=dead&q={key(5)}",
        reverse("admin:lambda_tasks_outboxmessage_change", args=[key(5)]),
    ):
        for sql, plan in plans_of(address, admin_client).items():
            if str(key(5)) in sql or key(5).hex in sql:
                assert not any(word in plan for word in ("Seq Scan", "'ALL'", f"SCAN {TABLE}')")), plan
