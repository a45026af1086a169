"""The outbox in the admin: what waits is to be seen, sent now, or discarded; what is secret is not to be seen."""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.admin import AdminSite, ModelAdmin, site
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse

from lambda_tasks.admin import OutboxMessageAdmin, listing, outbox
from lambda_tasks.backends.base import BaseBackend
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.relay import Relayed, from_now
from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.masking import MASK
from lambda_tasks.models import DatabaseNow, OutboxMessage

pytestmark = pytest.mark.django_db

LIST = reverse("admin:lambda_tasks_outboxmessage_changelist")
DAY = 86_400


@lambda_task
def send_parcel(*, order_id: int) -> None: ...


@lambda_task(sensitive=("card",))
def charge(*, order_id: int, card: str) -> None: ...


class Fussy(BaseBackend):
    """Takes messages, but for those to the queue `other`, and those of order 13, which it will never take."""

    tried: list[str] = []  # noqa: RUF012 - of the class, since the settings make an instance

    def send(self, jobs: Sequence[Job], *, taken: Callable[[Job], None]) -> None:
        raise AssertionError("The outbox asks for more than that.")

    def send_each(self, jobs: Sequence[Job], *, taken: Any, failed: Any, refused: Any) -> None:
        for job in jobs:
            self.tried.append(job.message_id)
            if job.queue == "other":
                failed(job, ConnectionError("nobody listens at <other>"))
            elif job.message.kwargs.get("order_id") == 13:
                refused(job, ValueError("brings bad luck"))
            else:
                taken(job)


class Elsewhere(OutboxBackend):
    """Finds that somebody else is sending everything."""

    def send_now(self, message_ids: Any, *, using: str) -> Relayed:
        return Relayed()


class SecondOutbox(OutboxMessageAdmin):
    using = "sqlite"


second = AdminSite(name="second")
second.register(OutboxMessage, SecondOutbox)
urlpatterns = [path("admin/", site.urls), path("second/", second.urls)]


@pytest.fixture(autouse=True)
def _outbox(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.LAMBDA_TASKS_BACKEND = f"{__name__}.Fussy"
    settings.LAMBDA_TASKS_OUTBOX = True
    monkeypatch.setattr(Fussy, "tried", [])


@pytest.fixture
def staff(client: Client) -> Client:
    """Somebody with every permission that Django knows."""
    client.force_login(User.objects.create_superuser("root"))
    return client


def somebody(client: Client, *permissions: str) -> Client:
    user = User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=[f"{name}_outboxmessage" for name in permissions]))
    client.force_login(user)
    return client


def message(
    *,
    due: float | None = 0,
    run: float | None = None,
    task_name: str = send_parcel.name,
    kwargs: Any = None,
    retry: int = 0,
    using: str = "default",
    **fields: Any,
) -> OutboxMessage:
    """Put a message into the outbox that is due in so many seconds, or dead."""
    key = uuid4()
    body = {"task_name": task_name, "kwargs": {"order_id": 42} if kwargs is None else kwargs}
    values: dict[str, Any] = {
        "id": key,
        "task_name": task_name,
        "queue": "default",
        "body": json.dumps(body | {"n_retries": retry} if retry else body),
        "attributes": {"lambda_tasks.message_id": str(key), "lambda_tasks.root_id": str(key)},
        "created_at": DatabaseNow(),
        "due_at": None if due is None else from_now(due),
        "run_at": None if run is None else from_now(run),
    }
    made = OutboxMessage.objects.using(using).create(**values | fields)
    return OutboxMessage.objects.using(using).get(pk=made.pk)


def dead(**fields: Any) -> OutboxMessage:
    return message(**{"due": None, "attempts": 1, "error": "ClientError: too large"} | fields)


def listed(staff: Client, query: str = "", address: str = LIST) -> list[UUID]:
    """Return the keys of the messages that the list shows, in its order."""
    response = staff.get(f"{address}{query}")
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


def detail(shown: OutboxMessage, action: str = "change") -> str:
    return reverse(f"admin:lambda_tasks_outboxmessage_{action}", args=[shown.pk])


def visible_text(response: Any) -> str:
    assert response.status_code == 200
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))
    return html.unescape(text)


def content(response: Any) -> str:
    """Return what the page has beside the menus."""
    page: str = response.content.decode()
    return page[page.index('<div id="content"') :]


