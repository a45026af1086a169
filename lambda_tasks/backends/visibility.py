"""Ask SQS to make messages visible again after a while."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from lambda_tasks.settings import MAX_VISIBILITY_TIMEOUT, LambdaTasksSettings, app_settings
from lambda_tasks.wire.queue_urls import url_of


def entries_by_queue(records: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of requests for messages of a Lambda event and their seconds, by the queue's URL."""
    by_queue: dict[str, list[dict[str, Any]]] = defaultdict(list)
    if not LambdaTasksSettings.queues.is_set:
        return by_queue
    for record, seconds in records:
        url = url_of(str(record.get("eventSourceARN", "")), app_settings.queue_urls.values())
        if url and record.get("receiptHandle"):
            timeout = min(int(seconds), MAX_VISIBILITY_TIMEOUT)
            by_queue[url].append({"ReceiptHandle": record["receiptHandle"], "VisibilityTimeout": timeout})
    return by_queue
