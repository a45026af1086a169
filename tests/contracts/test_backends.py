"""The contract of transports over every transport that comes with the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lambda_tasks import identity
from lambda_tasks.backends.eager import EagerBackend
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.exceptions import UnknownTask
from lambda_tasks.hookspecs import hookimpl
from lambda_tasks.jobs import MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE, Job, Run
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.testing.contracts import BackendContract, Received
from tests.conftest import Sqs


def received(record: Mapping[str, Any]) -> Received:
    """Return a record of a Lambda event as the contract wants it."""
    attributes = {name: value["stringValue"] for name, value in record["messageAttributes"].items()}
    return Received(record["body"], attributes)


class TestSQSBackend(BackendContract):
    """Against moto's SQS, over HTTP."""

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
    """Rows are locked while they are sent, where the database can do that."""

    @pytest.fixture
    def backend(self, sqs: Sqs, settings: Any) -> OutboxBackend:  # type: ignore[override]
        self.sqs = sqs
        gone = sqs.queues["default"].replace("default", "deleted-by-somebody")
        settings.LAMBDA_TASKS_QUEUES = {**sqs.queues, "gone": gone}
        return OutboxBackend()

    def test_what_could_not_be_sent_waits(self, backend: OutboxBackend) -> None:
        bad = self.unsendable(backend)
        self.give(backend, [bad], taken=[].append)
        assert backend.status(bad.message_id, database=bad.database) == "WAITING"


@pytest.mark.django_db(transaction=True)
class TestOutboxBackendBeforeAQueueInMemory(BackendContract):
    """Rows are put off for a minute while they are sent, since the workers are in this process."""

    honours_delay = False

    @pytest.fixture
    def backend(self) -> OutboxBackend:
        return OutboxBackend(transport="lambda_tasks.backends.memory.MemoryBackend")

    def received(self, backend: Any) -> Sequence[Received]:
        return [received(record) for record in backend.transport.take_records()]


class TestMemoryBackend(BackendContract):
    honours_delay = False  # it shows the delay, and leaves the waiting to the test

    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()

    def received(self, backend: Any) -> Sequence[Received]:
        return [received(record) for record in backend.take_records()]

    def test_it_shows_the_jobs_as_they_were_sent(self, backend: MemoryBackend) -> None:
        job = self.new_job(delay=30, queue="other")
        backend.send([job], taken=[].append)
        assert backend.jobs == [job]

    def test_records_are_taken_from_the_oldest_on(self, backend: MemoryBackend) -> None:
        jobs = self.new_jobs(5)
        backend.send(jobs, taken=[].append)
        assert [record["messageId"] for record in backend.take_records(2)] == [job.message_id for job in jobs[:2]]
        assert [record["messageId"] for record in backend.take_records()] == [job.message_id for job in jobs[2:]]
        assert backend.take_records() == []


class RunsSeen:
    """A plugin that writes down what is run, as what a worker would have received."""

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
    def runs(self, settings: Any) -> RunsSeen:
        runs = RunsSeen()
        settings.LAMBDA_TASKS_PLUGINS = [runs]
        return runs

    @pytest.fixture
    def backend(self, runs: RunsSeen) -> EagerBackend:
        self.runs = runs
        return EagerBackend()

    def received(self, backend: object) -> Sequence[Received]:
        messages, self.runs.messages = self.runs.messages, []
        return messages

    def unsendable(self, backend: object) -> Job:
        message = SQSLambdaTaskMessage(task_name=f"{__name__}.removed_yesterday")
        return replace(self.new_job(), message=message, message_id=identity.new_message_id(), task=None)

    def test_the_first_error_is_raised_when_the_line_is_empty(self, backend: EagerBackend) -> None:
        bad = self.unsendable(backend)
        with pytest.raises(UnknownTask, match="removed_yesterday"):
            backend.send([bad, self.new_job()], taken=[].append)
        assert len(self.received(backend)) == 1
