"""Jobs on AWS Batch: what is submitted, when, and what is refused before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import transaction

from lambda_tasks.backends import batch_jobs
from lambda_tasks.backends.batch_jobs import MAX_OVERRIDES, job_name
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidSetting, MessageTooLarge
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage
from lambda_tasks.operations.checks import check_settings
from lambda_tasks.real_aws import RealQueueRefused
from lambda_tasks.settings import JobQueue, app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import new_message_id
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.job_environment import BODY, DELIVERY
from tests.batch import Batch

ARNS = {
    "job_queue_arn": "arn:aws:batch:eu-west-1:123456789012:job-queue/large",
    "job_definition_arn": "arn:aws:batch:eu-west-1:123456789012:job-definition/tasks:3",
}
URL = "https://sqs.eu-west-1.amazonaws.com/123456789012/default"


@lambda_task(queue="large")
def render(*, film: str) -> None: ...


@lambda_task
def greet(*, name: str) -> None: ...


class TestSending:
    @pytest.mark.django_db(transaction=True)
    def test_each_task_is_a_job_after_the_commit(self, batch: Batch, sqs: Any) -> None:
        with transaction.atomic():
            handle = render.execute_on_commit(film="Metropolis")
            greet.execute_on_commit(name="Ada")
            render.execute_on_commit(film="M")
            assert batch.jobs() == []

        first, second = sorted(batch.environments(), key=lambda environment: environment[DELIVERY])
        assert json.loads(first[BODY]) == {"task_name": render.name, "kwargs": {"film": "Metropolis"}}
        assert json.loads(first[DELIVERY])["attributes"] == {
            "lambda_tasks.message_id": handle.message_id,
            "lambda_tasks.root_id": handle.message_id,
            "lambda_tasks.queue": "large",
        }
        assert json.loads(second[BODY])["kwargs"] == {"film": "M"}
        assert {job["jobQueue"] for job in batch.jobs()} == {batch.job_queue}
        assert f"tests-backends-test_batch_jobs-render-{handle.message_id}" in {job["jobName"] for job in batch.jobs()}
        assert [body["kwargs"] for body in sqs.bodies()] == [{"name": "Ada"}]

    @pytest.mark.django_db(transaction=True)
    def test_rollback_submits_nothing(self, batch: Batch) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            render.execute_on_commit(film="Metropolis")
            1 / 0  # noqa: B018
        assert batch.jobs() == []

    def test_delay_becomes_a_time_for_the_container(self, batch: Batch) -> None:
        render.using(delay=60).execute_now(film="Metropolis")
        [environment] = batch.environments()
        delivery = json.loads(environment[DELIVERY])
        assert delivery["not_before"] - delivery["sent"] == 60_000

    def test_refused_job_raises_after_others_are_sent(self, batch: Batch, sqs: Any, settings: Any) -> None:
        missing = {**ARNS, "job_queue_arn": batch.job_queue + "-gone"}
        settings.LAMBDA_TASKS_QUEUES = {**sqs.queues, "large": missing}
        jobs = [job_for(render, film="Metropolis"), job_for(greet, name="Ada")]

        results = list(get_backend().send(jobs))

        assert [type(result).__name__ for result in results] == ["Unsent", "Taken"]
        assert isinstance(results[0].error, ClientError)  # type: ignore[union-attr]

    @pytest.mark.django_db(transaction=True)
    def test_outbox_keeps_a_job_until_it_is_due(self, batch: Batch, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        render.using(delay=60).execute_on_commit(film="Metropolis")
        render.execute_on_commit(film="M")

        assert [json.loads(each[BODY])["kwargs"] for each in batch.environments()] == [{"film": "M"}]
        [kept] = OutboxMessage.objects.all()
        assert 50 < (kept.due_at - kept.created_at).total_seconds() < 70

        backend: Any = get_backend()
        backend.send_now([kept.pk], using="default")
        assert len(batch.jobs()) == 2
        assert not any("not_before" in each[DELIVERY] for each in batch.environments())

    @pytest.mark.django_db(transaction=True)
    def test_outbox_keeps_a_job_that_batch_refuses(self, batch: Batch, sqs: Any, settings: Any) -> None:
        missing = {**ARNS, "job_queue_arn": batch.job_queue + "-gone"}
        settings.LAMBDA_TASKS_QUEUES = {**sqs.queues, "large": missing}
        settings.LAMBDA_TASKS_OUTBOX = True
        render.execute_on_commit(film="Metropolis")
        [kept] = OutboxMessage.objects.all()
        assert (kept.attempts, "does not exist" in kept.error) == (1, True)
        assert kept.due_at is not None

    def test_forked_process_has_its_own_client(self, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
        render.execute_now(film="Metropolis")
        submitter: Any = get_backend()._jobs()  # type: ignore[attr-defined]
        monkeypatch.setattr(batch_jobs.os, "getpid", lambda: -1)
        render.execute_now(film="M")
        assert len(set(map(id, submitter._clients.values()))) == 2

    def test_address_of_sqs_is_not_that_of_batch(self) -> None:
        def endpoint(url: str) -> str | None:
            return batch_jobs.BatchJobs(endpoint_url=url, config={}, max_threads=1)._endpoint_url

        assert endpoint("https://vpce-0a1b.sqs.eu-west-1.vpce.amazonaws.com") is None
        assert endpoint("http://localhost:4566") == "http://localhost:4566"


class TestSize:
    @pytest.mark.parametrize("letter", ["a", '"', "é", "日"])
    def test_largest_job_and_its_retry_fit(self, settings: Any, letter: str) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": ARNS}
        settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"

        def fits(length: int) -> bool:
            try:
                get_backend().validate(job_for(render, film=letter * length))
            except MessageTooLarge:
                return False
            return True

        low, high = 1, 10_000
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        job = job_for(render, film=letter * low)
        attributes = job.message_attributes()
        overrides = batch_jobs.container_overrides(job, attributes, sent=1_700_000_000)
        assert MAX_OVERRIDES - 80 < len(json.dumps(overrides, ensure_ascii=False).encode()) <= MAX_OVERRIDES
        retried = batch_jobs.container_overrides(
            Job(Invocation(render.name, job.message.kwargs, 2880), job.message_id, job.root_id, "large", delay=900),
            attributes,
            sent=1_700_000_000,
        )
        assert len(json.dumps(retried, ensure_ascii=False).encode()) <= MAX_OVERRIDES

    def test_call_is_refused_with_a_remedy(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": ARNS}
        settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
        with pytest.raises(MessageTooLarge, match=r"at most 7,000 characters .* Store the data elsewhere"):
            render.execute_now(film="a" * 7_000)


def test_job_has_a_valid_name() -> None:
    message_id = new_message_id()
    for name in ("shop.tasks.render", "läden.tasks.rendern", "_a._b", "a." * 100 + "z"):
        job = Job(Invocation(name, {}), message_id, message_id)
        assert len(job_name(job)) <= 128
        assert job_name(job).replace("-", "").replace("_", "").isalnum()
        assert job_name(job)[0].isalnum()
        assert job_name(job).endswith(message_id)


class TestSettings:
    def test_arns_are_read(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": ARNS}
        queue = JobQueue(**ARNS)
        assert app_settings.queues == {"default": URL, "large": queue}
        assert (app_settings.queue_urls, app_settings.job_queues) == ({"default": URL}, {"large": queue})
        assert queue.region == "eu-west-1"

    @pytest.mark.parametrize(
        ("queue", "message"),
        [
            ({"job_queue_arn": ARNS["job_queue_arn"]}, r"must have the keys job_queue_arn and job_definition_arn"),
            ({**ARNS, "timeout": 5}, r"must have the keys job_queue_arn and job_definition_arn, not .*timeout"),
            ({**ARNS, "job_queue_arn": "large"}, r"\['job_queue_arn'\] must be an ARN such as arn:aws:batch:.*'large'"),
            (
                {**ARNS, "job_definition_arn": ARNS["job_queue_arn"]},
                r"\['job_definition_arn'\] must be an ARN ",
            ),
            ({**ARNS, "job_queue_arn": 5}, r"\['job_queue_arn'\] must be an ARN .*not 5"),
            (
                {**ARNS, "job_queue_arn": ARNS["job_queue_arn"].replace("eu-west-1", "us-east-1")},
                "in the same region, not in us-east-1 and eu-west-1",
            ),
            ({**ARNS, "queue_url": URL}, r"LAMBDA_TASKS_QUEUES\['large'\] must be a URL or a dict of ARNs, not"),
        ],
    )
    def test_invalid_queue_is_refused(self, settings: Any, queue: Any, message: str) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": queue}
        with pytest.raises(InvalidSetting, match=message):
            _ = app_settings.queues
        [found] = [each for each in check_settings() if each.id == "lambda_tasks.E001"]
        assert "LAMBDA_TASKS_QUEUES['large']" in found.msg

    def test_definition_needs_no_revision(self, settings: Any) -> None:
        latest = {**ARNS, "job_definition_arn": ARNS["job_definition_arn"].removesuffix(":3")}
        settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": latest}
        assert app_settings.job_queues == {"large": JobQueue(**latest)}

    def test_other_transports_refuse_the_queue(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": ARNS}
        with pytest.raises(ImproperlyConfigured, match=r"'large' must have a URL, not ARNs .* SQSBackend submits jobs"):
            app_settings.queue_url("large", task_name=render.name)

    def test_worker_serves_no_job_queue(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": ARNS}
        with pytest.raises(CommandError, match=r"must be a queue of SQS, not 'large'.* batch-job"):
            call_command("lambda_tasks", "worker", "--queue=large")
        settings.LAMBDA_TASKS_QUEUES = {"default": ARNS}
        with pytest.raises(CommandError, match="must have a queue of SQS for a worker"):
            call_command("lambda_tasks", "worker")


def test_request_to_aws_is_refused_in_tests(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    settings.LAMBDA_TASKS_QUEUES = {"default": URL, "large": ARNS}
    settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
    with pytest.raises(RealQueueRefused):
        render.execute_now(film="Metropolis")


def test_plain_queues_import_nothing_of_batch(settings: Any, sqs: Any) -> None:
    greet.execute_now(name="Ada")
    assert get_backend()._batch_jobs is None  # type: ignore[attr-defined]


def job_for(task: Any, **kwargs: Any) -> Job:
    return Job.of_call(Invocation(task.name, kwargs), queue=task.queue, delay=0, task=task, database="default")
