"""The arguments of a call: accepted values arrive equal and with the same type; all others are refused."""

from __future__ import annotations

import json
import math
import re
import zoneinfo
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Optional, Union
from uuid import UUID, uuid4

import pytest
from django.test import override_settings
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints
from typing_extensions import TypedDict

from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task
from lambda_tasks.exceptions import InvalidArguments, InvalidMessage
from lambda_tasks.messages import SQSLambdaTask, SQSLambdaTaskMessage
from lambda_tasks.models import TaskRecord
from lambda_tasks.recording.storable import MAX_DEPTH

if TYPE_CHECKING:
    from tests.app.models import Effect

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
UTC = timezone.utc


# Types that a project may have

#: A constant, so that tests with this id in their names have the same name in every process of a run.
SOME_ID = UUID("6f2d1c1e-9d0e-4e0b-8a53-0d4c8c8b6a11")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Priority(IntEnum):
    LOW = 1
    HIGH = 2


class Size(str, Enum):
    SMALL = "s"
    LARGE = "l"


class Permission(Flag):
    READ = 1
    WRITE = 2


class Rank(Enum):
    """Its values cannot be written as JSON."""

    FIRST = (1, 0)


class Point(NamedTuple):
    x: int
    y: float = 0.5


@dataclass
class Money:
    amount: Decimal
    currency: str = "EUR"


@dataclass(eq=False)
class Incomparable:
    number: int


@dataclass(frozen=True)
class Line:
    """Refers to a class that is defined below, and to itself."""

    price: Money
    product: Product
    parent: Line | None = None
    tags: frozenset[str] = frozenset()
    noticed: Any = field(default=None, compare=False)


class Product(BaseModel):
    key: UUID
    colours: set[Colour] = set()
    seen: dict[str, datetime] = {}
    weight: float | None = None


class Noted(BaseModel):
    text: str
    _note: str = PrivateAttr(default="")


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Address(TypedDict):
    city: str


@dataclass
class Blob:
    content: bytes


class Sealed(TypedDict):
    content: bytes


@dataclass
class Parcel:
    grams: int
    heavy: bool = field(init=False, default=False)
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.heavy = self.grams > 1000
        self.label = f"{self.grams} g"


class FrozenDatetime(datetime):
    """A subclass like those with which freezegun and time-machine replace datetime."""


# Strategies, and an oracle that is independent of the implementation: sendable values must arrive.

TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20) | st.sampled_from(
    ["\x00", "\ud800", "\udfff!", "\uffff\ufffe", "\\u0000", "\\\\u0000", "\\\x00", "\u2028", "😀", "NaN", '"', ""]
)
# The largest integers are built when hypothesis uses them, because it could not print them as part of a strategy.
HUGE = st.sampled_from([4299, 4300, 5000]).map(lambda digits: 10**digits)
INTEGERS = st.integers() | st.sampled_from([2**53 + 1, 2**64, -(2**200)]) | HUGE
FLOATS = st.floats() | st.sampled_from([0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1e22, float(2**63)])
ZONES = st.none() | st.timezones() | st.sampled_from([UTC, BERLIN, timezone(timedelta(hours=-23, minutes=-59))])
ZONES |= st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
MOMENTS = st.datetimes(timezones=ZONES, allow_imaginary=True)
DECIMALS = st.decimals() | st.sampled_from(
    [Decimal("1.00"), Decimal("-0"), Decimal("0E+10"), Decimal("1e999999"), Decimal("sNaN"), Decimal(10) ** 500]
)
MONEY = st.builds(Money, DECIMALS, TEXT)
PRODUCTS = st.builds(
    Product,
    key=st.uuids(),
    colours=st.sets(st.sampled_from(Colour)),
    seen=st.dictionaries(TEXT, MOMENTS, max_size=2),
    weight=st.none() | FLOATS,
)
LINES = st.recursive(
    st.none(),
    lambda parents: st.builds(Line, MONEY, PRODUCTS, parents, st.frozensets(TEXT, max_size=2), st.just(None)),
    max_leaves=3,
).filter(lambda line: line is not None)
POINTS = st.builds(Point, INTEGERS, FLOATS)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)

