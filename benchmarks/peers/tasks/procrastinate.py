from __future__ import annotations

from django.db import transaction
from procrastinate.contrib.django import app


@app.task
def greet(user_id: int, greeting: str) -> None:
    pass


@transaction.atomic
def one_by_one(n: int) -> None:
    for _ in range(n):
        greet.defer(user_id=7, greeting="hello")


@transaction.atomic
def in_bulk(n: int) -> None:
    greet.batch_defer(*({"user_id": 7, "greeting": "hello"} for _ in range(n)))
