"""The keys of tasks that are locked or unique per value: which options are valid, and which calls share a key."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from lambda_tasks.decorators import lambda_task
from lambda_tasks.definition import keys
from lambda_tasks.exceptions import LockError
from lambda_tasks.wire import ids

ROOT = "01890a5d-ac96-774b-bcce-b302099a8057"


def recount(*, warehouse_id: int, shelf: str = "a", since: date = date(2026, 1, 1), token: str = "") -> None: ...


def task_with(function: Callable[..., Any] = recount, **options: Any) -> Any:
    return lambda_task(**options)(function)


def lock_key(task: Any, **arguments: Any) -> str:
    """Return the only lock key of a call, as a worker computes it from the message."""
    sent = task.signature.encode(arguments)
    [(key,)] = keys.slots(task, sent, task.signature.decode(sent), root_id=ROOT)
    return key


def unique_key(task: Any, **arguments: Any) -> str:
    sent = task.signature.encode(arguments)
    return keys.unique_key(task, sent, task.signature.decode(sent))


class TestRefusedOptions:
    @pytest.mark.parametrize(
        ("options", "error", "sentence"),
        [
            ({"singleton": 1}, TypeError, "singleton must be True or False, a parameter name, .*, not 1"),
            ({"unique": ()}, TypeError, r"unique must be True or False, a parameter name, .*, not \(\)"),
            ({"unique": ("shelf", 1)}, TypeError, "unique must be .* a tuple of parameter names, .*, not"),
            ({"singleton": "shop"}, TypeError, "singleton must use parameters of .*, not shop. Its .*: warehouse_id"),
            ({"unique": ("shelf", "room")}, TypeError, "unique must use parameters of .*recount, not room. Its"),
            (
                {"singleton": "token", "sensitive": ("token",)},
                TypeError,
                "singleton must not use the sensitive parameter token .* Use another parameter",
            ),
            (
                {"unique": lambda *, shelf, token="": shelf, "sensitive": ("token",)},
                TypeError,
                "unique must not use the sensitive parameter token of .* Use another parameter",
            ),
            ({"singleton": lambda *, shop: shop}, TypeError, "singleton must use parameters of .*, not shop"),
            ({"unique": lambda shelf, /: shelf}, TypeError, "unique of .* by name, but its parameter shelf is pos"),
            ({"max_concurrency": 0}, ValueError, "max_concurrency must be an integer of at least 1, not 0"),
            ({"max_concurrency": True}, TypeError, "max_concurrency must be an integer .*, not True"),
            (
                {"singleton": True, "max_concurrency": 2},
                TypeError,
                'max_concurrency must be 1 with singleton=True, not 2. .*singleton="user_id"',
            ),
            ({"on_contention": "queue", "singleton": True}, ValueError, "on_contention must be 'retry' or 'wait' or"),
            ({"on_contention": "wait"}, TypeError, "on_contention must be 'retry', .* Set singleton or max_conc"),
            ({"singleton": True, "max_wait": 5}, TypeError, "max_wait must not be set with on_contention='retry'"),
            (
                {"singleton": True, "on_contention": "wait", "max_wait": 0},
                ValueError,
                "max_wait must be longer than 0 seconds, not 0",
            ),
            (
                {"singleton": True, "on_contention": "wait", "max_wait": "1 h"},
                TypeError,
                "max_wait must be a number of seconds or a timedelta, not '1 h'",
            ),
            (
                {"singleton": True, "on_contention": "wait", "ignore_errors": (LockError,)},
                TypeError,
                "ignore_errors must not contain LockError with on_contention='wait'. Remove it",
            ),
            (
                {"max_concurrency": 2, "retry_on": (LockError,)},
                TypeError,
                "retry_on must not contain LockError for a task with singleton or max_concurrency. Remove it",
            ),
            ({"unique": True, "on_duplicate": "drop"}, ValueError, "on_duplicate must be 'return' or 'raise' or"),
            ({"on_duplicate": "raise"}, TypeError, "on_duplicate must not be set without unique, but is 'raise'. Set"),
            ({"unique_for": 5}, TypeError, "unique_for must not be set without unique, but is 5. Set unique"),
            ({"unique": True, "unique_for": timedelta()}, ValueError, "unique_for must be longer than 0 seconds"),
            (
                {"unique": True, "unique_for": timedelta(days=366)},
                ValueError,
                "unique_for must be from 0 to 31536000 seconds, which is one year, not .*366",
            ),
        ],
    )
    def test_invalid_option_names_its_value_and_remedy(
        self, options: Any, error: type[Exception], sentence: str
    ) -> None:
        with pytest.raises(error, match=sentence):
            task_with(**options)

    @pytest.mark.parametrize("returned", [None, [1], float("nan"), ("a", None)])
    def test_function_must_return_plain_values(self, returned: Any) -> None:
        task = task_with(singleton=lambda **_: returned)
        with pytest.raises(
            TypeError, match=r"function in singleton of .*recount must return a string, a finite number"
        ):
            lock_key(task, warehouse_id=1)


class TestAcceptedOptions:
    def test_durations_become_seconds(self) -> None:
        task = task_with(singleton=True, on_contention="wait", max_wait=timedelta(hours=2), unique=True, unique_for=1.5)
        assert (task.max_wait, task.unique_for) == (7200, 1.5)
        assert task.using(delay=5).max_wait == 7200

    def test_lists_become_tuples(self) -> None:
        task = task_with(singleton=["shelf", "warehouse_id"], unique=["shelf"])
        assert (task.singleton, task.unique) == (("shelf", "warehouse_id"), ("shelf",))

    def test_limit_of_one_agrees_with_a_singleton(self) -> None:
        assert task_with(singleton=True, max_concurrency=1).max_concurrency == 1

    def test_base_class_of_lock_error_may_be_ignored(self) -> None:
        assert task_with(singleton=True, on_contention="wait", ignore_errors=(Exception,)).on_contention == "wait"


class TestLockKeys:
    def test_key_of_a_singleton_is_as_documented(self) -> None:
        task = task_with(singleton=True)
        assert lock_key(task, warehouse_id=1) == f"lambda_tasks.singleton_lock.{__name__}.recount"

    def test_key_of_a_value_is_stable_across_versions(self) -> None:
        """Workers of two versions must exclude each other."""
        key = lock_key(task_with(singleton="warehouse_id"), warehouse_id=1)
        assert key == f"lambda_tasks.singleton_lock.{__name__}.recount:ef6555d139bba0ca2326a50024344e1b"

    @pytest.mark.parametrize("chosen", ["warehouse_id", ("warehouse_id",), lambda *, warehouse_id: warehouse_id])
    def test_name_tuple_and_function_agree(self, chosen: Any) -> None:
        expected = lock_key(task_with(singleton="warehouse_id"), warehouse_id=7)
        assert lock_key(task_with(singleton=chosen), warehouse_id=7, shelf="b") == expected
        assert lock_key(task_with(singleton=chosen), warehouse_id=8, shelf="b") != expected

    def test_order_of_the_names_matters(self) -> None:
        pairs = [("warehouse_id", "shelf"), ("shelf", "warehouse_id")]
        assert len({lock_key(task_with(singleton=pair), warehouse_id=1) for pair in pairs}) == 2

    def test_omitted_argument_has_the_key_of_its_default(self) -> None:
        by_name = task_with(singleton=("shelf", "since"))
        assert lock_key(by_name, warehouse_id=1) == lock_key(by_name, warehouse_id=2, shelf="a", since=date(2026, 1, 1))
        by_function = task_with(singleton=lambda *, shelf, since: (shelf, since.year))
        assert lock_key(by_function, warehouse_id=1) == lock_key(by_function, warehouse_id=2, shelf="a")

    def test_function_gets_decoded_arguments(self) -> None:
        seen: list[Any] = []

        def by_year(*, since: date, **others: Any) -> int:
            seen.append(others)
            return since.year

        task = task_with(singleton=by_year)
        assert lock_key(task, warehouse_id=1, since=date(2025, 3, 1)) == lock_key(
            task, warehouse_id=1, since=date(2025, 9, 9)
        )
        assert seen[0] == {"warehouse_id": 1, "shelf": "a", "token": ""}

    def test_whole_float_equals_its_integer(self) -> None:
        def measure(*, at: float, by: dict[str, float]) -> None: ...

        task = task_with(measure, singleton=("at", "by"))
        assert lock_key(task, at=1.0, by={"a": 2.0, "b": 1.5}) == lock_key(task, at=1, by={"b": 1.5, "a": 2})

    def test_true_differs_from_one(self) -> None:
        task = task_with(singleton=lambda *, warehouse_id: warehouse_id == 1 or 1)
        assert lock_key(task, warehouse_id=1) != lock_key(task, warehouse_id=2)

    def test_each_alias_has_the_same_digest(self) -> None:
        task = task_with(singleton="warehouse_id", aliases=("shop.old.recount",))
        [(own, old)] = keys.slots(task, {"warehouse_id": 1}, {}, root_id=ROOT)
        assert own.partition(":")[2] == old.partition(":")[2] != ""
        assert old.startswith("lambda_tasks.singleton_lock.shop.old.recount:")

    def test_key_fits_into_memcached(self) -> None:
        key = lock_key(task_with(singleton=("shelf",), max_concurrency=1), warehouse_id=1, shelf="ä \n" * 500)
        assert key.isascii()
        assert " " not in key
        assert len(key) < 250


class TestSlots:
    def test_every_slot_is_tried_once(self) -> None:
        task = task_with(max_concurrency=5)
        found = keys.slots(task, {}, {}, root_id=ids.new_message_id())
        base = f"lambda_tasks.singleton_lock.{__name__}.recount"
        assert sorted(found) == [(base,), *((f"{base}/{number}",) for number in range(1, 5))]

    def test_first_slot_depends_on_the_root_id(self) -> None:
        task = task_with(max_concurrency=3)
        first = {keys.slots(task, {}, {}, root_id=str(UUID(int=number)))[0] for number in range(3)}
        assert len(first) == 3
        same = [keys.slots(task, {}, {}, root_id=ROOT) for _ in range(2)]
        assert same[0] == same[1]

    def test_slots_of_two_values_differ(self) -> None:
        task = task_with(singleton="warehouse_id", max_concurrency=2)
        one, two = ({key for (key,) in keys.slots(task, {"warehouse_id": n}, {}, root_id=ROOT)} for n in (1, 2))
        assert len(one | two) == 4


def test_function_of_all_arguments_gets_no_sensitive_one() -> None:
    task = task_with(unique=lambda **given: ",".join(sorted(given)), sensitive=("token",))
    assert unique_key(task, warehouse_id=1, token="a") == unique_key(task, warehouse_id=2, token="b")
    assert "token" not in keys._returned(task, "unique", task.unique, {"warehouse_id": 1, "token": "a"})[0]


class TestUniqueKeys:
    def test_key_contains_only_a_digest(self) -> None:
        key = unique_key(task_with(unique="shelf"), warehouse_id=1, shelf="secret")
        assert len(key) == 64
        assert int(key, 16)

    def test_true_means_the_task_alone(self) -> None:
        task = task_with(unique=True)
        assert unique_key(task, warehouse_id=1) == unique_key(task, warehouse_id=2)

    def test_tasks_have_separate_keys(self) -> None:
        def other(*, warehouse_id: int) -> None: ...

        one, two = task_with(unique="warehouse_id"), task_with(other, unique="warehouse_id")
        assert unique_key(one, warehouse_id=1) != unique_key(two, warehouse_id=1)
