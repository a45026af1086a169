"""How many messages wait on the queues and in their dead letter queues."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from lambda_tasks.operations.aws import connect_to_aws
from lambda_tasks.settings import LambdaTasksSettings, app_settings
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.queue_urls import Server, problem_of, server_of

#: Seconds to wait for SQS, which is asked once: a page or a table must not wait for an unavailable network.
_TIMEOUT: Final = 3
VISIBLE: Final = "ApproximateNumberOfMessages"
IN_FLIGHT: Final = "ApproximateNumberOfMessagesNotVisible"
DELAYED: Final = "ApproximateNumberOfMessagesDelayed"
_ATTRIBUTES: Final = (VISIBLE, IN_FLIGHT, DELAYED, "RedrivePolicy")


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages a queue in LAMBDA_TASKS_QUEUES has, approximately, as SQS itself counts.

    A number is None if it is unknown: `problem` then says why, or the queue has no dead letter queue.
    """

    queue: str
    #: Messages that a worker may receive now, that a worker has received, and that become visible later.
    visible: int | None = None
    in_flight: int | None = None
    delayed: int | None = None
    #: The name of the dead letter queue, and the number of messages in it.
    dead_letter_queue: str | None = None
    dead: int | None = None
    #: What SQS or the network has answered instead; empty if nothing failed.
    problem: str = ""


def depths() -> list[Depth]:
    """Return the depth of each queue of SQS, in the order of the settings.

    It takes one to three requests to SQS for each queue, which need the permissions `sqs:GetQueueAttributes` and
    `sqs:GetQueueUrl`. Nothing is raised if a request fails. The list is empty if the settings send nothing to a queue.
    """
    if app_settings.eager or not LambdaTasksSettings.queues.is_set or not get_backend().leaves_process:
        return []
    client_of = lru_cache(_connect)
    return [_depth(name, url, client_of) for name, url in app_settings.queue_urls.items()]


def _connect(server: Server) -> Any:
    return connect_to_aws("sqs", server.region, server, timeout=_TIMEOUT, attempts=1)


def _depth(name: str, url: str, client_of: Callable[[Server], Any]) -> Depth:
    from botocore.exceptions import BotoCoreError, ClientError

    if problem := problem_of(url):
        return Depth(name, problem=f"The URL {problem}")
    try:
        client = client_of(server_of(url))
        attributes = _attributes(client, url)
    except (BotoCoreError, ClientError) as error:
        return Depth(name, problem=str(error))
    depth = Depth(name, int(attributes[VISIBLE]), int(attributes[IN_FLIGHT]), int(attributes[DELAYED]))
    arn = json.loads(attributes.get("RedrivePolicy") or "{}").get("deadLetterTargetArn")
    if arn is None:
        return depth
    *_, account, dead_letter_queue = arn.split(":")
    try:
        dead_url = client.get_queue_url(QueueName=dead_letter_queue, QueueOwnerAWSAccountId=account)["QueueUrl"]
        dead = int(_attributes(client, dead_url)[VISIBLE])
    except (BotoCoreError, ClientError) as error:
        return replace(depth, dead_letter_queue=dead_letter_queue, problem=str(error))
    return replace(depth, dead_letter_queue=dead_letter_queue, dead=dead)


def _attributes(client: Any, url: str) -> dict[str, str]:
    attributes: dict[str, str] = client.get_queue_attributes(QueueUrl=url, AttributeNames=list(_ATTRIBUTES))[
        "Attributes"
    ]
    return attributes
