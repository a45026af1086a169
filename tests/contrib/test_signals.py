"""Django signals about tasks: which one is sent when, with which sender and arguments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from django.db import connection, transaction
from django.dispatch import Signal
from django.test import override_settings

from lambda_tasks.contrib import signals
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from tests.courier import COURIER, OUTBOX, note, outbox
from tests.flows.shop import queue, run_all, run_next, shop_on

pytestmark = pytest.mark.django_db(transaction=True)

PLUGIN: Final = ["lambda_tasks.contrib.signals"]
ERRORS: Final = {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError}


@lambda_task(ignore_errors=[KeyError], retry_on=[OSError], max_retries=1, retry_delay=7)
def act(*, error: str = "") -> str:
    if error:
        raise ERRORS[error]
    return "done"


@pytest.fixture(autouse=True)
def shop() -> Iterator[None]:
    with shop_on("default", "direct"), override_settings(LAMBDA_TASKS_PLUGINS=PLUGIN):
        yield


@pytest.fixture
def sent() -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    """Collect the signals: their names, senders and arguments."""
    seen: list[tuple[str, Any, dict[str, Any]]] = []
    names = {signal: name for name, signal in vars(signals).items() if isinstance(signal, Signal)}

    def receive(signal: Signal, sender: Any, **arguments: Any) -> None:
        seen.append((names[signal], sender, arguments))

    for signal in names:
        signal.connect(receive)
    yield seen
    for signal in names:
        signal.disconnect(receive)


Sent = list[tuple[str, Any, dict[str, Any]]]


class TestSignals:
    def test_success_sends_three(self, sent: Sent) -> None:
        handle = act.execute_on_commit()
        run_all()
        assert [(name, sender) for name, sender, _ in sent] == [
            ("task_enqueued", act),
            ("task_started", act),
            ("task_succeeded", act),
        ]
        assert (sent[0][2]["job"].message_id, sent[2][2]["run"].message_id) == (handle.message_id, handle.message_id)
        assert sent[2][2]["result"] == "done"

    @pytest.mark.parametrize(
        ("error", "name", "status"),
        [("ValueError", "task_failed", "FAILED"), ("KeyError", "task_ignored", "SUCCESS")],
    )
    def test_error_has_the_signal_of_its_outcome(self, sent: Sent, error: str, name: str, status: str) -> None:
        statuses = []
        getattr(signals, name).connect(receiver := lambda **_: statuses.append(TaskRecord.objects.get().status))
        act.execute_on_commit(error=error)
        run_all()
        assert (sent[-1][0], type(sent[-1][2]["error"]).__name__) == (name, error)
        assert statuses == [status]  # the outcome is recorded before the signal
        getattr(signals, name).disconnect(receiver)

    def test_retry_tells_its_delay(self, sent: Sent) -> None:
        act.execute_on_commit(error="OSError")
        run_next()
        assert [name for name, _, _ in sent] == ["task_enqueued", "task_started", "task_enqueued", "task_retried"]
        assert sent[-1][2]["delay"] >= 7

    def test_repeated_delivery_is_skipped(self, sent: Sent) -> None:
        act.execute_on_commit()
        repeated = queue()[0]
        run_all()
        queue().append(repeated)
        run_all()
        name, sender, arguments = sent[-1]
        assert (name, sender, arguments["reason"]) == ("task_skipped", None, "finished")

    def test_message_that_stays_in_the_outbox_is_unsent(self, sent: Sent) -> None:
        with override_settings(LAMBDA_TASKS_BACKEND={"BACKEND": OUTBOX, "OPTIONS": {"transport": COURIER}}):
            courier: Any = outbox().transport
            courier.refuses = {1}
            note.execute_on_commit(number=1)
        [(name, sender, arguments)] = sent
        assert (name, sender, arguments["dead"]) == ("task_unsent", note, True)

    def test_copy_of_a_task_has_its_sender(self, sent: Sent) -> None:
        act.using(delay=5).execute_on_commit()
        assert sent[0][1] is act

    def test_rolled_back_call_sends_none(self, sent: Sent) -> None:
        with transaction.atomic():
            act.execute_on_commit()
            transaction.set_rollback(True)
        assert sent == []

    def test_commit_comes_before_every_signal(self) -> None:
        open_ones: list[bool] = []
        every = [each for each in vars(signals).values() if isinstance(each, Signal)]

        def receive(**_: Any) -> None:
            open_ones.append(connection.in_atomic_block)

        for signal in every:
            signal.connect(receive)
        with transaction.atomic():
            act.execute_on_commit()
        run_all()
        for signal in every:
            signal.disconnect(receive)
        assert open_ones == [False] * 3


class TestReceivers:
    @pytest.fixture
    def connected(self) -> Iterator[Callable[[Callable[..., Any]], None]]:
        receivers: list[Callable[..., Any]] = []

        def connect(receiver: Callable[..., Any]) -> None:
            receivers.append(receiver)
            signals.task_succeeded.connect(receiver, sender=act)

        yield connect
        for receiver in receivers:
            signals.task_succeeded.disconnect(receiver, sender=act)

    def test_exception_in_one_changes_nothing(
        self, connected: Callable[[Callable[..., Any]], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[str] = []

        def broken(**_: Any) -> None:
            raise RuntimeError("out of order")

        def sound(**_: Any) -> None:
            seen.append("called")

        connected(broken)
        connected(sound)
        act.execute_on_commit()
        run_all()
        assert (seen, TaskRecord.objects.get().status) == (["called"], "SUCCESS")
        [record] = [record for record in caplog.records if record.name == "django.dispatch"]
        assert record.levelno == logging.ERROR

    def test_sender_selects_the_task(self, connected: Callable[[Callable[..., Any]], None]) -> None:
        seen: list[Any] = []

        def receive(sender: Any, **_: Any) -> None:
            seen.append(sender)

        connected(receive)
        note.execute_on_commit(number=1)
        act.execute_on_commit()
        run_all()
        assert seen == [act]


def test_signals_are_off_without_the_plugin(sent: Sent) -> None:
    with override_settings(LAMBDA_TASKS_PLUGINS=[]):
        act.execute_on_commit()
        run_all()
    assert sent == []


def test_empty_event_sends_none(sent: Sent) -> None:
    handler({"Records": []}, None)
    assert sent == []
