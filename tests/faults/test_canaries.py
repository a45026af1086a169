"""Put a canary into each field of an event, and check where it appears again.

Names of tasks, parameters and fields are not secret. A value is: it appears only in the arguments of the record,
unless the task puts it elsewhere.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidEvent
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from lambda_tasks.strategies import get_backend
from lambda_tasks.wire.ids import retry_id

pytestmark = pytest.mark.django_db(transaction=True)

ROOT: Final = "01931a6e-0000-7000-8000-00000000cbbb"
#: The fields whose values need a special form: the ids of a retry.
FORMS: Final = {"message_id": retry_id(ROOT, 1), "root_id": ROOT}


def canary(field: str) -> str:
    return FORMS.get(field, f"canary-{field}-")


FIELDS: Final = [
    *("event-key", "event-value", "record-key", "record-value"),
    *("messageId", "receiptHandle", "md5OfBody", "eventSource", "eventSourceARN", "awsRegion"),
    *("SenderId", "SentTimestamp", "ApproximateReceiveCount", "system-key", "system-value"),
    *("message_id", "root_id", "queue", "first_sent", "scheduled_for"),
    *("attribute-key", "attribute-value", "attribute-type"),
    *("argument", "nested-key", "nested-value", "unknown-argument", "unknown-argument-value"),
    *("unknown-field", "unknown-field-value", "task-name", "raw-body"),
]


def text_attribute(field: str) -> dict[str, Any]:
    return {"stringValue": canary(field), "dataType": canary("attribute-type"), "binaryListValues": []}


def event_with(body: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return an event with a canary in every field around `body`."""
    if isinstance(body, dict):
        body = {"n_retries": 1, **body}
    record = {
        **{field: canary(field) for field in ("messageId", "receiptHandle", "md5OfBody", "eventSource")},
        **{field: canary(field) for field in ("eventSourceARN", "awsRegion")},
        canary("record-key"): canary("record-value"),
        "body": body if isinstance(body, str) else json.dumps(body),
        "attributes": {
            **{field: canary(field) for field in ("SenderId", "SentTimestamp", "ApproximateReceiveCount")},
            canary("system-key"): canary("system-value"),
        },
        "messageAttributes": {
            **{f"lambda_tasks.{field}": text_attribute(field) for field in FORMS},
            **{f"lambda_tasks.{field}": text_attribute(field) for field in ("queue", "first_sent", "scheduled_for")},
            canary("attribute-key"): text_attribute("attribute-value"),
        },
    }
    return {"Records": [record], canary("event-key"): canary("event-value")}


@lambda_task
def keep(*, value: Any, other: Any = None) -> None: ...


@lambda_task
def fail(*, value: Any) -> None:
    raise ValueError("as it happens")


@lambda_task
def quote(*, value: Any) -> None:
    raise ValueError(value)


@lambda_task
def answer(*, value: Any) -> Any:
    return value


@lambda_task(ignore_errors=(ValueError,))
def ignore(*, value: Any) -> None:
    raise ValueError("as it happens")


@lambda_task(retry_on=(ValueError,))
def again(*, value: Any) -> None:
    raise ValueError("as it happens")


@lambda_task(sensitive=("value",))
def hide(*, value: Any) -> None: ...


@lambda_task(sensitive=("value",), retry_on=(ValueError,), singleton=True)
def hide_and_quote(*, value: Any) -> None:
    raise ValueError(value)


@lambda_task
def count(*, number: int, numbers: dict[str, int] | None = None) -> None: ...


@lambda_task(sensitive=("number", "numbers"))
def count_secretly(*, number: int, numbers: dict[str, int] | None = None) -> None: ...


ARGUMENTS: Final = {"value": {"x": canary("argument"), canary("nested-key"): [canary("nested-value")]}}
WRONG: Final = {"number": canary("argument"), "numbers": {canary("nested-key"): canary("nested-value")}}
UNKNOWN: Final = {canary("unknown-argument"): canary("unknown-argument-value")}


def body_of(task: Any, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"task_name": task.name, "kwargs": dict(arguments), **more}