CASES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "bool": (bool, st.booleans()),
    "int": (int, INTEGERS),
    "float": (float, FLOATS),
    "str": (str, TEXT),
    "bytes": (bytes, st.binary(max_size=30)),
    "bytes in a dataclass": (Blob, st.builds(Blob, st.binary(max_size=9))),
    "bytes in a TypedDict": (list[Sealed], st.lists(st.fixed_dictionaries({"content": st.binary()}), max_size=2)),
    "dataclass with a computed field": (Parcel, st.builds(Parcel, st.integers(-9, 9999))),
    "None": (None, st.none()),
    "UUID": (UUID, st.uuids()),
    "datetime": (datetime, MOMENTS),
    "date": (date, st.dates()),
    "time": (time, st.times(timezones=ZONES)),
    "timedelta": (timedelta, st.timedeltas() | st.sampled_from([timedelta.max, timedelta.min, -timedelta.resolution])),
    "Decimal": (Decimal, DECIMALS),
    "Enum": (Colour, st.sampled_from(Colour)),
    "IntEnum": (Priority, st.sampled_from(Priority)),
    "text Enum": (Size, st.sampled_from(Size)),
    "Flag": (Permission, st.sampled_from([Permission.READ, Permission.WRITE])),
    "Literal": (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    "Optional": (Optional[datetime], st.none() | MOMENTS),  # noqa: UP045
    "Union": (Union[int, None], st.none() | INTEGERS),  # noqa: UP007
    "int or str": (int | str, INTEGERS | TEXT),
    "datetime or date": (datetime | date, MOMENTS | st.dates()),
    "Decimal or UUID": (Decimal | UUID, DECIMALS | st.uuids()),
    "list of int": (list[int], st.lists(INTEGERS, max_size=4)),
    "list of bool or int": (list[bool | int], st.lists(st.booleans() | st.integers(), max_size=4)),
    "tuple": (tuple[int, str], st.tuples(INTEGERS, TEXT)),
    "tuple of any length": (tuple[UUID, ...], st.lists(st.uuids(), max_size=3).map(tuple)),
    "set": (set[int], st.sets(INTEGERS, max_size=4)),
    "frozenset of Enum": (frozenset[Colour], st.frozensets(st.sampled_from(Colour))),
    "dict of float": (dict[str, float], st.dictionaries(TEXT, FLOATS, max_size=3)),
    "dict with int keys": (dict[int, str], st.dictionaries(st.integers(), TEXT, max_size=3)),
    "dict with UUID keys": (dict[UUID, list[date]], st.dictionaries(st.uuids(), st.lists(st.dates()), max_size=2)),
    "dict with Enum keys": (dict[Colour, timedelta], st.dictionaries(st.sampled_from(Colour), st.timedeltas())),
    "NamedTuple": (Point, POINTS),
    "dataclass": (Money, MONEY),
    "incomparable dataclass": (Incomparable, st.builds(Incomparable, INTEGERS)),
    "pydantic model": (Product, PRODUCTS),
    "recursive model": (Tree, st.builds(Tree, value=st.integers(), children=st.builds(list))),
    "TypedDict": (Address, st.fixed_dictionaries({"city": TEXT})),
    "nested": (dict[str, tuple[Line, ...]], st.dictionaries(TEXT, st.lists(LINES, max_size=2).map(tuple), max_size=2)),
    "list of NamedTuple or dataclass": (list[Point | Money], st.lists(POINTS | MONEY, max_size=3)),
    "Path": (PurePosixPath, st.sampled_from([PurePosixPath("/a"), PurePosixPath("a/b")])),
    "IPv4Address": (IPv4Address, st.ip_addresses(v=4)),
    "Any": (Any, PLAIN),
    "object": (object, PLAIN),
}
#: JSON cannot always distinguish the members of these unions: some values are refused despite the annotation.
AMBIGUOUS = {"Decimal or UUID", "int or str", "list of NamedTuple or dataclass"}


def parts(value: Any) -> list[Any] | None:
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, BaseModel):
        return list(value.__dict__.values())
    if is_dataclass(value):
        return [getattr(value, name.name) for name in fields(value)]
    return None


def sendable(value: Any) -> bool:
    """Tell whether JSON and the databases can represent `value`."""
    if (inner := parts(value)) is not None:
        return all(map(sendable, inner))
    match value:
        case bool() | Enum():
            return True
        case int():
            return abs(value) < 10**4300
        case float():
            return math.isfinite(value)
        case Decimal():
            return value.is_finite()
        case str():
            return "\x00" not in value and value.encode(errors="replace").decode() == value
        case datetime():
            offset = value.utcoffset()
            return offset is None or not offset % timedelta(minutes=1)
        case time():
            # The offset of a zone depends on the day, which a time does not have.
            offset = value.utcoffset()
            return value.tzinfo is None or (offset is not None and not offset % timedelta(minutes=1))
        case _:
            return True


