"""Tests do not send requests to AWS."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session
from moto import mock_aws

from lambda_tasks import real_aws, secret_loader
from lambda_tasks.backends.bucket import Bucket
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.local.event_source import open_sources
from lambda_tasks.operations.aws import connect_to_aws
from lambda_tasks.strategies import get_backend
from lambda_tasks.testing import RealQueueRefused, refuse_real_queues
from lambda_tasks.wire import queue_urls
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.queue_urls import server_of
from lambda_tasks.wire.stored import Stored

AWS: Final = "https://sqs.eu-west-1.amazonaws.com/123456789012/default"


@lambda_task
def greet() -> None: ...


@pytest.fixture(autouse=True)
def requests(settings: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Choose a queue on AWS, and collect the addresses of requests instead of sending them."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    settings.LAMBDA_TASKS_QUEUES = {"default": AWS}
    settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
    seen: list[str] = []

    class Raw:
        def stream(self, **_: Any) -> list[bytes]:
            return [b'{"Successful": [{"Id": "0", "MessageId": "m", "MD5OfMessageBody": "x"}]}']

    def send(self: URLLib3Session, request: Any) -> AWSResponse:
        seen.append(request.url)
        return AWSResponse(request.url, 200, {}, Raw())

    monkeypatch.setattr(URLLib3Session, "send", send)
    return seen


def test_request_to_aws_is_refused(requests: list[str]) -> None:
    with pytest.raises(RealQueueRefused, match=r"sqs\.eu-west-1\.amazonaws\.com.*lambda_tasks_real_sqs"):
        greet.execute_now()
    assert requests == []


@pytest.mark.parametrize(
    "host", ["sqs.cn-north-1.amazonaws.com.cn", "sqs.us-west-2.api.aws", "vpce-1-a.sqs.eu-west-1.vpce.amazonaws.com"]
)
def test_every_host_of_aws_is_refused(host: str, requests: list[str], settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": f"https://{host}/123456789012/default"}
    with pytest.raises(RealQueueRefused):
        greet.execute_now()
    assert requests == []


@pytest.mark.lambda_tasks_real_sqs
def test_marked_test_may_send(requests: list[str]) -> None:
    greet.execute_now()
    assert len(requests) == 1


def store_large_arguments() -> None:
    place = Bucket("s3://a-bucket/large")
    place.store("{}", Job.of_call(Invocation(greet.name), queue="default", delay=0, task=None, database="default"))


def fetch_large_arguments() -> None:
    Bucket("s3://a-bucket/large").fetch(Stored.of("{}", place="s3://a-bucket/large", key=str(uuid4())))


def load_secret() -> None:
    arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop-AbCdEf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAMBDA_TASKS_SECRET_API_KEY", f"{arn}:API_KEY:AWSCURRENT:{uuid4()}")
        secret_loader.resolve_secrets_into_env()


def ask_as_operator(service: str, operation: str, **arguments: Any) -> None:
    client = connect_to_aws(service, "eu-west-1", server_of(AWS))
    getattr(client, operation)(**arguments)


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (store_large_arguments, r"a-bucket.*, the bucket of large arguments in Amazon S3\. Set the option large_arg"),
        (fetch_large_arguments, r"a-bucket.*, the bucket of large arguments in Amazon S3\. Set the option large_arg"),
        (load_secret, r"AWS Secrets Manager\. Set the variables themselves"),
        (partial(ask_as_operator, "lambda", "list_functions"), r"the service lambda of AWS\. Use mock_aws\(\)"),
        (partial(ask_as_operator, "cloudwatch", "list_metrics"), r"the service cloudwatch of AWS"),
        (partial(ask_as_operator, "scheduler", "list_schedules"), r"the service scheduler of AWS"),
        (partial(ask_as_operator, "events", "list_rules"), r"the service eventbridge of AWS"),
        (partial(ask_as_operator, "batch", "describe_job_queues"), r"a job queue of AWS Batch\. Collect tasks"),
        (partial(ask_as_operator, "sqs", "list_queues"), r"a queue on AWS\. Collect tasks"),
    ],
    ids=["store", "fetch", "secret", "lambda", "cloudwatch", "scheduler", "events", "batch", "sqs"],
)
def test_every_service_is_refused(ask: Callable[[], None], told: str, requests: list[str]) -> None:
    with pytest.raises(RealQueueRefused, match=told + r".*lambda_tasks_real_sqs = true"):
        ask()
    assert requests == []


def test_every_client_is_guarded() -> None:
    """Each `boto3.client(…)` in the package is the argument of `guarded()`, apart from one that sends nothing."""
    unguarded = []
    for path in Path(real_aws.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        inside = {id(call.args[0]) for call in calls if ast.unparse(call.func) == "guarded" and call.args}
        made = [call for call in calls if ast.unparse(call.func) in ("boto3.client", "session.client")]
        unguarded += [f"{path.name}: {ast.unparse(call)}" for call in made if id(call) not in inside]
    assert unguarded == ["sqs.py: boto3.client('sqs', **options)"]


@pytest.mark.parametrize("domain", [domain for both in queue_urls._DOMAINS.values() for domain in both])
def test_every_partition_is_refused(domain: str) -> None:
    for host in (f"secretsmanager.some-region-1.{domain}", f"bucket.s3.some-region-1.{domain}"):
        assert real_aws._is_on_aws(f"https://{host}/path")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:4566/bucket",
        "https://bucket.s3.localhost.localstack.cloud:4566/large.json",
        "http://ec2-203-0-113-25.eu-west-1.compute.amazonaws.com:4566/",
        "http://emulator-1234.eu-west-1.elb.amazonaws.com/bucket",
        "https://minio.example.com/s3.eu-west-1.amazonaws.com/",
    ],
)
def test_own_server_is_not_refused(url: str) -> None:
    assert not real_aws._is_on_aws(url)


def test_emulator_is_not_refused(requests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://localhost:4566")
    greet.execute_now()
    assert [url.partition("/000")[0].rstrip("/") for url in requests] == ["http://localhost:4566"]


def test_answer_of_moto_is_not_refused(settings: Any) -> None:
    import boto3

    with mock_aws():
        url = boto3.client("sqs", region_name="eu-west-1").create_queue(QueueName="default")["QueueUrl"]
        settings.LAMBDA_TASKS_QUEUES = {"default": url}
        greet.execute_now()


def test_local_worker_is_refused(requests: list[str]) -> None:
    with pytest.raises(RealQueueRefused):
        open_sources({"default": AWS}, batch_size=1, batching_window_seconds=0, wait_seconds=0)
    assert requests == []


def test_client_of_production_has_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_aws, "_blocks", [])
    backend = get_backend()
    assert isinstance(backend, SQSBackend)
    greet.execute_now()
    with refuse_real_queues():
        greet.execute_now()  # its client was created before


def test_block_refuses_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_aws, "_blocks", [])
    with refuse_real_queues(), pytest.raises(RealQueueRefused):
        greet.execute_now()
    assert real_aws._blocks == []


def test_plugin_does_not_import_django() -> None:
    program = "import sys, lambda_tasks.testing.plugin; assert not {'django', 'boto3'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_option_allows_requests(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambda_tasks.testing import plugin

    monkeypatch.setattr(real_aws, "_blocks", [])

    class Allowing:
        def addinivalue_line(self, *_: str) -> None: ...

        def getini(self, name: str) -> bool:
            return name == plugin.REAL_SQS

    plugin.pytest_configure(Allowing())  # type: ignore[arg-type]
    assert real_aws._blocks == []
    assert pytestconfig.getini(plugin.REAL_SQS) is False
