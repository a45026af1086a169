from __future__ import annotations

from django.db import models


class Order(models.Model):
    """What a customer asked for: it stands here if its transaction was committed."""

    number = models.IntegerField(primary_key=True)
    kind = models.CharField(max_length=30)

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


class Effect(models.Model):
    """What a task did for an order, once for each time that it took effect."""

    # No foreign key and not unique: effects that must not be there must be seen.
    order = models.IntegerField()

    def __str__(self) -> str:
        return f"effect of {self.order}"


class Counter(models.Model):
    """Counts the runs of a singleton task, by reading and writing: two that overlap count as one."""

    name = models.CharField(max_length=30, primary_key=True)
    value = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"