VALUES: Final = {"argument", "nested-key", "nested-value"}
IDS: Final = {"message_id", "root_id"}
#: What lines about a message contain, of which the worker could read the name of the task or not.
READ: Final = {"messageId"} | IDS
UNREAD: Final = {"messageId", "message_id"}
#: The outcome of each delivery, and the canaries that each place contains. A place that is not listed has none.
CASES: Final[dict[str, tuple[Any, dict[str, set[str]]]]] = {
    "it succeeds": (
        event_with(body_of(keep, ARGUMENTS)),
        {"log": IDS, "record": IDS | VALUES, "admin": IDS | VALUES},
    ),
    "it fails": (
        event_with(body_of(fail, ARGUMENTS)),
        {"log": IDS, "record": IDS | VALUES, "admin": IDS | VALUES},
    ),
    "it is ignored": (
        event_with(body_of(ignore, ARGUMENTS)),
        {"log": IDS, "record": IDS | VALUES, "admin": IDS | VALUES},
    ),
    "it is retried": (
        event_with(body_of(again, ARGUMENTS)),
        {"log": IDS, "record": IDS | VALUES, "admin": IDS | VALUES, "sent": {"root_id"} | VALUES},
    ),
    "it fails, and quotes its argument itself": (
        event_with(body_of(quote, ARGUMENTS)),
        {"log": IDS | VALUES, "record": IDS | VALUES, "admin": IDS | VALUES},
    ),
    "it succeeds, and returns its argument itself": (
        event_with(body_of(answer, ARGUMENTS)),
        {"log": IDS, "record": IDS | VALUES, "admin": IDS | VALUES},
    ),
    "its argument is sensitive": (
        event_with(body_of(hide, ARGUMENTS)),
        {"log": IDS, "record": IDS, "admin": IDS},
    ),
    "its argument is sensitive, and it quotes it and is retried": (
        event_with(body_of(hide_and_quote, {"value": canary("argument")})),
        {"log": IDS, "record": IDS, "admin": IDS, "sent": {"root_id", "argument"}},
    ),
    "its arguments are of other types": (
        event_with(body_of(count, WRONG)),
        {"log": READ | {"nested-key"}, "answer": {"messageId"}},
    ),
    "its sensitive arguments are of other types": (
        event_with(body_of(count_secretly, WRONG)),
        {"log": READ, "answer": {"messageId"}},
    ),
    "it has no such argument": (
        event_with(body_of(keep, ARGUMENTS | UNKNOWN)),
        {"log": READ | {"unknown-argument"}, "answer": {"messageId"}},
    ),
    "its argument is nothing that is stored": (
        event_with(body_of(keep, {"value": [canary("argument"), canary("nested-value") + "\x00"]})),
        {"log": UNREAD, "answer": {"messageId"}},
    ),
    "the message has a field too many": (
        event_with(body_of(keep, ARGUMENTS, **{canary("unknown-field"): canary("unknown-field-value")})),
        {"log": UNREAD | {"unknown-field"}, "answer": {"messageId"}},
    ),
    "the arguments are no object": (
        event_with({"task_name": keep.name, "kwargs": [canary("argument")]}),
        {"log": UNREAD, "answer": {"messageId"}},
    ),
    "the number of the retry is none": (
        event_with(body_of(keep, ARGUMENTS, n_retries=canary("unknown-field-value"))),
        {"log": UNREAD, "answer": {"messageId"}},
    ),
    "there is no such task": (
        event_with({"task_name": f"tests.{canary('task-name')}.task", "kwargs": ARGUMENTS}),
        {"log": READ | {"task-name"}, "answer": {"messageId"}},
    ),
    "the task may not be imported": (
        event_with({"task_name": f"elsewhere.{canary('task-name')}", "kwargs": ARGUMENTS}),
        {"log": READ | {"task-name"}, "answer": {"messageId"}},
    ),
    "the name is none": (
        event_with({"task_name": canary("task-name"), "kwargs": ARGUMENTS}),
        {"log": UNREAD, "answer": {"messageId"}},
    ),
    "the body is no JSON": (
        event_with('{"task_name": ' + canary("raw-body")),
        {"log": UNREAD, "answer": {"messageId"}},
    ),
    "the body is some other JSON": (
        event_with([canary("raw-body")]),  # type: ignore[arg-type]
        {"log": UNREAD, "answer": {"messageId"}},
    ),
    "the event is another service's": (
        {canary("event-key"): canary("event-value")},
        {"error": {"event-key"}},
    ),
    "a record has no id": (
        {"Records": [{**event_with(body_of(keep, ARGUMENTS))["Records"][0], "messageId": None}]},
        {"error": set()},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_fields_appear_only_as_the_table_says(case: str, log: list[logging.LogRecord], client: Client) -> None:
    event, expected = CASES[case]
    expected = {place: found for place, found in expected.items() if found}
    assert found_after(event, log, client) == expected


def test_busy_delivery_shows_no_other_fields(log: list[logging.LogRecord], client: Client) -> None:
    TaskRecord.objects.create(
        id=canary("message_id"),
        task_name=keep.name,
        claim=canary("root_id"),
        lease_until=timezone.now() + timedelta(minutes=5),
    )
    found = found_after(event_with(body_of(keep, ARGUMENTS)), log, client)
    assert found == {
        "log": READ,
        "answer": {"messageId"},
        "record": IDS,  # written by this test
        "admin": {"message_id"},
    }


def test_every_field_has_a_canary() -> None:
    """A canary that no case sends would never be found."""
    sent = json.dumps([event for event, _ in CASES.values()])
    assert [field for field in FIELDS if canary(field) not in sent] == []


@pytest.fixture
def log() -> Iterator[list[logging.LogRecord]]:
    """Collect all log records at every level."""
    records: list[logging.LogRecord] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    root, collecting = logging.getLogger(), Collecting()
    level = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(collecting)
    yield records
    root.removeHandler(collecting)
    root.setLevel(level)


def found_after(event: Any, log: list[logging.LogRecord], client: Client) -> dict[str, set[str]]:
    """Deliver `event`, and return the canaries in each place."""
    backend: Any = get_backend()
    backend.jobs.clear()
    places = {"answer": "", "error": ""}
    log.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            places["answer"] = json.dumps(handler(event, None))
        except InvalidEvent as error:
            places["error"] = "\n".join(all_of(error))
    lines = [line for line in log if not line.name.startswith("django.db")]
    places["log"] = "\n".join(text for line in lines for text in (logging.Formatter().format(line), *details(line)))
    places["warning"] = "\n".join(str(warning) for warning in warned)
    places["record"] = json.dumps(list(TaskRecord.objects.values()), default=str)
    places["sent"] = "\n".join(str([job, job.message.to_body(), job.message_attributes()]) for job in backend.jobs)
    places["admin"] = pages(client)
    found = {place: {field for field in FIELDS if canary(field) in text} for place, text in places.items()}
    return {place: fields for place, fields in found.items() if fields}


def details(line: logging.LogRecord) -> list[str]:
    """Return the details of a log record beyond its message, which JSON formatters and error trackers use."""
    error = line.exc_info[1] if line.exc_info else None
    return [repr(vars(line)), *(all_of(error) if error else [])]


def all_of(error: BaseException) -> Iterator[str]:
    """Yield the full contents of an exception and of all exceptions that it is chained to."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or link in seen:
            continue
        seen.append(link)
        waiting += [link.__cause__, link.__context__]
        yield f"{link!r} {link} {link.args} {getattr(link, '__notes__', '')} {getattr(link, 'reason', '')}"


def pages(client: Client) -> str:
    """Return the text of the admin's pages about the records."""
    user = User.objects.filter(username="root").first() or User.objects.create_superuser("root")
    client.force_login(user)
    urls = [reverse("admin:lambda_tasks_taskrecord_changelist")] if TaskRecord.objects.exists() else []
    keys = TaskRecord.objects.values_list("pk", flat=True)
    urls += [reverse("admin:lambda_tasks_taskrecord_change", args=[key]) for key in keys]
    return "\n".join(client.get(url).content.decode() for url in urls)
