"""The table of the minimal floor: the columns of a record that the documentation names, and no more."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models


class MinimalRecord(models.Model):
    """What a user would write: a row for each task, with its outcome."""

    id: models.UUIDField[Any, Any] = models.UUIDField(primary_key=True)
    task_name: models.CharField[Any, Any] = models.CharField(max_length=255)
    kwargs: models.JSONField[Any, Any] = models.JSONField(default=dict)
    status: models.CharField[Any, Any] = models.CharField(max_length=16)
    start_time: models.DateTimeField[Any, Any] = models.DateTimeField(null=True)
    end_time: models.DateTimeField[Any, Any] = models.DateTimeField(null=True)
    result: models.JSONField[Any, Any] = models.JSONField(null=True)
    traceback: models.TextField[Any, Any] = models.TextField(null=True)  # noqa: DJ001, as in a record
    n_retries: models.PositiveIntegerField[Any, Any] = models.PositiveIntegerField(default=0)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["status", "start_time"], name="benchmarks_status_start")]

    def __str__(self) -> str:
        return f"{self.task_name} {self.id}"
