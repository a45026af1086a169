"""The table of promises names tests that exist and run, one or more for each promise."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs/promises.md"
HEADER: Final = ("Promise", "Kept by")
#: A test as pytest names it, without its parameters.
TEST_ID: Final = re.compile(r"`(tests/[\w/]+\.py(?:::\w+){1,2})`")


@dataclass(frozen=True, slots=True)
class Row:
    """A promise, the section that it stands in, and the cell with its tests."""

    line: int
    section: str
    promise: str
    cell: str

    @property
    def tests(self) -> list[str]:
        return TEST_ID.findall(self.cell)

    def __str__(self) -> str:
        return f"{PAGE.name}:{self.line}"


def read_rows() -> Iterator[Row]:
    section = ""
    for number, line in enumerate(PAGE.read_text().splitlines(), start=1):
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("|"):
            cells = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            assert len(cells) == 2, f"{PAGE.name}:{number} has {len(cells)} cells"
            if cells != HEADER and set(cells[0]) != {"-"}:
                yield Row(number, section, *cells)


ROWS: Final = list(read_rows())
NAMED: Final = sorted({test for row in ROWS for test in row.tests})


# Which tests there are, without importing any: in their source


@cache
def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def definitions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def find_class(path: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """Return the class that `name` means in a module, and the file in which it is defined."""
    for node in module(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            origin = ROOT / f"{node.module.replace('.', '/')}.py"
            origin = origin if origin.exists() else origin.with_suffix("") / "__init__.py"
            return find_class(origin, name) if origin.exists() else None
    return None


def find_test(path: Path, *names: str) -> list[ast.expr] | None:
    """Return the decorators of a test, its class's included; None if there is no such test."""
    if not path.exists() or not names[-1].startswith("test"):
        return None
    if len(names) == 1:
        return next((node.decorator_list for node in definitions(module(path).body) if node.name == names[0]), None)
    class_name, name = names
    found = find_class(path, class_name)
    if found is None:
        return None
    origin, node = found
    for method in definitions(node.body):
        if method.name == name:
            return [*node.decorator_list, *method.decorator_list]
    for base in node.bases:
        # A contract: its tests are written once, and run for each class that inherits them.
        inherited = find_test(origin, base.id, name) if isinstance(base, ast.Name) else None
        if inherited is not None:
            return [*node.decorator_list, *inherited]
    return None


def find(test: str) -> list[ast.expr] | None:
    path, *names = test.split("::")
    if len(names) == 2 and not names[0].startswith("Test"):
        return None
    return find_test(ROOT / path, *names)


def is_unkept(decorators: list[ast.expr]) -> bool:
    """Tell whether a test says of itself that it fails, or is not run."""
    return any(re.search(r"mark\.(xfail|skip)\b", ast.unparse(decorator)) for decorator in decorators)


# The table


def test_the_table_is_read() -> None:
    assert len(ROWS) > 100
    assert all(row.section for row in ROWS)


def test_every_promise_has_a_test_and_its_cell_holds_nothing_else() -> None:
    assert [str(row) for row in ROWS if len(row.promise) < 15 or not row.tests] == []
    assert [str(row) for row in ROWS if TEST_ID.sub("", row.cell).replace("<br>", "").strip()] == []


def test_no_promise_stands_twice() -> None:
    promises = Counter((row.section, row.promise) for row in ROWS)
    assert [promise for promise, count in promises.items() if count > 1] == []


def test_the_tests_of_the_promises_exist() -> None:
    assert [test for test in NAMED if find(test) is None] == []


def test_the_tests_of_the_promises_are_expected_to_pass() -> None:
    assert [test for test in NAMED if is_unkept(find(test) or [])] == []


def test_the_examples_that_are_tested_for_the_table_are_in_it() -> None:
    path = Path(__file__).with_name("test_documented_examples.py")
    own = {
        f"tests/{path.name}::{node.name}::{method.name}"
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
        "tests/test_promises.py::test_no_promise_stands_twice",
        "tests/test_documented_examples.py::TestSingleton::test_contention_that_is_ignored_is_a_success_that_shows_why",
        "tests/contracts/test_stores.py::TestORMStore::test_a_new_invocation_is_claimed",
        "tests/contracts/test_locks.py::TestCacheLockWithDjangosRedisCache::test_a_free_lock_is_taken",
    ],
)
def test_a_test_is_found_where_it_is_defined_or_inherited(test: str) -> None:
    assert find(test) is not None


@pytest.mark.parametrize(
    "test",
    [
        "tests/test_nowhere.py::test_no_promise_stands_twice",
        "tests/test_promises.py::test_nothing",
        "tests/test_promises.py::find_test",
        "tests/test_documented_examples.py::TestSingleton::test_nothing",
        "tests/test_documented_examples.py::TestNothing::test_contention_that_is_ignored_is_a_success_that_shows_why",
        "tests/contracts/test_locks.py::RedisContract::test_a_free_lock_is_taken",
    ],
)
def test_what_pytest_would_not_run_is_not_found(test: str) -> None:
    assert find(test) is None
