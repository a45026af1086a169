"""Fixtures for tests through a pooler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connections

from tests.database.pooled import END_OTHERS, documented, examples, open_all_sessions, use
from tests.services import Missing, own_pooler


@pytest.fixture
def store(database: str, settings: Any) -> Iterator[None]:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    yield
    connections[database].close()


@pytest.fixture
def limits_of_the_role(database: str) -> Iterator[None]:
    """Set the documented limits for the role in the database of this run."""
    connection = connections[database]
    [sql] = examples("poolers.md", "Limits of the server", "sql")
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
def address(limits_of_the_role: None) -> Iterator[dict[str, Any]]:
    """Yield the entry of DATABASES with the address of a pooler before the server of the tests.

    It is started after the change of the role, since PgBouncer keeps the time zone of its first session.
    """
    started = own_pooler(django_settings.DATABASES["postgres"])
    if isinstance(started, Missing):
        pytest.skip(str(started))
    yield started.entry
    started.stop()


@pytest.fixture
def pooled(store: None, database: str, address: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with monkeypatch.context() as patch:
        use(database, documented("poolers.md", "Settings that connect"), patch, **address)
        open_all_sessions(address)
        yield database
        connections[database].close()
