"""LAMBDA_TASKS_MAX_TIMEOUT raises the largest limit that a task can have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lambda_tasks import settings as module
from lambda_tasks.contrib.celery import shared_task
from lambda_tasks.contrib.measuring import longer_than_usual
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.hints import fate_of_option
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.execution.pipeline import lease_for, prepare
from lambda_tasks.wire.invocation import Invocation
from tests.schedules import tasks_forgotten


@pytest.fixture(autouse=True)
def _tasks_end_with_the_test() -> Iterator[None]:
    with tasks_forgotten():
        yield


def test_task_may_use_the_time_of_its_function(settings: Any) -> None:
    settings.LAMBDA_TASKS_MAX_TIMEOUT = 1_800

    @lambda_task(soft_timeout=1_700, hard_timeout=1_800)
    def render() -> None: ...

    assert render.timeouts() == (1_700, 1_800)
    run = prepare(Invocation(render.name, {}), message_id="1")
    assert (run.soft_timeout, run.hard_timeout, run.lease) == (1_700, 1_800, lease_for(1_800))


@pytest.mark.parametrize(
    ("longest", "seconds", "remedy"),
    [
        (900, 901, "1 to 900, not 901. If the timeout of the function is longer, set LAMBDA_TASKS_MAX_TIMEOUT to it."),
        (900, 5_400, "1 to 900, not 5400. If the timeout of the function is longer, set LAMBDA_TASKS_MAX_TIMEOUT"),
        (1_800, 1_801, "1 to 1800, not 1801. If the timeout of the function is longer, set LAMBDA_TASKS_MAX_TIMEOUT"),
        (
            900,
            5_401,
            "not 5401. Lambda runs no function .* If a worker or AWS Batch runs the task, set LAMBDA_TASKS_MAX",
        ),
        (900, 43_001, "not 43001. SQS hides a message for twelve hours at most: divide the work among several tasks."),
        (900, 0, "1 to 900, not 0.$"),
    ],
)
def test_error_names_the_setting(settings: Any, longest: int, seconds: int, remedy: str) -> None:
    settings.LAMBDA_TASKS_MAX_TIMEOUT = longest
    with pytest.raises(ValueError, match=f"^hard_timeout must be a whole number of seconds from .*{remedy}"):
        lambda_task(soft_timeout=1, hard_timeout=seconds)(lambda: None)


def test_usual_limits_do_not_read_the_setting(settings: Any) -> None:
    settings.LAMBDA_TASKS_MAX_TIMEOUT = "invalid"
    assert module.timeout_seconds(900, "hard_timeout") == 900
    with pytest.raises(
        InvalidSetting, match="LAMBDA_TASKS_MAX_TIMEOUT must be a whole number of seconds from 900 to 43000, not"
    ):
        module.timeout_seconds(901, "hard_timeout")


def test_usual_limits_hold_without_settings() -> None:
    program = (
        "from lambda_tasks import lambda_task\n"
        "try: lambda_task(soft_timeout=1, hard_timeout=901)(print)\n"
        "except ValueError as error: print(error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("hard_timeout must be a whole number of seconds from 1 to 900, not 901. ")


def test_limits_of_celery_follow_the_setting(settings: Any) -> None:
    def render() -> None: ...

    with pytest.raises(TypeError, match="use hard_timeout, at most 900 seconds, or LAMBDA_TASKS_MAX_TIMEOUT"):
        shared_task(time_limit=1_000)(render)
    assert fate_of_option("time_limit", 1_000) == "refused"
    settings.LAMBDA_TASKS_MAX_TIMEOUT = 1_000
    assert fate_of_option("time_limit", 1_000) == "carried"
    with pytest.warns(DeprecationWarning, match="is defined with lambda_tasks.contrib.celery"):
        assert shared_task(time_limit=1_000)(render).timeouts() == (999, 1_000)


@pytest.mark.parametrize(
    ("longest", "added"), [(900, ()), (1_200, (1_200,)), (1_800, (1_800,)), (5_400, (1_800, 3_600, 5_400))]
)
def test_histograms_reach_the_longest_limit(settings: Any, longest: int, added: tuple[int, ...]) -> None:
    settings.LAMBDA_TASKS_MAX_TIMEOUT = longest
    assert longer_than_usual() == added
