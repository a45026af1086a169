"""huey. As a program, its worker, which would not find the task in this module by itself."""

from __future__ import annotations

import django
from django.db import transaction
from huey.contrib.djhuey import on_commit_task


@on_commit_task()
def greet(user_id: int, greeting: str) -> None:
    pass


@transaction.atomic
def on_commit(n: int) -> None:
    for _ in range(n):
        greet(user_id=7, greeting="hello")


if __name__ == "__main__":
    from django.core.management import call_command

    django.setup()
    import benchmarks.peers.tasks.huey  # noqa: F401, PLW0406

    call_command("run_huey", workers=1, worker_type="thread", quiet=True)
