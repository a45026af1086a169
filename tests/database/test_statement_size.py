"""Operations on many rows send no statement over 16 KB, which would pin a session of RDS Proxy."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import call_command
from django.db import connections, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from lambda_tasks import Every, group
from lambda_tasks.admin import outbox as outbox_admin
from lambda_tasks.database.dividing import divided, oldest_first
from lambda_tasks.decorators import lambda_task
from lambda_tasks.models import (
    EnqueuedTask,
    OutboxMessage,
    StoredArguments,
    TaskFlow,
    TaskFlowMember,
    TaskProgress,
    TaskReason,
    TaskRecord,
    TaskRerun,
    TaskSchedule,
    TaskStatus,
    UniqueKey,
)
from lambda_tasks.operations import forgetting, schedules
from lambda_tasks.operations.inspecting import inspect
from lambda_tasks.operations.partitioning import dropping
from lambda_tasks.operations.reaping import Reaped, reap
from lambda_tasks.operations.rerunning import run_all_again
from lambda_tasks.strategies import get_backend, get_store
from lambda_tasks.tasks import cleanup_task_records, count_old_records
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.stored import Stored
from tests.admin.kit import LIST
from tests.courier import COURIER, OUTBOX, outbox
from tests.database.pooled import SMALL
from tests.faults.workers import deliver, lost_record
from tests.schedules import own_tasks

pytestmark = pytest.mark.databases("postgres", "mariadb", transaction=True)

DAY: Final = timedelta(days=1)
#: Enough that their keys take 20 KB in SQL, and more than a batch of a thousand rows.
MANY: Final = 500
MORE: Final = 1_100
LARGE: Final = "x" * 20_000


@lambda_task
def note(*, number: int = 0) -> int:
    return number


@lambda_task
def echo(*, text: str) -> None: ...


@lambda_task
def returns(*, size: int) -> str:
    return "x" * size


@lambda_task
def fails(*, size: int) -> None:
    raise ValueError("x" * size)


@pytest.fixture(autouse=True)
def kept(database: str, store: None, settings: Any) -> None:
    """Keep messages in the database of the test and in `default`, in statements that do not pin a session."""
    options = {"transport": COURIER, "databases": ["default", database], "max_statement_bytes": 16_000}
    settings.LAMBDA_TASKS_BACKEND = {"BACKEND": OUTBOX, "OPTIONS": options}


@contextmanager
def logged(database: str) -> Iterator[CaptureQueriesContext]:
    """Log the statements as they are sent, with their values."""
    connection = connections[database]
    connection.queries_log = deque(maxlen=50_000)
    with CaptureQueriesContext(connection) as queries:
        yield queries


@contextmanager
def short_statements(database: str) -> Iterator[None]:
    """Fail if a statement has more than 16 KB."""
    with logged(database) as queries:
        yield
    sizes = {len(query["sql"].encode()): query["sql"][:60] for query in queries}
    assert len(queries) > 1
    assert {size: text for size, text in sizes.items() if size > SMALL} == {}


def ids(number: int = MANY) -> list[UUID]:
    return [UUID(new_message_id()) for _ in range(number)]


def create(model: Any, database: str, keys: list[UUID], **columns: Any) -> None:
    """Insert rows, of whose columns each may be a function of the number of the row."""
    rows = (
        model(pk=key, **{name: value(n) if callable(value) else value for name, value in columns.items()})
        for n, key in enumerate(keys)
    )
    model.objects.using(database).bulk_create(rows, batch_size=500)


def old_records(database: str, keys: list[UUID], **columns: Any) -> None:
    start = timezone.now() - 60 * DAY
    values = {"task_name": note.name, "status": TaskStatus.SUCCESS, "start_time": start, "end_time": start}
    create(TaskRecord, database, keys, **values | columns)


def messages(database: str, keys: list[UUID], *, body: Callable[[int], str] = lambda n: "", **columns: Any) -> None:
    values = {"task_name": note.name, "queue": "default", "created_at": timezone.now(), "due_at": None}
    create(OutboxMessage, database, keys, body=body, **values | columns)


class TestDivided:
    def test_parts_fill_a_statement(self) -> None:
        keys = ids()
        parts = list(divided(keys))
        assert [key for part in parts for key in part] == keys
        assert max(map(len, parts)) == 304

    def test_long_key_is_alone(self) -> None:
        assert list(divided(["a", "é" * 7_000, "b"])) == [["a"], ["é" * 7_000], ["b"]]

    def test_quotes_count_twice(self) -> None:
        assert len(next(divided(["'" * 90] * 300))) == len(next(divided(["x" * 180] * 300)))


class TestOldestFirst:
    def test_spared_rows_are_passed_once(self, database: str) -> None:
        """Also if those of one second are more than a batch, and their keys are in no statement."""
        moments = [timezone.now() - DAY, *(timezone.now() - timedelta(hours=n) for n in range(5))]
        keys = ids(60)
        old_records(database, keys, start_time=lambda n: moments[n % 6])
        rows, spared, seen = TaskRecord.objects.using(database), set[Any](), []
        for batch in oldest_first(rows.all(), "start_time", 3, spared):
            seen += batch
            spared.update(batch[1:])
            rows.filter(pk=batch[0]).delete()
        assert sorted(seen) == sorted(keys)
        assert len(spared) <= 10, "those of earlier times are not kept in memory"


class TestMaintenance:
    def test_cleanup_of_records(self, database: str) -> None:
        keys, waiting = ids(MORE), ids()
        old_records(database, keys + waiting)
        for model, columns in ((TaskProgress, {"done": 1}), (TaskRerun, {"original_id": uuid4()})):
            times = {"updated_at" if model is TaskProgress else "rerun_at": timezone.now()}
            create(model, database, keys, **columns, **times)
        messages("default", waiting)
        with short_statements(database), short_statements("default"):
            assert count_old_records(retention_days=7) == MORE
            assert cleanup_task_records(retention_days=7) == MORE
        assert set(TaskRecord.objects.using(database).values_list("pk", flat=True)) == set(waiting)
        assert not TaskProgress.objects.using(database).exists()

    def test_cleanup_of_flows_and_calls(self, database: str) -> None:
        flows, long_ago = ids(), timezone.now() - 60 * DAY
        row = {"kind": "group", "task_name": note.name, "size": 2, "created_at": long_ago}
        create(TaskFlow, database, flows[:-10], ended_at=long_ago, **row)
        create(TaskFlow, database, flows[-10:], ended_at=None, **row)
        create(TaskFlowMember, database, ids(MORE), flow_id=lambda n: flows[n % MANY], position=0)
        call = {"task_name": note.name, "backend": "default", "queue_name": "default", "enqueued_at": long_ago}
        create(EnqueuedTask, database, ids(MORE), **call)
        with short_statements(database):
            cleanup_task_records(retention_days=7)
        for model in (TaskFlow, TaskFlowMember, EnqueuedTask):
            assert not model._default_manager.using(database).exists()

    def test_cleanup_of_keys(self, database: str) -> None:
        row = {"task_name": note.name, "message_id": lambda n: uuid4(), "expires_at": timezone.now() - 60 * DAY}
        create(UniqueKey, database, [f"{n:064}" for n in range(MANY)], **row)  # type: ignore[misc]
        with short_statements(database):
            cleanup_task_records(retention_days=7)
        assert not UniqueKey.objects.using(database).exists()

    def test_cleanup_of_stored_arguments(self, database: str) -> None:
        waiting, unused = [uuid4() for _ in range(MANY)], [uuid4() for _ in range(150)]
        create(StoredArguments, database, waiting + unused, content="{}", used_at=timezone.now() - 60 * DAY)

        def body(number: int) -> str:
            stored = Stored.of("{}", place=f"database:{database}", key=str(waiting[number]))
            return Invocation(note.name, {}, stored=stored).to_body()

        messages(database, ids(), body=body)
        with short_statements(database):
            cleanup_task_records(retention_days=7)
        assert set(StoredArguments.objects.using(database).values_list("pk", flat=True)) == set(waiting)

    def test_forgotten_successes(self, database: str) -> None:
        old_records(database, ids(MORE), reason=TaskReason.NOT_KEPT)
        with short_statements(database):
            assert forgetting.forget() == MORE

    def test_lost_tasks(self, database: str) -> None:
        for number in range(MANY):
            lost_record(note, kwargs={"number": number})
        with short_statements(database):
            assert reap() == Reaped(sent_again=MANY)

    def test_messages_of_a_partition(self, database: str) -> None:
        """The partition is the whole table, since only PostgreSQL has others."""
        if database != "postgres":
            pytest.skip("only PostgreSQL has partitions")
        messages(database, ids())
        partition: Any = type(
            "P", (), {"name": TaskRecord._meta.db_table, "low": UUID(int=0), "high": UUID(int=2**128 - 1)}
        )
        with short_statements(database):
            assert not dropping._is_owed(connections[database], partition, database)

    @pytest.mark.filterwarnings("ignore::lambda_tasks.exceptions.UnreachableTaskWarning")
    def test_many_schedules(self, database: str) -> None:
        with own_tasks() as define:
            for number in range(150):

                def scheduled() -> None: ...

                scheduled.__qualname__ = f"{'long_name_' * 12}{number:03}"
                define(scheduled, schedule=Every(minutes=5))
            with short_statements(database):
                assert schedules.fire_due().total == 0
                TaskSchedule.objects.using(database).update(last_tick=0)
                assert schedules.fire_due().sent == 150
                assert len(schedules.list_schedules()) == 150


class TestCalls:
    def test_group(self, database: str) -> None:
        with short_statements(database):
            with transaction.atomic(using=database):
                handle = group([note.invocation(number=n) for n in range(MANY)]).execute_on_commit()
            assert handle.results() == [None] * MANY
            small = group([note.invocation(number=n) for n in range(400)]).execute_on_commit()
            assert small.cancel()
        assert small.counts.failed == 400

    def test_questions_about_many_messages(self, database: str) -> None:
        keys = ids()
        messages(database, keys)
        texts = list(map(str, keys))
        with short_statements(database):
            assert get_store().begun(texts) == set()
            assert get_backend().kept(texts) == set(texts)
            assert outbox().send_now(keys, using=database).total == MANY

    def test_records_run_again(self, database: str, capsys: pytest.CaptureFixture[str]) -> None:
        keys = ids()
        old_records(database, keys, kwargs={})
        records = list(TaskRecord.objects.using(database))
        with short_statements(database):
            assert not [each for each in run_all_again(records) if each.problem]
            call_command("lambda_tasks", "retry", *map(str, keys), "--dry-run")
        assert f"{MANY} records would be run again" in capsys.readouterr().out

    def test_records_that_the_queue_refuses(self, database: str, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = "tests.operations.test_rerunning.Closed"
        old_records(database, ids(), kwargs={})
        records = list(TaskRecord.objects.using(database))
        with short_statements(database):
            assert len([each for each in run_all_again(records) if each.problem]) == MANY

    def test_long_chain_of_retries(self, database: str) -> None:
        keys = ids()
        old_records(database, keys, root_id=keys[0], n_retries=lambda n: n)
        create(TaskRerun, database, ids(3), original_id=lambda n: keys[-n], rerun_at=timezone.now())
        with short_statements(database):
            found = inspect(str(keys[5]))
        assert (len(found.records), len(found.reruns)) == (MANY, 3)


class TestLargeValues:
    """A value of more than 16 KB is in one statement. The page about poolers has the same list."""

    @pytest.mark.parametrize(
        ("call", "large"),
        [
            (partial(echo.using, text=LARGE), ["INSERT outboxmessage", "INSERT taskrecord"]),
            (partial(returns.using, size=20_000), ["UPDATE taskrecord"]),
            (partial(fails.using, size=20_000), ["UPDATE taskrecord"]),
            (
                partial(note.using, on_success=echo.invocation(text=LARGE)),
                ["INSERT taskflow", "INSERT outboxmessage", "INSERT taskrecord"],
            ),
        ],
        ids=["arguments", "result", "traceback", "what-follows"],
    )
    def test_value_is_in_one_statement(self, database: str, call: Any, large: list[str]) -> None:
        arguments = {name: value for name, value in call.keywords.items() if name != "on_success"}
        options = {name: value for name, value in call.keywords.items() if name == "on_success"}
        courier: Any = outbox().transport
        with logged(database) as queries:
            call.func(database=database, **options).execute_on_commit(**arguments)
            while jobs := courier.take():
                deliver(*jobs)
        texts = [query["sql"] for query in queries if len(query["sql"].encode()) > SMALL]
        found = [re.search(r"(INSERT|UPDATE)(?: IGNORE)?(?: INTO)? .lambda_tasks_(\w+)", text) for text in texts]
        assert [f"{each[1]} {each[2]}" for each in found if each] == large


class ToDatabase:
    """Routes the tables of the library to the database of the test."""

    alias = "default"

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return self.alias if model._meta.app_label == "lambda_tasks" else None

    db_for_write = db_for_read


class TestAdmin:
    """With as many rows as one form selects."""

    @pytest.fixture(autouse=True)
    def routed(self, database: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ToDatabase, "alias", database)
        settings.DATABASE_ROUTERS = [ToDatabase()]

    @pytest.fixture
    def post(self, admin_client: Client) -> Callable[..., str]:
        """Post an action on all rows, and return the page."""

        def post(page: str, action: str, keys: list[str], **fields: str) -> str:
            chosen = {"_selected_action": keys} if len(keys) > 1 else {"_selected_action": keys, "select_across": "1"}
            answer = admin_client.post(page, {"action": action, **chosen, **fields})
            assert answer.status_code in (200, 302)
            return b"".join(answer).decode()  # type: ignore[arg-type]

        return post

    @pytest.mark.parametrize("action", ["cancel", "delete_ended", "export"])
    def test_actions_on_records(self, database: str, post: Callable[..., str], action: str) -> None:
        keys = ids(400)
        old_records(database, keys, status=TaskStatus.RETRYING if action == "cancel" else TaskStatus.SUCCESS)
        with short_statements(database), short_statements("default"):
            page = post(LIST, action, [str(keys[0])], choice="csv")
            post(LIST, action, chosen_in(page), choice="csv", confirmed="yes")
        assert LogEntry.objects.count() == (400 if action == "export" else 300)

    def test_actions_on_messages(self, database: str, post: Callable[..., str]) -> None:
        messages(database, ids(800))
        page = LIST.replace("taskrecord", "outboxmessage")
        with short_statements(database), short_statements("default"):
            keys = chosen_in(post(page, "delete_selected", [str(uuid4())]))
            assert len(keys) == outbox_admin.MOST_DELETED
            post(page, "delete_selected", keys, post="yes")
            assert OutboxMessage.objects.count() == 500
            post(page, "send_now", [str(uuid4())])
        assert LogEntry.objects.count() == 300 + 500


def chosen_in(page: str) -> list[str]:
    return re.findall(r'name="_selected_action" value="([^"]*)"', page)
