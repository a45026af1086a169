"""The outbox admin shows messages without sensitive arguments, sends them immediately, and deletes them."""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Iterator, Sequence
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
from lambda_tasks.backends import relay
from lambda_tasks.backends.base import BaseBackend, Refused, SendResult, Taken, Unsent
from lambda_tasks.backends.outbox import OutboxBackend
from lambda_tasks.backends.relay import Relayed
from lambda_tasks.database.clock import DatabaseNow, from_now
from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.models import OutboxMessage
from lambda_tasks.recording.masking import MASK
from lambda_tasks.wire.invocation import Invocation
from lambda_tasks.wire.stored import Stored

pytestmark = pytest.mark.django_db

LIST = reverse("admin:lambda_tasks_outboxmessage_changelist")
DAY = 86_400


@lambda_task
def send_parcel(*, order_id: int) -> None: ...


@lambda_task(sensitive=("card",))
def charge(*, order_id: int, card: str) -> None: ...


class Fussy(BaseBackend):
    """Accepts messages, but fails for those to the queue `other`, and refuses those of order 13."""

    tried: list[str] = []  # noqa: RUF012 - on the class, because the settings create the instance

    def send(self, jobs: Sequence[Job]) -> Iterator[SendResult]:
        for job in jobs:
            self.tried.append(job.message_id)
            if job.queue == "other":
                yield Unsent(job, ConnectionError("no server at <other>"))
            elif job.message.kwargs.get("order_id") == 13:
                yield Refused(job, ValueError("brings bad luck"))
            else:
                yield Taken(job)


class Elsewhere(OutboxBackend):
    """An outbox whose messages are all being sent by another process."""

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
    """Log in a superuser."""
    client.force_login(User.objects.create_superuser("root"))
    return client


def log_in(client: Client, *permissions: str) -> Client:
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
    """Put a message into the outbox that is due in `due` seconds, or dead if `due` is None."""
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
    """Return the keys of the messages in the list, in its order."""
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
    """Return the content of the page without the menus."""
    page: str = response.content.decode()
    return page[page.index('<div id="content"') :]


def run_action(staff: Client, action: str, *chosen: OutboxMessage, address: str = LIST, **fields: Any) -> Any:
    """Run an action on messages of the list, and return the next page."""
    keys = [str(each.pk) for each in chosen]
    return staff.post(address, {"action": action, "_selected_action": keys, **fields}, follow=True)


def messages_on(response: Any) -> list[tuple[str, str]]:
    return [(each.level_tag, str(each.message)) for each in response.context["messages"]]


class TestStates:
    @pytest.mark.parametrize(
        ("due", "run", "state"),
        [
            (0, None, "waiting"),
            (-DAY, None, "waiting"),
            (-DAY, -DAY, "waiting"),
            (200, None, "waiting"),  # postponed after a failed attempt
            (200, -10, "waiting"),
            (-1, 800, "waiting"),  # a delay that SQS itself supports
            (100, 1_000, "delayed"),
            (DAY, DAY + 900, "delayed"),
            (DAY, None, "delayed"),  # not produced by any transport, but it needs a state
            (None, None, "dead"),
            (None, DAY, "dead"),
        ],
    )
    def test_message_is_waiting_delayed_or_dead(
        self, staff: Client, due: float | None, run: float | None, state: str
    ) -> None:
        shown = message(due=due, run=run)
        for each in ("waiting", "delayed", "dead"):
            assert listed(staff, f"?state={each}") == [shown.pk] * (each == state)
        row = staff.get(LIST).content.decode().partition('<td class="field-state')[2]
        assert re.sub(r"<[^>]+>", "", row.partition(">")[2].partition("</td>")[0]) == state.capitalize()

    def test_unknown_state_filters_nothing(self, staff: Client) -> None:
        shown = message()
        assert listed(staff, "?state=misspelt") == [shown.pk]


