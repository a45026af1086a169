"""Descriptions and templates for the tests of the infrastructure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml
from django.test import override_settings

from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.operations.infrastructure import Format, Infrastructure, Options, describe, render
from tests.operations.test_checks import only

PLACE: Final = "https://sqs.eu-west-1.amazonaws.com/123456789012"
QUEUES: Final = {"default": f"{PLACE}/shop", "heavy": f"{PLACE}/shop-heavy"}
KEY: Final = "arn:aws:kms:eu-west-1:123456789012:key/0a1b2c3d-1111-2222-3333-444455556666"
TOPIC: Final = "arn:aws:sns:eu-west-1:123456789012:operators"
SECRET: Final = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:shop/prod-AbCdEf"
REFERENCE: Final = f"{SECRET}:DATABASE_URL:AWSCURRENT:8e2a1f0c-9b57-4c7e-a1d3-52f6b0c4e917"
#: Options that use everything that a template can contain.
EVERYTHING: Final = Options(
    function_per_queue=True,
    runtime="python3.13",
    secrets={"DATABASE_URL": REFERENCE},
    environment={"STAGE": "pro'd\n${x} %{y}", "on": "off"},
    vpc=True,
    kms_key=KEY,
    alarm_topic=TOPIC,
)


def task_with(**options: Any) -> LambdaTaskWrapper[..., Any]:
    @lambda_task(**options)
    def render_catalogue() -> None: ...

    return render_catalogue


def described(
    options: Options | None = None,
    *tasks: LambdaTaskWrapper[..., Any],
    format: Format = "cloudformation",
    queues: Mapping[str, Any] = QUEUES,
    **settings: Any,
) -> Infrastructure:
    """Describe what these tasks need, with these queues and settings."""
    with override_settings(LAMBDA_TASKS_QUEUES=dict(queues), **settings), only(*tasks):
        return describe(options or Options(runtime="python3.13"), format=format)


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Load templates: `!GetAtt Queue.Arn` becomes {"GetAtt": "Queue.Arn"}."""


Loader.add_multi_constructor("!", lambda loader, tag, node: {tag: loader.construct_scalar(node)})


def load(text: str) -> dict[str, Any]:
    """Read a template of CloudFormation or SAM."""
    template: dict[str, Any] = yaml.load(text, Loader)
    return template


def resources(infrastructure: Infrastructure, format: Format = "cloudformation") -> dict[str, Any]:
    """Return the resources of the template by their logical ids."""
    found: dict[str, Any] = load(render(infrastructure, format))["Resources"]
    return found


def properties(found: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the properties of the resources of one type, such as SQS::Queue."""
    return [resource["Properties"] for resource in found.values() if resource["Type"] == f"AWS::{kind}"]
