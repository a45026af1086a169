"""The doctor queries moto's SQS and Lambda APIs, and finds problems that lose or repeat work."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore import exceptions
from botocore.awsrequest import AWSRequest, AWSResponse
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections
from django.test import override_settings

from lambda_tasks.backends.batches import LONGEST_PAUSE
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.database.clock import DatabaseNow, epoch_now, from_now
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.definition.schedules import Every
from lambda_tasks.execution.backoff import in_words, survived_outage
from lambda_tasks.management.commands.lambda_tasks import SUBCOMMANDS, Command
from lambda_tasks.models import OutboxMessage, TaskSchedule
from lambda_tasks.operations import database_settings as database_checks
from lambda_tasks.operations.doctor import Finding, connect_to_aws, diagnose, findings
from lambda_tasks.operations.doctor.asking import remedy_for
from lambda_tasks.operations.schedules import fire_due
from lambda_tasks.registry import import_tasks_of_apps
from lambda_tasks.wire.queue_urls import Server
from tests.conftest import Sqs
from tests.operations.test_checks import only
from tests.schedules import own_tasks, periodic

# These tests depend on AWS, not on the version of Python or Django, and start many clients.
pytestmark = [pytest.mark.once, pytest.mark.thorough]

import_tasks_of_apps()  # now, so that the doctor registers no others during a test

PAGE = Path(__file__).parents[2] / "docs/reference/doctor.md"

DAY = 86_400
HEALTHY = {
    "VisibilityTimeout": "3600",
    "MessageRetentionPeriod": str(4 * DAY),
    "MaximumMessageSize": "262144",
}
#: Timeouts for PostgreSQL's client, as on the page about deployment.
LIMITS = {"connect_timeout": 3, "tcp_user_timeout": 30_000, "options": "-c statement_timeout=120s"}


class SmallMessages(SQSBackend):
    """Sends messages that the queues of these tests accept: moto does not support larger ones."""

    def __init__(self) -> None:
        super().__init__(max_message_bytes=262_144)


class Cloud:
    """A healthy queue with its dead letter queue, function and mapping; each test breaks a part."""

    def __init__(self, sqs: Sqs) -> None:
        self.sqs = sqs
        self.url = sqs.queues["default"]
        self.lambdas = boto3.client("lambda", endpoint_url=sqs.endpoint)
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {
            # moto does not support this operation.
            "lambda.GetFunctionRecursionConfig": (200, {"RecursiveLoop": "Allow"})
        }
        self.dead_url = sqs.client.create_queue(QueueName="dead")["QueueUrl"]
        self.set_attributes(self.dead_url, MessageRetentionPeriod=str(14 * DAY))
        self.set_attributes(**HEALTHY, RedrivePolicy=self.redrive(10))
        self.mapping = ""
        #: The operations that the doctor has called.
        self.asked: list[str] = []

    def redrive(self, receives: int) -> str:
        return json.dumps({"deadLetterTargetArn": self.arn(self.dead_url), "maxReceiveCount": receives})

    def arn(self, url: str) -> str:
        answer = self.sqs.client.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(answer["Attributes"]["QueueArn"])

    def set_attributes(self, url: str = "", **attributes: str) -> None:
        self.sqs.client.set_queue_attributes(QueueUrl=url or self.url, Attributes=attributes)

    def create_function(self, name: str = "shop-tasks", *, timeout: int = 600) -> None:
        iam = boto3.client("iam", endpoint_url=self.sqs.endpoint)
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as archive:
            archive.writestr("code.py", "")
        self.lambdas.create_function(
            FunctionName=name,
            Runtime="python3.13",
            Handler="lambda_tasks.handler.handler",
            Role=role,
            Timeout=timeout,
            Code={"ZipFile": code.getvalue()},
        )

    def map(self, function: str = "shop-tasks", **options: Any) -> None:
        options = {"FunctionResponseTypes": ["ReportBatchItemFailures"], **options}
        self.mapping = self.lambdas.create_event_source_mapping(
            EventSourceArn=self.arn(self.url), FunctionName=function, **options
        )["UUID"]

    def reserve(self, executions: int) -> None:
        self.lambdas.put_function_concurrency(FunctionName="shop-tasks", ReservedConcurrentExecutions=executions)

    def connect(self, service: str, region: str | None, server: Server) -> Any:
        """Connect as the doctor does, but answer the operations in `answers` here."""
        client = connect_to_aws(service, region, server)
        client.meta.events.register("before-send", self.notice)
        for name, (status, body) in self.answers.items():
            client.meta.events.register(f"before-send.{name}", _answer(status, body))
        return client

    def notice(self, request: AWSRequest, event_name: str, **_: Any) -> None:
        self.asked.append(event_name.removeprefix("before-send."))

    def refuse(self, *operations: str) -> None:
        self.answers |= dict.fromkeys(
            operations, (403, {"__type": "AccessDeniedException", "message": "not authorized"})
        )

    def findings(self, *tasks: LambdaTaskWrapper[..., Any], function: str | None = None) -> list[Finding]:
        with only(*tasks):
            return diagnose(function=function, connect=self.connect)

    def ids(self, *tasks: LambdaTaskWrapper[..., Any], function: str | None = None) -> list[str]:
        return [finding.id for finding in self.findings(*tasks, function=function)]


def _answer(status: int, body: dict[str, Any]) -> Callable[..., AWSResponse]:
    def answer(request: AWSRequest, **_: Any) -> AWSResponse:
        headers = {"x-amzn-ErrorType": body.get("__type", "")}
        raw = io.BytesIO(json.dumps(body).encode())
        raw.stream = lambda **_: [raw.getvalue()]  # type: ignore[attr-defined]
        return AWSResponse(request.url, status, headers, raw)

    return answer


@pytest.fixture
def cloud(sqs: Sqs, settings: Any) -> Iterator[Cloud]:
    settings.LAMBDA_TASKS_QUEUES = {"default": sqs.queues["default"]}
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.SmallMessages"
    with database_settings(CONN_MAX_AGE=0):
        yield Cloud(sqs)


@pytest.fixture
def healthy(cloud: Cloud) -> Iterator[Cloud]:
    """Return a cloud and a database without problems."""
    cloud.create_function()
    cloud.map(ScalingConfig={"MaximumConcurrency": 10})
    with database_settings(CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=True, OPTIONS=LIMITS):
        yield cloud


@contextmanager
def database_settings(**settings: Any) -> Iterator[None]:
    """Show different settings to the doctor."""
    connection = connections["default"]
    before = connection.settings_dict
    connection.settings_dict = {**before, **settings}
    try:
        yield
    finally:
        connection.settings_dict = before


@pytest.fixture(autouse=True)
def _durable_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not ask the server of the tests, which may not wait for its disk."""
    for vendor in list(database_checks._SETTINGS):
        monkeypatch.setitem(database_checks._SETTINGS, vendor, ())
    monkeypatch.setattr(database_checks, "_IDLE_TIMEOUTS", {})


