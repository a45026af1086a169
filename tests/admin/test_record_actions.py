"""Actions on records: each asks first, needs its own permission, and is logged."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.messages import get_messages
from django.test import Client

from lambda_tasks.admin import actions, export
from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.models import (
    CancelRequest,
    OutboxMessage,
    TaskProgress,
    TaskReason,
    TaskRecord,
    TaskRerun,
    TaskStatus,
)
from lambda_tasks.recording.masking import MASK
from lambda_tasks.testing import collect_tasks
from lambda_tasks.wire.ids import retry_id
from tests.admin.kit import LIST, content, log_in, page_of, record

pytestmark = pytest.mark.django_db

ACTIONS: Final = {
    "run_again": "run_again_taskrecord",
    "cancel": "cancel_taskrecord",
    "delete_ended": "delete_taskrecord",
    "export": "export_taskrecord",
}


@lambda_task
def send_parcel(*, order_id: int) -> None: ...


@lambda_task(sensitive=("token",))
def charge(*, token: str) -> None: ...


class Closed(MemoryBackend):
    """A queue that accepts nothing."""

    def send(self, jobs: Sequence[Job]) -> Iterator[Any]:
        raise ConnectionError("the queue is <closed>")


def post(client: Client, action: str, *rows: TaskRecord, confirm: bool = True, query: str = "", **fields: str) -> Any:
    chosen = [str(row.pk) for row in rows]
    confirmed = {"confirmed": "yes"} if confirm else {}
    return client.post(f"{LIST}{query}", {"action": action, "_selected_action": chosen, **confirmed, **fields})


def told(response: Any) -> list[str]:
    return [str(message) for message in get_messages(response.wsgi_request)]


def logged() -> list[tuple[str, str]]:
    return sorted((str(entry.object_id), entry.get_change_message()) for entry in LogEntry.objects.all())


class TestPermissions:
    @pytest.mark.parametrize("permission", [None, *ACTIONS.values()])
    def test_each_action_needs_its_own_permission(self, client: Client, permission: str | None) -> None:
        log_in(client, "view_taskrecord", *([permission] if permission else []))
        ended, waiting = record(task_name=send_parcel.name), record(status=TaskStatus.RETRYING)
        allowed = {action for action, needed in ACTIONS.items() if needed == permission}
        pages = "".join(content(client, address) for address in (LIST, page_of(ended), page_of(waiting)))
        assert {action for action in ACTIONS if f'value="{action}"' in pages} == allowed
        exported = post(client, "export", ended, choice="json")
        for action in ("run_again", "cancel", "delete_ended"):
            post(client, action, ended, waiting)
        done = {
            "run_again": TaskRerun.objects.exists(),
            "cancel": TaskRecord.objects.filter(reason=TaskReason.CANCELLED).exists(),
            "delete_ended": not TaskRecord.objects.filter(pk=ended.pk).exists(),
            "export": exported.get("Content-Type") == "application/x-ndjson",
        }
        assert {action for action, was_done in done.items() if was_done} == allowed
        assert LogEntry.objects.count() == len(allowed)

    # Django lets users who may delete records see them.
    @pytest.mark.parametrize("action", sorted(ACTIONS.keys() - {"delete_ended"}))
    def test_action_needs_the_view_permission(self, client: Client, action: str) -> None:
        log_in(client, *({*ACTIONS.values()} - {"delete_taskrecord"}))
        shown = record(status=TaskStatus.RETRYING if action == "cancel" else TaskStatus.SUCCESS)
        assert post(client, action, shown, choice="csv").status_code == 403
        assert not LogEntry.objects.exists()

    @pytest.mark.parametrize("action", ACTIONS)
    def test_get_request_changes_nothing(self, admin_client: Client, action: str) -> None:
        shown = record(task_name=send_parcel.name)
        admin_client.get(LIST, {"action": action, "_selected_action": str(shown.pk), "confirmed": "yes"})
        assert not TaskRerun.objects.exists()
        assert TaskRecord.objects.get() == shown
        assert not LogEntry.objects.exists()

    def test_anonymous_visitor_changes_nothing(self, client: Client) -> None:
        shown = record()
        assert post(client, "delete_ended", shown).status_code == 302
        assert TaskRecord.objects.get() == shown


class TestConfirmation:
    @pytest.mark.parametrize("action", ACTIONS)
    def test_page_counts_and_changes_nothing(self, admin_client: Client, action: str) -> None:
        status = TaskStatus.RETRYING if action == "cancel" else TaskStatus.SUCCESS
        rows = [record(task_name=send_parcel.name, status=status) for _ in range(22)]
        page = post(admin_client, action, *rows, confirm=False, choice="json").content.decode()
        assert "<h2>22 tasks</h2>" in page
        assert "and 2 more" in page
        assert page.count('name="_selected_action"') == 22
        assert f'name="action" value="{action}"' in page
        assert not TaskRerun.objects.exists()
        assert TaskRecord.objects.filter(status=status).count() == 22
        assert not LogEntry.objects.exists()

    @pytest.mark.parametrize("action", ACTIONS)
    def test_actions_have_limits(self, admin_client: Client, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("MOST_RUN_AGAIN", "MOST_CANCELLED", "MOST_DELETED", "MOST_LISTED"):
            monkeypatch.setattr(actions, name, 2)
        status = TaskStatus.RETRYING if action == "cancel" else TaskStatus.SUCCESS
        rows = [record(task_name=send_parcel.name, status=status) for _ in range(3)]
        answer = post(admin_client, action, *rows, confirm=False)
        assert "<h2>2 tasks</h2>" in answer.content.decode()
        assert "Only the first 2 of the selected records are included, the most for one action." in told(answer)

    def test_markup_is_escaped(self, admin_client: Client) -> None:
        shown = record(task_name="<script>alert(1)</script>")
        page = post(admin_client, "export", shown, confirm=False).content.decode()
        assert "<script>alert" not in page

    @pytest.mark.parametrize("action", ACTIONS)
    def test_action_without_fitting_rows_says_so(self, admin_client: Client, action: str) -> None:
        status = TaskStatus.SUCCESS if action == "cancel" else TaskStatus.RUNNING
        shown = record(task_name=send_parcel.name, status=status)
        if action == "export":
            shown.pk = uuid4()
        answer = post(admin_client, action, shown)
        assert answer.status_code == 302
        assert any("None of the selected" in text or "no records" in text for text in told(answer))


class TestRunAgain:
    def test_tasks_are_enqueued_with_their_arguments(self, admin_client: Client) -> None:
        failed = record(task_name=send_parcel.name, status=TaskStatus.FAILED, kwargs={"order_id": 7})
        with collect_tasks() as queue, queue.commit():
            answer = post(admin_client, "run_again", failed)
        [job] = queue.jobs
        assert (job.task_name, job.message.kwargs) == (send_parcel.name, {"order_id": 7})
        row = TaskRerun.objects.get()
        assert (str(row.pk), row.original_id, row.username) == (job.message_id, failed.pk, "admin")
        assert told(answer) == ["1 task was enqueued again."]
        assert logged() == [(str(failed.pk), f"Run again as {job.message_id}.")]

    def test_masked_arguments_are_refused(self, admin_client: Client) -> None:
        shown = record(task_name=charge.name, kwargs={"token": MASK})
        possible = record(task_name=send_parcel.name)
        answer = post(admin_client, "run_again", shown, possible)
        assert TaskRerun.objects.get().original_id == possible.pk
        assert any("masks sensitive arguments: token" in text for text in told(answer))

    @pytest.mark.django_db(transaction=True)
    def test_unavailable_queue_is_reported(self, admin_client: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = f"{__name__}.Closed"
        shown = record(task_name=send_parcel.name)
        answer = post(admin_client, "run_again", shown)
        assert any("was not run again: ConnectionError: the queue is <closed>." in text for text in told(answer))
        assert "<closed>" not in content(admin_client, LIST)
        assert not LogEntry.objects.exists()

    def test_similar_problems_are_counted(self, admin_client: Client) -> None:
        rows = [record(task_name=charge.name, kwargs={"token": MASK}) for _ in range(6)]
        texts = told(post(admin_client, "run_again", *rows))
        assert len(texts) == 5
        assert "3 other tasks have similar problems." in texts


class TestCancel:
    def test_waiting_retry_never_runs(self, admin_client: Client) -> None:
        waiting, done = record(status=TaskStatus.RETRYING), record()
        answer = post(admin_client, "cancel", waiting, done)
        assert told(answer) == ["1 task was cancelled."]
        cancelled = TaskRecord.objects.get(reason=TaskReason.CANCELLED)
        assert (cancelled.root_id, cancelled.n_retries) == (waiting.pk, 1)
        assert logged() == [(str(waiting.pk), "Cancelled.")]

    def test_running_task_is_asked_to_end(self, admin_client: Client) -> None:
        running = record(status=TaskStatus.RUNNING, claim=uuid4())
        post(admin_client, "cancel", running)
        assert CancelRequest.objects.get().pk == running.pk

    def test_attempts_of_a_chain_count_once(self, admin_client: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        retry = record(id=UUID(retry_id(str(root.pk), 1)), root_id=root.pk, n_retries=1, status=TaskStatus.RETRYING)
        assert "<h2>1 task</h2>" in post(admin_client, "cancel", root, retry, confirm=False).content.decode()
        assert told(post(admin_client, "cancel", root, retry)) == ["1 task was cancelled."]

    def test_attempt_of_an_ended_chain_has_no_button(self, admin_client: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        assert 'value="cancel"' in content(admin_client, page_of(root))
        record(root_id=root.pk, n_retries=1)
        assert 'value="cancel"' not in content(admin_client, page_of(root))

    def test_ended_chain_is_reported(self, admin_client: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        record(root_id=root.pk, n_retries=1)
        assert told(post(admin_client, "cancel", root)) == ["1 task had already ended."]
        assert not LogEntry.objects.exists()


class TestDelete:
    def test_whole_chain_is_deleted_with_its_details(self, admin_client: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        last = record(root_id=root.pk, n_retries=1, status=TaskStatus.FAILED)
        other = record()
        TaskProgress.objects.create(id=last.pk, done=1, updated_at="2025-06-01T12:00:00Z")
        answer = post(admin_client, "delete_ended", last)
        assert told(answer) == ["2 records were deleted."]
        assert TaskRecord.objects.get() == other
        assert not TaskProgress.objects.exists()
        assert [key for key, _ in logged()] == sorted(str(row.pk) for row in (root, last))

    @pytest.mark.parametrize("status", [TaskStatus.RUNNING, TaskStatus.RETRYING])
    def test_unended_tasks_stay(self, admin_client: Client, status: TaskStatus) -> None:
        shown = record(status=status)
        post(admin_client, "delete_ended", shown)
        assert TaskRecord.objects.get() == shown

    def test_record_of_a_kept_message_stays(self, admin_client: Client) -> None:
        shown = record()
        moment = "2025-06-01T12:00:00Z"
        OutboxMessage.objects.create(id=shown.pk, task_name="x", queue="default", body="{}", created_at=moment)
        post(admin_client, "delete_ended", shown)
        assert TaskRecord.objects.get() == shown

    @pytest.mark.django_db(databases=["default", "sqlite"])
    def test_record_of_a_message_elsewhere_stays(self, admin_client: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_BACKEND = {
            "BACKEND": "lambda_tasks.backends.outbox.OutboxBackend",
            "OPTIONS": {"transport": "lambda_tasks.backends.memory.MemoryBackend", "databases": ["sqlite"]},
        }
        shown = record()
        fields = {"task_name": "x", "queue": "default", "body": "{}", "created_at": "2025-06-01T12:00:00Z"}
        OutboxMessage.objects.using("sqlite").create(id=shown.pk, **fields)
        post(admin_client, "delete_ended", shown)
        assert TaskRecord.objects.get() == shown


class TestExport:
    def exported(self, client: Client, form: str, *rows: TaskRecord, **fields: str) -> str:
        answer = post(client, "export", *rows, choice=form, **fields)
        assert answer.status_code == 200
        assert answer["Content-Disposition"].startswith("attachment;")
        return b"".join(answer.streaming_content).decode()

    def test_json_has_one_record_per_line(self, admin_client: Client) -> None:
        rows = [record(result={"to": "Jürgen"}), record(traceback="Error: x\n")]
        lines = [json.loads(line) for line in self.exported(admin_client, "json", *rows).splitlines()]
        assert {line["id"] for line in lines} == {str(row.pk) for row in rows}
        assert set(lines[0]) == set(export.COLUMNS)
        assert {"to": "Jürgen"} in [line["result"] for line in lines]
        assert logged() == sorted((str(row.pk), "Exported.") for row in rows)

    def test_csv_has_a_row_for_each_record(self, admin_client: Client) -> None:
        shown = record(kwargs={"a": [1]}, traceback="line 1\nline 2")
        [row] = csv.DictReader(io.StringIO(self.exported(admin_client, "csv", shown)))
        assert tuple(row) == export.COLUMNS
        assert (row["id"], row["kwargs"], row["traceback"]) == (str(shown.pk), '{"a": [1]}', "line 1\nline 2")

    @pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
    def test_csv_contains_no_formulas(self, admin_client: Client, text: str) -> None:
        shown = record(traceback=text, queue=text)
        [row] = csv.DictReader(io.StringIO(self.exported(admin_client, "csv", shown), newline=""))
        assert row["traceback"] == row["queue"] == f"'{text}"

    def test_sensitive_arguments_are_masked(self, admin_client: Client) -> None:
        shown = record(task_name=charge.name, kwargs={"token": "tok_4111"})
        for form in export.FORMATS:
            assert "tok_4111" not in self.exported(admin_client, form, shown)

    def test_hidden_arguments_are_not_exported(self) -> None:
        shown = record()
        for form in export.FORMATS:
            answer = export.response([shown.pk], "default", form=form, with_arguments=False)
            assert b"order_id" not in b"".join(answer.streaming_content)  # type: ignore[arg-type]

    def test_whole_filter_is_exported(self, admin_client: Client) -> None:
        rows = [record() for _ in range(3)]
        record(status=TaskStatus.FAILED)
        query = "?status__exact=SUCCESS"
        page = post(admin_client, "export", rows[0], confirm=False, query=query, select_across="1").content.decode()
        assert "<h2>3 tasks</h2>" in page
        assert page.count('name="_selected_action"') == 1
        text = self.exported(admin_client, "json", rows[0], query=query, select_across="1")
        assert text.count("\n") == 3

    def test_unknown_format_asks_again(self, admin_client: Client) -> None:
        answer = post(admin_client, "export", record(), choice="xml")
        assert 'name="choice" value="csv"' in answer.content.decode()
