"""Metrics for Prometheus: counters and histograms, gauges from the database, and the view."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections
from django.test import RequestFactory, override_settings
from django.utils import timezone
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from lambda_tasks.backends.memory import event_record
from lambda_tasks.contrib.prometheus import registry
from lambda_tasks.contrib.prometheus.collector import DatabaseCollector
from lambda_tasks.contrib.prometheus.views import MetricsView, metrics_view
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.handler import handler
from lambda_tasks.local.runtime import Function, Runtime
from lambda_tasks.models import OutboxMessage, TaskRecord, TaskStatus
from lambda_tasks.operations import statistics
from lambda_tasks.plugins import load_plugins
from tests.courier import COURIER, OUTBOX, note, outbox
from tests.flows.shop import queue, shop_on

pytestmark = pytest.mark.django_db(transaction=True)

PLUGIN: Final = "lambda_tasks.contrib.prometheus"
OF_OUTBOX: Final = {"BACKEND": OUTBOX, "OPTIONS": {"transport": COURIER}}


@lambda_task
def act(*, fails: bool = False) -> None:
    if fails:
        raise ValueError


@pytest.fixture(autouse=True)
def shop() -> Iterator[None]:
    with shop_on("default", "direct"), override_settings(LAMBDA_TASKS_PLUGINS=[PLUGIN]):
        yield


def value(name: str, found: CollectorRegistry = REGISTRY, **labels: str) -> float | None:
    return found.get_sample_value(f"lambda_tasks_{name}", labels)


@pytest.fixture
def added() -> Callable[..., float]:
    """Return a function that tells by how much a metric has grown since its first call."""
    before: dict[object, float] = {}

    def grown(name: str, **labels: str) -> float:
        now = value(name, **labels) or 0.0
        return now - before.setdefault((name, *labels.items()), now)

    return grown


def deliver(jobs: list[Any]) -> None:
    handler({"Records": [event_record(job) for job in jobs]}, None)


class TestCounters:
    def test_task_is_counted_until_its_end(self, added: Callable[..., float]) -> None:
        own = {"task": act.name, "queue": "default"}

        def numbers() -> list[float]:
            outcomes = [added("ended_total", **own, outcome=outcome) for outcome in ("succeeded", "failed")]
            times = [added(f"{name}_seconds_count", **own) for name in ("duration", "waiting")]
            return [added("sent_total", **own), *outcomes, *times, added("batch_messages_total")]

        numbers()
        act.execute_on_commit()
        act.execute_on_commit(fails=True)
        deliver(queue())
        assert numbers() == [2, 1, 1, 2, 2, 2]

    def test_malformed_message_is_a_batch_failure(self, added: Callable[..., float]) -> None:
        added("batch_failures_total")
        handler({"Records": [{"messageId": "1", "body": "{"}]}, None)
        assert added("batch_failures_total") == 1

    def test_repeated_delivery_is_counted_by_reason(self, added: Callable[..., float]) -> None:
        added("skipped_deliveries_total", reason="finished")
        act.execute_on_commit()
        for _ in range(2):
            deliver(queue())
        assert added("skipped_deliveries_total", reason="finished") == 1

    def test_message_that_stays_in_the_outbox_is_unsent(self, added: Callable[..., float]) -> None:
        own = {"task": note.name, "queue": "default", "dead": "true"}
        added("unsent_total", **own)
        with override_settings(LAMBDA_TASKS_BACKEND=OF_OUTBOX):
            courier: Any = outbox().transport
            courier.refuses = {1}
            note.execute_on_commit(number=1)
        assert added("unsent_total", **own) == 1

    def test_takeovers_are_counted_at_the_end(self, added: Callable[..., float]) -> None:
        own = {"task": act.name, "queue": "default"}
        added("takeovers_total", **own)
        act.execute_on_commit()
        job = queue()[0]
        long_ago = timezone.now() - timedelta(days=1)
        TaskRecord.objects.create(
            id=job.message_id,
            root_id=job.message_id,
            task_name=act.name,
            kwargs={},
            status=TaskStatus.RUNNING,
            start_time=long_ago,
            lease_until=long_ago,
            claim=uuid4(),
        )
        deliver([job])
        assert added("takeovers_total", **own) == 1


class TestGauges:
    @pytest.fixture
    def gauges(self) -> CollectorRegistry:
        found = CollectorRegistry(auto_describe=True)
        found.register(DatabaseCollector())
        return found

    def test_running_records_and_the_outbox_are_read(
        self, gauges: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = timezone.now().replace(microsecond=0)
        monkeypatch.setattr(statistics, "epoch_now", lambda database: int(now.timestamp()))
        TaskRecord.objects.create(
            id=uuid4(), task_name="a", status=TaskStatus.RUNNING, start_time=now - timedelta(seconds=40), kwargs={}
        )
        for due in (now - timedelta(seconds=20), now + timedelta(hours=1), None):
            OutboxMessage.objects.create(id=uuid4(), created_at=now - timedelta(seconds=30), due_at=due)
        with override_settings(LAMBDA_TASKS_BACKEND=OF_OUTBOX):
            found = {
                name: value(name, gauges, **labels)
                for name, labels in (
                    ("running", {}),
                    ("running_oldest_seconds", {}),
                    ("outbox_oldest_seconds", {"database": "default"}),
                    ("outbox_overdue_seconds", {"database": "default"}),
                    ("database_scrape_success", {}),
                )
            }
            messages = [
                value("outbox_messages", gauges, database="default", state=state) for state in ("waiting", "dead")
            ]
        assert list(found.values()) == [1, 40, 30, 20, 1]
        assert messages == [2, 1]

    def test_unavailable_database_leaves_the_counters(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OperationalError("no route to the host")

        monkeypatch.setattr(connections["default"], "cursor", fail)
        found = registry()
        assert value("database_scrape_success", found) == 0
        assert value("running", found) is None
        assert value("batch_messages_total", found) is not None
        assert "no route to the host" in caplog.text

    def test_scrape_takes_four_queries(self, gauges: CollectorRegistry, django_assert_num_queries: Any) -> None:
        with override_settings(LAMBDA_TASKS_BACKEND=OF_OUTBOX), django_assert_num_queries(4):
            value("running", gauges)

    def test_new_connection_is_closed(self, gauges: CollectorRegistry) -> None:
        connections["default"].close()
        assert value("running", gauges) == 0
        assert connections["default"].connection is None

    def test_open_connection_stays_open(self, gauges: CollectorRegistry) -> None:
        connections["default"].ensure_connection()
        assert value("running", gauges) == 0
        assert connections["default"].connection is not None

    def test_registration_reads_nothing(self, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(0):
            CollectorRegistry(auto_describe=True).register(DatabaseCollector())


class TestView:
    def answer(self, view: Callable[..., Any] = metrics_view, **headers: str) -> Any:
        return view(RequestFactory().get("/metrics/", headers=headers))

    def test_metrics_of_tasks_and_database_are_shown(self) -> None:
        act.execute_on_commit()
        response = self.answer()
        names = {family.name for family in text_string_to_metric_families(response.content.decode())}
        assert {"lambda_tasks_sent", "lambda_tasks_running"} <= names
        assert response["Content-Type"].startswith("text/plain; version=")
        assert "no-store" in response["Cache-Control"]

    def test_scraper_may_ask_for_openmetrics(self) -> None:
        response = self.answer(accept="application/openmetrics-text; version=1.0.0")
        assert response["Content-Type"].startswith("application/openmetrics-text")
        assert response.content.endswith(b"# EOF\n")

    def test_database_can_be_left_out(self, django_assert_num_queries: Any) -> None:
        with django_assert_num_queries(0):
            response = self.answer(MetricsView.as_view(database=False))
        assert b"lambda_tasks_running" not in response.content

    @pytest.mark.parametrize(
        ("header", "status"), [("Bearer secret", 200), ("Bearer other", 401), ("secret", 401), ("", 401)]
    )
    def test_token_is_required(self, header: str, status: int) -> None:
        view = MetricsView.as_view(token="secret", database=False)
        response = self.answer(view, **({"authorization": header} if header else {}))
        assert response.status_code == status
        assert (b"lambda_tasks" in response.content) == (status == 200)

    def test_empty_token_is_an_error(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="token must be a non-empty string"):
            self.answer(MetricsView.as_view(token=""), authorization="Bearer ")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, PLUGIN)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(InvalidSetting, match=r"Install the extra django-lambda-tasks\[prometheus\]"):
        load_plugins()


SETTINGS: Final = """
INSTALLED_APPS = ["lambda_tasks"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
SECRET_KEY = "only for this test"
LAMBDA_TASKS_QUEUES = {"default": "https://sqs.eu-west-1.amazonaws.com/123456789012/default"}
LAMBDA_TASKS_PLUGINS = ["lambda_tasks.contrib.prometheus", "lambda_tasks.contrib.emf.EmfMetrics"]
"""


def test_processes_of_the_local_worker_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines for CloudWatch are also tested here, in the runtime that formats the log as JSON."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics_settings.py").write_text(SETTINGS)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "metrics"))
    environment = {
        "PYTHONPATH": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "metrics_settings",
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
    }
    seen: list[str] = []
    for number in (1, 2):
        function = Function("lambda_tasks.handler.handler", 10, environment=environment)
        with closing(Runtime(function, on_output=seen.append)) as runtime:
            runtime.start()
            runtime.invoke({"Records": [{"messageId": str(number), "body": "{"}]})
    found = registry(database=False)
    assert value("batch_messages_total", found) == 2
    emf = [line for line in map(json.loads, seen) if "_aws" in line]
    assert [line["BatchFailures"] for line in emf] == [[1], [1]]
