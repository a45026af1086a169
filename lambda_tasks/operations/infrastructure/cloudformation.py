"""Write the description of a deployment as a template of CloudFormation or SAM.

The two differ in the functions and their code: `sam build` packages a local directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from lambda_tasks.operations.infrastructure.cloudformation_bucket import bucket_resources
from lambda_tasks.operations.infrastructure.described import (
    AlarmPlan,
    FunctionPlan,
    Infrastructure,
    MappingPlan,
    Number,
    QueuePlan,
    Statement,
    Target,
)
from lambda_tasks.operations.infrastructure.texts import (
    HEADER,
    LOOPS_ALLOWED,
    RESPONSES_REPORTED,
    SCHEDULER_TRUSTED,
    header_lines,
)
from lambda_tasks.operations.infrastructure.yaml_text import Noted, Tag, Value, comment_lines, write

Resources = Iterator[tuple[str, "Value"]]
Properties = dict[str, "Value"]

_POLICY_VERSION: Final = "2012-10-17"
_ACCOUNT: Final = Tag("Ref", "AWS::AccountId")


def render(infrastructure: Infrastructure, *, sam: bool) -> str:
    """Return the template as YAML."""
    document: dict[str, Value] = {"AWSTemplateFormatVersion": "2010-09-09"}
    if sam:
        document["Transform"] = "AWS::Serverless-2016-10-31"
    document["Description"] = f"Tasks of {infrastructure.queues[0].name}"
    if parameters := dict(_parameters(infrastructure)):
        document["Parameters"] = parameters
    document["Resources"] = dict(
        chain(
            *(_queue_resources(queue, infrastructure) for queue in infrastructure.queues),
            *(_function_resources(function, infrastructure, sam=sam) for function in infrastructure.functions),
            _maintenance_resources(infrastructure),
            _cleanup_resources(infrastructure),
            bucket_resources(infrastructure.created_bucket),
            [("SendTasksPolicy", _sender_policy(infrastructure))],
            ((_id(alarm.key, "Alarm"), _alarm(alarm, infrastructure)) for alarm in infrastructure.alarms),
        )
    )
    document["Outputs"] = dict(_outputs(infrastructure))
    comments = [line for text in (HEADER, *header_lines(infrastructure)) for line in comment_lines(text, "")]
    return "\n".join(comments) + "\n" + write(document)


# Names and references


def _id(key: str, kind: str) -> str:
    """Return the logical id of a resource, such as HeavyMailQueue for the key heavy_mail."""
    return "".join(part[:1].upper() + part[1:] for part in key.split("_")) + kind


def _arn(target: Target, infrastructure: Infrastructure) -> Value:
    match target.kind:
        case "queue":
            return Tag("GetAtt", f"{_id(target.key, 'Queue')}.Arn")
        case "dead_letter_queue":
            return Tag("GetAtt", f"{_id(target.key, 'DeadLetterQueue')}.Arn")
        case "function":
            return Tag("GetAtt", f"{_id(target.key, 'Function')}.Arn")
        case "log_streams":
            group = infrastructure.function(target.key).log_group
            return _local_arn("logs", f"log-group:{group}:log-stream:*")
        case "s3":
            return Tag("Sub", f"arn:${{AWS::Partition}}:s3:::{target.key}")
        case "arn":
            return target.key


def _local_arn(service: str, resource: str) -> Tag:
    return Tag("Sub", f"arn:${{AWS::Partition}}:{service}:${{AWS::Region}}:${{AWS::AccountId}}:{resource}")


def _noted(number: Number) -> Noted:
    return Noted(number.value, number.reason)


def _policy(statements: Iterable[Statement], infrastructure: Infrastructure) -> Value:
    return {
        "Version": _POLICY_VERSION,
        "Statement": [_statement(statement, infrastructure) for statement in statements],
    }


def _statement(statement: Statement, infrastructure: Infrastructure) -> Value:
    granted: Properties = {
        "Sid": statement.sid,
        "Effect": statement.effect,
        "Action": list(statement.actions),
        "Resource": [_arn(target, infrastructure) for target in statement.resources],
    }
    if statement.via:
        services = [Tag("Sub", f"{service}.${{AWS::Region}}.${{AWS::URLSuffix}}") for service in statement.via]
        granted["Condition"] = {"StringEquals": {"kms:ViaService": services}}
    if statement.denied_to is not None:
        code = _local_arn("lambda", f"function:{statement.denied_to}")
        granted["Condition"] = {"ArnEquals": {"lambda:SourceFunctionArn": code}}
    return granted


def _trust(service: str, condition: Value | None = None) -> Value:
    statement: Properties = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
    }
    if condition is not None:
        statement["Condition"] = condition
    return {"Version": _POLICY_VERSION, "Statement": [statement]}


def _resource(kind: str, properties: Properties) -> Value:
    return {"Type": kind, "Properties": properties}


def _kept_queue(properties: Properties) -> Value:
    """Return a queue that stays when the stack is deleted, but not when its creation fails."""
    return {
        "Type": "AWS::SQS::Queue",
        "DeletionPolicy": Noted("RetainExceptOnCreate", "Its messages are tasks that have not run."),
        "UpdateReplacePolicy": "Retain",
        "Properties": properties,
    }


# Parameters and outputs


def _parameters(infrastructure: Infrastructure) -> Iterator[tuple[str, Value]]:
    code = infrastructure.code
    if not (code.bucket or code.image or code.path):
        if code.package == "image":
            yield "ImageUri", _parameter("String", "The image of the functions in ECR, with its tag or digest")
        else:
            yield "CodeBucket", _parameter("String", "The S3 bucket of the zip file, in the region of the stack")
            yield "CodeKey", _parameter("String", "The key of the zip file; a new key for each version")
    if infrastructure.vpc:
        yield "SubnetIds", _parameter("List<AWS::EC2::Subnet::Id>", "Subnets with a route to the database and to SQS")
        yield (
            "SecurityGroupIds",
            _parameter("List<AWS::EC2::SecurityGroup::Id>", "Security groups that may connect to the database"),
        )


def _parameter(kind: str, description: str) -> Value:
    return {"Type": kind, "Description": description}


def _outputs(infrastructure: Infrastructure) -> Iterator[tuple[str, Value]]:
    for queue in infrastructure.queues:
        names = " and ".join(map(repr, queue.aliases))
        yield (
            _id(queue.key, "QueueUrl"),
            {"Description": f"The URL of {names} in LAMBDA_TASKS_QUEUES", "Value": Tag("Ref", _id(queue.key, "Queue"))},
        )
    yield (
        "SendTasksPolicyArn",
        {
            "Description": "Attach this policy to the role of the application that enqueues tasks",
            "Value": Tag("Ref", "SendTasksPolicy"),
        },
    )
    for function in infrastructure.functions:
        name = _id(function.key, "Function")
        yield f"{name}Name", {"Value": Tag("Ref", name)}


# Queues


def _queue_resources(queue: QueuePlan, infrastructure: Infrastructure) -> Resources:
    dead, own = _id(queue.key, "DeadLetterQueue"), _id(queue.key, "Queue")
    properties: Properties = {
        "QueueName": queue.name,
        "VisibilityTimeout": _noted(queue.visibility_timeout),
        "MessageRetentionPeriod": _noted(queue.retention),
    }
    if queue.max_message_bytes is not None:
        properties["MaximumMessageSize"] = _noted(queue.max_message_bytes)
    properties |= _encryption(infrastructure)
    properties["RedrivePolicy"] = {
        "deadLetterTargetArn": Tag("GetAtt", f"{dead}.Arn"),
        "maxReceiveCount": _noted(queue.max_receives),
    }
    yield own, _kept_queue(properties)
    yield (
        dead,
        _kept_queue(
            {
                "QueueName": queue.dead_letter_name,
                "MessageRetentionPeriod": _noted(queue.dead_letter_retention),
                **_encryption(infrastructure),
                "RedriveAllowPolicy": {
                    "redrivePermission": "byQueue",
                    "sourceQueueArns": Noted(
                        [_local_arn("sqs", queue.name)], f"!GetAtt {own}.Arn would be a circular dependency."
                    ),
                },
            },
        ),
    )
    for name in (own, dead):
        yield f"{name}Policy", _tls_only(name)


def _encryption(infrastructure: Infrastructure) -> Properties:
    if infrastructure.kms_key is None:
        return {"SqsManagedSseEnabled": True}
    return {"KmsMasterKeyId": infrastructure.kms_key}


def _tls_only(queue: str) -> Value:
    statement: Properties = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "sqs:*",
        "Resource": Tag("GetAtt", f"{queue}.Arn"),
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    return _resource(
        "AWS::SQS::QueuePolicy",
        {
            "Queues": [Tag("Ref", queue)],
            "PolicyDocument": {"Version": _POLICY_VERSION, "Statement": [statement]},
        },
    )


# Functions


def _function_resources(function: FunctionPlan, infrastructure: Infrastructure, *, sam: bool) -> Resources:
    name, role, logs = (_id(function.key, kind) for kind in ("Function", "FunctionRole", "FunctionLogs"))
    kind = "AWS::Serverless::Function" if sam else "AWS::Lambda::Function"
    properties: Properties = {
        "FunctionName": function.name,
        **_code(infrastructure, sam=sam),
        "Architectures": [infrastructure.architecture],
        "Role": Tag("GetAtt", f"{role}.Arn"),
        "MemorySize": _noted(function.memory),
        "Timeout": _noted(function.timeout),
        "RecursiveLoop": Noted("Allow", LOOPS_ALLOWED),
        "Environment": {"Variables": dict(infrastructure.environment)},
        "LoggingConfig": {"LogGroup": Tag("Ref", logs)},
    }
    if infrastructure.vpc:
        properties["VpcConfig"] = {
            "SubnetIds": Tag("Ref", "SubnetIds"),
            "SecurityGroupIds": Tag("Ref", "SecurityGroupIds"),
        }
    resource: Properties = {"Type": kind, "Properties": properties}
    if sam and infrastructure.code.package == "image" and infrastructure.code.path is not None:
        resource["Metadata"] = {
            "Dockerfile": "Dockerfile",
            "DockerContext": infrastructure.code.path,
            "DockerTag": "latest",
        }
    yield name, resource
    yield logs, _logs(function, infrastructure)
    yield role, _role(function, infrastructure)
    for mapping in function.mappings:
        yield _id(mapping.queue, "Mapping"), _mapping(mapping, name)


def _code(infrastructure: Infrastructure, *, sam: bool) -> Properties:
    code = infrastructure.code
    if code.package == "image":
        command: Properties = {"PackageType": "Image", "ImageConfig": {"Command": [infrastructure.handler]}}
        if sam and code.path is not None:  # `sam build` fills in the image
            return command
        image: Value = code.image or Tag("Ref", "ImageUri")
        return command | ({"ImageUri": image} if sam else {"Code": {"ImageUri": image}})
    own: Properties = {"Runtime": infrastructure.runtime, "Handler": infrastructure.handler}
    bucket: Value = code.bucket or Tag("Ref", "CodeBucket")
    key: Value = code.key or Tag("Ref", "CodeKey")
    if sam:
        return own | {"CodeUri": code.path if code.path is not None else {"Bucket": bucket, "Key": key}}
    return own | {"Code": {"S3Bucket": bucket, "S3Key": key}}


def _logs(function: FunctionPlan, infrastructure: Infrastructure) -> Value:
    properties: Properties = {
        "LogGroupName": function.log_group,
        "RetentionInDays": _noted(infrastructure.log_retention_days),
    }
    kept: Properties = {"DeletionPolicy": "Delete", "UpdateReplacePolicy": "Delete"}
    return {"Type": "AWS::Logs::LogGroup", **kept, "Properties": properties}


def _role(function: FunctionPlan, infrastructure: Infrastructure) -> Value:
    properties: Properties = {"AssumeRolePolicyDocument": _trust("lambda.amazonaws.com")}
    properties["Policies"] = [{"PolicyName": "tasks", "PolicyDocument": _policy(function.statements, infrastructure)}]
    return _resource("AWS::IAM::Role", properties)


def _mapping(mapping: MappingPlan, function: str) -> Value:
    properties: Properties = {
        "EventSourceArn": Tag("GetAtt", f"{_id(mapping.queue, 'Queue')}.Arn"),
        "FunctionName": Tag("Ref", function),
        "BatchSize": _noted(mapping.batch_size),
        "MaximumBatchingWindowInSeconds": _noted(mapping.batching_window),
        "FunctionResponseTypes": Noted(["ReportBatchItemFailures"], RESPONSES_REPORTED),
        "MetricsConfig": {"Metrics": ["EventCount"]},
    }
    if mapping.maximum_concurrency is not None:
        properties["ScalingConfig"] = {"MaximumConcurrency": _noted(mapping.maximum_concurrency)}
    return _resource("AWS::Lambda::EventSourceMapping", properties)


# Schedules, the sender's policy, and alarms


def _maintenance_resources(infrastructure: Infrastructure) -> Resources:
    plan = infrastructure.maintenance
    function = _id("", "Function")
    target: Properties = {"Id": "function", "Arn": Tag("GetAtt", f"{function}.Arn"), "Input": plan.event}
    yield (
        "MaintenanceRule",
        _resource("AWS::Events::Rule", {"ScheduleExpression": Noted(plan.rate, plan.reason), "Targets": [target]}),
    )
    yield (
        "MaintenancePermission",
        _resource(
            "AWS::Lambda::Permission",
            {
                "FunctionName": Tag("Ref", function),
                "Action": "lambda:InvokeFunction",
                "Principal": "events.amazonaws.com",
                "SourceArn": Tag("GetAtt", "MaintenanceRule.Arn"),
                "SourceAccount": _ACCOUNT,
            },
        ),
    )


def _cleanup_resources(infrastructure: Infrastructure) -> Resources:
    plan = infrastructure.cleanup
    if plan is None:
        return
    target: Properties = {
        "Arn": Tag("GetAtt", f"{_id(plan.queue, 'Queue')}.Arn"),
        "RoleArn": Tag("GetAtt", "SchedulerRole.Arn"),
        "Input": plan.body,
    }
    yield (
        "CleanupSchedule",
        _resource(
            "AWS::Scheduler::Schedule",
            {
                "Description": plan.reason,
                "ScheduleExpression": plan.expression,
                "FlexibleTimeWindow": {"Mode": "OFF"},
                "Target": target,
            },
        ),
    )
    source = {"aws:SourceArn": _local_arn("scheduler", "schedule-group/default")}
    condition: Value = {"StringEquals": {"aws:SourceAccount": _ACCOUNT}, "ArnEquals": source}
    yield (
        "SchedulerRole",
        _resource(
            "AWS::IAM::Role",
            {
                "AssumeRolePolicyDocument": Noted(_trust("scheduler.amazonaws.com", condition), SCHEDULER_TRUSTED),
                "Policies": [{"PolicyName": "tasks", "PolicyDocument": _policy(plan.statements, infrastructure)}],
            },
        ),
    )


def _sender_policy(infrastructure: Infrastructure) -> Value:
    return _resource(
        "AWS::IAM::ManagedPolicy",
        {
            "Description": "Enqueue tasks",
            "PolicyDocument": _policy(infrastructure.sender_statements, infrastructure),
        },
    )


def _alarm(alarm: AlarmPlan, infrastructure: Infrastructure) -> Value:
    subject = alarm.subject
    if subject.kind == "function":
        dimension: Value = {"Name": "FunctionName", "Value": Tag("Ref", _id(subject.key, "Function"))}
    else:
        queue = _id(subject.key, "Queue" if subject.kind == "queue" else "DeadLetterQueue")
        dimension = {"Name": "QueueName", "Value": Tag("GetAtt", f"{queue}.QueueName")}
    properties: Properties = {
        "AlarmDescription": alarm.description,
        "Namespace": alarm.namespace,
        "MetricName": alarm.metric,
        "Dimensions": [dimension],
        "Statistic": alarm.statistic,
        "Period": alarm.period,
        "EvaluationPeriods": 1,
        "Threshold": _noted(alarm.threshold),
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",
    }
    if infrastructure.alarm_topic is not None:
        properties["AlarmActions"] = [infrastructure.alarm_topic]
        properties["OKActions"] = [infrastructure.alarm_topic]
    return _resource("AWS::CloudWatch::Alarm", properties)