def fingerprint(value: Any) -> Any:
    """Return a form that two values share only if they are equal and all their types are."""
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(fingerprint, value))
    if (inner := parts(value)) is not None:
        return type(value), tuple(map(fingerprint, inner))
    if isinstance(value, datetime | time):
        # In the hour when clocks go back, == distinguishes a moment from itself in another zone (PEP 495).
        return type(value), value.replace(tzinfo=None, fold=0), value.tzinfo is None, value.utcoffset()
    if isinstance(value, Decimal):
        return Decimal, value.as_tuple()
    return type(value), repr(value) if isinstance(value, float) else value


received: list[Any] = []


def task_taking(annotation: Any, name: str = "carry") -> LambdaTaskWrapper[..., Any]:
    """Return a task with one parameter, `value`, that stores the value that it receives."""

    def carry(*, value: object) -> None:
        received.append(value)

    carry.__annotations__["value"] = annotation
    carry.__qualname__ = f"carrying.<locals>.{name.replace(' ', '_')}"
    return lambda_task(carry)


def refusal(task: LambdaTaskWrapper[..., Any], value: Any) -> InvalidArguments | None:
    try:
        task.signature.encode({"value": value})
    except InvalidArguments as error:
        return error
    return None


def through_body(task: LambdaTaskWrapper[..., Any], value: Any) -> Any:
    """Send `value` as a queue would, and return what the worker reads."""
    message = SQSLambdaTaskMessage(task_name=task.name, kwargs=task.signature.encode({"value": value}))
    body = message.to_body()
    return task.signature.decode(SQSLambdaTaskMessage.from_body(body).kwargs)["value"]


TASKS = {name: task_taking(annotation, name) for name, (annotation, _) in CASES.items()}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_value_arrives_equal_or_is_refused_by_name(name: str, data: st.DataObject) -> None:
    task, value = TASKS[name], data.draw(CASES[name][1])

    if error := refusal(task, value):
        assert not sendable(value) or name in AMBIGUOUS
        text = str(error)
        assert "value" in text
        assert task.name in text
        assert text.encode().decode() == text  # can be printed and logged
        assert len(text) < 1000
        return

    assert sendable(value)
    assert fingerprint(through_body(task, value)) == fingerprint(value)
    payload = json.loads(json.dumps(task.serialize(value=value), allow_nan=False))
    message = SQSLambdaTask.model_validate(payload).message
    assert fingerprint(task.signature.decode(message.kwargs)["value"]) == fingerprint(value)


@pytest.mark.django_db(transaction=True)
def test_accepted_value_arrives_equal_in_eager_mode() -> None:
    """Values also pass through the database, which stores the arguments."""
    # One test for all types, because emptying the tables takes longer than the runs.
    with override_settings(LAMBDA_TASKS_EAGER=True):
        for name in CASES:
            check_eager_mode(TASKS[name], CASES[name][1])


def check_eager_mode(task: LambdaTaskWrapper[..., Any], values: st.SearchStrategy[Any]) -> None:
    @settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
    @given(value=values)
    def check(value: Any) -> None:
        if refusal(task, value):
            return
        received.clear()
        handle = task.execute_on_commit(value=value)
        assert [fingerprint(arrived) for arrived in received] == [fingerprint(value)], task.name
        record = TaskRecord.objects.get(pk=handle.message_id)
        assert (record.status, list(record.kwargs)) == ("SUCCESS", ["value"]), task.name

    check()


@settings(max_examples=50, deadline=None)
@given(arguments=st.dictionaries(st.sampled_from(["value", "values", "self", ""]), PLAIN | st.just(object())))
def test_call_raises_only_invalid_arguments(arguments: dict[str, Any]) -> None:
    task = TASKS["list of int"]
    with suppress(InvalidArguments):
        assert task.signature.encode(arguments) == arguments == {"value": arguments["value"]}


# One task with all promised types, annotated as in a project


@lambda_task
def promised(
    *,
    number: int,
    ratio: float,
    name: str,
    key: UUID,
    moment: datetime,
    day: date,
    duration: timedelta,
    price: Decimal,
    colour: Colour,
    pair: tuple[int, str],
    numbers: set[int],
    money: Money,
    point: Point,
    product: Product,
    lines: list[Line],
    maybe: Optional[UUID] = None,  # noqa: UP045
    either: int | str = "neither",
    later: DefinedFurtherDown | None = None,
    quoted: "list['DefinedFurtherDown']" = [],  # noqa: B006, UP037
) -> None:
    received.append(dict(locals()))


