"""SUCCESS and COMMIT in one request to PostgreSQL: the fence holds, and what must precede COMMIT still does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, transaction

from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.execution.pipeline import MAX_RERUNS
from lambda_tasks.models import OutboxMessage
from lambda_tasks.outcomes import Outcome
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.testing.contracts.crowd import InThread
from tests.courier import note, rows, use_outbox
from tests.faults.proxy import Proxy, Strike
from tests.faults.test_database_faults import (  # noqa: F401, the fixtures are used by name
    _tasks_work_here,
    at,
    at_commit,
    backend,
    deliver,
    effects,
    execute,
    ids_of,
    leave,
    leave_and_enqueue,
    leave_and_tell,
    leave_but_once,
    meanwhile,
    message_of,
    names,
    on_postgres,
    proxy,
    ran,
    records,
    statuses,
)

pytestmark = on_postgres


@lambda_task
def leave_and_note(*, name: str) -> None:
    leave(name=name)
    note.using(database=get_store().database).execute_on_commit(number=1)


@pytest.fixture
def requests(database: str) -> Iterator[list[str]]:
    """Yield the statements that reach the database through Django, as they are sent."""
    sent: list[str] = []

    def look(send: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        sent.append(sql)
        return send(sql, params, many, context)

    with connections[database].execute_wrapper(look):
        yield sent


def ends_alone(requests: list[str]) -> bool:
    """Return whether the UPDATE of the outcome was a request of its own."""
    [ending] = [sql for sql in requests if "UPDATE" in sql and "lambda_tasks_taskrecord" in sql]
    return not ending.endswith("; COMMIT")


def take_over() -> None:
    execute("UPDATE lambda_tasks_taskrecord SET claim = gen_random_uuid()")


def delete_record() -> None:
    execute("DELETE FROM lambda_tasks_taskrecord")


def end_elsewhere() -> None:
    execute("UPDATE lambda_tasks_taskrecord SET status = 'FAILED', end_time = now()")


def test_outcome_and_commit_are_one_request(database: str, requests: list[str]) -> None:
    message = message_of(leave_and_tell, name="a")
    assert deliver(message) == []
    assert not ends_alone(requests)
    assert (names(), statuses(), records().get().result) == (["a"], ["SUCCESS"], "a")
    assert connections[database].in_atomic_block is False


@pytest.mark.parametrize("loss", [take_over, delete_record, end_elsewhere])
def test_lost_claim_rolls_the_work_back(requests: list[str], loss: Callable[[], object]) -> None:
    message = message_of(leave, name="a")
    meanwhile["a"] = loss
    assert deliver(message) == ids_of([message])
    assert not ends_alone(requests)
    assert (ran, names()) == (["a"], [])
    assert "SUCCESS" not in statuses()


@pytest.mark.parametrize(
    "does",
    ["PERFORM 1 / 0", "PERFORM CAST('x' AS integer)", "RAISE EXCEPTION 'claim lost'", "RAISE unique_violation"],
)
def test_error_at_commit_is_the_tasks_own(requests: list[str], does: str) -> None:
    """PostgreSQL runs deferred triggers in COMMIT. Their errors must not be taken for a lost claim."""
    message = message_of(leave, name="a")
    with at_commit(does):
        assert deliver(message) == []
    assert (ran, names(), statuses()) == (["a"], [], ["FAILED"])
    assert records().get().takeovers == 0


def test_conflict_at_commit_runs_the_task_again() -> None:
    message = message_of(leave, name="a")
    with at_commit("RAISE serialization_failure"):
        assert deliver(message) == []
    assert (len(ran), names()) == (1 + MAX_RERUNS, [])
    assert statuses() == ["RETRYING"]


@pytest.mark.parametrize("strike", [Strike.LOSE_ANSWER_TO_COMMIT, Strike.CUT_BEFORE_COMMIT])
def test_lost_answer_is_settled_by_the_record(proxy: Proxy, strike: Strike) -> None:  # noqa: F811
    message = message_of(leave, name="a")
    meanwhile["a"] = lambda: proxy.strike(strike)
    committed = strike is Strike.LOSE_ANSWER_TO_COMMIT
    assert deliver(message) == ([] if committed else ids_of([message]))
    assert (names(), statuses()) == ((["a"], ["SUCCESS"]) if committed else ([], ["RUNNING"]))
    assert records().get().takeovers == 0  # the loss of a session during COMMIT is not the task's
    assert deliver(message) == []
    assert (names(), statuses(), len(ran)) == (["a"], ["SUCCESS"], 1 if committed else 2)


# Where more must happen before COMMIT


def test_messages_of_the_outbox_are_written_before_commit(database: str, settings: Any, requests: list[str]) -> None:
    message = message_of(leave_and_note, name="a")
    use_outbox(settings, database).away.add("default")
    for _ in range(2):  # at the second delivery, the connection already has a commit() that writes to the outbox
        requests.clear()
        assert deliver(message) == []
        written = [sql for sql in requests if "lambda_tasks_outboxmessage" in sql]
        assert not ends_alone(requests)
        assert written[0].startswith("INSERT")
        assert requests.index(written[0]) < next(i for i, sql in enumerate(requests) if sql.endswith("; COMMIT"))
        assert (statuses(), len(rows(database))) == (["SUCCESS"], 1)
        records().all().delete()
        OutboxMessage.objects.using(database).all().delete()
    with at_commit("RAISE EXCEPTION 'refused'"):
        assert deliver(message) == []
    assert (statuses(), len(rows(database))) == (["FAILED"], 0)


@pytest.mark.parametrize("loss", [take_over, delete_record, end_elsewhere])
def test_lost_claim_rolls_messages_of_the_outbox_back(
    database: str, settings: Any, requests: list[str], loss: Callable[[], object]
) -> None:
    message = message_of(leave_and_note, name="a")
    courier = use_outbox(settings, database)
    meanwhile["a"] = loss
    assert deliver(message) == ids_of([message])
    assert not ends_alone(requests)
    assert (names(), rows(database), courier.sent) == ([], [], [])


def test_error_of_the_outbox_is_the_tasks_own(database: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    message = message_of(leave_and_note, name="a")
    use_outbox(settings, database)

    def refuse(*args: Any, **options: Any) -> None:
        raise LookupError("the outbox refuses it")

    monkeypatch.setattr(type(get_backend()), "keep", refuse)
    assert deliver(message) == []
    assert (names(), statuses(), len(rows(database))) == ([], ["FAILED"], 0)
    assert "the outbox refuses it" in records().get().traceback
    assert connections[database].in_atomic_block is False


def test_foreign_commit_is_called(database: str, settings: Any, requests: list[str]) -> None:
    """Other code may run a statement of its own before COMMIT: around the library's `commit()`, or inside of it."""
    connection: Any = connections[database]
    inside, around = (message_of(leave_and_note, name=name) for name in ("inside", "around"))
    use_outbox(settings, database).away.add("default")
    called: list[int] = []

    def wrapped(commit: Callable[[], None]) -> Callable[[], None]:
        def counting() -> None:
            called.append(len(rows(database)))
            commit()

        return counting

    vars(connection).pop("commit", None)
    connection.commit = wrapped(connection.commit)
    try:
        assert deliver(inside) == []
        assert ends_alone(requests)
        requests.clear()
        connection.commit = wrapped(connection.commit)
        assert deliver(around) == []
        assert ends_alone(requests)
    finally:
        vars(connection).pop("commit", None)
    assert set(called) == {1, 2}
    assert (names(), statuses(), len(rows(database))) == (["around", "inside"], ["SUCCESS"] * 2, 2)


