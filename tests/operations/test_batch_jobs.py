"""The command of a job on AWS Batch: the same pipeline, record, limits and retries as on Lambda, in a container."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections, transaction

from lambda_tasks import current_task, failpoints
from lambda_tasks.database.clock import LeaseNow
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidMessage, InvalidSignature, MessageTooLarge, UnknownTask
from lambda_tasks.execution import pipeline
from lambda_tasks.models import OutboxMessage
from lambda_tasks.operations.batch_jobs import GLANCE, JobFailed, run_job
from lambda_tasks.operations.reaping import reap
from lambda_tasks.strategies import get_store
from lambda_tasks.timeouts import SoftTimeLimitExceeded
from lambda_tasks.wire.ids import retry_id
from lambda_tasks.wire.job_environment import BODY, DELIVERY, JOB_ID
from tests.app.models import Effect
from tests.batch import Batch
from tests.faults.stopped_tasks import met
from tests.faults.workers import expire_lease, in_another_worker, record_of, stored_in

EVERYWHERE = pytest.mark.databases(transaction=True)
ROOT = Path(__file__).parents[2]


class OutOfMemory(Exception):
    """An error that a retry may cure."""


@lambda_task(queue="large")
def render(*, film: str) -> str | None:
    leave(film)
    return current_task().request_id


@lambda_task(queue="large", on_crash="fail")
def charge(*, film: str) -> None:
    leave(film)


@lambda_task(queue="large", retry_on=(OutOfMemory,), retry_delay=60)
def retried(*, film: str) -> None:
    leave(film)
    if current_task().attempt == 1:
        raise OutOfMemory


@lambda_task(queue="large")
def measured(*, film: str) -> int:
    return len(film)


@lambda_task(queue="large")
def failing(*, film: str) -> None:
    raise ValueError(film)


@lambda_task(queue="large", soft_timeout=1, hard_timeout=2)
def endless(*, film: str) -> None:
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        leave("soft limit")
        raise


@lambda_task(queue="large", singleton=True, on_contention="wait")
def alone(*, film: str) -> None:
    leave(film)


def leave(name: str) -> None:
    Effect.objects.using(get_store().database).create(name=name)


def effects() -> list[str]:
    return list(Effect.objects.using(get_store().database).order_by("pk").values_list("name", flat=True))


class Sleep:
    """Counts the seconds of pauses, and does something in each."""

    def __init__(self, work: Callable[[], Any] = lambda: None) -> None:
        self.pauses: list[float] = []
        self._work = work

    def __call__(self, seconds: float) -> None:
        if seconds:
            self.pauses.append(seconds)
            self._work()


@pytest.fixture(autouse=True)
def _store(request: pytest.FixtureRequest) -> Iterator[None]:
    if "database" not in request.fixturenames:
        yield
        return
    with stored_in(request.getfixturevalue("database")):
        yield


def submitted(batch: Batch, task: Any, *, attempt: int = 1, **kwargs: Any) -> tuple[str, dict[str, str]]:
    handle = task.execute_now(**kwargs)
    [environment] = [each for each in batch.environments(attempt=attempt) if handle.message_id in each[DELIVERY]]
    return handle.message_id, environment


@EVERYWHERE
class TestRunning:
    def test_job_runs_its_message(self, database: str, batch: Batch) -> None:
        message_id, environment = submitted(batch, render, film="Metropolis")

        assert run_job(environment) == "succeeded"

        record = record_of(message_id)
        assert (record.status, record.queue, record.kwargs) == ("SUCCESS", "large", {"film": "Metropolis"})
        assert record.result == environment[JOB_ID]  # the request id of the task
        assert effects() == ["Metropolis"]

    def test_failure_is_recorded_and_ends_the_job(self, database: str, batch: Batch) -> None:
        message_id, environment = submitted(batch, failing, film="Metropolis")
        assert run_job(environment) == "failed"
        assert record_of(message_id).status == "FAILED"
        assert run_job(environment) == "skipped (finished)"

    def test_retry_is_a_job_with_a_pause(self, database: str, batch: Batch) -> None:
        message_id, environment = submitted(batch, retried, film="Metropolis")
        assert run_job(environment) == "retry"
        assert record_of(message_id).status == "RETRYING"
        assert effects() == []

        [again] = [each for each in batch.environments() if each[DELIVERY] != environment[DELIVERY]]
        assert json.loads(again[BODY])["n_retries"] == 1
        sleep = Sleep()
        assert run_job(again, sleep=sleep) == "succeeded"

        [pause] = sleep.pauses
        assert 50 < pause <= 65  # retry_delay and jitter
        assert record_of(retry_id(message_id, 1)).status == "SUCCESS"
        assert effects() == ["Metropolis"]

    def test_second_copy_waits_and_runs_nothing(
        self, database: str, batch: Batch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SubmitJob was repeated, because its answer was lost: two jobs have the same message."""
        message_id, environment = submitted(batch, render, film="Metropolis")
        looks: list[float] = []

        def look(seconds: float) -> None:
            if seconds:
                looks.append(seconds)
                raise Waiting

        def start_copy(point: str) -> None:
            if point == "task:before_begin" and not looks:  # the first job has the claim
                with pytest.raises(Waiting):
                    in_another_worker(lambda: run_job(environment, sleep=look))

        monkeypatch.setattr(failpoints, "reached", start_copy)
        first = run_job(environment)

        assert (first, run_job(environment)) == ("succeeded", "skipped (finished)")
        assert looks == [GLANCE]
        assert effects() == ["Metropolis"]
        assert record_of(message_id).takeovers == 0

    def test_next_attempt_takes_over_when_the_lease_ends(self, database: str, batch: Batch) -> None:
        message_id, environment = submitted(batch, render, film="Metropolis", attempt=2)
        die(environment)
        sleep = Sleep(lambda: expire_lease(message_id) if len(sleep.pauses) == 3 else None)

        assert run_job(environment, sleep=sleep) == "succeeded"

        assert sleep.pauses == [GLANCE] * 3
        record = record_of(message_id)
        assert (record.status, record.takeovers) == ("SUCCESS", 1)
        assert effects() == ["Metropolis"]

    def test_next_attempt_fails_an_unrepeatable_task(self, database: str, batch: Batch) -> None:
        message_id, environment = submitted(batch, charge, film="Metropolis", attempt=2)
        die(environment)
        expire_lease(message_id)
        assert run_job(environment) == "failed"
        assert record_of(message_id).reason == "crashed"
        assert effects() == []

    def test_job_without_a_further_attempt_is_recovered(self, database: str, batch: Batch) -> None:
        message_id, environment = submitted(batch, render, film="Metropolis")
        die(environment)
        expire_lease(message_id)

        assert reap().sent_again == 1

        jobs = [each for each in batch.environments() if message_id in each[DELIVERY]]
        assert len(jobs) == 2
        assert [run_job(each) for each in jobs] == ["succeeded", "skipped (finished)"]
        assert effects() == ["Metropolis"]

    def test_waiting_for_a_lock_is_another_job(self, database: str, batch: Batch) -> None:
        from lambda_tasks.strategies import get_lock

        message_id, environment = submitted(batch, alone, film="Metropolis")
        key = f"lambda_tasks.singleton_lock.{alone.name}"
        assert get_lock().acquire(key, token="another", timeout=60)
        try:
            assert run_job(environment) == "skipped (waiting)"
        finally:
            get_lock().release(key, token="another")
        [again] = [
            each
            for each in batch.environments()
            if message_id in each[DELIVERY] and each[DELIVERY] != environment[DELIVERY]
        ]
        assert run_job(again, sleep=Sleep()) == "succeeded"
        assert effects() == ["Metropolis"]

    def test_outbox_is_relayed_at_the_end(
        self, database: str, batch: Batch, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lambda_tasks.maintenance._relayed_at", None)
        _, environment = submitted(batch, retried, film="Metropolis")
        settings.LAMBDA_TASKS_OUTBOX = True
        assert run_job(environment) == "retry"
        messages = OutboxMessage.objects.using(database)
        assert messages.count() == 1
        assert len(batch.jobs()) == 1  # the outbox keeps the retry until it is due, and no container waits

        messages.update(due_at=LeaseNow() - timedelta(seconds=1), run_at=None)
        monkeypatch.setattr("lambda_tasks.maintenance._relayed_at", None)
        assert run_job(environment) == "skipped (finished)"
        assert len(batch.jobs()) == 2


@pytest.mark.django_db(transaction=True)
def test_limits_are_those_of_the_task(batch: Batch) -> None:
    message_id, environment = submitted(batch, endless, film="Metropolis")
    assert run_job(environment) == "failed"
    assert record_of(message_id).reason == "soft_timeout"
    assert effects() == []


class Waiting(Exception):
    """The job would wait now."""


def die(environment: dict[str, str]) -> None:
    """Leave the record of an attempt whose host died while it ran the task."""

    def kill(point: str) -> None:
        if point == "task:leave":
            raise failpoints.WorkerKilled

    with pytest.MonkeyPatch.context() as patch, pytest.raises(failpoints.WorkerKilled):
        patch.setattr(failpoints, "reached", kill)
        run_job(environment)


class TestOutages:
    @pytest.fixture(autouse=True)
    def _no_database(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outages = 0

        def fail(*args: Any, **options: Any) -> Any:
            self.outages += 1
            raise OperationalError("the server is restarting")

        monkeypatch.setattr(pipeline, "claim", fail)

    @pytest.mark.django_db(transaction=True)
    def test_job_waits_for_minutes_and_then_fails(self, batch: Batch) -> None:
        _, environment = submitted(batch, render, film="Metropolis")
        sleep = Sleep()
        with pytest.raises(JobFailed, match=r"the database is unavailable\. The next attempt of the job"):
            run_job(environment, sleep=sleep)
        assert self.outages == 3
        first, second = sleep.pauses
        assert 20 <= first <= 25
        assert 200 <= second <= 250

    @pytest.mark.django_db(transaction=True)
    def test_later_attempts_wait_longer(self, batch: Batch) -> None:
        _, environment = submitted(batch, render, film="Metropolis", attempt=2)
        sleep = Sleep()
        with pytest.raises(JobFailed):
            run_job(environment, sleep=sleep)
        assert len(sleep.pauses) == 1


class TestUnusable:
    def test_task_that_does_not_exist(self, batch: Batch) -> None:
        _, environment = submitted(batch, render, film="Metropolis")
        with pytest.raises(UnknownTask):
            run_job({**environment, BODY: json.dumps({"task_name": "shop.none", "kwargs": {}})})

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({BODY: None}, "must have LAMBDA_TASKS_BODY and LAMBDA_TASKS_DELIVERY"),
            ({DELIVERY: "[]"}, "LAMBDA_TASKS_DELIVERY must be a JSON object"),
            ({DELIVERY: "{"}, "LAMBDA_TASKS_DELIVERY must be a JSON object"),
            ({DELIVERY: '{"attributes": {"a": 1}, "sent": 1}'}, "must have attributes that are strings"),
            ({DELIVERY: '{"attributes": {}, "sent": "now"}'}, "sent in LAMBDA_TASKS_DELIVERY must be a number of"),
            ({DELIVERY: '{"attributes": {}, "sent": 1, "not_before": true}'}, "not_before in LAMBDA_TASKS_DELIVERY"),
            ({BODY: "{}"}, "The message is not a valid task invocation"),
        ],
    )
    def test_malformed_environment(self, changed: dict[str, str | None], message: str) -> None:
        usual = {BODY: "{}", DELIVERY: '{"attributes": {}, "sent": 1}'}
        environment = {name: value for name, value in {**usual, **changed}.items() if value is not None}
        with pytest.raises(InvalidMessage, match=message):
            run_job(environment)


