"""Run the contract of stores against the ORM store on every database, and test its details."""

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
from lambda_tasks.execution.pipeline import execute
from lambda_tasks.jobs import Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.outcomes import Busy, Claimed, Failed, Finished, Mismatch, Succeeded
from lambda_tasks.stores.null import NullStore
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.testing.contracts import InThread, StoreContract, Stored, crowd, example, nested, together, winners
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect
from tests.partitions import partitioned


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
    """Run the contract with the documented default on the database servers."""


@pytest.mark.databases("sqlite", transaction=True)
class TestORMStoreOnSQLite(ORMStoreContract):
    waits_for_commit = False  # there is no server to lose, and no FOR UPDATE


@pytest.fixture(scope="class")
def _partitioned(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock(), partitioned("postgres"):
        yield


@pytest.mark.thorough
@pytest.mark.once
@pytest.mark.databases("postgres", transaction=True)
@pytest.mark.usefixtures("_partitioned")
class TestORMStoreWithPartitions(ORMStoreContract):
    """Run the contract with the table of records partitioned by day."""


@pytest.mark.thorough
@pytest.mark.databases("postgres", transaction=True)
class TestORMStoreWithoutDurableClaims(ORMStoreContract):
    @pytest.fixture
    def store(self, database: str) -> ORMStore:
        return ORMStore(database=database, durable_claims=False)


# Details of the ORM store

on_each_database = pytest.mark.databases(transaction=True)


def new_run(store: ORMStore | NullStore, *, of: Run | None = None, lease: float = 60, **kwargs: Any) -> Run:
    message_id = of.message_id if of else new_message_id()
    return Run(
        message=Invocation(task_name=example.name, kwargs=kwargs),
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
    """Return whether a statement is the first of a takeover, after the expired lease was read."""
    return ("UPDATE" if database == "sqlite" else "SKIP LOCKED") in sql


@on_each_database
def test_one_run_takes_over_a_seen_expired_lease(database: str) -> None:
    """All runs have seen the expired lease before the first takes it over."""
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
def test_run_that_ends_meanwhile_is_not_taken_over(database: str) -> None:
    """It ends after another run has seen that its lease has expired."""
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
def test_begun_returns_ids_that_started_without_ending(database: str) -> None:
    store = ORMStore(database=database)
    running, dead, given_back, taken_over = claimed(store), claimed(store, lease=-1), claimed(store), claimed(store)
    store.release(given_back)
    again = claimed(store, of=(died := claimed(store, lease=-1)))
    store.release(again)  # a worker died with it before
    ids = [run.message_id for run in (running, dead, given_back, died, new_run(store))]
    assert store.begun(ids) == {running.message_id, dead.message_id, died.message_id}
    assert taken_over.message_id not in store.begun(ids)
    assert store.begun([]) == set()


@pytest.mark.databases("postgres", "mariadb", transaction=True)
@pytest.mark.parametrize("n_retries", [0, 1], ids=["received again", "a retry that was sent twice"])
def test_redelivery_does_not_wait_for_an_uncommitted_worker(database: str, n_retries: int) -> None:
    """That worker may be frozen or unreachable, and its transaction stays open for as long."""
    store = ORMStore(database=database)
    frozen = new_run(store, lease=-1)
    frozen = replace(frozen, message=replace(frozen.message, n_retries=n_retries))
    assert store.claim(frozen) == Claimed()
    again = replace(new_run(store, of=frozen), message=frozen.message)
    again = replace(again, redelivered=not n_retries)
    with transaction.atomic(using=database):
        store.record(frozen, Succeeded(1))
        assert isinstance(InThread(lambda: store.claim(again)).start().answer(), Busy)
    assert record_of(frozen).status == "SUCCESS"


@on_each_database
def test_work_of_an_overtaken_run_is_rolled_back(database: str) -> None:
    store = ORMStore(database=database)
    dead = claimed(store, lease=-1)
    claimed(store, of=dead)
    with pytest.raises(LeaseLost), transaction.atomic(using=database):
        Effect.objects.using(database).create(name="twice")
        store.record(dead, Succeeded())
    assert not Effect.objects.using(database).exists()


@on_each_database
def test_record_contains_the_call_and_its_times(database: str) -> None:
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
def test_server_in_another_time_zone_records_correct_times(database: str) -> None:
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
def test_lease_is_independent_of_use_tz(database: str) -> None:
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
def test_one_claim_succeeds_in_a_strict_isolation_level(database: str, level: str) -> None:
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
            return Busy(0)  # the executor asks again on a new connection, with the same answer

    claims = crowd(claim)
    assert [winners(answers) for answers in claims] == [[Claimed(1)]] * 10  # type: ignore[arg-type]


class RecordsOnSQLite:
    """A router that stores records in another database."""

    def db_for_write(self, model: type, **_: object) -> str | None:
        return "sqlite" if model is TaskRecord else None


@pytest.mark.django_db(databases=["default", "sqlite"], transaction=True)
def test_routers_choose_the_database_of_records(settings: Any) -> None:
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
def test_refused_record_is_not_mistaken_for_another_claim(durable_claims: bool) -> None:
    store = ORMStore(database="default", durable_claims=durable_claims)
    run = new_run(store)
    run = replace(run, message=replace(run.message, task_name=None))
    with pytest.raises(IntegrityError):
        store.claim(run)


@pytest.mark.databases("mariadb", transaction=True)
def test_result_too_large_for_the_database_is_refused(database: str) -> None:
    store = ORMStore(database=database)
    run = claimed(store)
    try:
        with pytest.raises(ResultNotSerializable), transaction.atomic(using=database):
            store.record(run, Succeeded("x" * 17 * 1024 * 1024))
    finally:
        connections[database].close()  # it may be lost, and the next test must not use it


# Claims that do not wait for the disk

on_postgres = pytest.mark.databases("postgres", transaction=True)


@lambda_task(on_crash="fail")
def never_twice() -> None: ...


@lambda_task
def look() -> str:
    """Return what the COMMIT of the task's own transaction waits for."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        return str(cursor.fetchone()[0])


@dataclass
class Session:
    """A session that waits for the disk by default, and records how claims and outcomes are committed."""

    alias: str
    #: "INSERT off" is a record that was committed without waiting, and "UPDATE on" an outcome that waited for the disk.
    commits: list[str] = field(default_factory=list)

    def begin(self) -> None:
        connections[self.alias].ensure_connection()
        connections[self.alias].connection.add_notice_handler(self._record_commit)
        self.run("SET synchronous_commit TO on")

    def run(self, sql: str) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)

    def waits(self) -> str:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            return str(cursor.fetchone()[0])

    def _record_commit(self, notice: Any) -> None:
        self.commits.append(notice.message_primary)


@pytest.fixture
def session(database: str) -> Iterator[Session]:
    session = Session(database)
    session.begin()
    session.run(
        "CREATE FUNCTION say_how_it_commits() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE NOTICE '% %', TG_OP, current_setting('synchronous_commit'); RETURN NULL; END $$"
    )
    # Deferred, so that it runs in COMMIT.
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
def test_only_new_claims_do_not_wait_for_disk(session: Session) -> None:
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
def test_task_transaction_waits_for_the_disk(session: Session, settings: Any) -> None:
    options = {"database": session.alias, "durable_claims": False}
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": options}
    message = SQSLambdaTaskMessage(task_name=look.name, kwargs={})
    assert execute(message, message_id=new_message_id(), task=look) == Succeeded("on")
    assert session.commits == ["INSERT off", "UPDATE on"]
    assert session.waits() == "on"


@on_postgres
def test_claim_of_unrepeatable_task_waits_for_the_disk(session: Session) -> None:
    store = ORMStore(database=session.alias, durable_claims=False)
    run = replace(new_run(store), task=never_twice)
    store.claim(run)
    assert session.commits == ["INSERT on"]


@on_postgres
def test_claim_does_not_change_an_outer_transaction(session: Session) -> None:
    """As in eager mode, where the transaction commits more than the claim."""
    store = ORMStore(database=session.alias, durable_claims=False)
    with transaction.atomic(using=session.alias):
        run = claimed(store)
        assert isinstance(store.claim(new_run(store, of=run)), Busy)  # and does not break the transaction
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
def test_claim_with_server_side_binding_waits_for_disk(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_refused_claim_leaves_its_session_clean(session: Session) -> None:
    store = ORMStore(database=session.alias, durable_claims=False)
    run = claimed(store)
    assert isinstance(store.claim(new_run(store, of=run)), Busy)
    assert session.waits() == "on"
    assert not connections[session.alias].in_atomic_block
    assert claimed(store).message_id != run.message_id
    assert session.commits == ["INSERT off"] * 2


@pytest.mark.databases("sqlite", "mariadb", transaction=True)
def test_other_databases_ignore_the_option_and_warn(database: str) -> None:
    store = ORMStore(database=database, durable_claims=False)
    run = claimed(store)
    assert isinstance(store.claim(new_run(store, of=run)), Busy)
    with transaction.atomic(using=database):
        store.record(run, Succeeded(1))
    assert record_of(run).status == "SUCCESS"
    assert [message.id for message in store.check()] == ["lambda_tasks.W003"]


@on_postgres
def test_check_finds_nothing_on_postgresql(database: str) -> None:
    assert ORMStore(database=database, durable_claims=False).check() == []


@pytest.mark.parametrize("value", ["no", 0, None])
def test_option_must_be_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"durable_claims must be True or False, not "):
        ORMStore(durable_claims=value)


def retry_of(store: ORMStore, run: Run) -> Run:
    job = run.retry_job(0)
    retry = new_run(store)
    return replace(retry, message=job.message, message_id=job.message_id, root_id=job.root_id)


@on_each_database
def test_forgotten_sender_does_not_run_after_its_retry(database: str) -> None:
    """The worker sent the retry, and the server lost the claim in a crash: both messages are on the queue."""
    store = ORMStore(database=database, durable_claims=False)
    sender = new_run(store)
    retry = retry_of(store, sender)
    assert store.claim(retry) == Claimed()
    assert store.claim(new_run(store, of=sender)) == Finished("RETRYING")
    record = record_of(sender)
    assert (record.n_retries, str(record.root_id), record.task_name) == (0, sender.root_id, example.name)
    assert record.start_time is not None
    assert record.end_time is not None
    assert "retry has ended this invocation" in str(record.traceback)


@on_each_database
def test_retry_ends_a_forgotten_sender_redelivered_meanwhile(database: str) -> None:
    store = ORMStore(database=database, durable_claims=False)
    sender = new_run(store)
    retry = retry_of(store, sender)
    comes_again = [lambda: claimed(store, of=sender)]

    def deliver_sender(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        # SQLite has only one writer, so the delivery cannot arrive after BEGIN.
        if comes_again and sql.startswith("SELECT") and not connections[database].in_atomic_block:
            rows = execute(sql, params, many, context)
            InThread(comes_again.pop()).start().answer()
            return rows
        return execute(sql, params, many, context)

    with connections[database].execute_wrapper(deliver_sender):
        assert store.claim(retry) == Claimed()
    assert not comes_again
    assert record_of(sender).status == "RETRYING"


@on_each_database
@pytest.mark.parametrize("redelivered", [False, True], ids=["first delivery", "redelivered"])
def test_forged_retry_does_not_discard_a_waiting_invocation(database: str, redelivered: bool) -> None:
    """Its id is derived as for the retry of a forgotten claim, but its arguments differ."""
    store = ORMStore(database=database, durable_claims=False)
    waiting = new_run(store, number=7)
    forged = retry_of(store, new_run(store, of=waiting, number=8))
    assert store.claim(forged) == Claimed()
    waiting = replace(waiting, redelivered=redelivered)
    assert store.claim(waiting) == Claimed()
    record = record_of(waiting)
    assert (record.status, record.kwargs, record.n_retries, record.takeovers) == ("RUNNING", {"number": 7}, 0, 0)
    assert (record.end_time, record.traceback) == (None, None)
    assert isinstance(store.claim(new_run(store, of=waiting, number=7)), Busy)
    store.record(waiting, Succeeded(1))
    assert record_of(waiting).status == "SUCCESS"


@on_each_database
def test_one_of_many_runs_replaces_a_forged_record(database: str) -> None:
    store = ORMStore(database=database, durable_claims=False)
    waiting = [new_run(store, number=7) for _ in range(10)]
    for run in waiting:
        assert store.claim(retry_of(store, new_run(store, of=run, number=8))) == Claimed()
    claims = crowd(lambda round_, _: store.claim(new_run(store, of=waiting[round_], number=7)))
    # A run that was too late has read the record of another message, and will be delivered again.
    granted = [[answer for answer in answers if isinstance(answer, Claimed)] for answers in claims]
    assert granted == [[Claimed()]] * 10


@on_each_database
def test_ended_retrying_record_is_not_replaced(database: str) -> None:
    store = ORMStore(database=database, durable_claims=False)
    sender = claimed(store)
    store.release(sender)
    assert store.claim(retry_of(store, sender)) == Claimed()
    assert isinstance(store.claim(new_run(store, of=sender, number=9)), Mismatch)
    assert record_of(sender).status == "RETRYING"


@on_each_database
def test_record_without_usable_arguments_fits_its_message(database: str) -> None:
    store = ORMStore(database=database)
    run = new_run(store, lease=-1, number=7)
    assert store.claim(run) == Claimed()
    TaskRecord.objects.using(database).filter(pk=run.message_id).update(kwargs=[7], root_id=None)
    assert store.claim(new_run(store, of=run, number=7)) == Claimed(takeovers=1)


# The store without records


def test_null_store_runs_every_delivery() -> None:
    store = NullStore()
    run = new_run(store)
    assert store.claim(run) == store.claim(new_run(store, of=run)) == Claimed(0)
    store.record(run, Succeeded(nested(3)))
    store.release(run)
    assert store.has_succeeded(run) is False
    assert (store.database, NullStore(database="other").database) == ("default", "other")
