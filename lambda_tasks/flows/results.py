"""Read the results of the tasks of a chain or a group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps

from lambda_tasks.awaiting.ends import result_of
from lambda_tasks.database.dividing import divided
from lambda_tasks.flows import rows
from lambda_tasks.flows.due import task_named
from lambda_tasks.outcomes import Latest


def results_of(flow_id: str, database: str) -> Iterator[Any]:
    """Yield the results of the tasks in their order; None for each that has not succeeded."""
    members = rows.members(database).filter(flow_id=flow_id).order_by("position").values_list("pk", flat=True)
    for ids in divided(list(members)):
        yield from _results(ids, database)


def _results(ids: list[Any], database: str) -> Iterator[Any]:
    records = apps.get_model("lambda_tasks", "TaskRecord")._default_manager.using(database)
    columns = ("root_id", "pk", "task_name", "result", "reason")
    succeeded = records.filter(status=rows.SUCCESS)
    found = {row[1]: row for row in succeeded.filter(pk__in=ids).values_list(*columns)}
    retries = succeeded.filter(root_id__in=ids, n_retries__gt=0)  # matches the condition of the index
    found |= {row[0]: row for row in retries.values_list(*columns)}
    for member in ids:
        if member not in found:
            yield None
            continue
        root_id, pk, task_name, result, reason = found[member]
        end = Latest(
            message_id=str(pk),
            root_id=str(root_id),
            status=rows.SUCCESS,
            reason=reason,
            result=result,
            task_name=task_name,
        )
        yield result_of(end, task_named(task_name))
