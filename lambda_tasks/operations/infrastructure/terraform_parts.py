"""What the blocks of a Terraform configuration share: names, references and policies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from lambda_tasks.operations.infrastructure.described import Number, Statement, Target
from lambda_tasks.operations.infrastructure.hcl_text import Block, Call, Expression, Noted, Template, Value

Body = list["tuple[str, Value] | Block"]

POLICY_VERSION: Final = "2012-10-17"
#: The resource name of the main function, and the beginning of those of the others.
MAIN: Final = "tasks"
ACCOUNT: Final = Expression("data.aws_caller_identity.current.account_id")


def queue_name(key: str) -> str:
    """Return the resource name of a queue. A name must not begin with a digit."""
    return f"queue_{key}" if key[:1].isdigit() else key


def function_name(key: str) -> str:
    """Return the resource name of a function, and of its role and its logs."""
    return f"{MAIN}_{key}" if key else MAIN


def dead_name(key: str) -> str:
    return f"{queue_name(key)}_dead_letter"


def arn_of(target: Target) -> Value:
    match target.kind:
        case "queue":
            return Expression(f"aws_sqs_queue.{queue_name(target.key)}.arn")
        case "dead_letter_queue":
            return Expression(f"aws_sqs_queue.{dead_name(target.key)}.arn")
        case "function":
            return Expression(f"aws_lambda_function.{function_name(target.key)}.arn")
        case "log_streams":
            return Template(f"${{aws_cloudwatch_log_group.{function_name(target.key)}.arn}}:log-stream:*")
        case "s3":
            return Template(f"arn:${{data.aws_partition.current.partition}}:s3:::{target.key}")
        case "arn":
            return target.key


def local_arn(service: str, resource: str) -> Template:
    current = "${data.aws_region.current.region}:${data.aws_caller_identity.current.account_id}"
    return Template(f"arn:${{data.aws_partition.current.partition}}:{service}:{current}:{resource}")


def name_prefix(name: str) -> tuple[str, Value]:
    """Return the attribute for the beginning of a name in IAM, whose names are the same in all regions."""
    return "name_prefix", f"{name[:37]}-"


def noted(number: Number) -> Noted:
    return Noted(number.value, number.reason)


def resource(kind: str, name: str, body: Body) -> Block:
    return Block("resource", (kind, name), body)


def policy(statements: Iterable[Statement]) -> Value:
    return Call(
        "jsonencode",
        {
            "Version": POLICY_VERSION,
            "Statement": [_statement(statement) for statement in statements],
        },
    )


def _statement(statement: Statement) -> Value:
    granted: dict[str, Value] = {
        "Sid": statement.sid,
        "Effect": statement.effect,
        "Action": list(statement.actions),
        "Resource": [arn_of(target) for target in statement.resources],
    }
    if statement.via:
        suffix = "${data.aws_region.current.region}.${data.aws_partition.current.dns_suffix}"
        services: Value = [Template(f"{service}.{suffix}") for service in statement.via]
        granted["Condition"] = {"StringEquals": {"kms:ViaService": services}}
    if statement.denied_to is not None:
        code = local_arn("lambda", f"function:{statement.denied_to}")
        granted["Condition"] = {"ArnEquals": {"lambda:SourceFunctionArn": code}}
    return granted


def trust(service: str, condition: Value | None = None) -> Value:
    statement: dict[str, Value] = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
    }
    if condition is not None:
        statement["Condition"] = condition
    return Call("jsonencode", {"Version": POLICY_VERSION, "Statement": [statement]})
