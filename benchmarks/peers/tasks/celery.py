from __future__ import annotations

from celery import Celery
from django.db import transaction

app = Celery("benchmarks")
app.config_from_object("django.conf:settings", namespace="CELERY")


@app.task
def greet(user_id: int, greeting: str) -> None:
    pass


@transaction.atomic
def on_commit(n: int) -> None:
    for _ in range(n):
        greet.delay_on_commit(user_id=7, greeting="hello")