def do(staff: Client, action: str, *chosen: OutboxMessage, address: str = LIST, **fields: Any) -> Any:
    """Choose an action for messages of the list, and see the page that comes next."""
    keys = [str(each.pk) for each in chosen]
    return staff.post(address, {"action": action, "_selected_action": keys, **fields}, follow=True)


def told(response: Any) -> list[tuple[str, str]]:
    return [(each.level_tag, str(each.message)) for each in response.context["messages"]]


class TestStates:
    @pytest.mark.parametrize(
        ("due", "run", "state"),
        [
            (0, None, "waiting"),
            (-DAY, None, "waiting"),
            (-DAY, -DAY, "waiting"),
            (200, None, "waiting"),  # could not be sent, and is put off
            (200, -10, "waiting"),
            (-1, 800, "waiting"),  # for as long as the queue itself delays it
            (100, 1_000, "delayed"),
            (DAY, DAY + 900, "delayed"),
            (DAY, None, "delayed"),  # no transport makes this one, but it must be somewhere
            (None, None, "dead"),
            (None, DAY, "dead"),
        ],
    )
    def test_a_message_is_waiting_or_delayed_or_dead(
        self, staff: Client, due: float | None, run: float | None, state: str
    ) -> None:
        shown = message(due=due, run=run)
        for each in ("waiting", "delayed", "dead"):
            assert listed(staff, f"?state={each}") == [shown.pk] * (each == state)
        row = staff.get(LIST).content.decode().partition('<td class="field-state')[2]
        assert re.sub(r"<[^>]+>", "", row.partition(">")[2].partition("</td>")[0]) == state.capitalize()

    def test_a_state_that_there_is_not_filters_nothing(self, staff: Client) -> None:
        shown = message()
        assert listed(staff, "?state=misspelt") == [shown.pk]


