"""The page of a record: its times, its attempts, marked frames, links, and the call in Python."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.utils import timezone
from django.utils.html import strip_tags

from lambda_tasks.admin import frames, record_page
from lambda_tasks.decorators import lambda_task
from lambda_tasks.models import MemberStatus, TaskFlow, TaskFlowMember, TaskRecord, TaskRerun, TaskStatus
from lambda_tasks.recording.masking import MASK
from lambda_tasks.settings import app_settings
from lambda_tasks.wire.ids import new_message_id, retry_id
from tests.admin.kit import called, content, page_of, record

pytestmark = pytest.mark.django_db


@lambda_task(sensitive=("token",))
def charge(*, order_id: int, token: str) -> None: ...


def text_of(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(strip_tags(markup)))


def part(page: str, start: str, end: str) -> str:
    [found] = re.findall(rf"{start}(.*?){end}", page, re.DOTALL)
    return str(found)


class TestTimes:
    def steps(self, client: Client, shown: TaskRecord) -> list[str]:
        timeline = part(content(client, page_of(shown)), '<ol class="task-timeline"', "</ol>")
        return [text_of(each).strip() for each in re.findall(r"<li>(.*?)</li>", timeline, re.DOTALL)]

    def test_gaps_are_between_call_start_and_end(self, admin_client: Client) -> None:
        start = timezone.now()
        shown = record(
            id=called(start - timedelta(seconds=2.04)), start_time=start, end_time=start + timedelta(seconds=3)
        )
        first, started, ended = self.steps(admin_client, shown)
        assert first.startswith("Called")
        assert started.startswith("+ 2.0 s Started")
        assert ended.startswith("+ 3.0 s Ended")

    def test_running_task_has_a_lease(self, admin_client: Client) -> None:
        shown = record(status=TaskStatus.RUNNING, end_time=None, lease_until=timezone.now() + timedelta(hours=2))
        assert "Its lease ends in 2 h" in self.steps(admin_client, shown)[-1]

    def test_retry_follows_its_predecessor(self, admin_client: Client) -> None:
        root = record(status=TaskStatus.RETRYING)
        shown = record(id=UUID(retry_id(str(root.pk), 1)), root_id=root.pk, n_retries=1)
        first, second, *_ = self.steps(admin_client, shown)
        assert first.startswith("Called")
        assert "Previous attempt ended" in second

    def test_record_without_times_has_a_page(self, admin_client: Client) -> None:
        shown = record(id=UUID(int=1), start_time=None, end_time=None)
        assert "task-timeline" not in content(admin_client, page_of(shown))

    def test_empty_values_are_dashes(self, admin_client: Client) -> None:
        shown = record(start_time=None, end_time=None, root_id=None)
        assert ">None<" not in content(admin_client, page_of(shown))


class TestAttempts:
    def chain(self, length: int) -> list[TaskRecord]:
        root = record(status=TaskStatus.RETRYING, traceback="shop.Busy: later\n")
        keys = [UUID(retry_id(str(root.pk), number)) for number in range(1, length)]
        retries = [record(id=key, root_id=root.pk, n_retries=number + 1) for number, key in enumerate(keys)]
        return [root, *retries]

    def test_attempts_of_the_chain_are_listed(self, admin_client: Client) -> None:
        root, retry, last = self.chain(3)
        record()
        page = content(admin_client, page_of(retry))
        table = part(page, '<table class="task-table">', "</table>")
        assert table.count("<tr") == 4
        assert page_of(root) in table
        assert page_of(last) in table
        assert text_of(part(table, 'aria-current="true"', "</tr>")).startswith("> 2 (this one) Success")
        assert "Busy: later" in table

    def test_first_attempt_alone_has_no_table(self, admin_client: Client) -> None:
        assert "task-attempts" not in content(admin_client, page_of(record()))

    def test_number_of_queries_is_constant(
        self, admin_client: Client, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
    ) -> None:
        monkeypatch.setattr(record_page, "MOST_ATTEMPTS", 4)
        shown = record()
        with django_assert_num_queries(8):  # session, user, record, chain, original, reruns, flow, progress
            content(admin_client, page_of(shown))
        *_, last = self.chain(12)
        with django_assert_num_queries(8):
            page = content(admin_client, page_of(last))
        assert part(page, '<table class="task-table">', "</table>").count("<tr") == 5


class TestRelations:
    def test_reruns_are_linked_both_ways(self, admin_client: Client) -> None:
        original, again = record(), record()
        TaskRerun.objects.create(pk=again.pk, original_id=original.pk, rerun_at=timezone.now(), username="<ada>")
        for shown, other, label in ((original, again, "Was run again as"), (again, original, "Runs again")):
            relations = part(content(admin_client, page_of(shown)), '<dl class="task-relations">', "</dl>")
            assert label in relations
            assert f"?q={other.pk}" in relations
            assert "by &lt;ada&gt;" in relations

    @pytest.mark.parametrize(("kind", "label"), [("chain", "Chain of 3 tasks"), ("group", "Group of 3 tasks")])
    def test_members_of_a_flow_are_linked(self, admin_client: Client, kind: str, label: str) -> None:
        flow = TaskFlow.objects.create(id=uuid4(), kind=kind, task_name="x", size=3, created_at=timezone.now())
        rows = [record() for _ in range(3)]
        for position, row in enumerate(rows):
            status = MemberStatus.SUCCESS if not position else MemberStatus.PENDING
            TaskFlowMember.objects.create(id=row.pk, flow_id=flow.pk, position=position, status=status)
        relations = part(content(admin_client, page_of(rows[1])), '<dl class="task-relations">', "</dl>")
        assert label in relations
        links = re.findall(r'\?q=([^"]*)">[^<]*</a> ([^<]*)<', relations)
        assert links == [(str(rows[0].pk), "1: Success"), (str(rows[2].pk), "3: Pending")]

    def test_record_without_relations_has_no_list(self, admin_client: Client) -> None:
        assert "task-relations" not in content(admin_client, page_of(record()))


class TestTraceback:
    TEXT = (
        "Traceback (most recent call last):\n"
        '  File "/var/task/shop/tasks.py", line 1, in f\n    g()\n    ~^^\n'
        '  File "/opt/python/lib/python3.13/site-packages/shop/x.py", line 2, in g\n    h()\n'
        '  File "<string>", line 3, in h\n'
        "ValueError: no\n"
    )

    def own(self, text: str, task_name: str = "shop.tasks.f") -> str:
        return "".join(re.findall(r"<strong[^>]*>(.*?)</strong>", frames.marked(text, task_name), re.DOTALL))

    def test_own_frames_are_marked(self) -> None:
        marked = html.unescape(self.own(self.TEXT))
        assert marked == '  File "/var/task/shop/tasks.py", line 1, in f\n    g()\n    ~^^\n'

    def test_frames_of_own_apps_are_marked(self) -> None:
        text = self.TEXT.replace("/var/task/shop/", "/var/task/tests/")
        assert "line 1" in self.own(text, "other.tasks.f")
        assert "tests" in frames.own_packages()
        assert "lambda_tasks" not in frames.own_packages()

    def test_frames_in_groups_are_marked(self) -> None:
        frame = '  |   File "/a/shop/t.py", line 1, in f\n  |     g()\n'
        text = f"  + Exception Group Traceback (most recent call last):\n{frame}  | E: x\n"
        assert html.unescape(self.own(text)) == frame

    def test_text_is_unchanged_and_escaped(self) -> None:
        text = f"{self.TEXT}<script>\r\n\x0b&amp;"
        markup = frames.marked(text, "shop.tasks.f")
        assert "<script>" not in markup
        assert (
            html.unescape(strip_tags(markup.replace("&lt;script&gt;", "SCRIPT"))).replace("SCRIPT", "<script>") == text
        )


class TestCall:
    def test_call_can_be_executed(self) -> None:
        shown = TaskRecord(task_name="shop.tasks.send", kwargs={"order_id": 42, "to": {"name": "Ada"}, "express": True})
        assert record_page.call_in_python(shown) == (
            "from shop.tasks import send\n\n"
            "send.execute_on_commit(\n    order_id=42,\n    to={'name': 'Ada'},\n    express=True,\n)\n"
        )

    def test_masked_values_have_a_comment(self) -> None:
        shown = TaskRecord(task_name=charge.name, kwargs={"order_id": 1, "token": "tok_4111"})
        call = record_page.call_in_python(shown)
        assert "tok_4111" not in call
        assert f"token='{MASK}'" in call
        assert "# Replace the masked values.\n" in call

    @pytest.mark.parametrize("kwargs", [{}, {"class": 1}, {"a b": 1}, {"x": "'\"\\\n" * 60}, {"x": list(range(99))}])
    def test_call_is_valid_python(self, kwargs: dict[str, Any]) -> None:
        compile(record_page.call_in_python(TaskRecord(task_name="shop.tasks.send", kwargs=kwargs)), "call", "exec")

    @pytest.mark.parametrize(
        "name", ["", "send", "shop.tasks.<b>", "shop.class.send", "shop..send", "shop.tasks.f\n.g"]
    )
    def test_other_names_have_no_call(self, name: str) -> None:
        assert record_page.call_in_python(TaskRecord(task_name=name, kwargs={})) == ""


class TestMasking:
    def test_sensitive_arguments_of_old_records_are_masked(self, admin_client: Client) -> None:
        shown = record(task_name=charge.name, kwargs={"order_id": 1, "token": "tok_4111"})
        page = content(admin_client, page_of(shown))
        assert "tok_4111" not in page
        assert MASK in page

    @pytest.mark.parametrize("kwargs", [[1], "text", 5])
    def test_odd_arguments_have_a_page(self, admin_client: Client, kwargs: Any) -> None:
        assert content(admin_client, page_of(record(kwargs=kwargs)))


class TestLinks:
    def test_links_contain_quoted_values(self, admin_client: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_ADMIN_LINKS = {
            "Logs <b>": "https://logs.example.com/?id={message_id}&task={task_name}&from={start}&to={end}#{{x}}",
            "Chain": "https://logs.example.com/{root_id}/{queue}",
        }
        shown = record(task_name="a&b", queue='"/x')
        links = part(content(admin_client, page_of(shown)), '<p class="task-links">', "</p>")
        start = int(shown.start_time.timestamp() * 1000) - 60_000  # type: ignore[union-attr]
        assert f"?id={shown.pk}&amp;task=a%26b&amp;from={start}&amp;to={start + 121_500}#{{x}}" in links
        assert f"https://logs.example.com/{shown.pk}/%22%2Fx" in links
        assert "Logs &lt;b&gt;" in links

    @pytest.mark.parametrize(
        ("value", "problem"),
        [
            (["https://x"], "must be a dict that maps names of links to addresses, not a list of 1 items."),
            ({"x": 5}, "must be a dict that maps names of links to addresses"),
            ({"x": "javascript:alert(1)"}, "must have addresses that begin with https:// or http://, not 'javascript"),
            ({"x": "https://x/{secret}"}, "must have no placeholders but {message_id}, {root_id}"),
            ({"x": "https://x/{"}, "Write other braces twice."),
            ({"x": "https://x/{message_id.x}"}, "must have no placeholders but"),
            ({"x": "https://x/{}"}, "must have no placeholders but"),
        ],
    )
    def test_invalid_links_are_refused(self, settings: Any, value: Any, problem: str) -> None:
        settings.LAMBDA_TASKS_ADMIN_LINKS = value
        with pytest.raises(ImproperlyConfigured, match=problem):
            _ = app_settings.admin_links

    def test_page_survives_invalid_links(self, admin_client: Client, settings: Any) -> None:
        settings.LAMBDA_TASKS_ADMIN_LINKS = {"x": "javascript:alert(1)"}
        assert "javascript:" not in content(admin_client, page_of(record()))

    def test_record_without_links_has_none(self) -> None:
        assert list(record_page.links_of(TaskRecord(id=new_message_id(), task_name="x"))) == []
