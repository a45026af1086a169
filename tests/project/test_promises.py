"""The table of promises names tests that exist and run, one or more for each promise."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.named_tests import ROOT, definitions, find, is_unkept, module, read_rows

pytestmark = pytest.mark.once

ROWS: Final = list(read_rows(ROOT / "docs/promises.md", "Promise", "Tested by"))
NAMED: Final = sorted({test for row in ROWS for test in row.tests})


# The table


def test_table_is_read() -> None:
    assert len(ROWS) > 100
    assert all(row.section for row in ROWS)


def test_cell_of_every_promise_contains_only_tests() -> None:
    assert [str(row) for row in ROWS if len(row.cells[0]) < 15 or not row.tests] == []
    assert [str(row) for row in ROWS if row.text_without_tests] == []


def test_promises_are_unique() -> None:
    promises = Counter((row.section, row.cells[0]) for row in ROWS)
    assert [promise for promise, count in promises.items() if count > 1] == []


def test_tests_of_the_promises_exist() -> None:
    assert [test for test in NAMED if find(test) is None] == []


def test_tests_of_the_promises_are_expected_to_pass() -> None:
    assert [test for test in NAMED if is_unkept(find(test) or [])] == []


def test_tested_examples_are_in_the_table() -> None:
    path = Path(__file__).with_name("test_documented_examples.py")
    own = {
        f"tests/project/{path.name}::{node.name}::{method.name}"
        for node in module(path).body
        if isinstance(node, ast.ClassDef)
        for method in definitions(node.body)
        if method.name.startswith("test") and not is_unkept(method.decorator_list)
    }
    assert own - set(NAMED) == set()


# What finds the tests


@pytest.mark.parametrize(
    "test",
    [
        "tests/project/test_promises.py::test_promises_are_unique",
        "tests/project/test_documented_examples.py::TestSingleton::test_ignored_contention_is_a_success",
        "tests/contracts/test_stores.py::TestORMStore::test_new_invocation_is_claimed",
        "tests/contracts/test_locks.py::TestCacheLockWithDjangosRedisCache::test_free_lock_is_acquired",
    ],
)
def test_defined_and_inherited_tests_are_found(test: str) -> None:
    assert find(test) is not None


@pytest.mark.parametrize(
    "test",
    [
        "tests/test_nowhere.py::test_promises_are_unique",
        "tests/project/test_promises.py::test_nothing",
        "tests/project/test_promises.py::find_test",
        "tests/project/test_documented_examples.py::TestSingleton::test_nothing",
        "tests/project/test_documented_examples.py::TestNothing::test_ignored_contention_is_a_success",
        "tests/contracts/test_locks.py::RedisContract::test_free_lock_is_acquired",
    ],
)
def test_names_that_pytest_does_not_run_are_missing(test: str) -> None:
    assert find(test) is None
