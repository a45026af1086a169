"""Write the description of a deployment as a configuration of Terraform or OpenTofu."""

from __future__ import annotations

from collections.abc import Iterator

from lambda_tasks.operations.infrastructure.described import (
    AlarmPlan,
    FunctionPlan,
    Infrastructure,
    MappingPlan,
    QueuePlan,
)
from lambda_tasks.operations.infrastructure.hcl_text import Block, Call, Expression, Noted, Value, write
from lambda_tasks.operations.infrastructure.terraform_bucket import bucket_blocks
from lambda_tasks.operations.infrastructure.terraform_parts import (
    ACCOUNT,
    MAIN,
    POLICY_VERSION,
    Body,
    dead_name,
    function_name,
    local_arn,
    name_prefix,
    noted,
    policy,
    queue_name,
    resource,
    trust,
)
from lambda_tasks.operations.infrastructure.texts import (
    HEADER,
    LOOPS_ALLOWED,
    RESPONSES_REPORTED,
    SCHEDULER_TRUSTED,
    header_lines,
)
from lambda_tasks.operations.infrastructure.yaml_text import comment_lines


def render(infrastructure: Infrastructure) -> str:
    """Return the configuration as HCL."""
    blocks = [
        *_settings(infrastructure),
        *_variables(infrastructure),
        *(block for queue in infrastructure.queues for block in _queue(queue, infrastructure)),
        *(block for function in infrastructure.functions for block in _function(function, infrastructure)),
        *_maintenance(infrastructure),
        *_cleanup(infrastructure),
        *bucket_blocks(infrastructure.created_bucket),
        _sender_policy(infrastructure),
        *(_alarm(alarm, infrastructure) for alarm in infrastructure.alarms),
        *_outputs(infrastructure),
    ]
    comments = [line for text in (HEADER, *header_lines(infrastructure)) for line in comment_lines(text, "")]
    return "\n".join(comments) + "\n\n" + write(blocks)


# Settings, variables and outputs


def _settings(infrastructure: Infrastructure) -> Iterator[Block]:
    provider: Value = {"source": "hashicorp/aws", "version": ">= 6.0"}
    yield Block(
        "terraform",
        (),
        [("required_version", ">= 1.2"), Block("required_providers", (), [("aws", provider)])],
    )
    yield Block("data", ("aws_partition", "current"), [])
    yield _checked("aws_region", "region", infrastructure.region)
    yield _checked("aws_caller_identity", "account_id", infrastructure.account)


def _checked(kind: str, attribute: str, expected: str | None) -> Block:
    """Return a data source that stops a deployment to another account or region than that of the queues' URLs."""
    if expected is None:
        return Block("data", (kind, "current"), [])
    what = attribute.removesuffix("_id")
    condition: Body = [
        ("condition", Expression(f'self.{attribute} == "{expected}"')),
        (
            "error_message",
            f"The URLs in LAMBDA_TASKS_QUEUES name the {what} {expected}. Deploy there, or correct them.",
        ),
    ]
    return Block("data", (kind, "current"), [Block("lifecycle", (), [Block("postcondition", (), condition)])])


def _variables(infrastructure: Infrastructure) -> Iterator[Block]:
    code = infrastructure.code
    if not (code.bucket or code.image or code.path):
        if code.package == "image":
            yield _variable("image_uri", "string", "The image of the functions in ECR, with its tag or digest")
        else:
            yield _variable("code_bucket", "string", "The S3 bucket of the zip file, in the region of the functions")
            yield _variable("code_key", "string", "The key of the zip file; a new key for each version")
    if infrastructure.vpc:
        yield _variable("subnet_ids", "list(string)", "Subnets with a route to the database and to SQS")
        yield _variable("security_group_ids", "list(string)", "Security groups that may connect to the database")


def _variable(name: str, kind: str, description: str) -> Block:
    return Block("variable", (name,), [("type", Expression(kind)), ("description", description)])


def _outputs(infrastructure: Infrastructure) -> Iterator[Block]:
    urls: Value = {
        alias: Expression(f"aws_sqs_queue.{queue_name(queue.key)}.url")
        for queue in infrastructure.queues
        for alias in queue.aliases
    }
    yield Block("output", ("queue_urls",), [("description", "For LAMBDA_TASKS_QUEUES"), ("value", urls)])
    yield Block(
        "output",
        ("send_tasks_policy_arn",),
        [
            ("description", "Attach this policy to the role of the application that enqueues tasks"),
            ("value", Expression("aws_iam_policy.send_tasks.arn")),
        ],
    )


# Queues


