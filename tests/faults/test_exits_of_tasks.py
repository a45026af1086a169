"""Test tasks that raise a BaseException: the task fails, the worker continues, and only Ctrl-C is raised again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.wire import ids
from lambda_tasks.wire.invocation import Invocation

pytestmark = pytest.mark.django_db(transaction=True)

EXITS: dict[str, BaseException] = {
    "SystemExit": SystemExit(3),
    "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError(),
    "StopIteration": StopIteration(),
    "KeyboardInterrupt": KeyboardInterrupt(),
}


@lambda_task
def leave_by(*, name: str) -> None:
    raise EXITS[name]


@lambda_task
async def leave_a_coroutine_by(*, name: str) -> None:
    raise EXITS[name]


@lambda_task
def succeed() -> None: ...


def job_of(task: Any, **kwargs: Any) -> Job:
    message_id = ids.new_message_id()
    return Job(message=Invocation(task_name=task.name, kwargs=kwargs), message_id=message_id, root_id=message_id)


def event(*jobs: Job) -> dict[str, Any]:
    return {"Records": [event_record(job) for job in jobs]}


def status_of(job: Job) -> str | None:
    return TaskRecord.objects.filter(pk=job.message_id).values_list("status", flat=True).first()


@pytest.fixture(params=[(), ("lambda_tasks.contrib.postgres", "lambda_tasks.contrib.memory")], ids=["", "with plugins"])
def _plugins(request: pytest.FixtureRequest, settings: Any) -> None:
    settings.LAMBDA_TASKS_PLUGINS = list(request.param)


@pytest.mark.usefixtures("_plugins")
class TestExits:
    @pytest.mark.parametrize("name", ["SystemExit", "GeneratorExit", "CancelledError", "StopIteration"])
    def test_task_fails_and_its_neighbours_run(self, name: str) -> None:
        jobs = [job_of(succeed), job_of(leave_by, name=name), job_of(succeed)]
        assert handler(event(*jobs), None) == {"batchItemFailures": []}
        assert [status_of(job) for job in jobs] == ["SUCCESS", "FAILED", "SUCCESS"]
        assert name in (TaskRecord.objects.get(pk=jobs[1].message_id).traceback or "")

    @pytest.mark.parametrize("name", ["GeneratorExit", "CancelledError"])
    def test_coroutine_fails(self, name: str) -> None:
        jobs = [job_of(leave_a_coroutine_by, name=name), job_of(succeed)]
        assert handler(event(*jobs), None) == {"batchItemFailures": []}
        assert [status_of(job) for job in jobs] == ["FAILED", "SUCCESS"]

    def test_ctrl_c_fails_the_task_and_is_reraised(self) -> None:
        """The rest of the batch runs on the next delivery."""
        jobs = [job_of(leave_by, name="KeyboardInterrupt"), job_of(succeed)]
        with pytest.raises(KeyboardInterrupt):
            handler(event(*jobs), None)
        assert [status_of(job) for job in jobs] == ["FAILED", None]
        assert handler(event(*jobs), None) == {"batchItemFailures": []}
        assert [status_of(job) for job in jobs] == ["FAILED", "SUCCESS"]
