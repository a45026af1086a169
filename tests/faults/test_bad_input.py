"""Check that the handler answers every event correctly, and that messages next to a bad one run.

The handler raises `InvalidEvent` if an id is unusable, because any answer would delete messages. Otherwise it returns
the ids of the messages that stay on the queue. It creates records only for tasks, imports nothing that a message
names, and never fails to log a line.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from django.apps import apps
from django.conf import settings as django_settings
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lambda_tasks.backends.memory import MemoryBackend, event_record
from lambda_tasks.decorators import lambda_task
from lambda_tasks.exceptions import InvalidEvent
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from lambda_tasks.recording.storable import MAX_DEPTH
from lambda_tasks.strategies import get_backend

pytestmark = pytest.mark.django_db(transaction=True)

#: The maximum length of a log line about a message, including its traceback.
LONGEST_LINE: Final = 20_000

GOOD: Final = "good"
ran: list[Any] = []


@lambda_task
def note(*, name: str) -> None:
    ran.append(name)


@lambda_task
def take(*, value: Any) -> None:
    ran.append("taken")


@lambda_task(singleton=True, retry_on=(ValueError,), max_retries=0)
def never_again(*, value: Any) -> None:
    ran.append("taken")
    raise ValueError


class AsOnLambda(logging.Handler):
    """A handler like awslambdaric's, which raises an error for characters that cannot be encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        line.encode("utf-8")
        self.lines.append(line)


@pytest.fixture(autouse=True)
def log() -> Iterator[AsOnLambda]:
    lambdas = AsOnLambda()
    logger = logging.getLogger("lambda_tasks")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(lambdas)
    yield lambdas
    logger.removeHandler(lambdas)
    logger.setLevel(level)
    assert max(map(len, lambdas.lines), default=0) < LONGEST_LINE


