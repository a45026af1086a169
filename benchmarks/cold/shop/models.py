"""A record with the columns of the library's record."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    id = models.UUIDField(primary_key=True)
    name = models.CharField(max_length=255)
    lines = models.JSONField(default=dict)
    status = models.CharField(max_length=16, default="NEW")
    ordered_at = models.DateTimeField(null=True)
    sent_at = models.DateTimeField(null=True)
    number = models.PositiveIntegerField(default=0)
    customer = models.UUIDField(null=True)
    comment = models.TextField(default="")

    def __str__(self) -> str:
        return self.name
