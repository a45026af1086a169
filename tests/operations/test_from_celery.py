"""The report of what a code base uses of Celery."""

from __future__ import annotations

import json
import textwrap
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from lambda_tasks.management.commands.lambda_tasks import Command
from lambda_tasks.operations.from_celery import Report, report_on

SHOP = Path(__file__).parents[1] / "contrib" / "celery_shop"


def report(folder: Path, **files: str) -> Report:
    for name, text in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    return report_on(folder)


def command(path: Path, *options: str) -> str:
    stdout = StringIO()
    call_command("lambda_tasks", "from_celery", str(path), *options, stdout=stdout)
    return stdout.getvalue()


class TestTasks:
    @pytest.mark.parametrize(
        "text",
        [
            "from celery import shared_task\n@shared_task",
            "from celery import shared_task as task\n@task(bind=False)",
            "import celery\n@celery.shared_task()",
            "from celery import Celery\napp = Celery()\n@app.task",
            "from .celery import app as worker\n@worker.task()",
            "from shop import celery_app\n@celery_app.task",
            "from shop.worker import app\n@app.task",
        ],
    )
    def test_decorators_are_recognized(self, tmp_path: Path, text: str) -> None:
        worker = "from celery import Celery\ndef make():\n    return Celery()\napp = make()\n"
        found = report(tmp_path, tasks=f"{text}\ndef send(): ...\n", worker=worker)
        assert [(task.name, task.runs_unchanged) for task in found.tasks] == [("send", True)]

    @pytest.mark.parametrize("text", ["from huey import app\n@app.task", "from celery import x\n@cache", "@app.task()"])
    def test_other_decorators_are_left_out(self, tmp_path: Path, text: str) -> None:
        assert report(tmp_path, tasks=f"{text}\ndef send(): ...\n").tasks == []

    def test_options_have_the_answers_of_the_table(self, tmp_path: Path) -> None:
        [task] = report(
            tmp_path,
            tasks="""
            from celery import shared_task

            @shared_task(time_limit=60, rate_limit="1/m", serializer="json", ignore_result=LATER, colour=1, **more)
            def send(): ...

            @shared_task
            def other(): ...
            """,
        ).tasks[:1]
        assert {use.name: (use.value, use.fate) for use in task.options} == {
            "time_limit": ("60", "carried"),
            "rate_limit": ("'1/m'", "refused"),
            "serializer": ("'json'", "dropped"),
            "ignore_result": ("LATER", "dropped"),
            "colour": ("1", "unknown"),
            "**": ("more", "unknown"),
        }
        assert task.options[1].instead.startswith("use max_concurrency")
        assert task.runs_unchanged is False

    @pytest.mark.parametrize(
        ("option", "fate"),
        [
            ("time_limit=60 * 15", "carried"),
            ("time_limit=60 * 60 * 3", "refused"),
            ("serializer='pickle'", "refused"),
            ("name='shop.send'", "carried"),
            ("name='send'", "dropped"),
        ],
    )
    def test_fate_depends_on_the_value(self, tmp_path: Path, option: str, fate: str) -> None:
        text = f"from celery import shared_task\n@shared_task({option})\ndef send(): ...\n"
        assert report(tmp_path, tasks=text).tasks[0].options[0].fate == fate

    def test_parameters_are_reported(self, tmp_path: Path) -> None:
        found = report(
            tmp_path,
            tasks="""
            from celery import shared_task
            from shop.models import Order

            @shared_task(bind=True)
            def send(self, order: Order, text, *rest, loud: bool = False, **more):
                self.request.headers, self.request.id, self.client

            @shared_task
            async def fetch(): ...
            """,
        )
        send, fetch = found.tasks
        assert [note.text for note in send.notes] == [
            "Replace *rest, **more by named parameters.",
            "Put a * before order, so that arguments are passed by name.",
            "Annotate text.",
            "order looks like a model, Order. Pass its primary key instead.",
        ]
        assert {use.name: use.fate for use in send.attributes} == {
            "self.request.headers": "refused",
            "self.request.id": "carried",
            "self.client": "refused",
        }
        assert "async" in fetch.notes[0].text

    @pytest.mark.parametrize(
        ("handler", "lines"),
        [
            ("order.save()\n        raise", [8]),
            ("Order.objects.create(n=1)\n        self.retry()", [8]),
            ("qs.update(n=1)\n        raise self.retry()", [8]),
            ("Order.objects.bulk_create([])\n        if x:\n            raise", [8]),
            ("order.delete()\n        return self.retry()", [8]),
            ("order.save()\n        return None", []),
            ("state.update({'n': 1})\n        raise", []),
            ("log()\n        raise", []),
        ],
    )
    def test_lost_writes_are_reported(self, tmp_path: Path, handler: str, lines: list[int]) -> None:
        text = (
            "from celery import shared_task\n\n@shared_task(bind=True)\ndef send(self):\n    try:\n        go()\n"
            f"    except OSError:\n        {handler}\n"
        )
        [task] = report(tmp_path, tasks=text).tasks
        assert [note.line for note in task.notes if "may be lost" in note.text] == lines

    def test_waiting_and_classes_are_reported(self, tmp_path: Path) -> None:
        text = """
            from celery import Task, shared_task

            @shared_task
            def wait():
                return other.delay().get(timeout=3)

            class Old(Task): ...
            """
        wait, old = report(tmp_path, tasks=text).tasks
        assert "waits for another one" in wait.notes[0].text
        assert (old.runs_unchanged, "The task is a class" in old.notes[0].text) == (False, True)


