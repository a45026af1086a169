"""The subcommand that calls the handler with an event in this process."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from lambda_tasks.backends.memory import event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.jobs import Job
from lambda_tasks.models import TaskRecord
from lambda_tasks.wire.invocation import Invocation

pytestmark = pytest.mark.django_db(transaction=True)


@lambda_task
def double(*, number: int) -> int:
    return 2 * number


def event(*bodies: str) -> dict[str, Any]:
    job = Job.of_call(Invocation(double.name, {"number": 7}), queue="default", delay=0, task=double, database="default")
    own = event_record(job)
    others = [
        own | {"messageId": f"{place}", "body": body, "messageAttributes": {}} for place, body in enumerate(bodies)
    ]
    return {"Records": [own, *others]}


def printed(*arguments: str) -> Any:
    output = StringIO()
    call_command("lambda_tasks", "invoke", *arguments, stdout=output, skip_checks=True)
    return json.loads(output.getvalue())


def test_tasks_of_the_event_run(tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(event()))
    assert printed(str(path)) == {"batchItemFailures": []}
    assert TaskRecord.objects.get().result == 14


def test_event_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO('{"lambda_tasks": "maintenance"}'))
    assert "lost" in printed("-")


def test_message_that_stays_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text(json.dumps(event("nonsense")))
    with pytest.raises(CommandError, match="1 message of the event would stay on the queue"):
        printed(str(path))


def test_handler_knows_its_time(tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text("{}")
    answer = printed(str(path), "--handler", f"{__name__}.tell_time", "--function-timeout", "60")
    assert 59_000 < answer <= 60_000


def tell_time(event: Any, context: Any) -> int:
    left: int = context.get_remaining_time_in_millis()
    return left


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "The event cannot be read"),
        ("{", [], "The event must be JSON"),
        ('{"Records": [{}]}', [], "messageId"),
        ("{}", ["--handler", "shop.handler"], "--handler must be the dotted path of a function, not 'shop.handler'"),
    ],
)
def test_problem_is_named(tmp_path: Path, content: str | None, options: list[str], message: str) -> None:
    path = tmp_path / "event.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CommandError, match=message):
        printed(str(path), *options)
