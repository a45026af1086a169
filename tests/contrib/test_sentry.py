"""Events, traces and check-ins of the plugin for Sentry, with the real SDK and a transport in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest
import sentry_sdk
import sentry_sdk.scope as sentry_scope
from django.test import override_settings
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.contrib import flushing
from lambda_tasks.contrib import sentry as plugin
from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition.schedules import Cron, Every
from lambda_tasks.exceptions import InvalidSetting
from lambda_tasks.handler import handler
from lambda_tasks.operations.schedules import Entry
from lambda_tasks.plugins import hooks
from tests.flows.shop import queue, run_all, run_next, shop_on
from tests.schedules import periodic

pytestmark = pytest.mark.django_db(transaction=True)

PLUGIN: Final = ["lambda_tasks.contrib.sentry"]
SECRET: Final = "4111-1111"
NOON: Final = 1_800_014_400


@lambda_task(ignore_errors=[KeyError], retry_on=[OSError], max_retries=1, retry_delay=7)
def act(*, error: str = "") -> None:
    if error:
        raise {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError}[error](error)


@lambda_task(sensitive=["card"])
def charge(*, card: str) -> None:
    sentry_sdk.add_breadcrumb(message=f"charging {card}")
    raise ValueError(f"{card} is refused")


def report() -> None:
    if failing:
        raise failing[0]


failing: list[Exception] = []


class Post(Transport):
    """Keeps what Sentry would receive."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[tuple[str, Any]] = []
        self.timeouts: list[float] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.items += [(item.type or "", item.payload.json) for item in envelope.items]

    def flush(self, timeout: float, callback: Any = None) -> None:
        self.timeouts.append(timeout)

    def of(self, kind: str) -> list[Any]:
        return [content for found, content in self.items if found == kind]


class FullQueue(MemoryBackend):
    """Accepts no job."""

    def send(self, jobs: Any) -> Any:
        raise ConnectionError


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    before = sentry_sdk.get_global_scope().client
    dsn = "https://key@sentry.invalid/1"
    sentry_sdk.init(dsn, transport=post, traces_sample_rate=1.0, auto_enabling_integrations=False)
    with shop_on("default", "direct"), override_settings(LAMBDA_TASKS_PLUGINS=PLUGIN):
        yield post
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(before)
    failing.clear()


