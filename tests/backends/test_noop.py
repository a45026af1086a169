"""LAMBDA_TASKS_NOOP_EXECUTION: calls are checked, and nothing is sent or run."""

from __future__ import annotations

from typing import Any

import pytest
from django.core import mail
from django.core.checks import CheckMessage
from django.test import override_settings

from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidArguments, UnknownQueue
from lambda_tasks.models import OutboxMessage, TaskRecord, UniqueKey
from lambda_tasks.operations.checks import check_settings

pytestmark = pytest.mark.django_db(transaction=True)

ran: list[int] = []


@pytest.fixture(autouse=True)
def _noop(settings: Any) -> None:
    settings.LAMBDA_TASKS_NOOP_EXECUTION = True
    ran.clear()


@lambda_task
def count(*, number: int) -> None:
    ran.append(number)


@lambda_task(unique=True)
def count_alone() -> None:
    ran.append(0)


@lambda_task(queue="nowhere")
def count_nowhere() -> None:
    ran.append(0)


@pytest.mark.parametrize("also", [{}, {"LAMBDA_TASKS_EAGER": True}, {"LAMBDA_TASKS_OUTBOX": True}], ids=str)
def test_valid_call_has_no_effect(also: dict[str, bool]) -> None:
    with override_settings(**also):
        handle = count.execute_on_commit(number=1)
        assert handle.status == "SENT"
    assert ran == []
    assert not TaskRecord.objects.exists()
    assert not OutboxMessage.objects.exists()


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(InvalidArguments, match="number"):
        count.execute_on_commit(number="one")  # type: ignore[arg-type]


def test_unknown_queue_is_refused() -> None:
    with pytest.raises(UnknownQueue, match="nowhere"):
        count_nowhere.execute_on_commit()


def test_delay_has_the_limit_of_production() -> None:
    with pytest.raises(ValueError, match="LAMBDA_TASKS_OUTBOX"):
        count.using(delay=901)
    with override_settings(LAMBDA_TASKS_OUTBOX=True):
        count.using(delay=901).execute_on_commit(number=1)


def test_unique_task_can_be_sent_again() -> None:
    assert count_alone.execute_on_commit().created
    assert count_alone.execute_on_commit().created
    assert not UniqueKey.objects.exists()


class TestCheck:
    def ids(self) -> list[str | None]:
        messages: list[CheckMessage] = check_settings()
        return [message.id for message in messages]

    def test_server_process_is_warned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(mail, "outbox")  # Django's test runners add it
        assert "lambda_tasks.W006" in self.ids()

    def test_test_run_is_not_warned(self) -> None:
        assert "lambda_tasks.W006" not in self.ids()

    @pytest.mark.parametrize("setting", ["DEBUG", "LAMBDA_TASKS_NOOP_EXECUTION"])
    def test_other_process_is_not_warned(self, setting: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(mail, "outbox")
        settings.DEBUG = setting == "DEBUG"
        settings.LAMBDA_TASKS_NOOP_EXECUTION = setting == "DEBUG"
        assert "lambda_tasks.W006" not in self.ids()
