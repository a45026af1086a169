"""How old the oldest messages on the queues are, according to CloudWatch. SQS itself does not tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from lambda_tasks.operations.aws import connect_to_aws
from lambda_tasks.recording.lines import get_logger
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.queue_urls import server_of

if TYPE_CHECKING:
    from lambda_tasks.operations.statistics import Depth
    from lambda_tasks.wire.queue_urls import Server

logger = get_logger("lambda_tasks.admin")

#: Seconds to wait for CloudWatch, which is asked once: a page must not wait for an unavailable network.
_TIMEOUT: Final = 3
#: The number of minutes in which the latest number is searched. SQS reports it each minute, with some delay.
_MINUTES: Final = 15
#: The maximum number of metrics of a request to CloudWatch.
_MOST_METRICS: Final = 500


@dataclass(frozen=True, slots=True)
class Ages:
    """The age, in seconds, of the oldest message on a queue and on its dead letter queue; None if it is unknown."""

    queue: float | None = None
    dead_letter_queue: float | None = None


def ages(depths: Sequence[Depth]) -> dict[str, Ages]:
    """Return the ages for each queue whose depth is known, by its name in the settings.

    It takes one request to CloudWatch for each region, which needs the permission `cloudwatch:GetMetricData`. If a
    request fails, that is logged, and its ages are unknown.
    """
    known = [depth for depth in depths if depth.visible is not None]
    asked: defaultdict[Server, set[str]] = defaultdict(set)
    for depth in known:
        asked[_server(depth)].update(filter(None, (_name(depth), depth.dead_letter_queue)))
    found = {server: _ages_on(server, sorted(names)) for server, names in asked.items()}
    return {depth.queue: _of(depth, found[_server(depth)]) for depth in known}


def _of(depth: Depth, found: dict[str, float]) -> Ages:
    return Ages(found.get(_name(depth)), found.get(depth.dead_letter_queue or ""))


def _server(depth: Depth) -> Server:
    return server_of(app_settings.queue_urls[depth.queue])


def _name(depth: Depth) -> str:
    return app_settings.queue_urls[depth.queue].rstrip("/").rpartition("/")[2]


def _ages_on(server: Server, names: Sequence[str]) -> dict[str, float]:
    from botocore.exceptions import BotoCoreError, ClientError

    now = datetime.now(timezone.utc)
    queries = [_query(number, name) for number, name in enumerate(names[:_MOST_METRICS])]
    try:
        client = connect_to_aws("cloudwatch", server.region, server, timeout=_TIMEOUT, attempts=1)
        start = now - timedelta(minutes=_MINUTES)
        newest_first = "TimestampDescending"
        answer = client.get_metric_data(MetricDataQueries=queries, StartTime=start, EndTime=now, ScanBy=newest_first)
    except (BotoCoreError, ClientError) as error:
        logger.info("CloudWatch did not tell the ages of messages: %s", error)
        return {}
    values = {result["Id"]: result["Values"] for result in answer["MetricDataResults"]}
    return {name: values[f"q{number}"][0] for number, name in enumerate(names) if values.get(f"q{number}")}


def _query(number: int, name: str) -> dict[str, Any]:
    metric = {
        "Namespace": "AWS/SQS",
        "MetricName": "ApproximateAgeOfOldestMessage",
        "Dimensions": [{"Name": "QueueName", "Value": name}],
    }
    return {"Id": f"q{number}", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Maximum"}}
