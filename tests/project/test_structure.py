"""The layout stays readable: few modules at the top, no circle of imports, no long file or function."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lambda_tasks"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts)
MAX_MODULES = 24
MAX_LINES = 450
MAX_FUNCTION = 45


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(path: Path) -> Iterator[str]:
    """Return the modules that a file imports anywhere: in functions and for annotations too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def circle_through(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of `graph` that are part of a circle, or lead into one."""
    left = dict(graph)
    while True:
        done = [name for name, targets in left.items() if not targets & left.keys()]
        if not done:
            return sorted(left)
        for name in done:
            del left[name]


def test_top_level_has_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MAX_MODULES


def test_every_package_has_a_docstring() -> None:
    rooms = [path for path in PACKAGE.rglob("__init__.py") if "migrations" not in path.parts]
    assert [str(path) for path in rooms if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_imports_have_no_circles_even_with_annotations() -> None:
    graph = {name: {other for other in imported(path) if other in MODULES} - {name} for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > 300, "the imports were not found"
    assert circle_through(graph) == []


def test_circles_are_found() -> None:
    assert circle_through({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    # By line, since several classes have an __init__.
    lengths = {f"{node.name}, line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}
