from __future__ import annotations

import django
from django.db import transaction

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task


@task
def greet(user_id: int, greeting: str) -> None:
    pass


@transaction.atomic
def one_by_one(n: int) -> None:
    for _ in range(n):
        greet.enqueue(user_id=7, greeting="hello")
