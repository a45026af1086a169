"""Orders, the events that tasks write for them, and the plugin's measurements."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """A customer's order, which the request writes in the transaction that enqueues the tasks."""

    customer = models.CharField(max_length=60)
    placed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"Order {self.pk} of {self.customer}"


class OrderEvent(models.Model):
    """An event that a task writes for an order. It commits with the task's SUCCESS, or not at all."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="events")
    text = models.CharField(max_length=60)
    happened_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.text


class Measurement(models.Model):
    """The number of runs of a task with one outcome, and the times of its function in seconds."""

    task_name = models.CharField(max_length=255)
    outcome = models.CharField(max_length=20)
    runs = models.PositiveIntegerField(default=0)
    total = models.FloatField(default=0)
    slowest = models.FloatField(default=0)

    class Meta:
        ordering = ("task_name", "outcome")
        constraints = (models.UniqueConstraint(fields=["task_name", "outcome"], name="one_row_per_outcome"),)

    def __str__(self) -> str:
        return f"{self.task_name} {self.outcome}: {self.runs}"

    @property
    def mean(self) -> float:
        return self.total / self.runs if self.runs else 0.0