@dataclass
class DefinedFurtherDown:
    number: int


def promised_arguments() -> dict[str, Any]:
    product = Product(key=uuid4(), colours={Colour.RED}, seen={"shop": datetime(2025, 1, 1, tzinfo=UTC)})
    return {
        "number": 1,
        "ratio": 0.1,
        "name": "Ada",
        "key": uuid4(),
        "moment": datetime(2025, 6, 1, 12, tzinfo=BERLIN),
        "day": date(2025, 6, 1),
        "duration": timedelta(days=-1, microseconds=1),
        "price": Decimal("9.90"),
        "colour": Colour.BLUE,
        "pair": (1, "a"),
        "numbers": {1, 2},
        "money": Money(Decimal(1)),
        "point": Point(1),
        "product": product,
        "lines": [Line(Money(Decimal("1.00")), product, tags=frozenset({"new"}))],
    }


@pytest.mark.django_db(transaction=True)
class TestPromisedTypes:
    @pytest.mark.parametrize("further", [{}, {"maybe": uuid4(), "either": 5}, {"maybe": None, "either": "5"}])
    def test_all_types_arrive_together(self, further: dict[str, Any]) -> None:
        arguments = {**promised_arguments(), **further}
        promised(**arguments)
        direct = received.pop()

        with override_settings(LAMBDA_TASKS_EAGER=True):
            promised.execute_on_commit(**arguments)
            assert received.pop() == direct

            SQSLambdaTask.model_validate(promised.serialize(**arguments)).execute_on_commit()
            assert received.pop() == direct

    def test_defaults_are_not_sent(self) -> None:
        kwargs = promised.serialize(**promised_arguments())["message"]["kwargs"]
        assert set(kwargs) == set(promised_arguments())

    def test_annotations_may_name_later_definitions(self) -> None:
        arguments = {**promised_arguments(), "later": DefinedFurtherDown(1), "quoted": [DefinedFurtherDown(2)]}
        with override_settings(LAMBDA_TASKS_EAGER=True):
            promised.execute_on_commit(**arguments)
        arrived = received.pop()
        assert (arrived["later"], arrived["quoted"]) == (arguments["later"], arguments["quoted"])


def test_forward_references_work_without_postponed_annotations() -> None:
    def function(*, value: Any) -> None: ...

    for annotation in ("list[DefinedFurtherDown]", list["DefinedFurtherDown"], Optional["list[DefinedFurtherDown]"]):
        function.__annotations__["value"] = annotation
        assert through_body(lambda_task(function), [DefinedFurtherDown(1)]) == [DefinedFurtherDown(1)]


class TestStrict:
    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (int, "1"),
            (int, 1.0),
            (int, True),
            (int, Decimal(1)),
            (float, "1.5"),
            (float, True),
            (bool, 1),
            (bool, "true"),
            (str, 1),
            (str, b"text"),
            (str, None),
            (bytes, "text"),
            (UUID, str(SOME_ID)),
            (datetime, "2025-01-01T00:00:00"),
            (datetime, 1735689600),
            (datetime, date(2025, 1, 1)),
            (date, "2025-01-01"),
            (date, datetime(2025, 1, 1)),  # noqa: DTZ001
            (timedelta, 60),
            (Decimal, 1),
            (Decimal, "1.5"),
            (Decimal, 1.5),
            (Colour, "red"),
            (Priority, 1),
            (Size, "s"),
            (tuple[int, ...], [1]),
            (list[int], (1,)),
            (set[int], [1]),
            (list[int], ["1"]),
            (dict[str, int], {"a": "1"}),
            (dict[str, int], {1: 1}),
            (Money, {"amount": Decimal(1)}),
            (Product, {"key": SOME_ID}),
            (Point, {"x": 1}),
            (int | None, "1"),
            (int | str, 1.5),
        ],
        ids=repr,
    )
    def test_values_are_never_converted(self, annotation: Any, value: Any) -> None:
        assert refusal(task_taking(annotation), value) is not None


