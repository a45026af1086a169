"""moto deploys the template of CloudFormation, and the doctor finds nothing wrong, unless a number is changed."""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any

import boto3
import pytest
from django.test import override_settings

from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.operations.doctor import Finding, diagnose
from lambda_tasks.operations.infrastructure import Options, PerQueue, render
from tests.conftest import Sqs
from tests.operations.infrastructure import described, load, task_with
from tests.operations.test_checks import only
from tests.operations.test_doctor import Cloud, SmallMessages

# These tests depend on AWS, not on the version of Python or Django, and start many clients.
pytestmark = [
    pytest.mark.once,
    pytest.mark.thorough,
    pytest.mark.django_db,
    # moto creates neither policies of queues nor schedules nor alarms.
    pytest.mark.filterwarnings("ignore:Tried to parse AWS.*not supported by moto:UserWarning"),
]

SMALL_MESSAGES = f"{SmallMessages.__module__}.{SmallMessages.__name__}"


class Deployment:
    """A stack in moto, and the doctor's findings about its queues and functions."""

    def __init__(self, sqs: Sqs) -> None:
        self.endpoint = sqs.endpoint
        account = sqs.queues["default"].split("/")[-2]
        self.queues = {"default": f"{sqs.endpoint}/{account}/shop", "heavy": f"{sqs.endpoint}/{account}/shop-heavy"}
        self.cloud = Cloud(sqs)
        self.tasks = (task_with(queue="heavy", soft_timeout=600, hard_timeout=660),)

    def template(self, options: Options) -> str:
        found = described(options, *self.tasks, queues=self.queues, LAMBDA_TASKS_BACKEND=SMALL_MESSAGES)
        return render(found, "cloudformation")

    def deploy(self, template: str) -> None:
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as code:
            code.writestr("code.py", "")
        storage = self.client("s3")
        storage.create_bucket(Bucket="code", CreateBucketConfiguration={"LocationConstraint": storage.meta.region_name})
        storage.put_object(Bucket="code", Key="tasks.zip", Body=archive.getvalue())
        parameters = {"CodeBucket": "code", "CodeKey": "tasks.zip"}
        self.client("cloudformation").create_stack(
            StackName="tasks",
            TemplateBody=template,
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        )

    def client(self, service: str) -> Any:
        return boto3.client(service, endpoint_url=self.endpoint)

    def findings(self, *tasks: LambdaTaskWrapper[..., Any]) -> list[Finding]:
        """Return what the doctor finds, but for the settings of the database (D3…), which no template contains."""
        with (
            only(*(tasks or self.tasks)),
            override_settings(LAMBDA_TASKS_QUEUES=self.queues, LAMBDA_TASKS_BACKEND=SMALL_MESSAGES),
        ):
            found = diagnose(connect=self.cloud.connect)
        return [finding for finding in found if not finding.id.startswith("D3")]


@pytest.fixture
def deployment(sqs: Sqs) -> Deployment:
    return Deployment(sqs)


@pytest.mark.parametrize("function_per_queue", [False, True])
def test_deployed_template_has_no_findings(deployment: Deployment, function_per_queue: bool) -> None:
    options = Options(
        runtime="python3.13",
        function_per_queue=function_per_queue,
        batching_window=PerQueue(0, {"heavy": 30}),
        maximum_concurrency=PerQueue(10),
    )
    deployment.deploy(deployment.template(options))
    assert deployment.findings() == []


@pytest.mark.parametrize(
    ("line", "instead", "id"),
    [
        ("VisibilityTimeout: 3600", "VisibilityTimeout: 3599", "D109"),
        ("VisibilityTimeout: 5400", "VisibilityTimeout: 600", "D105"),
        ("maxReceiveCount: 10", "maxReceiveCount: 4", "D104"),
        ("MessageRetentionPeriod: 1209600", "MessageRetentionPeriod: 345600", "D106"),
        ("MessageRetentionPeriod: 345600", "MessageRetentionPeriod: 864000", "D107"),
        ("MessageRetentionPeriod: 345600", "MessageRetentionPeriod: 86400", "D108"),
        ("MaximumMessageSize: 262144", "MaximumMessageSize: 65536", "D110"),
        ("Timeout: 900", "Timeout: 660", "D203"),
        ("- ReportBatchItemFailures", "- Nothing", "D202"),
        (r"RedrivePolicy:\n.*\n.*\n.*", "", "D103"),
    ],
)
def test_doctor_notices_a_changed_template(deployment: Deployment, line: str, instead: str, id: str) -> None:
    template = deployment.template(Options(runtime="python3.13", function_per_queue=True))
    changed, number = re.subn(rf"^( +){line}$", rf"\g<1>{instead}", template, flags=re.MULTILINE)
    assert number > 0
    deployment.deploy(changed)
    assert id in {finding.id for finding in deployment.findings()}


def test_longer_task_needs_a_new_template(deployment: Deployment) -> None:
    deployment.deploy(deployment.template(Options(runtime="python3.13", function_per_queue=True)))
    longer = task_with(soft_timeout=600, hard_timeout=700)
    assert {finding.id for finding in deployment.findings(longer)} == {"D203"}


def test_recursive_loop_is_what_the_doctor_expects(deployment: Deployment) -> None:
    # moto does not keep RecursiveLoop, so the answer that the doctor gets comes from the template.
    template = load(deployment.template(Options()))
    loop = template["Resources"]["Function"]["Properties"]["RecursiveLoop"]
    deployment.cloud.answers["lambda.GetFunctionRecursionConfig"] = (200, {"RecursiveLoop": loop})
    deployment.deploy(deployment.template(Options()))
    assert deployment.findings() == []
