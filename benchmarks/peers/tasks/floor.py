"""The floor: a loop that writes rows. As a program, it writes them for a number of tasks."""

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
    """Enqueue nothing, because the loop below creates its own rows."""


if __name__ == "__main__":
    from benchmarks.floors import orm_loop

    django.setup()
    orm_loop(int(sys.argv[1]))
    sys.stdin.read()
