"""Actions before COMMIT, and the choice of the open transaction."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.test import TestCase

from lambda_tasks.database.commits import before_commit, open_transaction
from tests.app.models import Effect

pytestmark = pytest.mark.databases(transaction=True)

Connection = Any


class Failure(Exception):
    """The exception that an action raises."""


class Interrupt(BaseException):
    """An exception as Ctrl-C or an alarm raises it."""


class Action:
    """An action before each COMMIT: it writes an effect and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None

    def __call__(self, connection: Connection) -> None:
        self.calls += 1
        if self.error is not None:
            Effect.objects.using(connection.alias).create(name="of an action that failed")
            raise self.error
        Effect.objects.using(connection.alias).create(name="of the action")


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    """Return a connection without installed actions, which no other test uses afterwards."""
    before = connections[database]
    connections[database] = before.copy()
    yield connections[database]
    connections[database].close()
    connections[database] = before


@pytest.fixture
def action(connection: Connection) -> Action:
    action = Action()
    before_commit(connection, action)
    return action


def effects(database: str) -> list[str]:
    return list(Effect.objects.using(database).order_by("pk").values_list("name", flat=True))


def leave(database: str, name: str = "of the caller") -> None:
    Effect.objects.using(database).create(name=name)


def test_action_is_part_of_the_committed_transaction(database: str, action: Action) -> None:
    with transaction.atomic(using=database):
        leave(database)
        assert action.calls == 0
    assert effects(database) == ["of the caller", "of the action"]


def test_action_is_called_per_commit_not_savepoint(database: str, action: Action) -> None:
    for _ in range(2):
        with transaction.atomic(using=database), transaction.atomic(using=database):
            with transaction.atomic(using=database):
                leave(database)
            with transaction.atomic(using=database, savepoint=False):
                leave(database)
    assert action.calls == 2


def test_action_is_not_called_on_rollback(database: str, action: Action) -> None:
    with suppress(Failure), transaction.atomic(using=database):
        leave(database)
        raise Failure
    with transaction.atomic(using=database):
        leave(database)
        transaction.set_rollback(True, using=database)
    assert action.calls == 0
    assert effects(database) == []


def test_action_is_not_called_in_autocommit_mode(database: str, connection: Connection, action: Action) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert action.calls == 0


def test_action_is_called_for_a_manual_commit(database: str, action: Action) -> None:
    transaction.set_autocommit(False, using=database)
    try:
        leave(database)
        transaction.commit(using=database)
        transaction.rollback(using=database)
    finally:
        transaction.set_autocommit(True, using=database)
    assert action.calls == 1
    assert effects(database) == ["of the caller", "of the action"]


def test_commit_refused_by_django_calls_nothing(database: str, connection: Connection, action: Action) -> None:
    with transaction.atomic(using=database):
        with pytest.raises(transaction.TransactionManagementError):
            connection.commit()
        assert action.calls == 0


def test_action_is_installed_once(database: str, connection: Connection, action: Action) -> None:
    for _ in range(3):
        before_commit(connection, action)
    with transaction.atomic(using=database):
        leave(database)
    assert action.calls == 1


def test_action_survives_a_new_session(database: str, connection: Connection, action: Action) -> None:
    connection.close()
    with transaction.atomic(using=database):
        leave(database)
    assert action.calls == 1


@pytest.mark.parametrize(
    "error", [Failure(), Interrupt(), DatabaseError("no room"), IntegrityError("there already")], ids=repr
)
def test_error_of_the_action_rolls_everything_back(
    database: str, connection: Connection, action: Action, error: BaseException
) -> None:
    called: list[str] = []
    action.error = error
    with pytest.raises(type(error)) as caught, transaction.atomic(using=database):
        leave(database)
        transaction.on_commit(lambda: called.append("hook"), using=database)
    assert caught.value is error
    assert called == []
    assert (connection.in_atomic_block, connection.get_autocommit()) == (False, True)
    assert effects(database) == []
    action.error = None
    with transaction.atomic(using=database):
        leave(database)
    assert effects(database) == ["of the caller", "of the action"]
    assert called == []


def test_error_that_broke_the_transaction_stays_unchanged(database: str, connection: Connection) -> None:
    def break_it(connection: Connection) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")

    before_commit(connection, break_it)
    with pytest.raises(DatabaseError, match="no_such_table"), transaction.atomic(using=database):
        leave(database)
    assert connection.get_autocommit()
    assert effects(database) == []


