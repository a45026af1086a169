"""The description of a deployment fits the settings and the tasks, and every format contains all of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command

from lambda_tasks import handler, maintenance, registry
from lambda_tasks.backends.bucket import ADVISED_DAYS
from lambda_tasks.definition.schedules import Every
from lambda_tasks.handler import time_needed
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.operations.infrastructure import Options, PerQueue, describe, render
from lambda_tasks.operations.infrastructure.options import assignments, per_queue
from lambda_tasks.tasks import cleanup_task_records
from lambda_tasks.wire.visibility import lost_after
from tests.operations.infrastructure import (
    EVERYTHING,
    KEY,
    PLACE,
    QUEUES,
    REFERENCE,
    SECRET,
    TOPIC,
    described,
    load,
    properties,
    resources,
    task_with,
)

OUTBOX = {"BACKEND": "lambda_tasks.backends.outbox.OutboxBackend"}
FORMATS = ("cloudformation", "sam", "terraform")


class TestNumbers:
    def test_default_limits_determine_the_numbers(self) -> None:
        found = described(queues={"default": QUEUES["default"]})
        [function], [queue] = found.functions, found.queues
        [mapping] = function.mappings
        assert (function.timeout.value, mapping.batch_size.value, queue.visibility_timeout.value) == (600, 10, 3600)
        assert queue.visibility_timeout.value <= lost_after()

    @pytest.mark.parametrize(("longest", "hard_timeout", "seconds"), [(1_200, 895, 1_200), (5_400, 1_795, 1_800)])
    def test_setting_and_lambda_limit_the_function(
        self, settings: Any, longest: int, hard_timeout: int, seconds: int
    ) -> None:
        settings.LAMBDA_TASKS_MAX_TIMEOUT = longest
        task = task_with(queue="heavy", soft_timeout=1, hard_timeout=hard_timeout)
        found = described(Options(function_per_queue=True), task)
        assert found.function("heavy").timeout.value == seconds
        assert found.queue("heavy").visibility_timeout.value == 6 * seconds <= lost_after()

    @pytest.mark.parametrize(
        ("longest", "hard_timeout", "remedy"),
        [
            (900, 896, "at most 895 s, not 896: .*DEFAULT_HARD_TIMEOUT, or raise LAMBDA_TASKS_MAX_TIMEOUT, to 1800 at"),
            (5_400, 1_796, "at most 1795 s, not 1796: .* Lambda stops a function after 1800 s, except on Managed"),
        ],
    )
    def test_task_longer_than_its_function_is_refused(
        self, settings: Any, longest: int, hard_timeout: int, remedy: str
    ) -> None:
        settings.LAMBDA_TASKS_MAX_TIMEOUT = longest
        with pytest.raises(ImproperlyConfigured, match=remedy):
            described(Options(), task_with(queue="heavy", soft_timeout=1, hard_timeout=hard_timeout))

    @pytest.mark.parametrize("hard_timeout", [2, 10, 59, 300, 450, 660, 890, 895])
    def test_function_outlasts_its_longest_task(self, hard_timeout: int) -> None:
        task = task_with(queue="heavy", soft_timeout=1, hard_timeout=hard_timeout)
        found = described(Options(function_per_queue=True), task)
        function = found.function("heavy")
        assert time_needed(task) <= function.timeout.value <= 900
        assert found.queue("heavy").visibility_timeout.value == 6 * function.timeout.value
        assert task.name in function.timeout.reason

    @pytest.mark.parametrize("hard_timeout", [2, 10, 59, 300, 450, 660, 890, 895])
    def test_batch_of_usual_tasks_fits(self, hard_timeout: int) -> None:
        task = task_with(soft_timeout=1, hard_timeout=hard_timeout)
        [function] = described(None, task).functions
        batch = function.mappings[0].batch_size.value
        assert 1 <= batch <= 10
        assert (batch - 1) * hard_timeout / 10 + time_needed(task) <= function.timeout.value

    def test_common_function_outlasts_tasks_of_all_queues(self) -> None:
        found = described(None, task_with(queue="heavy", soft_timeout=600, hard_timeout=660))
        [function] = found.functions
        assert function.timeout.value == 900
        assert {queue.visibility_timeout.value for queue in found.queues} == {5400}
        assert {mapping.queue: mapping.batch_size.value for mapping in function.mappings} == {"default": 10, "heavy": 4}

    def test_task_beyond_every_function_is_refused(self) -> None:
        task = task_with(soft_timeout=1, hard_timeout=896)
        with pytest.raises(
            ImproperlyConfigured, match=r"hard timeout of .*render_catalogue must be at most 895 s, not"
        ):
            described(None, task)

    def test_window_lengthens_the_visibility_timeout(self) -> None:
        found = described(Options(batching_window=PerQueue(0, {"heavy": 20}), batch_size=PerQueue(None, {"heavy": 50})))
        assert [queue.visibility_timeout.value for queue in found.queues] == [3600, 3620]
        assert found.functions[0].mappings[1].batch_size.value == 50

    def test_chosen_numbers_are_used(self) -> None:
        options = Options(
            function_per_queue=True,
            function_timeout=PerQueue(400, {"heavy": 500}),
            memory=PerQueue(256, {"heavy": 4096}),
            maximum_concurrency=PerQueue(None, {"heavy": 4}),
            max_receives=7,
            log_retention_days=14,
        )
        found = described(options)
        assert [function.timeout.value for function in found.functions] == [400, 500]
        assert [function.memory.value for function in found.functions] == [256, 4096]
        concurrency = [function.mappings[0].maximum_concurrency for function in found.functions]
        assert [number and number.value for number in concurrency] == [None, 4]
        assert {queue.max_receives.value for queue in found.queues} == {7}
        assert found.log_retention_days.value == 14

    def test_message_size_is_that_of_the_backend(self) -> None:
        sqs = {"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": {"max_message_bytes": 262_144}}
        for backend in (sqs, {**OUTBOX, "OPTIONS": {"transport": sqs}}):
            sizes = [queue.max_message_bytes for queue in described(LAMBDA_TASKS_BACKEND=backend).queues]
            assert [size and size.value for size in sizes] == [262_144, 262_144]

    def test_backend_without_limit_leaves_the_size_out(self) -> None:
        found = resources(described(LAMBDA_TASKS_BACKEND="lambda_tasks.backends.memory.MemoryBackend"))
        assert all("MaximumMessageSize" not in queue for queue in properties(found, "SQS::Queue"))


class TestQueues:
    def test_queue_with_two_names_is_created_once(self) -> None:
        task = task_with(queue="mail", soft_timeout=600, hard_timeout=700)
        found = described(None, task, queues={"default": f"{PLACE}/shop", "mail": f"{PLACE}/shop"})
        [queue] = found.queues
        assert (queue.name, queue.aliases) == ("shop", ("default", "mail"))
        assert found.functions[0].timeout.value >= 705

    def test_only_chosen_queues_are_created(self) -> None:
        found = described(Options(queues=("heavy",)))
        assert [queue.name for queue in found.queues] == ["shop-heavy"]
        assert found.functions[0].name == "shop-heavy-tasks"

    @pytest.mark.parametrize(
        ("queues", "problem"),
        [
            ({"default": f"{PLACE}/shop.fifo"}, "must be the URL of a standard queue"),
            ({"default": "shop"}, "must be the URL of a queue, not its name 'shop'"),
            ({"default": "arn:aws:sqs:eu-west-1:123456789012:shop"}, "Use https://sqs.eu-west-1.amazonaws.com/"),
            ({"default": f"http://localhost:4566/000000000000/{'q' * 81}"}, "must end with the name of a queue"),
            ({"default": f"{PLACE}/{'q' * 76}"}, "must have a name of at most 75 characters"),
            (
                {**QUEUES, "far": "https://sqs.eu-west-2.amazonaws.com/123456789012/far"},
                "same region, not default: eu-west-1, heavy: eu-west-1, far: eu-west-2",
            ),
            (
                {**QUEUES, "other": "https://sqs.eu-west-1.amazonaws.com/999999999999/other"},
                r"same account, not .*other: 999999999999.* --queue",
            ),
            ({**QUEUES, "dead": f"{PLACE}/shop-dead"}, "'default' and 'dead' .* must not both be called 'shop-dead'"),
            ({**QUEUES, "a-b": f"{PLACE}/a", "a_b": f"{PLACE}/b"}, "'a-b' and 'a_b' .* must not both be called 'ab'"),
            ({**QUEUES, "é": f"{PLACE}/a"}, "The name 'é' .* must contain a letter or a digit"),
        ],
    )
    def test_unusable_queues_are_refused(self, queues: dict[str, str], problem: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=problem):
            described(queues=queues)

    def test_queue_of_an_emulator_is_accepted(self) -> None:
        found = described(queues={"default": "http://localhost:4566/000000000000/shop"})
        assert (found.account, found.region, found.queues[0].name) == ("000000000000", None, "shop")

    def test_tasks_that_cannot_be_imported_are_reported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
    ) -> None:
        (tmp_path / "ruined").mkdir()
        (tmp_path / "ruined/__init__.py").touch()
        (tmp_path / "ruined/tasks.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
        settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "ruined"]
        with pytest.raises(ImproperlyConfigured, match=r"Module 'ruined.tasks' cannot be imported: ZeroDivisionError"):
            describe(Options())


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"queues": ("nope",)}, "--queue must be a queue in LAMBDA_TASKS_QUEUES .*, not 'nope'"),
            ({"function_timeout": PerQueue(304)}, "--function-timeout must be at least 305 .*, not 304"),
            (
                {"function_timeout": PerQueue(901)},
                "must be at most 900, not 901. Lower it, or raise .*_MAX_TIMEOUT, to 1800",
            ),
            ({"function_timeout": PerQueue(1801)}, "--function-timeout must be an integer from 1 to 1800, not 1801"),
            ({"function_timeout": PerQueue(None, {"heavy": 700})}, "Add --function-per-queue"),
            ({"memory": PerQueue(64)}, "--memory must be an integer from 128 to 10240, not 64"),
            ({"memory": PerQueue(None, {"heavy": 1})}, "--memory of queue 'heavy' must be an integer from 128"),
            ({"batch_size": PerQueue(11)}, "--batch-size must be at most 10 without a batching window, not 11"),
            ({"batch_size": PerQueue(None, {"nope": 2})}, "--batch-size nope=2 must name one of the queues"),
            ({"batching_window": PerQueue(301)}, "from 0 to 300"),
            ({"maximum_concurrency": PerQueue(1)}, "from 2 to 1000, not 1"),
            ({"max_receives": 4}, "--max-receives must be an integer from 5"),
            ({"cleanup_days": 4}, "--cleanup-days must be more than 4, not 4"),
            ({"log_retention_days": 8}, "--log-retention-days must be .*, not 8"),
            ({"function": "shop tasks"}, "--function must be .*, not 'shop tasks'"),
            ({"function": "f" * 60, "function_per_queue": True}, "Lambda allows 64 characters in 'f{60}-heavy'"),
            ({"runtime": "ruby3.3"}, "--runtime must be a Python runtime .*, not 'ruby3.3'"),
            ({"environment": {"A B": "1"}}, "--environment must be .*, not 'A B'"),
            ({"kms_key": "alias/shop"}, "--kms-key must be an ARN .*, not 'alias/shop'"),
            ({"kms_key": KEY.replace("eu-west-1", "us-east-1")}, "region of the queues, eu-west-1, not in us-east-1"),
            ({"alarm_topic": "operators"}, "--alarm-topic must be an ARN .*, not 'operators'"),
            ({"secrets": {"TOKEN": "hunter2"}}, "LAMBDA_TASKS_SECRET_TOKEN must have 10 segments"),
            ({"secrets": {"A": REFERENCE}, "environment": {"A": "b"}}, "Both LAMBDA_TASKS_SECRET_A and A are set"),
        ],
    )
    def test_unusable_option_is_refused(self, options: dict[str, Any], problem: str) -> None:
        with pytest.raises(ValueError, match=problem) as caught:
            described(Options(**options))
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("format", "code", "package", "problem"),
        [
            ("cloudformation", "build", None, "--code must be s3://BUCKET/KEY.zip, or an image"),
            ("terraform", "build", None, "--code must be the path of a .zip file"),
            ("sam", "https://example.com/code.zip", None, "--code must be a directory"),
            ("cloudformation", "s3://shop-code", None, "not 's3://shop-code'"),
            ("cloudformation", "s3://shop-code/tasks.zip", "image", "must be an image because of --package image"),
            ("sam", "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop", None, "with its tag or digest"),
            ("sam", "123456789012.dkr.ecr.us-east-1.amazonaws.com/shop:1", None, "in the region of the functions"),
        ],
    )
    def test_unusable_code_is_refused(self, format: Any, code: str, package: str | None, problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            described(Options(code=code, package=package), format=format)

    def test_numbers_are_read_for_each_queue(self) -> None:
        assert per_queue("--memory", ["512", "heavy=4096"]) == PerQueue(512, {"heavy": 4096})
        assert per_queue("--memory", ["heavy=4096"], default=512).of(["default"]) == 512
        with pytest.raises(ValueError, match="--memory must be a number, or QUEUE=NUMBER for one queue, not 'big'"):
            per_queue("--memory", ["big"])

    def test_malformed_assignment_is_not_shown(self) -> None:
        assert assignments("--environment", ["A=b=c"]) == {"A": "b=c"}
        with pytest.raises(ValueError, match="--secret must be NAME=VALUE") as caught:
            assignments("--secret", ["hunter2"])
        assert "hunter2" not in str(caught.value)

    def test_settings_without_a_module_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
        with pytest.raises(ImproperlyConfigured, match="DJANGO_SETTINGS_MODULE must name the settings"):
            described()

    def test_references_of_the_environment_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LAMBDA_TASKS_SECRET_DATABASE_URL", f"{REFERENCE}\n")
        found = described()
        assert found.environment["LAMBDA_TASKS_SECRET_DATABASE_URL"] == REFERENCE
        assert "ReadSecrets" in {statement.sid for statement in found.functions[0].statements}


class TestSchedules:
    @pytest.mark.parametrize("backend", [OUTBOX, "lambda_tasks.backends.sqs.SQSBackend"])
    def test_rate_depends_on_the_outbox(self, backend: Any) -> None:
        plan = described(LAMBDA_TASKS_BACKEND=backend).maintenance
        assert plan.rate == ("rate(1 minute)" if backend == OUTBOX else "rate(1 hour)")

    def test_periodic_tasks_need_a_rate_of_a_minute(self) -> None:
        task = task_with(schedule=Every(minutes=5))
        assert described(None, task).maintenance.rate == "rate(1 minute)"

    @pytest.mark.parametrize("format", ["cloudformation", "sam"])
    def test_rule_sends_the_maintenance_event(self, format: Any) -> None:
        found = resources(described(EVERYTHING, format=format), format)
        [rule] = properties(found, "Events::Rule")
        [target] = rule["Targets"]
        assert maintenance.wanted(json.loads(target["Input"]))
        [permission] = properties(found, "Lambda::Permission")
        assert target["Arn"] == {"GetAtt": f"{permission['FunctionName']['Ref']}.Arn"}
        assert permission["Principal"] == "events.amazonaws.com"
        assert permission["SourceArn"] == {"GetAtt": "MaintenanceRule.Arn"}
        assert permission["SourceAccount"] == {"Ref": "AWS::AccountId"}

    def test_cleanup_keeps_records_longer_than_messages(self) -> None:
        found = resources(described())
        [schedule] = properties(found, "Scheduler::Schedule")
        message = SQSLambdaTaskMessage.from_body(schedule["Target"]["Input"])
        assert message.task_name == cleanup_task_records.name
        assert cleanup_task_records.signature.decode(message.kwargs) == {"retention_days": 30}
        assert found["DefaultQueue"]["Properties"]["MessageRetentionPeriod"] < 30 * 86_400

    def test_cleanup_can_be_left_out(self) -> None:
        for format in FORMATS:
            text = render(described(Options(cleanup_days=0), format=format), format)
            assert "cleanup_task_records" not in text
            assert "scheduler" not in text


def statements(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all statements of policies that grant something."""
    for role in properties(found, "IAM::Role"):
        for policy in role["Policies"]:
            yield from policy["PolicyDocument"]["Statement"]
    for policy in properties(found, "IAM::ManagedPolicy"):
        yield from policy["PolicyDocument"]["Statement"]


