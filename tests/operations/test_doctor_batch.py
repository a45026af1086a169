"""What the doctor finds about queues of AWS Batch, by asking moto's server."""

from __future__ import annotations

from typing import Any

import pytest

from lambda_tasks.decorators import lambda_task
from lambda_tasks.operations.aws import connect_to_aws
from lambda_tasks.operations.doctor.findings import Doctor, Finding
from lambda_tasks.operations.doctor.job_queues import look_at_job_queue
from lambda_tasks.settings import JobQueue
from tests.batch import Batch, define
from tests.operations.test_checks import only

pytestmark = pytest.mark.once


@lambda_task(queue="large", soft_timeout=500, hard_timeout=600)
def render() -> None: ...


def findings(queue: str, definition: str, connect: Any = connect_to_aws) -> list[Finding]:
    doctor = Doctor(connect, None, lambda text: None)
    with only(render):
        look_at_job_queue(doctor, "large", JobQueue(queue, definition))
    return doctor.findings


def test_healthy_queue_has_no_findings(batch: Batch) -> None:
    assert findings(batch.job_queue, batch.job_definition) == []
    assert findings(batch.job_queue, batch.job_definition.removesuffix(":1")) == []


def test_missing_queue_and_definition_are_errors(batch: Batch) -> None:
    found = findings(f"{batch.job_queue}-gone", batch.job_definition.replace(":1", ":2"))
    assert [(each.id, each.level, each.subject) for each in found] == [
        ("D601", "error", "queue 'large'"),
        ("D603", "error", "queue 'large'"),
    ]
    assert f"{batch.job_queue}-gone does not exist" in found[0].text


def test_disabled_queue_is_error(batch: Batch) -> None:
    batch.client.update_job_queue(jobQueue=batch.job_queue, state="DISABLED")
    [finding] = findings(batch.job_queue, batch.job_definition)
    assert (finding.id, "DISABLED and VALID" in finding.text) == ("D602", True)


def test_inactive_definition_is_error(batch: Batch) -> None:
    batch.client.deregister_job_definition(jobDefinition=batch.job_definition)
    [finding] = findings(batch.job_queue, batch.job_definition)
    assert finding.id == "D603"


def test_single_attempt_is_warning(batch: Batch) -> None:
    [finding] = findings(batch.job_queue, define(batch.client, attempts=1))
    assert (finding.id, finding.level) == ("D604", "warning")
    # Without a revision, the latest one counts.
    [finding] = findings(batch.job_queue, batch.job_definition.removesuffix(":1"))
    assert finding.id == "D604"


def test_timeout_below_that_of_its_tasks_is_error(batch: Batch) -> None:
    definition = define(batch.client, attempts=2, timeout={"attemptDurationSeconds": 604})
    [finding] = findings(batch.job_queue, definition)
    assert (finding.id, "after 604 s, but its tasks may take 600 s" in finding.text) == ("D605", True)
    enough = define(batch.client, attempts=2, timeout={"attemptDurationSeconds": 605})
    assert findings(batch.job_queue, enough) == []


def test_refused_request_is_a_skipped_check(batch: Batch) -> None:
    def connect(*args: Any) -> Any:
        client = connect_to_aws(*args)
        client.meta.events.register("before-parameter-build.batch", refuse)
        return client

    def refuse(**options: Any) -> None:
        from botocore.exceptions import ClientError

        raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "DescribeJobQueues")

    found = findings(batch.job_queue, batch.job_definition, connect)
    assert [each.id for each in found] == ["D001", "D001"]
    assert "Grant batch:DescribeJobQueues" in found[0].remedy
