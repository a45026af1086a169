"""Comments that the templates of all formats contain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from lambda_tasks.operations.infrastructure.described import Infrastructure

HEADER: Final = "Written by `manage.py lambda_tasks template`. The comments give the reasons for the numbers."
LOOPS_ALLOWED: Final = "A retry is a message to a queue that feeds the function."
RESPONSES_REPORTED: Final = "Without this, Lambda deletes messages that were not run."
OBJECTS_KEPT: Final = "Its objects are the arguments of tasks that have not run."
SCHEDULER_TRUSTED: Final = "Schedules of other accounts cannot use the role."


def header_lines(infrastructure: Infrastructure) -> Iterator[str]:
    """Yield the sentences about where to deploy the template, and with what."""
    places = [
        *([f"account {infrastructure.account}"] if infrastructure.account else []),
        *([f"region {infrastructure.region}"] if infrastructure.region else []),
    ]
    if places:
        yield f"Deploy it in {' and '.join(places)}, since the URLs in LAMBDA_TASKS_QUEUES name them."
    mappings = [mapping for function in infrastructure.functions for mapping in function.mappings]
    if any(mapping.maximum_concurrency is None for mapping in mappings):
        yield (
            "Lambda may run up to the account's limit of functions at the same time, each with a database connection: "
            "pass --maximum-concurrency for a lower limit."
        )
    if infrastructure.buckets and infrastructure.created_bucket is None:
        yield (
            "Give the bucket of large arguments a lifecycle rule, or pass --create-bucket, which creates it with one."
        )
    if infrastructure.alarm_topic is None:
        yield "The alarms have no actions: pass --alarm-topic to send them to an SNS topic."