class TestChangedValues:
    @pytest.mark.parametrize(
        ("annotation", "value", "sentence"),
        [
            (Any, (1, 2), "value of .* would arrive as list instead of tuple"),
            (Any, {1: 2}, "value.1\\[key\\] of .* would arrive as str instead of int"),
            (Any, Decimal(1), "value of .* would arrive as str instead of Decimal"),
            (Any, SOME_ID, "value of .* would arrive as str instead of UUID"),
            (Any, date(2025, 1, 1), "value of .* would arrive as str instead of date"),
            (Any, Size.SMALL, "value of .* would arrive as str instead of Size"),
            (Any, [Priority.LOW], "value.0 of .* would arrive as int instead of Priority"),
            (Any, {"a": {"b": [1, (2,)]}}, "value.a.b.1 of .* would arrive as list instead of tuple"),
            (Any, Money(Decimal(1)), "value of .* would arrive as dict instead of Money"),
            (Any, defaultdict(int, a=1), "value of .* would arrive as dict instead of defaultdict"),
            (Any, float("nan"), "value of .* would arrive as NoneType instead of float"),
            (float, float("inf"), "value must be a valid number, not inf \\(float\\)"),
            (float, Decimal("0.1"), "value of .* would arrive as float instead of Decimal"),
            (float, Decimal("1.5"), "value of .* would arrive as float instead of Decimal"),
            (list[float], [1.0, Decimal(1)], "value.1 of .* would arrive as float instead of Decimal"),
            (set[float], {Decimal(1)}, "value of .* would arrive with a different value"),
            (dict[str, float], {"a": Fraction(1, 2)}, "value.a of .* would arrive as float instead of Fraction"),
            (dict[float, int], {1: 1}, "value of .* would arrive|value.1\\[key\\] of .* as float instead of int"),
            (Rank, Rank.FIRST, "Rank, whose member FIRST cannot be found by its value in JSON: \\(1, 0\\)"),
            (str | bytes, b"i\xb7\x1d", "value of .* would arrive as str instead of bytes"),
            (
                Annotated[str, StringConstraints(to_lower=True)],
                "ADA",
                "value of .* would arrive with a different",
            ),
            (time, time(12, tzinfo=BERLIN), "value of .* would arrive with a different"),
            (datetime, datetime(1800, 1, 1, tzinfo=BERLIN), "value of .* would arrive with a different"),
        ],
        ids=repr,
    )
    def test_error_names_the_argument_and_its_change(self, annotation: Any, value: Any, sentence: str) -> None:
        with pytest.raises(InvalidArguments, match=sentence):
            task_taking(annotation).serialize(value=value)

    def test_subclass_with_its_own_fields_is_refused(self) -> None:
        @dataclass
        class Tip(Money):
            rounded: bool = False

        with pytest.raises(InvalidArguments, match=r"value of .* would arrive as Money instead of .*Tip"):
            task_taking(Money).serialize(value=Tip(Decimal(1)))
        with pytest.raises(InvalidArguments, match=r"value\.0 of .* would arrive as Money instead of .*Tip"):
            task_taking(list[Money]).serialize(value=[Tip(Decimal(1))])

    def test_field_excluded_from_comparison_is_compared(self) -> None:
        line = Line(Money(Decimal(1)), Product(key=uuid4()), noticed=(1, 2))
        with pytest.raises(InvalidArguments, match=r"value\.noticed of .* would arrive as list instead of tuple"):
            task_taking(Line).serialize(value=line)

    def test_changed_private_attribute_is_refused(self) -> None:
        noted = Noted(text="a")
        assert through_body(task_taking(Noted), noted) == noted
        noted._note = "for later"
        with pytest.raises(InvalidArguments, match=r"value\._note of .* would arrive with a different value"):
            task_taking(Noted).serialize(value=noted)

    def test_field_with_an_undeclared_type_is_refused(self) -> None:
        broken: Any = "1.00"
        with pytest.raises(InvalidArguments, match=r"value\.amount"):
            task_taking(Money).serialize(value=Money(broken))
        with pytest.raises(InvalidArguments, match=r"value\.weight"):
            task_taking(Product).serialize(value=Product.model_construct(key=uuid4(), weight=Decimal(1)))

    def test_infinity_is_refused_although_the_model_allows_it(self) -> None:
        class Limit(BaseModel):
            model_config = ConfigDict(ser_json_inf_nan="constants")
            most: float

        task = task_taking(Limit)
        assert through_body(task, Limit(most=1.5)) == Limit(most=1.5)
        with pytest.raises(InvalidArguments, match=r"Argument value of .* contains NaN or infinity"):
            task.serialize(value=Limit(most=float("inf")))

    def test_elements_of_a_set_keep_their_types(self) -> None:
        with pytest.raises(InvalidArguments, match=r"value of .* would arrive with a different"):
            task_taking(set[Any]).serialize(value={Priority.LOW})


