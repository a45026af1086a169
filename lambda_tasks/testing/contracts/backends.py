"""What every transport must hold."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from django.core.checks import CheckMessage
from django.db import transaction

from lambda_tasks import identity
from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.exceptions import UnknownQueue
from lambda_tasks.jobs import MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE, Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.testing.contracts.crowd import (
    CROWD,
    example,
    ignore,
    together,
)


@dataclass(frozen=True, slots=True)
class Received:
    """A message as a worker gets it: its body, and its attributes that are text."""

    body: str
    attributes: Mapping[str, str]

    @property
    def message_id(self) -> str:
        return self.attributes[MESSAGE_ID_ATTRIBUTE]


class BackendContract:
    """What every transport holds; override `backend` and `received`, and `unsendable` if you can.

    LAMBDA_TASKS_QUEUES must have the queue "default" while the tests run. A transport that runs jobs
    itself meets the task `lambda_tasks.testing.contracts.example`. One that keeps jobs, in the database
    of the jobs, needs a subclass with pytest-django's `django_db(transaction=True)`.
    """

    #: Whether a job with a delay is kept from workers until then.
    honours_delay: ClassVar[bool] = True
    #: Whether attributes that plugins add arrive too; the ids always do.
    carries_attributes: ClassVar[bool] = True

    @pytest.fixture
    def backend(self) -> BaseBackend:
        """Override: return the transport under test, with nothing on its queues."""
        raise NotImplementedError

    def received(self, backend: BaseBackend) -> Sequence[Received]:
        """Override: take everything off the queue "default" that a worker can receive now."""
        raise NotImplementedError

    def unsendable(self, backend: BaseBackend) -> Job | None:
        """Override if there is such a thing: return a job that cannot be sent, whatever `validate()` says."""
        return None

    def new_job(
        self,
        *,
        number: int = 0,
        text: str = "",
        queue: str = "default",
        delay: int = 0,
        root_id: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Job:
        """Return a job for `example`; override it if your transport needs another task."""
        message_id = identity.new_message_id()
        return Job(
            message=SQSLambdaTaskMessage(task_name=example.name, kwargs={"number": number, "text": text}),
            message_id=message_id,
            root_id=root_id or message_id,
            queue=queue,
            delay=delay,
            attributes=dict(attributes or {}),
            task=example,
        )

    def new_jobs(self, count: int) -> list[Job]:
        return [self.new_job(number=number) for number in range(count)]

    def give(self, backend: BaseBackend, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        """Have `jobs` sent as the library does: those of a transport that keeps jobs are kept before."""
        if backend.keeps and jobs:
            backend.keep(jobs, using=jobs[0].database)
        backend.send(jobs, taken=taken)

    @pytest.mark.parametrize("count", [1, 2, 10, 11, 25])
    def test_every_job_arrives_once_and_is_reported_taken_once(self, backend: BaseBackend, count: int) -> None:
        jobs = self.new_jobs(count)
        taken: list[Job] = []
        self.give(backend, jobs, taken=taken.append)
        assert Counter(job.message_id for job in taken) == Counter(job.message_id for job in jobs)
        arrived = Counter(message.message_id for message in self.received(backend))
        assert arrived == Counter(job.message_id for job in jobs)

    def test_what_is_reported_taken_is_the_job_that_was_given(self, backend: BaseBackend) -> None:
        jobs = self.new_jobs(2)
        taken: list[Job] = []
        self.give(backend, jobs, taken=taken.append)
        assert {id(job) for job in taken} == {id(job) for job in jobs}

    def test_nothing_to_send_is_no_error(self, backend: BaseBackend) -> None:
        taken: list[Job] = []
        self.give(backend, [], taken=taken.append)
        assert taken == []
        assert list(self.received(backend)) == []

    def test_the_ids_travel_beside_the_body(self, backend: BaseBackend) -> None:
        root_id = identity.new_message_id()
        job = self.new_job(root_id=root_id)
        self.give(backend, [job], taken=ignore)
        [message] = self.received(backend)
        assert message.attributes[MESSAGE_ID_ATTRIBUTE] == job.message_id
        assert message.attributes[ROOT_ID_ATTRIBUTE] == root_id

    def test_the_body_is_the_documented_schema_and_nothing_else(self, backend: BaseBackend) -> None:
        self.give(backend, [self.new_job(number=7, text="x")], taken=ignore)
        [message] = self.received(backend)
        assert json.loads(message.body) == {"task_name": example.name, "kwargs": {"number": 7, "text": "x"}}

    def test_the_body_of_a_retry_says_which_one_it_is(self, backend: BaseBackend) -> None:
        first = self.new_job(number=7)
        retry = dataclasses.replace(first, message=first.message.next_retry())
        self.give(backend, [retry], taken=ignore)
        [message] = self.received(backend)
        assert json.loads(message.body) == {
            "task_name": example.name,
            "kwargs": {"number": 7, "text": ""},
            "n_retries": 1,
        }

    @pytest.mark.parametrize(
        "text", ["ünï", "\U0001f600", '"\\/', "\t\r\n", "\x01\x7f", "\uffff\ufffe\ufdd0", "\u2028", "]]>", "x" * 9_999]
    )
    def test_any_text_arrives_as_it_was_sent(self, backend: BaseBackend, text: str) -> None:
        self.give(backend, [self.new_job(text=text)], taken=ignore)
        [message] = self.received(backend)
        assert SQSLambdaTaskMessage.from_body(message.body).kwargs["text"] == text

    def test_the_attributes_of_plugins_arrive_too(self, backend: BaseBackend) -> None:
        if not self.carries_attributes:
            pytest.skip("this transport carries no attributes but the ids")
        self.give(backend, [self.new_job(attributes={"traceparent": "00-4bf9-00f0-01"})], taken=ignore)
        [message] = self.received(backend)
        assert message.attributes["traceparent"] == "00-4bf9-00f0-01"

    def test_an_attribute_cannot_replace_the_ids(self, backend: BaseBackend) -> None:
        job = self.new_job(attributes={MESSAGE_ID_ATTRIBUTE: "forged", ROOT_ID_ATTRIBUTE: "forged"})
        self.give(backend, [job], taken=ignore)
        [message] = self.received(backend)
        assert message.message_id == job.message_id
        assert message.attributes[ROOT_ID_ATTRIBUTE] == job.root_id

    def test_a_job_for_a_queue_that_is_set_is_accepted(self, backend: BaseBackend) -> None:
        backend.validate(self.new_job())

    def test_a_queue_that_is_not_set_is_refused_at_the_call(self, backend: BaseBackend) -> None:
        with pytest.raises(UnknownQueue, match="no-such-queue"):
            backend.validate(self.new_job(queue="no-such-queue"))

    def test_a_delayed_job_is_taken_now_and_received_later(self, backend: BaseBackend) -> None:
        if not self.honours_delay:
            pytest.skip("this transport knows no delay")
        taken: list[Job] = []
        delayed, prompt = self.new_job(delay=900), self.new_job()
        self.give(backend, [delayed, prompt], taken=taken.append)
        assert {job.message_id for job in taken} == {delayed.message_id, prompt.message_id}
        assert [message.message_id for message in self.received(backend)] == [prompt.message_id]

    def test_what_cannot_be_sent_keeps_nothing_else_from_being_sent(self, backend: BaseBackend) -> None:
        bad = [self.unsendable(backend), self.unsendable(backend)]
        if None in bad:
            pytest.skip("this transport can send everything")
        good = self.new_jobs(3)
        taken: list[Job] = []
        jobs = [job for job in (good[0], bad[0], good[1], bad[1], good[2]) if job is not None]
        # Whatever the transport raises; one that has kept them does not, and tries again later.
        with nullcontext() if backend.keeps else pytest.raises(Exception):  # noqa: PT011
            self.give(backend, jobs, taken=taken.append)
        sent = [job.message_id for job in good]
        assert sorted(message.message_id for message in self.received(backend)) == sorted(sent)
        assert sorted(job.message_id for job in taken if job in good) == sorted(sent)

    def ends(self, backend: BaseBackend, jobs: Sequence[Job]) -> dict[str, list[tuple[Job, Exception | None]]]:
        """Send `jobs` and return which of them were taken, failed and refused, as the transport says of each."""
        ends: dict[str, list[tuple[Job, Exception | None]]] = {"taken": [], "failed": [], "refused": []}
        if backend.keeps and jobs:
            backend.keep(jobs, using=jobs[0].database)
        backend.send_each(
            jobs,
            taken=lambda job: ends["taken"].append((job, None)),
            failed=lambda job, error: ends["failed"].append((job, error)),
            refused=lambda job, error: ends["refused"].append((job, error)),
        )
        return ends

    @pytest.mark.parametrize("count", [0, 1, 11])
    def test_of_each_job_that_is_sent_it_says_once_that_it_was_taken(self, backend: BaseBackend, count: int) -> None:
        jobs = self.new_jobs(count)
        ends = self.ends(backend, jobs)
        assert Counter(id(job) for job, _ in ends["taken"]) == Counter(id(job) for job in jobs)
        assert ends["failed"] == ends["refused"] == []
        arrived = Counter(message.message_id for message in self.received(backend))
        assert arrived == Counter(job.message_id for job in jobs)

    def test_of_each_job_that_cannot_be_sent_it_says_once_why_and_raises_nothing(self, backend: BaseBackend) -> None:
        bad = [job for job in (self.unsendable(backend), self.unsendable(backend)) if job is not None]
        if not bad:
            pytest.skip("this transport can send everything")
        good = self.new_jobs(3)
        ends = self.ends(backend, [good[0], bad[0], good[1], bad[1], good[2]])
        told = Counter(job.message_id for end in ends.values() for job, _ in end)
        assert told == Counter(job.message_id for job in (*good, *bad))
        assert {job.message_id for job in good} <= {job.message_id for job, _ in ends["taken"]}
        assert all(isinstance(error, Exception) for job, error in (*ends["failed"], *ends["refused"]))
        sent = [job.message_id for job in good]
        assert sorted(message.message_id for message in self.received(backend)) == sorted(sent)

    def test_what_is_kept_again_is_one_message(self, backend: BaseBackend) -> None:
        if not backend.keeps:
            pytest.skip("this transport keeps nothing")
        [job, other] = self.new_jobs(2)
        backend.keep([job], using=job.database)
        taken: list[Job] = []
        self.give(backend, [job, other], taken=taken.append)
        assert taken == [job, other]
        assert sorted(message.message_id for message in self.received(backend)) == sorted(
            [job.message_id, other.message_id]
        )

    def test_what_is_kept_in_a_transaction_that_is_rolled_back_is_not_sent(self, backend: BaseBackend) -> None:
        if not backend.keeps:
            pytest.skip("this transport keeps nothing")
        [job] = self.new_jobs(1)
        with transaction.atomic(using=job.database):
            backend.keep([job], using=job.database)
            transaction.set_rollback(True, using=job.database)
        taken: list[Job] = []
        backend.send([job], taken=taken.append)
        assert taken == []
        assert list(self.received(backend)) == []

    def test_a_job_that_it_knows_nothing_of_has_no_status(self, backend: BaseBackend) -> None:
        [job] = self.new_jobs(1)
        assert backend.status(job.message_id, database=job.database) is None

    def test_threads_may_send_at_once(self, backend: BaseBackend) -> None:
        jobs = [self.new_job(number=number) for number in range(CROWD)]
        taken: list[Job] = []
        together(CROWD, lambda number: self.give(backend, [jobs[number]], taken=taken.append))
        sent = Counter(job.message_id for job in jobs)
        assert Counter(job.message_id for job in taken) == sent
        assert Counter(message.message_id for message in self.received(backend)) == sent

    @pytest.mark.parametrize(
        "record",
        [
            {},
            {"messageId": "1", "receiptHandle": None, "eventSourceARN": None},
            {"messageId": "1", "receiptHandle": "unknown", "eventSourceARN": "arn:aws:sqs:eu-west-1:1:default"},
        ],
        ids=["empty", "nothing in it", "unknown receipt"],
    )
    def test_postponing_never_raises(self, backend: BaseBackend, record: dict[str, Any]) -> None:
        backend.postpone([])
        backend.postpone([(record, 0), (record, 12.5)])

    def test_its_checks_are_django_messages(self, backend: BaseBackend) -> None:
        assert all(isinstance(message, CheckMessage) for message in backend.check())
