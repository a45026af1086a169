"""Queries of records, whose types must be known without the plugin of django-stubs."""

from __future__ import annotations

from typing_extensions import assert_type

from lambda_tasks import lambda_task
from lambda_tasks.handles import TaskHandle
from lambda_tasks.models import TaskRecord, TaskRecordQuerySet, TaskStatus


@lambda_task
def send(*, order: int) -> str:
    return f"order {order}"


handle = send.execute_on_commit(order=1)
assert_type(handle, TaskHandle[str])
assert_type(handle.result(), str)
assert_type(TaskRecord.objects.chain(handle.message_id), TaskRecordQuerySet)
assert_type(TaskRecord.objects.using("default").chain(handle.message_id), TaskRecordQuerySet)
assert_type(TaskRecord.objects.filter(status=TaskStatus.FAILED).chain(handle.message_id), TaskRecordQuerySet)
assert_type(TaskRecord.objects.all(), TaskRecordQuerySet)
assert_type(TaskRecord.objects.latest(), TaskRecord)
assert_type(TaskRecord.objects.get(pk=handle.message_id), TaskRecord)
for record in TaskRecord.objects.exclude(status=TaskStatus.SUCCESS):
    assert_type(record, TaskRecord)
