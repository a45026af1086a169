from __future__ import annotations

from django.db import models


class Effect(models.Model):
    """Something that a task did: one row for each time it happened."""

    # Not unique: what took effect twice must be seen twice.
    name = models.CharField(max_length=200)
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name
