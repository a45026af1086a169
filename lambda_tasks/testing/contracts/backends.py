"""The contract of transports."""

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

from lambda_tasks.backends.base import BaseBackend, Refused, SendResult, Taken, Unsent
from lambda_tasks.exceptions import UnknownQueue
from lambda_tasks.jobs import Job
from lambda_tasks.testing.contracts.crowd import CROWD, example, ignore, together
from lambda_tasks.wire import ids
from lambda_tasks.wire.attributes import FLOW_ATTRIBUTE, MESSAGE_ID_ATTRIBUTE, ROOT_ID_ATTRIBUTE
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.marks import mark


@dataclass(frozen=True, slots=True)
class Received:
    """A message that a worker receives: its body, and its string attributes."""

    body: str
    attributes: Mapping[str, str]

    @property
    def message_id(self) -> str:
        return self.attributes[MESSAGE_ID_ATTRIBUTE]


class BackendContract:
    """Tests that every transport must pass. Override `backend` and `received`, and `unsendable` if possible.

    LAMBDA_TASKS_QUEUES must contain the queue "default" while the tests run. A transport that runs jobs itself runs
    the task `lambda_tasks.testing.contracts.example`. A transport that keeps jobs in their database needs a subclass
    with pytest-django's `django_db(transaction=True)`.
    """

    #: Whether workers receive a delayed job only after its delay.
    honours_delay: ClassVar[bool] = True
    #: Whether attributes that plugins add arrive too. The ids always arrive.
    carries_attributes: ClassVar[bool] = True

    @pytest.fixture
    def backend(self) -> BaseBackend:
        """Override: return the transport under test, with empty queues."""
        raise NotImplementedError

    # Subclasses narrow the argument of these methods to their own class, which type checkers allow for Any.

    def received(self, backend: Any) -> Sequence[Received]:
        """Override: remove all messages that a worker can receive now from the queue "default", and return them."""
        raise NotImplementedError

    def unsendable(self, backend: Any) -> Job | None:
        """Override if there are such jobs: return a job that cannot be sent, even if `validate()` accepts it."""
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
        """Return a job for `example`. Override this if your transport needs another task."""
        message_id = ids.new_message_id()
        return Job(
            message=Invocation(task_name=example.name, kwargs={"number": number, "text": text}),
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
        """Send `jobs` like the library does: first keep them, if the transport keeps jobs."""
        results, error = self.results(backend, jobs)
        for result in results:
            if isinstance(result, Taken):
                taken(result.job)
        failures = [result.error for result in results if isinstance(result, Unsent | Refused)]
        if failures or error is not None:
            raise failures[0] if failures else error or AssertionError

    @pytest.mark.parametrize("count", [1, 2, 10, 11, 25])
    def test_every_job_arrives_and_is_reported_once(self, backend: BaseBackend, count: int) -> None:
        jobs = self.new_jobs(count)
        taken: list[Job] = []
        self.give(backend, jobs, taken=taken.append)
        assert Counter(job.message_id for job in taken) == Counter(job.message_id for job in jobs)
        arrived = Counter(message.message_id for message in self.received(backend))
        assert arrived == Counter(job.message_id for job in jobs)

    def test_same_job_object_is_reported_as_taken(self, backend: BaseBackend) -> None:
        jobs = self.new_jobs(2)
        taken: list[Job] = []
        self.give(backend, jobs, taken=taken.append)
        assert {id(job) for job in taken} == {id(job) for job in jobs}

    def test_sending_no_jobs_succeeds(self, backend: BaseBackend) -> None:
        taken: list[Job] = []
        self.give(backend, [], taken=taken.append)
        assert taken == []
        assert list(self.received(backend)) == []

    def test_ids_travel_as_attributes(self, backend: BaseBackend) -> None:
        root_id = ids.new_message_id()
        first = self.new_job(root_id=root_id)
        # Use a retry, because a first invocation has only one id, which is also its root.
        job = dataclasses.replace(first, message=first.message.next_retry(), message_id=ids.retry_id(root_id, 1))
        self.give(backend, [job], taken=ignore)
        [message] = self.received(backend)
        assert message.attributes[MESSAGE_ID_ATTRIBUTE] == job.message_id
        assert message.attributes[ROOT_ID_ATTRIBUTE] == root_id

    def test_mark_of_a_followed_job_travels(self, backend: BaseBackend) -> None:
        if not self.carries_attributes:
            pytest.skip("this transport carries only the ids")
        job = dataclasses.replace(self.new_job(), flow=mark(call=True))
        self.give(backend, [job], taken=ignore)
        [message] = self.received(backend)
        assert message.attributes[FLOW_ATTRIBUTE] == job.flow

    def test_body_has_exactly_the_documented_schema(self, backend: BaseBackend) -> None:
        self.give(backend, [self.new_job(number=7, text="x")], taken=ignore)
        [message] = self.received(backend)
        assert json.loads(message.body) == {"task_name": example.name, "kwargs": {"number": 7, "text": "x"}}

    def test_retry_body_contains_its_number(self, backend: BaseBackend) -> None:
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
    def test_any_string_arrives_unchanged(self, backend: BaseBackend, text: str) -> None:
        self.give(backend, [self.new_job(text=text)], taken=ignore)
        [message] = self.received(backend)
        assert Invocation.of_body(message.body).kwargs["text"] == text

    def test_plugin_attributes_arrive(self, backend: BaseBackend) -> None:
        if not self.carries_attributes:
            pytest.skip("this transport carries only the ids")
        self.give(backend, [self.new_job(attributes={"traceparent": "00-4bf9-00f0-01"})], taken=ignore)
        [message] = self.received(backend)
        assert message.attributes["traceparent"] == "00-4bf9-00f0-01"

    def test_attribute_cannot_replace_the_ids(self, backend: BaseBackend) -> None:
        job = self.new_job(attributes={MESSAGE_ID_ATTRIBUTE: "forged", ROOT_ID_ATTRIBUTE: "forged"})
        self.give(backend, [job], taken=ignore)
        [message] = self.received(backend)
        assert message.message_id == job.message_id
        assert message.attributes[ROOT_ID_ATTRIBUTE] == job.root_id

    def test_job_for_a_configured_queue_is_accepted(self, backend: BaseBackend) -> None:
        backend.validate(self.new_job())

    def test_unknown_queue_is_refused_at_the_call(self, backend: BaseBackend) -> None:
        with pytest.raises(UnknownQueue, match="no-such-queue"):
            backend.validate(self.new_job(queue="no-such-queue"))

    def test_delayed_job_is_taken_now_and_received_later(self, backend: BaseBackend) -> None:
        if not self.honours_delay:
            pytest.skip("this transport does not support delays")
        taken: list[Job] = []
        delayed, prompt = self.new_job(delay=900), self.new_job()
        self.give(backend, [delayed, prompt], taken=taken.append)
        assert {job.message_id for job in taken} == {delayed.message_id, prompt.message_id}
        assert [message.message_id for message in self.received(backend)] == [prompt.message_id]

    def test_unsendable_jobs_do_not_block_other_jobs(self, backend: BaseBackend) -> None:
        bad = [self.unsendable(backend), self.unsendable(backend)]
        if None in bad:
            pytest.skip("this transport can send everything")
        good = self.new_jobs(3)
        taken: list[Job] = []
        jobs = [job for job in (good[0], bad[0], good[1], bad[1], good[2]) if job is not None]
        # A transport may raise any exception, unless it keeps jobs and tries again later.
        with nullcontext() if backend.keeps else pytest.raises(Exception):  # noqa: PT011
            self.give(backend, jobs, taken=taken.append)
        sent = [job.message_id for job in good]
        assert sorted(message.message_id for message in self.received(backend)) == sorted(sent)
        assert sorted(job.message_id for job in taken if job in good) == sorted(sent)

    def results(self, backend: BaseBackend, jobs: Sequence[Job]) -> tuple[list[SendResult], Exception | None]:
        """Send `jobs`, and return the results and the exception of the transport.

        The exception is the result of all jobs that have none.
        """
        if backend.keeps and jobs:
            backend.keep(jobs, using=jobs[0].database)
        results: list[SendResult] = []
        try:
            for result in backend.send(jobs):
                results.append(result)
        except Exception as error:
            done = {result.job.message_id for result in results}
            return [*results, *(Unsent(job, error) for job in jobs if job.message_id not in done)], error
        return results, None

    @pytest.mark.parametrize("count", [0, 1, 11])
    def test_each_sent_job_is_reported_once_as_taken(self, backend: BaseBackend, count: int) -> None:
        jobs = self.new_jobs(count)
        results, _ = self.results(backend, jobs)
        assert Counter(id(result.job) for result in results) == Counter(id(job) for job in jobs)
        assert all(isinstance(result, Taken) for result in results)
        arrived = Counter(message.message_id for message in self.received(backend))
        assert arrived == Counter(job.message_id for job in jobs)

    def test_unsendable_job_is_reported_once_with_its_error(self, backend: BaseBackend) -> None:
        """`send_each()` raises nothing itself."""
        bad = [job for job in (self.unsendable(backend), self.unsendable(backend)) if job is not None]
        if not bad:
            pytest.skip("this transport can send everything")
        good = self.new_jobs(3)
        results, _ = self.results(backend, [good[0], bad[0], good[1], bad[1], good[2]])
        assert Counter(result.job.message_id for result in results) == Counter(job.message_id for job in (*good, *bad))
        assert {job.message_id for job in good} <= {r.job.message_id for r in results if isinstance(r, Taken)}
        not_sent = [result for result in results if isinstance(result, Unsent | Refused)]
        assert all(isinstance(result.error, Exception) for result in not_sent)
        sent = [job.message_id for job in good]
        assert sorted(message.message_id for message in self.received(backend)) == sorted(sent)

    def test_keeping_a_job_twice_sends_one_message(self, backend: BaseBackend) -> None:
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

    def test_rolled_back_job_is_not_sent(self, backend: BaseBackend) -> None:
        if not backend.keeps:
            pytest.skip("this transport keeps nothing")
        [job] = self.new_jobs(1)
        with transaction.atomic(using=job.database):
            backend.keep([job], using=job.database)
            transaction.set_rollback(True, using=job.database)
        assert not [result for result in backend.send([job]) if isinstance(result, Taken)]
        assert list(self.received(backend)) == []

    def test_direct_transport_sends_immediately(self, backend: BaseBackend) -> None:
        try:
            direct = backend.direct
        except NotImplementedError:
            pytest.skip("this transport keeps jobs, and cannot send them immediately")
        assert direct.keeps is False
        job = self.new_job()
        direct.validate(job)
        results, error = self.results(direct, [job])
        assert (list(map(type, results)), error) == ([Taken], None)
        assert [message.message_id for message in self.received(backend)] == [job.message_id]

    def test_unknown_job_has_no_status(self, backend: BaseBackend) -> None:
        [job] = self.new_jobs(1)
        assert backend.status(job.message_id, database=job.database) is None

    def test_threads_may_send_simultaneously(self, backend: BaseBackend) -> None:
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

    def test_checks_return_django_messages(self, backend: BaseBackend) -> None:
        assert all(isinstance(message, CheckMessage) for message in backend.check())
