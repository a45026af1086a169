"""The pytest plugin, which pytest finds by its entry point. Django is imported only when a fixture is used."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

from lambda_tasks.real_aws import allow_real_queues, refuse_real_queues

if TYPE_CHECKING:
    from lambda_tasks.testing import TaskQueue

#: The marker of a test, and the option of pytest's configuration, that allow requests to AWS.
REAL_SQS: Final = "lambda_tasks_real_sqs"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(REAL_SQS, "allow tests to send requests to AWS", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{REAL_SQS}: allow the test to send requests to AWS")
    if not config.getini(REAL_SQS):
        refusal = ExitStack()
        refusal.enter_context(refuse_real_queues())
        config.add_cleanup(refusal.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Allow the requests of a test with the marker, including those of its fixtures."""
    if item.get_closest_marker(REAL_SQS) is None:
        return (yield)
    with allow_real_queues():
        return (yield)


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
