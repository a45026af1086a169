"""Check that every task ends within its limits and their grace, and is FAILED with a reason, with no neighbour lost.

Each case is a batch of three messages with the bad task in the middle, in a separate worker process. The workers run
in parallel, before the first test. Messages that the end of a worker interrupted are delivered again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from django.conf import settings
from django.db import connections
from django.test import override_settings

from lambda_tasks.backends.memory import event_record
from lambda_tasks.database.clock import DatabaseNow
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation
from tests.app.models import Effect

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.django_db(databases=["default", "postgres"] if "postgres" in settings.DATABASES else ["default"]),
]

#: The maximum time in seconds for all workers, on a busy machine too.
DEADLINE: Final = 90

#: Loads Django once and forks a worker for each case, which writes its answer and its output to files.
WORKERS: Final = textwrap.dedent(
    """
    import json, os, sys, threading
    import django
    from django.conf import settings

    for database in settings.DATABASES.values():
        database["CONN_MAX_AGE"] = 600  # as in a warm container, where the next task gets the same session
    django.setup()

    from django.test import override_settings
    from lambda_tasks.execution import pipeline
    from lambda_tasks.limits import alarms
    from lambda_tasks.handler import handler
    from tests.faults import limited_tasks

    def work(case):
        store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": case["database"]}}
        override_settings(LAMBDA_TASKS_STORE=store, LAMBDA_TASKS_PLUGINS=case["plugins"]).enable()
        if case["short_grace"]:
            pipeline.KILL_GRACE = alarms.KILL_GRACE = 0.2
            pipeline.WATCHDOG_DELAY = alarms.WATCHDOG_DELAY = 0.8  # recording the end takes as long
        answer = handler({"Records": case["records"]}, None)
        with open(case["file"] + ".answer", "w") as file:
            json.dump(answer, file)

    workers = {}
    for case in json.load(sys.stdin):
        pid = os.fork()
        if pid:
            workers[pid] = case["file"]
            continue
        log = os.open(case["file"] + ".log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            if case["thread"]:
                thread = threading.Thread(target=work, args=(case,))
                thread.start()
                thread.join()
            else:
                work(case)
            sys.stderr.flush()
        finally:
            os._exit(0 if os.path.exists(case["file"] + ".answer") else 3)
    for _ in list(workers):
        pid, status = os.wait()
        with open(workers[pid] + ".code", "w") as file:
            file.write(str(os.waitstatus_to_exitcode(status)))
    """
)


@dataclass
class Case:
    """A batch whose middle message is the bad task, and its results."""

    task: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    database: str = "default"
    plugins: list[str] = field(default_factory=list)
    #: For tasks that end their process. Others need the real grace, because alarms are late on a busy machine.
    short_grace: bool = False
    thread: bool = False
    #: The next task in the batch.
    neighbour: tuple[str, dict[str, Any]] = ("note", {"name": "after"})

    def __post_init__(self) -> None:
        names = [("note", {"name": "before"}), (self.task, self.kwargs), self.neighbour]
        self.jobs = [_job(name, kwargs) for name, kwargs in names]

    def order(self, file: Path) -> dict[str, Any]:
        """Return the worker's instructions. The worker writes to `file`, and to files with its name as a prefix."""
        self.file = file
        return {
            "database": self.database,
            "plugins": self.plugins,
            "short_grace": self.short_grace,
            "thread": self.thread,
            "records": [event_record(job) for job in self.jobs],
            "file": str(file),
        }

    def finish(self) -> None:
        """Read how the worker ended. Deliver the interrupted messages again, after the lease has expired."""
        self.code = int(self.file.with_suffix(".code").read_text())
        self.log = self.file.with_suffix(".log").read_text()
        self.first_records = self._records()
        self.redelivered = self.code != 0
        if not self.redelivered:
            self.answer = json.loads(self.file.with_suffix(".answer").read_text())
        else:
            records = TaskRecord.objects.using(self.database)
            # This waits for a session of the dead worker that is still committing.
            records.filter(status="RUNNING", pk__in=[job.message_id for job in self.jobs]).update(
                lease_until=DatabaseNow() - timedelta(seconds=1)
            )
            store = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": self.database}}
            with override_settings(LAMBDA_TASKS_STORE=store, LAMBDA_TASKS_MAX_TAKEOVERS=0):
                self.answer = handler({"Records": [event_record(job, receive_count=2) for job in self.jobs]}, None)
        self.records = self._records()

    def _records(self) -> list[tuple[str | None, str]]:
        found = TaskRecord.objects.using(self.database).in_bulk([job.message_id for job in self.jobs], field_name="pk")
        records = {str(pk): record for pk, record in found.items()}
        return [
            (records[job.message_id].status, records[job.message_id].traceback or "")
            if job.message_id in records
            else (None, "")
            for job in self.jobs
        ]

    @property
    def statuses(self) -> list[str | None]:
        return [status for status, _ in self.records]

    @property
    def reason(self) -> str:
        """The last line of the bad task's traceback."""
        return self.records[1][1].strip().rpartition("\n")[2]

    def ended_with(self, reason: str, *, worker_survives: bool) -> bool:
        """Check that the bad task is FAILED for `reason`, and that its neighbours have succeeded."""
        assert self.statuses == ["SUCCESS", "FAILED", "SUCCESS"], (self.records, self.log)
        assert reason in self.reason, self.records[1]
        assert self.answer == {"batchItemFailures": []}
        assert self.redelivered is not worker_survives, self.log
        return True


def _job(name: str, kwargs: dict[str, Any]) -> Job:
    message = Invocation(task_name=f"tests.faults.limited_tasks.{name}", kwargs=kwargs)
    message_id = ids.new_message_id()
    return Job(message=message, message_id=message_id, root_id=message_id)


ON_POSTGRES: Final = {"database": "postgres", "plugins": ["lambda_tasks.contrib.postgres"]}


def cases() -> dict[str, Case]:
    everywhere = {
        "swallows every Exception": Case("swallow_every_exception"),
        "swallows everything": Case("swallow_everything", short_grace=True),
        "sleeps in finalizers": Case("sleep_in_finalizers"),
        "holds the interpreter": Case("hold_the_interpreter", short_grace=True),
        "matches": Case("match_a_catastrophic_expression"),
        "nests contexts": Case("nest_contexts", {"name": "nested"}),
        "in a thread": Case("take_longer_than_the_limits", {"name": "in a thread"}, thread=True),
        "alarm is stolen": Case("steal_the_alarm", neighbour=("sleep", {})),
    }
    if "postgres" not in settings.DATABASES:
        return everywhere
    return {
        **everywhere,
        "query": Case("wait_for_the_server", {"tag": "query"}, database="postgres"),
        "query is shrugged off": Case("wait_for_the_server_and_ignore", database="postgres"),
        "query elsewhere": Case(
            "wait_for_another_server",
            {"tag": "query elsewhere", "alias": "postgres"},
            neighbour=("ask_another_server", {"alias": "postgres"}),
        ),
        "query elsewhere is shrugged off": Case(
            "wait_for_another_server_and_ignore",
            {"alias": "postgres"},
            neighbour=("ask_another_server", {"alias": "postgres"}),
        ),
        "query, plugin": Case("wait_for_the_server", {"tag": "with plugin"}, **ON_POSTGRES),
        "query is tidied up, plugin": Case("wait_for_the_server_and_clean_up", {"tag": "tidy"}, **ON_POSTGRES),
        "query in a thread, plugin": Case("wait_for_the_server", {"tag": "threaded"}, thread=True, **ON_POSTGRES),
        "query of the dead, plugin": Case("die_waiting_for_the_server", {"tag": "dead"}, **ON_POSTGRES),
        "slow COMMIT": Case("commit_slowly", {"name": "COMMIT takes 2.3"}, database="postgres"),
        "slower COMMIT": Case("commit_slowly", {"name": "COMMIT takes 5.0"}, database="postgres", short_grace=True),
        "slow COMMIT, plugin": Case("commit_slowly", {"name": "COMMIT takes 60"}, short_grace=True, **ON_POSTGRES),
    }


@pytest.fixture(scope="module")
def ended(
    django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Case]]:
    """Yield all cases after all of them have ended."""
    directory = tmp_path_factory.mktemp("workers")
    with django_db_blocker.unblock(), ExitStack() as stack:
        if "postgres" in settings.DATABASES:
            stack.enter_context(_slow_commits())
        stack.callback(_delete_rows)
        all_cases = cases()
        orders = [case.order(directory / str(number)) for number, case in enumerate(all_cases.values())]
        workers = subprocess.Popen(
            [sys.executable, "-c", WORKERS],
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            workers.communicate(json.dumps(orders), timeout=DEADLINE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(workers.pid, signal.SIGKILL)
        for case in all_cases.values():
            case.finish()
        yield all_cases


@contextmanager
def _slow_commits() -> Iterator[None]:
    """Create a trigger that delays COMMIT by the number of seconds in the row's name."""
    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            """
            CREATE FUNCTION commit_slowly() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM pg_sleep(replace(NEW.name, 'COMMIT takes ', '')::float); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER commit_slowly AFTER INSERT ON app_effect
                DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.name LIKE 'COMMIT takes %')
                EXECUTE FUNCTION commit_slowly();
            """
        )
    try:
        yield
    finally:
        with connections["postgres"].cursor() as cursor:
            cursor.execute("DROP FUNCTION commit_slowly() CASCADE")
            # Queries that were interrupted without the plugin are still running.
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(%'"
            )


def _delete_rows() -> None:
    for alias in {"default", "postgres"} & set(settings.DATABASES):
        TaskRecord.objects.using(alias).all().delete()
        Effect.objects.using(alias).all().delete()


@pytest.fixture
def on_postgres(postgres: object, ended: dict[str, Case]) -> dict[str, Case]:
    return ended


def running(tag: str) -> bool:
    with connections["postgres"].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s",
            [f"SELECT pg_sleep(%/* {tag} */"],
        )
        return bool(cursor.fetchone()[0])


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait until `condition` holds, which normally takes moments."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


