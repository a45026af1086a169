"""The doctor asks a real SQS and a real Lambda API (moto's), and says what would lose or repeat work."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections
from django.test import override_settings

from lambda_tasks import doctor
from lambda_tasks.backends.relay import LONGEST_PAUSE, from_now
from lambda_tasks.backends.sqs import SQSBackend
from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.doctor import Finding, connect_to_aws, diagnose
from lambda_tasks.models import DatabaseNow, OutboxMessage
from tests.conftest import Sqs
from tests.test_checks import only

# It is about AWS, and not about a version of Python or Django.
pytestmark = pytest.mark.once

PAGE = Path(__file__).parent.parent / "docs/reference/doctor.md"

DAY = 86_400
HEALTHY = {
    "VisibilityTimeout": "3600",
    "MessageRetentionPeriod": str(4 * DAY),
    "MaximumMessageSize": "262144",
}
#: Limits of PostgreSQL's client, as the page on deploying has them.
LIMITS = {"connect_timeout": 3, "tcp_user_timeout": 30_000, "options": "-c statement_timeout=120s"}


class SmallMessages(SQSBackend):
    """Sends what the queues of these tests take: moto knows no larger ones."""

    def __init__(self) -> None:
        super().__init__(max_message_bytes=262_144)


class Cloud:
    """A healthy queue with its dead letter queue, function and mapping; the tests make them ill."""

    def __init__(self, sqs: Sqs) -> None:
        self.sqs = sqs
        self.url = sqs.queues["default"]
        self.lambdas = boto3.client("lambda", endpoint_url=sqs.endpoint)
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {
            # moto does not know it.
            "lambda.GetFunctionRecursionConfig": (200, {"RecursiveLoop": "Allow"})
        }
        self.dead_url = sqs.client.create_queue(QueueName="dead")["QueueUrl"]
        self.set_attributes(self.dead_url, MessageRetentionPeriod=str(14 * DAY))
        self.set_attributes(**HEALTHY, RedrivePolicy=self.redrive(10))
        self.mapping = ""

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

    def connect(self, service: str, region: str | None) -> Any:
        """As the doctor connects, but what `answers` names is answered on the way."""
        client = connect_to_aws(service, region)
        for name, (status, body) in self.answers.items():
            client.meta.events.register(f"before-send.{name}", _answer(status, body))
        return client

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
def cloud(sqs: Sqs, settings: Any) -> Cloud:
    settings.LAMBDA_TASKS_QUEUES = {"default": sqs.queues["default"]}
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.SmallMessages"
    return Cloud(sqs)


@pytest.fixture
def healthy(cloud: Cloud) -> Iterator[Cloud]:
    """A cloud, and a database, with nothing to find."""
    cloud.create_function()
    cloud.map(ScalingConfig={"MaximumConcurrency": 10})
    with database_settings(CONN_MAX_AGE=600, CONN_HEALTH_CHECKS=True, OPTIONS=LIMITS):
        yield cloud


@contextmanager
def database_settings(**settings: Any) -> Iterator[None]:
    connection = connections["default"]
    before = connection.settings_dict
    connection.settings_dict = {**before, **settings}
    try:
        yield
    finally:
        connection.settings_dict = before


def task_with(**options: Any) -> LambdaTaskWrapper[..., Any]:
    @lambda_task(**options)
    def render() -> None: ...

    return render


def only_finding(cloud: Cloud, *tasks: LambdaTaskWrapper[..., Any]) -> Finding:
    [finding] = cloud.findings(*tasks)
    return finding


def test_there_is_nothing_to_find_where_all_is_well(healthy: Cloud) -> None:
    assert healthy.findings() == []


# Queues


def test_a_queue_that_does_not_exist_is_an_error(healthy: Cloud, settings: Any) -> None:
    settings.LAMBDA_TASKS_QUEUES = {"default": healthy.url + "-misspelt"}
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D101", "error")
    assert "-misspelt" in finding.text


def test_a_fifo_queue_is_an_error(healthy: Cloud, settings: Any) -> None:
    url = healthy.sqs.client.create_queue(QueueName="tasks.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]
    settings.LAMBDA_TASKS_QUEUES = {"default": url}
    assert "D102" in healthy.ids()


def test_a_queue_without_a_dead_letter_queue_is_an_error(healthy: Cloud) -> None:
    healthy.set_attributes(RedrivePolicy="")
    assert (only_finding(healthy).id, only_finding(healthy).level) == ("D103", "error")


@pytest.mark.parametrize(("receives", "ids"), [(1, ["D104"]), (4, ["D104"]), (5, []), (10, [])])
def test_too_few_receives_are_found_and_ten_advised(healthy: Cloud, receives: int, ids: list[str]) -> None:
    healthy.set_attributes(RedrivePolicy=healthy.redrive(receives))
    findings = healthy.findings()
    assert [finding.id for finding in findings] == ids
    assert all("Set it to 10" in finding.remedy for finding in findings)


def test_a_visibility_timeout_below_the_longest_hard_timeout_is_an_error(healthy: Cloud) -> None:
    healthy.set_attributes(VisibilityTimeout="304")
    assert healthy.ids() == ["D105", "D109"]
    healthy.set_attributes(VisibilityTimeout="305")
    assert healthy.ids() == ["D109"]


def test_the_longest_hard_timeout_is_that_of_the_queues_own_tasks(healthy: Cloud) -> None:
    healthy.set_attributes(VisibilityTimeout="100")

    @lambda_task(queue="heavy", soft_timeout=600, hard_timeout=900)
    def render_elsewhere() -> None: ...

    short = task_with(soft_timeout=50, hard_timeout=60)
    assert "D105" not in healthy.ids(short, render_elsewhere)
    assert "D105" in healthy.ids(task_with(soft_timeout=50, hard_timeout=96))


def test_a_visibility_timeout_below_six_function_timeouts_and_the_window_is_found(healthy: Cloud) -> None:
    healthy.lambdas.update_event_source_mapping(UUID=healthy.mapping, MaximumBatchingWindowInSeconds=20)
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D109", "warning")
    assert finding.remedy == "Set VisibilityTimeout to 3620 s."
    healthy.set_attributes(VisibilityTimeout="3620")
    assert healthy.ids() == []


def test_a_dead_letter_queue_that_keeps_messages_no_longer_than_the_queue_is_found(healthy: Cloud) -> None:
    healthy.set_attributes(healthy.dead_url, MessageRetentionPeriod=str(4 * DAY))
    assert healthy.ids() == ["D106"]


def test_messages_that_outlive_the_records_of_a_cleanup_by_default_are_found(healthy: Cloud) -> None:
    healthy.set_attributes(MessageRetentionPeriod=str(8 * DAY))
    finding = only_finding(healthy)
    assert finding.id == "D107"
    assert "cannot be seen from here" in finding.text
    healthy.set_attributes(MessageRetentionPeriod=str(7 * DAY))
    assert healthy.ids() == []


def test_the_default_of_the_cleanup_is_the_one_that_is_compared() -> None:
    from lambda_tasks.tasks import cleanup_task_records

    assert cleanup_task_records.function.__kwdefaults__ == {"retention_days": doctor.DEFAULT_CLEANUP_DAYS}


def test_a_retention_shorter_than_a_long_weekend_is_found(healthy: Cloud) -> None:
    healthy.set_attributes(MessageRetentionPeriod=str(2 * DAY))
    assert healthy.ids() == ["D108"]


def test_a_queue_that_takes_less_than_the_backend_lets_pass_is_an_error(healthy: Cloud) -> None:
    healthy.set_attributes(MaximumMessageSize="262143")
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D110", "error")
    assert '"max_message_bytes": 262143' in finding.remedy


# Functions


def test_a_queue_that_no_function_takes_from_is_found(healthy: Cloud) -> None:
    healthy.lambdas.delete_event_source_mapping(UUID=healthy.mapping)
    assert "no event source mapping to a function of this account" in only_finding(healthy).text
    assert only_finding(healthy).id == "D201"


def test_a_mapping_that_is_disabled_is_found(healthy: Cloud) -> None:
    healthy.lambdas.update_event_source_mapping(UUID=healthy.mapping, Enabled=False)
    finding = only_finding(healthy)
    assert finding.id == "D201"
    assert "is disabled" in finding.text


def test_a_mapping_that_does_not_read_the_answer_is_an_error(cloud: Cloud) -> None:
    cloud.create_function()
    cloud.map(FunctionResponseTypes=[])
    with database_settings(OPTIONS=LIMITS):
        finding = only_finding(cloud)
    assert (finding.id, finding.level) == ("D202", "error")
    assert "Lost without an error" in finding.text


def test_a_function_that_ends_before_its_tasks_is_an_error(healthy: Cloud) -> None:
    assert healthy.ids(task_with(soft_timeout=1, hard_timeout=595)) == []
    finding = only_finding(healthy, task_with(soft_timeout=1, hard_timeout=596))
    assert (finding.id, finding.level) == ("D203", "error")
    assert "601 s" in finding.text


@pytest.mark.parametrize(
    ("reserved", "maximum", "ids"), [(10, None, ["D204"]), (10, 11, ["D204"]), (10, 10, []), (0, 10, ["D205"])]
)
def test_reserved_concurrency_without_a_limit_of_the_mapping_is_found(
    cloud: Cloud, reserved: int, maximum: int | None, ids: list[str]
) -> None:
    cloud.create_function()
    cloud.map(**({"ScalingConfig": {"MaximumConcurrency": maximum}} if maximum else {}))
    # moto takes 0 for "not set".
    cloud.answers["lambda.GetFunctionConcurrency"] = (200, {"ReservedConcurrentExecutions": reserved})
    with database_settings(OPTIONS=LIMITS):
        assert cloud.ids() == ids


def test_reserved_concurrency_is_asked_of_the_function(cloud: Cloud) -> None:
    cloud.create_function()
    cloud.map()
    cloud.reserve(10)
    with database_settings(OPTIONS=LIMITS):
        assert cloud.ids() == ["D204"]


def test_a_function_whose_loops_are_stopped_is_an_error(healthy: Cloud) -> None:
    healthy.answers["lambda.GetFunctionRecursionConfig"] = (200, {"RecursiveLoop": "Terminate"})
    assert (only_finding(healthy).id, only_finding(healthy).level) == ("D206", "error")


def test_only_the_named_function_is_looked_at(healthy: Cloud) -> None:
    assert healthy.ids(function="shop-tasks") == []
    finding = healthy.findings(function="shop-mails")[0]
    assert finding.id == "D201"
    assert "'shop-mails'" in finding.text


# What cannot be asked


def test_a_queue_that_may_not_be_asked_is_not_called_fine(healthy: Cloud) -> None:
    healthy.refuse("sqs.GetQueueAttributes")
    finding = only_finding(healthy)
    assert (finding.id, finding.level) == ("D001", "unasked")
    assert "could not be asked" in finding.text
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
def test_a_missing_permission_is_named(healthy: Cloud, operation: str, permission: str) -> None:
    healthy.refuse(operation)
    finding = only_finding(healthy)
    assert finding.id == "D001"
    assert permission in finding.remedy


def test_the_named_function_is_looked_at_although_the_mappings_may_not_be_listed(healthy: Cloud) -> None:
    healthy.refuse("lambda.ListEventSourceMappings")
    task = task_with(soft_timeout=1, hard_timeout=596)
    assert healthy.ids(task, function="shop-tasks") == ["D001", "D203"]


def test_an_address_where_nobody_listens_is_not_called_fine(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert healthy.ids() == ["D001"]


# The database


@pytest.mark.parametrize(
    ("kept", "ids"),
    [
        ({"CONN_MAX_AGE": 600, "CONN_HEALTH_CHECKS": False}, ["D302"]),
        ({"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}, ["D302"]),
        ({"CONN_MAX_AGE": 0, "CONN_HEALTH_CHECKS": False}, []),
    ],
)
def test_connections_that_are_kept_unchecked_are_found(healthy: Cloud, kept: Any, ids: list[str]) -> None:
    with database_settings(**kept):
        assert healthy.ids() == ids


@pytest.mark.parametrize(
    ("missing", "id"), [("connect_timeout", "D301"), ("tcp_user_timeout", "D303"), ("options", "D304")]
)
def test_a_postgresql_that_would_be_waited_for_without_end_is_found(
    healthy: Cloud, monkeypatch: pytest.MonkeyPatch, missing: str, id: str
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    assert healthy.ids() == []
    with database_settings(OPTIONS={name: value for name, value in LIMITS.items() if name != missing}):
        assert healthy.ids() == [id]


def test_a_connect_timeout_in_the_environment_is_one(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")
    with database_settings(OPTIONS=LIMITS | {"connect_timeout": None}):
        assert healthy.ids() == []


# The outbox


@pytest.fixture
def with_outbox(healthy: Cloud, settings: Any) -> Cloud:
    """A cloud with nothing to find, and an outbox that is empty."""
    settings.LAMBDA_TASKS_OUTBOX = True
    return healthy


def message(*, due: float | None, using: str = "default", **fields: Any) -> OutboxMessage:
    """Put a message into the outbox that is due in so many seconds, or dead."""
    values: dict[str, Any] = {"task_name": "shop.tasks.charge", "queue": "default", "body": "4242"}
    values |= {"due_at": None if due is None else from_now(due), "created_at": DatabaseNow()}
    return OutboxMessage.objects.using(using).create(id=uuid4(), **values | fields)


@pytest.mark.django_db
def test_there_is_nothing_to_find_in_an_outbox_where_all_is_well(with_outbox: Cloud) -> None:
    message(due=86_400)  # delayed
    message(due=300, error="SQS is away")  # put off for the longest time
    message(due=0)
    message(due=-590)  # the next relay takes it
    assert with_outbox.findings() == []


@pytest.mark.django_db
def test_dead_messages_are_an_error_with_the_reason_of_the_oldest(with_outbox: Cloud) -> None:
    message(due=None, error="ClientError: too large")
    assert "1 message is dead" in only_finding(with_outbox).text
    long_ago = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)
    message(due=None, error="ClientError: " + "x" * 500, created_at=long_ago)
    finding = only_finding(with_outbox)
    assert (finding.id, finding.level, finding.subject) == ("D402", "error", "outbox in database 'default'")
    assert "2 messages are dead, the oldest since 2025-06-01 12:00 UTC (shop.tasks.charge: Client" in finding.text
    assert "x" * 190 not in finding.text
    assert "4242" not in str(finding)
    assert "send them, or discard them" in finding.remedy


@pytest.mark.django_db
def test_messages_that_nobody_relays_are_found(with_outbox: Cloud) -> None:
    message(due=-610)
    message(due=None)
    message(due=-3_600)
    finding = with_outbox.findings()[1]
    assert (finding.id, finding.level) == ("D403", "warning")
    assert "2 messages are due for more than 10 minutes, the first since 20" in finding.text
    assert "manage.py lambda_tasks relay" in finding.remedy


def test_what_is_put_off_for_as_long_as_can_be_is_not_taken_for_forgotten() -> None:
    assert doctor.OVERDUE >= 2 * LONGEST_PAUSE


@pytest.mark.django_db(databases=["default", "sqlite"])
def test_every_database_that_has_an_outbox_is_asked(with_outbox: Cloud, settings: Any) -> None:
    settings.LAMBDA_TASKS_BACKEND = outbox_in("sqlite")
    message(due=None)
    message(due=None, using="sqlite")
    assert [(finding.id, finding.subject) for finding in with_outbox.findings()] == [
        ("D402", "outbox in database 'sqlite'"),
        ("D402", "outbox in database 'default'"),
    ]


@pytest.mark.django_db(transaction=True, databases=["default", "sqlite"])
def test_an_outbox_without_a_table_is_an_error(with_outbox: Cloud, settings: Any) -> None:
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
def test_a_database_that_does_not_answer_is_not_called_fine(
    with_outbox: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(connections["default"].introspection, "table_names", refuse)
    finding = only_finding(with_outbox)
    assert (finding.id, finding.level, finding.subject) == ("D001", "unasked", "outbox in database 'default'")
    assert "could not be asked: connection refused." in finding.text


@pytest.mark.django_db
def test_the_transport_behind_the_outbox_is_the_one_whose_limit_is_compared(with_outbox: Cloud) -> None:
    with_outbox.set_attributes(MaximumMessageSize="262143")
    assert with_outbox.ids() == ["D110"]


def test_without_an_outbox_its_table_is_left_alone(healthy: Cloud) -> None:
    """Without the permission to ask a database, as pytest-django gives it, a query would raise."""
    assert healthy.findings() == []


def outbox_in(*databases: str) -> dict[str, Any]:
    options = {"transport": f"{__name__}.SmallMessages", "databases": list(databases)}
    return {"BACKEND": "lambda_tasks.backends.outbox.OutboxBackend", "OPTIONS": options}


# The command


def test_the_command_ends_with_an_error_after_it_has_said_what_is_wrong(
    healthy: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "connect_to_aws", healthy.connect)
    healthy.set_attributes(RedrivePolicy="")
    output = StringIO()
    with only(), pytest.raises(CommandError, match="Looked at default: 1 error, 0 warnings, 0 questions") as raised:
        call_command("lambda_tasks", "doctor", stdout=output, skip_checks=True)
    assert raised.value.returncode == 1
    assert "error D103, queue 'default': it has no dead letter queue" in output.getvalue()
    assert "Give it a RedrivePolicy" in output.getvalue()


def test_the_command_succeeds_where_there_are_only_warnings(healthy: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "connect_to_aws", healthy.connect)
    healthy.set_attributes(RedrivePolicy=healthy.redrive(1))
    output = StringIO()
    with only():
        call_command("lambda_tasks", "doctor", "--function", "shop-tasks", stdout=output, skip_checks=True)
    assert "warning D104" in output.getvalue()
    assert "Looked at default: 0 errors, 1 warning, 0 questions without an answer." in output.getvalue()


def test_settings_that_cannot_be_used_are_told_in_a_sentence() -> None:
    with override_settings(LAMBDA_TASKS_QUEUES={}), pytest.raises(CommandError, match="LAMBDA_TASKS_QUEUES has the"):
        call_command("lambda_tasks", "doctor", skip_checks=True)


# The page


def test_every_finding_is_documented_with_its_level_and_a_remedy() -> None:
    sections = dict(re.findall(r"^### `(D\d{3})`\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert list(sections) == list(doctor.LEVELS)
    for id, text in sections.items():
        assert text.strip().startswith(f"{doctor.LEVELS[id].capitalize()}. **")
        assert id == "D001" or "Remedy: " in text


def test_every_finding_is_brought_about_by_a_test() -> None:
    tests = Path(__file__).read_text()
    assert [id for id in doctor.LEVELS if f'"{id}"' not in tests] == []
