"""Write the bucket for large arguments as resources of Terraform."""

from __future__ import annotations

from collections.abc import Iterator

from lambda_tasks.operations.infrastructure.described import BucketPlan
from lambda_tasks.operations.infrastructure.hcl_text import Block, Call, Expression, Noted, Template, Value
from lambda_tasks.operations.infrastructure.terraform_parts import POLICY_VERSION, Body, noted, resource
from lambda_tasks.operations.infrastructure.texts import OBJECTS_KEPT

_BUCKET = "aws_s3_bucket.arguments"


def bucket_blocks(bucket: BucketPlan | None) -> Iterator[Block]:
    """Yield the bucket, which is not deleted while it has objects, with its rules."""
    if bucket is None or bucket.days is None:
        return
    name: tuple[str, Value] = ("bucket", Expression(f"{_BUCKET}.bucket"))
    yield resource(
        "aws_s3_bucket", "arguments", [("bucket", bucket.name), ("force_destroy", Noted(False, OBJECTS_KEPT))]
    )
    filtered: Body = [("prefix", bucket.prefix)] if bucket.prefix else []
    rule: Body = [
        ("id", "large-arguments"),
        ("status", "Enabled"),
        Block("filter", (), filtered),
        Block("expiration", (), [("days", noted(bucket.days))]),
        Block("noncurrent_version_expiration", (), [("noncurrent_days", 1)]),
        Block("abort_incomplete_multipart_upload", (), [("days_after_initiation", 1)]),
    ]
    yield resource("aws_s3_bucket_lifecycle_configuration", "arguments", [name, Block("rule", (), rule)])
    closed = ("block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets")
    yield resource("aws_s3_bucket_public_access_block", "arguments", [name, *((each, True) for each in closed)])
    statement: Value = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [Expression(f"{_BUCKET}.arn"), Template(f"${{{_BUCKET}.arn}}/*")],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    policy = Call("jsonencode", {"Version": POLICY_VERSION, "Statement": [statement]})
    yield resource("aws_s3_bucket_policy", "arguments", [name, ("policy", policy)])