class TestUnstoppableCode:
    def test_task_that_swallows_exceptions_fails_in_its_worker(self, ended: dict[str, Case]) -> None:
        assert ended["swallows every Exception"].ended_with(
            "HardTimeLimitExceeded: The hard timeout of 2 s has expired.", worker_survives=True
        )

    def test_task_that_swallows_everything_ends_its_process(self, ended: dict[str, Case]) -> None:
        """It is recorded as failed first."""
        case = ended["swallows everything"]
        assert case.ended_with("its process was ended", worker_survives=False)
        # The dying worker recorded it immediately, and not the next delivery.
        assert [status for status, _ in case.first_records] == ["SUCCESS", "FAILED", None]

    def test_interrupts_lost_in_finalizers_come_again(self, ended: dict[str, Case]) -> None:
        case = ended["sleeps in finalizers"]
        assert case.ended_with("HardTimeLimitExceeded", worker_survives=True)
        assert "in __del__" in case.log, "no interrupt was lost"

    def test_task_that_holds_the_gil_crashes_its_process(self, ended: dict[str, Case]) -> None:
        case = ended["holds the interpreter"]
        assert case.ended_with("TaskCrashedError: crashed", worker_survives=False)
        assert [status for status, _ in case.first_records] == ["SUCCESS", "RUNNING", None]
        assert "Timeout (0:00:0" in case.log
        assert "in hold_the_interpreter" in case.log

    def test_catastrophic_regular_expression_is_interrupted(self, ended: dict[str, Case]) -> None:
        assert ended["matches"].ended_with("SoftTimeLimitExceeded", worker_survives=True)

    def test_contexts_inside_a_task_do_not_extend_limits(self, ended: dict[str, Case]) -> None:
        assert ended["nests contexts"].ended_with("The hard timeout of 2 s", worker_survives=True)

    def test_task_in_another_thread_is_unlimited_and_logged(self, ended: dict[str, Case]) -> None:
        case = ended["in a thread"]
        assert case.statuses == ["SUCCESS"] * 3
        assert "The time limits of this task are not enforced" in case.log

    def test_stolen_alarm_does_not_affect_the_next_task(self, ended: dict[str, Case]) -> None:
        case = ended["alarm is stolen"]
        assert case.statuses == ["SUCCESS", "SUCCESS", "FAILED"]
        assert "SoftTimeLimitExceeded" in case.records[2][1]