def granted(found: dict[str, Any], role: str) -> dict[str, list[Any]]:
    """Return the resources of each action that a role may do."""
    [policy] = found[role]["Properties"]["Policies"]
    return {
        action: statement["Resource"]
        for statement in policy["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    }


class TestPermissions:
    def test_worker_reads_its_own_queue_only(self) -> None:
        found = resources(described(EVERYTHING))
        own = [{"GetAtt": "HeavyQueue.Arn"}]
        of_worker = granted(found, "HeavyFunctionRole")
        for action in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes", "ChangeMessageVisibility"):
            assert of_worker[f"sqs:{action}"] == own
        assert of_worker["sqs:SendMessage"] == [{"GetAtt": "DefaultQueue.Arn"}, *own]

    def test_worker_reads_its_secrets(self) -> None:
        of_worker = granted(resources(described(EVERYTHING)), "FunctionRole")
        assert of_worker["secretsmanager:GetSecretValue"] == [SECRET]

    def test_worker_writes_its_own_log_only(self) -> None:
        of_worker = granted(resources(described(EVERYTHING)), "HeavyFunctionRole")
        for action in ("logs:CreateLogStream", "logs:PutLogEvents"):
            [streams] = of_worker[action]
            assert streams["Sub"].endswith(":log-group:/aws/lambda/shop-tasks-heavy:log-stream:*")

    def test_web_application_sends_and_nothing_else(self) -> None:
        [policy] = properties(resources(described()), "IAM::ManagedPolicy")
        [statement] = policy["PolicyDocument"]["Statement"]
        assert statement["Action"] == ["sqs:SendMessage"]
        assert statement["Resource"] == [{"GetAtt": "DefaultQueue.Arn"}, {"GetAtt": "HeavyQueue.Arn"}]

    def test_jobs_of_aws_batch_may_be_submitted(self) -> None:
        place = "arn:aws:batch:eu-west-1:123456789012"
        jobs = [f"{place}:job-queue/large", f"{place}:job-definition/tasks:3"]
        latest = [f"{place}:job-queue/small", f"{place}:job-definition/tasks", f"{place}:job-definition/tasks:*"]
        queues = {
            **QUEUES,
            "large": {"job_queue_arn": jobs[0], "job_definition_arn": jobs[1]},
            "small": {"job_queue_arn": latest[0], "job_definition_arn": latest[1]},
        }
        found = resources(described(queues=queues))
        [policy] = properties(found, "IAM::ManagedPolicy")
        submitting = [each for each in policy["PolicyDocument"]["Statement"] if each["Sid"] == "SubmitJobs"]
        assert [(each["Action"], each["Resource"]) for each in submitting] == [(["batch:SubmitJob"], [*jobs, *latest])]
        assert granted(found, "FunctionRole")["batch:SubmitJob"] == [*jobs, *latest]
        assert not properties(found, "Batch::JobQueue")

    def test_only_jobs_need_no_template(self) -> None:
        place = "arn:aws:batch:eu-west-1:123456789012"
        jobs = {"job_queue_arn": f"{place}:job-queue/large", "job_definition_arn": f"{place}:job-definition/tasks"}
        with pytest.raises(ImproperlyConfigured, match="must have a queue of SQS for a template"):
            described(queues={"default": jobs})

    def test_key_is_used_through_its_services_only(self) -> None:
        found = resources(described(EVERYTHING))
        uses = [statement for statement in statements(found) if "kms:Decrypt" in statement["Action"]]
        assert len(uses) == 4  # two functions, the schedule and the application
        for statement in uses:
            assert set(statement["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey"}
            assert statement["Resource"] == [KEY]
            services = statement["Condition"]["StringEquals"]["kms:ViaService"]
            assert {"Sub": "sqs.${AWS::Region}.${AWS::URLSuffix}"} in services

    def test_no_statement_covers_every_resource(self) -> None:
        network = ("ManageInterfaces", "OnlyForLambda")  # AWS has no names for interfaces that do not exist yet
        found = [each for each in statements(resources(described(EVERYTHING))) if each["Sid"] not in network]
        assert found
        for statement in found:
            assert statement["Effect"] == "Allow"
            assert all(action.partition(":")[2].isalpha() for action in statement["Action"])
            for resource in statement["Resource"]:
                text = resource if isinstance(resource, str) else next(iter(resource.values()))
                assert text.removesuffix(":log-stream:*").count("*") == 0

    def test_code_cannot_use_permissions_for_the_network(self) -> None:
        found = resources(described(EVERYTHING))["HeavyFunctionRole"]["Properties"]["Policies"][0]
        allowed, denied = found["PolicyDocument"]["Statement"][-2:]
        assert (allowed["Effect"], denied["Effect"]) == ("Allow", "Deny")
        assert denied["Action"] == allowed["Action"]
        assert "ec2:CreateNetworkInterface" in allowed["Action"]
        source = denied["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"]["Sub"]
        assert source.endswith(":function:shop-tasks-heavy")

    def test_scheduler_is_trusted_for_this_account_only(self) -> None:
        role = resources(described())["SchedulerRole"]["Properties"]
        [statement] = role["AssumeRolePolicyDocument"]["Statement"]
        assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
        assert statement["Condition"]["ArnEquals"]["aws:SourceArn"]["Sub"].endswith(":schedule-group/default")

    @pytest.mark.parametrize("options", [Options(), EVERYTHING])
    def test_queues_are_encrypted_and_refuse_http(self, options: Options) -> None:
        found = resources(described(options))
        policies = {policy["Queues"][0]["Ref"]: policy for policy in properties(found, "SQS::QueuePolicy")}
        queues = {name: each["Properties"] for name, each in found.items() if each["Type"] == "AWS::SQS::Queue"}
        assert len(queues) == 4
        for name, queue in queues.items():
            key = queue.get("KmsMasterKeyId")
            assert key == KEY if options is EVERYTHING else queue["SqsManagedSseEnabled"] is True
            [statement] = policies[name]["PolicyDocument"]["Statement"]
            assert statement["Resource"] == {"GetAtt": f"{name}.Arn"}
            assert (statement["Effect"], statement["Principal"], statement["Action"]) == ("Deny", "*", "sqs:*")
            assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


class TestTemplates:
    def test_references_have_no_circle(self) -> None:
        found = resources(described(EVERYTHING))
        left = {name: {target.partition(".")[0] for target in references(each)} for name, each in found.items()}
        while done := [name for name, targets in left.items() if not targets & left.keys()]:
            for name in done:
                del left[name]
        assert left == {}

    def test_dead_letter_queue_accepts_its_queue_only(self) -> None:
        found = resources(described())
        queue, dead = (found[name]["Properties"] for name in ("HeavyQueue", "HeavyDeadLetterQueue"))
        assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"GetAtt": "HeavyDeadLetterQueue.Arn"}
        [source] = dead["RedriveAllowPolicy"]["sourceQueueArns"]
        assert dead["RedriveAllowPolicy"]["redrivePermission"] == "byQueue"
        assert source["Sub"].endswith(f":{queue['QueueName']}")

    def test_function_runs_the_handler(self) -> None:
        [function] = properties(resources(described()), "Lambda::Function")
        module, _, name = function["Handler"].rpartition(".")
        assert (module, callable(getattr(handler, name))) == (handler.__name__, True)
        assert function["RecursiveLoop"] == "Allow"
        assert function["Environment"]["Variables"]["DJANGO_SETTINGS_MODULE"] == "tests.settings"
        assert function["LoggingConfig"] == {"LogGroup": {"Ref": "FunctionLogs"}}

    def test_mapping_reports_failures_of_single_messages(self) -> None:
        mappings = properties(resources(described(EVERYTHING)), "Lambda::EventSourceMapping")
        assert len(mappings) == 2
        for mapping in mappings:
            assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
            assert mapping["MetricsConfig"] == {"Metrics": ["EventCount"]}

    def test_image_gets_the_handler_as_command(self) -> None:
        image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/shop:42"
        [function] = properties(resources(described(Options(code=image))), "Lambda::Function")
        assert function["PackageType"] == "Image"
        assert function["Code"] == {"ImageUri": image}
        assert function["ImageConfig"] == {"Command": ["lambda_tasks.handler.handler"]}
        assert "Runtime" not in function

    def test_sam_builds_the_current_directory(self) -> None:
        [function] = properties(resources(described(format="sam"), "sam"), "Serverless::Function")
        assert function["CodeUri"] == "."
        found = resources(described(Options(package="image"), format="sam"), "sam")
        assert found["Function"]["Metadata"]["DockerContext"] == "."
        assert "CodeUri" not in found["Function"]["Properties"]

    def test_alarms_watch_queues_and_functions(self) -> None:
        found = properties(resources(described(EVERYTHING)), "CloudWatch::Alarm")
        watched = {(alarm["MetricName"], str(alarm["Dimensions"][0]["Value"])) for alarm in found}
        assert len(found) == len(watched) == 8
        for name in ("Default", "Heavy"):
            assert ("ApproximateNumberOfMessagesVisible", f"{{'GetAtt': '{name}DeadLetterQueue.QueueName'}}") in watched
            assert ("ApproximateAgeOfOldestMessage", f"{{'GetAtt': '{name}Queue.QueueName'}}") in watched
        assert {alarm["MetricName"] for alarm in found} >= {"Errors", "Throttles"}
        assert all(alarm["AlarmActions"] == [TOPIC] for alarm in found)

    @pytest.mark.parametrize("format", FORMATS)
    def test_text_is_the_same_each_time(self, format: Any) -> None:
        assert render(described(EVERYTHING, format=format), format) == render(
            described(EVERYTHING, format=format), format
        )

    @pytest.mark.parametrize("format", FORMATS)
    def test_reasons_of_numbers_are_comments(self, format: Any) -> None:
        found = described(EVERYTHING, format=format)
        lines = render(found, format).splitlines()
        comments = " ".join(line.strip(" #") for line in lines if line.strip().startswith("#"))
        for queue in found.queues:
            for number in (queue.visibility_timeout, queue.retention, queue.dead_letter_retention, queue.max_receives):
                assert number.reason in comments
        for function in found.functions:
            assert function.timeout.reason in comments
            assert function.mappings[0].batch_size.reason in comments

    def test_missing_limits_are_named_at_the_beginning(self) -> None:
        head, _, _ = render(described(), "cloudformation").partition("AWSTemplateFormatVersion")
        assert "account 123456789012 and region eu-west-1" in head
        assert "pass --maximum-concurrency" in head.replace("\n#", "")
        assert "--alarm-topic" in head
        options = Options(maximum_concurrency=PerQueue(5), alarm_topic=TOPIC)
        head, _, _ = render(described(options), "cloudformation").partition("AWSTemplateFormatVersion")
        assert "pass" not in head

    @pytest.mark.parametrize("format", ["cloudformation", "sam"])
    def test_odd_values_survive_yaml(self, format: Any) -> None:
        odd = {"A": "yes", "B": "1e3", "C": "", "D": "a \"b\" 'c'", "E": "x: y # z", "F": "a\nb\u2028c", "y": "~"}
        found = resources(described(Options(environment=odd), format=format), format)
        assert found["Function"]["Properties"]["Environment"]["Variables"].items() >= odd.items()


def references(value: Any) -> Iterator[str]:
    """Yield the logical ids that a resource refers to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("Ref", "GetAtt") and not inner.startswith("AWS::"):
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.fixture(scope="module")
def parsed() -> dict[str, dict[str, Any]]:
    """Return the resources of a configuration of Terraform by their types and names."""
    hcl2 = pytest.importorskip("hcl2", reason="python-hcl2 is not installed")
    document = hcl2.loads(render(described(EVERYTHING, format="terraform"), "terraform"))
    found: dict[str, dict[str, Any]] = {}
    for block in document["resource"]:
        for kind, named in block.items():
            for name, body in named.items():
                found.setdefault(kind.strip('"'), {})[name.strip('"')] = body
    return found


class TestTerraform:
    """The configuration is parsed by python-hcl2."""

    pytestmark = pytest.mark.once

    def test_numbers_are_those_of_the_description(self, parsed: dict[str, dict[str, Any]]) -> None:
        found = described(EVERYTHING, format="terraform")
        for queue in found.queues:
            body = parsed["aws_sqs_queue"][queue.key]
            assert body["visibility_timeout_seconds"] == queue.visibility_timeout.value
            assert body["message_retention_seconds"] == queue.retention.value
            assert f"aws_sqs_queue.{queue.key}_dead_letter.arn" in str(body["redrive_policy"])
        for name, key in (("tasks", ""), ("tasks_heavy", "heavy")):
            function = parsed["aws_lambda_function"][name]
            assert function["timeout"] == found.function(key).timeout.value
            assert parsed["aws_lambda_function_recursion_config"][name]["recursive_loop"].strip('"') == "Allow"

    def test_resources_are_those_of_cloudformation(self, parsed: dict[str, dict[str, Any]]) -> None:
        found = resources(described(EVERYTHING))
        for kind, ours in (
            ("aws_sqs_queue", "SQS::Queue"),
            ("aws_sqs_queue_policy", "SQS::QueuePolicy"),
            ("aws_lambda_function", "Lambda::Function"),
            ("aws_lambda_event_source_mapping", "Lambda::EventSourceMapping"),
            ("aws_iam_role", "IAM::Role"),
            ("aws_cloudwatch_log_group", "Logs::LogGroup"),
            ("aws_cloudwatch_metric_alarm", "CloudWatch::Alarm"),
            ("aws_scheduler_schedule", "Scheduler::Schedule"),
            ("aws_cloudwatch_event_rule", "Events::Rule"),
            ("aws_lambda_permission", "Lambda::Permission"),
        ):
            assert len(parsed[kind]) == len(properties(found, ours)), kind

    def test_every_reference_has_its_resource(self, parsed: dict[str, dict[str, Any]]) -> None:
        text = render(described(EVERYTHING, format="terraform"), "terraform")
        named = re.findall(r"(?<!data\.)\b(aws_[a-z_]+)\.([a-z_]+)(?:\.[a-z_]+|\b)", text)
        assert len(named) > 50
        assert [pair for pair in named if pair[1] not in parsed.get(pair[0], {}) and pair[1] != "current"] == []

    def test_signs_of_templates_are_escaped(self) -> None:
        text = render(described(EVERYTHING, format="terraform"), "terraform")
        assert '"pro\'d\\n$${x} %%{y}"' in text

    def test_other_account_or_region_stops_the_deployment(self) -> None:
        text = render(described(format="terraform"), "terraform")
        assert 'self.region == "eu-west-1"' in text
        assert 'self.account_id == "123456789012"' in text


class TestCommand:
    @pytest.fixture(autouse=True)
    def _queues(self, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.LAMBDA_TASKS_QUEUES = QUEUES
        # Without the tasks of other test modules that this process may have imported, with any limits.
        modest = {name: task for name, task in registry._tasks.items() if task.hard_timeout is None}
        monkeypatch.setattr(registry, "_tasks", modest)

    def test_template_is_printed(self) -> None:
        out = StringIO()
        call_command("lambda_tasks", "template", "--maximum-concurrency", "7", "--memory", "1024", stdout=out)
        found = load(out.getvalue())["Resources"]
        assert found["DefaultMapping"]["Properties"]["ScalingConfig"] == {"MaximumConcurrency": 7}
        assert found["Function"]["Properties"]["MemorySize"] == 1024

    def test_template_is_written_to_a_file(self, tmp_path: Path) -> None:
        out, path = StringIO(), tmp_path / "tasks.tf"
        call_command("lambda_tasks", "template", "--format", "terraform", "--output", str(path), stdout=out)
        assert out.getvalue() == f"Wrote {path}.\n"
        assert 'resource "aws_sqs_queue" "default"' in path.read_text()

    def test_missing_directory_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="cannot be written: No such file or directory"):
            call_command("lambda_tasks", "template", "--output", str(tmp_path / "none" / "t.yaml"))

    @pytest.mark.once
    def test_parsing_options_loads_no_renderers(self) -> None:
        program = (
            "import sys, lambda_tasks.management.commands.lambda_tasks; "
            "print([name for name in sys.modules if name.startswith('lambda_tasks.operations.infrastructure')])"
        )
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
        code = f"import django; django.setup(); {program}"
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout == "[]\n"

    def test_unusable_option_is_an_error(self) -> None:
        with pytest.raises(CommandError, match="--cleanup-days must be more than 4, not 2"):
            call_command("lambda_tasks", "template", "--cleanup-days", "2")


def in_bucket(*places: str) -> dict[str, Any]:
    """Return the setting of a backend with these places for large arguments, behind an outbox."""
    sqs = {"BACKEND": "lambda_tasks.backends.sqs.SQSBackend", "OPTIONS": {"large_arguments": list(places)}}
    return {"LAMBDA_TASKS_BACKEND": {**OUTBOX, "OPTIONS": {"transport": sqs}}}


def arns_by_action(infrastructure: Any, of: str) -> dict[str, list[str]]:
    """Return what the function, or the sender, may do in S3, with the ends of the ARNs."""
    statements = infrastructure.functions[0].statements if of == "function" else infrastructure.sender_statements
    return {
        action: [target.key for target in statement.resources]
        for statement in statements
        for action in statement.actions
        if action.startswith("s3:")
    }


class TestBucket:
    def test_roles_may_use_the_bucket(self) -> None:
        found = described(**in_bucket("s3://shop-args/tasks", "s3://old-args", "database"))
        both = ["shop-args/tasks/*", "old-args/*"]
        assert arns_by_action(found, "function") == {
            "s3:GetObject": both,
            "s3:PutObject": both,
            "s3:ListBucket": ["shop-args", "old-args"],
        }
        assert arns_by_action(found, "sender") == {"s3:PutObject": ["shop-args/tasks/*"]}
        text = render(found, "cloudformation")
        assert re.search(r'!Sub "?arn:\$\{AWS::Partition\}:s3:::shop-args/tasks/\*', text)
        assert "AWS::S3::Bucket" not in text
        assert "pass --create-bucket, which creates it" in text
        assert "arn:${data.aws_partition.current.partition}:s3:::old-args/*" in render(found, "terraform")

    @pytest.mark.parametrize("places", [(), ("database",)])
    def test_projects_without_a_bucket_get_no_rights(self, places: tuple[str, ...]) -> None:
        settings = in_bucket(*places) if places else {}
        found = described(**settings)
        assert arns_by_action(found, "function") == arns_by_action(found, "sender") == {}
        assert "s3:" not in render(found, "cloudformation")

    def test_bucket_of_former_arguments_is_only_read(self) -> None:
        found = described(**in_bucket("database", "s3://old-args"))
        assert arns_by_action(found, "function")["s3:GetObject"] == ["old-args/*"]
        assert arns_by_action(found, "sender") == {}

    @pytest.mark.parametrize("format", ["cloudformation", "sam"])
    def test_created_bucket_deletes_old_objects_and_stays(self, format: Any) -> None:
        found = described(Options(runtime="python3.13", create_bucket=True), **in_bucket("s3://shop-args/tasks"))
        made = resources(found, format)
        bucket = made["ArgumentsBucket"]
        assert (bucket["DeletionPolicy"], bucket["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")
        [rule] = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
        assert (rule["Prefix"], rule["ExpirationInDays"], rule["Status"]) == ("tasks/", ADVISED_DAYS, "Enabled")
        assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
        [statement] = made["ArgumentsBucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        assert (statement["Sid"], statement["Effect"]) == ("TlsOnly", "Deny")
        assert "--create-bucket" not in render(found, format)

    def test_created_bucket_in_terraform(self) -> None:
        found = described(Options(runtime="python3.13", create_bucket=True), **in_bucket("s3://shop-args"))
        text = render(found, "terraform")
        assert re.search(
            r'resource "aws_s3_bucket" "arguments" \{\n +bucket += "shop-args"\n.*\n +force_destroy = false', text
        )
        assert re.search(r"expiration \{\n.*\n +days = 45", text)
        assert 'resource "aws_s3_bucket_policy" "arguments"' in text
        assert "prefix" not in text[text.index("aws_s3_bucket_lifecycle_configuration") :].partition("resource")[0]

    def test_documented_rule_is_that_of_the_template(self) -> None:
        page = (Path(__file__).parents[2] / "docs/howto/large-payloads.md").read_text()
        assert f'"Expiration": {{"Days": {ADVISED_DAYS}}}' in page

    @pytest.mark.parametrize("settings", [{}, in_bucket("database", "s3://old-args")], ids=["none", "former"])
    def test_bucket_that_stores_nothing_is_not_created(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="--create-bucket needs a bucket in which new arguments are stored"):
            described(Options(create_bucket=True), **settings)


@pytest.mark.once
@pytest.mark.thorough
def test_templates_pass_the_cloudformation_linter(tmp_path: Path) -> None:
    paths = []
    for number, (format, options) in enumerate(
        [
            ("cloudformation", Options(runtime="python3.13")),
            ("cloudformation", EVERYTHING),
            ("sam", EVERYTHING),
            ("sam", Options(package="image")),
            ("cloudformation", Options(runtime="python3.13", create_bucket=True)),
            ("sam", Options(runtime="python3.13", create_bucket=True)),
        ]
    ):
        paths.append(tmp_path / f"{number}.yaml")
        settings = in_bucket(f"s3://shop-args{'/tasks' * (number % 2)}") if options.create_bucket else {}
        paths[-1].write_text(render(described(options, format=format, **settings), format))
    program = "from cfnlint.runner import main; main()"
    command = [sys.executable, "-c", program, "--include-checks", "I", "--template", *map(str, paths)]
    linted = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert linted.returncode == 0, linted.stdout + linted.stderr
