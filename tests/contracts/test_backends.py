"""Run the contract of transports against every transport of the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lambda_tasks.backends.eager import EagerBackend
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.exceptions import UnknownTask
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import Job, Run
from lambda_tasks.testing.contracts import BackendContract, Received
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE
from lambda_tasks.wire.invocation import Invocation
from tests.conftest import Sqs


def received(record: Mapping[str, Any]) -> Received:
    """Convert a record of a Lambda event into the form that the contract expects."""
    attributes = {name: value["stringValue"] for name, value in record["messageAttributes"].items()}
    return Received(record["body"], attributes)


class TestSQSBackend(BackendContract):
    """Run the contract against moto's SQS over HTTP."""

    sqs: Sqs

    @pytest.fixture
    def backend(self, sqs: Sqs, settings: Any) -> SQSBackend:
        self.sqs = sqs
        gone = sqs.queues["default"].replace("default", "deleted-by-somebody")
        settings.LAMBDA_TASKS_QUEUES = {**sqs.queues, "gone": gone}
        return SQSBackend()

    def received(self, backend: object) -> Sequence[Received]:
        messages = []
        while batch := self.sqs.receive():
            messages += batch
        return [
            Received(
                message["Body"], {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
            )
            for message in messages
        ]

    def unsendable(self, backend: object) -> Job:
        return self.new_job(queue="gone")


@pytest.mark.django_db(transaction=True)
class TestOutboxBackendBeforeSQS(TestSQSBackend):
    """Run the contract with rows that are locked while they are sent, if the database supports it."""

    @pytest.fixture
    def backend(self, sqs: Sqs, settings: Any) -> OutboxBackend:  # type: ignore[override]
        self.sqs = sqs
        gone = sqs.queues["default"].replace("default", "deleted-by-somebody")
        settings.LAMBDA_TASKS_QUEUES = {**sqs.queues, "gone": gone}
        return OutboxBackend()

    def test_unsendable_job_waits(self, backend: OutboxBackend) -> None:
        bad = self.unsendable(backend)
        self.give(backend, [bad], taken=[].append)
        assert backend.status(bad.message_id, database=bad.database) == "WAITING"


@pytest.mark.django_db(transaction=True)
class TestOutboxBackendBeforeMemoryBackend(BackendContract):
    """Run the contract with rows that are postponed while they are sent, because the workers are in this process."""

    honours_delay = False

    @pytest.fixture
    def backend(self) -> OutboxBackend:
        return OutboxBackend(transport="lambda_tasks.backends.memory.MemoryBackend")

    def received(self, backend: Any) -> Sequence[Received]:
        return [received(record) for record in backend.transport.take_records()]


class CallbackBackend(MemoryBackend):
    """A transport of an earlier version, which reports with a callback."""

    def send(self, jobs: Sequence[Job], *, taken: Any) -> None:  # type: ignore[override]
        errors: list[Exception] = []
        for job in jobs:
            if job.queue == "gone":
                errors.append(ConnectionError("There is no such queue."))
            else:
                super().send([job], taken=taken)  # type: ignore[call-arg]
        if errors:
            raise errors[0]


class TestCallbackBackend(BackendContract):
    honours_delay = False

    @pytest.fixture
    def backend(self, settings: Any) -> CallbackBackend:
        settings.LAMBDA_TASKS_QUEUES = {**settings.LAMBDA_TASKS_QUEUES, "gone": "gone"}
        return CallbackBackend()

    def received(self, backend: Any) -> Sequence[Received]:
        return [received(record) for record in backend.take_records()]

    def unsendable(self, backend: object) -> Job:
        return self.new_job(queue="gone")


class TestMemoryBackend(BackendContract):
    honours_delay = False  # it stores the delay, and the test has to wait

    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()

    def received(self, backend: Any) -> Sequence[Received]:
        return [received(record) for record in backend.take_records()]

    def test_jobs_are_shown_as_sent(self, backend: MemoryBackend) -> None:
        job = self.new_job(delay=30, queue="other")
        list(backend.send([job]))
        assert backend.jobs == [job]

    def test_oldest_records_are_taken_first(self, backend: MemoryBackend) -> None:
        jobs = self.new_jobs(5)
        list(backend.send(jobs))
        assert [record["messageId"] for record in backend.take_records(2)] == [job.message_id for job in jobs[:2]]
        assert [record["messageId"] for record in backend.take_records()] == [job.message_id for job in jobs[2:]]
        assert backend.take_records() == []


class RecordedRuns:
    """A plugin that records the runs as messages that a worker would have received."""

    def __init__(self) -> None:
        self.messages: list[Received] = []

    @hookimpl
    def lambda_task_started(self, run: Run) -> None:
        ids = {MESSAGE_ID_ATTRIBUTE: run.message_id, ROOT_ID_ATTRIBUTE: run.root_id}
        self.messages.append(Received(run.message.to_body(), ids))


@pytest.mark.django_db(transaction=True)
class TestEagerBackend(BackendContract):
    honours_delay = False
    carries_attributes = False

    @pytest.fixture
    def runs(self, settings: Any) -> RecordedRuns:
        runs = RecordedRuns()
        settings.LAMBDA_TASKS_PLUGINS = [runs]
        return runs

    @pytest.fixture
    def backend(self, runs: RecordedRuns) -> EagerBackend:
        self.runs = runs
        return EagerBackend()

    def received(self, backend: object) -> Sequence[Received]:
        messages, self.runs.messages = self.runs.messages, []
        return messages

    def unsendable(self, backend: object) -> Job:
        message = Invocation(task_name=f"{__name__}.removed_yesterday")
        return replace(self.new_job(), message=message, message_id=ids.new_message_id(), task=None)

    def test_first_error_is_raised_after_the_last_task(self, backend: EagerBackend) -> None:
        bad = self.unsendable(backend)
        with pytest.raises(UnknownTask, match="removed_yesterday"):
            list(backend.send([bad, self.new_job()]))
        assert len(self.received(backend)) == 1