class TestBlockedQueries:
    def test_blocked_query_is_interrupted(self, on_postgres: dict[str, Case]) -> None:
        assert on_postgres["query"].ended_with("SoftTimeLimitExceeded", worker_survives=True)

    def test_task_that_swallows_its_lost_connection_fails(self, on_postgres: dict[str, Case]) -> None:
        """This is not an outage: if its message were returned to the queue, it would be redelivered forever."""
        case = on_postgres["query is shrugged off"]
        assert case.ended_with(
            "SoftTimeLimitExceeded: The soft timeout of 1 s has expired. The task", worker_survives=True
        )
        assert "broke the connection" in case.reason

    def test_interrupted_query_elsewhere_leaves_the_next_task(self, on_postgres: dict[str, Case]) -> None:
        assert on_postgres["query elsewhere"].ended_with("SoftTimeLimitExceeded", worker_survives=True)

    def test_swallowed_interruption_elsewhere_leaves_the_next_task(self, on_postgres: dict[str, Case]) -> None:
        case = on_postgres["query elsewhere is shrugged off"]
        assert case.statuses == ["SUCCESS"] * 3, case.records

    def test_plugin_ends_the_query_in_the_server(self, on_postgres: dict[str, Case]) -> None:
        assert on_postgres["query, plugin"].ended_with("SoftTimeLimitExceeded", worker_survives=True)
        assert eventually(lambda: not running("with plugin"))

    def test_plugin_lets_a_task_clean_up(self, on_postgres: dict[str, Case]) -> None:
        case = on_postgres["query is tidied up, plugin"]
        assert case.statuses == ["SUCCESS"] * 3, case.records
        assert eventually(lambda: not running("tidy"))

    def test_plugin_ends_queries_that_no_alarm_reaches(self, on_postgres: dict[str, Case]) -> None:
        case = on_postgres["query in a thread, plugin"]
        assert case.ended_with(
            "HardTimeLimitExceeded: The hard timeout of 2 s has expired, and PostgreSQL has ended", worker_survives=True
        )
        assert "canceling statement due to statement timeout" in case.records[1][1]

    def test_plugin_lets_the_server_detect_dead_workers(self, on_postgres: dict[str, Case]) -> None:
        """The hard timeout is minutes away, so only the worker's death can end the query."""
        case = on_postgres["query of the dead, plugin"]
        assert case.code == -signal.SIGKILL
        assert case.ended_with("TaskCrashedError: crashed", worker_survives=False)
        assert eventually(lambda: not running("dead"))


