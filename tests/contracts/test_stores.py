"""The contract of stores, over the ORM store on every database, and what is particular to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, OperationalError, connections, transaction
from django.utils import timezone

from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import LeaseLost, ResultNotSerializable
from lambda_tasks.executor import execute
from lambda_tasks.identity import new_message_id
from lambda_tasks.jobs import Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Succeeded
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


@pytest.mark.databases("postgres", transaction=True)
class TestORMStoreWhoseClaimsDoNotWait(ORMStoreContract):
    @pytest.fixture
    def store(self, database: str) -> ORMStore:
        return ORMStore(database=database, durable_claims=False)


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


@pytest.mark.parametrize("durable_claims", [True, False])
@pytest.mark.django_db(transaction=True)
def test_a_record_that_the_database_refuses_is_not_taken_for_a_claim_of_another(durable_claims: bool) -> None:
    store = ORMStore(database="default", durable_claims=durable_claims)
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


# Claims that do not wait for the disk

on_postgres = pytest.mark.databases("postgres", transaction=True)


@lambda_task(on_crash="fail")
def never_twice() -> None: ...


@lambda_task
def look() -> str:
    """Return what the COMMIT of its own transaction is to wait for."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        return str(cursor.fetchone()[0])


@dataclass
class Session:
    """A session that waits for the disk where nobody says otherwise, and hears how records are committed."""

    alias: str
    #: "INSERT off" is a record that was committed without waiting, "UPDATE on" an end that was waited for.
    commits: list[str] = field(default_factory=list)

    def begin(self) -> None:
        connections[self.alias].ensure_connection()
        connections[self.alias].connection.add_notice_handler(self._hear)
        self.run("SET synchronous_commit TO on")

    def run(self, sql: str) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)

    def waits(self) -> str:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            return str(cursor.fetchone()[0])

    def _hear(self, notice: Any) -> None:
        self.commits.append(notice.message_primary)


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    session = Session(database)
    session.begin()
    session.run(
        "CREATE FUNCTION say_how_it_commits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE NOTICE '% %', TG_OP, current_setting('synchronous_commit'); RETURN NULL; END $$"
    )
    # Deferred: it speaks in COMMIT.
    session.run(
        "CREATE CONSTRAINT TRIGGER says_how_it_commits AFTER INSERT OR UPDATE ON lambda_tasks_taskrecord "
        "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION say_how_it_commits()"
    )
    try:
        yield session
    finally:
        connections[database].close()
        session.run("DROP FUNCTION say_how_it_commits CASCADE")
        connections[database].close()


@on_postgres
def test_claims_do_not_wait_for_the_disk_where_they_need_not_and_all_else_does(session: Session) -> None:
    store = ORMStore(database=session.alias, durable_claims=False)
    run, failing, given_back = claimed(store), claimed(store), claimed(store, lease=-1)
    assert session.commits == ["INSERT off"] * 3
    assert session.waits() == "on"
    with transaction.atomic(using=session.alias):
        store.record(run, Succeeded(1))
    store.record(failing, Failed(ValueError("no")))
    store.release(given_back)
    claimed(store, of=given_back)
    assert session.commits[3:] == ["UPDATE on"] * 4


@on_postgres
def test_durable_claims_wait_for_the_disk(session: Session) -> None:
    claimed(ORMStore(database=session.alias))
    assert session.commits == ["INSERT on"]


@on_postgres
def test_the_transaction_of_the_task_and_what_follows_it_wait_for_the_disk(session: Session, settings: Any) -> None:
    options = {"database": session.alias, "durable_claims": False}
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": options}
    message = SQSLambdaTaskMessage(task_name=look.name, kwargs={})
    assert execute(message, message_id=new_message_id(), task=look) == Succeeded("on")
    assert session.commits == ["INSERT off", "UPDATE on"]
    assert session.waits() == "on"


@on_postgres
def test_the_claim_of_a_task_that_must_not_repeat_waits_for_the_disk(session: Session) -> None:
    store = ORMStore(database=session.alias, durable_claims=False)
    run = new_run(store)
    run.task = never_twice
    store.claim(run)
    assert session.commits == ["INSERT on"]


