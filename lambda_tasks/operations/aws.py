"""Connect to the AWS APIs of the servers of queues, for operators."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.real_aws import guarded

if TYPE_CHECKING:
    from lambda_tasks.wire.queue_urls import Server

#: Seconds to wait for a response from AWS.
AWS_TIMEOUT: Final = 10


def connect_to_aws(
    service: str, region: str | None, server: Server, *, timeout: float = AWS_TIMEOUT, attempts: int | None = None
) -> Any:
    """Return a boto3 client for a service on the `server` of a queue. The environment determines the account.

    A queue that is not on AWS has its Lambda API at the same address, as emulators of AWS do. `timeout` is in seconds,
    and `attempts` the maximum number of requests, by default boto3's.
    """
    import boto3  # takes half a second, which few commands need
    from botocore.config import Config

    from lambda_tasks.wire.queue_urls import client_options

    session = boto3.session.Session()
    retries: Any = {"mode": "standard"} | ({} if attempts is None else {"total_max_attempts": attempts})
    config = Config(connect_timeout=timeout, read_timeout=timeout, retries=retries)
    region = region or session.region_name or "us-east-1"
    options = client_options(session.client, service, replace(server, region=region), config=config)
    return guarded(session.client(service, **options))