class TestList:
    def test_it_shows_what_is_to_be_sent_when_and_why_not_yet(self, staff: Client) -> None:
        message(due=60, attempts=3, error="EndpointConnectionError: " + "x" * 500, queue="mail")
        text = visible_text(staff.get(LIST))
        assert send_parcel.name in text
        assert "3 failed tries, lastly: EndpointConnectionError: xxx" in text
        assert "x" * 150 not in text
        assert " mail " in text

    def test_of_a_delayed_message_it_shows_when_a_worker_gets_it(self, staff: Client) -> None:
        delayed = message(due=DAY, run=DAY + 900)
        text = visible_text(staff.get(LIST))
        assert delayed.run_at is not None
        assert f"{delayed.run_at:%Y-%m-%d %H:%M:%S}" in text
        assert delayed.due_at is not None
        assert f"{delayed.due_at:%Y-%m-%d %H:%M:%S}" not in text

    def test_a_dead_one_shows_its_reason_and_is_never_due(self, staff: Client) -> None:
        dead()
        text = visible_text(staff.get(LIST))
        assert "1 failed try: ClientError: too large" in text
        assert " never " in text

    def test_a_task_leads_to_its_message(self, staff: Client) -> None:
        shown = message()
        assert f'<a href="{detail(shown)}">{send_parcel.name}</a>' in staff.get(LIST).content.decode()

    def test_an_error_is_text_and_no_markup(self, staff: Client) -> None:
        shown = dead(error="<script>alert(1)</script>")
        for url in (LIST, detail(shown)):
            page = staff.get(url).content.decode()
            assert "<script>alert" not in page
            assert "&lt;script&gt;alert" in page

    def test_what_is_due_first_stands_first_either_way_and_nothing_else_can_be_sorted_by(self, staff: Client) -> None:
        late, early, delayed = message(due=-5), message(due=-10), message(due=DAY, run=DAY)
        assert listed(staff) == [early.pk, late.pk, delayed.pk]
        offered = re.findall(r"[?&;]o=([-.\d]*)", staff.get(LIST).content.decode())
        assert set(offered) <= {"", "5", "-5"}
        assert "-5" in offered
        assert listed(staff, "?o=5") == [early.pk, late.pk, delayed.pk]
        assert listed(staff, "?o=-5") == [delayed.pk, late.pk, early.pk]

    @pytest.mark.parametrize(("query", "way"), [("", "ASC"), ("?o=5", "ASC"), ("?o=-5", "DESC"), ("?o=2.-1", "ASC")])
    def test_every_order_is_that_of_the_index(self, staff: Client, query: str, way: str) -> None:
        message()
        with CaptureQueriesContext(connection) as queries:
            listed(staff, query)
        order = queries[-1]["sql"].replace("`", '"').partition("ORDER BY ")[2].partition(" LIMIT")[0]
        table = OutboxMessage._meta.db_table
        assert re.sub(r'"\w+"\.', "", order) == f'"due_at" {way}, "id" {way}'
        assert table in queries[-1]["sql"]

    def test_it_takes_as_many_queries_for_many_messages_as_for_few(
        self, staff: Client, django_assert_num_queries: Any
    ) -> None:
        message()
        with CaptureQueriesContext(connection) as queries:
            listed(staff)
        assert len(queries) == 7  # session, user, tasks, queues, dead ones, count, page
        for number in range(30):
            (dead if number % 3 else message)()
        with django_assert_num_queries(7):
            assert len(listed(staff)) == 31

    def test_it_reads_neither_bodies_nor_attributes_nor_whole_errors(self, staff: Client) -> None:
        dead(error="x" * 2_000)
        with CaptureQueriesContext(connection) as queries:
            listed(staff)
        columns = queries[-1]["sql"].replace("`", '"').partition(" FROM ")[0]
        assert "start_of_error" in columns
        for name in ("body", "attributes"):
            assert f'"{name}"' not in columns
        assert not re.search(r'"error"(?!, \d)', columns)

    def test_it_ends_after_ten_thousand_messages_and_says_so(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert listing.MOST_LISTED == 10_000
        monkeypatch.setattr(listing, "MOST_LISTED", 3)
        message()
        message()
        assert "use the filters to find others" not in visible_text(staff.get(LIST))
        message()
        message()
        text = visible_text(staff.get(LIST))
        assert "No more than 10,000 messages are listed; use the filters to find others." in text
        assert "3 messages in the outbox" in text


class TestNotices:
    def test_dead_messages_are_told_of_wherever_they_stand_in_the_list(self, staff: Client) -> None:
        message()
        assert "dead:" not in visible_text(staff.get(LIST))
        gone = dead()
        response = staff.get(f"{LIST}?state=waiting")
        assert "1 message is dead: it was refused, and is not tried again. Show the dead ones" in visible_text(response)
        assert '<a href="?state=dead">' in response.content.decode()
        assert "dead:" not in visible_text(staff.get(f"{LIST}?state=dead"))
        assert listed(staff, "?state=dead") == [gone.pk]

    def test_without_an_outbox_the_messages_are_shown_and_so_is_what_to_do(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = False
        shown = message()
        assert listed(staff) == [shown.pk]
        assert "set LAMBDA_TASKS_OUTBOX = True" in visible_text(staff.get(LIST))
        assert staff.get(detail(shown)).status_code == 200

    def test_settings_that_cannot_be_used_are_told_in_a_sentence(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = "shop.no.such.Backend"
        message()
        assert "LAMBDA_TASKS_BACKEND names 'shop.no.such.Backend'" in visible_text(staff.get(LIST))

    @pytest.mark.django_db(databases=["default", "sqlite"])
    def test_other_outboxes_are_told_of(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": "lambda_tasks.backends.outbox.OutboxBackend",
            "OPTIONS": {"transport": f"{__name__}.Fussy", "databases": ["default", "sqlite"]},
        }
        text = visible_text(staff.get(LIST))
        assert "This is the outbox of the database default; there are others, in sqlite." in text


class TestFilters:
    def test_by_task_and_by_queue(self, staff: Client) -> None:
        message()
        other = message(task_name="shop.tasks.print_label", queue="labels")
        assert listed(staff, "?task_name=shop.tasks.print_label") == [other.pk]
        assert listed(staff, "?queue=labels") == [other.pk]

    def test_names_are_offered_that_are_known_or_come_first_or_are_chosen(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert listing.RECENT == 1_000
        monkeypatch.setattr(listing, "RECENT", 1)
        message(due=-5, task_name="shop.tasks.first", queue="first")
        message(due=0, task_name="shop.tasks.last", queue="last")

        def offered(query: str = "") -> tuple[list[str], list[str]]:
            _, tasks, queues = staff.get(f"{LIST}{query}").context["cl"].filter_specs
            return [name for name, _ in tasks.lookup_choices], [name for name, _ in queues.lookup_choices]

        tasks, queues = offered()
        assert {"shop.tasks.first", send_parcel.name} <= set(tasks)
        assert "shop.tasks.last" not in tasks
        assert tasks == sorted(tasks)
        assert queues == ["default", "first", "other"]
        assert "shop.tasks.last" in offered("?task_name=shop.tasks.last")[0]

    def test_without_queues_in_the_settings_those_of_messages_are_offered(self, staff: Client, settings: Any) -> None:
        del settings.LAMBDA_TASKS_QUEUES
        message(queue="labels")
        assert [name for name, _ in staff.get(LIST).context["cl"].filter_specs[2].lookup_choices] == ["labels"]


class TestSearch:
    @pytest.mark.parametrize("form", [str, lambda key: str(key).upper(), lambda key: f" {key} "])
    def test_by_the_message_id(self, staff: Client, form: Any) -> None:
        message()
        shown = message()
        assert listed(staff, f"?q={form(shown.pk)}") == [shown.pk]

    @pytest.mark.parametrize("words", ["send_parcel", "0193", "%27%22%3B", str(UUID(int=1))])
    def test_for_anything_else_it_finds_nothing(self, staff: Client, words: str) -> None:
        message()
        assert listed(staff, f"?q={words}") == []


class TestDetail:
    def test_it_shows_every_field_that_is_meant_for_people(self, staff: Client) -> None:
        shown = message(due=60, attempts=3, error="EndpointConnectionError: no", kwargs={"note": "läuft"}, queue="mail")
        text = visible_text(staff.get(detail(shown)))
        for wanted in (str(shown.pk), send_parcel.name, "Waiting", '"note": "läuft"', "Queue: mail"):
            assert wanted in text
        assert "Failed tries: 3" in text
        assert "Last error: EndpointConnectionError: no" in text
        assert f"{shown.due_at:%Y-%m-%d %H:%M:%S}" in text

    def test_a_dead_one_says_so_before_all_else(self, staff: Client) -> None:
        response = staff.get(detail(dead(error="ClientError: too large")))
        [note] = re.findall(r'<p class="errornote".*?</p>', response.content.decode(), re.DOTALL)
        assert "It is dead: it was refused, and is not tried again. ClientError: too large" in " ".join(note.split())
        assert "errornote" not in staff.get(detail(message())).content.decode()

    def test_sensitive_arguments_are_masked(self, staff: Client) -> None:
        shown = message(task_name=charge.name, kwargs={"order_id": 7, "card": "4242 4242"})
        page = staff.get(detail(shown)).content.decode()
        assert "4242" not in page
        assert MASK in page
        assert "order_id&quot;: 7" in page

    def test_an_argument_is_masked_whose_sensitive_parameter_may_have_been_renamed(self, staff: Client) -> None:
        shown = message(task_name=charge.name, kwargs={"order_id": 7, "credit_card": "4242 4242"})
        page = staff.get(detail(shown)).content.decode()
        assert "4242" not in page
        assert "order_id&quot;: 7" in page

    @pytest.mark.parametrize("task_name", ["shop.tasks.gone", "tests.broken_module.task", "lambda_tasks.tasks.gone"])
    def test_all_arguments_of_a_task_that_cannot_be_found_are_masked(self, staff: Client, task_name: str) -> None:
        text = visible_text(staff.get(detail(message(task_name=task_name, kwargs={"card": "4242 4242"}))))
        assert "4242" not in text
        assert f'"card": "{MASK}"' in text
        assert "The task cannot be found here, so nobody can tell which arguments are sensitive" in text

    @pytest.mark.parametrize("body", ["", "{", '{"task_name": "4242"}', '["4242"]', "4242 4242"])
    def test_a_body_that_is_no_invocation_is_not_shown(self, staff: Client, body: str) -> None:
        page = staff.get(detail(dead(body=body)))
        assert "The message is no invocation of a task. It is not shown" in visible_text(page)
        assert "4242" not in content(page)

    def test_no_page_has_the_body_or_the_attributes(self, staff: Client) -> None:
        shown = message(kwargs={"order_id": 7}, attributes={"tenant": "hush"})
        for url in (LIST, detail(shown), detail(shown, "delete")):
            page = html.unescape(staff.get(url).content.decode())
            assert "hush" not in page
            assert '"kwargs"' not in page

    def test_a_subclass_with_fields_by_default_has_neither_body_nor_attributes(self, rf: RequestFactory) -> None:
        class Plain(OutboxMessageAdmin):
            get_fieldsets = ModelAdmin.get_fieldsets

        request = rf.get(LIST)
        request.user = User(is_superuser=True, is_active=True)
        fields = flatten_fieldsets(Plain(OutboxMessage, site).get_fieldsets(request, message()))
        assert "queue" in fields
        assert {"body", "attributes"}.isdisjoint(fields)

    def test_what_a_task_is_given_is_text_and_no_markup(self, staff: Client) -> None:
        page = staff.get(detail(message(kwargs={"name": "<script>alert(1)</script>"}))).content.decode()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page

    def test_a_retry_leads_to_the_records_of_its_chain(self, staff: Client) -> None:
        root = uuid4()
        shown = message(retry=2, attributes={"lambda_tasks.root_id": str(root)})
        page = staff.get(detail(shown)).content.decode()
        assert f'<a href="{reverse("admin:lambda_tasks_taskrecord_changelist")}?q={root}">' in page
        assert "chain" not in visible_text(staff.get(detail(message())))


class TestSendNow:
    def test_waiting_delayed_and_dead_messages_are_sent(self, staff: Client) -> None:
        chosen = [message(), message(due=DAY, run=DAY + 900), dead(), message(due=100, attempts=2, error="no")]
        kept = message(due=DAY, run=DAY)
        response = do(staff, "send_now", *chosen)
        assert told(response) == [("success", "4 messages were sent.")]
        assert set(Fussy.tried) == {str(each.pk) for each in chosen}
        assert list(OutboxMessage.objects.all()) == [kept]

    def test_what_fails_and_what_is_refused_stays_and_the_reasons_are_told(self, staff: Client) -> None:
        failing = [message(queue="other"), message(queue="other")]
        refused, sent = dead(kwargs={"order_id": 13}), message()
        response = do(staff, "send_now", *failing, refused, sent)
        assert told(response) == [
            ("success", "1 message was sent."),
            (
                "warning",
                "2 messages could not be sent and are tried again: ConnectionError: nobody listens at <other>",
            ),
            ("error", "1 message was refused and is dead: ValueError: brings bad luck"),
        ]
        assert "<other>" not in response.content.decode()
        assert set(OutboxMessage.objects.values_list("pk", flat=True)) == {refused.pk, *(each.pk for each in failing)}
        assert listed(staff, "?state=dead") == [refused.pk]

    def test_no_more_than_three_reasons_are_told(self, staff: Client) -> None:
        # Each queue that is not in the settings is a reason of its own.
        response = do(staff, "send_now", *(message(queue=f"unknown-{number}") for number in range(4)))
        [(level, text)] = told(response)
        assert level == "warning"
        assert text.count("UnknownQueue") == 3
        assert text.endswith("; …")

    def test_it_ends_after_a_batch_of_which_nothing_was_taken(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "BATCH_SIZE", 2)
        chosen = [message(queue="other", due=-10 + number) for number in range(5)]
        response = do(staff, "send_now", *chosen)
        assert [level for level, _ in told(response)] == ["warning", "warning"]
        assert told(response)[1][1].startswith("3 messages were not tried")
        assert set(Fussy.tried) == {str(each.pk) for each in chosen[:2]}

    def test_it_ends_when_somebody_has_waited_for_long_enough(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outbox, "BATCH_SIZE", 2)
        clock = iter([100.0, 101.0, 100.0 + outbox.SEND_SECONDS])
        monkeypatch.setattr(outbox, "monotonic", lambda: next(clock))
        response = do(staff, "send_now", *(message(due=-10 + number) for number in range(7)))
        assert [text.partition(",")[0] for _, text in told(response)] == [
            "4 messages were sent.",
            "3 messages were not tried",
        ]

    def test_all_that_the_list_shows_can_be_sent_and_no_more(
        self, staff: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(listing, "MOST_LISTED", 3)
        chosen = [message(due=-10 + number) for number in range(5)]
        response = do(staff, "send_now", chosen[0], select_across="1")
        assert told(response) == [("success", "3 messages were sent.")]
        assert OutboxMessage.objects.count() == 2

    def test_the_filters_hold_for_all_that_are_chosen(self, staff: Client) -> None:
        gone, kept = dead(), message()
        do(staff, "send_now", gone, select_across="1", address=f"{LIST}?state=dead")
        assert list(OutboxMessage.objects.all()) == [kept]

    def test_what_was_sent_in_the_meantime_is_told(self, staff: Client) -> None:
        chosen = message()
        OutboxMessage.objects.all().delete()
        [(level, text)] = told(do(staff, "send_now", chosen))
        assert (level, text.partition(":")[0]) == ("info", "What you have chosen is not there any more")

    def test_what_somebody_else_is_sending_is_told(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = False
        settings.LAMBDA_TASKS_BACKEND = f"{__name__}.Elsewhere"
        [(level, text)] = told(do(staff, "send_now", message()))
        assert level == "info"
        assert text == "1 message was not there any more, or somebody else is sending it."

    @pytest.mark.parametrize("changed", [{"LAMBDA_TASKS_OUTBOX": False}, {"LAMBDA_TASKS_EAGER": True}])
    def test_without_an_outbox_nothing_is_sent_and_the_remedy_is_told(
        self, staff: Client, settings: Any, changed: dict[str, bool]
    ) -> None:
        for name, value in changed.items():
            setattr(settings, name, value)
        kept = dead()
        [(level, text)] = told(do(staff, "send_now", kept))
        assert level == "error"
        assert text.startswith("Nothing was sent. ")
        assert "set LAMBDA_TASKS_OUTBOX = True, and leave LAMBDA_TASKS_EAGER out" in text
        assert list(OutboxMessage.objects.filter(due_at=None)) == [kept]

    def test_it_is_logged(self, staff: Client, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="lambda_tasks.outbox"):
            do(staff, "send_now", message())
        assert "root has had messages of the outbox of 'default' sent now: 1 sent," in caplog.text

    def test_the_button_of_a_message_sends_it(self, staff: Client) -> None:
        kept, chosen = message(), dead()
        page = staff.get(detail(chosen)).content.decode()
        [address] = re.findall(r'formaction="([^"]*)"', page)
        fields = dict(re.findall(r'<input type="hidden" name="(action|_selected_action)" value="([^"]*)"', page))
        response = staff.post(address, fields, follow=True)
        assert told(response) == [("success", "1 message was sent.")]
        assert list(OutboxMessage.objects.all()) == [kept]


class TestDiscard:
    def test_it_is_asked_for_and_then_done_and_logged(self, staff: Client, caplog: pytest.LogCaptureFixture) -> None:
        kept, chosen = message(), [dead(), message(due=DAY, run=DAY)]
        asked = do(staff, "delete_selected", *chosen)
        assert "The tasks of messages that are discarded never run." in visible_text(asked)
        assert OutboxMessage.objects.count() == 3
        keys = re.findall(r'name="_selected_action" value="([^"]*)"', asked.content.decode())
        assert set(keys) == {str(each.pk) for each in chosen}

        with caplog.at_level(logging.WARNING, logger="lambda_tasks.outbox"):
            response = do(staff, "delete_selected", *chosen, post="yes")
        assert told(response)[0][0] == "success"
        assert list(OutboxMessage.objects.all()) == [kept]
        for each in chosen:
            assert f"root discards {each} of the outbox of 'default': it never runs." in caplog.text
        assert {entry.object_id for entry in LogEntry.objects.all()} == {str(each.pk) for each in chosen}

    def test_no_more_are_asked_for_than_a_form_can_name(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        assert outbox.MOST_DISCARDED == 900
        monkeypatch.setattr(outbox, "MOST_DISCARDED", 2)
        chosen = [dead() for _ in range(3)]
        asked = do(staff, "delete_selected", *chosen)
        assert "These are the first 2 of the messages that you have chosen" in visible_text(asked)
        assert len(re.findall(r'name="_selected_action"', asked.content.decode())) == 2

    def test_as_many_as_are_asked_for_at_once_can_be_discarded(self, staff: Client) -> None:
        first = dead()
        OutboxMessage.objects.bulk_create(
            OutboxMessage(id=uuid4(), task_name="t.t", queue="default", body="", created_at=first.created_at)
            for _ in range(outbox.MOST_DISCARDED)
        )
        asked = do(staff, "delete_selected", first, select_across="1")
        fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', content(asked))
        data: dict[str, list[str]] = {}
        for name, value in fields:
            data.setdefault(name, []).append(value)
        # The browser sends the token too.
        assert told(staff.post(LIST, data, follow=True))[-1][0] == "success"
        assert OutboxMessage.objects.count() == 1

    def test_a_single_message_is_discarded_from_its_page(self, staff: Client, caplog: pytest.LogCaptureFixture) -> None:
        kept, chosen = message(), dead()
        assert detail(chosen, "delete") in content(staff.get(detail(chosen)))
        assert "never runs" in visible_text(staff.get(detail(chosen, "delete")))
        assert OutboxMessage.objects.count() == 2
        staff.post(detail(chosen, "delete"), {"post": "yes"})
        assert list(OutboxMessage.objects.all()) == [kept]
        assert f"root discards {chosen} of the outbox" in caplog.text


class TestPermissions:
    def test_without_one_there_is_nothing_to_see(self, client: Client) -> None:
        shown = message()
        somebody(client)
        assert client.get(LIST).status_code == 403
        assert client.get(detail(shown)).status_code == 403
        assert Client().get(LIST).status_code == 302

    def test_who_may_view_sees_and_does_nothing(self, client: Client) -> None:
        shown = message()
        somebody(client, "view")
        for url in (LIST, detail(shown)):
            page = content(client.get(url))
            for control in ('name="action"', "formaction", "deletelink", 'name="_save"', "addlink", "<textarea"):
                assert control not in page
        do(client, "send_now", shown)
        do(client, "delete_selected", shown, post="yes")
        assert client.post(detail(shown, "delete"), {"post": "yes"}).status_code == 403
        assert (Fussy.tried, list(OutboxMessage.objects.all())) == ([], [shown])

    def test_who_may_change_sends_and_does_not_discard(self, client: Client) -> None:
        shown = message()
        somebody(client, "change")
        page = content(client.get(detail(shown)))
        assert "formaction" in page
        assert "deletelink" not in page
        do(client, "delete_selected", shown, post="yes")
        assert list(OutboxMessage.objects.all()) == [shown]
        do(client, "send_now", shown)
        assert list(OutboxMessage.objects.all()) == []

    def test_who_may_delete_discards_and_does_not_send(self, client: Client) -> None:
        shown = message()
        somebody(client, "view", "delete")
        page = content(client.get(detail(shown)))
        assert "formaction" not in page
        assert "deletelink" in page
        do(client, "send_now", shown)
        assert Fussy.tried == []
        do(client, "delete_selected", shown, post="yes")
        assert list(OutboxMessage.objects.all()) == []

    def test_nobody_adds_or_edits(self, staff: Client) -> None:
        shown = dead()
        add = reverse("admin:lambda_tasks_outboxmessage_add")
        assert staff.get(add).status_code == 403
        assert staff.post(add, {"task_name": "t.t"}).status_code == 403
        assert staff.post(detail(shown), {"queue": "other", "_save": "Save"}).status_code == 403
        assert 'name="_save"' not in content(staff.get(detail(shown)))
        assert OutboxMessage.objects.get().queue == "default"


@pytest.mark.django_db(databases=["default", "sqlite"])
@pytest.mark.urls(__name__)
class TestAnotherDatabase:
    def test_its_outbox_is_shown_sent_and_discarded_on_a_site_of_its_own(self, staff: Client) -> None:
        address = reverse("second:lambda_tasks_outboxmessage_changelist")
        here = message()
        sent, discarded, one = (message(using="sqlite", due=number - 10) for number in range(3))
        assert listed(staff) == [here.pk]
        assert listed(staff, address=address) == [sent.pk, discarded.pk, one.pk]
        page = reverse("second:lambda_tasks_outboxmessage_change", args=[sent.pk])
        assert f'formaction="{address}"' in staff.get(page).content.decode()

        assert told(do(staff, "send_now", sent, address=address)) == [("success", "1 message was sent.")]
        do(staff, "delete_selected", discarded, address=address, post="yes")
        staff.post(reverse("second:lambda_tasks_outboxmessage_delete", args=[one.pk]), {"post": "yes"})
        assert list(OutboxMessage.objects.using("sqlite")) == []
        assert list(OutboxMessage.objects.all()) == [here]


def test_it_is_registered() -> None:
    assert site.is_registered(OutboxMessage)
