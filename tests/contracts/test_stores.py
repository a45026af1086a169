"""The contract of stores, over the ORM store on every database, and what is particular to it."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connections, transaction
from django.utils import timezone

from lambda_tasks.exceptions import LeaseLost, ResultNotSerializable
from lambda_tasks.identity import new_message_id
from lambda_tasks.jobs import Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Busy, Claimed, Failed, Succeeded
from lambda_tasks.stores.null import NullStore
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.testing.contracts import InThread, StoreContract, Stored, crowd, example, nested, together, winners
from tests.app.models import Effect


class ORMStoreContract(StoreContract):
    @pytest.fixture
    def store(self, database: str) -> ORMStore:
        return ORMStore(database=database)

    def stored(self, store: Any, run: Run) -> Stored | None:
        record = TaskRecord.objects.using(store.database).filter(pk=run.message_id).first()
        return record and Stored(record.status, record.result, record.traceback)

    def delete(self, store: Any, run: Run) -> None:
        TaskRecord.objects.using(store.database).filter(pk=run.message_id).delete()


@pytest.mark.databases("postgres", "mariadb", transaction=True)
class TestORMStore(ORMStoreContract):
    """The documented default, on the servers."""


@pytest.mark.databases("sqlite", transaction=True)
class TestORMStoreOnSQLite(ORMStoreContract):
    waits_for_commit = False  # there is no server that could be lost, and no FOR UPDATE


# What is particular to the ORM store

on_each_database = pytest.mark.databases(transaction=True)


def new_run(store: ORMStore | NullStore, *, of: Run | None = None, lease: float = 60, **kwargs: Any) -> Run:
    message_id = of.message_id if of else new_message_id()
    return Run(
        message=SQSLambdaTaskMessage(task_name=example.name, kwargs=kwargs),
        message_id=message_id,
        root_id=message_id,
        queue="default",
        task=example,
        arguments={},
        soft_timeout=10,
        hard_timeout=20,
        lease=lease,
        database=store.database,
    )


def claimed(store: ORMStore, *, lease: float = 60, of: Run | None = None) -> Run:
    run = new_run(store, lease=lease, of=of)
    assert isinstance(store.claim(run), Claimed)
    return run


def record_of(run: Run) -> TaskRecord:
    return TaskRecord.objects.using(run.database).get(pk=run.message_id)


def is_takeover(sql: str, database: str) -> bool:
    """Tell whether a statement is the first of a takeover, after the dead lease was seen."""
    return ("UPDATE" if database == "sqlite" else "SKIP LOCKED") in sql


@on_each_database
def test_runs_that_have_all_seen_the_dead_lease_before_one_takes_it_share_nothing(database: str) -> None:
    store = ORMStore(database=database)
    dead = claimed(store, lease=-1)
    all_have_looked = threading.Barrier(3, timeout=30)

    def claim(_: int) -> object:
        def wait(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if is_takeover(sql, database):
                all_have_looked.wait()
            return execute(sql, params, many, context)

        with connections[database].execute_wrapper(wait):
            return store.claim(new_run(store, of=dead))

    assert winners(together(3, claim)) == [Claimed(1)]  # type: ignore[arg-type]


@on_each_database
def test_a_run_that_ends_after_its_dead_lease_was_seen_is_not_taken_over(database: str) -> None:
    store = ORMStore(database=database)
    late = claimed(store, lease=-1)
    has_looked, may_go_on = threading.Event(), threading.Event()

    def claim() -> object:
        def wait(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if is_takeover(sql, database):
                has_looked.set()
                assert may_go_on.wait(30)
            return execute(sql, params, many, context)

        with connections[database].execute_wrapper(wait):
            return store.claim(new_run(store, of=late))

    other = InThread(claim).start()
    assert has_looked.wait(30), other.error
    store.record(late, Failed(ValueError("late")))
    may_go_on.set()
    assert isinstance(other.answer(), Busy)
    assert record_of(late).status == "FAILED"


@on_each_database
def test_what_was_begun_and_not_ended_is_known_by_its_ids(database: str) -> None:
    store = ORMStore(database=database)
    running, dead, given_back, taken_over = claimed(store), claimed(store, lease=-1), claimed(store), claimed(store)
    store.release(given_back)
    again = claimed(store, of=(died := claimed(store, lease=-1)))
    store.release(again)  # somebody died with it before
    ids = [run.message_id for run in (running, dead, given_back, died, new_run(store))]
    assert store.begun(ids) == {running.message_id, dead.message_id, died.message_id}
    assert taken_over.message_id not in store.begun(ids)
    assert store.begun([]) == set()


@pytest.mark.databases("postgres", "mariadb", transaction=True)
@pytest.mark.parametrize("n_retries", [0, 1], ids=["received again", "a retry that was sent twice"])
def test_a_message_that_comes_again_waits_for_no_worker_that_stands_before_its_commit(
    database: str, n_retries: int
) -> None:
    """That one may be frozen, or out of reach: its transaction stays open for as long as that lasts."""
    store = ORMStore(database=database)
    frozen = claimed(store, lease=-1)
    again = new_run(store, of=frozen)
    again.redelivered = not n_retries
    again.message = again.message.model_copy(update={"n_retries": n_retries})
    with transaction.atomic(using=database):
        store.record(frozen, Succeeded(1))
        assert isinstance(InThread(lambda: store.claim(again)).start().answer(), Busy)
    assert record_of(frozen).status == "SUCCESS"


@on_each_database
def test_the_work_of_a_run_that_was_taken_over_is_rolled_back(database: str) -> None:
    store = ORMStore(database=database)
    dead = claimed(store, lease=-1)
    claimed(store, of=dead)
    with pytest.raises(LeaseLost), transaction.atomic(using=database):
        Effect.objects.using(database).create(name="twice")
        store.record(dead, Succeeded())
    assert not Effect.objects.using(database).exists()


@on_each_database
def test_a_record_says_what_was_asked_for_and_when(database: str) -> None:
    store = ORMStore(database=database)
    run = new_run(store, text="ä\U0001f600")
    before = timezone.now()
    store.claim(run)
    store.record(run, Failed(ValueError("no")))
    record = record_of(run)
    assert (record.task_name, record.kwargs, record.n_retries) == (example.name, {"text": "ä\U0001f600"}, 0)
    assert str(record.root_id) == run.root_id
    assert record.start_time is not None
    assert record.end_time is not None
    assert abs(record.start_time - before) < timedelta(seconds=30)
    assert timedelta(0) <= record.end_time - record.start_time < timedelta(seconds=30)


@pytest.mark.databases("mariadb", transaction=True)
def test_a_server_in_another_time_zone_records_the_right_moment(database: str) -> None:
    store = ORMStore(database=database)
    with connections[database].cursor() as cursor:
        cursor.execute("SET time_zone = '+05:00'")
    try:
        run = claimed(store)
        start = record_of(run).start_time
        assert start is not None
        assert abs(start - timezone.now()) < timedelta(seconds=30)
    finally:
        connections[database].close()


@pytest.fixture(params=[False, True], ids=["without time zones", "with time zones"])
def _time_zones(request: pytest.FixtureRequest, settings: Any) -> None:
    settings.USE_TZ = request.param
    settings.TIME_ZONE = "Asia/Tokyo"


@on_each_database
@pytest.mark.usefixtures("_time_zones")
def test_a_lease_means_the_same_with_and_without_time_zones(database: str) -> None:
    store = ORMStore(database=database)
    alive, dead = claimed(store, lease=60), claimed(store, lease=-1)
    busy = store.claim(new_run(store, of=alive))
    assert isinstance(busy, Busy)
    assert 30 < busy.seconds <= 60
    assert store.claim(new_run(store, of=dead)) == Claimed(1)
    store.release(alive)
    assert store.claim(new_run(store, of=alive)) == Claimed(0)


@pytest.mark.databases("postgres", transaction=True)
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_under_a_strict_isolation_level_one_gets_it_and_nobody_gets_it_twice(database: str, level: str) -> None:
    store = ORMStore(database=database)
    dead = [claimed(store, lease=-1) for _ in range(10)]

    def claim(round_: int, _: int) -> object:
        with connections[database].cursor() as cursor:
            cursor.execute(f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}")
        try:
            return store.claim(new_run(store, of=dead[round_]))
        except OperationalError as error:
            if "could not serialize access" not in str(error):
                raise
            return Busy(0)  # the executor asks once more on a new connection, and is told so

    claims = crowd(claim)
    assert [winners(answers) for answers in claims] == [[Claimed(1)]] * 10  # type: ignore[arg-type]


class RecordsOnSQLite:
    """A router that keeps records elsewhere."""

    def db_for_write(self, model: type, **_: object) -> str | None:
        return "sqlite" if model is TaskRecord else None


@pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)
def test_records_are_kept_where_the_routers_want_them(settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RecordsOnSQLite()]
    store = ORMStore()
    assert store.database == "sqlite"
    run = claimed(store)
    with transaction.atomic(using=store.database):
        store.record(run, Succeeded(1))
    assert store.has_succeeded(run)
    assert record_of(run).status == "SUCCESS"
    assert ORMStore(database="default").database == "default"


@pytest.mark.django_db
def test_a_record_that_the_database_refuses_is_not_taken_for_a_claim_of_another() -> None:
    store = ORMStore(database="default")
    run = new_run(store)
    run.message = run.message.model_copy(update={"task_name": None})
    with pytest.raises(IntegrityError):
        store.claim(run)


@pytest.mark.databases("mariadb", transaction=True)
def test_a_result_that_is_larger_than_the_database_takes_is_refused(database: str) -> None:
    store = ORMStore(database=database)
    run = claimed(store)
    try:
        with pytest.raises(ResultNotSerializable), transaction.atomic(using=database):
            store.record(run, Succeeded("x" * 17 * 1024 * 1024))
    finally:
        connections[database].close()  # it may be lost, which the next test is not to notice


# Nothing is recorded


def test_the_null_store_runs_every_delivery() -> None:
    store = NullStore()
    run = new_run(store)
    assert store.claim(run) == store.claim(new_run(store, of=run)) == Claimed(0)
    store.record(run, Succeeded(nested(3)))
    store.release(run)
    assert store.has_succeeded(run) is False
    assert (store.database, NullStore(database="other").database) == ("default", "other")