@on_postgres
def test_a_claim_in_somebody_elses_transaction_leaves_it_as_it_is(session: Session) -> None:
    """As in eager mode: what that transaction commits is more than a claim."""
    store = ORMStore(database=session.alias, durable_claims=False)
    with transaction.atomic(using=session.alias):
        run = claimed(store)
        assert isinstance(store.claim(new_run(store, of=run)), Busy)  # and it is not spoiled by that
        assert session.waits() == "on"
    transaction.set_autocommit(False, using=session.alias)
    try:
        claimed(store)
        assert session.waits() == "on"
        transaction.commit(using=session.alias)
    finally:
        transaction.set_autocommit(True, using=session.alias)
    assert session.commits == ["INSERT on"] * 2


@on_postgres
def test_a_claim_whose_parameters_the_server_binds_waits_for_the_disk(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connections[session.alias]
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", True)
    connection.close()
    session.begin()
    store = ORMStore(database=session.alias, durable_claims=False)
    claimed(store)
    assert session.commits == ["INSERT on"]
    [warning] = store.check()
    assert warning.id == "lambda_tasks.W003"


@on_postgres
def test_of_claims_that_refuse_each_other_none_leaves_anything_behind_in_its_session(session: Session) -> None:
    store = ORMStore(database=session.alias, durable_claims=False)
    run = claimed(store)
    assert isinstance(store.claim(new_run(store, of=run)), Busy)
    assert session.waits() == "on"
    assert not connections[session.alias].in_atomic_block
    assert claimed(store).message_id != run.message_id
    assert session.commits == ["INSERT off"] * 2


@pytest.mark.databases("sqlite", "mariadb", transaction=True)
def test_other_databases_make_claims_as_ever_and_the_check_says_so(database: str) -> None:
    store = ORMStore(database=database, durable_claims=False)
    run = claimed(store)
    assert isinstance(store.claim(new_run(store, of=run)), Busy)
    with transaction.atomic(using=database):
        store.record(run, Succeeded(1))
    assert record_of(run).status == "SUCCESS"
    assert [message.id for message in store.check()] == ["lambda_tasks.W003"]


@on_postgres
def test_the_check_has_nothing_to_say_on_postgresql(database: str) -> None:
    assert ORMStore(database=database, durable_claims=False).check() == []


@pytest.mark.parametrize("value", ["no", 0, None])
def test_the_option_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"durable_claims is .*; give True or False"):
        ORMStore(durable_claims=value)


def retry_of(store: ORMStore, run: Run) -> Run:
    job = run.retry_job(0)
    retry = new_run(store)
    return replace(retry, message=job.message, message_id=job.message_id, root_id=job.root_id)


@on_each_database
def test_a_sender_that_a_crash_has_made_the_server_forget_is_not_run_beside_its_retry(database: str) -> None:
    """Its worker has sent the retry, and the crash has taken the claim: both messages are on the queue."""
    store = ORMStore(database=database, durable_claims=False)
    sender = new_run(store)
    retry = retry_of(store, sender)
    assert store.claim(retry) == Claimed()
    assert store.claim(new_run(store, of=sender)) == Finished("RETRYING")
    record = record_of(sender)
    assert (record.n_retries, str(record.root_id), record.task_name) == (0, sender.root_id, example.name)
    assert record.start_time is not None
    assert record.end_time is not None
    assert "retry has ended it" in str(record.traceback)


@on_each_database
def test_a_forgotten_sender_that_comes_again_at_the_same_moment_is_ended_by_its_retry(database: str) -> None:
    store = ORMStore(database=database, durable_claims=False)
    sender = new_run(store)
    retry = retry_of(store, sender)
    comes_again = [lambda: claimed(store, of=sender)]

    def let_it_come(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        # SQLite has one writer: it cannot come after BEGIN.
        if comes_again and sql.startswith("SELECT") and not connections[database].in_atomic_block:
            rows = execute(sql, params, many, context)
            InThread(comes_again.pop()).start().answer()
            return rows
        return execute(sql, params, many, context)

    with connections[database].execute_wrapper(let_it_come):
        assert store.claim(retry) == Claimed()
    assert not comes_again
    assert record_of(sender).status == "RETRYING"


# Nothing is recorded


def test_the_null_store_runs_every_delivery() -> None:
    store = NullStore()
    run = new_run(store)
    assert store.claim(run) == store.claim(new_run(store, of=run)) == Claimed(0)
    store.record(run, Succeeded(nested(3)))
    store.release(run)
    assert store.has_succeeded(run) is False
    assert (store.database, NullStore(database="other").database) == ("default", "other")