class TestCommand:
    @pytest.mark.django_db(transaction=True)
    def test_command_reads_its_environment(self, batch: Batch, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        message_id, environment = submitted(batch, render, film="Metropolis")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        call_command("lambda_tasks", "batch-job")
        assert capsys.readouterr().out == "The task of the job has ended: succeeded.\n"
        assert record_of(message_id).status == "SUCCESS"

    def test_statuses_tell_whether_another_attempt_helps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(BODY, raising=False)
        with pytest.raises(CommandError, match="LAMBDA_TASKS_BODY") as unusable:
            call_command("lambda_tasks", "batch-job")
        assert unusable.value.returncode == 2

        def fail(environment: object) -> str:
            raise JobFailed("the database is unavailable")

        monkeypatch.setattr("lambda_tasks.operations.batch_jobs.run_job", fail)
        with pytest.raises(CommandError, match="unavailable") as outage:
            call_command("lambda_tasks", "batch-job")
        assert outage.value.returncode == 1


@pytest.mark.thorough
@pytest.mark.once
@pytest.mark.django_db(databases=["default", "postgres"], transaction=True)
def test_killed_container_is_replaced_by_the_next_attempt(
    postgres: Any, batch: Batch, settings: Any, tmp_path: Path
) -> None:
    with stored_in("postgres"), socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        handle = met.using(queue="large").execute_now(name="work", port=listener.getsockname()[1])
        [environment] = batch.environments()
        of_database = {
            key: connections["postgres"].settings_dict[key]
            for key in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT")
        }
        container = {
            **os.environ,
            **environment,
            "DJANGO_SETTINGS_MODULE": "tests.faults.soak_settings",
            "SOAK_DATABASE": json.dumps(of_database),
            "SOAK_QUEUE": settings.LAMBDA_TASKS_QUEUES["default"],
            "SOAK_DIARY": str(tmp_path / "diary"),
            "PYTHONPATH": str(ROOT),
        }

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-m", "django", "lambda_tasks", "batch-job"], env=container)

        with start() as first:
            connection, _ = listener.accept()
            first.send_signal(signal.SIGKILL)
        connection.close()
        expire_lease(handle.message_id)
        with start() as second:
            connection, _ = listener.accept()
            connection.sendall(b"!")
            assert second.wait(30) == 0
        connection.close()
        assert record_of(handle.message_id).status == "SUCCESS"
        assert effects() == ["work"]


@pytest.mark.django_db(transaction=True)
class TestMessages:
    """What a message may be on SQS, it may be on AWS Batch."""

    def test_signed_job_runs(self, batch: Batch, settings: Any) -> None:
        settings.LAMBDA_TASKS_SIGNING_KEYS = ["k" * 32]
        message_id, environment = submitted(batch, render, film="Metropolis")
        assert '"signature":' in environment[BODY]
        assert run_job(environment) == "succeeded"
        assert (record_of(message_id).status, effects()) == ("SUCCESS", ["Metropolis"])

    @pytest.mark.parametrize("changed", ["M", None])
    def test_forged_job_is_refused(self, batch: Batch, settings: Any, changed: str | None) -> None:
        if changed is not None:
            settings.LAMBDA_TASKS_SIGNING_KEYS = ["k" * 32]
        _, environment = submitted(batch, render, film="Metropolis")
        settings.LAMBDA_TASKS_SIGNING_KEYS = ["k" * 32]
        if changed is not None:
            environment[BODY] = environment[BODY].replace("Metropolis", changed)
        with pytest.raises(InvalidSignature):
            run_job(environment)
        assert effects() == []

    def test_large_arguments_are_stored_outside_of_the_job(self, batch: Batch, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": "lambda_tasks.backends.sqs.SQSBackend",
            "OPTIONS": {"large_arguments": "database"},
        }
        film = "Metropolis " * 1_000
        with transaction.atomic():
            handle = measured.execute_on_commit(film=film)
        [environment] = batch.environments()
        assert len(environment[BODY]) < 1_000
        assert run_job(environment) == "succeeded"
        assert (record_of(handle.message_id).status, record_of(handle.message_id).result) == ("SUCCESS", len(film))

    def test_without_the_option_the_error_names_it(self, batch: Batch) -> None:
        with pytest.raises(MessageTooLarge, match="large_arguments"):
            render.execute_now(film="Metropolis " * 1_000)
