"""django-lambda-tasks. As a program, the handler with prepared events."""

from __future__ import annotations

import sys

import django
from django.db import transaction


@transaction.atomic
def on_commit(n: int) -> None:
    from benchmarks.tasks import greet

    for _ in range(n):
        greet.execute_on_commit(user_id=7, greeting="hello")


def nothing(n: int) -> None:
    """Enqueue nothing, because the program below creates its own events."""


def handle(n: int) -> None:
    from benchmarks.events import events_of
    from benchmarks.tasks import greet
    from lambda_tasks.handler import handler

    for event in events_of(greet, messages=n, size=10, user_id=7, greeting="hello"):
        assert handler(event, None) == {"batchItemFailures": []}


if __name__ == "__main__":
    django.setup()
    handle(int(sys.argv[1]))
    sys.stdin.read()
