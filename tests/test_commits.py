"""The moment before COMMIT, and whose transaction is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.test import TestCase

from lambda_tasks.commits import before_commit, open_transaction
from tests.app.models import Effect

pytestmark = pytest.mark.databases(transaction=True)

Connection = Any


class Failure(Exception):
    """What an action raises."""


class Interrupt(BaseException):
    """What Ctrl-C or an alarm raises."""


class Action:
    """What is to be done before each COMMIT: writes an effect, and notes that it was called."""

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
    """A connection that nothing was installed on, and that nobody uses afterwards."""
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


def test_the_action_is_part_of_the_transaction_that_is_committed(database: str, action: Action) -> None:
    with transaction.atomic(using=database):
        leave(database)
        assert action.calls == 0
    assert effects(database) == ["of the caller", "of the action"]


def test_it_is_called_once_for_each_commit_and_not_for_savepoints(database: str, action: Action) -> None:
    for _ in range(2):
        with transaction.atomic(using=database), transaction.atomic(using=database):
            with transaction.atomic(using=database):
                leave(database)
            with transaction.atomic(using=database, savepoint=False):
                leave(database)
    assert action.calls == 2


def test_it_is_not_called_for_what_is_rolled_back(database: str, action: Action) -> None:
    with suppress(Failure), transaction.atomic(using=database):
        leave(database)
        raise Failure
    with transaction.atomic(using=database):
        leave(database)
        transaction.set_rollback(True, using=database)
    assert action.calls == 0
    assert effects(database) == []


def test_it_is_not_called_in_autocommit_mode(database: str, connection: Connection, action: Action) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert action.calls == 0


def test_it_is_called_for_a_commit_by_hand(database: str, action: Action) -> None:
    transaction.set_autocommit(False, using=database)
    try:
        leave(database)
        transaction.commit(using=database)
        transaction.rollback(using=database)
    finally:
        transaction.set_autocommit(True, using=database)
    assert action.calls == 1
    assert effects(database) == ["of the caller", "of the action"]


def test_a_commit_that_django_refuses_calls_nothing(database: str, connection: Connection, action: Action) -> None:
    with transaction.atomic(using=database):
        with pytest.raises(transaction.TransactionManagementError):
            connection.commit()
        assert action.calls == 0


def test_it_is_installed_once(database: str, connection: Connection, action: Action) -> None:
    for _ in range(3):
        before_commit(connection, action)
    with transaction.atomic(using=database):
        leave(database)
    assert action.calls == 1


def test_it_survives_a_new_session(database: str, connection: Connection, action: Action) -> None:
    connection.close()
    with transaction.atomic(using=database):
        leave(database)
    assert action.calls == 1


@pytest.mark.parametrize(
    "error", [Failure(), Interrupt(), DatabaseError("no room"), IntegrityError("there already")], ids=repr
)
def test_what_it_raises_is_raised_by_the_commit_and_rolls_everything_back(
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


def test_an_error_that_broke_the_transaction_is_raised_as_it_is(database: str, connection: Connection) -> None:
    def break_it(connection: Connection) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")

    before_commit(connection, break_it)
    with pytest.raises(DatabaseError, match="no_such_table"), transaction.atomic(using=database):
        leave(database)
    assert connection.get_autocommit()
    assert effects(database) == []


def test_callbacks_come_after_the_commit_and_see_what_the_action_wrote(database: str, action: Action) -> None:
    seen: list[list[str]] = []
    with transaction.atomic(using=database):
        transaction.on_commit(lambda: seen.append(effects(database)), using=database)
        leave(database)
    assert seen == [["of the caller", "of the action"]]


# Whose transaction is open


def test_it_is_default_where_nothing_is_open(database: str) -> None:
    assert open_transaction() == "default"


def test_it_is_the_one_that_is_open(database: str) -> None:
    with transaction.atomic(using=database):
        assert open_transaction() == database
        with transaction.atomic(using=database):
            assert open_transaction() == database
    assert open_transaction() == "default"


def test_it_is_default_if_that_one_is_open_too(database: str) -> None:
    with transaction.atomic(using=database), transaction.atomic():
        assert open_transaction() == "default"


class TestInADjangoTestCase(TestCase):
    """Each alias is in two transactions of the test's."""

    databases: ClassVar = {"default", "sqlite"}

    def test_the_tests_own_do_not_count(self) -> None:
        assert all(connections[alias].in_atomic_block for alias in self.databases)
        assert open_transaction() == "default"

    def test_the_callers_do(self) -> None:
        with transaction.atomic(using="sqlite"):
            assert open_transaction() == "sqlite"
            with transaction.atomic():
                assert open_transaction() == "default"
            assert open_transaction() == "sqlite"
        assert open_transaction() == "default"

    def test_nothing_is_done_where_no_commit_comes(self) -> None:
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


def test_it_is_installed_again_after_a_patch_has_taken_it_away(
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


def test_a_rollback_that_fails_does_not_hide_an_interrupt(
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
