"""A task that raises what is no Exception fails itself, and not its worker; Ctrl-C alone is passed on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lambda_tasks import identity
from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.jobs import Job
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord

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
    message_id = identity.new_message_id()
    return Job(
        message=SQSLambdaTaskMessage(task_name=task.name, kwargs=kwargs), message_id=message_id, root_id=message_id
    )


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
    def test_the_task_has_failed_and_its_neighbours_run(self, name: str) -> None:
        jobs = [job_of(succeed), job_of(leave_by, name=name), job_of(succeed)]
        assert handler(event(*jobs), None) == {"batchItemFailures": []}
        assert [status_of(job) for job in jobs] == ["SUCCESS", "FAILED", "SUCCESS"]
        assert name in (TaskRecord.objects.get(pk=jobs[1].message_id).traceback or "")

    @pytest.mark.parametrize("name", ["GeneratorExit", "CancelledError"])
    def test_a_coroutine_that_leaves_so_has_failed(self, name: str) -> None:
        jobs = [job_of(leave_a_coroutine_by, name=name), job_of(succeed)]
        assert handler(event(*jobs), None) == {"batchItemFailures": []}
        assert [status_of(job) for job in jobs] == ["FAILED", "SUCCESS"]

    def test_ctrl_c_is_recorded_and_passed_on_and_the_rest_runs_when_it_is_delivered_again(self) -> None:
        jobs = [job_of(leave_by, name="KeyboardInterrupt"), job_of(succeed)]
        with pytest.raises(KeyboardInterrupt):
            handler(event(*jobs), None)
        assert [status_of(job) for job in jobs] == ["FAILED", None]
        assert handler(event(*jobs), None) == {"batchItemFailures": []}
        assert [status_of(job) for job in jobs] == ["FAILED", "SUCCESS"]