@pytest.fixture(autouse=True)
def own_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open a connection with its own settings, regardless of those that the doctor sees."""
    connection = connections["default"]
    own = connection.settings_dict

    def get_connection_params() -> dict[str, Any]:
        shown, connection.settings_dict = connection.settings_dict, own
        try:
            return dict(type(connection).get_connection_params(connection))
        finally:
            connection.settings_dict = shown

    monkeypatch.setattr(connection, "get_connection_params", get_connection_params)


def not_found() -> exceptions.ClientError:
    return exceptions.ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no"}}, "GetFunction")


def task_with(**options: Any) -> LambdaTaskWrapper[..., Any]:
    @lambda_task(**options)
    def render() -> None: ...

    return render


def only_finding(cloud: Cloud, *tasks: LambdaTaskWrapper[..., Any]) -> Finding:
    [finding] = cloud.findings(*tasks)
    return finding


def test_healthy_cloud_has_no_findings(healthy: Cloud) -> None:
    assert healthy.findings() == []


# Queues


def test_missing_queue_is_an_error(healthy: Cloud, settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": healthy.url + "-misspelt"}
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D101", "error")
    assert "-misspelt" in finding.text


def test_fifo_queue_is_an_error(healthy: Cloud, settings: Any) -> None:
    url = healthy.sqs.client.create_queue(QueueName="tasks.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    settings.LAMBDA_TASKS_QUEUES = {"default": url}
    assert "D102" in healthy.ids()


@pytest.mark.parametrize("url", ["shop", "arn:aws:sqs:eu-west-1:123456789012:shop"])
def test_unusable_url_is_an_error(healthy: Cloud, settings: Any, url: str) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": url}
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D112", "error")
    assert "LAMBDA_TASKS_QUEUES['default'] must be the URL of a queue, not its" in finding.text


def test_waiting_dead_letters_are_found(healthy: Cloud) -> None:
    for _ in range(3):
        healthy.sqs.client.send_message(QueueUrl=healthy.dead_url, MessageBody="{}")
    finding = only_finding(healthy)
    assert (finding.id, finding.level, finding.subject) == ("D113", "warning", "dead letter queue 'dead'")
    assert "3 messages wait in the dead letter queue" in finding.text
    assert "`dlq redrive` sends them back" in finding.remedy


def test_missing_dead_letter_queue_is_an_error(healthy: Cloud) -> None:
    healthy.set_attributes(RedrivePolicy="")
    assert (only_finding(healthy).id, only_finding(healthy).level) == ("D103", "error")


@pytest.mark.parametrize(("receives", "ids"), [(1, ["D104"]), (4, ["D104"]), (5, []), (10, [])])
def test_too_few_receives_are_found(healthy: Cloud, receives: int, ids: list[str]) -> None:
    healthy.set_attributes(RedrivePolicy=healthy.redrive(receives))
    findings = healthy.findings()
    assert [finding.id for finding in findings] == ids
    assert all("Set maxReceiveCount to 10" in finding.remedy for finding in findings)
    assert all(in_words(survived_outage(receives)) in finding.text for finding in findings)


def test_visibility_timeout_below_hard_timeout_is_error(healthy: Cloud) -> None:
    healthy.set_attributes(VisibilityTimeout="304")
    assert healthy.ids() == ["D105", "D109"]
    healthy.set_attributes(VisibilityTimeout="305")
    assert "D105" not in healthy.ids()


def test_visibility_timeout_shorter_than_a_lease_is_found(healthy: Cloud) -> None:
    healthy.set_attributes(VisibilityTimeout="309")
    assert healthy.ids() == ["D111", "D109"]
    found = next(finding for finding in healthy.findings() if finding.id == "D111")
    assert found.level == "warning"
    assert "a lease of up to 310 s" in found.text
    assert "uses up one more receive for each death" in found.text
    assert "RUNNING" in found.text
    healthy.set_attributes(VisibilityTimeout="310")
    assert healthy.ids() == ["D109"]
    healthy.set_attributes(VisibilityTimeout="300")
    found = next(finding for finding in healthy.findings() if finding.id == "D105")
    assert "a lease of up to 310 s" in found.text


def test_lease_of_a_late_task_is_compared(healthy: Cloud) -> None:
    """The last task of a batch may start 295 s after the receive; its lease ends 605 s after the receive."""
    healthy.lambdas.update_event_source_mapping(UUID=healthy.mapping, MaximumBatchingWindowInSeconds=20)
    healthy.set_attributes(VisibilityTimeout="624")
    assert "a lease of up to 310 s" in only_finding(healthy).text
    healthy.set_attributes(VisibilityTimeout="625")
    assert "lease" not in only_finding(healthy).text


def test_hard_timeout_counts_for_its_own_queue(healthy: Cloud) -> None:
    healthy.set_attributes(VisibilityTimeout="100")

    @lambda_task(queue="heavy", soft_timeout=600, hard_timeout=900)
    def render_elsewhere() -> None: ...

    short = task_with(soft_timeout=50, hard_timeout=60)
    assert "D105" not in healthy.ids(short, render_elsewhere)
    assert "D105" in healthy.ids(task_with(soft_timeout=50, hard_timeout=96))


def test_visibility_timeout_below_the_recommendation_is_found(healthy: Cloud) -> None:
    """AWS recommends six function timeouts plus the batching window."""
    healthy.lambdas.update_event_source_mapping(UUID=healthy.mapping, MaximumBatchingWindowInSeconds=20)
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D109", "warning")
    assert finding.remedy == "Set VisibilityTimeout to 3620 s."
    healthy.set_attributes(VisibilityTimeout="3620")
    assert healthy.ids() == []


def test_short_retention_of_dead_letters_is_found(healthy: Cloud) -> None:
    healthy.set_attributes(healthy.dead_url, MessageRetentionPeriod=str(4 * DAY))
    assert healthy.ids() == ["D106"]


def test_messages_that_outlive_records_are_found(healthy: Cloud) -> None:
    """The cleanup deletes records after seven days by default."""
    healthy.set_attributes(MessageRetentionPeriod=str(8 * DAY))
    finding = only_finding(healthy)
    assert finding.id == "D107"
    assert "the doctor cannot see which arguments your schedule passes" in finding.text
    healthy.set_attributes(MessageRetentionPeriod=str(7 * DAY))
    assert healthy.ids() == []


def test_compared_retention_is_the_cleanups_default() -> None:
    from lambda_tasks.tasks import cleanup_task_records

    assert cleanup_task_records.function.__kwdefaults__ == {"retention_days": findings.DEFAULT_CLEANUP_DAYS}


@pytest.mark.parametrize(
    ("window", "kept", "visibility", "text"),
    [
        (
            DAY,
            4 * DAY,
            5_700,
            "are forgotten after 1 day, and MessageRetentionPeriod is 4 days. A copy of a message",
        ),
        (3_600, 4 * DAY, 5_700, "are forgotten after 3600 s, and VisibilityTimeout is 5700 s. If a worker dies"),
        (4 * DAY, 4 * DAY, 5_700, None),
        (7 * DAY, 4 * DAY, 5_700, None),
    ],
)
def test_success_that_is_forgotten_too_early_is_found(
    healthy: Cloud, settings: Any, window: int, kept: int, visibility: int, text: str | None
) -> None:
    """A copy may come until the queue deletes it, and usually after the visibility timeout."""
    settings.LAMBDA_TASKS_FORGET_AFTER = window
    healthy.set_attributes(MessageRetentionPeriod=str(kept), VisibilityTimeout=str(visibility))
    task = task_with(soft_timeout=50, hard_timeout=60)
    assert healthy.ids(task) == [], "no task forgets its successes"
    settings.LAMBDA_TASKS_RECORD = "failures"
    if text is None:
        assert healthy.ids(task) == []
        return
    finding = only_finding(healthy, task)
    assert (finding.id, finding.level) == ("D115", "warning")
    assert text in finding.text
    settings.LAMBDA_TASKS_FORGET_AFTER = int(re.findall(r"FORGET_AFTER = (\d+)", finding.remedy)[0])
    assert healthy.ids(task) == []


def test_short_retention_is_found(healthy: Cloud) -> None:
    healthy.set_attributes(MessageRetentionPeriod=str(2 * DAY))
    assert healthy.ids() == ["D108"]


def test_message_size_below_the_backends_is_error(healthy: Cloud) -> None:
    healthy.set_attributes(MaximumMessageSize="262143")
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D110", "error")
    assert '"max_message_bytes": 262143' in finding.remedy


# Functions


def test_queue_without_a_function_is_found(healthy: Cloud) -> None:
    healthy.lambdas.delete_event_source_mapping(UUID=healthy.mapping)
    assert "no event source mapping to a function of this account" in only_finding(healthy).text
    assert only_finding(healthy).id == "D201"


def test_disabled_mapping_is_found(healthy: Cloud) -> None:
    healthy.lambdas.update_event_source_mapping(UUID=healthy.mapping, Enabled=False)
    finding = only_finding(healthy)
    assert finding.id == "D201"
    assert "is disabled" in finding.text


def test_mapping_that_ignores_the_response_is_error(cloud: Cloud) -> None:
    cloud.create_function()
    cloud.map(FunctionResponseTypes=[])
    with database_settings(OPTIONS=LIMITS):
        finding = only_finding(cloud)
    assert (finding.id, finding.level) == ("D202", "error")
    assert "lost without an error" in finding.text


def test_function_timeout_below_its_tasks_is_error(healthy: Cloud) -> None:
    assert healthy.ids(task_with(soft_timeout=1, hard_timeout=595)) == []
    finding = only_finding(healthy, task_with(soft_timeout=1, hard_timeout=596))
    assert (finding.id, finding.level) == ("D203", "error")
    assert "601 s" in finding.text


def test_remedy_for_short_function_names_the_setting(healthy: Cloud, settings: Any) -> None:
    settings.LAMBDA_TASKS_MAX_TIMEOUT = 1500
    remedy = only_finding(healthy, task_with(soft_timeout=1, hard_timeout=1495)).remedy
    assert remedy == (
        "Raise the function's timeout to 1500 s or more (Lambda allows 1800 s, and 5400 s on Managed Instances), or "
        "lower hard_timeout and LAMBDA_TASKS_MAX_TIMEOUT, which is 1500 s."
    )


@pytest.mark.parametrize(("timeout", "longest", "ids"), [(901, 900, ["D210"]), (900, 900, []), (901, 901, [])])
def test_function_longer_than_the_setting_is_found(
    cloud: Cloud, settings: Any, timeout: int, longest: int, ids: list[str]
) -> None:
    cloud.create_function(timeout=timeout)
    cloud.map()
    cloud.set_attributes(VisibilityTimeout=str(6 * timeout))
    settings.LAMBDA_TASKS_MAX_TIMEOUT = longest
    with database_settings(OPTIONS=LIMITS):
        assert cloud.ids() == ids
        assert ids == [] or only_finding(cloud).remedy == (
            "Set LAMBDA_TASKS_MAX_TIMEOUT = 901, or lower the function's timeout to 900 s."
        )


@pytest.mark.parametrize(
    ("visibility", "remedy"),
    [
        (5_700, None),
        (5_701, "Set VisibilityTimeout to 5700 s or less, or LAMBDA_TASKS_MAX_TIMEOUT = 901."),
        (32_700, "Set VisibilityTimeout to 5700 s or less, or LAMBDA_TASKS_MAX_TIMEOUT = 5400."),
        (43_200, "Set VisibilityTimeout to 5700 s or less, or LAMBDA_TASKS_MAX_TIMEOUT = 7150."),
    ],
)
def test_message_that_returns_too_late_is_found(
    healthy: Cloud, settings: Any, visibility: int, remedy: str | None
) -> None:
    healthy.set_attributes(VisibilityTimeout=str(visibility))
    if remedy is None:
        assert healthy.ids() == []
        return
    finding = only_finding(healthy)
    assert (finding.id, finding.level, finding.remedy) == ("D114", "warning", remedy)
    if advised := re.search(r"TIMEOUT = (\d+)", remedy):
        settings.LAMBDA_TASKS_MAX_TIMEOUT = int(advised[1])
        assert healthy.ids() == []


@pytest.mark.parametrize(
    ("reserved", "maximum", "ids"), [(10, None, ["D204"]), (10, 11, ["D204"]), (10, 10, []), (0, 10, ["D205"])]
)
def test_reserved_concurrency_without_mapping_limit_is_found(
    cloud: Cloud, reserved: int, maximum: int | None, ids: list[str]
) -> None:
    cloud.create_function()
    cloud.map(**({"ScalingConfig": {"MaximumConcurrency": maximum}} if maximum else {}))
    # moto treats 0 as "not set".
    cloud.answers["lambda.GetFunctionConcurrency"] = (200, {"ReservedConcurrentExecutions": reserved})
    with database_settings(OPTIONS=LIMITS):
        assert cloud.ids() == ids


def test_reserved_concurrency_is_read_from_the_function(cloud: Cloud) -> None:
    cloud.create_function()
    cloud.map()
    cloud.reserve(10)
    with database_settings(OPTIONS=LIMITS):
        assert cloud.ids() == ["D204"]


def test_terminated_loops_are_an_error(healthy: Cloud) -> None:
    healthy.answers["lambda.GetFunctionRecursionConfig"] = (200, {"RecursiveLoop": "Terminate"})
    assert (only_finding(healthy).id, only_finding(healthy).level) == ("D206", "error")


def test_only_the_named_function_is_examined(healthy: Cloud) -> None:
    assert healthy.ids(function="shop-tasks") == []
    finding = healthy.findings(function="shop-mails")[0]
    assert finding.id == "D201"
    assert "'shop-mails'" in finding.text


def test_missing_function_is_an_error(healthy: Cloud) -> None:
    healthy.lambdas.delete_function(FunctionName="shop-tasks")
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D208", "error")
    assert finding.subject == "function 'shop-tasks'"
    healthy.refuse("lambda.ListEventSourceMappings")
    assert healthy.ids(function="shop-tasks") == ["D001", "D208"]


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        ({"Handler": "lambda_function.lambda_handler"}, ["D207"]),
        ({"Handler": "tests/operations/test_doctor.own_handler"}, []),
        ({"Handler": "tests.operations.test_doctor.DAY"}, ["D207"]),
        ({"Handler": None}, []),
        ({"Handler": None, "ImageConfigResponse": {"ImageConfig": {"Command": ["app.handler"]}}}, ["D207"]),
    ],
)
def test_handler_of_another_program_is_found(healthy: Cloud, change: dict[str, Any], ids: list[str]) -> None:
    own = healthy.lambdas.get_function_configuration(FunctionName="shop-tasks")
    answer = {"Handler": own["Handler"], "Timeout": own["Timeout"]} | change
    kept = {name: value for name, value in answer.items() if value is not None}
    healthy.answers["lambda.GetFunctionConfiguration"] = (200, kept)
    assert healthy.ids() == ids


def own_handler(event: Any, context: Any) -> None: ...


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        ({"FilterCriteria": {"Filters": [{"Pattern": '{"body": {"task_name": ["shop"]}}'}]}}, ["D209"]),
        ({"FilterCriteria": {"Filters": []}}, []),
        ({"FilterCriteriaError": {"ErrorCode": "AccessDenied", "Message": "no"}}, ["D209"]),
    ],
)
def test_filters_that_delete_messages_are_found(healthy: Cloud, change: dict[str, Any], ids: list[str]) -> None:
    change_mapping(healthy, change)
    assert healthy.ids() == ids


@pytest.mark.parametrize(
    ("reserved", "pollers", "remedy"),
    [
        (100, {"MaximumPollers": 11}, "MaximumPollers to 10 or less"),
        (100, {"MaximumPollers": 10}, ""),
        (100, {"MinimumPollers": 2}, "MaximumPollers to 10 or less"),
        (19, {"MaximumPollers": 2}, "Remove ProvisionedPollerConfig"),
    ],
)
def test_provisioned_pollers_beyond_reserved_concurrency_are_found(
    healthy: Cloud, reserved: int, pollers: dict[str, int], remedy: str
) -> None:
    change_mapping(healthy, {"ScalingConfig": None, "ProvisionedPollerConfig": pollers})
    healthy.answers["lambda.GetFunctionConcurrency"] = (200, {"ReservedConcurrentExecutions": reserved})
    found = healthy.findings()
    assert [(finding.id, remedy in finding.remedy) for finding in found] == ([("D204", True)] if remedy else [])


def change_mapping(cloud: Cloud, change: dict[str, Any]) -> None:
    """Show the doctor other properties of the mapping: moto does not know all."""
    mappings = cloud.lambdas.list_event_source_mappings()["EventSourceMappings"]
    shown = {name: value for name, value in (mappings[0] | change).items() if value is not None}
    shown.pop("LastModified", None)
    cloud.answers["lambda.ListEventSourceMappings"] = (200, {"EventSourceMappings": [shown]})


# Failed queries


def test_unreadable_queue_is_reported(healthy: Cloud) -> None:
    healthy.refuse("sqs.GetQueueAttributes")
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D001", "skipped")
    assert "this check was skipped" in finding.text
    assert "not authorized" in finding.text
    assert "sqs:GetQueueAttributes" in finding.remedy


@pytest.mark.parametrize(
    ("operation", "permission"),
    [
        ("lambda.ListEventSourceMappings", "lambda:ListEventSourceMappings"),
        ("lambda.GetFunctionConfiguration", "lambda:GetFunctionConfiguration"),
        ("lambda.GetFunctionConcurrency", "lambda:GetFunctionConcurrency"),
        ("lambda.GetFunctionRecursionConfig", "lambda:GetFunctionRecursionConfig"),
        ("sqs.GetQueueUrl", "sqs:GetQueueUrl"),
    ],
)
def test_missing_permission_is_named(healthy: Cloud, operation: str, permission: str) -> None:
    healthy.refuse(operation)
    finding = only_finding(healthy)
    assert finding.id == "D001"
    assert permission in finding.remedy


def test_named_function_is_examined_without_the_mappings(healthy: Cloud) -> None:
    healthy.refuse("lambda.ListEventSourceMappings")
    task = task_with(soft_timeout=1, hard_timeout=596)
    assert healthy.ids(task, function="shop-tasks") == ["D001", "D203"]


def test_unreachable_endpoint_is_reported(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert healthy.ids() == ["D001"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDeniedException", "Grant lambda:GetFunctionConfiguration"),
        ("ExpiredTokenException", "Correct the AWS credentials"),
        ("UnrecognizedClientException", "Correct the AWS credentials"),
        ("TooManyRequestsException", "Run the command again later"),
        ("Surprise", "The request needs the permission lambda:GetFunctionConfiguration"),
    ],
)
def test_remedy_fits_the_error_of_aws(healthy: Cloud, code: str, remedy: str) -> None:
    healthy.answers["lambda.GetFunctionConfiguration"] = (400, {"__type": code, "message": "no"})
    finding = only_finding(healthy)
    assert finding.id == "D001"
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (exceptions.NoCredentialsError(), "Give this process valid AWS credentials"),
        (exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), "Nothing answers at this address"),
        (exceptions.ReadTimeoutError(endpoint_url="http://127.0.0.1:9"), "Nothing answers at this address"),
        (exceptions.NoRegionError(), "Set AWS_DEFAULT_REGION"),
        (exceptions.UnknownClientMethodError(method_name="x"), "Upgrade boto3"),
        (exceptions.BotoCoreError(), "The request needs"),
        (not_found(), "Make sure that it exists in this account and region"),
    ],
)
def test_remedy_fits_the_error_of_botocore(error: Exception, remedy: str) -> None:
    assert remedy in remedy_for(error, "sqs:GetQueueAttributes")
    names_permission = remedy.startswith(("The request needs", "Make sure"))
    assert ("sqs:GetQueueAttributes" in remedy_for(error, "sqs:GetQueueAttributes")) == names_permission


def test_function_of_several_queues_is_asked_once(healthy: Cloud, settings: Any) -> None:
    other = healthy.sqs.client.create_queue(QueueName="second", Attributes=HEALTHY)["QueueUrl"]
    healthy.set_attributes(other, RedrivePolicy=healthy.redrive(10))
    settings.LAMBDA_TASKS_QUEUES = {"default": healthy.url, "second": other}
    healthy.lambdas.create_event_source_mapping(
        EventSourceArn=healthy.arn(other),
        FunctionName="shop-tasks",
        FunctionResponseTypes=["ReportBatchItemFailures"],
        ScalingConfig={"MaximumConcurrency": 10},
    )
    healthy.answers["lambda.GetFunctionRecursionConfig"] = (200, {"RecursiveLoop": "Terminate"})
    healthy.sqs.client.send_message(QueueUrl=healthy.dead_url, MessageBody="{}")
    assert healthy.ids() == ["D113", "D206"]
    asked = Counter(healthy.asked)
    assert asked["lambda.ListEventSourceMappings"] == 2
    assert {asked[f"lambda.GetFunction{what}"] for what in ("Configuration", "Concurrency", "RecursionConfig")} == {1}
    assert asked["sqs.GetQueueUrl"] == 1


# Tasks


@pytest.fixture
def broken_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[None]:
    package = tmp_path / "brokenshop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text("raise RuntimeError('no licence\\nfound')")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "brokenshop"]
    yield
    sys.modules.pop("brokenshop", None)


def test_module_that_cannot_be_imported_is_an_error(healthy: Cloud, broken_app: None) -> None:
    finding = only_finding(healthy)
    assert (finding.id, finding.level, finding.subject) == ("D501", "error", "module 'brokenshop.tasks'")
    assert "RuntimeError: no licence\\nfound. Workers do not run its tasks" in finding.text


def test_tasks_of_all_apps_are_imported_first(
    healthy: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    package = tmp_path / "slowshop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text(
        "from lambda_tasks.decorators import lambda_task\n\n"
        "@lambda_task(soft_timeout=700, hard_timeout=800)\ndef render() -> None: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with only():
            settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "slowshop"]
            assert [finding.id for finding in diagnose(connect=healthy.connect)] == ["D203"]
    finally:
        for name in ("slowshop", "slowshop.tasks"):
            sys.modules.pop(name, None)


# The database


@pytest.mark.django_db
def test_statement_timeout_of_the_server_is_accepted(healthy: Cloud) -> None:
    if connections["default"].vendor != "postgresql":
        pytest.skip("only PostgreSQL has this timeout")
    with database_settings(OPTIONS={name: value for name, value in LIMITS.items() if name != "options"}):
        assert healthy.ids() == ["D304"]
        assert "ALTER ROLE" in only_finding(healthy).remedy
        with connections["default"].cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '120s'")  # as if the role had it
        assert healthy.ids() == []


@pytest.mark.parametrize(
    ("kept", "ids"),
    [
        ({"CONN_MAX_AGE": 600, "CONN_HEALTH_CHECKS": False}, ["D302"]),
        ({"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}, ["D302"]),
        ({"CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False}, []),
    ],
)
def test_persistent_connections_without_health_checks_are_found(healthy: Cloud, kept: Any, ids: list[str]) -> None:
    with database_settings(**kept):
        assert healthy.ids() == ids


class Answering:
    """A cursor of a server that answers every query with the same value."""

    def __init__(self, value: str) -> None:
        self.value = value

    def execute(self, sql: str) -> None: ...

    def fetchone(self) -> tuple[str]:
        return (self.value,)


def test_database_that_does_not_answer_is_skipped(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    monkeypatch.setattr(connections["default"], "cursor", refuse)
    with database_settings(OPTIONS={"connect_timeout": 3, "tcp_user_timeout": 30_000}):
        finding = only_finding(healthy)
    assert (finding.id, finding.subject) == ("D001", "database 'default'")
    assert "this check was skipped: connection refused." in finding.text


@pytest.mark.parametrize(
    ("missing", "id"), [("connect_timeout", "D301"), ("tcp_user_timeout", "D303"), ("options", "D304")]
)
def test_missing_postgresql_timeout_is_found(
    healthy: Cloud, monkeypatch: pytest.MonkeyPatch, missing: str, id: str
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    monkeypatch.setattr(connections["default"], "cursor", lambda: nullcontext(Answering("0")))
    assert healthy.ids() == []
    with database_settings(OPTIONS={name: value for name, value in LIMITS.items() if name != missing}):
        assert healthy.ids() == [id]


@pytest.mark.parametrize(
    ("host", "options", "ids"),
    [
        ("shop.proxy-abc123.eu-west-1.rds.amazonaws.com", LIMITS, ["D307"]),
        ("ro.endpoint.proxy-abc123.cn-north-1.rds.amazonaws.com.cn", LIMITS, ["D307"]),
        ("shop.proxy-abc123.eu-west-1.rds.amazonaws.com", {**LIMITS, "options": ""}, []),
        ("shop.abc123.eu-west-1.rds.amazonaws.com", LIMITS, []),
        ("pgbouncer.example.internal", LIMITS, []),
        (None, LIMITS, []),
    ],
)
def test_options_that_rds_proxy_refuses_are_found(
    healthy: Cloud, monkeypatch: pytest.MonkeyPatch, host: str | None, options: Any, ids: list[str]
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    monkeypatch.setattr(connections["default"], "cursor", lambda: nullcontext(Answering("120s")))
    with database_settings(OPTIONS=options, HOST=host):
        assert healthy.ids() == ids


def test_connect_timeout_may_be_in_the_environment(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")
    with database_settings(OPTIONS=LIMITS | {"connect_timeout": None}):
        assert healthy.ids() == []


@pytest.mark.django_db
@pytest.mark.parametrize(("value", "ids"), [("off", ["D305"]), ("on", [])])
def test_server_that_may_lose_commits_is_found(
    healthy: Cloud, value: str, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (("synchronous_commit", f"SELECT '{value}'", ("off",)),)
    monkeypatch.setitem(database_checks._SETTINGS, connections["default"].vendor, asked)
    found = healthy.findings()
    assert [(finding.id, finding.level, finding.subject) for finding in found] == [
        (id, "warning", "database 'default'") for id in ids
    ]
    assert all(finding.text.startswith("synchronous_commit=off: COMMIT does not wait") for finding in found)


def test_unavailable_database_leaves_durability_unchecked(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OperationalError("connection refused")

    monkeypatch.setitem(database_checks._SETTINGS, connections["default"].vendor, (("fsync", "SHOW fsync", ("off",)),))
    monkeypatch.setattr(connections["default"], "cursor", refuse)
    finding = only_finding(healthy)
    assert (finding.id, finding.subject) == ("D001", "database 'default'")


@pytest.mark.django_db
@pytest.mark.parametrize(("value", "ids"), [("64999", ["D306"]), ("65000", []), ("0", [])])
def test_transaction_that_ends_before_its_task_is_found(
    healthy: Cloud, value: str, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_checks, "_IDLE_TIMEOUTS", {connections["default"].vendor: f"SELECT '{value}'"})
    found = healthy.findings(task_with(soft_timeout=50, hard_timeout=60))
    assert [(finding.id, finding.level) for finding in found] == [(id, "warning") for id in ids]
    assert all("Set it to 65 s or more" in finding.remedy for finding in found)


# The outbox


@pytest.fixture
def with_outbox(healthy: Cloud, settings: Any) -> Cloud:
    """Return a cloud without problems, and an empty outbox."""
    settings.LAMBDA_TASKS_OUTBOX = True
    return healthy


def message(*, due: float | None, using: str = "default", **fields: Any) -> OutboxMessage:
    """Create an outbox message that is due in this many seconds, or dead."""
    values: dict[str, Any] = {"task_name": "shop.tasks.charge", "queue": "default", "body": "4242"}
    values |= {"due_at": None if due is None else from_now(due), "created_at": DatabaseNow()}
    return OutboxMessage.objects.using(using).create(id=uuid4(), **values | fields)


@pytest.mark.django_db
def test_healthy_outbox_has_no_findings(with_outbox: Cloud) -> None:
    message(due=86_400)  # delayed
    message(due=300, error="SQS is away")  # postponed by the longest pause
    message(due=0)
    message(due=-590)  # the next relay takes it
    assert with_outbox.findings() == []


@pytest.mark.django_db
def test_dead_messages_are_an_error(with_outbox: Cloud) -> None:
    """The finding shows the reason of the oldest message."""
    message(due=None, error="ClientError: too large")
    assert "1 message is dead" in only_finding(with_outbox).text
    long_ago = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)
    message(due=None, error="ClientError: " + "x" * 500, created_at=long_ago)
    finding = only_finding(with_outbox)
    assert (finding.id, finding.level, finding.subject) == ("D402", "error", "outbox in database 'default'")
    assert "2 messages are dead, the oldest since 2025-06-01 12:00 UTC (shop.tasks.charge: Client" in finding.text
    assert "x" * 190 not in finding.text
    assert "4242" not in str(finding)
    assert "send them, or delete them" in finding.remedy


@pytest.mark.django_db
def test_overdue_messages_are_found(with_outbox: Cloud) -> None:
    message(due=-610)
    message(due=None)
    message(due=-3_600)
    finding = with_outbox.findings()[1]
    assert (finding.id, finding.level) == ("D403", "warning")
    assert "2 messages are due for more than 10 minutes, the first since 20" in finding.text
    assert "manage.py lambda_tasks relay" in finding.remedy


def test_longest_pause_is_not_overdue() -> None:
    assert findings.OVERDUE >= 2 * LONGEST_PAUSE


@pytest.mark.django_db(databases=["default", "sqlite"])
def test_every_outbox_database_is_queried(with_outbox: Cloud, settings: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = outbox_in("sqlite")
    message(due=None)
    message(due=None, using="sqlite")
    assert [(finding.id, finding.subject) for finding in with_outbox.findings()] == [
        ("D402", "outbox in database 'sqlite'"),
        ("D402", "outbox in database 'default'"),
    ]


@pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])
def test_missing_outbox_table_is_an_error(with_outbox: Cloud, settings: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = outbox_in("sqlite")
    with connections["sqlite"].schema_editor() as editor:
        editor.delete_model(OutboxMessage)
    try:
        finding = only_finding(with_outbox)
    finally:
        with connections["sqlite"].schema_editor() as editor:
            editor.create_model(OutboxMessage)
    assert (finding.id, finding.level, finding.subject) == ("D401", "error", "outbox in database 'sqlite'")
    assert "migrate --database sqlite" in finding.remedy


@pytest.mark.django_db
def test_unreachable_database_is_reported(with_outbox: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(connections["default"].introspection, "table_names", refuse)
    finding = only_finding(with_outbox)
    assert (finding.id, finding.level, finding.subject) == ("D001", "skipped", "outbox in database 'default'")
    assert "this check was skipped: connection refused." in finding.text


@pytest.mark.django_db
def test_transport_behind_the_outbox_is_compared(with_outbox: Cloud) -> None:
    with_outbox.set_attributes(MaximumMessageSize="262143")
    assert with_outbox.ids() == ["D110"]


def test_outbox_table_is_not_queried_without_an_outbox(healthy: Cloud) -> None:
    """pytest-django forbids database access here, so a query would raise."""
    assert healthy.findings() == []


def outbox_in(*databases: str) -> dict[str, Any]:
    options = {"transport": f"{__name__}.SmallMessages", "databases": list(databases)}
    return {"BACKEND": "lambda_tasks.backends.outbox.OutboxBackend", "OPTIONS": options}


# The command


def test_command_reports_errors_and_fails(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambda_tasks.operations.doctor.connect_to_aws", healthy.connect)
    healthy.set_attributes(RedrivePolicy="")
    output = StringIO()
    with only(), pytest.raises(CommandError, match="Checked default: 1 error, 0 warnings, 0 skipped checks") as raised:
        call_command("lambda_tasks", "doctor", stdout=output, skip_checks=True)
    assert raised.value.returncode == 1
    assert "error D103, queue 'default': it has no dead letter queue" in output.getvalue()
    assert "Add a dead letter queue, with a RedrivePolicy" in output.getvalue()


def test_command_succeeds_with_warnings_only(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambda_tasks.operations.doctor.connect_to_aws", healthy.connect)
    healthy.set_attributes(RedrivePolicy=healthy.redrive(1))
    output = StringIO()
    with only():
        call_command("lambda_tasks", "doctor", "--function", "shop-tasks", stdout=output, skip_checks=True)
    assert "warning D104" in output.getvalue()
    assert "Checked default: 0 errors, 1 warning, 0 skipped checks." in output.getvalue()


def test_command_fails_if_checks_were_skipped(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambda_tasks.operations.doctor.connect_to_aws", healthy.connect)
    healthy.refuse("lambda.GetFunctionConcurrency")
    with only(), pytest.raises(CommandError, match=r"1 skipped check.* pass --allow-skipped") as raised:
        call_command("lambda_tasks", "doctor", stdout=StringIO(), skip_checks=True)
    assert raised.value.returncode == 2
    output = StringIO()
    with only():
        call_command("lambda_tasks", "doctor", "--allow-skipped", stdout=output, skip_checks=True)
    assert "0 errors, 0 warnings, 1 skipped check." in output.getvalue()


def test_command_prints_findings_as_json(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lambda_tasks.operations.doctor.connect_to_aws", healthy.connect)
    healthy.set_attributes(RedrivePolicy=healthy.redrive(1))
    output = StringIO()
    with only():
        call_command("lambda_tasks", "doctor", "--format", "json", stdout=output, skip_checks=True)
    found = json.loads(output.getvalue())
    assert {name: found[name] for name in ("queues", "errors", "warnings", "skipped")} == {
        "queues": ["default"],
        "errors": 0,
        "warnings": 1,
        "skipped": 0,
    }
    assert (found["findings"][0]["id"], found["findings"][0]["level"]) == ("D104", "warning")
    assert "survive an outage" in found["notes"][0]


@pytest.mark.parametrize(
    ("options", "colour"),
    [
        (["--no-color", "doctor"], False),
        (["doctor", "--no-color"], False),
        (["--force-color", "doctor"], True),
        (["doctor", "--force-color", "-v", "2", "--traceback", "--pythonpath", ".", "--skip-checks"], True),
    ],
)
def test_common_options_are_accepted_on_both_sides(
    healthy: Cloud, monkeypatch: pytest.MonkeyPatch, options: list[str], colour: bool
) -> None:
    monkeypatch.setattr("lambda_tasks.operations.doctor.connect_to_aws", healthy.connect)
    healthy.set_attributes(RedrivePolicy=healthy.redrive(1))
    output = StringIO()
    with only():
        call_command("lambda_tasks", *options, stdout=output, skip_checks=True)
    assert ("\x1b[" in output.getvalue()) == colour


def test_missing_subcommand_prints_the_names_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Command().run_from_argv(["manage.py", "lambda_tasks"])
    assert f"{{{','.join(each.name for each in SUBCOMMANDS)}}}" in "".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("arguments", [["-v", "3", "reap"], ["reap", "-v", "3"], ["-v", "0", "reap", "-v", "3"]])
def test_option_keeps_its_value_on_both_sides(arguments: list[str]) -> None:
    command = Command()
    options = command.create_parser("manage.py", "lambda_tasks").parse_args(arguments)
    assert options.verbosity == 3
    assert command.create_parser("manage.py", "lambda_tasks").parse_args(["reap"]).verbosity == 1


@pytest.mark.parametrize(
    ("receives", "retention", "text"),
    [
        (5, 4 * DAY, "5, messages survive an outage of 6 h 10 min."),
        (10, DAY, "10, messages survive an outage of 24 h."),
    ],
)
def test_doctor_states_the_survived_outage(
    healthy: Cloud, receives: int, retention: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command reports it with or without a finding; messages do not outlive their retention."""
    monkeypatch.setattr("lambda_tasks.operations.doctor.connect_to_aws", healthy.connect)
    healthy.set_attributes(RedrivePolicy=healthy.redrive(receives), MessageRetentionPeriod=str(retention))
    output = StringIO()
    with only():
        call_command("lambda_tasks", "doctor", stdout=output, skip_checks=True)
    assert f"queue 'default': with a maxReceiveCount of {text}" in output.getvalue()


