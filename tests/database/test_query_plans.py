"""The statements of the library find their rows through an index, and every index is used by a statement.

The statements are explained on tables of ten thousand records and messages, which is enough for a database to prefer
a suitable index. The output of EXPLAIN depends on the database, and `_steps` reads all variants.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import pytest
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from lambda_tasks.admin import filters, listing
from lambda_tasks.backends import relay
from lambda_tasks.backends.base import Taken
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import TaskLostError
from lambda_tasks.jobs import Job, Run
from lambda_tasks.models import OutboxMessage, TaskFlow, TaskRecord, TaskStatus
from lambda_tasks.operations import forgetting, statistics
from lambda_tasks.outcomes import Claimed, Failed, Finished, Lost, Prevented, Retry, Succeeded
from lambda_tasks.stores.orm import _FORGOTTEN, ORMStore
from lambda_tasks.strategies import get_store
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

pytestmark = pytest.mark.django_db

ROWS: Final = 10_000
#: A record's number modulo 100 defines its status: 1 in 100 is RUNNING, 2 are FAILED, and 1 is RETRYING, before its
#: retry.
STATUS: Final = {
    0: TaskStatus.RUNNING,
    1: TaskStatus.FAILED,
    2: TaskStatus.FAILED,
    3: TaskStatus.RETRYING,
}
TABLE: Final = TaskRecord._meta.db_table
OUTBOX: Final = OutboxMessage._meta.db_table
FLOWS: Final = TaskFlow._meta.db_table
PRIMARY_KEY: Final = "primary key"
OUTBOX_KEY: Final = "primary key of the outbox"
#: The names of primary keys in PostgreSQL.
KEYS: Final = {f"{TABLE}_pkey": PRIMARY_KEY, f"{OUTBOX}_pkey": OUTBOX_KEY}
DUE: Final = "lambda_tasks_due"
START: Final = "lambda_tasks_start"
STATUS_START: Final = "lambda_tasks_status_start"
RETRIES: Final = "lambda_tasks_retries"
REASON: Final = "lambda_tasks_reason"
#: The word of `_steps` for a step that reads the whole table.
WHOLE_TABLE: Final = "whole table"


@lambda_task
def example() -> None:
    """Do nothing."""


# The tables and their plans


def key(number: int) -> UUID:
    return uuid5(UUID(int=0), str(number))


@pytest.fixture(scope="module", autouse=True)
def _table(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Create the rows once for the module; each test rolls back its changes."""
    now = timezone.now()
    with django_db_blocker.unblock():
        TaskRecord.objects.bulk_create((_record(number, now) for number in range(ROWS)), batch_size=1000)
        OutboxMessage.objects.bulk_create((_message(number, now) for number in range(ROWS)), batch_size=1000)
        if connection.vendor != "sqlite":  # unlike the others, SQLite does not analyse tables automatically
            with connection.cursor() as cursor:
                for table in (TABLE, OUTBOX):
                    cursor.execute(f"ANALYZE {'TABLE ' if connection.vendor == 'mysql' else ''}{table}")
    yield
    with django_db_blocker.unblock():
        TaskRecord.objects.all().delete()
        OutboxMessage.objects.all().delete()


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the sizes of batches and lists in proportion to the small table."""
    monkeypatch.setattr(listing, "MOST_LISTED", 150)
    monkeypatch.setattr(filters, "MOST_SEARCHED", 120)
    monkeypatch.setattr(listing, "RECENT", 10)
    monkeypatch.setattr(forgetting, "BATCH_SIZE", 10)
    monkeypatch.setattr(relay, "BATCH_SIZE", 10)


def _record(number: int, now: datetime) -> TaskRecord:
    """Return a record from the last hundred days with a lease of an hour; a larger number is a later start."""
    start = now - timedelta(days=100) * (1 - number / ROWS)
    is_retry = number % 100 == 4
    status = STATUS.get(number % 100, TaskStatus.SUCCESS)
    return TaskRecord(
        id=key(number),
        task_name=f"shop.tasks.step_{number % 30}" if number % 50 else example.name,
        status=status,
        reason=""
        if status in (TaskStatus.SUCCESS, TaskStatus.RUNNING)
        else "max_retries"
        if number % 1_000 == 3
        else "error",
        start_time=start,
        end_time=start + timedelta(seconds=1),
        traceback="Traceback …\nOSError: no" if status == TaskStatus.FAILED else None,
        n_retries=int(is_retry),
        root_id=key(number - is_retry),
        claim=key(number),
        lease_until=start + timedelta(hours=1),
    )


def outbox_key(number: int) -> UUID:
    return uuid5(UUID(int=1), str(number))


def _message(number: int, now: datetime) -> OutboxMessage:
    """Return a message: 1 in 10 has been due for `number` seconds, 1 in 100 is dead, and the others are due later."""
    job = _job(str(outbox_key(number)))
    due_at = now + timedelta(seconds=-number if number % 10 == 0 else number)
    return OutboxMessage(
        id=job.message_id,
        task_name=job.task_name,
        queue=job.queue,
        body=job.body,
        attributes=job.message_attributes(),
        created_at=now,
        due_at=None if number % 100 == 1 else due_at,
    )


def _job(message_id: str) -> Job:
    message = Invocation(task_name=example.name, kwargs={})
    return Job(message, message_id, root_id=message_id, queue="default", task=example)


def steps_of(work: Callable[[], object]) -> dict[str, set[str]]:
    """Run `work`, and return its statements on the tables, with the indexes that each statement reads."""
    found: dict[str, set[str]] = {}
    words = {"postgresql": "EXPLAIN (FORMAT JSON)", "sqlite": "EXPLAIN QUERY PLAN", "mysql": "EXPLAIN"}

    def explain(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if (TABLE in sql or OUTBOX in sql) and sql.startswith(("SELECT", "UPDATE", "DELETE")):
            execute(f"{words[connection.vendor]} {sql}", params, False, context)
            found[sql] = set(_steps(context["cursor"].fetchall()))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        work()
    return found


def _steps(answer: list[Any]) -> Iterator[str]:
    match connection.vendor:
        case "postgresql":
            plans = answer[0][0]
            yield from _nodes((json.loads(plans) if isinstance(plans, str) else plans)[0]["Plan"])
        case "sqlite":
            for *_, detail in answer:
                if " INDEX sqlite_autoindex_lambda_tasks_" in detail:
                    yield OUTBOX_KEY if OUTBOX in detail else PRIMARY_KEY
                elif " INDEX lambda_tasks_" in detail:
                    yield detail.partition(" INDEX ")[2].split()[0]
                elif detail.startswith(("SCAN lambda_tasks_", "SCAN U")):
                    yield WHOLE_TABLE
        case _:
            for row in answer:
                if row[2] in (TABLE, OUTBOX, "U0"):  # the other rows do not describe tables
                    primary = PRIMARY_KEY if row[2] == TABLE else OUTBOX_KEY
                    # An index_merge has several names.
                    names = row[5] or WHOLE_TABLE
                    yield from (primary if name == "PRIMARY" else name for name in names.split(","))


def _nodes(node: dict[str, Any]) -> Iterator[str]:
    if index := node.get("Index Name"):
        yield KEYS.get(index, index)
    elif node["Node Type"] == "Seq Scan":
        yield WHOLE_TABLE
    for child in node.get("Plans", ()):
        yield from _nodes(child)


# The statements of the library


def new_run(number: int | None = None, *, n_retries: int = 0, root: str = "", claim: str = "") -> Run:
    message_id = ids.new_message_id() if number is None else str(key(number))
    if n_retries:
        message_id = ids.retry_id(root, n_retries)
    return Run(
        message=Invocation(task_name=example.name, kwargs={}, n_retries=n_retries),
        message_id=message_id,
        root_id=root or message_id,
        task=example,
        queue="default",
        arguments={},
        soft_timeout=10,
        hard_timeout=20,
        lease=30,
        database="default",
        redelivered=number is not None,
        **({"claim": claim} if claim else {}),
    )


def mine(number: int) -> Run:
    return new_run(number, claim=str(key(number)))


def claim_new() -> None:
    assert ORMStore().claim(new_run()) == Claimed()


def claim_ended() -> None:
    assert ORMStore().claim(new_run(50)) == Finished("SUCCESS")


def take_over() -> None:
    assert ORMStore().claim(new_run(100)) == Claimed(takeovers=1)


def claim_a_retry() -> None:
    """Claim a retry, which ends the invocation that sent it."""
    retry = new_run(n_retries=1, root=str(key(100)))
    assert ORMStore().claim(retry) == Claimed()


def record_success() -> None:
    with transaction.atomic():
        ORMStore().record(mine(100), Succeeded())


def record_failure() -> None:
    ORMStore().record(mine(100), Failed(OSError("no")))


def record_retry() -> None:
    ORMStore().record(mine(100), Retry(OSError("no")))


def release() -> None:
    ORMStore().release(mine(100))


def release_crashed() -> None:
    ORMStore().release_crashed(mine(100))


def wait_for_the_lock() -> None:
    ORMStore().wait(mine(100), seconds=10)


def cancel_while_it_waits() -> None:
    TaskRecord.objects.filter(pk=key(100)).update(claim=None)
    assert ORMStore().cancel(str(key(100)), None) == Prevented(str(key(100)))


def claim_cancelled() -> None:
    """Claim an invocation that was cancelled before anything else was known of it."""
    cancelled = {"status": "FAILED", "reason": "cancelled", "claim": None, "task_name": ""}
    TaskRecord.objects.filter(pk=key(101)).update(**cancelled)
    assert ORMStore().claim(new_run(101)) == Finished("FAILED")


def claim_remembered() -> None:
    """Claim an invocation whose record a forged retry has created."""
    forged = {"status": "RETRYING", "claim": None, "traceback": _FORGOTTEN, "task_name": "shop.tasks.forged"}
    TaskRecord.objects.filter(pk=key(103)).update(**forged)
    assert ORMStore().claim(new_run(103)) == Claimed()


def check_success() -> None:
    assert not ORMStore().has_succeeded(mine(100))


def list_claimed() -> None:
    assert ORMStore().begun([str(key(number)) for number in range(95, 105)]) == {str(key(100))}


def find_lost() -> None:
    assert ORMStore().lost(older_than=0, limit=40)


def settle_lost() -> None:
    store = ORMStore()
    for number in (100, 200):
        seen = Lost(
            message_id=str(key(number)),
            root_id=str(key(number)),
            task_name=example.name,
            kwargs={},
            n_retries=0,
            takeovers=0,
            queue="default",
            claim=str(key(number)),
            started_at=None,
        )
        if number == 100:
            assert store.offer(seen, older_than=0)
        else:
            assert store.give_up(seen, Failed(TaskLostError("lost")), older_than=0)


def clean_up() -> None:
    assert cleanup_task_records(retention_days=99) == 101


def find_a_chain() -> None:
    """Find a chain as in the reference documentation."""
    assert [record.n_retries for record in TaskRecord.objects.chain(str(key(103)))] == [0, 1]


def find_the_end_of_a_chain() -> None:
    """Find it as `handle.result()` does."""
    found = get_store().latest(str(key(103)))
    assert found is not None
    assert found.record.n_retries == 1


def find_the_progress_of_a_chain() -> None:
    assert get_store().read_progress(str(key(103))) is None


def find_the_latest_record() -> None:
    assert TaskRecord.objects.latest().pk == key(ROWS - 1)
    assert TaskRecord.objects.filter(status=TaskStatus.FAILED).latest().status == TaskStatus.FAILED


def read_statistics() -> None:
    of = statistics.window(hours=24)
    number = sum(count.in_window for count in statistics.counts(of))
    assert 95 <= number <= 100
    assert sum(bucket.started for bucket in statistics.throughput(of)) == number
    assert statistics.durations(of)
    assert statistics.top_errors(of)
    assert statistics.running(of).count == 100


class FarQueue(MemoryBackend):
    """A queue for which messages are locked if the database supports it."""

    leaves_process = True


class ClosedQueue(FarQueue):
    def send(self, jobs: Sequence[Job]) -> Any:
        raise ConnectionError("closed")


def outbox(queue: type[MemoryBackend] = FarQueue) -> OutboxBackend:
    return OutboxBackend(transport=f"{__name__}.{queue.__name__}")


def relay_due_messages() -> None:
    assert outbox().relay(limit=20).sent == 20


def relay_to_a_closed_queue() -> None:
    assert outbox(ClosedQueue).relay(limit=20).failed == 10


def relay_within_the_process() -> None:
    assert outbox(MemoryBackend).relay(limit=20).sent == 20


def send_after_commit() -> None:
    taken: list[Job] = []
    for queue in (FarQueue, MemoryBackend):
        jobs = [_job(ids.new_message_id()) for _ in range(3)]
        outbox(queue).keep(jobs, using="default")
        taken += [result.job for result in outbox(queue).send(jobs) if isinstance(result, Taken)]
    assert len(taken) == 6


def send_now() -> None:
    assert outbox().send_now([outbox_key(number) for number in (1, 2, 10)], using="default").sent == 3


def query_waiting() -> None:
    assert outbox().status(str(outbox_key(1)), database="default") == "DEAD"


#: The indexes that each statement must read. The database may read other indexes as well.
STATEMENTS: Final[dict[Callable[[], None], set[str]]] = {
    claim_new: set(),
    claim_ended: {PRIMARY_KEY},
    take_over: {PRIMARY_KEY},
    claim_a_retry: {PRIMARY_KEY},
    record_success: {PRIMARY_KEY},
    record_failure: {PRIMARY_KEY},
    record_retry: {PRIMARY_KEY},
    release: {PRIMARY_KEY},
    release_crashed: {PRIMARY_KEY},
    wait_for_the_lock: {PRIMARY_KEY},
    cancel_while_it_waits: {PRIMARY_KEY},
    claim_cancelled: {PRIMARY_KEY},
    claim_remembered: {PRIMARY_KEY},
    check_success: {PRIMARY_KEY},
    list_claimed: set(),  # by key or by status: both select few rows
    find_lost: {STATUS_START},
    settle_lost: {PRIMARY_KEY},
    clean_up: {START, PRIMARY_KEY, OUTBOX_KEY},
    find_a_chain: {PRIMARY_KEY, RETRIES},
    find_the_end_of_a_chain: {PRIMARY_KEY, RETRIES},
    find_the_progress_of_a_chain: {PRIMARY_KEY, RETRIES},
    find_the_latest_record: {START, STATUS_START},
    read_statistics: {START, STATUS_START},
    relay_due_messages: {DUE, OUTBOX_KEY},
    relay_to_a_closed_queue: {DUE, OUTBOX_KEY},
    relay_within_the_process: {DUE, OUTBOX_KEY},
    send_after_commit: {OUTBOX_KEY},
    send_now: {OUTBOX_KEY},
    query_waiting: {OUTBOX_KEY},
}
PAGES: Final = {
    "": {START},
    "?p=2": {START},
    "?status__exact=FAILED": {STATUS_START},
    "?status__exact=RUNNING": {STATUS_START},
    "?start_time__gte=YESTERDAY": {START},
    # SQLite cannot tell that a parameter is not empty, as the index requires.
    "?reason__exact=max_retries": {START} if connection.vendor == "sqlite" else {REASON},
    f"?q={key(103)}": {PRIMARY_KEY, RETRIES},
    "?started=day": {START},
    "?run=overdue": {STATUS_START},
    "?run=1min": {START},
    "?status__exact=FAILED&run=1min": {STATUS_START},
    "?q=step_7": {START},
    "?q=order_id%3D42": {START},
    "?q=nowhere": {START},
    "?status__exact=FAILED&q=OSError": {STATUS_START},
    f"{key(50)}/change/": {PRIMARY_KEY},
}


@pytest.mark.parametrize("work", STATEMENTS, ids=lambda work: work.__name__)
def test_statement_reads_its_index(work: Callable[[], None]) -> None:
    read = steps_of(work)
    assert set().union(*read.values()) >= STATEMENTS[work], read
    assert not any(WHOLE_TABLE in steps for steps in read.values()), read


#: Statements that select by primary key. A key selects one row, regardless of the statistics of other columns.
BY_KEY: Final = (
    claim_ended,
    take_over,
    claim_a_retry,
    record_success,
    record_failure,
    record_retry,
    release,
    release_crashed,
    wait_for_the_lock,
    claim_cancelled,
    claim_remembered,
    check_success,
    list_claimed,
    settle_lost,
)


def analyse(table: str = TABLE) -> None:
    # In MariaDB, ANALYZE commits, and the optimizer reads the index itself instead of the statistics.
    if connection.vendor != "mysql":
        with connection.cursor() as cursor:
            cursor.execute(f"ANALYZE {table}")


@pytest.fixture(params=["no record is RUNNING", "every record is RUNNING", "no statistics"])
def _misleading_analysis(request: pytest.FixtureRequest) -> None:
    """Create statistics from a time when no record or every record was RUNNING, or delete the statistics."""
    if request.param == "no statistics":
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM pg_statistic WHERE starelid = %s::regclass", [TABLE])
        return
    running = [key(number) for number in range(0, ROWS, 100)]
    if request.param == "no record is RUNNING":  # also none is RETRYING, as in a project without retries
        TaskRecord.objects.exclude(status=TaskStatus.FAILED).update(status=TaskStatus.SUCCESS)
        analyse()
        TaskRecord.objects.filter(pk__in=running).update(status=TaskStatus.RUNNING)
    else:
        ended = TaskRecord.objects.exclude(pk__in=running)
        ended.update(status=TaskStatus.RUNNING)
        analyse()
        ended.update(status=TaskStatus.SUCCESS)


@pytest.mark.usefixtures("_misleading_analysis")
def test_statement_by_key_ignores_misleading_statistics() -> None:
    read = {work.__name__: _steps_rolled_back(work) for work in BY_KEY}
    assert all(read.values())
    # A scan of another index would read an entry for each row version that vacuum has not removed.
    others = {name: steps for name, steps in read.items() if set().union(*steps.values()) != {PRIMARY_KEY}}
    assert others == {}


def _steps_rolled_back(work: Callable[[], None]) -> dict[str, set[str]]:
    with transaction.atomic():
        steps = steps_of(work)
        transaction.set_rollback(True)
    return steps


def test_message_is_locked_by_key_despite_old_statistics() -> None:
    """The statistics are from a time when no message was due."""
    OutboxMessage.objects.update(due_at=timezone.now() + timedelta(days=1))
    analyse(OUTBOX)
    read = steps_of(send_after_commit)
    assert {step for sql, steps in read.items() for step in steps} == {OUTBOX_KEY}, read


@pytest.mark.skipif(connection.vendor == "sqlite", reason="SQLite has no statistics without ANALYZE")
def test_reaping_reads_running_records_despite_old_statistics() -> None:
    """The statistics are from a time when no task was running."""
    TaskRecord.objects.filter(status=TaskStatus.RUNNING).update(status=TaskStatus.FAILED)
    analyse()
    keys = [key(number) for number in range(0, ROWS, 100)]
    TaskRecord.objects.filter(pk__in=keys).update(status=TaskStatus.RUNNING)
    read = steps_of(find_lost)
    assert set().union(*read.values()) == {STATUS_START, PRIMARY_KEY}, read


@pytest.mark.parametrize("query", PAGES)
def test_admin_page_reads_its_index(query: str, admin_client: Client) -> None:
    yesterday = f"{timezone.now() - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    address = reverse("admin:lambda_tasks_taskrecord_changelist") + query.replace("YESTERDAY", yesterday)

    def show() -> None:
        assert admin_client.get(address).status_code == 200

    read = steps_of(show)
    assert set().union(*read.values()) >= PAGES[query], read
    # The count may read any rows, because its limit is that of the list.
    assert not any(WHOLE_TABLE in steps for sql, steps in read.items() if "COUNT(" not in sql), read
    assert all("LIMIT 150" in sql for sql in read if "COUNT(" in sql), read


def test_every_index_serves_a_statement() -> None:
    """Each record and each message in the outbox pays for every index."""
    served = {REASON}.union(*STATEMENTS.values(), *PAGES.values())
    models = (TaskRecord, OutboxMessage)
    assert {index.name for model in models for index in model._meta.indexes} | {PRIMARY_KEY, OUTBOX_KEY} == served
    # A field may also have an index.
    fields = [field for model in models for field in model._meta.fields if not field.primary_key]
    assert not any(field.db_index or field.unique for field in fields)


@pytest.mark.parametrize(("query", "queries"), [("", 5), ("?status__exact=FAILED", 5), ("?q=step_7", 6)])
def test_admin_page_takes_few_queries(
    query: str, queries: int, admin_client: Client, django_assert_num_queries: Any
) -> None:
    """The queries read the session, the user, the tasks of the filter, the count, the page, and the search's start."""
    with django_assert_num_queries(queries):
        admin_client.get(reverse("admin:lambda_tasks_taskrecord_changelist") + query)


def test_cleanup_takes_two_queries_per_batch() -> None:
    with CaptureQueriesContext(connection) as queries:
        clean_up()  # 101 records, ten at a time
    wanted = ["SELECT", "DELETE"] * 11 + ["SELECT"]
    statements = [query["sql"] for query in queries if TABLE in query["sql"] and FLOWS not in query["sql"]]
    assert [sql.split()[0] for sql in statements] == wanted


def test_queries_are_sorted_only_on_request() -> None:
    """Sorting the whole table would be expensive."""
    assert not TaskRecord.objects.all().query.get_compiler("default").get_order_by()
    assert not TaskRecord.objects.filter(task_name="a").ordered


@pytest.mark.databases
def test_databases_without_partial_indexes_are_not_warned_about(database: str) -> None:
    assert TaskRecord.check(databases=[database]) == []
