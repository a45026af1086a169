"""`migrate` upgrades databases of earlier versions in place, and keeps records and messages."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import DatabaseError, connections, transaction
from django.db.migrations import Migration
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Index
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from lambda_tasks.database import online, published
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.messages import SQSLambdaTask
from lambda_tasks.models import OutboxMessage, TaskRecord
from lambda_tasks.operations import checks
from tests.project.test_docs import DOCS, running_page

STATES: Final = Path(__file__).parents[1] / "upgrades"
TABLE: Final = TaskRecord._meta.db_table
ALIAS: Final = "upgraded"
VERSIONS: Final = ("0.1.6", "0.8.1")
MAIN: Final = ("0001_initial", "0002_queue_of_record", "0003_index_of_retries", "0004_outbox")
#: The migrations after those at which an upgrade may begin.
SINCE: Final = (
    "0005_default_of_takeovers",
    "0006_latest_record",
    "0007_reasons_and_keys",
    "0008_progress",
    "0009_flows",
    "0010_rerun",
    "0011_admin_permissions",
    "0012_enqueued_tasks",
    "0013_stored_arguments",
    "0014_not_kept",
)
ORM_STORE: Final = "lambda_tasks.stores.orm.ORMStore"

pytestmark = pytest.mark.databases(transaction=True)


@lambda_task(aliases=("shop.tasks.greet",))
def greet(*, name: str, amount: int = 1) -> str:
    return f"{name} {amount}"


@lambda_task(aliases=("shop.tasks.render",))
def render(*, name: str) -> str:
    return f"rendered for {name}"


class Old:
    """A separate, empty database that a test fills like an earlier version."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.connection: Any = connections[ALIAS]

    def state(self, version: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((STATES / f"{version}-{self.kind}.json").read_text())
        return state

    def make(self, version: str) -> dict[str, Any]:
        """Create the schema and rows of a published version."""
        state = self.state(version)
        self.run(*self._schema(state["schema"]))
        self.applied(*state["migrations"])
        self.insert(*state["rows"])
        return state

    def make_main(self, until: str) -> None:
        state, names = self.state("main"), MAIN[: MAIN.index(until) + 1]
        self.run(*(sql for name in names for sql in state[name]))
        self.applied(*names)

    def _schema(self, statements: list[str]) -> list[str]:
        """Leave out trigram indexes if the server lacks their extension."""
        if any("gin_trgm_ops" in sql for sql in statements):
            with suppress(DatabaseError):
                self.run("CREATE EXTENSION pg_trgm")
                return statements
        return [sql for sql in statements if "gin_trgm_ops" not in sql]

    def run(self, *statements: str) -> None:
        with self.connection.cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def applied(self, *names: str) -> None:
        recorder = MigrationRecorder(self.connection)
        recorder.ensure_schema()
        for name in names:
            recorder.record_applied("lambda_tasks", name)

    def insert(self, *rows: dict[str, Any]) -> None:
        with self.connection.cursor() as cursor:
            for row in rows:
                places = ", ".join(["%s"] * len(row))
                cursor.execute(f"INSERT INTO {TABLE} ({', '.join(row)}) VALUES ({places})", list(row.values()))

    def migrate(self) -> list[str]:
        """Apply all migrations, and return the names of those that were not yet applied."""
        executor = MigrationExecutor(self.connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes("lambda_tasks"))
        executor.migrate(executor.loader.graph.leaf_nodes("lambda_tasks"), plan)
        return [migration.name for migration, _ in plan]

    def shape(self) -> dict[str, Any]:
        """Return the columns and indexes of both tables, which must be the same in a new database."""
        found = {}
        for table in (TABLE, OutboxMessage._meta.db_table):
            with self.connection.cursor() as cursor:
                columns = self.connection.introspection.get_table_description(cursor, table)
            # The published tables have a smaller type for n_retries.
            found[table] = {
                (each.name, each.null_ok, each.default, each.name == "n_retries" or each.type_code, each.display_size)
                for each in columns
                if each.name != "n_retries"
            }
            found[table + " indexes"] = {
                (name, tuple(about["columns"]))
                for name, about in online.constraints(self.connection, table).items()
                if about["index"]
            }
        return found


@pytest.fixture
def old(database: str, settings: Any) -> Iterator[Old]:
    name = f"upgrade_{uuid.uuid4().hex[:12]}"
    if database == "sqlite":
        connections.settings[ALIAS] = {**connections.settings[database], "NAME": ":memory:"}
    else:
        connections.settings[ALIAS] = {**connections.settings[database], "NAME": name}
        with connections[database].cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
    settings.LAMBDA_TASKS_STORE = {"BACKEND": ORM_STORE, "OPTIONS": {"database": ALIAS}}
    connection: Any = connections[ALIAS]
    # Django's test cases refuse databases that did not exist when the test started.
    connection.ensure_connection = lambda: connection.connection or connection.connect()
    try:
        yield Old(database)
    finally:
        driver = connections[ALIAS].connection
        connections[ALIAS].close()
        if database == "sqlite":
            if driver is not None:
                driver.close()  # Django keeps databases in memory open
            connections[ALIAS].connection = None
        else:
            with connections[database].cursor() as cursor:
                cursor.execute(f"DROP DATABASE {name}")
        del connections[ALIAS], connections.settings[ALIAS]


def records() -> dict[str, TaskRecord]:
    return {record.task_name.rpartition(".")[2]: record for record in TaskRecord.objects.using(ALIAS)}


def moment(value: str | None) -> datetime | None:
    if value is None:
        return None
    read = parse_datetime(value)
    assert read is not None
    return read if timezone.is_aware(read) else timezone.make_aware(read, timezone.get_fixed_timezone(0))


def message(body: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
    return template | {"messageId": str(uuid.uuid4()), "body": json.dumps(body)}


@pytest.mark.parametrize("version", VERSIONS)
class TestPublishedTable:
    def test_every_record_is_kept(self, old: Old, version: str) -> None:
        state = old.make(version)

        old.migrate()

        kept = records()
        assert len(kept) == len(state["rows"]) == 4
        for row in state["rows"]:
            record = kept[row["task_name"].rpartition(".")[2]]
            assert record.pk == uuid.UUID(row["id"])
            assert record.kwargs == json.loads(row["kwargs"])
            assert record.n_retries == row["n_retries"]
            assert record.status == {"SUCCEEDED": "SUCCESS", "RETRIED": "RETRYING"}.get(row["status"], row["status"])
            assert record.result == (row["result"] and json.loads(row["result"]))
            assert record.traceback == row["traceback"]
            assert (record.start_time, record.end_time) == (moment(row["start_time"]), moment(row["end_time"]))
            assert (record.claim, record.root_id, record.takeovers, record.queue) == (None, None, 0, "")

    def test_table_becomes_like_a_fresh_one(self, old: Old, version: str, database: str) -> None:
        old.make(version)
        old.migrate()
        upgraded = old.shape()

        old.run(f"DROP TABLE {TABLE}", f"DROP TABLE {OutboxMessage._meta.db_table}", "DROP TABLE django_migrations")
        old.migrate()

        assert upgraded == old.shape()

    def test_second_migrate_does_nothing(self, old: Old, version: str) -> None:
        old.make(version)

        assert old.migrate()
        before = old.shape()
        assert old.migrate() == []
        assert old.shape() == before

    def test_message_of_the_old_version_runs(self, old: Old, version: str) -> None:
        state = old.make(version)
        old.migrate()

        assert handler({"Records": state["messages"]}, None) == {"batchItemFailures": []}

        record = TaskRecord.objects.using(ALIAS).get(pk=state["messages"][0]["messageId"])
        assert (record.status, record.result) == ("SUCCESS", "Ada 2")

    def test_retry_of_the_old_version_runs(self, old: Old, version: str) -> None:
        state = old.make(version)
        old.migrate()
        [sent] = state["messages"]
        retry = message(json.loads(sent["body"]) | {"n_retries": 1}, sent)

        assert handler({"Records": [retry]}, None) == {"batchItemFailures": []}

        record = TaskRecord.objects.using(ALIAS).get(pk=retry["messageId"])
        assert (record.status, record.n_retries) == ("SUCCESS", 1)

    def test_finished_message_is_acknowledged_without_a_run(self, old: Old, version: str) -> None:
        state = old.make(version)
        old.migrate()
        done = records()["greet"]
        [sent] = state["messages"]
        body = json.loads(sent["body"]) | {"task_name": done.task_name, "kwargs": done.kwargs}
        again = message(body, sent) | {"messageId": str(done.pk), "attributes": {"ApproximateReceiveCount": "2"}}

        assert handler({"Records": [again]}, None) == {"batchItemFailures": []}

        assert TaskRecord.objects.using(ALIAS).get(pk=done.pk).result == done.result

    def test_running_record_belongs_to_its_worker(self, old: Old, version: str) -> None:
        old.make(version)
        before = timezone.now()

        old.migrate()

        lease = records()["dies"].lease_until
        assert lease is not None
        assert abs((lease - before).total_seconds() - published.LONGEST_RUN) < 120
        assert records()["greet"].lease_until is None

    def test_serialized_invocation_is_sent(self, old: Old, version: str) -> None:
        task = SQSLambdaTask.model_validate(old.state(version)["serialized"])

        assert task.message.kwargs == {"name": "Ada", "amount": 3}

    def test_old_workers_still_write(self, old: Old, version: str) -> None:
        state = old.make(version)
        old.migrate()
        row = state["rows"][-1] | {"id": uuid.uuid4().hex if old.kind == "sqlite" else str(uuid.uuid4())}

        old.insert(row)

        assert old.rows(f"SELECT count(*) FROM {TABLE} WHERE status = '{row['status']}'")[0][0] >= 1

    def test_interrupted_upgrade_is_continued(self, old: Old, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
        old.make(version)
        for step in ("build_index", "drop_index", "_settle_records"):
            with monkeypatch.context() as patch:
                patch.setattr(published, step, _interrupt)
                with pytest.raises(KeyboardInterrupt):
                    old.migrate()
            assert old.rows(f"SELECT count(*) FROM {TABLE}")[0][0] == 4

        old.migrate()

        assert {record.status for record in records().values()} == {"SUCCESS", "FAILED", "RETRYING", "RUNNING"}

    def test_check_names_migrate(self, old: Old, version: str) -> None:
        old.make(version)

        [warning] = checks.check_tables(databases=[ALIAS])

        assert warning.id == "lambda_tasks.W022"
        assert "run migrate" in warning.hint
        old.migrate()
        assert checks.check_tables(databases=[ALIAS]) == []

    def test_table_without_recorded_migration_is_upgraded(self, old: Old, version: str) -> None:
        old.make(version)
        old.run("DELETE FROM django_migrations")

        old.migrate()

        assert len(records()) == 4


class TestMessagesOf08:
    def test_delayed_invocation_keeps_its_delay(self, old: Old) -> None:
        old.migrate()
        task = SQSLambdaTask.model_validate(old.state("0.8.1")["delayed"])

        assert (task.message.task_name, task.delay, task.queue) == ("shop.tasks.greet", 30, "default")

    def test_batch_message_stays_in_the_queue(self, old: Old) -> None:
        old.make("0.8.1")
        old.migrate()
        [sent] = old.state("0.8.1")["batch"]

        assert handler({"Records": [sent]}, None) == {"batchItemFailures": [{"itemIdentifier": sent["messageId"]}]}

        assert len(records()) == 4

    def test_batch_message_is_sent_again_as_documented(self, old: Old, settings: Any) -> None:
        old.make("0.8.1")
        old.migrate()
        [sent] = old.state("0.8.1")["batch"]
        settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.eager.EagerBackend"
        place = "arn:aws:batch:us-east-1:123456789012"
        batch = {"job_queue_arn": f"{place}:job-queue/batch", "job_definition_arn": f"{place}:job-definition/batch"}
        settings.LAMBDA_TASKS_QUEUES = {**settings.LAMBDA_TASKS_QUEUES, "batch": batch}

        with running_page(DOCS / "howto/from-0.x.md"):
            assert handler({"Records": [sent]}, None) == {"batchItemFailures": []}

        assert records()["render"].result == "rendered for Ada"


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_records_are_renamed_in_batches(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    state = old.make("0.8.1")
    done = next(row for row in state["rows"] if row["status"] == "SUCCEEDED")
    for _ in range(20):
        old.insert(done | {"id": uuid.uuid4().hex if old.kind == "sqlite" else str(uuid.uuid4())})
    monkeypatch.setattr(published, "BATCH", 7)
    updates: list[str] = []

    def notice(execute: Any, sql: str, *args: Any) -> Any:
        updates.append(sql) if sql.startswith("UPDATE") else None
        return execute(sql, *args)

    with old.connection.execute_wrapper(notice):
        old.migrate()

    assert TaskRecord.objects.using(ALIAS).filter(status="SUCCESS").count() == 21
    assert len([sql for sql in updates if "CASE" in sql]) == 4


def test_statuses_written_after_the_upgrade_are_reported(old: Old) -> None:
    state = old.make("0.8.1")
    old.migrate()
    row = next(row for row in state["rows"] if row["status"] == "SUCCEEDED")
    old.insert(row | {"id": uuid.uuid4().hex if old.kind == "sqlite" else str(uuid.uuid4())})

    [warning] = checks.check_tables(databases=[ALIAS])

    assert warning.id == "lambda_tasks.W023"
    assert warning.hint is not None
    old.run(warning.hint.partition(": ")[2].rstrip(";"))
    assert checks.check_tables(databases=[ALIAS]) == []


@pytest.mark.parametrize("place", ["column", "table"])
def test_constraint_of_another_name_is_dropped(old: Old, place: str) -> None:
    row = old.state("0.8.1")["rows"][-1]
    check = "CHECK (status IN ('RUNNING', 'SUCCEEDED', 'FAILED', 'RETRIED'))"
    key, json_, moment_ = {
        "postgres": ("uuid", "jsonb", "timestamptz"),
        "mariadb": ("uuid", "json", "datetime(6)"),
        "sqlite": ("char(32)", "text", "datetime"),
    }[old.kind]
    old.run(
        f"CREATE TABLE {TABLE} (id {key} NOT NULL PRIMARY KEY, task_name varchar(255) NOT NULL, "
        f"kwargs {json_} NOT NULL, n_retries smallint NOT NULL, "
        f"status varchar(10) NOT NULL {check if place == 'column' else ''}, start_time {moment_} NULL, "
        f"end_time {moment_} NULL, result {json_} NULL, traceback text NULL{', ' + check if place == 'table' else ''})"
    )
    old.applied("0001_initial")
    old.insert(row)

    old.migrate()

    assert records()["greet"].status == "SUCCESS"


def test_database_without_tables_passes_the_check(old: Old) -> None:
    assert checks.check_tables(databases=[ALIAS]) == []


class TestOtherTable:
    @pytest.mark.parametrize(
        ("columns", "problem"),
        [
            ("id integer NOT NULL PRIMARY KEY, task_name varchar(255)", "it lacks the column end_time, kwargs"),
            (
                "id integer NOT NULL PRIMARY KEY, owner integer NOT NULL, "
                + ", ".join(f"{name} varchar(99)" for name in sorted(published.COMMON - {"id"})),
                "its column owner requires a value",
            ),
        ],
    )
    def test_other_table_is_refused_unchanged(self, old: Old, columns: str, problem: str) -> None:
        old.run(f"CREATE TABLE {TABLE} ({columns})")
        old.applied("0001_initial")
        before = online.column_names(old.connection, TABLE)

        [error] = checks.check_tables(databases=[ALIAS])
        assert error.id == "lambda_tasks.E021"
        assert problem in error.msg
        with pytest.raises(CommandError, match=problem):
            old.migrate()
        assert online.column_names(old.connection, TABLE) == before

    def test_key_of_another_type_is_refused(self, old: Old) -> None:
        if not old.connection.features.has_native_uuid_field:
            pytest.skip("UUIDs are strings there.")
        old.make("0.1.6")
        old.run(
            f"ALTER TABLE {TABLE} MODIFY id char(36)"
            if old.kind == "mariadb"
            else f"ALTER TABLE {TABLE} ALTER COLUMN id TYPE char(36)"
        )

        [error] = checks.check_tables(databases=[ALIAS])

        assert "its column id is a CharField, not a UUIDField" in error.msg

    @pytest.mark.databases("sqlite", transaction=True)
    def test_extra_column_is_not_lost(self, old: Old) -> None:
        old.make("0.1.6")
        old.run(f"ALTER TABLE {TABLE} ADD COLUMN note text NULL")

        with pytest.raises(CommandError, match="its column note would be lost"):
            old.migrate()


class TestMain:
    @pytest.mark.parametrize("until", MAIN)
    def test_database_is_migrated(self, old: Old, until: str) -> None:
        old.make_main(until)
        key = uuid.uuid4()
        row = {"id": key.hex if old.kind == "sqlite" else str(key), "task_name": "shop.tasks.greet", "kwargs": "{}"}
        old.insert(row | {"status": "SUCCESS", "n_retries": 0, "takeovers": 2})

        assert old.migrate() == [*MAIN[MAIN.index(until) + 1 :], *SINCE]

        [record] = TaskRecord.objects.using(ALIAS)
        assert (record.pk, record.status, record.takeovers, record.lease_until) == (key, "SUCCESS", 2, None)
        assert checks.check_tables(databases=[ALIAS]) == []

    def test_table_becomes_like_a_fresh_one(self, old: Old) -> None:
        old.make_main(MAIN[-1])
        old.migrate()
        migrated = old.shape()

        old.run(f"DROP TABLE {TABLE}", f"DROP TABLE {OutboxMessage._meta.db_table}", "DROP TABLE django_migrations")
        old.migrate()

        assert migrated == old.shape()


@pytest.mark.databases("postgres", transaction=True)
class TestIndexes:
    def test_indexes_are_built_concurrently(self, old: Old) -> None:
        old.make("0.8.1")
        statements: list[str] = []

        def notice(execute: Any, sql: Any, *args: Any) -> Any:
            statements.append(str(sql))
            return execute(sql, *args)

        with old.connection.execute_wrapper(notice):
            old.migrate()

        about = [sql for sql in statements if ("INDEX" in sql and TABLE in sql) or "DROP INDEX" in sql]
        assert len(about) >= 6
        assert all("CONCURRENTLY" in sql for sql in about)
        assert any("NOT VALID" in sql for sql in statements)

    def test_invalid_index_is_rebuilt(self, old: Old) -> None:
        old.make("0.1.6")
        # An interrupted build leaves an invalid index with the name.
        old.run(f"UPDATE {TABLE} SET start_time = now()")
        with pytest.raises(DatabaseError):
            old.run(f"CREATE UNIQUE INDEX CONCURRENTLY lambda_tasks_start ON {TABLE} (start_time)")
        assert online.is_invalid(old.connection, TABLE, "lambda_tasks_start")

        old.migrate()

        assert not online.is_invalid(old.connection, TABLE, "lambda_tasks_start")

    def test_plain_index_is_built_inside_a_transaction(self, old: Old) -> None:
        old.migrate()
        index = Index(fields=["end_time"], name="lambda_tasks_end")

        with transaction.atomic(using=ALIAS), old.connection.schema_editor(atomic=False) as editor:
            online.build_index(editor, TaskRecord, index)

        assert "lambda_tasks_end" in online.constraints(old.connection, TABLE)


@pytest.mark.django_db(databases="__all__")
def test_migrations_match_the_models() -> None:
    call_command("makemigrations", "lambda_tasks", check=True, dry_run=True, verbosity=0)


def test_sql_of_every_migration_is_written(old: Old) -> None:
    executor = MigrationExecutor(old.connection)
    migrations: list[Migration] = [
        migration for key, migration in executor.loader.graph.nodes.items() if key[0] == "lambda_tasks"
    ]

    for migration in migrations:
        assert executor.loader.collect_sql([(migration, False)])
