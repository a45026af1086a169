"""The helpers for projects' tests, used as a project would."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import transaction

from lambda_tasks.decorators import lambda_task
from lambda_tasks.locks.redis import RedisLock
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_lock
from lambda_tasks.testing import TaskQueue, collect_tasks

ran: list[str] = []


@pytest.fixture(autouse=True)
def _clean() -> None:
    ran.clear()


@lambda_task
def note(*, name: str) -> None:
    ran.append(name)


@lambda_task(unique=True)
def only_once() -> None: ...


@lambda_task
def chain(*, left: int) -> None:
    ran.append(f"{left} left")
    if left:
        chain.execute_on_commit(left=left - 1)


@lambda_task(retry_on=[ValueError])
def fail_once() -> None:
    ran.append("try")
    if ran.count("try") == 1:
        raise ValueError


@pytest.mark.django_db(transaction=True)
class TestWithCommits:
    def test_enqueued_task_is_collected_and_not_run(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        assert lambda_tasks_queue.task_names == [note.name]
        [job] = lambda_tasks_queue.jobs
        assert job.message.kwargs == {"name": "a"}
        assert ran == []

    def test_run_until_idle_follows_chains_and_retries(self, lambda_tasks_queue: TaskQueue) -> None:
        chain.execute_on_commit(left=12)
        fail_once.execute_on_commit()
        # Thirteen of the chain, the one that fails, and its retry.
        assert lambda_tasks_queue.run_until_idle() == 15
        assert lambda_tasks_queue.jobs == []
        assert not TaskRecord.objects.filter(status="RUNNING").exists()

    def test_rolled_back_task_is_not_collected(self, lambda_tasks_queue: TaskQueue) -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            note.execute_on_commit(name="a")
            raise ZeroDivisionError
        assert lambda_tasks_queue.jobs == []

    def test_discarded_unique_task_can_be_sent_again(self, lambda_tasks_queue: TaskQueue) -> None:
        for _ in range(2):
            assert only_once.execute_on_commit().created
            assert lambda_tasks_queue.task_names == [only_once.name]
            lambda_tasks_queue.clear()
            assert lambda_tasks_queue.task_names == []

    def test_unacknowledged_task_comes_back(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="a")
        [job] = lambda_tasks_queue.jobs
        object.__setattr__(job.message, "task_name", "tests.nowhere.task")

        assert lambda_tasks_queue.run() == [job]
        assert lambda_tasks_queue.jobs == [job]
        with pytest.raises(AssertionError, match=r"tests\.nowhere\.task"):
            lambda_tasks_queue.run_until_idle()

    def test_changed_setting_keeps_collected_tasks(
        self, lambda_tasks_queue: TaskQueue, lambda_tasks_fake_lock: None, settings: Any
    ) -> None:
        note.execute_on_commit(name="a")
        settings.LAMBDA_TASKS_MAX_RETRIES = 1
        note.execute_on_commit(name="b")
        assert len(lambda_tasks_queue.jobs) == 2

    def test_context_manager_restores_the_settings(self, settings: Any) -> None:
        settings.LAMBDA_TASKS_EAGER = True
        with collect_tasks() as queue:
            note.execute_on_commit(name="a")
            assert len(queue.jobs) == 1
        note.execute_on_commit(name="b")
        assert ran == ["b"]


@pytest.mark.django_db
class TestInsideATransaction:
    def test_commit_sends_what_the_block_enqueued(self, lambda_tasks_queue: TaskQueue) -> None:
        note.execute_on_commit(name="outside")
        with lambda_tasks_queue.commit():
            note.execute_on_commit(name="inside")
        assert [job.message.kwargs for job in lambda_tasks_queue.jobs] == [{"name": "inside"}]

    def test_run_until_idle_follows_chains(self, lambda_tasks_queue: TaskQueue) -> None:
        with lambda_tasks_queue.commit():
            chain.execute_on_commit(left=2)
        assert lambda_tasks_queue.run_until_idle() == 3
        assert ran == ["2 left", "1 left", "0 left"]


def test_setting_selects_a_lock_on_fakeredis(lambda_tasks_fake_lock: None) -> None:
    lock = get_lock()
    assert isinstance(lock, RedisLock)
    assert type(lock.client).__module__.startswith("fakeredis")
    assert lock.acquire("key", token="one", timeout=60)
    assert not lock.acquire("key", token="two", timeout=60)
    lock.release("key", token="two")
    assert not lock.acquire("key", token="two", timeout=60)
    lock.release("key", token="one")
    assert lock.acquire("key", token="two", timeout=60)
