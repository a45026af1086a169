"""The admin of chains and groups shows them without arguments, and cancels them."""

from __future__ import annotations

from typing import Any, Final

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

from lambda_tasks import FlowHandle, chain, group, lambda_task
from lambda_tasks.admin import flows
from lambda_tasks.testing import collect_tasks
from tests.admin.kit import content, log_in, page_of
from tests.admin.kit import record as recorded

pytestmark = pytest.mark.django_db

LIST: Final = reverse("admin:lambda_tasks_taskflow_changelist")


@lambda_task
def count(*, shelf: str) -> int:
    return len(shelf)


@lambda_task
def publish(*, secret: str) -> None: ...


def page(handle: FlowHandle) -> str:
    return reverse("admin:lambda_tasks_taskflow_change", args=[handle.flow_id])


@pytest.fixture
def handle() -> FlowHandle:
    with collect_tasks():
        return group(
            [count.invocation(shelf=shelf) for shelf in ("books", "toys")], then=publish.invocation(secret="hunter2")
        ).execute_on_commit()


@pytest.fixture
def viewer(client: Client) -> Client:
    log_in(client, "view_taskflow", "view_taskrecord")
    return client


class TestPages:
    def test_list_shows_chains_and_groups(self, viewer: Client, handle: FlowHandle) -> None:
        with collect_tasks():
            chain(count.invocation(shelf="games")).execute_on_commit()
            count.using(on_success=publish.invocation(secret="hunter2")).execute_on_commit(shelf="x")
        text = content(viewer, LIST)
        assert text.count('<th class="field-task">') == 2  # the call with a follower is neither
        assert "Running" in text

    def test_page_shows_members_without_arguments(self, viewer: Client, handle: FlowHandle) -> None:
        first, _ = handle.tasks()
        assert first.cancel()
        text = content(viewer, page(handle))
        assert "hunter2" not in text
        assert "0 of 2 have ended" in text
        assert first.message_id in text
        assert ">None<" not in text  # it has not ended

    def test_page_counts_ends(self, viewer: Client, handle: FlowHandle) -> None:
        handle.cancel()
        text = content(viewer, page(handle))
        assert "2 of 2 have ended, 2 failed" in text
        assert text.count("Failed") >= 3

    def test_page_names_some_members(self, viewer: Client, handle: FlowHandle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flows, "MOST_MEMBERS", 1)
        assert "and 1 more" in content(viewer, page(handle))

    def test_record_links_to_its_group(self, viewer: Client, handle: FlowHandle) -> None:
        member = handle.tasks()[0].message_id
        assert page(handle) in content(viewer, page_of(recorded(id=member)))

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("?state=RUNNING", 1),
            ("?state=FAILED", 0),
            ("?kind__exact=chain", 0),
            ("?q=hunter2", 0),
            ("?state=nonsense", 1),
        ],
    )
    def test_filters_find_flows(self, viewer: Client, handle: FlowHandle, query: str, found: int) -> None:
        assert content(viewer, LIST + query).count('<th class="field-task">') == found

    def test_search_finds_the_flow_of_a_member(self, viewer: Client, handle: FlowHandle) -> None:
        member = handle.tasks()[0].message_id
        for key in (member, handle.flow_id):
            assert content(viewer, f"{LIST}?q={key}").count('<th class="field-task">') == 1

    @pytest.mark.parametrize("lookup", ["on_success__contains", "steps__icontains", "owed__isnull", "id__gt"])
    def test_hidden_columns_cannot_be_asked(self, viewer: Client, handle: FlowHandle, lookup: str) -> None:
        assert viewer.get(f"{LIST}?{lookup}=hunter").status_code == 400


class TestCancelling:
    def post(self, client: Client, handle: FlowHandle, **fields: str) -> Any:
        data = {"action": "cancel", "_selected_action": handle.flow_id, **fields}
        return client.post(LIST, data, follow=True)

    def test_cancel_asks_first(self, client: Client, handle: FlowHandle) -> None:
        log_in(client, "view_taskflow", "view_taskrecord", "cancel_taskrecord")
        assert "Cancel chains and groups" in self.post(client, handle).content.decode()
        assert handle.status == "RUNNING"
        answer = self.post(client, handle, confirmed="yes").content.decode()
        assert "1 chain or group was cancelled." in answer
        assert handle.status == "FAILED"
        assert LogEntry.objects.get().object_id == handle.flow_id
        assert "have ended" in self.post(client, handle, confirmed="yes").content.decode()

    def test_viewer_cannot_cancel(self, viewer: Client, handle: FlowHandle) -> None:
        self.post(viewer, handle, confirmed="yes")
        assert handle.status == "RUNNING"
        assert "Cancel" not in content(viewer, page(handle))

    def test_flows_are_neither_added_nor_deleted(self, client: Client, handle: FlowHandle) -> None:
        log_in(client, "view_taskflow", "add_taskflow", "change_taskflow", "delete_taskflow")
        assert client.get(reverse("admin:lambda_tasks_taskflow_add")).status_code == 403
        assert client.post(reverse("admin:lambda_tasks_taskflow_delete", args=[handle.flow_id])).status_code == 403
