"""Describe the resources that the project's tasks need on AWS, and write them as a template.

`describe()` computes a description from the settings, the tasks and the options, and `render()` writes it for
CloudFormation, SAM or Terraform.
"""

from __future__ import annotations

from lambda_tasks.operations.infrastructure import cloudformation, terraform
from lambda_tasks.operations.infrastructure.described import Format, Infrastructure
from lambda_tasks.operations.infrastructure.options import Options, PerQueue
from lambda_tasks.operations.infrastructure.planning import describe

__all__ = ["Format", "Infrastructure", "Options", "PerQueue", "describe", "render"]


def render(infrastructure: Infrastructure, format: Format) -> str:
    """Return the text of a template: YAML for `cloudformation` and `sam`, HCL for `terraform`.

    The same description always has the same text.
    """
    if format == "terraform":
        return terraform.render(infrastructure)
    return cloudformation.render(infrastructure, sam=format == "sam")