class TestCompatibleTypes:
    """The value arrives with the annotated type, and equals the argument."""

    @pytest.mark.parametrize(
        ("annotation", "value", "arrives"),
        [
            (float, 1, 1),
            (float, 2**53 + 1, 2**53 + 1),
            (Annotated[float, Field(gt=0)], 2**53 + 1, 2**53 + 1),
            (int, Priority.LOW, 1),
            (str, Size.SMALL, "s"),
            (str, mark_safe("<b>"), "<b>"),
            (dict[str, int], OrderedDict(a=1), {"a": 1}),
            (tuple[int, float], Point(1), (1, 0.5)),
            (datetime, FrozenDatetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)),
        ],
        ids=repr,
    )
    def test_subclass_arrives_as_the_annotated_type(self, annotation: Any, value: Any, arrives: Any) -> None:
        arrived = through_body(task_taking(annotation), value)
        assert fingerprint(arrived) == fingerprint(arrives)
        assert arrived == value

    @pytest.mark.parametrize("fold", [0, 1])
    @pytest.mark.parametrize("moment", [datetime(2025, 10, 26, 2, 30), datetime(2025, 3, 30, 2, 30)], ids=str)  # noqa: DTZ001
    def test_moment_during_a_clock_change_arrives(self, moment: datetime, fold: int) -> None:
        moment = moment.replace(tzinfo=BERLIN, fold=fold)
        for annotation, value in ((datetime, moment), (list[datetime], [moment]), (dict[str, datetime], {"a": moment})):
            arrived = through_body(task_taking(annotation), value)
            assert fingerprint(arrived) == fingerprint(value)


