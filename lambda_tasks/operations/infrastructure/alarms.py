"""The alarms on queues and functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from lambda_tasks.operations.infrastructure.described import AlarmPlan, FunctionPlan, Number, QueuePlan, Target
from lambda_tasks.settings import MAX_DELAY

#: Seconds.
_PERIOD: Final = 300
_NONE: Final = Number(0, "One of them is enough.")


def alarms_of(queues: Sequence[QueuePlan], functions: Sequence[FunctionPlan]) -> Iterator[AlarmPlan]:
    """Yield the alarms of all queues and functions."""
    reads = {mapping.queue: (function, mapping) for function in functions for mapping in function.mappings}
    for queue in queues:
        yield AlarmPlan(
            key=f"{queue.key}_dead_letters",
            description=f"Messages of queue {queue.name} that no worker could process",
            namespace="AWS/SQS",
            metric="ApproximateNumberOfMessagesVisible",
            subject=Target("dead_letter_queue", queue.key),
            statistic="Maximum",
            period=_PERIOD,
            threshold=_NONE,
        )
        function, mapping = reads[queue.key]
        longest = MAX_DELAY + mapping.batching_window.value + function.timeout.value
        yield AlarmPlan(
            key=f"{queue.key}_age",
            description=f"Messages wait in queue {queue.name}: too few functions run, or a worker has died",
            namespace="AWS/SQS",
            metric="ApproximateAgeOfOldestMessage",
            subject=Target("queue", queue.key),
            statistic="Maximum",
            period=_PERIOD,
            threshold=Number(
                longest, f"Seconds: the longest delay ({MAX_DELAY} s), the batching window and an invocation."
            ),
        )
    for function in functions:
        for metric, what in (
            ("Errors", "end with an error or a timeout"),
            ("Throttles", "are throttled, which uses up receives"),
        ):
            yield AlarmPlan(
                key=f"{function.key}_{metric.lower()}".lstrip("_"),
                description=f"Invocations of {function.name} {what}",
                namespace="AWS/Lambda",
                metric=metric,
                subject=Target("function", function.key),
                statistic="Sum",
                period=_PERIOD,
                threshold=_NONE,
            )