@pytest.fixture(autouse=True)
def canary_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create modules that can be imported, and that no message may cause to be imported."""
    (tmp_path / "canary_module.py").write_text("def task(**kwargs): raise AssertionError\n")
    package = tmp_path / "canary_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "tasks.py").write_text("def task(**kwargs): raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path)


def backend() -> MemoryBackend:
    chosen = get_backend()
    assert isinstance(chosen, MemoryBackend)
    return chosen


def record_of(task: Any, **arguments: Any) -> dict[str, Any]:
    task.execute_on_commit(**arguments)
    # As Lambda reads it: plain JSON.
    record: dict[str, Any] = json.loads(json.dumps(event_record(backend().take()[-1])))
    return record


def as_foreign(body: str) -> dict[str, Any]:
    """Return a record of a message from another program."""
    return record_of(note, name="replaced") | {"body": body, "messageAttributes": {}}


def fuzzing(examples: int) -> Any:
    """Return the options for hypothesis. The quick run tries a third of the examples."""
    if django_settings.QUICK:
        examples = max(10, examples // 3)
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


# Checks for every answer


def answer_to(bad: Any, *, using: str = "default", context: Any = None) -> bool:
    """Deliver `bad` between two good tasks, check everything, and return whether it has run."""
    ran.clear()
    TaskRecord.objects.using(using).all().delete()
    neighbours = [record_of(note, name=GOOD), record_of(note, name=GOOD)]
    before = set(sys.modules)

    answer = answered({"Records": [neighbours[0], bad, neighbours[1]]}, context)

    assert not outsiders(set(sys.modules) - before)
    if answer is None:
        assert ran == []
        assert not TaskRecord.objects.using(using).exists()
        return False
    assert ran.count(GOOD) == 2
    assert not {neighbour["messageId"] for neighbour in neighbours} & set(answer)
    was_run = bad["messageId"] not in answer
    names = sorted(TaskRecord.objects.using(using).values_list("task_name", flat=True))
    tasks = {note.name, take.name, never_again.name}
    assert len(names) == 2 + was_run
    assert set(names) <= tasks
    assert len(ran) == 2 + was_run
    return was_run


def answered(event: Any, context: Any = None) -> list[str] | None:
    """Return the ids that stay on the queue, or None if the event is rejected because an id is unusable."""
    try:
        response = handler(event, context)
    except InvalidEvent:
        assert not has_usable_ids(event)
        return None
    assert has_usable_ids(event)
    json.dumps(response)
    assert list(response) == ["batchItemFailures"]
    failures = response["batchItemFailures"]
    assert all(list(failure) == ["itemIdentifier"] for failure in failures)
    ids = [failure["itemIdentifier"] for failure in failures]
    assert len(ids) == len(set(ids))
    assert set(ids) <= {record["messageId"] for record in event["Records"]}
    return ids


def has_usable_ids(event: Any) -> bool:
    records = event.get("Records") if isinstance(event, dict) else None
    return isinstance(records, list) and all(
        isinstance(record, dict) and isinstance(record.get("messageId"), str) and record["messageId"]
        for record in records
    )


def outsiders(modules: set[str]) -> set[str]:
    """Return the canaries in `modules` that do not belong to Django, the tests or an installed app."""
    allowed = {config.name.partition(".")[0] for config in apps.get_app_configs()}
    return {name for name in modules if name.partition(".")[0] not in allowed and name.partition(".")[0] in NAMED}


# Values


ODD_TEXT: Final = st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "a\x00b",
        "\ud800",
        "\udfff\ud800",
        "\uffff",
        "\ufeff",
        "\u202eabc",
        "\u2028",
        "\U0010ffff",
        "🙂" * 50,
        "%s %d %(x)s {0} {x!r}",
        "\x1b[31m\r\n",
        "9" * 5000,
        "null",
        "x" * 2**20,
    ]
)
TEXT: Final = ODD_TEXT | st.text() | st.binary(max_size=20).map(lambda raw: raw.decode("latin-1"))
NUMBERS: Final = (
    st.sampled_from([0, -1, 2**31 - 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, 5e-324, -0.0])
    | st.integers()
    | st.floats()
)
SCALARS: Final = st.none() | st.booleans() | NUMBERS | TEXT
JSON: Final = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)

NAMED: Final = ("canary_module", "canary_package", "antigravity", "this", "turtle", "idlelib", "lib2to3", "nntplib")
PARTS: Final = st.sampled_from(
    [
        *NAMED,
        *("tasks", "task", "run", "os", "system", "builtins", "eval", "__import__", "__main__", "__init__", "sys"),
        *("tests", "app", "faults", "test_bad_input", "note", "take", "lambda_tasks", "handler", "django", "contrib"),
        *(
            "note.__wrapped__",
            "function",
            "",
            " ",
            "..",
            "/etc/passwd",
            "ü",
            "n\u0303ote",
            "\uff4e\uff4f\uff54\uff45",
            "x" * 300,
            "🙂",
            "\x1b",
        ),
    ]
)
TASK_NAMES: Final = (
    st.lists(PARTS, max_size=6).map(".".join)
    | st.lists(st.text(max_size=8), max_size=4).map(".".join)
    | st.sampled_from(["canary_module.task", "canary_package.tasks.task", "tests." + "a." * 120 + "task"])
)


def body_with(**changes: Any) -> str:
    return json.dumps({"task_name": take.name, "kwargs": {"value": 1}} | changes)


# Whole events


@fuzzing(50)
@given(event=JSON | st.fixed_dictionaries({"Records": JSON | st.lists(st.dictionaries(TEXT, JSON, max_size=3))}))
@example(event={"Records": [{"messageId": "\ud800", "body": "{}"}]})
@example(event={"x" * 2**20: 1, **{f"field {i}": 1 for i in range(1000)}})
def test_any_event_is_answered_or_refused(event: Any) -> None:
    ran.clear()
    answered(event)
    assert ran == []
    assert not TaskRecord.objects.exists()


@fuzzing(25)
@given(message_id=TEXT.filter(bool), body=TEXT)
def test_any_message_id_is_returned_unchanged(message_id: str, body: str) -> None:
    assert not answer_to(as_foreign(body) | {"messageId": message_id})
    # The record has SQS's own id, or an id derived from it, if the producer gave none.
    assert answer_to(as_foreign(body_with()) | {"messageId": message_id})


@pytest.mark.parametrize("event", [None, [], "text", 5, b"bytes", [{"messageId": "1"}]], ids=repr)
def test_invalid_event_is_refused(event: Any) -> None:
    with pytest.raises(InvalidEvent, match="with Records"):
        handler(event, None)


# Single records


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in a JSON tree."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def changed(tree: Any, path: tuple[Any, ...], change: tuple[str, Any]) -> Any:
    """Return `tree` with one change at `path`."""
    tree = json.loads(json.dumps(tree))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    kind, value = change
    if kind == "replace":
        parent[path[-1]] = value
    elif kind == "delete":
        del parent[path[-1]]
    elif kind == "wrap":
        parent[path[-1]] = [parent[path[-1]]]
    elif isinstance(parent, dict):
        parent[value] = parent[path[-1]]
    else:
        parent.append(value)
    return tree


CHANGES: Final = (
    st.tuples(st.just("replace"), JSON)
    | st.sampled_from([("delete", None), ("wrap", None)])
    | st.tuples(st.just("add"), TEXT)
)


@fuzzing(60)
@given(data=st.data())
def test_invalid_record_does_not_affect_its_neighbours(data: st.DataObject) -> None:
    record = record_of(take, value={"a": [1, "b"]})
    record["messageAttributes"]["traceparent"] = {"stringValue": "00-1", "dataType": "String"}
    path = data.draw(st.sampled_from(list(places(record))))
    answer_to(changed(record, path, data.draw(CHANGES)))


@fuzzing(60)
@given(data=st.data(), escaped=st.booleans())
def test_invalid_body_does_not_affect_its_neighbours(data: st.DataObject, escaped: bool) -> None:
    body = {"task_name": take.name, "kwargs": {"value": {"a": [1, "b"], "c": None}}, "n_retries": 1}
    path = data.draw(st.sampled_from(list(places(body))))
    text = json.dumps(changed(body, path, data.draw(CHANGES)), ensure_ascii=escaped)
    answer_to(as_foreign(text))


@pytest.mark.parametrize(
    "count",
    ["²", "٣", "-1", "0", "", "1e3", "0x10", " 7 ", "9" * 5000, "9" * 15, "NaN", 5, -5, 1e400, None, True, [], {}],
)
def test_any_receive_count_is_accepted(count: Any) -> None:
    record = record_of(take, value=1)
    assert answer_to(record | {"attributes": {"ApproximateReceiveCount": count, "SentTimestamp": count}})
    assert not answer_to(record | {"attributes": {"ApproximateReceiveCount": count}, "body": "{"})


ATTRIBUTES: Final = ("message_id", "root_id", "queue", "first_sent", "scheduled_for")


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize(
    "attribute",
    [
        None,
        "text",
        [],
        {},
        {"stringValue": None},
        {"stringValue": ""},
        {"stringValue": 5},
        {"stringValue": "x" * 100_000, "dataType": "String"},
        {"stringValue": "9" * 5000, "dataType": "Number"},
        {"stringValue": "-9" * 7, "dataType": "Number.int"},
        {"stringValue": "\x00\uffff"},
        {"binaryValue": "AAAA", "dataType": "Binary"},
        {"stringListValues": ["a"], "binaryListValues": ["b"]},
    ],
    ids=lambda attribute: repr(attribute)[:40],
)
def test_malformed_library_attribute_does_not_prevent_the_run(name: str, attribute: Any) -> None:
    record = record_of(take, value=1)
    record["messageAttributes"][f"lambda_tasks.{name}"] = attribute
    assert answer_to(record)


# Bodies


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + "1" + closing * levels


@fuzzing(50)
@given(body=TEXT | st.integers(0, 60).flatmap(lambda cut: st.just(body_with()[:cut])))
@example(body="\ufeff" + '{"task_name": "tests.faults.test_bad_input.take", "kwargs": {"value": 1}}')
@example(body="[" * 2**20)
@example(body='{"a":' * 2**17)
@example(body='"' + "\\" * 2**20)
@example(body='{"task_name": ' + "1" * 2**20)
def test_malformed_body_stays_on_the_queue(body: str) -> None:
    assert not answer_to(as_foreign(body))


@pytest.mark.parametrize(
    "value",
    [
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "-Infinity",
        '"\\u0000"',
        '{"\\u0000": 1}',
        '"\\ud800"',
        '["\\udc00\\ud800"]',
        '{"\\ud800": 1}',
        "9" * 5000,
        "01",
        "0x1",
        "1_000",
        "[1,]",
        "{1: 2}",
        "'text'",
        "undefined",
        '"tab\tin a text"',
        "/* comment */ 1",
        nested(MAX_DEPTH),
        nested(199),
        nested(10_000),
        nested(10_000, '{"a":', "}"),
        nested(100_000),
    ],
    ids=lambda value: value[:20],
)
def test_unstorable_value_stays_on_the_queue(value: str) -> None:
    body = f'{{"task_name": "{take.name}", "kwargs": {{"value": {value}}}}}'
    assert not answer_to(as_foreign(body))


STORABLE: Final = {
    "noncharacters": '"\uffff\\uffff\ufffe"',
    "a character in two escapes": '"\\ud83d\\ude42"',
    "a mark at the beginning": '"\ufeff"',
    "half of the digits that python reads": "9" * 2000,
    "the smallest fraction": "[5e-324, -0.0]",
    "the deepest": nested(MAX_DEPTH - 1),
    "the deepest object": nested(MAX_DEPTH - 1, '{"a":', "}"),
    "a key twice": '{"a": 1, "a": 2}',
    "an empty key": '{"": 1}',
    "a long key": json.dumps({"k" * 100_000: 1}),
    "a text of a mebibyte": json.dumps("x" * 2**20),
    "many texts": json.dumps(["ü%s'\"\\"] * 20_000),
    "text that looks like an escape": '"\\\\u0000"',
    "control characters": '"\\u0001\\u001f\\u007f\\u2028"',
}


@pytest.mark.databases(transaction=True)
@pytest.mark.parametrize("name", STORABLE)
def test_accepted_values_are_stored_by_every_database(name: str, database: str, settings: Any) -> None:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    body = f'{{"task_name": "{take.name}", "kwargs": {{"value": {STORABLE[name]}}}}}'
    assert answer_to(as_foreign(body), using=database)
    kept = TaskRecord.objects.using(database).get(task_name=take.name).kwargs
    assert kept == json.loads(body)["kwargs"]


@pytest.mark.databases(transaction=True)
@pytest.mark.parametrize("levels", [MAX_DEPTH, 32, 40, 100, 190])
def test_too_deep_nesting_is_refused_on_every_database(levels: int, database: str, settings: Any) -> None:
    settings.LAMBDA_TASKS_STORE = {"BACKEND": "lambda_tasks.stores.orm.ORMStore", "OPTIONS": {"database": database}}
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        body = f'{{"task_name": "{take.name}", "kwargs": {{"value": {nested(levels, opening, closing)}}}}}'
        assert not answer_to(as_foreign(body), using=database)


@fuzzing(30)
@given(levels=st.integers(1, 10_000), opening=st.sampled_from(["[", '{"a":', '[1,{"":']))
def test_body_of_any_depth_is_run_or_kept(levels: int, opening: str) -> None:
    closing = {"[": "]", '{"a":': "}"}.get(opening, "}]")
    body = f'{{"task_name": "{take.name}", "kwargs": {{"value": {nested(levels, opening, closing)}}}}}'
    assert answer_to(as_foreign(body)) == (levels * len(closing) < MAX_DEPTH)


@fuzzing(30)
@given(value=JSON)
def test_arguments_of_any_shape_are_run_or_kept(value: Any) -> None:
    answer_to(as_foreign(body_with(kwargs={"value": value})))
    assert not answer_to(as_foreign(body_with(kwargs=value if value != {"value": 1} else None)))


@pytest.mark.parametrize(
    "n_retries",
    ["-1", "1.0", "1.5", "1e3", '"1"', "true", "false", "null", "[]", "{}", "2147483648", "9" * 400, "1e400", "NaN"],
)
def test_invalid_number_of_retries_stays_on_the_queue(n_retries: str) -> None:
    body = f'{{"task_name": "{take.name}", "kwargs": {{"value": 1}}, "n_retries": {n_retries}}}'
    assert not answer_to(as_foreign(body))


@pytest.mark.parametrize("n_retries", [0, 1, 40_000, 2**31 - 1])
def test_large_number_of_retries_runs_without_another_retry(n_retries: int) -> None:
    assert answer_to(as_foreign(body_with(n_retries=n_retries, task_name=never_again.name)))
    record = TaskRecord.objects.get(task_name=never_again.name)
    assert (record.n_retries, record.status) == (n_retries, "FAILED")
    assert backend().jobs == []


# Names in messages


@fuzzing(60)
@given(name=TASK_NAMES, more=st.sampled_from([{}, {"n_retries": 3}, {"unknown": 1}]))
@example(name="antigravity.webbrowser.open", more={})
@example(name="canary_module.task", more={})
@example(name="tests.canary_module.task", more={})
@example(name="x" * 2**20, more={})
@example(name="tests.\ud800.task", more={})
def test_unknown_task_name_is_kept_and_imports_nothing(name: str, more: dict[str, Any]) -> None:
    if name in (note.name, take.name, never_again.name):
        return
    assert not answer_to(as_foreign(body_with(task_name=name, **more)))
    assert not [module for module in NAMED if module in sys.modules]


@pytest.mark.parametrize("levels", [1, 60, 120])
def test_name_of_many_parts_is_unknown(levels: int) -> None:
    assert not answer_to(as_foreign(body_with(task_name=f"tests.{'a.' * levels}task")))


# Messages from other versions


@pytest.mark.parametrize("unknown", ["message_id", "queue", "attempt", "KWARGS", "", "x" * 100_000, "\u202e"])
def test_unknown_field_makes_a_message_malformed(unknown: str, log: AsOnLambda) -> None:
    assert not answer_to(as_foreign(body_with(**{unknown: "value"})))
    [line] = [line for line in log.lines if "stays on the queue" in line]
    assert "body: has unknown fields: " in line
    assert len(line) < LONGEST_LINE


def test_body_with_many_errors_logs_one_short_line(log: AsOnLambda) -> None:
    body = {"task_name": note.name, "kwargs": {}} | {f"field {i}": 1 for i in range(100_000)}
    assert not answer_to(as_foreign(json.dumps(body)))
    [line] = [line for line in log.lines if "stays on the queue" in line]
    assert "and 99995 more" in line
    assert len(line) < LONGEST_LINE


@pytest.mark.parametrize("missing", [("messageAttributes",), ("attributes",), ("messageAttributes", "attributes")])
def test_message_without_metadata_runs_under_its_sqs_id(missing: tuple[str, ...]) -> None:
    record = record_of(take, value=1)
    for name in missing:
        del record[name]
    assert answer_to(record)
    assert str(TaskRecord.objects.get(task_name=take.name).pk) == record["messageId"]


def test_attributes_of_a_newer_version_are_ignored() -> None:
    record = record_of(take, value=1)
    text = {"stringValue": "1", "stringListValues": [], "binaryListValues": [], "dataType": "String"}
    record["messageAttributes"] |= {"lambda_tasks.schema": text, "lambda_tasks.priority": text | {"dataType": "Number"}}
    record["attributes"] |= {"DeadLetterQueueSourceArn": "arn", "AWSTraceHeader": "Root=1", "MessageGroupId": "a"}
    record |= {"tenantId": "a", "schemaVersion": 2}
    assert answer_to(record)
    assert str(TaskRecord.objects.get(task_name=take.name).pk) == record["messageId"]


def test_event_may_contain_other_keys_than_records() -> None:
    record = record_of(take, value=1)
    assert answered({"Records": [record], "requestContext": {"a": None}, "": 1, "\ud800": []}) == []
    assert ran[-1] == "taken"


# The context


class Context:
    """A replacement for Lambda's context without a usable clock."""

    def __init__(self, time_left: Any) -> None:
        self.time_left = time_left

    def get_remaining_time_in_millis(self) -> Any:
        if isinstance(self.time_left, BaseException):
            raise self.time_left
        return self.time_left


