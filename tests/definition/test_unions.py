"""Arguments in unions: acceptance depends on types, and a value arrives as a member of the union with the same JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field, create_model
from pydantic_core import SchemaValidator
from typing_extensions import TypedDict

from lambda_tasks.definition import schemas
from lambda_tasks.definition.signatures import TaskSignature
from lambda_tasks.exceptions import InvalidArguments

UTC = timezone.utc


class Colour(Enum):
    RED = "red"
    NEW_YEAR = "2025-01-01"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=10)
UUIDS = st.uuids()
DATES = st.dates()
MOMENTS = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=2))]) | st.none())
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False)
# fmt: off
STRINGS = [
    "2025-01-01", "1735689600", "2025-01-01T00:00:00Z", "2025-01-01T00:00:00", "12:00", "P1D", "PT0S",
    "1 day", "red", "1", "01", "1.0", "1e2", "true", "null", "None", "", " ", "abcd", "TWFu",
    "1.2.3.4", "a//b", "a/./b", "NaN", "Infinity", "-0", "+1", "\uff11", "\ufeff1", "1_000",
]
# fmt: on
#: Strings that pydantic reads as another type, in that type's own form or in another one.
LOOKALIKES = (
    st.one_of(UUIDS.map(str), UUIDS.map(lambda key: key.hex), UUIDS.map(lambda key: str(key).upper()))
    | UUIDS.map(lambda key: f"{{{key}}}")
    | st.one_of(DATES.map(str), MOMENTS.map(str), MOMENTS.map(datetime.isoformat), st.times().map(str))
    | st.one_of(st.integers().map(str), DECIMALS.map(str), st.floats().map(str))
    | st.sampled_from(STRINGS)
)
MEMBERS: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT | LOOKALIKES,
    UUID: UUIDS,
    date: DATES,
    datetime: MOMENTS,
    time: st.times(),
    timedelta: st.timedeltas(),
    Decimal: DECIMALS,
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    None: st.none(),
    Colour: st.sampled_from(Colour),
    Level: st.sampled_from(Level),
    PurePosixPath: st.sampled_from([PurePosixPath("a"), PurePosixPath("/a/b"), PurePosixPath("2025-01-01")]),
    IPv4Address: st.ip_addresses(v=4),
    bytes: st.binary(max_size=6),
    Literal["2025-01-01", "x"]: st.sampled_from(["2025-01-01", "x"]),
    list[int]: st.lists(st.integers(), max_size=2),
}

unions = st.lists(st.sampled_from(list(MEMBERS)), min_size=2, max_size=4, unique=True)


def signature_of(annotation: Any) -> TaskSignature:
    def task(*, x: Any) -> None: ...

    task.__annotations__["x"] = annotation
    return TaskSignature(task)


def sent_and_read(annotation: Any, value: Any) -> Any:
    """Return what a worker reads from the JSON of `value`."""
    signature = signature_of(annotation)
    encoded = signature.encode({"x": value})
    return signature.decode(json.loads(json.dumps(encoded)))["x"]


def written(annotation: Any, value: Any) -> Any:
    return signature_of(annotation).encode({"x": value})["x"]


def holders(annotation: Any, value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield types that contain `annotation`, each with a function that wraps a value and one that unwraps it."""
    yield annotation, lambda value: value, lambda held: held
    yield annotation | None, lambda value: value, lambda held: held
    yield list[annotation], lambda value: [value], lambda held: held[0]
    yield tuple[annotation, ...], lambda value: (value,), lambda held: held[0]
    yield dict[str, annotation], lambda value: {"k": value}, lambda held: held["k"]
    yield dict[str, list[annotation | None]], lambda value: {"k": [None, value]}, lambda held: held["k"][1]
    made = make_dataclass("Made", [("value", annotation)])
    yield made, made, lambda held: held.value
    typed: Any = TypedDict("typed", {"value": annotation})  # type: ignore[misc]
    yield list[typed], lambda value: [{"value": value}], lambda held: held[0]["value"]
    # A model writes bytes in UTF-8 unless its own configuration says otherwise.
    if schemas.inside_models(SchemaValidator) and not isinstance(value, bytes):
        model = create_model("Model", value=(annotation, ...))
        yield model, lambda value: model.model_construct(value=value), lambda held: held.value


def check(annotation: Any, value: Any) -> None:
    for holder, wrap, unwrap in holders(annotation, value):
        sent = wrap(value)
        arrived = unwrap(sent_and_read(holder, sent))
        if type(arrived) is type(value) and arrived == value:
            continue
        # Another member: with the same JSON.
        assert type(arrived) is not type(value), (holder, value, arrived)
        assert json.dumps(written(holder, wrap(arrived))) == json.dumps(written(holder, sent))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(members=unions, data=st.data())
def test_acceptance_depends_on_the_type(members: list[Any], data: st.DataObject) -> None:
    member = data.draw(st.sampled_from(members))
    value = data.draw(MEMBERS[member])
    annotation = Union[tuple(members)]  # noqa: UP007
    if member is bytes and str in members:  # almost any word is also the base64 form of some bytes
        with pytest.raises(InvalidArguments, match="instead of bytes"):
            sent_and_read(annotation, value)
        return
    check(annotation, value)