class TestRefusedEverywhere:
    @pytest.mark.parametrize("annotation", [str, Any, object])
    @pytest.mark.parametrize("text", ["\x00", "a\x00b", "\\\x00"])
    def test_nul_characters(self, annotation: Any, text: str) -> None:
        for holder, value in (
            (annotation, text),
            (list[annotation], ["a", text]),
            (dict[str, annotation], {"a": text}),
            (dict[str, annotation], {text: "a"}),
        ):
            with pytest.raises(InvalidArguments, match=r"Argument value of .* contains a NUL character"):
                task_taking(holder).serialize(value=value)

    @pytest.mark.parametrize("annotation", [str, Any])
    @pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ude00\ud83d"])
    def test_lone_surrogates(self, annotation: Any, text: str) -> None:
        for holder, value in ((annotation, text), (dict[str, annotation], {text: "a"})):
            with pytest.raises(InvalidArguments, match="value"):
                task_taking(holder).serialize(value=value)

    def test_values_without_a_json_form(self) -> None:
        for value in (object(), len, Money, {1}.__iter__(), 1 + 2j):
            with pytest.raises(InvalidArguments, match=r"Argument value of .* cannot be written|would arrive"):
                task_taking(Any).serialize(value=value)

    def test_circular_reference(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(InvalidArguments, match=r"Argument value of .* cannot be written as JSON: .*Circular"):
            task_taking(Any).serialize(value=circle)

    def test_integers_too_long_for_python(self) -> None:
        with pytest.raises(InvalidArguments, match="value: Invalid JSON: number out of range"):
            task_taking(int).serialize(value=10**4300)

    def test_error_names_only_the_wrong_argument(self) -> None:
        @lambda_task
        def many(*, first: int, second: Any, third: str) -> None: ...

        for second in (object(), 10**4300, "\x00", (1,), "\ud800"):
            with pytest.raises(InvalidArguments, match="second") as caught:
                many.serialize(first=1, second=second, third="a")
            assert "first" not in str(caught.value)
            assert "third" not in str(caught.value)

    @pytest.mark.parametrize("task", [task_taking(Any), task_taking(Tree)])
    def test_nesting_too_deep_for_databases(self, task: LambdaTaskWrapper[..., Any]) -> None:
        def nested(levels: int) -> Any:
            if task.signature.parameters["value"].annotation is Any:
                value: Any = 0
                for _ in range(levels):
                    value = [value]
                return value
            tree = Tree(value=0)  # the tree and its empty list of children are two levels
            for _ in range((levels - 2) // 2):
                tree = Tree(value=0, children=[tree])
            return tree

        # The arguments themselves are a level too, and a tree grows by two.
        deepest = nested(MAX_DEPTH - 2)
        assert through_body(task, deepest) == deepest
        for levels in (MAX_DEPTH, 250, 100_000 if task.signature.parameters["value"].annotation is Any else 100):
            with pytest.raises(
                InvalidArguments, match=f"value.*nested more than {MAX_DEPTH - 1} levels|recursion|depth"
            ):
                task.serialize(value=nested(levels))


@pytest.mark.django_db(transaction=True)
def test_record_stores_the_deepest_and_strangest_arguments() -> None:
    """MariaDB limits JSON to 31 levels."""
    value: Any = ["\uffff\ufffe😀\u2028\\u0000", 10**4299, -0.0, 5e-324, 1.7976931348623157e308, 2**64]
    for _ in range(MAX_DEPTH - 2):
        value = [value]
    with override_settings(LAMBDA_TASKS_EAGER=True):
        handle = task_taking(Any).execute_on_commit(value=value)
    assert received.pop() == value
    assert TaskRecord.objects.get(pk=handle.message_id).status == "SUCCESS"


SECRET = "hunter2"


class Opaque:
    def __repr__(self) -> str:
        return SECRET


class TestComputedFields:
    def test_computed_field_is_computed_again(self) -> None:
        for annotation, value in ((Parcel, Parcel(2000)), (list[Parcel | None], [Parcel(1), None])):
            task = task_taking(annotation)
            assert through_body(task, value) == value
        assert task_taking(Parcel).serialize(value=Parcel(2000))["message"]["kwargs"] == {"value": {"grams": 2000}}

    def test_changed_computed_field_is_refused_by_name(self) -> None:
        parcel = Parcel(2000)
        parcel.heavy = False
        with pytest.raises(InvalidArguments, match=r"value\.heavy of .*, which is False \(bool\), would arrive with"):
            task_taking(Parcel).serialize(value=parcel)


class TestErrorsShowTheValue:
    @pytest.mark.parametrize(
        ("annotation", "value", "sentence"),
        [
            (int, "7", r"value must be a valid integer, not '7' \(str\)$"),
            (int, None, r"value must be a valid integer, not None$"),
            (int, [1, 2], r"not \[1, 2\] \(list\)$"),
            (UUID, "x" * 10_000, r"not 'x{30,60}\.\.\.x{30,60}' \(str\)$"),
            (Colour, "red", r"not 'red' \(str\)$"),
            (int, Colour.RED, r"not Colour\.RED \(tests\.definition\.test_arguments\.Colour\)$"),
            (date, datetime(2025, 1, 1, tzinfo=UTC), r"not datetime.datetime\(2025, .*\) \(datetime\.datetime\)$"),
            (str, gettext_lazy("name"), r"not a lazily translated string; Translate it first: pass str\(…\)"),
            (Any, gettext_lazy("name"), r"cannot be written as JSON: a lazily translated string. Translate it first"),
            (
                Any,
                {"a": [gettext_lazy("name")]},
                r"cannot be written as JSON: a lazily translated string. Translate it",
            ),
            (dict[str, Any], {"a": OrderedDict(b=1)}, r"value\.a of .* as dict instead of OrderedDict. Pass dict\(…\)"),
            (
                dict[str, Any],
                {"a": Size.SMALL},
                r"Size\.SMALL .* as str instead of Size. Pass its \.value, or annotate",
            ),
            (Any, (1, 2), r"which is \(1, 2\) \(tuple\), would arrive as list instead of tuple. Pass a list"),
            (str, "a\x00", r"which is 'a.*x00' \(str\), contains a NUL character"),
            (time, time(12, tzinfo=BERLIN), r"which is datetime\.time\(12, 0, tz.*would arrive with a different value"),
            (list[Money], [Money(Decimal(1)), Money("1")], r"value\.1\.amount of .*'1' \(str\)"),  # type: ignore[arg-type]
            (int, Opaque(), r"not an object of the type tests\.definition\.test_arguments\.Opaque$"),
            (
                list[int],
                [Opaque()],
                r"value\.0 must be .*not an object of the type tests\.definition\..*\.Opaque$",
            ),
            (str, "\n".join, r"not an object of the type builtin_function_or_method|built-in"),
        ],
        ids=lambda value: ascii(value)[:40],
    )
    def test_error_shows_the_value_and_its_type(self, annotation: Any, value: Any, sentence: str) -> None:
        error = refusal(task_taking(annotation), value)
        assert error is not None
        assert re.search(sentence, str(error)), str(error)
        assert len(str(error)) < 600

    def test_error_about_a_queryset_does_not_query(self) -> None:
        """The database is not available to this test."""
        error = refusal(task_taking(list[int]), TaskRecord.objects.all())
        assert "not an object of the type lambda_tasks.models.TaskRecordQuerySet" in str(error)

    def test_error_of_a_missing_argument_shows_no_others(self) -> None:
        @lambda_task
        def both(*, one: int, other: str) -> None: ...

        with pytest.raises(InvalidArguments) as caught:
            both.serialize(one=1)
        assert str(caught.value).endswith("other is missing")


def test_enum_with_an_unreadable_member_is_refused() -> None:
    class Mixed(Enum):
        PLAIN = "plain"
        PAIR = (1, 2)

    for member in Mixed:
        with pytest.raises(InvalidArguments, match=r"Mixed, whose member PAIR .*: \(1, 2\) \(tuple\). Send its name"):
            task_taking(Mixed).serialize(value=member)


class TestErrorsOfSensitiveArguments:
    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (int, SECRET),
            (list[int], [SECRET]),
            (Money, SECRET),
            (Money, Money(SECRET)),  # type: ignore[arg-type]
            (Money, Money(Decimal(1), "\x00" + SECRET)),
            (Product, Product.model_construct(key=SECRET)),
            (str, f"{SECRET}\x00"),
            (str, f"{SECRET}\ud800"),
            (Any, (SECRET,)),
            (Any, Opaque()),
            (Any, {SECRET: (1,)}.values()),
            (Literal["a"], SECRET),
            (Annotated[str, StringConstraints(to_upper=True)], SECRET),
            (Annotated[str, Field(max_length=2)], SECRET),
            (int | Colour, SECRET),
            (float, Opaque()),
        ],
        ids=str,
    )
    def test_wrong_value_is_not_quoted(self, annotation: Any, value: Any) -> None:
        task = task_taking(annotation)
        task.signature.sensitive = ("value",)
        error = refusal(task, value)
        assert error is not None
        assert SECRET not in str(error)
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__

    def test_dict_keys_are_shortened_and_printable(self) -> None:
        error = refusal(task_taking(dict[str, int]), {"a\ud800" * 10_000: "1"})
        assert error is not None
        assert len(str(error).encode()) < 1000

    def test_error_about_another_versions_message_quotes_nothing(self) -> None:
        with pytest.raises(InvalidMessage, match=r"do not match .*value must be a valid integer, not str") as caught:
            task_taking(int).signature.decode({"value": SECRET})
        assert SECRET not in str(caught.value)