def test_invalid_settings_are_reported_in_a_sentence() -> None:
    with (
        override_settings(LAMBDA_TASKS_QUEUES={}),
        pytest.raises(CommandError, match="LAMBDA_TASKS_QUEUES must contain a queue"),
    ):
        call_command("lambda_tasks", "doctor", skip_checks=True)


# The page


def test_every_finding_is_documented_with_a_remedy() -> None:
    # Each section begins with the level.
    sections = dict(re.findall(r"^### `(D\d{3})`\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert list(sections) == list(findings.LEVELS)
    for id, text in sections.items():
        assert text.strip().startswith(f"{findings.LEVELS[id].capitalize()}. **")
        assert id == "D001" or "Remedy: " in text


def test_every_finding_has_a_test() -> None:
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_doctor*.py"))
    assert [id for id in findings.LEVELS if f'"{id}"' not in tests] == []


# Schedules


@pytest.fixture
def every_five_minutes() -> Iterator[Any]:
    """Yield a periodic task that was started before."""
    with own_tasks():
        task = periodic(look_around, Every(minutes=5, name="five"))
        fire_due()
        yield task


def look_around() -> None: ...


@pytest.mark.django_db
def test_schedule_that_runs_has_no_finding(healthy: Cloud, every_five_minutes: Any) -> None:
    TaskSchedule.objects.update(last_tick=epoch_now("default") - 600)
    assert healthy.findings(every_five_minutes) == []


@pytest.mark.django_db
def test_paused_schedule_has_no_finding(healthy: Cloud, every_five_minutes: Any) -> None:
    TaskSchedule.objects.update(last_tick=0, paused=True)
    assert healthy.findings(every_five_minutes) == []


@pytest.mark.django_db
def test_overdue_schedule_is_found(healthy: Cloud, every_five_minutes: Any) -> None:
    TaskSchedule.objects.update(last_tick=0)
    finding = only_finding(healthy, every_five_minutes)
    assert (finding.id, finding.level, finding.subject) == ("D405", "warning", "schedules in database 'default'")
    assert f"the first since 1970-01-01 00:05 UTC ({__name__}.look_around:five). No process starts them" in finding.text
    assert "manage.py lambda_tasks tick" in finding.remedy


@pytest.mark.django_db
def test_missing_table_of_schedules_is_error(
    healthy: Cloud, every_five_minutes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskSchedule._meta, "db_table", "missing")
    finding = only_finding(healthy, every_five_minutes)
    assert (finding.id, finding.level) == ("D404", "error")
    assert "manage.py migrate --database default" in finding.remedy


@pytest.mark.django_db
def test_unavailable_database_skips_the_schedules(
    healthy: Cloud, every_five_minutes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(alias: str) -> int:
        raise OperationalError("the database is away")

    monkeypatch.setattr("lambda_tasks.operations.doctor.schedules.epoch_now", fail)
    finding = only_finding(healthy, every_five_minutes)
    assert (finding.id, finding.subject) == ("D001", "schedules in database 'default'")
    assert "skipped: the database is away." in finding.text
