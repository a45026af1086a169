"""Records and users for the tests of the admin."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from lambda_tasks.models import TaskRecord, TaskStatus
from lambda_tasks.wire.ids import new_message_id

LIST: Final = reverse("admin:lambda_tasks_taskrecord_changelist")


def called(moment: datetime) -> UUID:
    """Return a new id that tells that its task was called at `moment`."""
    milliseconds = int(moment.timestamp() * 1000)
    return UUID(int=milliseconds << 80 | UUID(new_message_id()).int & (1 << 80) - 1)


def record(**fields: Any) -> TaskRecord:
    """Create the record of a successful run that started a minute ago."""
    start = timezone.now() - timedelta(minutes=1)
    key = fields.get("id") or UUID(new_message_id())
    values: dict[str, Any] = {
        "id": key,
        "root_id": key,
        "task_name": "shop.tasks.send_parcel",
        "kwargs": {"order_id": 42},
        "status": TaskStatus.SUCCESS,
        "start_time": start,
        "end_time": start + timedelta(seconds=1.5),
        "queue": "default",
    }
    return TaskRecord.objects.create(**values | fields)


def log_in(client: Client, *permissions: str) -> User:
    """Log in a new member of the staff with these permissions of the library."""
    user = User.objects.create_user(f"user-{User.objects.count()}", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=permissions, content_type__app_label="lambda_tasks")
    )
    client.force_login(user)
    return user


def page_of(shown: TaskRecord) -> str:
    return reverse("admin:lambda_tasks_taskrecord_change", args=[shown.pk])


def content(client: Client, address: str) -> str:
    """Return the part of a page that is not the menu."""
    response = client.get(address)
    assert response.status_code == 200
    text: str = response.content.decode()
    return text[text.index('<div id="content"') :]