class TestSlowCommit:
    def test_commit_after_the_hard_timeout_is_a_success(self, on_postgres: dict[str, Case]) -> None:
        case = on_postgres["slow COMMIT"]
        assert (case.statuses, case.redelivered) == (["SUCCESS"] * 3, False)
        assert case.answer == {"batchItemFailures": []}, "an alarm has struck in COMMIT"

    def test_commit_outlasting_the_watchdog_succeeds_on_redelivery(self, on_postgres: dict[str, Case]) -> None:
        """The process is gone, but the server still commits."""
        case = on_postgres["slower COMMIT"]
        assert "Timeout (0:00:0" in case.log
        assert case.redelivered
        assert case.statuses == ["SUCCESS"] * 3
        assert case.answer == {"batchItemFailures": []}

    def test_plugin_aborts_the_commit_of_dead_workers(self, on_postgres: dict[str, Case]) -> None:
        assert on_postgres["slow COMMIT, plugin"].ended_with("TaskCrashedError: crashed", worker_survives=False)

    def test_work_and_record_agree(self, on_postgres: dict[str, Case]) -> None:
        effects = Effect.objects.using("postgres").filter(name__startswith="COMMIT takes").order_by("name")
        assert list(effects.values_list("name", flat=True)) == ["COMMIT takes 2.3", "COMMIT takes 5.0"]
