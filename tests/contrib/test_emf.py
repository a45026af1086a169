"""Metrics for CloudWatch: what the lines of the log contain, and when they are written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Final

import pytest
from django.test import override_settings

from lambda_tasks.backends.memory import event_record
from lambda_tasks.contrib.emf import EmfMetrics
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidSetting, TaskCancelled
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from lambda_tasks.plugins import load_plugins
from tests.flows.shop import queue, shop_on

pytestmark = pytest.mark.django_db(transaction=True)

PLUGIN: Final = "lambda_tasks.contrib.emf.EmfMetrics"
ERRORS: Final = {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError, "cancelled": TaskCancelled}


@lambda_task(ignore_errors=[KeyError], retry_on=[OSError], max_retries=1)
def act(*, error: str = "") -> None:
    if error:
        raise ERRORS[error]


@pytest.fixture(autouse=True)
def function(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Play a function with the plugin."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "shop-tasks")
    with shop_on("default", "direct"), override_settings(LAMBDA_TASKS_PLUGINS=[PLUGIN]):
        yield


def deliver(jobs: list[Any]) -> dict[str, Any]:
    """Deliver the messages in one batch, and leave them and their retries on the queue."""
    return handler({"Records": [event_record(job) for job in jobs]}, None)


def of_tasks(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the lines with the dimension of a queue."""
    return [line for line in lines(capsys) if "queue" in line]


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def names(line: dict[str, Any]) -> set[str]:
    """Return the names of a line's metrics, each of which must have a value."""
    [directive] = line["_aws"]["CloudWatchMetrics"]
    found = {metric["Name"] for metric in directive["Metrics"]}
    assert found <= set(line)
    return found


class TestLines:
    def test_batch_is_one_line_for_each_task(self, capsys: pytest.CaptureFixture[str]) -> None:
        act.execute_on_commit()
        act.execute_on_commit(error="ValueError")
        deliver(queue())
        tasks, batch = lines(capsys)
        [directive] = tasks["_aws"]["CloudWatchMetrics"]
        assert directive["Namespace"] == "LambdaTasks"
        assert {frozenset(each) for each in directive["Dimensions"]} == {frozenset(("service", "queue", "task"))}
        assert (tasks["service"], tasks["queue"], tasks["task"]) == ("shop-tasks", "default", act.name)
        assert names(tasks) == {"Succeeded", "Failed", "Duration", "WaitingTime"}
        assert (tasks["Succeeded"], tasks["Failed"], len(tasks["Duration"])) == ([1], [1], 2)
        assert (names(batch), batch["Messages"], batch["BatchFailures"]) == ({"Messages", "BatchFailures"}, [2], [0])

    @pytest.mark.parametrize(
        ("error", "metric"), [("KeyError", "Ignored"), ("OSError", "Retried"), ("cancelled", "Cancelled")]
    )
    def test_outcome_is_counted(self, capsys: pytest.CaptureFixture[str], error: str, metric: str) -> None:
        act.execute_on_commit(error=error)
        deliver(queue()[:1])
        [line] = of_tasks(capsys)
        assert line[metric] == [1]
        assert names(line) <= {metric, "Duration", "WaitingTime"}

    def test_line_has_at_most_100_values(self, capsys: pytest.CaptureFixture[str]) -> None:
        for _ in range(101):
            act.execute_on_commit()
        deliver(queue())
        found = of_tasks(capsys)
        assert [(len(line["Duration"]), len(line["WaitingTime"])) for line in found] == [(99, 99), (2, 2)]
        assert [line["Succeeded"] for line in found] == [[99], [2]]

    def test_malformed_message_is_a_batch_failure(self, capsys: pytest.CaptureFixture[str]) -> None:
        handler({"Records": [{"messageId": "1", "body": "{"}]}, None)
        [batch] = lines(capsys)
        assert (batch["Messages"], batch["BatchFailures"]) == ([1], [1])

    def test_repeated_delivery_is_counted_without_a_task(self, capsys: pytest.CaptureFixture[str]) -> None:
        act.execute_on_commit()
        deliver(queue())
        lines(capsys)
        deliver(queue())
        [batch] = lines(capsys)
        assert batch["SkippedDeliveries"] == [1]

    def test_maintenance_without_ends_writes_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        handler({"lambda_tasks": "maintenance"}, None)
        assert lines(capsys) == []


class TestOptions:
    def test_tasks_can_be_left_out(self, capsys: pytest.CaptureFixture[str]) -> None:
        with override_settings(LAMBDA_TASKS_PLUGINS=[EmfMetrics(namespace="Shop", service="web", per_task=False)]):
            act.execute_on_commit()
            deliver(queue())
        [line] = of_tasks(capsys)
        [directive] = line["_aws"]["CloudWatchMetrics"]
        assert (directive["Namespace"], line["service"], "task" in line) == ("Shop", "web", False)
        assert set(directive["Dimensions"][0]) == {"service", "queue"}

    def test_variables_of_powertools_are_read(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", "Shop")
        monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "web")
        handler({"Records": [{"messageId": "1", "body": "{"}]}, None)
        [batch] = lines(capsys)
        assert (batch["_aws"]["CloudWatchMetrics"][0]["Namespace"], batch["service"]) == ("Shop", "web")

    def test_other_processes_measure_nothing(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_LAMBDA_FUNCTION_NAME")
        act.execute_on_commit()
        deliver(queue())
        assert lines(capsys) == []

    def test_missing_package_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lambda_tasks.contrib.emf.find_spec", lambda name: None)
        with pytest.raises(InvalidSetting, match=r"Install the extra django-lambda-tasks\[emf\]"):
            load_plugins()


def test_error_of_the_library_changes_no_task(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("stdout is closed")

    act.execute_on_commit()
    with monkeypatch.context() as broken:
        broken.setattr("aws_lambda_powertools.metrics.EphemeralMetrics.flush_metrics", fail)
        assert deliver(queue()) == {"batchItemFailures": []}
    assert TaskRecord.objects.get().status == "SUCCESS"
    [record] = [record for record in caplog.records if record.name == "lambda_tasks.plugins"]
    assert record.levelno == logging.ERROR
    act.execute_on_commit()
    deliver(queue()[1:])
    assert of_tasks(capsys)[0]["Succeeded"] == [1]  # what was lost is not written later, with another time