class TestErrors:
    def test_failure_is_reported_once(self, post: Post) -> None:
        handle = act.execute_on_commit(error="ValueError")
        run_all()
        [event] = post.of("event")
        [value] = event["exception"]["values"]
        assert (value["type"], value["mechanism"]["type"]) == ("ValueError", "lambda_tasks")
        assert event["transaction"] == act.name
        assert event["tags"] == {
            "task": act.name,
            "queue": "default",
            "attempt": "1",
            "message_id": handle.message_id,
        }

    def test_sentry_may_be_initialised_first(self, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
        others = [each for each in sentry_scope.global_event_processors if each is not plugin._drop_logged_failure]
        assert others  # among them that of DedupeIntegration
        monkeypatch.setattr(sentry_scope, "global_event_processors", others)
        plugin._install()
        act.execute_on_commit(error="ValueError")
        run_all()
        assert len(post.of("event")) == 1

    def test_ignored_error_is_not_reported(self, post: Post) -> None:
        act.execute_on_commit(error="KeyError")
        run_all()
        assert post.of("event") == []

    def test_only_the_last_retry_is_reported(self, post: Post) -> None:
        act.execute_on_commit(error="OSError")
        run_next()
        assert post.of("event") == []
        run_next()
        [event] = post.of("event")
        assert [value["type"] for value in event["exception"]["values"]] == ["OSError", "MaxRetriesExceededError"]
        assert event["tags"]["attempt"] == "2"

    def test_sensitive_arguments_are_masked(self, post: Post) -> None:
        charge.execute_on_commit(card=SECRET)
        run_all()
        [event] = post.of("event")
        assert event["breadcrumbs"]["values"]  # they are masked, and not dropped
        assert SECRET not in str(post.items)
        assert all("vars" not in frame for frame in event["exception"]["values"][0]["stacktrace"]["frames"])

    def test_scope_of_a_run_ends_with_it(self, post: Post) -> None:
        act.execute_on_commit(error="ValueError")
        run_all()
        sentry_sdk.capture_message("later")
        assert "tags" not in post.of("event")[1]

    def test_message_on_the_queue_is_not_a_failure(self, post: Post) -> None:
        act.execute_on_commit(error="OSError")
        [job] = queue()
        queue().clear()
        with override_settings(LAMBDA_TASKS_BACKEND=f"{__name__}.FullQueue"):
            handler({"Records": [event_record(job)]}, None)
        assert [transaction["contexts"]["trace"]["status"] for transaction in post.of("transaction")] == ["aborted"]
        types = {value["mechanism"]["type"] for event in post.of("event") for value in event["exception"]["values"]}
        assert types <= {"logging", "chained"}  # what the library has logged


class TestTraces:
    def test_run_continues_the_trace_of_its_call(self, post: Post) -> None:
        with sentry_sdk.start_transaction(op="http.server", name="request"):
            handle = act.execute_on_commit()
        assert sorted(queue()[0].attributes) == ["baggage", "sentry-trace"]
        run_all()
        request, process = post.of("transaction")
        [publish] = request["spans"]
        trace = process["contexts"]["trace"]
        assert (publish["op"], trace["op"], trace["status"]) == ("queue.publish", "queue.process", "ok")
        assert (trace["trace_id"], trace["parent_span_id"]) == (publish["trace_id"], publish["span_id"])
        data = trace["data"]
        assert data["messaging.message.receive.latency"] >= 0
        assert (data["messaging.message.id"], data["messaging.destination.name"]) == (handle.message_id, "default")
        assert (data["messaging.system"], data["messaging.message.retry.count"]) == ("aws_sqs", 0)
        assert publish["data"]["messaging.message.id"] == handle.message_id

    def test_without_a_client_nothing_travels(self, post: Post) -> None:
        sentry_sdk.get_global_scope().set_client(None)
        act.execute_on_commit()
        assert queue()[0].attributes == {}
        run_all()


class TestMonitors:
    @pytest.fixture(autouse=True)
    def entry(self) -> Entry:
        schedule = Cron("0 12 * * *", timezone="Europe/Berlin")
        task = periodic(report, schedule, retry_on=[OSError], max_retries=1)
        return Entry(task.name, task, schedule)

    def test_tick_checks_in_twice(self, post: Post, entry: Entry) -> None:
        queue().append(tick := entry.job(NOON, "default"))
        run_all()
        begin, end = post.of("check_in")
        assert (begin["status"], end["status"]) == ("in_progress", "ok")
        assert begin["check_in_id"] == end["check_in_id"] == tick.message_id.replace("-", "")
        assert begin["monitor_slug"] == "tests-contrib-test_sentry-report"
        assert begin["monitor_config"] == {
            "schedule": {"type": "crontab", "value": "0 12 * * *"},
            "timezone": "Europe/Berlin",
            "checkin_margin": 10,
        }

    def test_retries_are_one_check_in(self, post: Post, entry: Entry) -> None:
        failing.append(OSError())
        queue().append(entry.job(NOON, "default"))
        run_all()
        assert [each["status"] for each in post.of("check_in")] == ["in_progress", "error"]
        assert len({each["check_in_id"] for each in post.of("check_in")}) == 1

    def test_additional_run_does_not_check_in(self, post: Post, entry: Entry) -> None:
        queue().append(entry.extra_job(NOON, "default"))
        run_all()
        assert post.of("check_in") == []

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            (Every(minutes=90), {"type": "interval", "value": 90, "unit": "minute"}),
            (Every(hours=2), {"type": "interval", "value": 2, "unit": "hour"}),
            (Every(days=1), {"type": "interval", "value": 1, "unit": "day"}),
            (Every(seconds=90), None),
        ],
    )
    def test_interval_is_in_whole_units(self, schedule: Every, expected: object) -> None:
        config = plugin._config_of(schedule)
        assert (config and config["schedule"]) == expected

    def test_slugs_are_short_and_distinct(self) -> None:
        first, second = Cron("0 3 * 1 *"), Cron("0 3 1 * *")
        slugs = [plugin.monitor_slug("shop.tasks.report", each, alone=False) for each in (first, second)]
        assert len(set(slugs)) == 2
        named = Cron("0 3 * * *", name="Nightly")
        assert plugin.monitor_slug("shop.tasks.report", named, alone=False) == "shop-tasks-report-nightly"
        assert len(plugin.monitor_slug("shop." * 20 + "report", first, alone=True)) <= plugin.MAX_SLUG


@pytest.mark.parametrize(("name", "package"), [("sentry", "sentry_sdk"), ("opentelemetry", "opentelemetry")])
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    path = f"lambda_tasks.contrib.{name}"
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, path, raising=False)
    remedy = rf"{path} needs the package .* pip install 'django-lambda-tasks\[{name}\]'"
    with override_settings(LAMBDA_TASKS_PLUGINS=[path]), pytest.raises(InvalidSetting, match=remedy):
        hooks()


class TestFlush:
    def test_flush_leaves_time_for_the_response(self, post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugin, "seconds_to_flush", lambda deadline: deadline and deadline - 1000.0)
        plugin.lambda_task_batch_finished(1001.5)
        plugin.lambda_task_batch_finished(1000.0)  # no time is left
        assert post.timeouts == [1.5]

    def test_handler_flushes(self, post: Post) -> None:
        handler({"Records": []}, None)
        assert post.timeouts == [flushing.MOST_SECONDS]
