"""The fields of records. Their types are those of the plugin of django-stubs; other type checkers see Any."""

from __future__ import annotations

from datetime import datetime

from typing_extensions import assert_type

from lambda_tasks.models import TaskRecord

assert_type(TaskRecord().task_name, str)
assert_type(TaskRecord().end_time, datetime | None)
assert_type(TaskRecord().traceback, str | None)
