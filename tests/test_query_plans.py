"""The statements of the library find their rows along an index, and there is no index that none of them needs.

They are explained on tables of ten thousand records and messages: enough for a database to prefer an index
where one serves. Each has its own way to explain; `_steps` knows them.
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

from lambda_tasks import identity, tasks
from lambda_tasks.admin import listing, records
from lambda_tasks.backends import relay
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import TaskLostError
from lambda_tasks.jobs import Job, Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import OutboxMessage, TaskRecord, TaskStatus
from lambda_tasks.outcomes import Claimed, Failed, Finished, Lost, Retry, Succeeded
from lambda_tasks.stores.orm import ORMStore
from lambda_tasks.tasks import cleanup_task_records

pytestmark = pytest.mark.django_db

ROWS: Final = 10_000
#: The number of a record makes its status: of a hundred, one is RUNNING, two FAILED, one RETRYING, then its retry.
STATUS: Final = {
    0: TaskStatus.RUNNING,
    1: TaskStatus.FAILED,
    2: TaskStatus.FAILED,
    3: TaskStatus.RETRYING,
}
TABLE: Final = TaskRecord._meta.db_table
OUTBOX: Final = OutboxMessage._meta.db_table
PRIMARY_KEY: Final = "primary key"
OUTBOX_KEY: Final = "primary key of the outbox"
#: How databases call the keys.
KEYS: Final = {f"{TABLE}_pkey": PRIMARY_KEY, f"{OUTBOX}_pkey": OUTBOX_KEY}
DUE: Final = "lambda_tasks_due"
START: Final = "lambda_tasks_start"
STATUS_START: Final = "lambda_tasks_status_start"
RETRIES: Final = "lambda_tasks_retries"
#: What `_steps` says of a step that reads the whole table.
WHOLE_TABLE: Final = "whole table"


@lambda_task
def example() -> None:
    """Nothing that matters here."""


# The table, and how the database reads it


def key(number: int) -> UUID:
    return uuid5(UUID(int=0), str(number))


@pytest.fixture(scope="module", autouse=True)
def _table(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Make the records once for all tests here, each of which rolls back what it does to them."""
    now = timezone.now()
    with django_db_blocker.unblock():
        TaskRecord.objects.bulk_create((_record(number, now) for number in range(ROWS)), batch_size=1000)
        OutboxMessage.objects.bulk_create((_message(number, now) for number in range(ROWS)), batch_size=1000)
        if connection.vendor != "sqlite":  # it does not analyse its tables by itself, as the others do
            with connection.cursor() as cursor:
                for table in (TABLE, OUTBOX):
                    cursor.execute(f"ANALYZE {'TABLE ' if connection.vendor == 'mysql' else ''}{table}")
    yield
    with django_db_blocker.unblock():
        TaskRecord.objects.all().delete()
        OutboxMessage.objects.all().delete()


