"""Check that unusual results and errors are recorded and acknowledged, and do not affect other tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from lambda_tasks.backends.memory import MemoryBackend
from lambda_tasks.decorators import lambda_task
from lambda_tasks.handler import handler
from lambda_tasks.models import TaskRecord
from lambda_tasks.recording.storable import MAX_JSON, MAX_TEXT
from lambda_tasks.strategies import get_backend
from lambda_tasks.testing.contracts.samples import AWKWARD_ERRORS, UNSTORABLE
from tests.app.models import Effect

pytestmark = pytest.mark.django_db(transaction=True)


class Explosive:
    """An object with a JSON form that raises an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def model_dump(self, *, mode: str) -> Any:
        raise self.error


@dataclass
class Hollow:
    number: int

    def __getattribute__(self, name: str) -> Any:
        if name == "number":
            raise OSError("no number")
        return super().__getattribute__(name)


#: Functions, because some results are large.
RESULTS: Final[Mapping[str, Callable[[], Any]]] = {
    **{name: lambda value=value: value for name, value in UNSTORABLE.items()},
    "a text of 50 MB": lambda: "ä" * 25_000_000,
    "one byte too many": lambda: "x" * (MAX_JSON - 1),
    "minus infinity": lambda: {"a": float("-inf")},
    "an endless generator": lambda: iter(int, 1),
    "a function": lambda: len,
    "an error that is to be retried": lambda: Explosive(OSError("no JSON")),
    "an error that is to be ignored": lambda: Explosive(KeyError("no JSON")),
    "memory": lambda: Explosive(MemoryError()),
    "a field that cannot be read": lambda: Hollow(1),
    "a text that only looks long enough": lambda: "\ud800" * 1000,
}


class RaisesInStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class RaisesInRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("cannot be shown")

    __str__ = __repr__


class ReturnsNoString(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class HidesItsCause(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("none of your business")


@dataclass(frozen=True)
class Frozen(Exception):
    """No attribute of it can be set, not even by Python's own context managers."""

    number: int = 7


def chain_of(length: int) -> BaseException:
    error = ValueError("the first")
    for number in range(length):
        following = ValueError(f"number {number}")
        following.__cause__ = error
        error = following
    return error


def circle() -> BaseException:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    return first


def with_notes(notes: object) -> BaseException:
    error = ValueError("annotated")
    error.__notes__ = notes  # type: ignore[attr-defined]
    return error


def odd_syntax_error() -> BaseException:
    error = SyntaxError("odd", ("\ud800", 10**9, -5, "\x00" * 100, None, None))
    error.text = 5  # type: ignore[assignment]
    return error


ERRORS: Final[Mapping[str, Callable[[], BaseException]]] = {
    **{name: lambda error=error: error for name, error in AWKWARD_ERRORS.items()},
    "a text of 50 MB": lambda: ValueError("\ud800\x00" * 12_500_000),
    "a text that only argues": lambda: ValueError(*range(100_000)),
    "exits when it is printed": RaisesInStr,
    "raises when it is shown": RaisesInRepr,
    "returns no text": ReturnsNoString,
    "hides its cause": HidesItsCause,
    "is frozen": Frozen,
    "a chain of causes": lambda: chain_of(2000),
    "a circle of causes": circle,
    "notes that are none": lambda: with_notes(5),
    "notes of all kinds": lambda: with_notes(["\ud800", b"x", RaisesInRepr()]),
    "an odd syntax error": odd_syntax_error,
    "bytes that are no text": lambda: UnicodeDecodeError("utf-8", b"\xff" * 1_000_000, 0, 1, "invalid"),
    "of the interpreter": GeneratorExit,
    "of the memory": MemoryError,
    "of the stack": RecursionError,
}


@lambda_task(retry_on=(OSError,), ignore_errors=(KeyError,))
def give(*, name: str) -> Any:
    Effect.objects.create(name=name)
    return RESULTS[name]()


@lambda_task
def throw(*, name: str) -> None:
    Effect.objects.create(name=name)
    error = ERRORS[name]()
    raise error


@lambda_task
def note() -> None:
    Effect.objects.create(name="neighbour")


class AsOnLambda(logging.Handler):
    """A handler like awslambdaric's, which raises an error for characters that cannot be encoded."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record).encode("utf-8")


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    lambdas, logger = AsOnLambda(), logging.getLogger("lambda_tasks")
    # Use only this handler, because pytest's handler would store lines of 50 MB.
    logger.propagate = False
    logger.addHandler(lambdas)
    yield
    logger.removeHandler(lambdas)
    logger.propagate = True


def deliver(task: Any, name: str) -> TaskRecord:
    """Run `task` between two other tasks, and return its record."""
    backend = get_backend()
    assert isinstance(backend, MemoryBackend)
    note.execute_on_commit()
    handle = task.execute_on_commit(name=name)
    note.execute_on_commit()
    assert handler({"Records": backend.take_records()}, None) == {"batchItemFailures": []}
    assert backend.jobs == []
    assert list(Effect.objects.values_list("name", flat=True)) == ["neighbour", "neighbour"]
    return TaskRecord.objects.get(pk=handle.message_id)


@pytest.mark.parametrize("name", RESULTS)
def test_unstorable_result_fails_and_rolls_back_its_task(name: str) -> None:
    record = deliver(give, name)
    assert (record.status, record.result) == ("FAILED", None)
    assert "ResultNotSerializable: The result" in (record.traceback or "")
    assert len(record.traceback or "") < 2 * MAX_TEXT


@pytest.mark.parametrize("name", ERRORS)
def test_any_error_fails_its_task_with_a_traceback(name: str) -> None:
    record = deliver(throw, name)
    assert (record.status, record.result) == ("FAILED", None)
    assert type(ERRORS[name]()).__name__ in (record.traceback or "")
    # A lone surrogate is escaped with six characters.
    assert len(record.traceback or "") < 7 * MAX_TEXT
