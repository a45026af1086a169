"""Write the bucket for large arguments as resources of CloudFormation."""

from __future__ import annotations

from collections.abc import Iterator

from lambda_tasks.operations.infrastructure.described import BucketPlan
from lambda_tasks.operations.infrastructure.texts import OBJECTS_KEPT
from lambda_tasks.operations.infrastructure.yaml_text import Noted, Tag, Value

_BUCKET = "ArgumentsBucket"


def bucket_resources(bucket: BucketPlan | None) -> Iterator[tuple[str, Value]]:
    """Yield the bucket, which stays when the stack is deleted, and its policy."""
    if bucket is None or bucket.days is None:
        return
    rule: dict[str, Value] = {
        "Id": "large-arguments",
        "Status": "Enabled",
        **({"Prefix": bucket.prefix} if bucket.prefix else {}),
        "ExpirationInDays": Noted(bucket.days.value, bucket.days.reason),
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
    }
    closed = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    yield (
        _BUCKET,
        {
            "Type": "AWS::S3::Bucket",
            "DeletionPolicy": Noted("RetainExceptOnCreate", OBJECTS_KEPT),
            "UpdateReplacePolicy": "Retain",
            "Properties": {
                "BucketName": bucket.name,
                "BucketEncryption": {
                    "ServerSideEncryptionConfiguration": [
                        {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}},
                    ]
                },
                "PublicAccessBlockConfiguration": dict.fromkeys(closed, True),
                "LifecycleConfiguration": {"Rules": [rule]},
            },
        },
    )
    yield f"{_BUCKET}Policy", _tls_only()


def _tls_only() -> Value:
    statement: dict[str, Value] = {
        "Sid": "TlsOnly",
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:*",
        "Resource": [Tag("GetAtt", f"{_BUCKET}.Arn"), Tag("Sub", f"${{{_BUCKET}.Arn}}/*")],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }
    policy: Value = {"Version": "2012-10-17", "Statement": [statement]}
    return {
        "Type": "AWS::S3::BucketPolicy",
        "Properties": {"Bucket": Tag("Ref", _BUCKET), "PolicyDocument": policy},
    }
