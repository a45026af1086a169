"""A small application for Celery runs after only its import lines are replaced."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from django.test import override_settings

from lambda_tasks import registry
from lambda_tasks.exceptions import TaskFailed
from lambda_tasks.models import TaskRecord
from lambda_tasks.testing import TaskQueue
from tests.app.models import Effect

SOURCE: Final = Path(__file__).parent / "celery_shop"
#: The package that the application has after its move.
NAME: Final = "shop_from_celery"


def moved(text: str) -> str:
    """Replace only the lines that import from Celery."""
    return re.sub(r"^from celery[\w.]* import", "from lambda_tasks.contrib.celery import", text, flags=re.MULTILINE)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The application after its move, whose modules a message may import."""
    (tmp_path / NAME).mkdir()
    for path in SOURCE.glob("*.py"):
        (tmp_path / NAME / path.name).write_text(moved(path.read_text()))
    monkeypatch.syspath_prepend(str(tmp_path))
    with warnings.catch_warnings(), override_settings(LAMBDA_TASKS_MODULES=[NAME]):
        warnings.simplefilter("ignore", DeprecationWarning)
        yield importlib.import_module(f"{NAME}.tasks")
    forget()


def forget() -> None:
    """Remove the application from the process, so that it is like a new worker."""
    for task in registry.registered_tasks():
        if task.name.startswith(NAME):
            del registry._tasks[task.name]
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def notes() -> list[str]:
    return list(Effect.objects.order_by("id").values_list("name", flat=True))


def payments() -> Any:
    return sys.modules[f"{NAME}.payments"]


def record(task: Any) -> TaskRecord:
    return TaskRecord.objects.filter(task_name=task.name).latest("start_time")


@pytest.mark.django_db(transaction=True)
class TestMovedApplication:
    def test_calls_arrive_by_name_after_commit(self, shop: Any, now: Any, lambda_tasks_queue: TaskQueue) -> None:
        shop.register(7)
        assert [(job.message.kwargs, job.queue, job.delay) for job in lambda_tasks_queue.jobs] == [
            ({"user_id": 7, "tags": ["new"]}, "other", 0),
            ({"user_id": 7, "subject": "Reminder"}, "other", 600),
            ({"user_id": 7, "subject": "Offer", "celery_expires": now[0] + 60}, "default", 0),
        ]
        lambda_tasks_queue.run_until_idle()
        assert notes() == ["user 7", "Welcome 7 ['new']", "Reminder 7 None", "Offer 7 None"]

    def test_worker_finds_tasks_by_name(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        result = shop.add.delay(1, y=2)
        forget()
        lambda_tasks_queue.run_until_idle()
        assert (result.get(0), result.state) == (3, "SUCCESS")

    def test_expired_call_does_not_run(self, shop: Any, now: Any, lambda_tasks_queue: TaskQueue) -> None:
        result = shop.mail.apply_async((7,), expires=60)
        now[0] += 60
        lambda_tasks_queue.run_until_idle()
        assert (result.state, notes()) == ("REVOKED", [])

    def test_bound_task_is_retried(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        payments().answers[:] = ["paid", payments().GatewayDown("busy")]
        result = shop.charge.delay(5, 100)
        lambda_tasks_queue.run(1)
        [job] = lambda_tasks_queue.jobs
        assert (job.delay, result.state) == (1, "RETRY")
        assert record(shop.charge).traceback == "RetryLater: GatewayDown: busy"
        lambda_tasks_queue.run_until_idle()
        assert result.get(0) == {"order": "paid 5", "amount": 100, "id": result.id, "retries": 1}

    def test_last_retry_raises_the_given_error(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        payments().answers[:] = [payments().GatewayDown(f"busy {n}") for n in range(5)]
        result = shop.charge.delay(5)
        assert lambda_tasks_queue.run_until_idle(raise_errors=False) == 3
        with pytest.raises(TaskFailed, match="GatewayDown: busy 2"):
            result.get(0)
        assert (result.state, result.failed(), type(result.result)) == ("FAILURE", True, TaskFailed)
        [first, *_] = [line for line in result.traceback.splitlines() if line.startswith("  File")]
        assert "payments.py" in first

    def test_exhausted_retries_can_be_caught(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        refund = payments().refund
        payments().answers[:] = [payments().GatewayDown() for _ in range(5)]
        refund.delay(5)
        lambda_tasks_queue.run(1)
        assert [job.delay for job in lambda_tasks_queue.jobs] == [180]
        lambda_tasks_queue.run_until_idle()
        assert payments().given_up == [5]

    def test_errors_are_retried_automatically(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        payments().answers[:] = [payments().GatewayDown() for _ in range(5)]
        payments().settle.delay(5)
        assert lambda_tasks_queue.run_until_idle(raise_errors=False) == 2
        assert record(payments().settle).reason == "max_retries"

    def test_results_travel_through_chains(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        piped, chained, grouped = shop.compute()
        lambda_tasks_queue.run_until_idle()
        assert (piped.get(0), chained.get(0), grouped.get(0)) == (300, 32, [0, 2, 4])
        assert (chained.state, grouped.ready(), grouped.completed_count()) == ("SUCCESS", True, 3)
        assert [result.get(0) for result in grouped.results] == [0, 2, 4]

    def test_failed_member_raises_its_error(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        chained = (shop.add.s(1, 2) | shop.add.s("x")).delay()
        lambda_tasks_queue.run_until_idle(raise_errors=False)
        with pytest.raises(TaskFailed, match="TypeError: unsupported operand"):
            chained.get(0)
        assert chained.get(0, propagate=False) is None

    def test_link_takes_the_result(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        shop.add.apply_async((1, 2), link=shop.mail.s("Sum"))
        lambda_tasks_queue.run_until_idle()
        assert notes() == ["Sum 3 None"]

    def test_bound_task_sends_itself(self, shop: Any, lambda_tasks_queue: TaskQueue) -> None:
        shop.count_down.delay(2)
        lambda_tasks_queue.run_until_idle()
        assert notes() == ["count_down 2", "count_down 1", "count_down 0"]

    @override_settings(LAMBDA_TASKS_EAGER=True, LAMBDA_TASKS_BACKEND="lambda_tasks.backends.eager.EagerBackend")
    def test_eager_mode_runs_the_application(self, shop: Any) -> None:
        payments().answers[:] = ["paid", payments().GatewayDown("busy")]
        assert shop.charge.delay(5).get(0)["retries"] == 1
        assert shop.compute()[0].get(0) == 300