class TestCalls:
    TASKS = """
        from celery import shared_task

        @shared_task
        def send(user_id, text="", *, loud=False): ...

        @shared_task
        def total(prices, tax): ...
        """

    @pytest.mark.parametrize(
        ("call", "write"),
        [
            ("send.delay(7, loud=True)", "send.execute_on_commit(user_id=7, loud=True)"),
            ("tasks.send.delay(user.pk, 'Hi')", "tasks.send.execute_on_commit(user_id=user.pk, text='Hi')"),
            ("send.apply_async((7,))", "send.execute_on_commit(user_id=7)"),
            (
                "send.apply_async([7], {'loud': x}, countdown=60, queue='mail')",
                "send.using(delay=60, queue='mail').execute_on_commit(user_id=7, loud=x)",
            ),
            ("send.apply_async(args=[7], kwargs=dict(text='a'))", "send.execute_on_commit(user_id=7, text='a')"),
            ("send.s(7)", "send.invocation(user_id=7)"),
            ("chain(send.s(7), total.s(3))", "total.invocation(prices=RESULT, tax=3)"),
            ("send.s(7) | total.si(1, 2)", "total.invocation(prices=1, tax=2)"),
        ],
    )
    def test_call_is_written_by_name(self, tmp_path: Path, call: str, write: str) -> None:
        calls = f"from celery import chain\nfrom shop import tasks\nfrom shop.tasks import send, total\n{call}\n"
        found = report(tmp_path, tasks=self.TASKS, calls=calls).calls
        assert write in [each.write for each in found]
        assert {each.fate for each in found} == {"carried"}

    @pytest.mark.parametrize(
        "call", ["send.delay(*args)", "send.apply_async(args)", "send.apply_async((7,), eta=x)", "total.s(3)"]
    )
    def test_unclear_call_gets_a_sentence(self, tmp_path: Path, call: str) -> None:
        [found] = report(tmp_path, tasks=self.TASKS, calls=call).calls
        assert found.write.startswith("call ")

    @pytest.mark.parametrize(
        ("call", "kind"),
        [
            ("send.apply_async((7,), priority=3)", "apply_async"),
            ("send.apply_async((7,), link_error=x)", "apply_async"),
            ("chord([send.s(7)])", "chord"),
            ("app.send_task('shop.send')", "send_task"),
            ("app.control.revoke(x)", "revoke"),
            ("send.map([1])", "map"),
        ],
    )
    def test_refused_call_is_marked(self, tmp_path: Path, call: str, kind: str) -> None:
        calls = f"from celery import chord\n{call}\n"
        found = {each.kind: each for each in report(tmp_path, tasks=self.TASKS, calls=calls).calls}
        assert found[kind].fate == "refused"

    def test_methods_of_other_objects_are_left_out(self, tmp_path: Path) -> None:
        calls = "timer.delay(3)\nsession.s(1)\nmodel.signature()\n"
        assert report(tmp_path, tasks=self.TASKS, calls=calls).calls == []

    def test_doubts_are_noted(self, tmp_path: Path) -> None:
        calls = "transaction.on_commit(lambda: send.delay(request.user))\n"
        [call] = report(tmp_path, tasks=self.TASKS, calls=calls).calls
        assert [note.text for note in call.notes] == [
            "request.user looks like an object. Pass its primary key instead.",
            "on_commit() around it is not needed: the message leaves on COMMIT.",
        ]