def _queue(queue: QueuePlan, infrastructure: Infrastructure) -> Iterator[Block]:
    name, dead = queue_name(queue.key), dead_name(queue.key)
    body: Body = [
        ("name", queue.name),
        ("visibility_timeout_seconds", noted(queue.visibility_timeout)),
        ("message_retention_seconds", noted(queue.retention)),
    ]
    if queue.max_message_bytes is not None:
        body.append(("max_message_size", noted(queue.max_message_bytes)))
    redrive: Value = {
        "deadLetterTargetArn": Expression(f"aws_sqs_queue.{dead}.arn"),
        "maxReceiveCount": queue.max_receives.value,
    }
    redrive = Noted(Call("jsonencode", redrive), queue.max_receives.reason)
    yield resource("aws_sqs_queue", name, [*body, _encryption(infrastructure), ("redrive_policy", redrive)])
    yield resource(
        "aws_sqs_queue",
        dead,
        [
            ("name", queue.dead_letter_name),
            ("message_retention_seconds", noted(queue.dead_letter_retention)),
            _encryption(infrastructure),
        ],
    )
    allowed: Value = {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [Expression(f"aws_sqs_queue.{name}.arn")],
    }
    yield resource(
        "aws_sqs_queue_redrive_allow_policy",
        dead,
        [("queue_url", Expression(f"aws_sqs_queue.{dead}.url")), ("redrive_allow_policy", Call("jsonencode", allowed))],
    )
    yield from map(_tls_only, (name, dead))


def _encryption(infrastructure: Infrastructure) -> tuple[str, Value]:
    if infrastructure.kms_key is None:
        return "sqs_managed_sse_enabled", True
    return "kms_master_key_id", infrastructure.kms_key


def _tls_only(name: str) -> Block:
    statement: Value = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "sqs:*",
        "Resource": Expression(f"aws_sqs_queue.{name}.arn"),
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return resource(
        "aws_sqs_queue_policy",
        name,
        [
            ("queue_url", Expression(f"aws_sqs_queue.{name}.url")),
            ("policy", Call("jsonencode", {"Version": POLICY_VERSION, "Statement": [statement]})),
        ],
    )


# Functions


def _function(function: FunctionPlan, infrastructure: Infrastructure) -> Iterator[Block]:
    name = function_name(function.key)
    body: Body = [
        ("function_name", function.name),
        *_code(infrastructure),
        ("architectures", [infrastructure.architecture]),
        ("role", Expression(f"aws_iam_role.{name}.arn")),
        ("memory_size", noted(function.memory)),
        ("timeout", noted(function.timeout)),
    ]
    if infrastructure.code.package == "image":
        body.append(Block("image_config", (), [("command", [infrastructure.handler])]))
    body.append(Block("environment", (), [("variables", dict(infrastructure.environment))]))
    group = Expression(f"aws_cloudwatch_log_group.{name}.name")
    body.append(Block("logging_config", (), [("log_format", "Text"), ("log_group", group)]))
    if infrastructure.vpc:
        network: Body = [
            ("subnet_ids", Expression("var.subnet_ids")),
            ("security_group_ids", Expression("var.security_group_ids")),
        ]
        body.append(Block("vpc_config", (), network))
    body.append(("depends_on", [Expression(f"aws_iam_role_policy.{name}")]))
    yield resource("aws_lambda_function", name, body)
    yield resource(
        "aws_lambda_function_recursion_config",
        name,
        [
            ("function_name", Expression(f"aws_lambda_function.{name}.function_name")),
            ("recursive_loop", Noted("Allow", LOOPS_ALLOWED)),
        ],
    )
    yield resource(
        "aws_cloudwatch_log_group",
        name,
        [("name", function.log_group), ("retention_in_days", noted(infrastructure.log_retention_days))],
    )
    yield from _role(name, function)
    for mapping in function.mappings:
        yield _mapping(mapping, name)


def _code(infrastructure: Infrastructure) -> Body:
    code = infrastructure.code
    if code.package == "image":
        image: Value = code.image or Expression("var.image_uri")
        return [("package_type", "Image"), ("image_uri", image)]
    body: Body = [("runtime", infrastructure.runtime), ("handler", infrastructure.handler)]
    if code.path is not None:
        changed = Call("filebase64sha256", code.path)
        return [*body, ("filename", code.path), ("source_code_hash", changed)]
    bucket: Value = code.bucket or Expression("var.code_bucket")
    key: Value = code.key or Expression("var.code_key")
    return [*body, ("s3_bucket", bucket), ("s3_key", key)]


def _role(name: str, function: FunctionPlan) -> Iterator[Block]:
    yield resource(
        "aws_iam_role", name, [name_prefix(function.name), ("assume_role_policy", trust("lambda.amazonaws.com"))]
    )
    yield resource(
        "aws_iam_role_policy",
        name,
        [
            ("name", "tasks"),
            ("role", Expression(f"aws_iam_role.{name}.name")),
            ("policy", policy(function.statements)),
        ],
    )