def test_callbacks_see_what_the_action_wrote(database: str, action: Action) -> None:
    seen: list[list[str]] = []
    with transaction.atomic(using=database):
        transaction.on_commit(lambda: seen.append(effects(database)), using=database)
        leave(database)
    assert seen == [["of the caller", "of the action"]]


# The choice of the open transaction


def test_default_is_chosen_without_a_transaction(database: str) -> None:
    assert open_transaction() == "default"


def test_only_open_transaction_is_chosen(database: str) -> None:
    with transaction.atomic(using=database):
        assert open_transaction() == database
        with transaction.atomic(using=database):
            assert open_transaction() == database
    assert open_transaction() == "default"


def test_default_is_chosen_if_both_are_open(database: str) -> None:
    with transaction.atomic(using=database), transaction.atomic():
        assert open_transaction() == "default"


class TestInADjangoTestCase(TestCase):
    """The test case keeps each alias in two transactions."""

    databases: ClassVar = {"default", "sqlite"}

    def test_transactions_of_the_test_case_do_not_count(self) -> None:
        assert all(connections[alias].in_atomic_block for alias in self.databases)
        assert open_transaction() == "default"

    def test_transactions_of_the_caller_count(self) -> None:
        with transaction.atomic(using="sqlite"):
            assert open_transaction() == "sqlite"
            with transaction.atomic():
                assert open_transaction() == "default"
            assert open_transaction() == "sqlite"
        assert open_transaction() == "default"

    def test_action_is_not_called_without_a_commit(self) -> None:
        action, installed = Action(), {"commit", "_lambda_tasks_before_commit"}
        attributes = vars(connections["sqlite"])
        before = {name: attributes.pop(name) for name in installed & attributes.keys()}
        try:
            before_commit(connections["sqlite"], action)
            assert installed <= attributes.keys()
            with transaction.atomic(using="sqlite"):
                leave("sqlite")
        finally:
            for name in installed & attributes.keys():
                del attributes[name]
            attributes.update(before)
        assert action.calls == 0


def test_action_is_reinstalled_after_a_patch_removed_it(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    action = Action()
    with monkeypatch.context() as patch:
        patch.setattr(connection, "commit", lambda: None)
        before_commit(connection, action)
    before_commit(connection, action)
    with transaction.atomic(using=connection.alias):
        Effect.objects.using(connection.alias).create(name="of the caller")
    assert action.calls == 1
    assert Effect.objects.using(connection.alias).count() == 2


def test_failed_rollback_does_not_hide_an_interrupt(
    connection: Connection, action: Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise DatabaseError("the server is gone")

    action.error = Interrupt()
    with pytest.raises(Interrupt), monkeypatch.context() as patch, transaction.atomic(using=connection.alias):
        Effect.objects.using(connection.alias).create(name="of the caller")
        patch.setattr(connection, "_rollback", fail)
    action.error = None
    assert connection.get_autocommit()
    assert not Effect.objects.using(connection.alias).exists()


class TestWithoutADefaultDatabase:
    """Django allows `DATABASES = {"default": {}}` if the routers name all other databases."""

    PROJECT = """
        import django
        from django.conf import settings
        from django.db import transaction

        class Main:
            def db_for_read(self, model, **hints):
                return "main"
            db_for_write = db_for_read

        settings.configure(
            DATABASES={"default": {}, "main": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            DATABASE_ROUTERS=[Main()] if %(routed)r else [],
            INSTALLED_APPS=["lambda_tasks"],
            LAMBDA_TASKS_BACKEND="lambda_tasks.backends.memory.MemoryBackend",
            LAMBDA_TASKS_OUTBOX=%(outbox)r,
            LAMBDA_TASKS_QUEUES={"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"},
        )
        django.setup()
        from django.core.management import call_command
        from lambda_tasks.strategies import get_backend
        from lambda_tasks.tasks import cleanup_task_records
        call_command("migrate", database="main", verbosity=0)
        print(cleanup_task_records.execute_on_commit().database)
        with transaction.atomic(using="main"):
            print(cleanup_task_records.execute_on_commit().database)
        backend = get_backend()
        print(len(getattr(backend, "transport", backend).jobs))
    """

    @pytest.mark.parametrize(("routed", "outbox"), [(True, False), (True, True), (False, False)])
    def test_task_is_sent_by_another_database(self, routed: bool, outbox: bool) -> None:
        script = textwrap.dedent(self.PROJECT % {"routed": routed, "outbox": outbox})
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.split() == ["main", "main", "2"], done.stderr
