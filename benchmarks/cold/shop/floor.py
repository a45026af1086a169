"""The minimal handler without the library: set Django up, and write one row."""

from __future__ import annotations

import uuid
from typing import Any

import django
from django.apps import apps


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    if not apps.ready:
        django.setup()
    from shop.models import Order

    for _ in event["Records"]:
        Order.objects.create(id=uuid.uuid4(), name="order", lines={"count": 1})
    return {"batchItemFailures": []}
