"""Addresses of the admin's lists: users filter, search and sort by declared columns only; no value raises an error."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db import transaction
from django.test import Client, RequestFactory
from django.urls import path, reverse

from lambda_tasks.admin import OutboxMessageAdmin, TaskRecordAdmin
from lambda_tasks.admin.lists import MOST_VALUES
from lambda_tasks.models import OutboxMessage, TaskRecord

pytestmark = pytest.mark.django_db

RECORDS = reverse("admin:lambda_tasks_taskrecord_changelist")
OUTBOX = reverse("admin:lambda_tasks_outboxmessage_changelist")
SCHEDULES = reverse("admin:lambda_tasks_taskschedule_changelist")
ALL = pytest.mark.parametrize("page", [RECORDS, OUTBOX, SCHEDULES], ids=["records", "outbox", "schedules"])
BOTH = pytest.mark.parametrize("page", [RECORDS, OUTBOX], ids=["records", "outbox"])
HIDDEN = '{"task_name": "shop.tasks.charge", "kwargs": {"token": "tok_4111"}}'


class QueueRecordAdmin(TaskRecordAdmin):
    list_display = ("task_name", "status", "traceback", "started")
    list_filter = (("queue", admin.AllValuesFieldListFilter), "status", "takeovers")
    date_hierarchy = "start_time"


ours = admin.AdminSite(name="ours")
ours.register(TaskRecord, QueueRecordAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("ours/", ours.urls)]


@pytest.fixture
def viewer(client: Client) -> Client:
    """Log in a user who may view all tables."""
    user = User.objects.create_user("ada", is_staff=True)
    names = ["view_outboxmessage", "change_outboxmessage", "view_taskrecord", "change_taskschedule"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client.force_login(user)
    client.raise_request_exception = False
    return client


@pytest.fixture(autouse=True)
def _rows() -> None:
    TaskRecord.objects.create(id=uuid4(), task_name="shop.tasks.charge", kwargs={"token": "*"}, traceback="Error")
    OutboxMessage.objects.create(
        id=uuid4(),
        task_name="shop.tasks.charge",
        queue="default",
        body=HIDDEN,
        attributes={"tenant": "north"},
        created_at="2025-06-01T12:00:00Z",
        due_at="2025-06-01T12:00:00Z",
    )


def status(client: Client, page: str, query: Any) -> int:
    # An error of the database that the page handles would break the test's own transaction.
    with transaction.atomic():
        answer = client.get(f"{page}?{query if isinstance(query, str) else urlencode(query, doseq=True)}")
        transaction.set_rollback(True)
    return answer.status_code


class TestFilters:
    @ALL
    @pytest.mark.parametrize("model_field", ["body", "attributes", "error", "kwargs", "result", "claim", "holder"])
    def test_undeclared_lookup_is_a_bad_request(self, viewer: Client, page: str, model_field: str) -> None:
        lookups = ["", "__contains", "__regex", "__startswith", "__gt", "__in", "__isnull", "__x"]
        answers = {lookup: status(viewer, page, {f"{model_field}{lookup}": "tok_4"}) for lookup in lookups}
        assert answers == dict.fromkeys(lookups, 400)

    @BOTH
    @pytest.mark.parametrize(
        "query",
        [
            "attributes__tenant=north",
            "kwargs__token__startswith=t",
            "pk__in=a,b",
            "id__gt=0",
            "status__regex=(",
            "task_name__regex=(",
            "task_name__contains=c",
            "start_time__year=1e9",
            "start_time__date=x",
            "due_at__isnull=x",
            "root_id=1",
            "n_retries__gte=9" + "9" * 40,
            "nosuchfield=1",
            "__=1",
            "status__exact__exact=1",
            "_body__contains=t",
            "%00=1",
        ],
    )
    def test_other_undeclared_lookup_is_a_bad_request(self, viewer: Client, page: str, query: str) -> None:
        assert status(viewer, page, query) == 400

    @pytest.mark.parametrize(
        "query",
        ["last_tick__gt=1", "task_name__regex=(", "key__startswith=a", "key__in=a,b", "task_name=x", "last_tick=x"],
    )
    def test_undeclared_lookup_of_schedules_is_refused(self, viewer: Client, query: str) -> None:
        assert status(viewer, SCHEDULES, query) == 400

    def test_guess_about_a_masked_argument_gets_one_answer(self, viewer: Client) -> None:
        right, wrong = (status(viewer, OUTBOX, {"body__contains": f'"token": "{guess}'}) for guess in ("tok_4", "x"))
        assert right == wrong == 400

    @pytest.mark.parametrize(
        ("page", "query"),
        [
            (RECORDS, "status__exact=FAILED&task_name=shop.tasks.charge"),
            (RECORDS, "start_time__gte=2025-06-01+00:00:00%2B00:00&start_time__lt=2025-06-02+00:00:00%2B00:00"),
            (RECORDS, "start_time__isnull=True"),
            (OUTBOX, "state=dead&task_name=shop.tasks.charge&queue=default"),
        ],
    )
    def test_declared_filter_is_applied(self, viewer: Client, page: str, query: str) -> None:
        assert status(viewer, page, query) == 200

    @pytest.mark.urls(__name__)
    @pytest.mark.parametrize(
        ("query", "answer"),
        [
            ("queue=default", 200),
            ("takeovers=1", 200),
            ("start_time__year=2025&start_time__month=6", 200),
            ("task_name=shop.tasks.charge", 400),
            ("queue__contains=d", 400),
        ],
    )
    def test_subclass_declares_its_own_filters(self, viewer: Client, query: str, answer: int) -> None:
        assert status(viewer, reverse("ours:lambda_tasks_taskrecord_changelist"), query) == answer

    def test_subclass_with_other_columns_is_valid(self) -> None:
        for shown in (QueueRecordAdmin, TaskRecordAdmin):
            assert shown(TaskRecord, admin.site).check() == []

    def test_limit_of_a_foreign_key_is_declared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TaskRecord._meta, "related_fkey_lookups", [{"takeovers": "5"}, lambda: {"n_retries": "0"}])
        shown = TaskRecordAdmin(TaskRecord, admin.site)
        asked = [("takeovers", "5"), ("n_retries", "0"), ("takeovers", "6"), ("n_retries__gt", "0")]
        assert [shown.lookup_allowed(*each) for each in asked] == [True, True, False, False]


class TestHostileValues:
    @ALL
    @pytest.mark.parametrize("name", ["_to_field", "_popup", "_facets", "_source_model", "all", "e", "q", "p", "o"])
    def test_page_parameter_never_raises(self, viewer: Client, page: str, name: str) -> None:
        for value in ["\x00", "body", "-1", "9" * 5000, "1e999", "²", "a" * 60_000, "x " * 900, "\ud800"]:
            query = urlencode({name: value}, errors="surrogatepass")
            assert status(viewer, page, query) in (200, 302, 400), value[:20]

    @BOTH
    @pytest.mark.parametrize(
        "name",
        [
            *("status__exact", "task_name", "start_time__gte", "start_time__lt", "start_time__isnull", "state"),
            *("queue", "started", "run", "reason__exact"),
        ],
    )
    def test_filter_value_never_raises(self, viewer: Client, page: str, name: str) -> None:
        moments = ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]
        for value in ["\x00", "", "'", "9" * 5000, "garbage", *moments, "a" * 60_000]:
            assert status(viewer, page, {name: value}) in (200, 302, 400), value[:20]

    @BOTH
    def test_many_values_of_a_filter_are_redirected(self, viewer: Client, page: str) -> None:
        values = ["2025-06-01"] * 900
        assert status(viewer, page, {"task_name": values}) == 302
        assert status(viewer, page, {"task_name": values[:MOST_VALUES]}) == 200
        assert status(viewer, RECORDS, {"start_time__gte": values}) == 302

    def test_long_search_finds_nothing_with_a_message(self, viewer: Client) -> None:
        for words in ("x " * 51, "x" * 501):
            shown = viewer.get(RECORDS, {"q": words})
            assert shown.status_code == 200
            assert not shown.context["cl"].result_list
            assert "500 characters" in shown.content.decode()

    def test_action_on_malformed_schedules_is_refused(self, viewer: Client) -> None:
        assert viewer.post(SCHEDULES, {"action": "pause", "_selected_action": "\x00", "index": "0"}).status_code == 400

    @BOTH
    def test_action_on_malformed_ids_is_a_bad_request(self, viewer: Client, page: str) -> None:
        for key in ("x", "\x00", "9" * 5000):
            asked = {"action": "send_now", "_selected_action": key, "index": "0"}
            assert viewer.post(page, asked).status_code in ((400,) if page == OUTBOX else (200, 302, 403))

    @BOTH
    @pytest.mark.parametrize("key", ["x", "%00", "9" * 200, "_00", "a__b"])
    @pytest.mark.parametrize("view", ["change", "history", "delete"])
    def test_malformed_row_id_never_raises(self, viewer: Client, page: str, key: str, view: str) -> None:
        for query in ["", "_to_field=body", "_to_field=kwargs__x", "_changelist_filters=%00%26q"]:
            assert viewer.get(f"{page}{key}/{view}/?{query}").status_code in (302, 400, 403, 404), query


class TestOrder:
    @pytest.mark.parametrize("order", ["0", "1", "-1", "4", "99", "-99", "0.1.2", "x", ".", "--5"])
    def test_other_columns_do_not_sort_the_records(self, viewer: Client, order: str) -> None:
        assert viewer.get(RECORDS, {"o": order}).context["cl"].queryset.query.order_by[:2] == ("-start_time", "-id")

    def test_started_sorts_the_records_either_way(self, viewer: Client) -> None:
        shown = viewer.get(RECORDS, {"o": ".".join(["7"] * 3000)}).context["cl"]
        assert shown.queryset.query.order_by[0] == "start_time"
        assert shown.get_ordering_field_columns() == {7: "asc"}

    @pytest.mark.urls(__name__)
    def test_subclass_cannot_sort_by_unindexed_columns(self, viewer: Client) -> None:
        shown = viewer.get(reverse("ours:lambda_tasks_taskrecord_changelist"), {"o": "2"})
        assert shown.context["cl"].queryset.query.order_by[:2] == ("-start_time", "-id")

    @pytest.mark.parametrize("order", ["1", "2", "-2.3", "99"])
    def test_outbox_is_sorted_along_its_index(self, viewer: Client, order: str) -> None:
        ordered = viewer.get(OUTBOX, {"o": order}).context["cl"].queryset.query.order_by
        assert ordered in (("due_at", "id"), ("-due_at", "-id"))


def test_django_asks_for_each_lookup_of_the_address(rf: RequestFactory) -> None:
    """`lookup_allowed()` is documented since Django 5.1; Django calls it for undeclared fields of the model too."""
    assert admin.ModelAdmin(OutboxMessage, admin.site).lookup_allowed("body__contains", "x", rf.get("/"))
    assert not OutboxMessageAdmin(OutboxMessage, admin.site).lookup_allowed("body__contains", "x", rf.get("/"))