@settings(max_examples=100, deadline=None)
@given(other=st.sampled_from([member for member in MEMBERS if member is not str]), text=LOOKALIKES | TEXT)
@example(other=date, text="1735689600")
def test_string_is_always_accepted(other: Any, text: str) -> None:
    for annotation in (Union[str, other], Union[other, str]):  # noqa: UP007
        arrived = sent_and_read(annotation, text)
        if not isinstance(arrived, str):
            assert written(annotation, arrived) == text


@pytest.mark.parametrize("member", [UUID, date, datetime, time, timedelta, Decimal, Colour, PurePosixPath, IPv4Address])
def test_value_of_another_type_arrives_as_itself(member: Any) -> None:
    @settings(max_examples=20, deadline=None)
    @given(value=MEMBERS[member])
    def examine(value: Any) -> None:
        for annotation in (Union[str, member], Union[member, str]):  # noqa: UP007
            arrived = sent_and_read(annotation, value)
            assert (type(arrived), arrived) == (type(value), value)

    examine()


@pytest.mark.parametrize(
    ("annotation", "text", "arrives"),
    [
        (str | UUID, "6f2d1c1e-9d0e-4e0b-8a53-0d4c8c8b6a11", UUID("6f2d1c1e-9d0e-4e0b-8a53-0d4c8c8b6a11")),
        (str | UUID, "6F2D1C1E-9D0E-4E0B-8A53-0D4C8C8B6A11", "6F2D1C1E-9D0E-4E0B-8A53-0D4C8C8B6A11"),
        (str | UUID, "slug", "slug"),
        (date | str, "2025-01-01", date(2025, 1, 1)),
        (date | str, "1735689600", "1735689600"),
        (bytes | str, "abcd", "abcd"),
        (str | int | None, "5", "5"),
        (str | int | None, 5, 5),
        (Decimal | UUID, Decimal(12345678901234567890123456789012), Decimal(12345678901234567890123456789012)),
        (int | Level, 1, Level.LOW),
        (int | Level, 3, 3),
        (dict[int | str, float], {5: 1.0, "x": 2, "05": 3.0}, {5: 1.0, "x": 2, "05": 3.0}),
        (dict[str | UUID, int], {"slug": 1}, {"slug": 1}),
        (set[str | date], {"2025-01-01"}, {date(2025, 1, 1)}),
        (Annotated[str, AfterValidator(str.strip)] | date, "2025-01-01", date(2025, 1, 1)),
        (Annotated[Union[str, date], Field(description="either")], "1735689600", "1735689600"),  # noqa: UP007
    ],
    ids=repr,
)
def test_string_arrives_as_the_member_that_writes_it(annotation: Any, text: Any, arrives: Any) -> None:
    arrived = sent_and_read(annotation, text)
    assert (type(arrived), arrived) == (type(arrives), arrives)


def test_other_forms_are_read_without_str() -> None:
    """Without a string in the union, there is only one way to read them."""
    key = "6F2D1C1E-9D0E-4E0B-8A53-0D4C8C8B6A11"
    assert signature_of(UUID | Decimal).decode({"x": key})["x"] == UUID(key)
    assert signature_of(datetime | date).decode({"x": "2025-01-01T00:00:00+00:00"})["x"] == datetime(
        2025, 1, 1, tzinfo=UTC
    )


@dataclass
class Undeclared:
    moment: date | UUID
    price: Decimal = Decimal(1)


@pytest.mark.parametrize("value", [Undeclared("2025-01-01"), Undeclared(date(2025, 1, 1), "1.00")])  # type: ignore[arg-type]
def test_value_outside_of_its_union_is_refused(value: Undeclared) -> None:
    with pytest.raises(InvalidArguments, match=r"would arrive as (date|Decimal) instead of str"):
        sent_and_read(Undeclared, value)


def test_recursive_types_may_contain_unions() -> None:
    tree = Branch(key="1735689600", branches=[Branch(key=date(2025, 1, 1)), Branch(key="x")])
    assert sent_and_read(Branch, tree) == tree
    assert sent_and_read(Branch | str, "2025-01-01") == "2025-01-01"
    assert sent_and_read(set[str | date], {"2025-01-01", "x"}) == {date(2025, 1, 1), "x"}


@dataclass
class Branch:
    key: str | date
    branches: list[Branch] = field(default_factory=list)


class Trunk(BaseModel):
    ratio: float
    default: str | date = "1735689600"


def test_field_named_default_is_adapted() -> None:
    if schemas.inside_models(SchemaValidator):
        assert sent_and_read(Trunk, Trunk(ratio=1)) == Trunk(ratio=1)


def test_time_that_loses_its_zone_is_refused() -> None:
    with pytest.raises(InvalidArguments, match="would arrive with a different value"):
        sent_and_read(time | str, time(12, tzinfo=ZoneInfo("Europe/Berlin")))
