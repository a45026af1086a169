from __future__ import annotations

from functools import partial

import dramatiq
from django.db import transaction


@dramatiq.actor
def greet(user_id: int, greeting: str) -> None:
    pass


@transaction.atomic
def on_commit(n: int) -> None:
    for _ in range(n):
        transaction.on_commit(partial(greet.send, user_id=7, greeting="hello"))