# Annotations that cannot be used


@dataclass
class WithUnknownField:
    effect: Effect


def under_type_checking(*, value: Effect) -> None: ...
def with_unknown_field(*, value: WithUnknownField) -> None: ...
def with_model(*, value: TaskRecord) -> None: ...
def with_model_inside(*, value: dict[str, list[TaskRecord]]) -> None: ...
def with_missing_attribute(*, value: zoneinfo.Nothing) -> None: ...
def with_no_type(*, value: 5) -> None: ...  # type: ignore[valid-type]
def with_class_variable(*, value: "ClassVar[int]") -> None: ...  # noqa: F821, UP037


class TestAnnotations:
    @pytest.mark.parametrize(
        ("function", "sentence"),
        [
            (under_type_checking, "'Effect' is not defined.* not under TYPE_CHECKING"),
            (with_unknown_field, "'Effect' is not defined.* not under TYPE_CHECKING"),
            (with_model, "a type that cannot be converted to JSON: .*TaskRecord'>. Send a primary key"),
            (with_model_inside, "a type that cannot be converted to JSON: .*TaskRecord'>. Send a primary key"),
            (with_missing_attribute, "cannot be used: module 'zoneinfo' has no attribute 'Nothing'"),
            (with_no_type, "cannot be converted to JSON|cannot be used"),
            (with_class_variable, "'ClassVar' is not defined"),
        ],
    )
    def test_unusable_annotation_fails_at_the_call(self, function: Callable[..., None], sentence: str) -> None:
        task = lambda_task(function)  # decorating does not evaluate the annotation
        with pytest.raises(InvalidArguments, match=f"{function.__name__}.* {sentence}"):
            task.serialize(value=1)
        with pytest.raises(InvalidArguments):
            task.signature.check()

    def test_result_annotation_need_not_exist(self) -> None:
        def function(*, value: int) -> Nowhere: ...  # type: ignore[name-defined]  # noqa: F821

        assert lambda_task(function).serialize(value=1)["message"]["kwargs"] == {"value": 1}

    def test_constraints_are_checked_at_the_call(self) -> None:
        task = task_taking(Annotated[int, Field(gt=0)])
        assert through_body(task, 1) == 1
        with pytest.raises(InvalidArguments, match="value must be greater than 0"):
            task.serialize(value=0)
