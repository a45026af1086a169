"""Results and errors that are hard to store."""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    y: Any = None


class Order(BaseModel):
    number: int
    placed: dt.date


#: Results that every store must store, in the form of `lambda_tasks.results.json_result`.
STORABLE: Final[Mapping[str, Any]] = {
    "nothing": None,
    "true": True,
    "false": False,
    "zero": 0,
    "empty string": "",
    "empty list": [],
    "empty dict": {},
    "string that looks like JSON": "null",
    "large number": 2**70,
    "fraction": 0.1,
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600",
    "control characters": "\x01\x1f\x7f\t\r\n\u2028",
    "noncharacters": "\uffff\ufffe\U0010ffff",
    "quotes and backslashes": "'\"\\ %s %% {} \\u0000",
    "huge string": "ä" * 100_000,
    "nested": {"a": [1, {"b": [None, {"": "c"}]}]},
    "keys that are not strings": {2: "a", None: "b", True: "c"},
    "date": dt.date(2026, 11, 22),
    "datetime": dt.datetime(2026, 11, 22, 10, 30, 0, 123456, tzinfo=dt.timezone.utc),
    "naive datetime": dt.datetime(2026, 11, 22, 10, 30),  # noqa: DTZ001, a task may return one
    "time": dt.time(10, 30),
    "duration": dt.timedelta(days=1, microseconds=5),
    "uuid": uuid.UUID(int=1),
    "decimal": Decimal("0.10"),
    "tuple": (1, "a"),
    "set": {1},
    "enum": [Colour.RED, Level.HIGH],
    "dataclass": Point(1, Point(2)),
    "pydantic model": Order(number=1, placed=dt.date(2026, 11, 22)),
}


def nested(depth: int) -> list[Any]:
    """Return a list that is nested `depth` levels deep."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


#: Results that every store must reject.
UNSTORABLE: Final[Mapping[str, Any]] = {
    "object": object(),
    "bytes": b"x",
    "not a number": float("nan"),
    "infinity": [float("inf")],
    "NUL": "a\x00b",
    "NUL in a key": {"a": {"b\x00": 1}},
    "lone surrogate": "\ud800",
    "lone surrogate in a key": [{"\udfff": 1}],
    "cycle": _cycle(),
    "key that is not a string": {(1, 2): 3},
    "bottomless": nested(100_000),
}


class Unprintable(Exception):
    """An exception whose `str()` raises."""

    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")


#: Errors whose traceback is hard to store.
AWKWARD_ERRORS: Final[Mapping[str, BaseException]] = {
    "NUL": ValueError("a\x00b"),
    "lone surrogate": ValueError("\ud800 \udcff"),
    "emoji": ValueError("\U0001f600"),
    "noncharacter": ValueError("\uffff"),
    "huge": ValueError("ü" * 5_000_000),
    "unprintable": Unprintable(),
    "SystemExit": SystemExit(3),
    "quotes": KeyError("'%s' % \\"),
}
