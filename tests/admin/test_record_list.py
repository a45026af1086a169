"""The list of records: badges, names, times and errors, filters of runs, and searches for arguments."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.urls import path, reverse
from django.utils import timezone

from lambda_tasks.admin import TaskRecordAdmin, search, showing
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.models import TaskReason, TaskRecord, TaskStatus
from lambda_tasks.recording.tracebacks import traceback_text
from tests.admin.kit import LIST, called, content, log_in, page_of, record

pytestmark = pytest.mark.django_db
SEARCHES = pytest.mark.skipif(
    not connection.features.supports_json_field_contains, reason="SQLite cannot search in JSON by containment"
)


@lambda_task(sensitive=("token",), aliases=("tests.admin.test_record_list.pay",))
def charge(*, token: str) -> None: ...


class Discreet(TaskRecordAdmin):
    """Only superusers see arguments."""

    def has_view_arguments_permission(self, request: Any, obj: Any = None) -> bool:
        return bool(request.user.is_superuser)


discreet = admin.AdminSite(name="discreet")
discreet.register(TaskRecord, Discreet)
urlpatterns = [path("admin/", admin.site.urls), path("discreet/", discreet.urls)]


def cell(page: str, column: str) -> str:
    [found] = re.findall(rf'<t[dh] class="field-{column}[^"]*">(.*?)</t[dh]>', page, re.DOTALL)
    return str(found)


def listed(client: Client, query: Any, address: str = LIST) -> list[UUID]:
    response = client.get(address, query)
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


class TestColumns:
    def test_status_has_a_shape_and_a_word(self, admin_client: Client) -> None:
        shapes = set()
        for status in TaskStatus:
            TaskRecord.objects.all().delete()
            record(status=status)
            badge = cell(content(admin_client, LIST), "badge")
            assert f"</svg>{status.label}</span>" in badge
            shapes.add(re.findall(r"<svg.*?</svg>", badge)[0])
        assert len(shapes) == len(TaskStatus)

    def test_unknown_status_is_shown(self, admin_client: Client) -> None:
        record(status="<NEW>", reason="<why>")
        badge = cell(content(admin_client, LIST), "badge")
        assert "&lt;NEW&gt;" in badge
        assert "&lt;why&gt;" in badge

    def test_title_of_the_name_is_whole(self, admin_client: Client) -> None:
        record()
        assert '<span title="shop.tasks.send_parcel">send_parcel</span>' in cell(content(admin_client, LIST), "task")

    def test_title_of_the_start_is_exact(self, admin_client: Client) -> None:
        start = timezone.now() - timedelta(hours=3, minutes=5)
        record(start_time=start)
        started = cell(content(admin_client, LIST), "started")
        assert ">3 h ago</time>" in started
        assert f'title="{start:%Y-%m-%d %H:%M:%S}"' in started

    def test_waiting_time_is_known_from_the_id(self, admin_client: Client) -> None:
        start = timezone.now()
        record(id=called(start - timedelta(seconds=2.04)), start_time=start)
        assert cell(content(admin_client, LIST), "waited") == "2.0 s"

    def test_waiting_time_of_other_ids_is_unknown(self, admin_client: Client) -> None:
        record(id=uuid4())
        assert cell(content(admin_client, LIST), "waited") == "-"

    @pytest.mark.parametrize("moment", ["ffffffff-ffff", "e677d21f-d000"])
    def test_id_from_the_far_future_is_listed(self, admin_client: Client, settings: Any, moment: str) -> None:
        settings.TIME_ZONE = "Asia/Tokyo"
        shown = record(id=UUID(f"{moment}-7fff-bfff-ffffffffffff"))
        assert admin_client.get(page_of(shown)).status_code == 200
        assert cell(content(admin_client, LIST), "waited") == "-"

    def test_error_has_its_class_without_the_module(self, admin_client: Client) -> None:
        record(status=TaskStatus.FAILED, traceback="Traceback …\nshop.errors.PrinterOnFire: tray 2 of a.b.C: x\n")
        assert cell(content(admin_client, LIST), "outcome") == "PrinterOnFire: tray 2 of a.b.C: x"

    def test_exhausted_retries_show_the_cause(self, admin_client: Client) -> None:
        error = MaxRetriesExceededError("failed after 3 retries")
        error.__cause__ = LookupError("no such order")
        record(status=TaskStatus.FAILED, reason=TaskReason.MAX_RETRIES, traceback=traceback_text(error))
        page = content(admin_client, LIST)
        assert cell(page, "outcome") == "LookupError: no such order"
        assert "Max Retries" in cell(page, "badge")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1.0, "0 ms"),
        (0.0456, "46 ms"),
        (0.9999, "1.0 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min"),
        (125.0, "2 min 5 s"),
        (3_600.0, "1 h"),
        (93_600.0, "1 d 2 h"),
        (None, None),
    ],
)
def test_duration_has_two_units(seconds: float | None, text: str | None) -> None:
    assert showing.duration(seconds) == text


class TestFilters:
    def test_overdue_runs_have_outlived_their_lease(self, admin_client: Client) -> None:
        now = timezone.now()
        overdue = record(status=TaskStatus.RUNNING, lease_until=now - timedelta(hours=2))
        record(status=TaskStatus.RUNNING, lease_until=now + timedelta(hours=2))
        record(lease_until=now - timedelta(hours=2))
        assert listed(admin_client, {"run": "overdue"}) == [overdue.pk]

    def test_slow_runs_took_longer(self, admin_client: Client) -> None:
        start = timezone.now() - timedelta(hours=1)
        slow = {n: record(start_time=start, end_time=start + timedelta(seconds=n)).pk for n in (9, 11, 61, 301)}
        assert set(listed(admin_client, {"run": "10s"})) == {slow[11], slow[61], slow[301]}
        assert set(listed(admin_client, {"run": "1min"})) == {slow[61], slow[301]}
        assert listed(admin_client, {"run": "5min"}) == [slow[301]]

    def test_queue_filter(self, admin_client: Client) -> None:
        record()
        shown = record(queue="mail")
        assert listed(admin_client, {"queue": "mail"}) == [shown.pk]

    def test_unknown_spans_and_runs_filter_nothing(self, admin_client: Client) -> None:
        shown = record()
        for query in ({"started": "century"}, {"run": "forever"}, {"started": ["x", "\x00"]}):
            assert listed(admin_client, query) == [shown.pk]

    def test_chosen_span_is_marked(self, admin_client: Client) -> None:
        page = content(admin_client, f"{LIST}?started=day")
        assert re.findall(r'<li class="selected">\s*<a href="\?started=day"', page)
        assert not re.findall(r'<li class="selected">\s*<a[^>]*>\s*Any time', page)


class TestArguments:
    @SEARCHES
    @pytest.mark.parametrize(
        "text",
        [
            "order_id=42",
            '{"order_id": 42}',
            ' {"order_id":42} ',
            'to={"name": "Ada"}',
            '{"to": {"name": "Ada"}}',
            "note=42 b",
        ],
    )
    def test_contained_arguments_find_records(self, admin_client: Client, text: str) -> None:
        shown = record(kwargs={"order_id": 42, "to": {"name": "Ada", "city": "Ulm"}, "note": "42 b"})
        record(kwargs={"order_id": 421, "to": {"name": "Bob"}, "note": "42"})
        assert listed(admin_client, {"q": text}) == [shown.pk]

    @SEARCHES
    def test_sensitive_arguments_of_old_records_are_not_searched(self, admin_client: Client) -> None:
        for name in (charge.name, *charge.aliases):
            record(task_name=name, kwargs={"token": "tok_4111", "n": 1})
        for query in ("token=tok_4111", '{"token": "tok_4111", "n": 1}', "token=tok_5"):
            assert listed(admin_client, {"q": query}) == []
        assert len(listed(admin_client, {"q": "n=1"})) == 2

    @pytest.mark.urls(__name__)
    def test_hidden_arguments_are_not_searched(self, client: Client) -> None:
        log_in(client, "view_taskrecord")
        address = reverse("discreet:lambda_tasks_taskrecord_changelist")
        record()
        assert listed(client, {"q": "order_id=42"}, address) == []
        assert "arguments like" not in content(client, address)

    @pytest.mark.urls(__name__)
    def test_hidden_arguments_are_not_on_the_page(self, client: Client) -> None:
        log_in(client, "view_taskrecord")
        shown = record(kwargs={"secret": "sauce"})
        page = content(client, reverse("discreet:lambda_tasks_taskrecord_change", args=[shown.pk]))
        assert "sauce" not in page
        assert "execute_on_commit" not in page

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "{}",
            "{1}",
            "[1]",
            "a b=1",
            "=1",
            "a=",
            '{"a": NaN}',
            '{"a": "\\ud800"}',
            "a=" + "[" * 400,
            "a=" + "9" * 490,
        ],
    )
    def test_hostile_searches_are_answered(self, admin_client: Client, text: str) -> None:
        record()
        assert listed(admin_client, {"q": text}) == []

    @pytest.mark.parametrize(
        ("text", "meaning"),
        [
            ("order_id=42", search.ByArguments({"order_id": 42})),
            ("name=Ada", search.ByArguments({"name": "Ada"})),
            ("done=null", search.ByArguments({"done": None})),
            ("send_parcel", search.ByWords("send_parcel")),
            ("a b=1", search.ByWords("a b=1")),
            ('{"a": Infinity}', search.ByWords('{"a": Infinity}')),
            ("x" * 501, search.TooLong()),
        ],
    )
    def test_search_has_one_meaning(self, text: str, meaning: search.Search) -> None:
        assert search.read(text) == meaning
