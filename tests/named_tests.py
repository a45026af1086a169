"""Read tables in the documentation that name tests, and find these tests in the source without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
#: A test as pytest names it, without its parameters.
TEST_ID: Final = re.compile(r"`(tests/[\w/]+\.py(?:::\w+){1,2})`")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its location and its cells. The last cell names tests."""

    page: str
    line: int
    section: str
    cells: tuple[str, ...]

    @property
    def tests(self) -> list[str]:
        return TEST_ID.findall(self.cells[-1])

    @property
    def text_without_tests(self) -> str:
        """The text of the last cell without the names of tests."""
        return TEST_ID.sub("", self.cells[-1]).replace("<br>", "").strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_rows(page: Path, *header: str) -> Iterator[Row]:
    """Yield the rows of the tables of `page` that have this header."""
    section, of_table = "", False
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if not line.startswith("|"):
            of_table = False
            if line.startswith("#"):
                section = line.lstrip("# ")
            continue
        cells = tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        if cells == header:
            of_table = True
        elif of_table and set(cells[0]) != {"-"}:
            assert len(cells) == len(header), f"{page.name}:{number} has {len(cells)} cells"
            yield Row(page.name, number, section, cells)


@cache
def module(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def definitions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def find_class(path: Path, name: str) -> tuple[Path, ast.ClassDef] | None:
    """Return the class with this name in a module, and the file that defines it."""
    for node in module(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            origin = ROOT / f"{node.module.replace('.', '/')}.py"
            origin = origin if origin.exists() else origin.with_suffix("") / "__init__.py"
            return find_class(origin, name) if origin.exists() else None
    return None


def find_test(path: Path, *names: str) -> list[ast.expr] | None:
    """Return the decorators of a test and of its class; None if the test does not exist."""
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
        # The tests of a contract are written once, and run for each class that inherits them.
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
    """Return whether a test is marked as an expected failure or skipped."""
    return any(re.search(r"mark\.(xfail|skip)\b", ast.unparse(decorator)) for decorator in decorators)
