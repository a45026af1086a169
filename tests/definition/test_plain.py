"""The readers without pydantic return the same values as pydantic, and accept nothing that pydantic refuses."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional, Union

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from lambda_tasks.definition.arguments import PlainArguments
from lambda_tasks.definition.signatures import TaskSignature
from lambda_tasks.exceptions import InvalidMessage
from lambda_tasks.messages import SQSLambdaTaskMessage
from lambda_tasks.recording.storable import MAX_DEPTH
from lambda_tasks.wire.invocation import Invocation

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
#: Bodies that are valid or almost valid messages.
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "task_name": st.sampled_from(["shop.tasks.send", "a.b", "send", "a..b", "ä.b", "a.b\n", "a. b", 7, None])
        | st.text(),
        "kwargs": st.dictionaries(st.text(), VALUES) | VALUES,
        "n_retries": st.integers() | st.sampled_from([0, 1, 2**31 - 1, 2**31, 1.0, True, "1", None]),
        "extra": VALUES,
    },
)


def same(left: Any, right: Any) -> bool:
    """Compare as JSON: 1 differs from 1.0, and True from 1."""
    return json.dumps(left) == json.dumps(right)


def assert_read_as_with_pydantic(body: str) -> None:
    """Check that the documented schema and the reader accept the same bodies, with the same content."""
    try:
        message = SQSLambdaTaskMessage.model_validate_json(body)
    except ValidationError:
        with pytest.raises(InvalidMessage, match="not a valid task invocation"):
            Invocation.of_body(body)
        return
    read = Invocation.of_body(body)
    assert same([read.task_name, read.kwargs, read.n_retries], [*message.__dict__.values()])
    assert read.problem() is None
    assert Invocation.of_body(read.to_body()) == read
    # The strings may differ: 1e+22 equals 1e22.
    assert same(json.loads(read.next_retry().to_body()), json.loads(message.next_retry().to_body()))


@given(NEARLY, st.booleans())
def test_plain_reader_agrees_with_pydantic_on_bodies(content: dict[str, Any], ascii_only: bool) -> None:
    assert_read_as_with_pydantic(json.dumps(content, ensure_ascii=ascii_only))


@given(st.text())
@example('{"task_name": "a.b", "task_name": "a.c"}')
@example('{"task_name": "a.b", "kwargs": {"x": 1, "x": 2}, "kwargs": {"y": 1, "y": {"z": 1, "z": 2}}}')
@example('{"task_name": "a.b", "kwargs": {"x": -0, "y": 1E5, "z": 1e-400, "w": 123456789012345678901234567890}}')
@example('{"task_name": "a.b", "kwargs": {"x": 0.1000000000000000055511151231257827, "y": 9007199254740993.0}}')
@example('{"task_name": "a.b", "n_retries": -0}')
@example('\t\r\n {"task_name": "a.b"} ')
@example('\ufeff{"task_name": "a.b"}')
@example('{"task_name": "a.b", "kwargs": {"x": "\\u00fc\\/\\b"}}')
@example('{"task_name": "a.b", "kwargs": {"x": "\\\\u0000"}}')
@example('{"task_name": "a.b", "kwargs": {"x": "\x7f\x85\u2028"}}')
def test_plain_reader_agrees_with_pydantic_on_any_string(body: str) -> None:
    assert_read_as_with_pydantic(body)


@pytest.mark.parametrize(
    "kwargs",
    [
        '{"x": NaN}',
        '{"x": -Infinity}',
        '{"x": 1e999}',
        r'{"x": "\u0000"}',
        r'{"x": ["\ud800"]}',
        r'{"\uDC00": 1}',
        '{"x": "\ud800"}',
        '{"x": "\x00"}',
        '{"x": "\n"}',
        '{"x": ' + "9" * 5000 + "}",
        '{"x": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}",
        '{"x": ' + "[" * 900 + "]" * 900 + "}",
        '{"x": ' + "[" * 100_000,
        "[]",
        "null",
    ],
    ids=lambda text: text[:20].encode("ascii", "backslashreplace").decode(),
)
def test_unstorable_arguments_are_refused(kwargs: str) -> None:
    with pytest.raises(InvalidMessage, match=r"^The message is not a valid task invocation: (kwargs|body): ") as caught:
        Invocation.of_body(f'{{"task_name": "a.b", "kwargs": {kwargs}}}')
    assert caught.value.__cause__ is caught.value.__context__ is None


@pytest.mark.parametrize("x", [0, -1, 2.5, True, None, "", "Grüße", [1, [2]], {"y": {"z": None}}])
@pytest.mark.parametrize("n_retries", [0, 3])
def test_usual_messages_are_read_without_pydantic(x: Any, n_retries: int) -> None:
    body = SQSLambdaTaskMessage(task_name="shop.tasks.send", kwargs={"x": x}, n_retries=n_retries).to_body()
    plain = Invocation.of_body(body)
    assert (plain.task_name, plain.n_retries) == ("shop.tasks.send", n_retries)
    assert same(plain.kwargs, {"x": x})


def test_repr_of_an_invocation_shows_no_arguments() -> None:
    assert "secret" not in repr(Invocation("a.b", {"password": "secret"}))


PLAIN = [
    int,
    str,
    bool,
    float,
    None,
    int | None,
    Optional[str],  # noqa: UP045, as tasks may have it
    Union[int, str, None],  # noqa: UP007
    float | int,
    list[int],
    list[float],
    list[int] | list[float],
    list[int | float | None],
    dict[str, int],
    dict[str, list[str | None]],
    dict[str, dict[str, bool]] | None,
    Any,
    list[Any],
    dict[str, Any] | None,
]
NOT_PLAIN = [list, dict, dict[int, str], tuple[int, ...], set[int], Annotated[int, Field(gt=0)], bytes]


def signature_of(annotation: Any) -> TaskSignature:
    def task(*, x: Any, y: int = 0) -> None: ...

    task.__annotations__["x"] = annotation
    return TaskSignature(task)


def plain_reader(annotation: Any) -> PlainArguments | None:
    return PlainArguments.of({"x": annotation, "y": int}, required=frozenset({"x"}))


def decoded_by_pydantic(annotation: Any, value: Any) -> dict[str, Any]:
    signature = signature_of(annotation)
    signature.__dict__["_plain"] = None  # disables the plain reader
    return signature.decode({"x": value})


@pytest.mark.parametrize("annotation", PLAIN, ids=str)
@settings(max_examples=40)
@given(given_value=VALUES)
@example(given_value=1)
@example(given_value=True)
@example(given_value=1.0)
@example(given_value=[])
@example(given_value=[1, 2.0])
@example(given_value=[True])
@example(given_value={"x": 1})
@example(given_value={"x": {"y": True}})
def test_plain_reader_agrees_with_pydantic_on_arguments(annotation: Any, given_value: Any) -> None:
    reader = plain_reader(annotation)
    assert reader is not None
    read = reader.read({"x": given_value})
    if read is not None:
        assert same(read, decoded_by_pydantic(annotation, given_value))


@pytest.mark.parametrize("annotation", NOT_PLAIN, ids=str)
def test_other_annotations_are_left_to_pydantic(annotation: Any) -> None:
    assert plain_reader(annotation) is None


@pytest.mark.parametrize("encoded", [{}, {"y": 1}, {"x": 1, "z": 1}, {"x": "1"}, {"x": 1, "y": None}])
def test_invalid_arguments_are_left_to_pydantic(encoded: dict[str, Any]) -> None:
    """Pydantic reports the errors."""
    reader = plain_reader(int)
    assert reader is not None
    assert reader.read(encoded) is None
    with pytest.raises(InvalidMessage):
        signature_of(int).decode(encoded)


@pytest.mark.parametrize("annotation", [dict[str, list[int]], Any], ids=str)
def test_task_cannot_change_the_message_through_its_arguments(annotation: Any) -> None:
    reader = plain_reader(annotation)
    assert reader is not None
    encoded = {"x": {"numbers": [1]}}
    read = reader.read(encoded)
    assert read is not None
    read["x"]["numbers"].append(2)
    read["x"]["more"] = []
    assert encoded == {"x": {"numbers": [1]}}