def _mapping(mapping: MappingPlan, function: str) -> Block:
    name = queue_name(mapping.queue)
    reported = Noted(["ReportBatchItemFailures"], RESPONSES_REPORTED)
    body: Body = [
        ("event_source_arn", Expression(f"aws_sqs_queue.{name}.arn")),
        ("function_name", Expression(f"aws_lambda_function.{function}.arn")),
        ("batch_size", noted(mapping.batch_size)),
        ("maximum_batching_window_in_seconds", noted(mapping.batching_window)),
        ("function_response_types", reported),
        Block("metrics_config", (), [("metrics", ["EventCount"])]),
    ]
    if mapping.maximum_concurrency is not None:
        limit: Body = [("maximum_concurrency", noted(mapping.maximum_concurrency))]
        body.append(Block("scaling_config", (), limit))
    loops = Expression(f"aws_lambda_function_recursion_config.{function}")
    body.append(("depends_on", Noted([loops], "Otherwise the first retries could be stopped as a recursive loop.")))
    return resource("aws_lambda_event_source_mapping", name, body)


# Schedules, the sender's policy, and alarms


def _maintenance(infrastructure: Infrastructure) -> Iterator[Block]:
    plan, function = infrastructure.maintenance, infrastructure.function("")
    yield resource(
        "aws_cloudwatch_event_rule",
        "maintenance",
        [("name", f"{function.name}-maintenance"), ("schedule_expression", Noted(plan.rate, plan.reason))],
    )
    yield resource(
        "aws_cloudwatch_event_target",
        "maintenance",
        [
            ("rule", Expression("aws_cloudwatch_event_rule.maintenance.name")),
            ("target_id", "function"),
            ("arn", Expression(f"aws_lambda_function.{MAIN}.arn")),
            ("input", plan.event),
        ],
    )
    yield resource(
        "aws_lambda_permission",
        "maintenance",
        [
            ("statement_id", "maintenance"),
            ("action", "lambda:InvokeFunction"),
            ("function_name", Expression(f"aws_lambda_function.{MAIN}.function_name")),
            ("principal", "events.amazonaws.com"),
            ("source_arn", Expression("aws_cloudwatch_event_rule.maintenance.arn")),
            ("source_account", ACCOUNT),
        ],
    )


def _cleanup(infrastructure: Infrastructure) -> Iterator[Block]:
    plan, function = infrastructure.cleanup, infrastructure.function("")
    if plan is None:
        return
    target: Body = [
        ("arn", Expression(f"aws_sqs_queue.{queue_name(plan.queue)}.arn")),
        ("role_arn", Expression("aws_iam_role.scheduler.arn")),
        ("input", plan.body),
    ]
    yield resource(
        "aws_scheduler_schedule",
        "cleanup",
        [
            ("name", f"{function.name[:56]}-cleanup"),
            ("description", plan.reason),
            ("schedule_expression", plan.expression),
            Block("flexible_time_window", (), [("mode", "OFF")]),
            Block("target", (), target),
            ("depends_on", [Expression("aws_iam_role_policy.scheduler")]),
        ],
    )
    source: Value = {"aws:SourceArn": local_arn("scheduler", "schedule-group/default")}
    condition: Value = {"StringEquals": {"aws:SourceAccount": ACCOUNT}, "ArnEquals": source}
    trusted = Noted(trust("scheduler.amazonaws.com", condition), SCHEDULER_TRUSTED)
    yield resource(
        "aws_iam_role",
        "scheduler",
        [name_prefix(f"{function.name[:27]}-scheduler"), ("assume_role_policy", trusted)],
    )
    yield resource(
        "aws_iam_role_policy",
        "scheduler",
        [
            ("name", "tasks"),
            ("role", Expression("aws_iam_role.scheduler.name")),
            ("policy", policy(plan.statements)),
        ],
    )


def _sender_policy(infrastructure: Infrastructure) -> Block:
    return resource(
        "aws_iam_policy",
        "send_tasks",
        [
            name_prefix(f"{infrastructure.function('').name}-send"),
            ("description", "Enqueue tasks"),
            ("policy", policy(infrastructure.sender_statements)),
        ],
    )


def _alarm(alarm: AlarmPlan, infrastructure: Infrastructure) -> Block:
    subject = alarm.subject
    if subject.kind == "function":
        dimensions: Value = {
            "FunctionName": Expression(f"aws_lambda_function.{function_name(subject.key)}.function_name")
        }
    else:
        queue = queue_name(subject.key) if subject.kind == "queue" else dead_name(subject.key)
        dimensions = {"QueueName": Expression(f"aws_sqs_queue.{queue}.name")}
    body: Body = [
        ("alarm_name", f"{infrastructure.function('').name}-{alarm.key.replace('_', '-')}"),
        ("alarm_description", alarm.description),
        ("namespace", alarm.namespace),
        ("metric_name", alarm.metric),
        ("dimensions", dimensions),
        ("statistic", alarm.statistic),
        ("period", alarm.period),
        ("evaluation_periods", 1),
        ("threshold", noted(alarm.threshold)),
        ("comparison_operator", "GreaterThanThreshold"),
        ("treat_missing_data", "notBreaching"),
    ]
    if infrastructure.alarm_topic is not None:
        body += [("alarm_actions", [infrastructure.alarm_topic]), ("ok_actions", [infrastructure.alarm_topic])]
    return resource("aws_cloudwatch_metric_alarm", queue_name(alarm.key), body)