class TestList:
    def test_waiting_message_shows_its_time_and_error(self, staff: Client) -> None:
        message(due=60, attempts=3, error="EndpointConnectionError: " + "x" * 500, queue="mail")
        text = visible_text(staff.get(LIST))
        assert send_parcel.name in text
        assert "3 failed attempts, most recently: EndpointConnectionError: xxx" in text
        assert "x" * 150 not in text
        assert " mail " in text

    def test_delayed_message_shows_when_a_worker_receives_it(self, staff: Client) -> None:
        delayed = message(due=DAY, run=DAY + 900)
        text = visible_text(staff.get(LIST))
        assert delayed.run_at is not None
        assert f"{delayed.run_at:%Y-%m-%d %H:%M:%S}" in text
        assert delayed.due_at is not None
        assert f"{delayed.due_at:%Y-%m-%d %H:%M:%S}" not in text

    def test_dead_message_shows_its_reason(self, staff: Client) -> None:
        dead()
        text = visible_text(staff.get(LIST))
        assert "1 failed attempt: ClientError: too large" in text
        assert " never " in text

    def test_task_name_links_to_the_message(self, staff: Client) -> None:
        shown = message()
        assert f'<a href="{detail(shown)}">{send_parcel.name}</a>' in staff.get(LIST).content.decode()

    def test_error_is_escaped(self, staff: Client) -> None:
        shown = dead(error="<script>alert(1)</script>")
        for url in (LIST, detail(shown)):
            page = staff.get(url).content.decode()
            assert "<script>alert" not in page
            assert "&lt;script&gt;alert" in page

    def test_list_is_sorted_only_by_due_time(self, staff: Client) -> None:
        late, early, delayed = message(due=-5), message(due=-10), message(due=DAY, run=DAY)
        assert listed(staff) == [early.pk, late.pk, delayed.pk]
        offered = re.findall(r"[?&;]o=([-.\d]*)", staff.get(LIST).content.decode())
        assert set(offered) <= {"", "5", "-5"}
        assert "-5" in offered
        assert listed(staff, "?o=5") == [early.pk, late.pk, delayed.pk]
        assert listed(staff, "?o=-5") == [delayed.pk, late.pk, early.pk]

    @pytest.mark.parametrize(("query", "way"), [("", "ASC"), ("?o=5", "ASC"), ("?o=-5", "DESC"), ("?o=2.-1", "ASC")])
    def test_every_order_matches_the_index(self, staff: Client, query: str, way: str) -> None:
        message()
        with CaptureQueriesContext(connection) as queries:
            listed(staff, query)
        order = queries[-1]["sql"].replace("`", '"').partition("ORDER BY ")[2].partition(" LIMIT")[0]
        table = OutboxMessage._meta.db_table
        assert re.sub(r'"\w+"\.', "", order) == f'"due_at" {way}, "id" {way}'
        assert table in queries[-1]["sql"]

    def test_number_of_queries_is_constant(self, staff: Client, django_assert_num_queries: Any) -> None:
        message()
        with CaptureQueriesContext(connection) as queries:
            listed(staff)
        assert len(queries) == 6  # session, user, tasks and queues, dead messages, count, page
        for number in range(30):
            (dead if number % 3 else message)()
        with django_assert_num_queries(6):
            assert len(listed(staff)) == 31

    def test_list_reads_no_bodies_attributes_or_whole_errors(self, staff: Client) -> None:
        dead(error="x" * 2_000)
        with CaptureQueriesContext(connection) as queries:
            listed(staff)
        columns = queries[-1]["sql"].replace("`", '"').partition(" FROM ")[0]
        assert "start_of_error" in columns
        for name in ("body", "attributes"):
            assert f'"{name}"' not in columns
        assert not re.search(r'"error"(?!, \d)', columns)

    def test_list_is_limited_to_ten_thousand_messages(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        assert listing.MOST_LISTED == 10_000
        monkeypatch.setattr(listing, "MOST_LISTED", 3)
        message()
        message()
        assert "use the filters to find others" not in visible_text(staff.get(LIST))
        message()
        message()
        text = visible_text(staff.get(LIST))
        assert "Only 10,000 messages are listed. Use the filters to find others." in text
        assert "3 messages in the outbox" in text


class TestNotices:
    def test_dead_messages_are_announced_on_every_page(self, staff: Client) -> None:
        message()
        assert "dead:" not in visible_text(staff.get(LIST))
        gone = dead()
        response = staff.get(f"{LIST}?state=waiting")
        text = visible_text(response)
        assert "1 message is dead: it was rejected, and will not be retried. Show dead messages" in text
        assert '<a href="?state=dead">' in response.content.decode()
        assert "dead:" not in visible_text(staff.get(f"{LIST}?state=dead"))
        assert listed(staff, "?state=dead") == [gone.pk]

    def test_disabled_outbox_shows_messages_and_a_remedy(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = False
        shown = message()
        assert listed(staff) == [shown.pk]
        assert "Set LAMBDA_TASKS_OUTBOX = True" in visible_text(staff.get(LIST))
        assert staff.get(detail(shown)).status_code == 200

    def test_invalid_settings_are_explained(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = "shop.no.such.Backend"
        message()
        assert "LAMBDA_TASKS_BACKEND names 'shop.no.such.Backend'" in visible_text(staff.get(LIST))

    @pytest.mark.django_db(databases=["default", "sqlite"])
    def test_other_outboxes_are_mentioned(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": "lambda_tasks.backends.outbox.OutboxBackend",
            "OPTIONS": {"transport": f"{__name__}.Fussy", "databases": ["default", "sqlite"]},
        }
        text = visible_text(staff.get(LIST))
        assert "This is the outbox of the database default. Other databases with an outbox: sqlite." in text


class TestFilters:
    def test_messages_are_filtered_by_task_and_queue(self, staff: Client) -> None:
        message()
        other = message(task_name="shop.tasks.print_label", queue="labels")
        assert listed(staff, "?task_name=shop.tasks.print_label") == [other.pk]
        assert listed(staff, "?queue=labels") == [other.pk]

    def test_known_first_and_chosen_names_are_offered(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
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

    def test_queues_of_messages_are_offered_without_the_setting(self, staff: Client, settings: Any) -> None:
        del settings.LAMBDA_TASKS_QUEUES
        message(queue="labels")
        assert [name for name, _ in staff.get(LIST).context["cl"].filter_specs[2].lookup_choices] == ["labels"]


class TestSearch:
    @pytest.mark.parametrize("form", [str, lambda key: str(key).upper(), lambda key: f" {key} "])
    def test_messages_are_found_by_id(self, staff: Client, form: Any) -> None:
        message()
        shown = message()
        assert listed(staff, f"?q={form(shown.pk)}") == [shown.pk]

    @pytest.mark.parametrize("words", ["send_parcel", "0193", "%27%22%3B", str(UUID(int=1))])
    def test_other_searches_find_nothing(self, staff: Client, words: str) -> None:
        message()
        assert listed(staff, f"?q={words}") == []


class TestDetail:
    def test_page_shows_every_readable_field(self, staff: Client) -> None:
        shown = message(due=60, attempts=3, error="EndpointConnectionError: no", kwargs={"note": "läuft"}, queue="mail")
        text = visible_text(staff.get(detail(shown)))
        for wanted in (str(shown.pk), send_parcel.name, "Waiting", '"note": "läuft"', "Queue: mail"):
            assert wanted in text
        assert "Failed attempts: 3" in text
        assert "Last error: EndpointConnectionError: no" in text
        assert f"{shown.due_at:%Y-%m-%d %H:%M:%S}" in text

    def test_dead_message_has_a_note_on_top(self, staff: Client) -> None:
        response = staff.get(detail(dead(error="ClientError: too large")))
        [note] = re.findall(r'<p class="errornote[ "].*?</p>', response.content.decode(), re.DOTALL)
        wanted = "This message is dead: it was rejected, and will not be retried. ClientError: too large"
        assert wanted in " ".join(note.split())
        assert "errornote" not in staff.get(detail(message())).content.decode()

    def test_sensitive_arguments_are_masked(self, staff: Client) -> None:
        shown = message(task_name=charge.name, kwargs={"order_id": 7, "card": "4242 4242"})
        page = staff.get(detail(shown)).content.decode()
        assert "4242 4242" not in page
        assert MASK in page
        assert "order_id&quot;: 7" in page

    def test_argument_without_a_parameter_is_masked(self, staff: Client) -> None:
        """The argument may belong to a sensitive parameter that was renamed."""
        shown = message(task_name=charge.name, kwargs={"order_id": 7, "credit_card": "4242 4242"})
        page = staff.get(detail(shown)).content.decode()
        assert "4242 4242" not in page
        assert "order_id&quot;: 7" in page

    def test_place_of_large_arguments_is_shown(self, staff: Client) -> None:
        shown = message(task_name=charge.name)
        stored = Stored.of("{}", place="database:default", key=str(shown.pk))
        OutboxMessage.objects.filter(pk=shown.pk).update(body=Invocation(charge.name, stored=stored).to_body())
        text = visible_text(staff.get(detail(shown)))
        assert f"are stored outside of it: 2 bytes in database:default, key {shown.pk}." in text

    @pytest.mark.parametrize("task_name", ["shop.tasks.gone", "tests.broken_module.task", "lambda_tasks.tasks.gone"])
    def test_all_arguments_of_an_unknown_task_are_masked(self, staff: Client, task_name: str) -> None:
        text = visible_text(staff.get(detail(message(task_name=task_name, kwargs={"card": "4242 4242"}))))
        assert "4242 4242" not in text
        assert f'"card": "{MASK}"' in text
        assert "All arguments are masked: this process cannot find the task" in text

    @pytest.mark.parametrize("body", ["", "{", '{"task_name": "4242 4242"}', '["4242 4242"]', "4242 4242"])
    def test_malformed_body_is_not_shown(self, staff: Client, body: str) -> None:
        page = staff.get(detail(dead(body=body)))
        assert "The message is not a valid task invocation. It is hidden" in visible_text(page)
        assert "4242 4242" not in content(page)

    def test_pages_do_not_contain_body_or_attributes(self, staff: Client) -> None:
        shown = message(kwargs={"order_id": 7}, attributes={"tenant": "hush"})
        for url in (LIST, detail(shown), detail(shown, "delete")):
            page = html.unescape(staff.get(url).content.decode())
            assert "hush" not in page
            assert '"kwargs"' not in page

    def test_subclass_with_default_fields_hides_body_and_attributes(self, rf: RequestFactory) -> None:
        class Plain(OutboxMessageAdmin):
            get_fieldsets = ModelAdmin.get_fieldsets

        request = rf.get(LIST)
        request.user = User(is_superuser=True, is_active=True)
        fields = flatten_fieldsets(Plain(OutboxMessage, site).get_fieldsets(request, message()))
        assert "queue" in fields
        assert {"body", "attributes"}.isdisjoint(fields)

    def test_arguments_are_escaped(self, staff: Client) -> None:
        page = staff.get(detail(message(kwargs={"name": "<script>alert(1)</script>"}))).content.decode()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page

    def test_retry_links_to_the_records_of_its_chain(self, staff: Client) -> None:
        root = uuid4()
        shown = message(retry=2, attributes={"lambda_tasks.root_id": str(root)})
        page = staff.get(detail(shown)).content.decode()
        assert f'<a href="{reverse("admin:lambda_tasks_taskrecord_changelist")}?q={root}">' in page
        assert "chain" not in visible_text(staff.get(detail(message())))

    def test_row_with_unusable_attributes_is_shown(self, staff: Client) -> None:
        for attributes in ([], "text", 7):
            assert staff.get(detail(message(retry=2, attributes=attributes))).status_code == 200


class TestSendNow:
    def test_waiting_delayed_and_dead_messages_are_sent(self, staff: Client) -> None:
        chosen = [message(), message(due=DAY, run=DAY + 900), dead(), message(due=100, attempts=2, error="no")]
        kept = message(due=DAY, run=DAY)
        response = run_action(staff, "send_now", *chosen)
        assert messages_on(response) == [("success", "4 messages were sent.")]
        assert set(Fussy.tried) == {str(each.pk) for each in chosen}
        assert list(OutboxMessage.objects.all()) == [kept]

    def test_each_attempt_has_a_log_entry(self, staff: Client) -> None:
        sent, failing = message(), message(queue="other")
        run_action(staff, "send_now", sent, failing)
        entries = {entry.object_id: entry.get_change_message() for entry in LogEntry.objects.all()}
        assert entries == {str(sent.pk): "Sent now.", str(failing.pk): "Could not be sent now."}

    def test_failed_and_refused_messages_stay_with_reasons(self, staff: Client) -> None:
        failing = [message(queue="other"), message(queue="other")]
        refused, sent = dead(kwargs={"order_id": 13}), message()
        response = run_action(staff, "send_now", *failing, refused, sent)
        assert messages_on(response) == [
            ("success", "1 message was sent."),
            (
                "warning",
                "2 messages could not be sent and will be retried: ConnectionError: no server at <other>",
            ),
            ("error", "1 message was rejected and is dead: ValueError: brings bad luck"),
        ]
        assert "<other>" not in response.content.decode()
        assert set(OutboxMessage.objects.values_list("pk", flat=True)) == {refused.pk, *(each.pk for each in failing)}
        assert listed(staff, "?state=dead") == [refused.pk]

    def test_at_most_three_reasons_are_shown(self, staff: Client) -> None:
        # Each queue that is not in the settings is a different reason.
        response = run_action(staff, "send_now", *(message(queue=f"unknown-{number}") for number in range(4)))
        [(level, text)] = messages_on(response)
        assert level == "warning"
        assert text.count("UnknownQueue") == 3
        assert text.endswith("; …")

    def test_sending_stops_after_a_failed_batch(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay, "BATCH_SIZE", 2)
        chosen = [message(queue="other", due=-10 + number) for number in range(5)]
        response = run_action(staff, "send_now", *chosen)
        assert [level for level, _ in messages_on(response)] == ["warning", "warning"]
        assert messages_on(response)[1][1].startswith("3 messages were not attempted")
        assert set(Fussy.tried) == {str(each.pk) for each in chosen[:2]}

    def test_sending_stops_after_the_time_limit(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay, "BATCH_SIZE", 2)
        clock = iter([100.0, 101.0, 100.0 + outbox.SEND_SECONDS])
        monkeypatch.setattr(outbox, "monotonic", lambda: next(clock))
        response = run_action(staff, "send_now", *(message(due=-10 + number) for number in range(7)))
        assert [text.partition(":")[0] for _, text in messages_on(response)] == [
            "4 messages were sent.",
            "3 messages were not attempted",
        ]

    def test_all_listed_messages_can_be_sent(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(listing, "MOST_LISTED", 3)
        chosen = [message(due=-10 + number) for number in range(5)]
        response = run_action(staff, "send_now", chosen[0], select_across="1")
        assert messages_on(response) == [("success", "3 messages were sent.")]
        assert OutboxMessage.objects.count() == 2

    def test_filters_apply_to_select_across(self, staff: Client) -> None:
        gone, kept = dead(), message()
        run_action(staff, "send_now", gone, select_across="1", address=f"{LIST}?state=dead")
        assert list(OutboxMessage.objects.all()) == [kept]

    def test_message_sent_meanwhile_is_reported(self, staff: Client) -> None:
        chosen = message()
        OutboxMessage.objects.all().delete()
        [(level, text)] = messages_on(run_action(staff, "send_now", chosen))
        assert (level, text.partition(":")[0]) == ("info", "The selected messages are no longer in the outbox")

    def test_message_held_by_another_sender_is_reported(self, staff: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_OUTBOX = False
        settings.LAMBDA_TASKS_BACKEND = f"{__name__}.Elsewhere"
        [(level, text)] = messages_on(run_action(staff, "send_now", message()))
        assert level == "info"
        assert text == "1 message was skipped: it is no longer in the outbox, or another process is sending it."

    @pytest.mark.parametrize("changed", [{"LAMBDA_TASKS_OUTBOX": False}, {"LAMBDA_TASKS_EAGER": True}])
    def test_disabled_outbox_sends_nothing_and_shows_a_remedy(
        self, staff: Client, settings: Any, changed: dict[str, bool]
    ) -> None:
        for name, value in changed.items():
            setattr(settings, name, value)
        kept = dead()
        [(level, text)] = messages_on(run_action(staff, "send_now", kept))
        assert level == "error"
        assert text.startswith("Nothing was sent. ")
        assert "Set LAMBDA_TASKS_OUTBOX = True, and remove LAMBDA_TASKS_EAGER" in text
        assert list(OutboxMessage.objects.filter(due_at=None)) == [kept]

    def test_sending_is_logged(self, staff: Client, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, logger="lambda_tasks.outbox"):
            run_action(staff, "send_now", message())
        assert "root sent messages from the outbox of database 'default': 1 sent," in caplog.text

    def test_button_of_a_message_sends_it(self, staff: Client) -> None:
        kept, chosen = message(), dead()
        page = staff.get(detail(chosen)).content.decode()
        [address] = re.findall(r'formaction="([^"]*)"', page)
        fields = dict(re.findall(r'<input type="hidden" name="(action|_selected_action)" value="([^"]*)"', page))
        response = staff.post(address, fields, follow=True)
        assert messages_on(response) == [("success", "1 message was sent.")]
        assert list(OutboxMessage.objects.all()) == [kept]


class TestDiscard:
    def test_discarding_is_confirmed_and_logged(self, staff: Client, caplog: pytest.LogCaptureFixture) -> None:
        kept, chosen = message(), [dead(), message(due=DAY, run=DAY)]
        asked = run_action(staff, "delete_selected", *chosen)
        assert "If you delete these messages, their tasks will not run." in visible_text(asked)
        assert OutboxMessage.objects.count() == 3
        keys = re.findall(r'name="_selected_action" value="([^"]*)"', asked.content.decode())
        assert set(keys) == {str(each.pk) for each in chosen}

        with caplog.at_level(logging.WARNING, logger="lambda_tasks.outbox"):
            response = run_action(staff, "delete_selected", *chosen, post="yes")
        assert messages_on(response)[0][0] == "success"
        assert list(OutboxMessage.objects.all()) == [kept]
        for each in chosen:
            assert f"root deleted {each} from the outbox of database 'default'. Its task will not run." in caplog.text
        assert {entry.object_id for entry in LogEntry.objects.all()} == {str(each.pk) for each in chosen}

    def test_confirmation_is_limited(self, staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        assert outbox.MOST_DELETED == 300
        monkeypatch.setattr(outbox, "MOST_DELETED", 2)
        chosen = [dead() for _ in range(3)]
        asked = run_action(staff, "delete_selected", *chosen)
        assert "Only the first 2 of the selected messages are listed" in visible_text(asked)
        assert len(re.findall(r'name="_selected_action"', asked.content.decode())) == 2

    def test_largest_confirmation_can_be_submitted(self, staff: Client) -> None:
        first = dead()
        OutboxMessage.objects.bulk_create(
            OutboxMessage(id=uuid4(), task_name="t.t", queue="default", body="", created_at=first.created_at)
            for _ in range(outbox.MOST_DELETED)
        )
        asked = run_action(staff, "delete_selected", first, select_across="1")
        fields = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', content(asked))
        data: dict[str, list[str]] = {}
        for name, value in fields:
            data.setdefault(name, []).append(value)
        # The browser also sends the token.
        assert messages_on(staff.post(LIST, data, follow=True))[-1][0] == "success"
        assert OutboxMessage.objects.count() == 1

    def test_message_is_discarded_from_its_page(self, staff: Client, caplog: pytest.LogCaptureFixture) -> None:
        kept, chosen = message(), dead()
        assert detail(chosen, "delete") in content(staff.get(detail(chosen)))
        assert "its task will not run" in visible_text(staff.get(detail(chosen, "delete")))
        assert OutboxMessage.objects.count() == 2
        staff.post(detail(chosen, "delete"), {"post": "yes"})
        assert list(OutboxMessage.objects.all()) == [kept]
        assert f"root deleted {chosen} from the outbox" in caplog.text


class TestPermissions:
    def test_user_without_permissions_sees_nothing(self, client: Client) -> None:
        shown = message()
        log_in(client)
        assert client.get(LIST).status_code == 403
        assert client.get(detail(shown)).status_code == 403
        assert Client().get(LIST).status_code == 302

    def test_view_permission_allows_no_action(self, client: Client) -> None:
        shown = message()
        log_in(client, "view")
        for url in (LIST, detail(shown)):
            page = content(client.get(url))
            for control in ('name="action"', "formaction", "deletelink", 'name="_save"', "addlink", "<textarea"):
                assert control not in page
        run_action(client, "send_now", shown)
        run_action(client, "delete_selected", shown, post="yes")
        assert client.post(detail(shown, "delete"), {"post": "yes"}).status_code == 403
        assert (Fussy.tried, list(OutboxMessage.objects.all())) == ([], [shown])

    def test_change_permission_allows_sending_only(self, client: Client) -> None:
        shown = message()
        log_in(client, "change")
        page = content(client.get(detail(shown)))
        assert "formaction" in page
        assert "deletelink" not in page
        run_action(client, "delete_selected", shown, post="yes")
        assert list(OutboxMessage.objects.all()) == [shown]
        run_action(client, "send_now", shown)
        assert list(OutboxMessage.objects.all()) == []

    def test_delete_permission_allows_discarding_only(self, client: Client) -> None:
        shown = message()
        log_in(client, "view", "delete")
        page = content(client.get(detail(shown)))
        assert "formaction" not in page
        assert "deletelink" in page
        run_action(client, "send_now", shown)
        assert Fussy.tried == []
        run_action(client, "delete_selected", shown, post="yes")
        assert list(OutboxMessage.objects.all()) == []

    def test_adding_and_editing_are_forbidden(self, staff: Client) -> None:
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
    def test_separate_site_manages_another_databases_outbox(self, staff: Client) -> None:
        address = reverse("second:lambda_tasks_outboxmessage_changelist")
        here = message()
        sent, discarded, one = (message(using="sqlite", due=number - 10) for number in range(3))
        assert listed(staff) == [here.pk]
        assert listed(staff, address=address) == [sent.pk, discarded.pk, one.pk]
        page = reverse("second:lambda_tasks_outboxmessage_change", args=[sent.pk])
        assert f'formaction="{address}"' in staff.get(page).content.decode()

        assert messages_on(run_action(staff, "send_now", sent, address=address)) == [("success", "1 message was sent.")]
        run_action(staff, "delete_selected", discarded, address=address, post="yes")
        staff.post(reverse("second:lambda_tasks_outboxmessage_delete", args=[one.pk]), {"post": "yes"})
        assert list(OutboxMessage.objects.using("sqlite")) == []
        assert list(OutboxMessage.objects.all()) == [here]


def test_model_is_registered() -> None:
    assert site.is_registered(OutboxMessage)