def test_subclass_with_its_own_method_is_called(
    database: str, settings: Any, requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": f"{__name__}.CountingStore", "OPTIONS": {"database": database}}
    CountingStore.outcomes.clear()
    assert deliver(message_of(leave, name="a")) == []
    assert ends_alone(requests)
    assert (len(CountingStore.outcomes), statuses()) == (1, ["SUCCESS"])


class CountingStore(ORMStore):
    outcomes: list[Outcome] = []  # noqa: RUF012

    def record(self, run: Any, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        super().record(run, outcome)


def test_parameters_bound_by_the_server_take_two_requests(
    database: str, requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connections[database]
    connection.close()
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", True)
    assert deliver(message_of(leave, name="a")) == []
    connection.close()
    assert ends_alone(requests)
    assert (names(), statuses()) == (["a"], ["SUCCESS"])


def test_callers_transaction_is_not_committed(database: str, requests: list[str]) -> None:
    """As in eager mode."""
    message = message_of(leave, name="a")
    with transaction.atomic(using=database):
        deliver(message)
        assert ends_alone(requests)
        transaction.set_rollback(True, using=database)
    assert (effects().count(), records().count()) == (0, 0)


class TestRequestUnderWay:
    """The server may execute the request after a new connection has read the record."""

    @pytest.fixture
    def late(self, database: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:  # noqa: F811
        """Return a function that loses the connection before COMMIT, and has the server commit at a failpoint."""

        def commit() -> None:
            effects().create(name="late")
            records().update(status="SUCCESS", end_time=DatabaseNow())

        def prepare(point: str) -> None:
            meanwhile["a"] = lambda: proxy.strike(Strike.CUT_BEFORE_COMMIT)
            at(monkeypatch, point, lambda: InThread(commit).start().answer())

        return prepare

    @pytest.mark.parametrize(("task", "point"), [(leave, "release:before"), (leave_but_once, "settle:before_write")])
    def test_commit_after_the_question_counts(
        self, late: Callable[[str], None], caplog: pytest.LogCaptureFixture, task: Any, point: str
    ) -> None:
        message = message_of(task, name="a")
        late(point)
        assert deliver(message) == []
        assert (names(), statuses(), ran) == (["late"], ["SUCCESS"], ["a"])
        assert "is committed; only the response to COMMIT was lost" in caplog.text

    def test_tasks_that_it_has_enqueued_are_sent(self, late: Callable[[str], None]) -> None:
        message = message_of(leave_and_enqueue, name="a")
        late("release:before")
        assert deliver(message) == []
        assert [job.message.kwargs["name"] for job in backend().jobs] == ["a 0", "a 1", "a 2"]
