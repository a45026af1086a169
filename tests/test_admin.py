"""The records in the admin: to be found and looked at, and not to be changed."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone as django_timezone

from lambda_tasks.admin import listing, records
from lambda_tasks.models import TaskRecord, TaskStatus

pytestmark = pytest.mark.django_db

LIST = reverse("admin:lambda_tasks_taskrecord_changelist")
NOON = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def staff(client: Client) -> Client:
    """Somebody with every permission that Django knows."""
    client.force_login(User.objects.create_superuser("root"))
    return client


def record(**fields: Any) -> TaskRecord:
    values: dict[str, Any] = {
        "id": uuid4(),
        "task_name": "shop.tasks.send_parcel",
        "kwargs": {"order_id": 42},
        "status": TaskStatus.SUCCESS,
        "start_time": NOON,
        "end_time": NOON + timedelta(seconds=1.5),
    }
    return TaskRecord.objects.create(**values | fields)


def listed(staff: Client, query: str = "") -> list[UUID]:
    """Return the keys of the records that the list shows, in its order."""
    response = staff.get(f"{LIST}{query}")
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


def detail(record: TaskRecord, action: str = "change") -> str:
    return reverse(f"admin:lambda_tasks_taskrecord_{action}", args=[record.pk])


def visible_text(staff: Client, url: str) -> str:
    response = staff.get(url)
    assert response.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


class TestList:
    def test_the_latest_stand_first(self, staff: Client) -> None:
        old, new = record(start_time=NOON - timedelta(days=1)), record()
        assert listed(staff) == [new.pk, old.pk]

    def test_it_shows_what_ran_how_it_ended_and_how_long_it_took(self, staff: Client) -> None:
        record(status=TaskStatus.RETRYING, n_retries=3)
        text = visible_text(staff, LIST)
        for wanted in ("shop.tasks.send_parcel", "Retrying", " 3 ", "1.500", "2025-06-01 12:00:00"):
            assert wanted in text

    def test_the_outcome_is_the_result_or_the_last_line_of_the_traceback(self, staff: Client) -> None:
        record(result={"to": "Jürgen"})
        record(result=["x" * 1000])
        record(traceback="Traceback …\n  File …\nshop.errors.PrinterOnFire: tray 2\n", result=None)
        text = visible_text(staff, LIST)
        assert "{&quot;to&quot;: &quot;Jürgen&quot;}" in text
        assert "PrinterOnFire: tray 2" in text
        assert "File …" not in text
        assert "x" * 100 not in text

    def test_a_record_that_has_not_ended_has_no_duration(self, staff: Client) -> None:
        record(status=TaskStatus.RUNNING, end_time=None)
        record(start_time=None, end_time=None)
        assert len(listed(staff)) == 2

    def test_it_takes_as_many_queries_for_many_records_as_for_few(
        self, staff: Client, django_assert_max_num_queries: Any
    ) -> None:
        record()
        with django_assert_max_num_queries(8):
            listed(staff)
        for _ in range(30):
            record()
        with django_assert_max_num_queries(8):
            assert len(listed(staff)) == 31

    def test_it_is_sorted_by_time_either_way_and_by_nothing_that_has_no_index(self, staff: Client) -> None:
        old, new = record(start_time=NOON - timedelta(days=1)), record()
        offered = re.findall(r"[?&;]o=([-.\d]*)", staff.get(LIST).content.decode())
        assert set(offered) <= {"", "5", "-5"}
        assert "5" in offered
        assert listed(staff, "?o=5") == [old.pk, new.pk]

    def test_it_ends_after_ten_thousand_records_and_says_so(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert listing.MOST_LISTED == 10_000
        monkeypatch.setattr(listing, "MOST_LISTED", 300)
        TaskRecord.objects.bulk_create(
            TaskRecord(id=uuid4(), task_name="shop.tasks.send_parcel", start_time=NOON) for _ in range(299)
        )
        assert "use the filters to find others" not in visible_text(staff, LIST)
        record()
        record()
        text = visible_text(staff, LIST)
        assert "No more than 10,000 records are listed; use the filters to find others." in text
        assert "300 task records" in text
        assert len(listed(staff, "?p=3")) == 100
        assert staff.get(f"{LIST}?p=4").status_code == 302

    def test_it_reads_neither_arguments_nor_whole_tracebacks(self, staff: Client) -> None:
        record(kwargs={"secret": "sauce"}, traceback="x" * 99_000 + "\nshop.errors.PrinterOnFire: tray 2\n")
        record(traceback="shop.errors.PrinterOnFire: " + "y" * 99_000)
        with CaptureQueriesContext(connection) as queries:
            text = visible_text(staff, LIST)
        assert "PrinterOnFire: tray 2" in text
        assert "…yyy" in text  # of a line that is longer than what is read, the end
        page_query = queries[-1]["sql"]
        assert "end_of_traceback" in page_query
        assert '"kwargs"' not in page_query.replace("`", '"')


class TestFilters:
    def test_by_status(self, staff: Client) -> None:
        by_status = {status: record(status=status) for status in TaskStatus}
        for status, shown in by_status.items():
            assert listed(staff, f"?status__exact={status}") == [shown.pk]

    def test_by_task(self, staff: Client) -> None:
        record()
        shown = record(task_name="shop.tasks.print_label")
        assert listed(staff, "?task_name=shop.tasks.print_label") == [shown.pk]

    def test_by_time(self, staff: Client) -> None:
        record()
        today = record(start_time=django_timezone.now())
        [query] = re.findall(r'href="(\?start_time__gte=[^"]*)">\s*Today', staff.get(LIST).content.decode())
        assert listed(staff, query.replace("&amp;", "&")) == [today.pk]

    def test_the_choices_are_offered(self, staff: Client) -> None:
        record()
        text = visible_text(staff, LIST)
        for wanted in ("By status", "By task", "By started"):
            assert wanted in text

    def test_tasks_are_offered_that_are_known_or_ran_lately_or_are_chosen(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert listing.RECENT == 1_000
        monkeypatch.setattr(listing, "RECENT", 1)
        record(task_name="shop.tasks.of_yore", start_time=NOON - timedelta(days=1))
        record(task_name="shop.tasks.of_late")
        names = [name for name, _ in staff.get(LIST).context["cl"].filter_specs[1].lookup_choices]
        assert {"shop.tasks.of_late", "lambda_tasks.tasks.cleanup_task_records"} <= set(names)
        assert "shop.tasks.of_yore" not in names
        assert names == sorted(names)
        chosen = staff.get(f"{LIST}?task_name=shop.tasks.of_yore").context["cl"].filter_specs[1].lookup_choices
        assert ("shop.tasks.of_yore", "shop.tasks.of_yore") in chosen


class TestSearch:
    @pytest.mark.parametrize("form", [str, lambda key: str(key).upper(), lambda key: f" {key} "])
    def test_by_the_message_id(self, staff: Client, form: Any) -> None:
        record()
        shown = record()
        assert listed(staff, f"?q={form(shown.pk)}") == [shown.pk]

    def test_by_the_id_of_the_first_of_a_chain(self, staff: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        retry = record(root_id=root.pk, n_retries=1, start_time=NOON + timedelta(minutes=1))
        record()
        assert listed(staff, f"?q={root.pk}") == [retry.pk, root.pk]

    def test_by_part_of_the_name_or_of_the_traceback(self, staff: Client) -> None:
        by_name = record(task_name="shop.tasks.print_label")
        by_error = record(traceback="Traceback …\nshop.errors.PrinterOnFire: tray 2")
        record()
        assert listed(staff, "?q=print_label") == [by_name.pk]
        assert listed(staff, "?q=printeronfire") == [by_error.pk]

    def test_a_text_is_looked_for_in_the_latest_records_that_the_filters_leave(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert records.MOST_SEARCHED == 10_000
        monkeypatch.setattr(records, "MOST_SEARCHED", 2)
        failed = record(status=TaskStatus.FAILED, traceback="PrinterOnFire", start_time=NOON - timedelta(days=1))
        record()
        record()
        assert listed(staff, "?q=printeronfire") == []
        assert listed(staff, "?q=printeronfire&status__exact=FAILED") == [failed.pk]
        assert listed(staff, f"?q={failed.pk}") == [failed.pk]

    @pytest.mark.parametrize("words", ["nothing+of+that", "0193", "%27%22%3B", "%F0%9F%98%80", "a" * 300])
    def test_for_what_is_not_there_it_finds_nothing(self, staff: Client, words: str) -> None:
        record()
        response = staff.get(f"{LIST}?q={words}")
        assert response.status_code == 200
        assert len(response.context["cl"].result_list) == 0

    def test_what_no_database_can_look_for_is_refused_politely(self, staff: Client) -> None:
        record()
        assert "Null characters are not allowed" in visible_text(staff, f"{LIST}?q=%00")


class TestDetail:
    def test_it_shows_every_field_that_is_meant_for_people(self, staff: Client) -> None:
        root = uuid4()
        shown = record(
            status=TaskStatus.FAILED,
            kwargs={"order_id": 42, "note": "läuft"},
            result={"parcel": 7},
            traceback="Traceback …\nshop.errors.PrinterOnFire: tray 2",
            n_retries=3,
            root_id=root,
            takeovers=2,
            queue="mail-for-giants",
        )
        text = visible_text(staff, detail(shown))
        for wanted in (str(shown.pk), str(root), "order_id", "läuft", "parcel", "PrinterOnFire: tray 2", "1.500"):
            assert wanted in text
        assert "Queue: mail-for-giants" in text
        for label in (
            *("Message id", "Task", "Status", "Arguments", "Started", "Ended", "Seconds", "Crashes", "Result"),
            *("Traceback", "Retry", "All invocations of the chain"),
        ):
            assert f"{label}:" in text

    def test_it_leads_to_all_invocations_of_its_chain(self, staff: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        retry = record(root_id=root.pk, n_retries=1, start_time=NOON + timedelta(minutes=1))
        record()
        [link] = re.findall(rf'<a href="([^"]*{root.pk})">', staff.get(detail(retry)).content.decode())
        assert listed(staff, link.removeprefix(LIST)) == [retry.pk, root.pk]

    def test_what_a_task_was_given_is_text_and_no_markup(self, staff: Client) -> None:
        shown = record(kwargs={"name": "<script>alert(1)</script>"}, traceback="<script>alert(2)</script>")
        page = staff.get(detail(shown)).content.decode()
        assert "<script>alert" not in page
        assert page.count("&lt;script&gt;alert") == 2

    def test_a_record_that_is_gone_is_not_found(self, staff: Client) -> None:
        response = staff.get(reverse("admin:lambda_tasks_taskrecord_change", args=[uuid4()]))
        assert response.status_code == 302


class TestReadOnly:
    def test_the_pages_have_nothing_to_write_with(self, staff: Client) -> None:
        shown = record()
        for url in (LIST, detail(shown)):
            page = staff.get(url).content.decode()
            page = page[page.index('<div id="content"') :]  # beside it, the menu has other models
            for control in ('name="_save"', 'name="action"', "addlink", "deletelink", "<textarea"):
                assert control not in page

    def test_nothing_can_be_added_changed_or_deleted(self, staff: Client) -> None:
        shown = record()
        for url, data in (
            (reverse("admin:lambda_tasks_taskrecord_add"), {"task_name": "shop.tasks.send_parcel"}),
            (detail(shown), {"status": "FAILED", "_save": "Save"}),
            (detail(shown, "delete"), {"post": "yes"}),
        ):
            assert staff.post(url, data).status_code == 403
        # Without the permission the action does not exist, and the list comes again.
        staff.post(LIST, {"action": "delete_selected", "_selected_action": [str(shown.pk)], "post": "yes"})

        assert TaskRecord.objects.get() == shown
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_there_is_no_form_to_add_or_delete(self, staff: Client) -> None:
        assert staff.get(reverse("admin:lambda_tasks_taskrecord_add")).status_code == 403
        assert staff.get(detail(record(), "delete")).status_code == 403

    def test_the_permission_to_view_is_needed_and_enough(self, client: Client) -> None:
        user = User.objects.create_user("ada", is_staff=True)
        client.force_login(user)
        assert client.get(LIST).status_code == 403
        user.user_permissions.add(Permission.objects.get(codename="view_taskrecord"))
        assert client.get(LIST).status_code == 200
        assert client.get(detail(record())).status_code == 200

    def test_a_stranger_sees_the_login(self, client: Client) -> None:
        assert client.get(LIST).status_code == 302


def test_it_is_registered() -> None:
    assert TaskRecord in site._registry