@pytest.fixture(autouse=True)
def _small_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is a small model of a large one, so what is read of it at once is small too."""
    monkeypatch.setattr(listing, "MOST_LISTED", 150)
    monkeypatch.setattr(records, "MOST_SEARCHED", 120)
    monkeypatch.setattr(listing, "RECENT", 10)
    monkeypatch.setattr(tasks, "BATCH_SIZE", 10)
    monkeypatch.setattr(relay, "BATCH_SIZE", 10)


def _record(number: int, now: datetime) -> TaskRecord:
    """Return a record of the last hundred days, the larger the number the younger; its lease was of an hour."""
    start = now - timedelta(days=100) * (1 - number / ROWS)
    is_retry = number % 100 == 4
    status = STATUS.get(number % 100, TaskStatus.SUCCESS)
    return TaskRecord(
        id=key(number),
        task_name=f"shop.tasks.step_{number % 30}",
        status=status,
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
    """Return a message that waits: one of ten is due since so many seconds, one of a hundred dead."""
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
    message = SQSLambdaTaskMessage(task_name=example.name, kwargs={})
    return Job(message, message_id, root_id=message_id, queue="default", task=example)


def steps_of(work: Callable[[], object]) -> dict[str, set[str]]:
    """Do `work`; return its statements on the tables, each with the indexes along which it reads."""
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
                if row[2] in (TABLE, OUTBOX, "U0"):  # the others are no tables
                    primary = PRIMARY_KEY if row[2] == TABLE else OUTBOX_KEY
                    # Of an index_merge, several.
                    names = row[5] or WHOLE_TABLE
                    yield from (primary if name == "PRIMARY" else name for name in names.split(","))


def _nodes(node: dict[str, Any]) -> Iterator[str]:
    if index := node.get("Index Name"):
        yield KEYS.get(index, index)
    elif node["Node Type"] == "Seq Scan":
        yield WHOLE_TABLE
    for child in node.get("Plans", ()):
        yield from _nodes(child)


# What the library does


def new_run(number: int | None = None, *, n_retries: int = 0, root: str = "", claim: str = "") -> Run:
    message_id = identity.new_message_id() if number is None else str(key(number))
    return Run(
        message=SQSLambdaTaskMessage(task_name=example.name, kwargs={}, n_retries=n_retries),
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


def claim_what_is_new() -> None:
    assert ORMStore().claim(new_run()) == Claimed()


def claim_what_has_ended() -> None:
    assert ORMStore().claim(new_run(50)) == Finished("SUCCESS")


def take_over() -> None:
    assert ORMStore().claim(new_run(100)) == Claimed(takeovers=1)


def claim_a_retry() -> None:
    """It ends the invocation that has sent it."""
    retry = new_run(n_retries=1, root=str(key(100)))
    assert ORMStore().claim(retry) == Claimed()


def record_success() -> None:
    with transaction.atomic():
        ORMStore().record(mine(100), Succeeded())


def record_failure() -> None:
    ORMStore().record(mine(100), Failed(OSError("no")))


def record_retry() -> None:
    ORMStore().record(mine(100), Retry(OSError("no")))


def give_back() -> None:
    ORMStore().release(mine(100))


def ask_whether_it_has_succeeded() -> None:
    assert not ORMStore().has_succeeded(mine(100))


def ask_what_was_begun() -> None:
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
    """As the reference shows it."""
    assert [record.n_retries for record in TaskRecord.objects.chain(str(key(103)))] == [0, 1]


class FarQueue(MemoryBackend):
    """For which messages are locked where the database can."""

    leaves_process = True


class ClosedQueue(FarQueue):
    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        raise ConnectionError("closed")


def outbox(queue: type[MemoryBackend] = FarQueue) -> OutboxBackend:
    return OutboxBackend(transport=f"{__name__}.{queue.__name__}")


def relay_what_is_due() -> None:
    assert outbox().relay(limit=20).sent == 20


def relay_to_a_closed_queue() -> None:
    assert outbox(ClosedQueue).relay(limit=20).failed == 10


def relay_within_the_process() -> None:
    assert outbox(MemoryBackend).relay(limit=20).sent == 20


def send_after_commit() -> None:
    taken: list[Job] = []
    for queue in (FarQueue, MemoryBackend):
        jobs = [_job(identity.new_message_id()) for _ in range(3)]
        outbox(queue).keep(jobs, using="default")
        outbox(queue).send(jobs, taken=taken.append)
    assert len(taken) == 6


def send_now() -> None:
    assert outbox().send_now([outbox_key(number) for number in (1, 2, 10)], using="default").sent == 3


def ask_what_waits() -> None:
    assert outbox().status(str(outbox_key(1)), database="default") == "DEAD"


#: What each reads along, beside other indexes that the database may choose to read as well.
STATEMENTS: Final[dict[Callable[[], None], set[str]]] = {
    claim_what_is_new: set(),
    claim_what_has_ended: {PRIMARY_KEY},
    take_over: {PRIMARY_KEY},
    claim_a_retry: {PRIMARY_KEY},
    record_success: {PRIMARY_KEY},
    record_failure: {PRIMARY_KEY},
    record_retry: {PRIMARY_KEY},
    give_back: {PRIMARY_KEY},
    ask_whether_it_has_succeeded: {PRIMARY_KEY},
    ask_what_was_begun: set(),  # by key, or by status: there are few of both
    find_lost: {STATUS_START},
    settle_lost: {PRIMARY_KEY},
    clean_up: {START, PRIMARY_KEY, OUTBOX_KEY},
    find_a_chain: {PRIMARY_KEY, RETRIES},
    relay_what_is_due: {DUE, OUTBOX_KEY},
    relay_to_a_closed_queue: {DUE, OUTBOX_KEY},
    relay_within_the_process: {DUE, OUTBOX_KEY},
    send_after_commit: {OUTBOX_KEY},
    send_now: {OUTBOX_KEY},
    ask_what_waits: {OUTBOX_KEY},
}
PAGES: Final = {
    "": {START},
    "?p=2": {START},
    "?status__exact=FAILED": {STATUS_START},
    "?status__exact=RUNNING": {STATUS_START},
    "?start_time__gte=YESTERDAY": {START},
    f"?q={key(103)}": {PRIMARY_KEY, RETRIES},
    "?q=step_7": {START},
    "?q=nowhere": {START},
    "?status__exact=FAILED&q=OSError": {STATUS_START},
    f"{key(50)}/change/": {PRIMARY_KEY},
}


@pytest.mark.parametrize("work", STATEMENTS, ids=lambda work: work.__name__)
def test_a_statement_reads_along_the_index_that_is_meant_for_it(work: Callable[[], None]) -> None:
    read = steps_of(work)
    assert set().union(*read.values()) >= STATEMENTS[work], read
    assert not any(WHOLE_TABLE in steps for steps in read.values()), read


@pytest.mark.parametrize("query", PAGES)
def test_a_page_of_the_admin_reads_along_the_index_that_is_meant_for_it(query: str, admin_client: Client) -> None:
    yesterday = f"{timezone.now() - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"
    address = reverse("admin:lambda_tasks_taskrecord_changelist") + query.replace("YESTERDAY", yesterday)

    def show() -> None:
        assert admin_client.get(address).status_code == 200

    read = steps_of(show)
    assert set().union(*read.values()) >= PAGES[query], read
    # The count stops where the list does, so it may read any rows.
    assert not any(WHOLE_TABLE in steps for sql, steps in read.items() if "COUNT(" not in sql), read
    assert all("LIMIT 150" in sql for sql in read if "COUNT(" in sql), read


def test_every_index_serves_a_statement() -> None:
    """Each is paid for with every task that is recorded, or kept."""
    served = set().union(*STATEMENTS.values(), *PAGES.values())
    models = (TaskRecord, OutboxMessage)
    assert {index.name for model in models for index in model._meta.indexes} | {PRIMARY_KEY, OUTBOX_KEY} == served
    # A field may have one too.
    fields = [field for model in models for field in model._meta.fields if not field.primary_key]
    assert not any(field.db_index or field.unique for field in fields)


@pytest.mark.parametrize(("query", "queries"), [("", 5), ("?status__exact=FAILED", 5), ("?q=step_7", 6)])
def test_a_page_of_the_admin_takes_few_queries(
    query: str, queries: int, admin_client: Client, django_assert_num_queries: Any
) -> None:
    """The session and the user; the tasks to filter by, the count, the page; where to begin a search."""
    with django_assert_num_queries(queries):
        admin_client.get(reverse("admin:lambda_tasks_taskrecord_changelist") + query)


def test_a_cleanup_takes_two_queries_for_each_batch() -> None:
    with CaptureQueriesContext(connection) as queries:
        clean_up()  # 101 records, ten at a time
    wanted = ["SELECT", "DELETE"] * 11 + ["SELECT"]
    assert [query["sql"].split()[0] for query in queries if TABLE in query["sql"]] == wanted


@pytest.mark.databases
def test_no_database_is_warned_of_that_knows_no_partial_indexes(database: str) -> None:
    assert TaskRecord.check(databases=[database]) == []
