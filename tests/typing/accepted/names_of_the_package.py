"""Schedules and cancelling, with all names from the package itself."""

from __future__ import annotations

from typing_extensions import assert_type

from lambda_tasks import Cron, Every, TaskCancelled, current_task, lambda_task


@lambda_task(schedule=[Cron("0 3 * * *", timezone="Europe/Berlin"), Every(minutes=5)])
def refresh() -> str:
    task = current_task()
    if task is not None and task.cancelled:
        raise TaskCancelled
    return "fresh"


assert_type(refresh(), str)
assert_type(refresh.execute_on_commit().cancel(), bool)
