"""The floor: rows that are written by a loop. As a program, it does so for a number of tasks."""

from __future__ import annotations

import sys
import uuid

import django
from django.db import transaction


@transaction.atomic
def one_by_one(n: int) -> None:
    from lambda_tasks.models import TaskRecord, TaskStatus

    for _ in range(n):
        TaskRecord.objects.create(
            id=uuid.uuid4(),
            task_name="benchmarks.tasks.greet",
            kwargs={"user_id": 7, "greeting": "hello"},
            status=TaskStatus.RUNNING,
            queue="default",
        )


def nothing(n: int) -> None:
    """The loop below makes its own rows."""


if __name__ == "__main__":
    from benchmarks.execute import orm_loop

    django.setup()
    orm_loop(int(sys.argv[1]))
    sys.stdin.read()
