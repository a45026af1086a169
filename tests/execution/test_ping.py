"""The events that ask whether the function works, or keep it warm."""

from __future__ import annotations

import logging
from typing import Any

import django
import pytest
from django.db import OperationalError, connections
from django.test import override_settings

import lambda_tasks
from lambda_tasks.exceptions import InvalidEvent
from lambda_tasks.handler import handler
from lambda_tasks.hookspecs import hookimpl

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    "event",
    [
        {"lambda_tasks": "ping"},
        {"source": "serverless-plugin-warmup"},
    ],
    ids=["ping", "plugin"],
)
def test_ping_is_answered_with_versions(event: dict[str, Any], django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        answer = handler(event, None)
    assert (answer["status"], answer["database"]) == ("ok", "default")
    assert answer["versions"]["django-lambda-tasks"] == lambda_tasks.__version__
    assert answer["versions"]["django"] == django.get_version()


def test_unavailable_database_fails_the_invocation(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OperationalError("no route")

    connections["default"].close()
    monkeypatch.setattr(connections["default"], "cursor", fail)
    with pytest.raises(OperationalError, match="no route"):
        handler({"lambda_tasks": "ping"}, None)


def test_plugins_are_notified_of_a_ping() -> None:
    heard: list[Any] = []

    class Listener:
        @hookimpl
        def lambda_task_batch_finished(self, event: Any, response: Any) -> None:
            heard.append((event, response["status"]))

    with override_settings(LAMBDA_TASKS_PLUGINS=[Listener()]):
        handler({"lambda_tasks": "ping"}, None)
    assert heard == [({"lambda_tasks": "ping"}, "ok")]


def test_ping_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lambda_tasks.handler")
    handler({"lambda_tasks": "ping"}, None)
    assert "The function works: " in caplog.text


@pytest.mark.parametrize("event", [{"source": "aws.s3"}, {"source": ["serverless-plugin-warmup"]}, {}])
def test_other_event_without_messages_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent):
        handler(event, None)


def test_schedule_without_input_is_refused_with_the_remedy() -> None:
    """It may be a rule for the maintenance, which would otherwise do nothing and report success."""
    with pytest.raises(InvalidEvent, match=r"give its target the Input .*maintenance.* to keep the function warm"):
        handler({"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}, None)


def test_messages_are_run_whatever_the_source_is() -> None:
    assert handler({"source": "serverless-plugin-warmup", "Records": []}, None) == {"batchItemFailures": []}
