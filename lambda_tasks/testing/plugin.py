"""The pytest plugin, which pytest finds by its entry point. Django is imported only when a fixture is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lambda_tasks.testing import TaskQueue


@pytest.fixture
def lambda_tasks_queue() -> Iterator[TaskQueue]:
    """Collect the tasks that the test enqueues in a `lambda_tasks.testing.TaskQueue`."""
    from lambda_tasks.testing import collect_tasks

    with collect_tasks() as queue:
        yield queue


@pytest.fixture
def lambda_tasks_fake_lock() -> Iterator[None]:
    """Use fakeredis for the lock of singleton tasks."""
    from django.test import override_settings

    from lambda_tasks.testing import FAKEREDIS_LOCK

    with override_settings(LAMBDA_TASKS_LOCK=FAKEREDIS_LOCK):
        yield
