"""The overview of all tasks: its permission, its sections, its cache, and its charts."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from lambda_tasks.admin import charts, overview
from lambda_tasks.definition.schedules import Every
from lambda_tasks.models import OutboxMessage, TaskReason, TaskStatus
from lambda_tasks.operations.aws import connect_to_aws
from lambda_tasks.wire.queue_urls import server_of
from tests.admin.kit import called, content, log_in, record
from tests.schedules import own_tasks, periodic

pytestmark = pytest.mark.django_db

PAGE = reverse("admin:lambda_tasks_tasksoverview_changelist")
SECTIONS = reverse("admin:lambda_tasks_tasksoverview_sections")
MARKUP = "<script>alert(1)</script>"


def hourly() -> None: ...


@pytest.fixture(autouse=True)
def _fresh_numbers() -> None:
    cache.clear()


def cells(page: str, section: str) -> list[list[str]]:
    """Return the cells of the rows of a section's table."""
    [table] = re.findall(rf'id="task-{section}-heading".*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]


class TestPermission:
    @pytest.mark.parametrize("address", [PAGE, SECTIONS])
    def test_page_needs_its_own_permission(self, client: Client, address: str) -> None:
        assert client.get(address).status_code == 302
        log_in(client, "view_taskrecord", "view_outboxmessage", "change_outboxmessage")
        assert client.get(address).status_code == 403
        log_in(client, "view_tasksoverview")
        assert client.get(address).status_code == 200

    def test_permission_opens_no_records(self, client: Client) -> None:
        log_in(client, "view_tasksoverview")
        shown = record()
        assert str(shown.pk) not in content(client, PAGE)
        assert "/taskrecord/" not in content(client, PAGE)
        for path in (f"{shown.pk}/change/", f"{shown.pk}/", f"{shown.pk}/history/", f"{shown.pk}/delete/", "add/"):
            assert client.get(f"{PAGE}{path}").status_code == 404
        with pytest.raises(NoReverseMatch):
            reverse("admin:lambda_tasks_tasksoverview_change", args=[shown.pk])

    def test_list_links_to_the_overview(self, client: Client) -> None:
        records = reverse("admin:lambda_tasks_taskrecord_changelist")
        log_in(client, "view_taskrecord")
        assert PAGE not in content(client, records)
        log_in(client, "view_taskrecord", "view_tasksoverview")
        assert f'<a href="{PAGE}">' in content(client, records)

    @pytest.mark.parametrize("query", [{"span": "x"}, {"span": "\x00"}, {"o": "1"}, {"kwargs__contains": "1"}])
    def test_other_parameters_have_no_effect(self, admin_client: Client, query: dict[str, str]) -> None:
        assert admin_client.get(PAGE, query).context["span"].name == "day"


class TestSections:
    def test_counts_are_per_status(self, admin_client: Client) -> None:
        record()
        record(start_time=timezone.now() - timedelta(hours=5))
        record(start_time=timezone.now() - timedelta(days=5))
        record(status=TaskStatus.RUNNING, start_time=timezone.now() - timedelta(days=30))
        counts = admin_client.get(PAGE).context["counts"]
        assert [(each["number"], each["last_hour"]) for each in counts] == [(1, None), (2, 1), (0, 0), (0, 0)]
        cache.clear()
        counts = admin_client.get(PAGE, {"span": "week"}).context["counts"]
        assert [each["number"] for each in counts] == [1, 3, 0, 0]
        assert "started=week" in counts[1]["url"]

    def test_oldest_running_task_is_named(self, admin_client: Client) -> None:
        oldest = record(status=TaskStatus.RUNNING, start_time=timezone.now() - timedelta(hours=2))
        record(status=TaskStatus.RUNNING)
        page = content(admin_client, PAGE)
        assert f'{oldest.pk}/change/"><span title="shop.tasks.send_parcel">' in page
        assert "2 h ago" in page

    def test_durations_have_median_and_late_runs(self, admin_client: Client) -> None:
        start = timezone.now() - timedelta(minutes=1)
        for seconds in (1, 2, 3):
            end = start + timedelta(seconds=2 * seconds)
            record(id=called(start - timedelta(seconds=seconds)), start_time=start, end_time=end)
        [[name, count, waited, *waits, ran, median, late]] = cells(content(admin_client, PAGE), "durations")
        assert "send_parcel" in name
        assert count == "3"
        assert [each.partition(" ")[0] for each in waits] == ["2.0", "2.9"]
        assert (median, late) == ("4.0 s", "5.8 s")
        assert "<svg" in waited
        assert "<svg" in ran

    def test_errors_are_counted_and_linked(self, admin_client: Client) -> None:
        failed = {"status": TaskStatus.FAILED, "reason": TaskReason.ERROR, "traceback": "Traceback …\na.b.Busy: x\n"}
        record(**failed, start_time=timezone.now() - timedelta(minutes=9))
        latest = record(**failed)
        [[error, reason, task, count, when]] = cells(content(admin_client, PAGE), "errors")
        assert ">Busy</a>" in error
        assert str(latest.pk) in error
        assert (reason, count) == ("Error", "2")
        assert "send_parcel" in task
        assert " ago</time>" in when

    def test_outbox_has_numbers_and_age(self, admin_client: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = True
        now = timezone.now()
        for minutes, due in ((5, now), (1, None)):
            enqueued = now - timedelta(minutes=minutes)
            OutboxMessage.objects.create(id=called(now), task_name="x", created_at=enqueued, due_at=due)
        [[_database, waiting, dead, oldest, _due]] = cells(content(admin_client, PAGE), "outbox")
        assert (waiting, dead) == ("1", "1")
        assert "5 min ago" in oldest

    def test_schedules_have_next_runs(self, admin_client: Client) -> None:
        with own_tasks():
            task = periodic(hourly, Every(hours=1))
            [[name, last, status, following]] = cells(content(admin_client, PAGE), "schedules")
        assert name.startswith(task.name)
        assert (last, status) == ("-", "")
        assert ">in " in following

    def test_queues_have_depths(self, admin_client: Client, sqs: Any) -> None:
        sqs.client.send_message(QueueUrl=sqs.queues["other"], MessageBody="{}")
        rows = cells(content(admin_client, PAGE), "queues")
        assert [row[:2] for row in rows] == [["default", "0"], ["other", "1"]]

    def test_queues_have_ages(self, admin_client: Client, sqs: Any) -> None:
        client = connect_to_aws("cloudwatch", None, server_of(sqs.queues["other"]))
        metric = {
            "MetricName": "ApproximateAgeOfOldestMessage",
            "Dimensions": [{"Name": "QueueName", "Value": "other"}],
        }
        for minutes, seconds in ((6, 500.0), (2, 90.0)):
            at = timezone.now() - timedelta(minutes=minutes)
            client.put_metric_data(Namespace="AWS/SQS", MetricData=[{**metric, "Timestamp": at, "Value": seconds}])
        rows = cells(content(admin_client, PAGE), "queues")
        assert [row[2] for row in rows] == ["-", "1 min 30 s"]

    def test_unavailable_cloudwatch_leaves_ages_unknown(
        self, admin_client: Client, sqs: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH", "http://127.0.0.1:9")
        rows = cells(content(admin_client, PAGE), "queues")
        assert [row[1:3] for row in rows] == [["0", "-"], ["0", "-"]]

    def test_unavailable_queues_have_a_problem(self, admin_client: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = "lambda_tasks.backends.sqs.SQSBackend"
        rows = cells(content(admin_client, PAGE), "queues")
        assert all("Could not connect" in row[-1] for row in rows)

    def test_invalid_settings_are_named(self, admin_client: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = "yes"
        assert "LAMBDA_TASKS_OUTBOX must be True or False" in content(admin_client, PAGE)

    def test_markup_is_escaped(self, admin_client: Client) -> None:
        record(task_name=MARKUP, status=TaskStatus.FAILED, reason=MARKUP[:16], traceback=f"x.{MARKUP}\n{MARKUP}: x\n")
        record(task_name=MARKUP, status=TaskStatus.RUNNING)
        assert MARKUP not in content(admin_client, PAGE)

    def test_fragment_is_the_part_that_changes(self, admin_client: Client) -> None:
        record()
        response = admin_client.get(SECTIONS)
        assert "no-store" in response["Cache-Control"]
        assert "<html" not in response.content.decode()
        assert 'class="task-counts"' in response.content.decode()


class TestCache:
    def test_second_request_asks_no_records(self, admin_client: Client, django_assert_num_queries: Any) -> None:
        record()
        # session, user, window, counts, throughput, durations, errors, running, its oldest
        with django_assert_num_queries(10):
            content(admin_client, PAGE)
        with django_assert_num_queries(2):
            admin_client.get(SECTIONS)

    def test_unavailable_cache_costs_only_time(self, admin_client: Client, settings: Any, caplog: Any) -> None:
        settings.CACHES = {
            "default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:9"}
        }
        assert content(admin_client, PAGE)
        assert "The cache is unavailable" in caplog.text

    def test_cached_numbers_expire(self) -> None:
        assert overview.FRESH < overview.REFRESH


class TestCharts:
    def test_chart_is_a_described_image(self) -> None:
        data = [charts.Column(f"<{n}>", (("succeeded", n), ("failed", 1))) for n in range(30)]
        svg = ET.fromstring(charts.columns(data, name="x", title="a & b", description="<c>"))
        assert svg.attrib["role"] == "img"
        assert svg.attrib["aria-labelledby"] == "x-title x-description"
        assert [svg.findtext("title"), svg.findtext("desc")] == ["a & b", "<c>"]
        assert len(svg.findall(".//rect[@class='task-part-failed']")) == 30
        assert len(svg.findall("text[@class='task-label']")) <= 9
        assert "style" not in {name for element in svg.iter() for name in element.attrib}

    def test_parts_are_stacked_within_the_chart(self) -> None:
        data = [charts.Column("", (("a", 3), ("b", 1)))]
        svg = ET.fromstring(charts.columns(data, name="x", title="", description=""))
        below, above = ({name: float(each.attrib[name]) for name in ("y", "height")} for each in svg.iter("rect"))
        assert below["height"] == pytest.approx(3 * above["height"], abs=0.3)
        assert above["y"] + above["height"] == pytest.approx(below["y"], abs=0.2)
        assert 0 < above["y"] < charts.HEIGHT

    @pytest.mark.parametrize("data", [[], [charts.Column("", (("a", 0),))]])
    def test_empty_chart_has_a_grid(self, data: Any) -> None:
        svg = ET.fromstring(charts.columns(data, name="x", title="", description=""))
        assert svg.find("line") is not None
        assert svg.find(".//rect") is None

    def test_scale_contains_its_durations(self) -> None:
        scale = charts.Scale.around([None, 0.0, 0.02, 45.0])
        assert scale == charts.Scale(-2, 2)
        assert [scale.place(seconds) for seconds in (0.0, 0.001, 0.01, 1.0, 100.0, 1e9)] == [0, 0, 0, 50, 100, 100]
        assert charts.Scale.around([]) == charts.Scale(0, 1)

    def test_unknown_duration_has_no_range(self) -> None:
        assert charts.duration_range(None, None, charts.Scale(0, 1)) == ""

    @pytest.mark.parametrize(
        ("number", "text"), [(0, "0"), (9_999, "9999"), (12_000, "12k"), (12_340, "12.3k"), (2_000_000, "2M")]
    )
    def test_large_numbers_are_short(self, number: int, text: str) -> None:
        assert charts.short(number) == text
