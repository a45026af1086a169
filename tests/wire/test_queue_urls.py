"""Queue URLs: their problems, their regions, and the addresses that requests about them go to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore
import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import NoRegionError
from django.core.checks import CheckMessage
from django.db import transaction

from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.local.event_source import QueueUnavailable, open_sources
from lambda_tasks.operations.doctor import connect_to_aws
from lambda_tasks.wire import queue_urls
from lambda_tasks.wire.queue_urls import Server, client_options, looks_like_aws, problem_of, server_of, url_of

pytestmark = [
    pytest.mark.once,
    pytest.mark.lambda_tasks_real_sqs,  # requests to AWS are collected instead of sent
]

LOCAL = "http://localhost:4566"
OUTPOST = "https://vpce-0a1b-2c3d.sqs.eu-central-1.vpce.amazonaws.com"
#: The host of each queue's URL, its region, and whether requests go to this host and not to botocore's own choice.
ON_AWS = {
    "sqs.us-east-2.amazonaws.com": ("us-east-2", False),
    "sqs.us-gov-west-1.amazonaws.com": ("us-gov-west-1", False),
    "sqs.cn-north-1.amazonaws.com.cn": ("cn-north-1", False),
    "sqs.eusc-de-east-1.amazonaws.eu": ("eusc-de-east-1", False),
    "sqs.us-iso-east-1.c2s.ic.gov": ("us-iso-east-1", False),
    "sqs.us-isob-east-1.sc2s.sgov.gov": ("us-isob-east-1", False),
    "ap-south-1.queue.amazonaws.com": ("ap-south-1", False),
    "queue.amazonaws.com": ("us-east-1", False),
    "sqs-fips.us-east-1.amazonaws.com": ("us-east-1", True),
    "sqs-fips.ca-central-1.api.aws": ("ca-central-1", True),
    "sqs.us-west-2.api.aws": ("us-west-2", True),
    "sqs.cn-north-1.api.amazonwebservices.com.cn": ("cn-north-1", True),
    "vpce-0a1b-2c3d.sqs.eu-central-1.vpce.amazonaws.com": ("eu-central-1", True),
    "vpce-0a1b-2c3d-eu-central-1a.sqs.eu-central-1.vpce.amazonaws.com": ("eu-central-1", True),
}
ELSEWHERE = {
    "http://127.0.0.1:5000/123456789012/q": None,
    "http://localhost:9324/000000000000/q": None,
    "http://elasticmq:9324/queue/q": None,
    "http://localhost:4566/000000000000/q": None,
    "http://sqs.us-east-1.localhost.localstack.cloud:4566/000000000000/q": "us-east-1",
    "http://eu-west-1.queue.localhost.localstack.cloud:4566/000000000000/q": "eu-west-1",
    "http://localhost.localstack.cloud:4566/queue/eu-west-1/000000000000/q": "eu-west-1",
    "http://[::1]:4566/000000000000/q": None,
    "https://sqs.xx-new-north-1.newaws.example/123456789012/q": "xx-new-north-1",
}


@pytest.fixture(autouse=True)
def only_the_url_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure no address for boto3."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AWSRequest]]:
    """Collect all requests instead of sending them."""
    from botocore.httpsession import URLLib3Session

    seen: list[AWSRequest] = []

    class Raw:
        def stream(self, **_: Any) -> list[bytes]:
            return [b'{"MessageId": "m", "Failed": []}']

    def send(self: URLLib3Session, request: AWSRequest) -> AWSResponse:
        seen.append(request)
        return AWSResponse(request.url, 200, {}, Raw())

    monkeypatch.setattr(URLLib3Session, "send", send)
    return seen


def addresses(requests: list[AWSRequest]) -> list[str]:
    return [request.url for request in requests]


class TestServers:
    @pytest.mark.parametrize("host", ON_AWS)
    def test_queue_on_aws_has_region_and_address(self, host: str) -> None:
        region, is_special = ON_AWS[host]
        expected = Server(region, f"https://{host}" if is_special else None, is_aws=True)
        assert server_of(f"https://{host}/123456789012/q") == expected

    @pytest.mark.parametrize("url", ELSEWHERE)
    def test_queue_elsewhere_is_its_own_address(self, url: str) -> None:
        assert server_of(url) == Server(ELSEWHERE[url], "/".join(url.split("/")[:3]))

    def test_host_that_only_contains_aws_is_elsewhere(self) -> None:
        url = "https://sqs.eu-west-1.amazonaws.com.evil.example/123456789012/q"
        assert not server_of(url).is_aws
        assert looks_like_aws(url)

    @pytest.mark.parametrize("url", [*ELSEWHERE, *(f"https://{host}/123456789012/q" for host in ON_AWS)])
    def test_valid_url_has_no_problem(self, url: str) -> None:
        assert problem_of(url) is None
        assert looks_like_aws(url) == ("newaws" in url)

    def test_all_partitions_of_botocore_are_known(self) -> None:
        """A partition that is missing still works, since its URLs are their own addresses."""
        data = json.loads((Path(botocore.__file__).parent / "data/partitions.json").read_text())
        outputs = {partition["id"]: partition["outputs"] for partition in data["partitions"]}
        known = {name: (each["dnsSuffix"], each["dualStackDnsSuffix"]) for name, each in outputs.items()}
        assert {name: queue_urls._DOMAINS.get(name) for name in known} == known


class TestClients:
    @pytest.mark.parametrize("host", ON_AWS)
    def test_request_goes_to_the_host_of_the_url(self, host: str) -> None:
        region, is_special = ON_AWS[host]
        [at] = {self.address(f"https://{host}/123456789012/q"), self.address(f"https://{host}/123456789012/q/")}
        assert at == f"https://{host}" if is_special else server_of(at) == Server(region, is_aws=True)

    def test_request_to_an_emulator_stays_there(self) -> None:
        assert self.address(f"{LOCAL}/000000000000/q") == LOCAL

    @pytest.mark.parametrize("variable", ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"])
    @pytest.mark.parametrize("at", [LOCAL, OUTPOST, "https://sqs-fips.us-east-1.amazonaws.com"])
    def test_url_precedes_the_kind_of_endpoint(self, monkeypatch: pytest.MonkeyPatch, variable: str, at: str) -> None:
        monkeypatch.setenv(variable, "true")
        assert self.address(f"{at}/123456789012/q") == at

    def test_kind_of_endpoint_is_botocores_choice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
        url = "https://sqs.us-east-1.amazonaws.com/123456789012/q"
        assert self.address(url) == "https://sqs-fips.us-east-1.amazonaws.com"

    @pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS"])
    def test_configured_address_precedes_the_url(self, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
        monkeypatch.setenv(variable, "http://localstack:4566")
        assert self.address(f"{LOCAL}/000000000000/q") == "http://localstack:4566"

    def test_address_in_the_configuration_file_precedes_the_url(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "config"
        file.write_text("[default]\nservices = here\n[services here]\nsqs =\n  endpoint_url = http://localstack:4566\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        assert self.address(f"{LOCAL}/000000000000/q") == "http://localstack:4566"

    def test_other_services_of_an_emulator_are_there(self) -> None:
        lambdas = connect_to_aws("lambda", "eu-west-1", server_of(f"{LOCAL}/000000000000/q"))
        assert lambdas.meta.endpoint_url == LOCAL
        lambdas = connect_to_aws("lambda", "eu-central-1", server_of(f"{OUTPOST}/123456789012/q"))
        assert lambdas.meta.endpoint_url == "https://lambda.eu-central-1.amazonaws.com"

    def test_worker_asks_the_host_of_the_url(self, requests: list[AWSRequest]) -> None:
        with pytest.raises((QueueUnavailable, KeyError)):
            open_sources({"q": f"{LOCAL}/000000000000/q"}, batch_size=1, batching_window_seconds=0, wait_seconds=0)
        assert addresses(requests) == [f"{LOCAL}/"]

    @pytest.mark.parametrize("url", ["shop", "arn:aws:sqs:eu-west-1:123456789012:shop"])
    def test_worker_rejects_an_unusable_url(self, requests: list[AWSRequest], url: str) -> None:
        with pytest.raises(QueueUnavailable, match="The URL of queue 'q' must be the URL of a queue, not its"):
            open_sources({"q": url}, batch_size=1, batching_window_seconds=0, wait_seconds=0)
        assert requests == []

    def address(self, url: str) -> str:
        server = server_of(url)
        options = client_options(boto3.client, "sqs", server, config=Config())
        return str(boto3.client("sqs", **options).meta.endpoint_url)


class TestQueueOfAMessage:
    URL = "https://sqs.{}.amazonaws.com/123456789012/shop"
    ARN = "arn:aws:sqs:{}:123456789012:shop"

    def test_region_distinguishes_queues_of_one_name(self) -> None:
        urls = [self.URL.format(region) for region in ("eu-west-1", "us-east-1")]
        for url, region in zip(urls, ("eu-west-1", "us-east-1"), strict=True):
            assert url_of(self.ARN.format(region), urls) == url
        assert url_of(self.ARN.format("eu-central-1"), urls) is None

    def test_url_without_a_region_fits_any(self) -> None:
        local = "http://127.0.0.1:5000/123456789012/shop"
        assert url_of(self.ARN.format("eu-west-1"), [local]) == local
        assert url_of(self.ARN.format("eu-west-1"), [local, self.URL.format("eu-west-1")]) != local

    def test_other_partitions_are_read(self) -> None:
        url = "https://sqs.cn-north-1.amazonaws.com.cn/123456789012/shop"
        assert url_of("arn:aws-cn:sqs:cn-north-1:123456789012:shop", [url]) == url

    @pytest.mark.parametrize("arn", ["", "shop", "arn:aws:s3:eu-west-1:123456789012:shop", ARN.format("x") + "\n"])
    def test_anything_else_has_no_url(self, arn: str) -> None:
        assert url_of(arn, [self.URL.format("eu-west-1")]) is None

    def test_postponing_goes_to_the_queue_of_the_message(self, requests: list[AWSRequest], settings: Any) -> None:
        urls = {region: self.URL.format(region) for region in ("eu-west-1", "us-east-1")}
        settings.LAMBDA_TASKS_QUEUES = {"default": urls["eu-west-1"], "us": urls["us-east-1"]}
        record = {"receiptHandle": "r", "eventSourceARN": self.ARN.format("us-east-1")}
        SQSBackend().postpone([(record, 30)])
        [request] = requests
        assert request.url == "https://sqs.us-east-1.amazonaws.com/"
        assert json.loads(request.body)["QueueUrl"] == urls["us-east-1"]


#: Unusable values, and the remedy in the error.
PROBLEMS = {
    "shop": r"not its name 'shop'\. `aws sqs get-queue-url --queue-name shop` prints",
    "my shop": r"not its name 'my shop'\.",
    "arn:aws:sqs:eu-west-1:123456789012:shop": r"Use https://sqs\.eu-west-1\.amazonaws\.com/123456789012/shop\.",
    "arn:aws-cn:sqs:cn-north-1:123456789012:shop": r"Use https://sqs\.cn-north-1\.amazonaws\.com\.cn/123456789012/shop",
    "arn:aws:sns:eu-west-1:123456789012:shop": r"not the ARN 'arn:aws:sns",
    "sqs.eu-west-1.amazonaws.com/123456789012/shop": r"Write 'https://sqs\.eu-west-1\.amazonaws\.com/123456789012/shop'",
    "localhost:4566/000000000000/shop": r"Write 'http://localhost:4566/000000000000/shop'",
    "https://sqs.eu-west-1.amazonaws.com/123456789012/shop\n": r"without spaces and line breaks.* Remove them",
    "sqs://eu-west-1/shop": r"begins with https:// or http://",
    "https://sqs.eu-west-1.amazonaws.com:port/1/q": r"valid host and port",
    "http://": r"valid host and port",
    "https://user:pa55word@sqs.eu-west-1.amazonaws.com/1/q": r"without a user name and password",
    "https://sqs.eu-west-1.amazonaws.com": r"ends with the account and the name",
    "https://sqs.eu-west-1.amazonaws.com/shop": r"ends with the account and the name",
    "http://localhost:4566/": r"ends with the account and the name",
    "https://sqs.eu-west-1.amazonaws.com/123456789012/shop?Action=SendMessage": r"Remove the part after the name",
    "https://sqs.eu-west-1.amazonaws.com/123456789012/shop.fifo": r"not that of the FIFO queue .* standard queue",
    "http://localhost:4566/000000000000/shop.fifo": r"not that of the FIFO queue .* standard queue",
}


@lambda_task
def pack() -> None: ...


@pytest.mark.django_db
class TestProblems:
    @pytest.fixture(autouse=True)
    def backend(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"

    def findings(self) -> list[tuple[str | None, str]]:
        found: list[CheckMessage] = SQSBackend().check()
        return [(message.id, message.msg) for message in found]

    @pytest.mark.parametrize("url", PROBLEMS)
    def test_unusable_url_is_reported_by_check_and_call(self, settings: Any, url: str) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": url}
        [(check_id, text)] = self.findings()
        assert check_id == "lambda_tasks.E030"
        assert re.fullmatch(rf"LAMBDA_TASKS_QUEUES\['default'\] must be .*{PROBLEMS[url]}.*", text), text
        assert "pa55word" not in text
        with transaction.atomic(), pytest.raises(InvalidSetting) as raised:
            pack.execute_on_commit()
        assert str(raised.value) == text

    def test_transport_of_the_outbox_is_checked(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        settings.LAMBDA_TASKS_QUEUES = {"default": "shop"}
        with transaction.atomic(), pytest.raises(InvalidSetting, match="not its name 'shop'"):
            pack.execute_on_commit()

    def test_missing_region_is_reported(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": "https://queue.shop.example/123456789012/shop"}
        assert self.findings() == []
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        [(check_id, text)] = self.findings()
        assert check_id == "lambda_tasks.W030"
        assert "Set the environment variable AWS_DEFAULT_REGION" in text
        with transaction.atomic(), pytest.raises(InvalidSetting) as raised:
            pack.execute_on_commit()
        assert str(raised.value) == text
        with pytest.raises(NoRegionError):
            boto3.client("sqs")

    def test_region_in_the_url_is_sufficient(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_DEFAULT_REGION")
        settings.LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/shop"}
        assert self.findings() == []

    def test_unknown_partition_is_a_warning(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.con/123456789012/shop"}
        [(check_id, text)] = self.findings()
        assert check_id == "lambda_tasks.W031"
        assert "Correct the URL if it is misspelt" in text

    def test_call_sends_to_the_host_of_the_url(self, settings: Any, requests: list[AWSRequest]) -> None:
        settings.LAMBDA_TASKS_QUEUES = {"default": f"{LOCAL}/000000000000/shop"}
        with transaction.atomic():
            pack.execute_on_commit()
        # pytest-django's transaction does not commit, so send directly.
        from tests.backends.test_sqs import new_job

        list(SQSBackend().send([new_job()]))
        assert addresses(requests) == [f"{LOCAL}/"]
