"""The subcommands that look at tasks and run them: what they print, as text and as JSON, and their exit statuses."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any, Final
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from django.core.management import CommandError, call_command
from django.db import OperationalError, ProgrammingError
from django.test import override_settings
from django.utils import timezone

import lambda_tasks
from lambda_tasks import group, maintenance
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.retry import RetryPolicy
from lambda_tasks.definition.schedules import Every
from lambda_tasks.handles import TaskHandle
from lambda_tasks.management import listing
from lambda_tasks.management.commands.lambda_tasks import SUBCOMMANDS, Command
from lambda_tasks.management.prometheus import METRICS
from lambda_tasks.management.times import moment
from lambda_tasks.models import CancelRequest, OutboxMessage, TaskProgress, TaskRecord, TaskRerun, TaskStatus
from lambda_tasks.operations import statistics
from lambda_tasks.recording.masking import MASK
from lambda_tasks.testing import TaskQueue, collect_tasks
from lambda_tasks.wire.ids import new_message_id, retry_id
from tests.courier import OUTBOX
from tests.schedules import own_tasks

pytestmark = pytest.mark.django_db(transaction=True)

UNKNOWN: Final = "019c2f6e-8a54-7d6e-9b1f-5b6a1f6c2d10"


class Again(Exception):
    pass


@lambda_task
def greet(*, number: int, word: str = "hi") -> str:
    return f"{word} {number}"


@lambda_task
def fail(*, number: int) -> None:
    raise ValueError(f"the number is {number}")


@lambda_task(retry_on=(Again,), max_retries=1)
def retried(*, number: int) -> None:
    raise Again


@lambda_task(unique=("number",), sensitive=("token",), on_duplicate="raise")
def only(*, number: int, token: str) -> None: ...


class Closed(MemoryBackend):
    """A queue that accepts nothing."""

    leaves_process = True

    def send(self, jobs: Any) -> Any:
        raise ConnectionError("the queue is closed")


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    with collect_tasks() as collected:
        yield collected


def printed(*arguments: str) -> str:
    output = StringIO()
    call_command("lambda_tasks", *arguments, stdout=output, stderr=StringIO(), skip_checks=True)
    return output.getvalue()


def read(*arguments: str) -> Any:
    return json.loads(printed(*arguments, "--format", "json"))


def record(task: Any = fail, **fields: Any) -> TaskRecord:
    values: dict[str, Any] = {"status": TaskStatus.FAILED, "kwargs": {"number": 7}, "start_time": timezone.now()}
    return TaskRecord.objects.create(id=new_message_id(), task_name=task.name, **values | fields)


class TestHelp:
    @pytest.mark.parametrize("subcommand", SUBCOMMANDS, ids=lambda each: each.name)
    def test_each_has_examples_that_parse(self, subcommand: Any, capsys: pytest.CaptureFixture[str]) -> None:
        parser = Command().create_parser("manage.py", "lambda_tasks")
        with pytest.raises(SystemExit) as raised:
            parser.parse_args([subcommand.name, "--help"])
        assert raised.value.code == 0
        text = capsys.readouterr().out
        assert f"--format {{{','.join(subcommand.formats)}}}" in text
        assert subcommand.examples
        for example in subcommand.examples:
            assert f"python manage.py lambda_tasks {example}" in text or example.startswith("echo ")
            if not example.startswith("echo ") and "'" not in example:
                parser.parse_args(example.split())

    def test_version_is_that_of_the_library(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments in (["--version"], ["stats", "--version"]):
            with pytest.raises(SystemExit):
                Command().create_parser("manage.py", "lambda_tasks").parse_args(arguments)
            assert capsys.readouterr().out == f"{lambda_tasks.__version__}\n"


def test_interrupted_command_has_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "import_tasks_of_apps", interrupted)
    with pytest.raises(CommandError, match="Interrupted") as raised:
        printed("list")
    assert raised.value.returncode == 130


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OperationalError("no such table: lambda_tasks_taskrecord"),
            "missing or outdated: no such .* Run `manage.py",
        ),
        (ProgrammingError('relation "lambda_tasks_taskrecord" does not exist\nLINE 1'), "Run `manage.py migrate`"),
        (ProgrammingError("Table 'test.lambda_tasks_taskrecord' doesn't exist"), "Run `manage.py migrate`"),
        (
            OperationalError("connection refused\n\tIs the server running?"),
            "Is the server running\\? Make sure",
        ),
        (NoCredentialsError(), "Unable to locate credentials. Give this process valid AWS credentials"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), "Nothing answers at this address"),
        (ClientError({"Error": {"Code": "ExpiredToken"}}, "SendMessage"), "ExpiredToken.*Correct the AWS credentials"),
        (ClientError({"Error": {"Code": "AccessDenied"}}, "SendMessage"), "Grant SendMessage to the user or role"),
    ],
)
def test_failure_of_a_service_is_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(listing, "import_tasks_of_apps", failing)
    with pytest.raises(CommandError, match=message) as raised:
        printed("list")
    assert raised.value.__cause__ is error
    assert ".." not in str(raised.value)


@pytest.mark.parametrize("error", [ProgrammingError('syntax error at "FROM"'), KeyError("name")])
def test_mistake_in_the_code_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(listing, "import_tasks_of_apps", failing)
    with pytest.raises(type(error)):
        printed("list")


def test_reader_that_ends_early_is_not_an_error() -> None:
    command = [sys.executable, "-m", "django", "lambda_tasks", "list", "--settings", "tests.settings", "--format=json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


class TestList:
    def test_tasks_have_their_options(self) -> None:
        def report(*, days: int = 7) -> None: ...

        with own_tasks() as made:
            made(report, schedule=Every(minutes=5), retry=RetryPolicy(on=(Again,)), queue="other")
            made(fail.function, singleton=True)
            first, second = printed("list").splitlines()[1:]
            assert "[days]" in first
            assert "every 0:05:00" in first
            assert second.split("  ")[0] == fail.name
            assert "singleton=True" in second
            (found,) = read("list", "--queue", "other")
        assert found["task"].endswith("report")
        assert found["parameters"] == {"days": {"type": "int", "required": False}}
        assert (found["options"]["hard_timeout"], found["options"]["schedule"]) == (300, ["every 0:05:00"])
        assert found["options"]["retry"]["on"] == [f"{__name__}.Again"]

    def test_no_task_is_a_sentence(self) -> None:
        assert printed("list", "--queue", "none") == "No task uses queue 'none'.\n"

    def test_modules_that_fail_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listing, "import_tasks_of_apps", lambda: {"shop.tasks": SyntaxError("invalid syntax")})
        assert "shop.tasks cannot be imported, so its tasks are missing: SyntaxError" in printed("list")


class TestRun:
    def test_task_is_sent(self, queue: TaskQueue) -> None:
        text = printed("run", greet.name, "--kwargs", '{"number": 7}', "--queue", "other", "--delay", "60")
        (job,) = queue.jobs
        assert text == f"Sent to queue 'other': {job.message_id}\n"
        assert (job.message.kwargs["number"], job.queue, job.delay) == (7, "other", 60)

    def test_sent_task_is_json(self, queue: TaskQueue) -> None:
        found = read("run", greet.name, "--kwargs", '{"number": 7}')
        assert found == {"id": queue.jobs[0].message_id, "task": greet.name, "queue": "default", "created": True}

    def test_wait_prints_the_result(self) -> None:
        with override_settings(LAMBDA_TASKS_EAGER=True):
            found = read("run", greet.name, "--kwargs", '{"number": 7}', "--wait", "1")
            assert (found["status"], found["result"]) == ("SUCCESS", "hi 7")
            with pytest.raises(CommandError, match="ValueError"):
                printed("run", fail.name, "--kwargs", '{"number": 7}', "--wait", "1")

    def test_wait_ends_in_time(self, queue: TaskQueue) -> None:
        with pytest.raises(CommandError, match="has not ended"):
            printed("run", greet.name, "--kwargs", '{"number": 7}', "--wait", "0")

    def test_failure_of_the_database_names_the_sent_task(
        self, queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: TaskHandle[Any], timeout: float) -> None:
            raise OperationalError("the server is away")

        monkeypatch.setattr(TaskHandle, "result", refuse)
        with pytest.raises(CommandError, match="The database has failed: the server is away") as raised:
            printed("run", greet.name, "--kwargs", '{"number": 7}', "--wait", "1")
        assert f"lambda_tasks inspect {queue.jobs[0].message_id}" in str(raised.value)

    def test_task_runs_in_this_process(self, queue: TaskQueue) -> None:
        found = read("run", greet.name, "--kwargs", '{"number": 7, "word": "ho"}', "--now")
        assert (found["status"], found["result"], queue.jobs) == ("SUCCESS", "ho 7", [])
        assert TaskRecord.objects.get(pk=found["id"]).status == "SUCCESS"

    def test_failure_in_this_process_is_an_error(self, queue: TaskQueue) -> None:
        with pytest.raises(CommandError, match="The task has failed") as raised:
            printed("run", fail.name, "--kwargs", '{"number": 7}', "--now")
        assert raised.value.returncode == 1
        assert TaskRecord.objects.get().status == "FAILED"

    def test_retry_of_this_process_is_sent(self, queue: TaskQueue) -> None:
        assert "RETRYING, Again, and its retry was sent" in printed(
            "run", retried.name, "--kwargs", '{"number": 7}', "--now"
        )
        assert queue.task_names == [retried.name]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["shop.greet"], "shop.greet"),
            (["greet"], "Task 'greet' is unknown: the name of a task is its module and its function"),
            ([greet.name], "must have the arguments of .*greet: number is missing"),
            ([greet.name, "--kwargs", "{number: 7}"], "--kwargs must be a JSON object"),
            ([greet.name, "--kwargs", "[7]"], "--kwargs must be a JSON object.*not list"),
            ([greet.name, "--kwargs", '{"number": "7"}'], "--kwargs must have the arguments of .*greet: number"),
            ([greet.name, "--kwargs", '{"number": 7}', "--queue", "none"], "none"),
            ([greet.name, "--kwargs", '{"number": 7}', "--delay", "-1"], "^--delay must be a whole number of seconds"),
        ],
    )
    def test_problem_is_named(self, queue: TaskQueue, arguments: list[str], message: str) -> None:
        with pytest.raises(CommandError, match=message):
            printed("run", *arguments)
        assert queue.jobs == []

    def test_duplicate_is_an_error(self, queue: TaskQueue) -> None:
        arguments = ("run", only.name, "--kwargs", '{"number": 7, "token": "secret"}')
        printed(*arguments)
        with pytest.raises(CommandError, match=queue.jobs[0].message_id):
            printed(*arguments)


class TestInspect:
    def test_chain_has_all_its_parts(self, queue: TaskQueue) -> None:
        handle = retried.execute_on_commit(number=3)
        queue.run_until_idle(raise_errors=False)
        last = TaskRecord.objects.get(n_retries=1)
        rerun = TaskRerun.objects.create(pk=uuid4(), original_id=last.pk, rerun_at=timezone.now(), username="ada")
        TaskProgress.objects.create(pk=last.pk, done=3, total=10, note="a part", updated_at=timezone.now())
        CancelRequest.objects.create(root_id=handle.message_id, requested_at=timezone.now())
        found = read("inspect", str(last.pk))
        assert (found["id"], found["root_id"], found["status"]) == (str(last.pk), handle.message_id, "FAILED")
        assert [(each["retry"], each["status"], each["reason"]) for each in found["chain"]] == [
            (0, "RETRYING", "error"),
            (1, "FAILED", "max_retries"),
        ]
        assert found["progress"]["done"] == 3
        assert found["reruns"][0]["id"] == str(rerun.pk)
        assert found["cancel_requested"] is not None
        text = printed("inspect", handle.message_id)
        assert text.startswith(f"task              {retried.name}\n")
        for part in (str(last.pk), "3 of 10 a part", str(rerun.pk), "ada", '"number": 3', "Traceback:"):
            assert part in text

    def test_waiting_message_is_found(self) -> None:
        outbox = {"BACKEND": OUTBOX, "OPTIONS": {"transport": "lambda_tasks.backends.memory.MemoryBackend"}}
        with override_settings(LAMBDA_TASKS_BACKEND=outbox, LAMBDA_TASKS_EAGER=False):
            handle = only.using(delay=100_000).execute_on_commit(number=7, token="secret")
            found = read("inspect", handle.message_id)
            text = printed("inspect", handle.message_id)
            assert printed("status", handle.message_id) == f"{handle.message_id}: WAITING\n"
        assert (found["status"], found["chain"], found["outbox"][0]["status"]) == ("WAITING", [], "WAITING")
        assert found["unique_keys"][0]["task"] == only.name
        assert only.name in text
        assert "secret" not in text + json.dumps(found)

    def test_retry_in_the_outbox_is_found(self) -> None:
        outbox = {"BACKEND": OUTBOX, "OPTIONS": {"transport": f"{__name__}.Closed"}}
        first = record(retried, status=TaskStatus.RETRYING)
        with override_settings(LAMBDA_TASKS_BACKEND=outbox, LAMBDA_TASKS_EAGER=False):
            key = retry_id(str(first.pk), 1)
            OutboxMessage.objects.create(id=key, task_name=retried.name, queue="default", created_at=timezone.now())
            assert [each["status"] for each in read("inspect", str(first.pk))["outbox"]] == ["DEAD"]

    def test_place_in_a_group_is_shown(self, queue: TaskQueue) -> None:
        group([greet.invocation(number=1), greet.invocation(number=2)]).execute_on_commit()
        second = queue.jobs[1]
        found = read("inspect", second.message_id)["flow"]
        assert (found["kind"], found["position"], found["size"], found["status"]) == ("group", 1, 2, "PENDING")
        assert f"group {found['id']}, place 2 of 2" in printed("inspect", second.message_id)

    @pytest.mark.parametrize("subcommand", ["inspect", "status"])
    def test_unknown_id_is_an_error(self, queue: TaskQueue, subcommand: str) -> None:
        with pytest.raises(CommandError, match=f"Nothing is known about {UNKNOWN}"):
            printed(subcommand, UNKNOWN)
        with pytest.raises(CommandError, match="must be a UUID"):
            printed(subcommand, "order 7")

    def test_status_has_a_line_for_each_id(self) -> None:
        first, second = record(), record(status=TaskStatus.SUCCESS)
        assert printed("status", str(first.pk), str(second.pk)) == f"{first.pk}: FAILED\n{second.pk}: SUCCESS\n"
        assert read("status", str(first.pk)) == [{"id": str(first.pk), "status": "FAILED"}]


class TestRetry:
    def test_oldest_failures_run_again_first(self, queue: TaskQueue) -> None:
        now = timezone.now()
        late, early = (
            record(start_time=now - timedelta(minutes=minutes), kwargs={"number": minutes}) for minutes in (1, 2)
        )
        record(status=TaskStatus.SUCCESS)
        record(greet)
        found = read("retry", "--task", fail.name)
        assert [each["id"] for each in found["records"]] == [str(early.pk), str(late.pk)]
        assert [job.message_id for job in queue.jobs] == [each["new_id"] for each in found["records"]]

    def test_second_command_finds_nothing(self, queue: TaskQueue) -> None:
        record()
        assert "1 record run again, 0 refused." in printed("retry")
        assert printed("retry") == "0 records run again, 0 refused.\n"
        assert len(queue.jobs) == 1

    def test_given_id_runs_again_at_any_time(self, queue: TaskQueue) -> None:
        key = str(record(status=TaskStatus.SUCCESS).pk)
        printed("retry", key)
        printed("retry", key, key)
        assert len(queue.jobs) == 2

    def test_filters_limit_the_records(self, queue: TaskQueue) -> None:
        now = timezone.now()
        keys = [str(record(start_time=now - timedelta(hours=hours)).pk) for hours in (5, 3, 1)]
        found = read("retry", "--since", "4h", "--until", f"{now - timedelta(hours=2):%Y-%m-%dT%H:%M:%S%z}")
        assert [each["id"] for each in found["records"]] == [keys[1]]
        assert [each["id"] for each in read("retry", "--limit", "1")["records"]] == [keys[0]]

    def test_dry_run_sends_nothing(self, queue: TaskQueue) -> None:
        record()
        masked = record(only, kwargs={"number": 1, "token": MASK})
        with pytest.raises(CommandError, match="1 record cannot be run again"):
            printed("retry", "--dry-run")
        assert queue.jobs == []
        assert not TaskRerun.objects.exists()
        masked.delete()
        assert "yes" in printed("retry", "--dry-run")

    def test_refused_record_does_not_stop_the_others(self, queue: TaskQueue) -> None:
        record(only, kwargs={"number": 1, "token": MASK}, start_time=timezone.now() - timedelta(hours=1))
        record()
        output = StringIO()
        with pytest.raises(CommandError, match="1 record cannot be run again"):
            call_command("lambda_tasks", "retry", stdout=output, skip_checks=True)
        assert "masks sensitive arguments: token" in output.getvalue()
        assert queue.task_names == [fail.name]

    def test_refused_messages_are_reported(self) -> None:
        record()
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.Closed", LAMBDA_TASKS_EAGER=False):
            output = StringIO()
            with pytest.raises(CommandError, match="1 record cannot be run again"):
                call_command("lambda_tasks", "retry", stdout=output, skip_checks=True)
        assert "was not sent: ConnectionError: the queue is closed" in output.getvalue()
        assert not TaskRerun.objects.exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([UNKNOWN], "has no record"),
            (["order 7"], "must be a UUID"),
            (["--limit", "0"], "--limit must be from 1 to 100000, not 0"),
        ],
    )
    def test_problem_is_named(self, queue: TaskQueue, arguments: list[str], message: str) -> None:
        with pytest.raises(CommandError, match=message):
            printed("retry", *arguments)


class TestTimes:
    @pytest.mark.parametrize("text", ["tomorrow", "2026-13-01", "999999d", "", "2h ago"])
    def test_other_text_is_refused(self, text: str) -> None:
        with pytest.raises(argparse.ArgumentTypeError, match="must be a time such as 2h"):
            moment(text)

    @pytest.mark.parametrize("use_tz", [True, False])
    def test_time_fits_the_stored_times(self, use_tz: bool) -> None:
        with override_settings(USE_TZ=use_tz, TIME_ZONE="Europe/Berlin"):
            for text in ("2h", "2026-05-02", "2026-05-02T09:30", "2026-05-02T07:30Z"):
                assert timezone.is_aware(moment(text)) == use_tz
            assert moment("2026-05-02T09:30") == moment("2026-05-02T07:30Z")

    def test_age_is_subtracted(self) -> None:
        assert abs(timezone.now() - moment("90m") - timedelta(minutes=90)) < timedelta(minutes=1)


class TestMaintenance:
    def test_cleanup_counts_and_deletes(self) -> None:
        record(start_time=timezone.now() - timedelta(days=8))
        record()
        assert read("cleanup", "--dry-run") == {"records": 1, "deleted": False}
        assert read("cleanup") == {"records": 1, "deleted": True}

    def test_cancelled_tasks_are_json(self) -> None:
        ended = record()
        waiting = str(uuid4())
        assert read("cancel", str(ended.pk), waiting) == [
            {"id": str(ended.pk), "cancelled": False},
            {"id": waiting, "cancelled": True},
        ]

    def test_results_of_maintenance_are_json(self, queue: TaskQueue) -> None:
        assert read("reap")["sent_again"] == 0
        assert read("tick") == {"sent": 0, "failed": 0} | read("tick")
        assert read("schedules") == []


class TestStats:
    def test_text_has_all_parts(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        record(traceback="Traceback …\nshop.errors.Refused: no", end_time=timezone.now(), reason="error")
        running = record(greet, status=TaskStatus.RUNNING)
        text = printed("stats", "--no-queues")
        for part in (
            "FAILED    1",
            "1 RUNNING, the oldest for ",
            f": {greet.name} [{running.pk}]",
            "Refused",
            "outbox of",
        ):
            assert part in text

    def test_json_has_every_statistic(self) -> None:
        record(traceback="KeyError", end_time=timezone.now())
        found = read("stats", "--hours", "2")
        assert found["started"]["FAILED"] == {"last_hour": 1, "in_window": 1}
        assert found["errors"][0]["error"] == "KeyError"
        assert sum(bucket["failed"] for bucket in found["throughput"]) == 1
        assert found["complete"] is True

    def test_prometheus_metrics_are_described(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        depth = statistics.Depth("default", 1, 2, 3, "dead", 4)
        monkeypatch.setattr(statistics, "depths", lambda: [depth])
        now = timezone.now()
        record(traceback="KeyError", end_time=now)
        record(status=TaskStatus.RUNNING)
        OutboxMessage.objects.create(id=uuid4(), created_at=now, due_at=now)

        def report() -> None: ...

        with own_tasks() as made:
            made(report, schedule=Every(minutes=5))
            text = printed("stats", "--format", "prometheus")
        assert [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")] == list(METRICS)
        assert 'lambda_tasks_started{status="FAILED"} 1\n' in text
        assert 'lambda_tasks_queue_messages{queue="default",state="in_flight"} 2\n' in text
        assert f'lambda_tasks_errors{{task="{fail.name}",error="KeyError",reason=""}} 1\n' in text

    def test_watch_prints_until_a_signal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []

        def wait(stop: Any, seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                stop.ask()

        monkeypatch.setattr(maintenance._Stop, "wait", wait)
        lines = printed("stats", "--watch", "5", "--format", "json").splitlines()
        assert pauses == [5, 5]
        assert len(list(map(json.loads, lines))) == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [(["--hours", "0"], "--hours must be more than 0"), (["--watch", "0"], "--watch must be from 0.5 to 3600")],
    )
    def test_problem_is_named(self, arguments: list[str], message: str) -> None:
        with pytest.raises(CommandError, match=message):
            printed("stats", *arguments)
