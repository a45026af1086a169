"""The task records in the admin: users can find and read them, and cannot change them."""

from __future__ import annotations

import html
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

from lambda_tasks.admin import filters, listing
from lambda_tasks.exceptions import MaxRetriesExceededError
from lambda_tasks.models import TaskProgress, TaskReason, TaskRecord, TaskStatus
from lambda_tasks.recording.tracebacks import dropped_text, traceback_text
from lambda_tasks.tasks import cleanup_task_records

pytestmark = pytest.mark.django_db

LIST = reverse("admin:lambda_tasks_taskrecord_changelist")
NOON = datetime(2025, 6, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def staff(client: Client) -> Client:
    """Log in a user who has every permission."""
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


def offered_tasks(staff: Client, query: str = "") -> list[str]:
    """Return the names that the filter of tasks offers."""
    offered = staff.get(f"{LIST}{query}").context["cl"].filter_specs
    [tasks] = [each for each in offered if isinstance(each, filters.TaskFilter)]
    return [name for name, _ in tasks.lookup_choices]


def detail(record: TaskRecord, action: str = "change") -> str:
    return reverse(f"admin:lambda_tasks_taskrecord_{action}", args=[record.pk])


def page_text(staff: Client, url: str) -> str:
    response = staff.get(url)
    assert response.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


class TestList:
    def test_latest_records_come_first(self, staff: Client) -> None:
        old, new = record(start_time=NOON - timedelta(days=1)), record()
        assert listed(staff) == [new.pk, old.pk]

    def test_row_shows_task_outcome_and_duration(self, staff: Client) -> None:
        record(status=TaskStatus.RETRYING, n_retries=3, queue="mail")
        text = page_text(staff, LIST)
        for wanted in (" send_parcel ", "Retrying", " mail ", " 4 ", "1.5 s", "2025-06-01 12:00:00"):
            assert wanted in text

    def test_outcome_is_result_or_line_of_the_error(self, staff: Client) -> None:
        record(result={"to": "Jürgen"})
        record(result=["x" * 1000])
        record(traceback="Traceback …\n  File …\nshop.errors.PrinterOnFire: tray 2\n", result=None)
        text = page_text(staff, LIST)
        assert "{&quot;to&quot;: &quot;Jürgen&quot;}" in text
        assert "PrinterOnFire: tray 2" in text
        assert "File …" not in text
        assert "x" * 100 not in text

    def test_outcome_after_last_retry_is_the_error(self, staff: Client) -> None:
        error = MaxRetriesExceededError("shop.tasks.send_parcel failed after 3 retries, and its max_retries is 3.")
        error.__cause__ = ConnectionError("the carrier is busy")
        text = f"{traceback_text(error)}\n\n{dropped_text(['shop.tasks.bill'])}\n"
        record(status=TaskStatus.FAILED, reason=TaskReason.MAX_RETRIES, traceback=text)
        assert self.outcomes(staff) == ["ConnectionError: the carrier is busy"]

    def test_outcome_is_not_the_cause_of_other_errors(self, staff: Client) -> None:
        error = RuntimeError("no parcel was sent")
        error.__cause__ = ConnectionError("the carrier is busy")
        record(status=TaskStatus.FAILED, reason=TaskReason.ERROR, traceback=traceback_text(error))
        assert self.outcomes(staff) == ["RuntimeError: no parcel was sent"]

    def test_outcome_is_not_the_sentence_about_dropped_tasks(self, staff: Client) -> None:
        text = f"{traceback_text(ConnectionError('busy'))}\n\n{dropped_text(['shop.tasks.bill'])}\n"
        record(status=TaskStatus.FAILED, reason=TaskReason.ERROR, traceback=text)
        assert self.outcomes(staff) == ["ConnectionError: busy"]

    def outcomes(self, staff: Client) -> list[str]:
        """Return the column with the outcome."""
        rows = re.findall(r'<td class="field-outcome">(.*?)</td>', staff.get(LIST).content.decode())
        return [html.unescape(row) for row in rows]

    def test_unfinished_record_has_no_duration(self, staff: Client) -> None:
        record(status=TaskStatus.RUNNING, end_time=None)
        record(start_time=None, end_time=None)
        assert len(listed(staff)) == 2

    def test_query_count_is_independent_of_record_count(
        self, staff: Client, django_assert_max_num_queries: Any
    ) -> None:
        record()
        with django_assert_max_num_queries(8):
            listed(staff)
        for _ in range(30):
            record()
        with django_assert_max_num_queries(8):
            assert len(listed(staff)) == 31

    def test_only_the_start_time_is_sortable(self, staff: Client) -> None:
        old, new = record(start_time=NOON - timedelta(days=1)), record()
        # Sorting by another column would need an index.
        offered = re.findall(r"[?&;]o=([-.\d]*)", staff.get(LIST).content.decode())
        assert set(offered) <= {"", "8", "-8"}
        assert "8" in offered
        assert listed(staff, "?o=8") == [old.pk, new.pk]

    def test_list_is_limited_to_ten_thousand_records(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        assert listing.MOST_LISTED == 10_000
        monkeypatch.setattr(listing, "MOST_LISTED", 300)
        TaskRecord.objects.bulk_create(
            TaskRecord(id=uuid4(), task_name="shop.tasks.send_parcel", start_time=NOON) for _ in range(299)
        )
        assert "use the filters to find others" not in page_text(staff, LIST)
        record()
        record()
        text = page_text(staff, LIST)
        assert "Only 10,000 records are listed. Use the filters to find others." in text
        assert "300 task records" in text
        assert len(listed(staff, "?p=3")) == 100
        assert staff.get(f"{LIST}?p=4").status_code == 302

    def test_list_reads_neither_arguments_nor_whole_tracebacks(self, staff: Client) -> None:
        record(kwargs={"secret": "sauce"}, traceback="x" * 99_000 + "\nshop.errors.PrinterOnFire: tray 2\n")
        record(traceback="shop.errors.PrinterOnFire: " + "y" * 99_000)
        with CaptureQueriesContext(connection) as queries:
            text = page_text(staff, LIST)
        assert "PrinterOnFire: tray 2" in text
        assert "…yyy" in text  # the end of a line that is longer than the part that is read
        page_query = queries[-1]["sql"]
        assert "end_of_traceback" in page_query
        assert '"kwargs"' not in page_query.replace("`", '"')


class TestFilters:
    def test_status_filter(self, staff: Client) -> None:
        by_status = {status: record(status=status) for status in TaskStatus}
        for status, shown in by_status.items():
            assert listed(staff, f"?status__exact={status}") == [shown.pk]

    def test_task_filter(self, staff: Client) -> None:
        record()
        shown = record(task_name="shop.tasks.print_label")
        assert listed(staff, "?task_name=shop.tasks.print_label") == [shown.pk]

    @pytest.mark.parametrize(("span", "hours"), [("hour", 1), ("day", 24), ("week", 168), ("month", 720)])
    def test_time_filter(self, staff: Client, span: str, hours: int) -> None:
        now = django_timezone.now()
        record(start_time=now - timedelta(hours=hours, minutes=1))
        recent = record(start_time=now - timedelta(hours=hours, minutes=-1))
        assert f'href="?started={span}"' in staff.get(LIST).content.decode()
        assert listed(staff, f"?started={span}") == [recent.pk]

    def test_filters_are_offered(self, staff: Client) -> None:
        record()
        text = page_text(staff, LIST)
        for wanted in ("By status", "By reason", "By task", "By queue", "By started", "By run"):
            assert wanted in text

    def test_task_filter_offers_known_recent_and_chosen_tasks(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert listing.RECENT == 1_000
        monkeypatch.setattr(listing, "RECENT", 1)
        record(task_name="shop.tasks.of_yore", start_time=NOON - timedelta(days=1))
        record(task_name="shop.tasks.of_late")
        names = offered_tasks(staff)
        assert {"shop.tasks.of_late", cleanup_task_records.name} <= set(names)
        assert "shop.tasks.of_yore" not in names
        assert names == sorted(names)
        assert "shop.tasks.of_yore" in offered_tasks(staff, "?task_name=shop.tasks.of_yore")


class TestSearch:
    @pytest.mark.parametrize("form", [str, lambda key: str(key).upper(), lambda key: f" {key} "])
    def test_message_id_finds_its_record(self, staff: Client, form: Any) -> None:
        record()
        shown = record()
        assert listed(staff, f"?q={form(shown.pk)}") == [shown.pk]

    def test_root_id_finds_the_whole_chain(self, staff: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        retry = record(root_id=root.pk, n_retries=1, start_time=NOON + timedelta(minutes=1))
        record()
        assert listed(staff, f"?q={root.pk}") == [retry.pk, root.pk]

    def test_part_of_name_or_traceback_finds_records(self, staff: Client) -> None:
        by_name = record(task_name="shop.tasks.print_label")
        by_error = record(traceback="Traceback …\nshop.errors.PrinterOnFire: tray 2")
        record()
        assert listed(staff, "?q=print_label") == [by_name.pk]
        assert listed(staff, "?q=printeronfire") == [by_error.pk]

    def test_text_search_covers_the_latest_filtered_records(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert filters.MOST_SEARCHED == 10_000
        monkeypatch.setattr(filters, "MOST_SEARCHED", 2)
        failed = record(status=TaskStatus.FAILED, traceback="PrinterOnFire", start_time=NOON - timedelta(days=1))
        record()
        record()
        assert listed(staff, "?q=printeronfire") == []
        assert listed(staff, "?q=printeronfire&status__exact=FAILED") == [failed.pk]
        assert listed(staff, f"?q={failed.pk}") == [failed.pk]

    @pytest.mark.parametrize("words", ["nothing+of+that", "0193", "%27%22%3B", "%F0%9F%98%80", "a" * 300])
    def test_unknown_words_find_nothing(self, staff: Client, words: str) -> None:
        record()
        response = staff.get(f"{LIST}?q={words}")
        assert response.status_code == 200
        assert len(response.context["cl"].result_list) == 0

    def test_null_character_is_rejected_with_a_message(self, staff: Client) -> None:
        record()
        assert "Null characters are not allowed" in page_text(staff, f"{LIST}?q=%00")


class TestDetail:
    def test_page_shows_every_readable_field(self, staff: Client) -> None:
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
        text = page_text(staff, detail(shown))
        for wanted in (str(shown.pk), str(root), "order_id", "läuft", "parcel", "PrinterOnFire: tray 2", "1.5 s"):
            assert wanted in text
        assert "Queue: mail-for-giants" in text
        for label in (
            *("Message id", "Task", "Status", "Arguments", "Started", "Ended", "Duration", "Crashes", "Result"),
            *("Traceback", "Retry", "All invocations of the chain"),
        ):
            assert f"{label}:" in text

    def test_page_links_to_its_chain(self, staff: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        retry = record(root_id=root.pk, n_retries=1, start_time=NOON + timedelta(minutes=1))
        record()
        [link] = re.findall(rf'<a href="([^"]*{root.pk})">', staff.get(detail(retry)).content.decode())
        assert listed(staff, link.removeprefix(LIST)) == [retry.pk, root.pk]

    def test_markup_in_arguments_is_escaped(self, staff: Client) -> None:
        shown = record(kwargs={"name": "<script>alert(1)</script>"}, traceback="<script>alert(2)</script>")
        page = staff.get(detail(shown)).content.decode()
        assert "<script>alert" not in page
        assert page.count("&lt;script&gt;alert") == 3  # also in the call in Python

    def test_deleted_record_redirects(self, staff: Client) -> None:
        response = staff.get(reverse("admin:lambda_tasks_taskrecord_change", args=[uuid4()]))
        assert response.status_code == 302


class TestReadOnly:
    def test_viewers_have_no_editing_controls(self, client: Client) -> None:
        user = User.objects.create_user("ada", is_staff=True)
        user.user_permissions.add(Permission.objects.get(codename="view_taskrecord"))
        client.force_login(user)
        shown = record()
        for url in (LIST, detail(shown)):
            page = client.get(url).content.decode()
            page = page[page.index('<div id="content"') :]  # the menu lists other models
            for control in ('name="_save"', 'name="action"', "addlink", "deletelink", "<textarea"):
                assert control not in page

    def test_posts_cannot_add_change_or_delete(self, staff: Client) -> None:
        shown = record()
        for url, data in (
            (reverse("admin:lambda_tasks_taskrecord_add"), {"task_name": "shop.tasks.send_parcel"}),
            (detail(shown), {"status": "FAILED", "_save": "Save"}),
            (detail(shown, "delete"), {"post": "yes"}),
        ):
            assert staff.post(url, data).status_code == 403
        # Without the permission the action does not exist, and the response is the list again.
        staff.post(LIST, {"action": "delete_selected", "_selected_action": [str(shown.pk)], "post": "yes"})

        assert TaskRecord.objects.get() == shown
        assert TaskRecord.objects.get().status == "SUCCESS"

    def test_add_and_delete_pages_are_forbidden(self, staff: Client) -> None:
        assert staff.get(reverse("admin:lambda_tasks_taskrecord_add")).status_code == 403
        assert staff.get(detail(record(), "delete")).status_code == 403

    def test_view_permission_is_required_and_sufficient(self, client: Client) -> None:
        user = User.objects.create_user("ada", is_staff=True)
        client.force_login(user)
        assert client.get(LIST).status_code == 403
        user.user_permissions.add(Permission.objects.get(codename="view_taskrecord"))
        assert client.get(LIST).status_code == 200
        assert client.get(detail(record())).status_code == 200

    def test_anonymous_visitor_sees_the_login(self, client: Client) -> None:
        assert client.get(LIST).status_code == 302


def test_task_record_is_registered() -> None:
    assert TaskRecord in site._registry


class TestProgress:
    def shown(self, staff: Client, **fields: Any) -> str:
        shown = record(status=TaskStatus.RUNNING)
        TaskProgress.objects.create(id=shown.pk, updated_at=NOON, **fields)
        content = staff.get(detail(shown)).content.decode()
        [field] = re.findall(r'field-progress">.*?<div class="readonly">(.*?)</div>', content, re.DOTALL)
        return str(field)

    def test_page_shows_a_bar_with_text(self, staff: Client) -> None:
        shown = self.shown(staff, done=1, total=4, note="reading <b>")
        assert shown == (
            '<progress max="100" value="25" aria-label="1 of 4">25%</progress> 1 of 4, 25% reading &lt;b&gt; '
            "(2025-06-01 12:00:00)"
        )

    def test_bar_ends_at_the_total(self, staff: Client) -> None:
        assert 'value="100"' in self.shown(staff, done=9, total=4)
        assert 'value="100"' in self.shown(staff, done=0, total=0)

    def test_unknown_total_has_no_bar(self, staff: Client) -> None:
        assert self.shown(staff, done=7, note="rows") == "7 rows (2025-06-01 12:00:00)"

    def test_record_without_reports_has_no_bar(self, staff: Client) -> None:
        assert "<progress" not in staff.get(detail(record())).content.decode()

    def test_list_reads_no_progress(self, staff: Client) -> None:
        record()
        with CaptureQueriesContext(connection) as queries:
            listed(staff)
        assert not [query for query in queries if "taskprogress" in query["sql"]]