class TestSettings:
    def test_settings_and_schedules_are_found(self, tmp_path: Path) -> None:
        found = report(
            tmp_path,
            settings="""
            from datetime import timedelta
            from celery.schedules import crontab

            CELERY_TASK_ALWAYS_EAGER = True
            CELERY_TASK_SERIALIZER = "pickle"
            CELERY_COLOUR = 1
            CELERY_BEAT_SCHEDULE = {
                "night": {"task": "shop.tidy", "schedule": crontab(hour=3, minute=0, day_of_week="mon"), "args": (1,)},
                "often": {"task": "shop.look", "schedule": 30.0},
                "hourly": {"task": "shop.count", "schedule": timedelta(hours=1)},
                "later": {"task": "shop.count", "schedule": SOMETIMES},
            }
            app.conf.task_time_limit = 60
            app.conf.update(broker_url="sqs://")
            app.add_periodic_task(crontab(), send.s(7))
            """,
        )
        assert {each.name: each.counterpart for each in found.settings} == {
            "CELERY_TASK_ALWAYS_EAGER": "LAMBDA_TASKS_EAGER",
            "CELERY_TASK_SERIALIZER": "arguments are JSON: replace those that JSON cannot represent",
            "CELERY_COLOUR": "",
            "CELERY_BEAT_SCHEDULE": "the option schedule of @lambda_task",
            "task_time_limit": "LAMBDA_TASKS_DEFAULT_HARD_TIMEOUT",
            "broker_url": "LAMBDA_TASKS_QUEUES",
        }
        assert [(each.task, each.write, each.arguments) for each in found.schedules] == [
            ("shop.tidy", 'schedule=Cron("0 3 * * mon")', "args=(1,)"),
            ("shop.look", "schedule=Every(seconds=30.0)", ""),
            ("shop.count", "schedule=Every(hours=1)", ""),
            ("shop.count", "", ""),
            ("send.s(7)", 'schedule=Cron("* * * * *")', ""),
        ]


class TestFiles:
    def test_unreadable_files_are_reported(self, tmp_path: Path) -> None:
        (tmp_path / "bytes.py").write_bytes(b"\n\n# celery \xff\n")
        (tmp_path / "codec.py").write_bytes(b"# coding: celery\n")
        found = report(tmp_path, broken="from celery import (\n", good="x = 1\n")
        assert [(each.file, each.problem.partition(":")[0]) for each in found.unread] == [
            ("broken.py", "line 1"),
            ("bytes.py", "'utf-8' codec can't decode byte 0xff in position 11"),
            ("codec.py", "unknown encoding"),
        ]
        assert found.files == 4

    def test_foreign_folders_are_skipped(self, tmp_path: Path) -> None:
        for folder in (".git", "node_modules", "mine"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.py").write_text("from celery import shared_task\n@shared_task\ndef a(): ...\n")
        (tmp_path / "mine" / "environment").mkdir()
        (tmp_path / "mine" / "environment" / "pyvenv.cfg").touch()
        (tmp_path / "mine" / "environment" / "b.py").write_text("import celery")
        assert (report_on(tmp_path).files, report_on(tmp_path).tasks[0].file) == (1, "mine/a.py")

    def test_files_are_not_imported(self, tmp_path: Path) -> None:
        found = report(tmp_path, tasks="from celery import shared_task\nraise SystemExit\n")
        assert [each.use.name for each in found.imports] == ["shared_task"]


class TestCommand:
    def test_report_is_printed(self) -> None:
        text = command(SHOP)
        assert "payments.py:26  charge(order_id, amount)\n      bind=True  [carried over]  call current_task()" in text
        assert "[carried over]  mail.using(delay=600).execute_on_commit(user_id=user_id, subject='Reminder')" in text
        last = (
            "7 tasks, 13 calls. With shared_task of lambda_tasks.contrib.celery, 7 tasks and 13 calls stay as they are."
        )
        assert last in text

    def test_single_file_is_printed_as_json(self) -> None:
        printed: dict[str, Any] = json.loads(command(SHOP / "payments.py", "--format", "json"))
        assert {task["name"] for task in printed["tasks"]} == {"charge", "refund", "settle"}
        assert printed["summary"] == {
            "files": 1,
            "tasks": 3,
            "tasks_that_run_unchanged": 3,
            "calls": 0,
            "calls_that_run_unchanged": 0,
        }

    def test_system_checks_are_skipped(self) -> None:
        checked: list[str] = []

        class Checked(Command):
            def check(self, *args: Any, **options: Any) -> None:
                checked.append("checked")

        call_command(Checked(stdout=StringIO()), "from_celery", str(SHOP), skip_checks=False)
        assert checked == []
        call_command(Checked(stdout=StringIO()), "list", skip_checks=False)
        assert checked == ["checked"]

    @pytest.mark.parametrize(
        ("name", "what"), [("missing", "a path that does not exist"), ("notes.txt", "a file of another kind")]
    )
    def test_wrong_path_is_refused(self, tmp_path: Path, name: str, what: str) -> None:
        (tmp_path / "notes.txt").touch()
        with pytest.raises(CommandError, match=f"PATH must be a folder or a Python file, not {what}"):
            command(tmp_path / name)