@pytest.mark.parametrize(
    "time_left",
    [
        *(None, float("nan"), float("inf"), 10**400, "", "soon", [], {}, object(), Decimal("NaN"), 1j),
        *(ValueError("no clock"), RecursionError(), 2**63, 1e300, Decimal(600_000)),
    ],
    ids=lambda value: repr(value)[:15],  # without the address of an object
)
def test_context_with_an_odd_clock_runs_tasks(time_left: Any) -> None:
    assert answer_to(record_of(take, value=1), context=Context(time_left))


@pytest.mark.parametrize("time_left", [0, -1, -(10**300), True, -1e300])
def test_context_without_time_left_runs_one_task(time_left: Any) -> None:
    """The other messages are handed back."""
    ran.clear()
    first, second = record_of(note, name=GOOD), record_of(note, name="late")
    assert answered({"Records": [first, second]}, Context(time_left)) == [second["messageId"]]
    # The task has a tenth of a second, which may be too short, so only check that it was started.
    assert str(TaskRecord.objects.get().pk) == first["messageId"]
    assert "late" not in ran


@pytest.mark.parametrize(
    "context", [object(), 5, "text", {}, type("Context", (), {"get_remaining_time_in_millis": 5})()]
)
def test_invalid_context_is_ignored(context: Any) -> None:
    assert answer_to(record_of(take, value=1), context=context)


def test_unencodable_log_line_is_escaped(log: AsOnLambda) -> None:
    """An id with a lone surrogate would raise in Lambda's own handler, and the whole batch would fail."""
    assert not answer_to(as_foreign("{") | {"messageId": "id \ud800"})
    assert [line for line in log.lines if r"Message id \ud800 stays on the queue" in line and "InvalidMessage" in line]


def test_task_with_an_unencodable_error_fails(log: AsOnLambda) -> None:
    @lambda_task
    def fail() -> None:
        raise ValueError("\ud800 of a character")

    assert answered({"Records": [record_of(fail)]}) == []
    assert TaskRecord.objects.get().status == "FAILED"
    assert [line for line in log.lines if r"ValueError: \ud800 of a character" in line]
