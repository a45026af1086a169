"""AWS Batch, as moto's server answers for it, and the environments of the jobs that were submitted.

moto keeps the jobs and runs none of them: a test runs the command of a job's container in its environment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import boto3
import pytest

from lambda_tasks.wire.job_environment import ATTEMPT


@dataclass(frozen=True, slots=True)
class Batch:
    """A job queue and a job definition, which LAMBDA_TASKS_QUEUES names `large`."""

    client: Any
    job_queue: str
    job_definition: str

    def jobs(self) -> list[dict[str, Any]]:
        """Return the submitted jobs, oldest first."""
        found = self.client.list_jobs(jobQueue=self.job_queue, jobStatus="SUCCEEDED")["jobSummaryList"]
        ids = [job["jobId"] for job in found]
        return self.client.describe_jobs(jobs=ids)["jobs"] if ids else []

    def environments(self, *, attempt: int = 1) -> list[dict[str, str]]:
        """Return the variables that Batch would give to the container of each job."""
        return [
            {each["name"]: each["value"] for each in job["container"]["environment"]} | {ATTEMPT: str(attempt)}
            for job in self.jobs()
        ]


def start_batch(monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Create a job queue and a job definition in the server of AWS_ENDPOINT_URL."""
    pytest.importorskip("docker", reason="moto's Batch imports docker")
    from moto.core.config import default_user_config

    monkeypatch.setitem(default_user_config, "batch", {"use_docker": False})
    role = boto3.client("iam").create_role(RoleName="batch", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    client = boto3.client("batch")
    machines = client.create_compute_environment(
        computeEnvironmentName="machines", type="UNMANAGED", state="ENABLED", serviceRole=role
    )["computeEnvironmentArn"]
    job_queue = client.create_job_queue(
        jobQueueName="large",
        state="ENABLED",
        priority=1,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": machines}],
    )["jobQueueArn"]
    return Batch(client, job_queue, define(client, attempts=3))


def define(client: Any, *, attempts: int, **options: Any) -> str:
    """Register a revision of the job definition, and return its ARN."""
    arn: str = client.register_job_definition(
        jobDefinitionName="tasks",
        type="container",
        containerProperties={
            "image": "shop",
            "command": ["python", "manage.py", "lambda_tasks", "batch-job"],
            "resourceRequirements": [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "2048"}],
        },
        retryStrategy={"attempts": attempts},
        **options,
    )["jobDefinitionArn"]
    return arn
