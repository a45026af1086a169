from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class Order(models.Model):
    """An order of a customer, which exists if its transaction was committed."""

    number = models.IntegerField(primary_key=True)
    kind = models.CharField(max_length=30)
    #: The id of the invocation, which belongs to an earlier order if the task is unique and the call created none.
    message_id = models.UUIDField(null=True)
    created = models.BooleanField(default=True)
    placed_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.kind} {self.number}"


class Effect(models.Model):
    """The effect of a task for an order, with one row for each time that it took effect."""

    # Without a foreign key or a unique constraint, so that forbidden effects are visible.
    order = models.IntegerField()

    def __str__(self) -> str:
        return f"effect of {self.order}"


class Span(models.Model):
    """The time during which a task with a lock ran and committed, in seconds since 1970."""

    key = models.CharField(max_length=30)
    began = models.FloatField()
    ended = models.FloatField()
    #: Whether the lock was gone at the end, although its time was not over.
    robbed = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.key} from {self.began} to {self.ended}"


class Counter(models.Model):
    """A count of the runs of a singleton task, which reads and writes it, so that overlapping runs count as one."""

    name = models.CharField(max_length=30, primary_key=True)
    value = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"
