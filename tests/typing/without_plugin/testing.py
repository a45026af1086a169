"""Tests of a project, with the queue of tests."""

from __future__ import annotations

from datetime import timedelta

from typing_extensions import assert_type

from lambda_tasks import lambda_task
from lambda_tasks.handles import TaskHandle
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.testing import FAKEREDIS_LOCK, TaskQueue, allow_real_queues, collect_tasks, refuse_real_queues
from lambda_tasks.testing.contracts import BackendContract, LockContract, StoreContract


@lambda_task
def greet(*, email: str) -> str:
    return email


def test_greeting(lambda_tasks_queue: TaskQueue) -> None:
    with lambda_tasks_queue.commit(), refuse_real_queues(), allow_real_queues():
        assert_type(greet.execute_on_commit(email="ada@example.com"), TaskHandle[str])
    job = lambda_tasks_queue.assert_enqueued(greet, email="ada@example.com")
    assert_type(job, Job)
    assert_type(job.task_name, str)
    assert_type(lambda_tasks_queue.jobs, list[Job])
    assert_type(lambda_tasks_queue.task_names, list[str])
    assert_type(lambda_tasks_queue.run(5), list[Job])
    assert_type(lambda_tasks_queue.redeliver(job), list[Job])
    assert_type(lambda_tasks_queue.run_until_idle(raise_errors=False), int)
    lambda_tasks_queue.crash_at("task:leave")
    lambda_tasks_queue.advance(timedelta(minutes=10))
    assert_type(lambda_tasks_queue.run_due(), int)
    assert_type(lambda_tasks_queue.tick(), int)
    lambda_tasks_queue.assert_not_enqueued(greet)
    lambda_tasks_queue.clear()


with collect_tasks() as queue:
    assert_type(queue, TaskQueue)
    assert_type(TaskRecord.objects.chain("…").get(), TaskRecord)

LOCK: dict[str, object] = FAKEREDIS_LOCK
CONTRACTS: tuple[type[object], ...] = (BackendContract, LockContract, StoreContract)
