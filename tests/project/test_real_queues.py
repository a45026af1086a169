"""Tests do not send requests to queues on AWS."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session
from moto import mock_aws

from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.local.event_source import open_sources
from lambda_tasks.strategies import get_backend
from lambda_tasks.testing import RealQueueRefused, refuse_real_queues
from lambda_tasks.wire import real_queues

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
    monkeypatch.setattr(real_queues, "_blocks", [])
    backend = get_backend()
    assert isinstance(backend, SQSBackend)
    greet.execute_now()
    with refuse_real_queues():
        greet.execute_now()  # its client was created before


def test_block_refuses_without_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_queues, "_blocks", [])
    with refuse_real_queues(), pytest.raises(RealQueueRefused):
        greet.execute_now()
    assert real_queues._blocks == []


def test_plugin_does_not_import_django() -> None:
    program = "import sys, lambda_tasks.testing.plugin; assert not {'django', 'boto3'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=60)


def test_option_allows_requests(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from lambda_tasks.testing import plugin

    monkeypatch.setattr(real_queues, "_blocks", [])

    class Allowing:
        def addinivalue_line(self, *_: str) -> None: ...

        def getini(self, name: str) -> bool:
            return name == plugin.REAL_SQS

    plugin.pytest_configure(Allowing())  # type: ignore[arg-type]
    assert real_queues._blocks == []
    assert pytestconfig.getini(plugin.REAL_SQS) is False
